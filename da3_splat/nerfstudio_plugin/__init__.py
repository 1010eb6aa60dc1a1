"""The Nerfstudio method `da3-splat`. Nothing outside this folder imports Nerfstudio."""
