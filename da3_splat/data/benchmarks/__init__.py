"""Public data sets that depth, poses and reconstruction are scored on, read from the layouts they are published in."""
