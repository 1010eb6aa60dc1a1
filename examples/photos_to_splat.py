"""Photos (or a video) to a splat file, in ten lines: uv run python examples/photos_to_splat.py photos/ scene.ply"""

import sys
from pathlib import Path

from da3_splat import load_model, load_views, save_ply


def main(photos: Path, output: Path, resolution: int = 504) -> None:
    model = load_model("mini")  # embedded; for real photos: depth-anything/DA3-GIANT-1.1, or a file
    views = load_views(photos, resolution=resolution)
    scene = model.reconstruct(views)
    count = save_ply(scene.gaussians, output)
    print(f"{views.images.shape[1]} views -> {count} Gaussians in {output}; poses: {scene.report['poses']}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
