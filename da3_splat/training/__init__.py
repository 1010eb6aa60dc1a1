"""Training of the geometry network and of the Gaussian head."""
