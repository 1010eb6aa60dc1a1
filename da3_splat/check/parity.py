"""Goldens: what the official network computed with the weights of recipe.py, compared with what ours computes.

A folder of goldens holds index.json ({case: description}) and an npz of arrays a case. Two forms are read: small cases
whose pictures are recipe.image(view, H, W), and cases whose pictures lie in an `inputs` npz beside them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from da3_splat.backbone.network import DepthAnything3, NestedDepthAnything3
from da3_splat.backbone.reference_view import move_to_front
from da3_splat.check import recipe
from da3_splat.model import Da3Splat, create_model
from da3_splat.types import Cameras

TOLERANCE = 1e-5  # relative L2; the official network's own float32 is some 2e-6 from its float64


@dataclass(frozen=True)
class Case:
    name: str
    folder: Path
    entry: dict

    @property
    def config(self) -> str:
        return self.entry["config"]

    @property
    def options(self) -> dict:
        return self.entry.get("options", self.entry.get("opts", {}))

    @property
    def wants_gaussians(self) -> bool:
        return bool(self.options.get("infer_gs"))


def read_cases(folder: Path) -> list[Case]:
    """The network cases of `folder`, or of its subfolders that hold an index.json, those of one network together."""
    folders = [path for path in (folder, *sorted(folder.iterdir())) if (path / "index.json").is_file()]
    if not folders:
        raise ValueError(f"{folder}: no index.json here or one level down")
    cases = [
        Case(name, path, entry)
        for path in folders
        for name, entry in json.loads((path / "index.json").read_text()).items()
        if entry.get("config") and not name.startswith(("api_", "geom_")) and (path / f"{name}.npz").is_file()
    ]
    return sorted(cases, key=lambda case: (case.config, case.wants_gaussians, case.name))


def run_cases(cases: list[Case]) -> Iterator[tuple[Case, dict[str, float]]]:
    """Relative L2 of every compared field, case by case; each network is filled once."""
    held: tuple[tuple[str, bool], Da3Splat] | None = None
    for case in cases:
        key = (case.config, case.wants_gaussians)
        if held is None or held[0] != key:
            held = None  # two Giants at once would not fit everywhere
            released = case.wants_gaussians
            model = create_model(case.config, rules="released") if released else create_model(case.config, head="plain")
            recipe.fill(model)
            held = (key, model)
        yield case, _compare(case, held[1])


@torch.no_grad()
def _compare(case: Case, model: Da3Splat) -> dict[str, float]:
    golden = np.load(case.folder / f"{case.name}.npz")
    images, cameras = _images(case), None
    if "ext_in" in golden:
        cameras = Cameras(
            world_to_camera=torch.from_numpy(golden["ext_in"]).float(),
            intrinsics=torch.from_numpy(golden["ixt_in"]).float(),
            height=images.shape[-2],
            width=images.shape[-1],
        )
    reference = case.options.get("reference_view", case.options.get("ref_view_strategy", "saddle_balanced"))
    if reference == "saddle_sim_range":  # ties within rounding: the recorded choice is forced
        reference = int(golden["b_idx"][0] if "b_idx" in golden else case.entry["b_idx"][0])
    layers = tuple(case.options.get("export_feat_layers", ()))
    network = model.network
    assert isinstance(network, DepthAnything3 | NestedDepthAnything3)
    alone = network.da3 if isinstance(network, NestedDepthAnything3) else network
    features = network.encode(images, cameras, reference, extra_layers=layers)
    geometry = network.decode(features, rays="ray" in golden)
    map_stride = case.entry.get("map_stride", case.entry.get("depth_stride"))
    ray_stride = case.entry.get("map_stride", case.entry.get("ray_stride"))

    def strided(maps: Tensor | None, stride: int | None = map_stride) -> Tensor:
        assert maps is not None, "what a golden holds, its network predicts"
        return maps[:, :, ::stride, ::stride]

    ours: dict[str, Tensor] = {}
    if isinstance(network, NestedDepthAnything3):
        ours |= {"anyview_depth": strided(geometry.depth), "anyview_conf": strided(geometry.confidence)}
        geometry = network.to_metres(geometry, images)
        ours["metric_sky"] = strided(geometry.sky)
    elif geometry.sky is not None:
        ours["sky"] = strided(geometry.sky)
    ours["depth"] = strided(geometry.depth)
    if geometry.confidence is not None:
        ours["depth_conf"] = strided(geometry.confidence)
        assert geometry.camera_encoding is not None, "comes with the cameras"
        ours["pose_enc"] = geometry.camera_encoding
    if geometry.cameras is not None and not case.options.get("use_ray_pose"):  # our ray solver differs on purpose
        ours["extrinsics"] = geometry.cameras.world_to_camera[..., :3, :]
        ours["intrinsics"] = geometry.cameras.intrinsics
    if geometry.ray_map is not None:
        rays = torch.cat([geometry.ray_map.directions, geometry.ray_map.origins], dim=-1)
        ours |= {"ray": strided(rays, ray_stride), "ray_conf": strided(geometry.ray_map.confidence, ray_stride)}
    if cameras is not None:
        assert alone.cam_enc is not None, "what takes cameras encodes them"
        ours["cam_enc"] = alone.cam_enc(cameras)
    for layer, values in features.extra.items():
        first_across = alone.backbone.alternate_from
        if first_across is not None and layer >= first_across - 1:  # the official code leaves these in its own order
            values = move_to_front(values, features.reference)
        ours[f"aux_feat_layer_{layer}"] = values.unflatten(2, (images.shape[-2] // 14, images.shape[-1] // 14))
    if case.wants_gaussians:
        gaussians = model.gs_head(features, images, geometry, cameras)
        stride = case.entry.get("gaussian_stride", case.entry.get("gs_stride"))
        named = {"means": gaussians.means, "scales": gaussians.scales, "rotations": gaussians.quats}
        named |= {"harmonics": gaussians.sh.transpose(-1, -2), "opacities": gaussians.opacities}
        for name, values in named.items():
            ours[f"gs_{name}"] = strided(values.unflatten(1, (-1, *images.shape[-2:])), stride)
    return {name: _relative(values, golden[name]) for name, values in ours.items() if name in golden}


def _images(case: Case) -> Tensor:
    """(B,S,3,H,W) in [0,1] of a case."""
    entry = case.entry
    if "inputs" not in entry:
        pictures = [recipe.image(view, entry["H"], entry["W"]) for view in range(entry["S"])]
        return torch.stack(pictures)[None].permute(0, 1, 4, 2, 3).float() / 255
    name, orders = entry["inputs"], [entry["view_order"]]
    if name is None:  # a batch: its note names the file and the views of each item
        name = re.findall(r"inputs_\w+\.npz", entry["note"])[0]
        orders = json.loads("[" + ",".join(re.findall(r"\[[\d,]+\]", entry["note"])) + "]")
    pool = np.load(case.folder / name)
    views = torch.from_numpy(pool[pool.files[0]])
    return torch.stack([views[order] for order in orders]).permute(0, 1, 4, 2, 3).float() / 255


def _relative(ours: Tensor, golden: np.ndarray) -> float:
    want = torch.from_numpy(golden).double()
    if ours.numel() != want.numel():  # features are recorded at every n-th patch and channel
        ours = ours[tuple(slice(None, None, -(-have // kept)) for have, kept in zip(ours.shape, want.shape))]
    return float((ours.double().reshape(want.shape) - want).norm() / want.norm().clamp_min(1e-30))
