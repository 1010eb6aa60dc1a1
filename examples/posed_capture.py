"""A posed capture, one view held out, refined for a moment and scored on that view, in the capture's own frame.

uv run python examples/posed_capture.py capture/ output/
"""

import sys
from pathlib import Path

import torch

from da3_splat import load_model, load_views, render, save_ply
from da3_splat.io.images import write_image
from da3_splat.metrics import psnr
from da3_splat.refinement import RefinementConfig, refine
from da3_splat.starting_points import start_from_network


def main(capture: Path, output: Path, steps: int = 300, resolution: int = 336) -> None:
    views = load_views(capture, resolution=resolution)  # transforms.json or COLMAP: cameras and sparse points
    if views.cameras is None:
        sys.exit(f"{capture}: has no cameras; see photos_to_splat.py")
    held_out = views.select([0])
    context = views.select(list(range(1, views.images.shape[1])))
    start = start_from_network(load_model("mini"), context)
    refined = refine(start.gaussians, context, RefinementConfig(steps=steps))
    with torch.no_grad():
        picture = render(refined.gaussians, held_out.cameras).color[0]
    score = float(psnr(picture.clamp(0, 1), held_out.images[0])[0])
    save_ply(refined.gaussians, output / "scene.ply")
    write_image(output / "held_out.png", picture[0].permute(1, 2, 0).numpy())
    print(f"started from: {start.source}; held-out view: {score:.1f} dB; {output / 'scene.ply'}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
