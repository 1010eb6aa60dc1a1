"""Commands of `da3-splat` that fill a file, and what all of them show on a terminal."""
