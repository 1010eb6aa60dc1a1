"""Record what `mini` computes with the test weights, as a guard against unwanted change (not a check against others).

uv run python scripts/record_mini_golden.py
"""

import json
from pathlib import Path

import numpy as np
import torch

from da3_splat.backbone import create_backbone
from da3_splat.check import recipe

FOLDER = Path(__file__).parents[1] / "tests" / "data" / "goldens" / "mini"
VIEWS, HEIGHT, WIDTH, STRIDE = 3, 56, 70, 2

network = recipe.fill(create_backbone("mini"))
pictures = [recipe.image(view, HEIGHT, WIDTH) for view in range(VIEWS)]
with torch.no_grad():
    geometry = network(torch.stack(pictures)[None].permute(0, 1, 4, 2, 3).float() / 255, rays=True)
rays = torch.cat([geometry.ray_map.directions, geometry.ray_map.origins], dim=-1)
arrays = {
    "depth": geometry.depth[:, :, ::STRIDE, ::STRIDE],
    "depth_conf": geometry.confidence[:, :, ::STRIDE, ::STRIDE],
    "ray": rays[:, :, ::STRIDE, ::STRIDE],
    "extrinsics": geometry.cameras.world_to_camera[..., :3, :],
    "intrinsics": geometry.cameras.intrinsics,
}
FOLDER.mkdir(parents=True, exist_ok=True)
np.savez_compressed(FOLDER / "mini_S3.npz", **{name: value.numpy() for name, value in arrays.items()})
entry = {"config": "mini", "S": VIEWS, "H": HEIGHT, "W": WIDTH, "options": {}, "map_stride": STRIDE}
(FOLDER / "index.json").write_text(json.dumps({"mini_S3": entry}))
