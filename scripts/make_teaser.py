"""The picture at the top of the README, from a synthetic world: photos, depth, cameras with rays, splat.

uv run python scripts/make_teaser.py                    writes docs/teaser.png
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image, ImageDraw

from da3_splat import Cameras, load_model, render
from da3_splat.data.synthetic import make_scenes
from da3_splat.geometry.projection import project
from da3_splat.io.files import replacing
from da3_splat.io.images import color_of_depth
from da3_splat.refinement import RefinementConfig, refine
from da3_splat.starting_points import starting_gaussians
from da3_splat.viewer.drawing import picture_of

VIEWS, HEIGHT, WIDTH, SEED, ARC = 9, 168, 224, 20, 60
SHOWN = (1, 4, 7)
RAYS = ((0.1, 0.1), (0.9, 0.1), (0.9, 0.9), (0.1, 0.9), (0.5, 0.5))  # places of a picture
GAP = 6


@dataclass
class Settings:
    output: Path = Path(__file__).parents[1] / "docs" / "teaser.png"
    """the picture"""
    steps: int = 300
    """refinement steps of the splat"""
    json: Path | None = None
    """write the size of the picture there"""


def seen_from_behind(cameras: Cameras) -> Cameras:
    """A camera (1,1) of twice the size, behind and above the middle one, that sees all of them and the scene."""
    middle = cameras.select([VIEWS // 2]).resized(2 * HEIGHT + GAP, 3 * WIDTH + 2 * GAP)
    step = torch.eye(4)
    angle = torch.tensor(0.35)
    step[1:3, 1:3] = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]])
    step[:3, 3] = torch.tensor([0.0, 0.6, 2.2])
    lens = middle.intrinsics.clone()
    lens[..., 0, 0] = lens[..., 1, 1] = 0.75 * middle.height
    return replace(middle, world_to_camera=step @ middle.world_to_camera, intrinsics=lens)


def with_rays(picture: Image.Image, scene, onlooker: Cameras) -> None:
    """Draw the shown cameras as frustums, and some of their rays to the depth that the network found."""
    draw, points = ImageDraw.Draw(picture), scene.geometry.points()[0]
    for view, color in zip(SHOWN, ((255, 140, 40), (90, 200, 255), (255, 90, 160))):
        center = scene.cameras.centers[0, view]
        ends = torch.stack([points[view, int(y * (HEIGHT - 1)), int(x * (WIDTH - 1))] for x, y in RAYS])
        corners = center + 0.12 * (ends[:4] - center)
        (flat,), z = project(torch.cat([center[None], ends, corners]), onlooker)
        if float(z.min()) <= 0.05:
            continue
        spots = [tuple(spot) for spot in flat[0].tolist()]
        for end in spots[1:6]:
            draw.line([spots[0], end], fill=color, width=1)
            draw.ellipse([end[0] - 3, end[1] - 3, end[0] + 3, end[1] + 3], fill=color)
        draw.line([*spots[6:10], spots[6]], fill=color, width=2)
        for corner in spots[6:10]:
            draw.line([spots[0], corner], fill=color, width=2)


settings = tyro.cli(Settings, description=__doc__)
(views, truth) = make_scenes(1, VIEWS, HEIGHT, WIDTH, SEED, arc=ARC)
views = replace(views, cameras=truth.cameras)
scene = load_model("mini").reconstruct(views)
start = starting_gaussians(scene, views, max_gaussians=40_000)
gaussians = refine(start.gaussians, views, RefinementConfig(steps=settings.steps)).gaussians
onlooker = seen_from_behind(scene.cameras)
with torch.no_grad():
    splat = Image.fromarray(picture_of(render(gaussians, onlooker, background=torch.ones(3)).color[0, 0]))
with_rays(splat, scene, onlooker)
depth = (color_of_depth(scene.geometry.depth[0].numpy()) * 255).astype(np.uint8)
sheet = Image.new("RGB", (splat.width, splat.height + 2 * (HEIGHT + GAP)), "white")
for column, view in enumerate(SHOWN):
    sheet.paste(Image.fromarray(picture_of(views.images[0, view])), (column * (WIDTH + GAP), 0))
    sheet.paste(Image.fromarray(depth[view]), (column * (WIDTH + GAP), HEIGHT + GAP))
sheet.paste(splat, (0, 2 * (HEIGHT + GAP)))
with replacing(settings.output) as beside:
    sheet.save(beside, optimize=True)
size = settings.output.stat().st_size
if settings.json:
    settings.json.write_text(json.dumps({"bytes": size}) + "\n")
print(f"{settings.output}: {sheet.width}x{sheet.height}, {size / 1000:.0f} kB")
