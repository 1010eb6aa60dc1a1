"""Long sequences: overlapping chunks reconstructed alone, aligned, closed where they come home, fused to one splat."""
