"""Gaussians of many views -> fewer, better ones."""
