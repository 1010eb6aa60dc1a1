"""Cameras, rays and similarities: pure functions on tensors, nothing learned."""
