"""Scoring any method: novel views, poses, depth, reconstruction, each with its protocol beside the numbers."""
