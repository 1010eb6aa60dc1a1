"""PLY: Gaussians in the standard 3DGS layout (the only place for logits and log-scales) and coloured point clouds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from plyfile import PlyData, PlyElement, PlyParseError
from torch import Tensor

from da3_splat.io.files import replacing
from da3_splat.limits import regular_file
from da3_splat.types import Gaussians

UNREADABLE = (PlyParseError, KeyError, ValueError, OSError, IndexError, OverflowError, TypeError, EOFError)
LARGEST_HEADER = 1 << 16  # bytes
MIN_OPACITY = 1 / 255  # below, no renderer draws a Gaussian


def save_ply(gaussians: Gaussians, path: str | Path) -> int:
    """Write one scene (batch size 1) as a 3DGS PLY and return how many Gaussians it holds.

    Order and names are what SuperSplat, viser and gsplat's viewers expect: x y z, nx ny nz (zero), f_dc_0-2,
    f_rest_* (channel by channel), opacity (logit), scale_0-2 (log), rot_0-3 (wxyz, unit). Gaussians that are padding,
    not finite or below opacity 1/255 are left out, so every stored value is finite.
    """
    gaussians = drawable(gaussians)
    means, scales, sh = gaussians.means[0], gaussians.scales[0], gaussians.sh[0]
    quats = torch.nn.functional.normalize(gaussians.quats[0], dim=-1)
    logits = torch.logit(gaussians.opacities[0], eps=1e-6)
    rest = sh[:, 1:].transpose(1, 2).flatten(1)  # (N, 3 (K-1)): all of red, all of green, all of blue
    columns = [means, torch.zeros_like(means), sh[:, 0], rest, logits[:, None], scales.clamp_min(1e-30).log(), quats]
    names = ["x", "y", "z", "nx", "ny", "nz", *(f"f_dc_{i}" for i in range(3))]
    names += [*(f"f_rest_{i}" for i in range(rest.shape[1])), "opacity"]
    names += [*(f"scale_{i}" for i in range(3)), *(f"rot_{i}" for i in range(4))]
    _write(path, torch.cat(columns, dim=1).numpy(), [(name, "<f4") for name in names])
    return len(means)


def drawable(gaussians: Gaussians) -> Gaussians:
    """What a renderer draws of one scene (batch size 1), as float32 on the CPU: no padding, nothing that is not finite,
    no opacity below 1/255, no size or quaternion of zero."""
    if gaussians.means.shape[0] != 1:
        raise ValueError(f"expected one scene to write, got a batch of {gaussians.means.shape[0]}")
    gaussians = gaussians.detach().to("cpu", torch.float32)
    keep = gaussians.opacities[0] >= MIN_OPACITY
    if gaussians.mask is not None:
        keep &= gaussians.mask[0]
    for values in (gaussians.means, gaussians.quats, gaussians.scales, gaussians.sh.flatten(2)):
        keep &= values[0].isfinite().all(dim=-1)
    keep &= (gaussians.scales[0] > 0).all(dim=-1) & (gaussians.quats[0].norm(dim=-1) > 0)
    return gaussians.select(torch.nonzero(keep)[:, 0])


def load_ply(path: str | Path) -> Gaussians:
    """The Gaussians (1,N) of a 3DGS PLY, back to post-activation values; those that are not finite, which no renderer
    draws, are left out. ValueError names what is missing."""
    vertex = _read(path)
    present = set(vertex.data.dtype.names)
    rest = [f"f_rest_{number}" for number in range(sum(name.startswith("f_rest_") for name in present))]
    needed = ["x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity", "scale_0", "scale_1", "scale_2"]
    needed += [f"rot_{i}" for i in range(4)]
    missing = [name for name in needed + rest if name not in present]
    if missing:
        raise ValueError(f"{path}: not a Gaussian PLY, missing {', '.join(missing)}")

    def columns(names: list[str]) -> Tensor:
        return torch.from_numpy(_columns(vertex, names, path))[None]

    sh = columns(["f_dc_0", "f_dc_1", "f_dc_2"])[:, :, None]
    if rest:
        if len(rest) not in (9, 24, 45, 72):
            raise ValueError(f"{path}: expected 9, 24, 45 or 72 f_rest columns, got {len(rest)}")
        sh = torch.cat([sh, columns(rest).unflatten(-1, (3, -1)).transpose(-1, -2)], dim=2)
    gaussians = Gaussians(
        means=columns(["x", "y", "z"]),
        quats=columns([f"rot_{i}" for i in range(4)]),
        scales=columns(["scale_0", "scale_1", "scale_2"]).exp(),
        opacities=columns(["opacity"])[..., 0].sigmoid(),
        sh=sh,
    )
    finite = [
        values[0].flatten(1).isfinite().all(dim=1) for values in gaussians.kept_on_disk().values() if values.ndim > 2
    ]
    keep = torch.stack([*finite, gaussians.opacities[0].isfinite()]).all(dim=0)
    return gaussians if bool(keep.all()) else gaussians.select(keep)


def save_points(points: np.ndarray, colors: np.ndarray, path: str | Path) -> None:
    """Write points (P,3) with colours (P,3) in [0,1] as a PLY that every viewer opens."""
    colors = (colors.clip(0, 1) * 255 + 0.5).astype(np.uint8)
    kinds = [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("red", "u1"), ("green", "u1"), ("blue", "u1")]
    _write(path, np.concatenate([points, colors], axis=1), kinds)


def load_points(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Points (P,3) and colours (P,3) in [0,1] of a PLY; grey where it has no colours. Points that are not finite are
    left out."""
    vertex = _read(path)
    points = _columns(vertex, list("xyz"), path)
    keep = np.isfinite(points).all(axis=1)
    names = ["red", "green", "blue"]
    if not set(names) <= set(vertex.data.dtype.names):
        return points[keep], np.full_like(points[keep], 0.5)
    full = 255 if vertex.data.dtype["red"] == np.uint8 else 1
    return points[keep], np.nan_to_num(_columns(vertex, names, path)[keep]) / full


def _read(path: str | Path) -> PlyElement:
    path = regular_file(path)
    try:
        _check_counts(path)
        vertex = PlyData.read(str(path))["vertex"]
        if not {"x", "y", "z"} <= set(vertex.data.dtype.names or ()):
            raise ValueError("no x, y, z")
    except UNREADABLE as error:
        raise ValueError(f"{path}: not a readable PLY ({error})") from error
    return vertex


def _check_counts(path: Path) -> None:
    """ValueError where a header asks for more numbers than the file has bytes; plyfile would make room for them."""
    asked = rows = 0
    with path.open("rb") as file:
        for line in file.read(LARGEST_HEADER).split(b"end_header")[0].splitlines():
            words = line.split()
            if words[:1] == [b"element"] and len(words) == 3:
                rows = int(words[2])
                if rows < 0:
                    raise ValueError(f"says it has {rows} of {words[1].decode()}")
            elif words[:1] == [b"property"]:
                asked += rows
    if asked > path.stat().st_size:
        raise ValueError(f"says it has {asked} numbers, but has {path.stat().st_size} bytes")


def _columns(vertex: PlyElement, names: list[str], path: str | Path) -> np.ndarray:
    """Properties (N,C) as float32; ValueError where one is a list."""
    if any(vertex.data.dtype[name].kind not in "fiu" for name in names):
        raise ValueError(f"{path}: {', '.join(names)}: expected a number each")
    with np.errstate(over="ignore"):
        return np.stack([np.asarray(vertex[name], np.float32) for name in names], axis=-1)


def _write(path: str | Path, rows: np.ndarray, kinds: list[tuple[str, str]]) -> None:
    table = np.empty(len(rows), dtype=kinds)
    for index, (name, _) in enumerate(kinds):
        table[name] = rows[:, index]
    with replacing(path) as beside:
        PlyData([PlyElement.describe(table, "vertex")], byte_order="<").write(str(beside))
