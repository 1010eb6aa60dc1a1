"""Time and memory of the CPU rasterizer beside a vectorised pure-torch tile rasterizer, in the same run.

    uv run python scripts/benchmark_rasterizer.py            W1 and W2 forward + backward, W3 forward
    uv run python scripts/benchmark_rasterizer.py --full     more repetitions

W1: 100k random Gaussians at 256x256. W2: pixel-aligned Gaussians of 2 views of 252x252, seen by 4 targets.
W3: 1M random Gaussians at 960x540, forward only. Each measurement runs in a process of its own; memory is the growth of
its peak.
"""

import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from da3_splat.data.captures import load_views
from da3_splat.data.synthetic import make_scenes
from da3_splat.geometry.poses import intrinsics_matrix
from da3_splat.geometry.rotations import quaternion_to_matrix
from da3_splat.heads.plain import PlainHead
from da3_splat.model import load_model
from da3_splat.rendering import render
from da3_splat.rendering.constants import MAX_ALPHA, MIN_ALPHA, MIN_TRANSMITTANCE
from da3_splat.starting_points import starting_gaussians
from da3_splat.types import Cameras, Gaussians, Geometry

DEMANDED = {"W1": (15.0, 20.0), "W2": (None, 20.0), "W3": (8.0, None)}  # forward, forward + backward
TILE = 16
FLOP_PER_PAIR = 40  # forward, assumed


def workload(name: str) -> tuple[Gaussians, Cameras]:
    if name == "W2":
        views, truth = make_scenes(1, 6, 252, 252, seed=1, arc=40, supersample=1)
        context, targets = [1, 4], [0, 2, 3, 5]
        depth = torch.where(truth.depth > 0, truth.depth, torch.full((), 30.0))[:, context]
        geometry = Geometry(depth=depth, cameras=truth.cameras.select(context), confidence=torch.ones_like(depth))
        return PlainHead()(None, views.images[:, context], geometry), truth.cameras.select(targets)
    count, height, width = (100_000, 256, 256) if name == "W1" else (1_000_000, 540, 960)
    generator = torch.Generator().manual_seed(0)
    random = torch.rand(1, count, 14, generator=generator)
    gaussians = Gaussians(
        means=2 * random[..., :3] - 1,
        quats=random[..., 3:7] - 0.5,
        scales=0.002 + (0.02 if name == "W1" else 0.008) * random[..., 7:10],
        opacities=random[..., 10],
        sh=(random[..., 11:] - 0.5)[:, :, None],
    )
    pose = torch.eye(4)[None, None].clone()
    pose[..., 2, 3] = 2.6
    focal, center = torch.full((1, 1), 0.95 * width), (torch.full((1, 1), width / 2), torch.full((1, 1), height / 2))
    return gaussians, Cameras(
        world_to_camera=pose, intrinsics=intrinsics_matrix(focal, focal, *center), height=height, width=width
    )


def torch_rasterize(gaussians: Gaussians, cameras: Cameras, count_pairs: bool = False) -> tuple[Tensor, int]:
    """Pictures (V,H,W,4) by the same rules in vectorised torch: tiles with lists of like length go together."""
    pictures, pairs = [], 0
    means, quats, scales = gaussians.means[0], gaussians.quats[0], gaussians.scales[0]
    for pose, k in zip(cameras.world_to_camera[0], cameras.intrinsics[0]):
        center = means @ pose[:3, :3].T + pose[:3, 3]
        x, y, z = center.unbind(-1)
        zero = torch.zeros_like(x)
        jacobian = torch.stack(
            [k[0, 0] / z, zero, -k[0, 0] * x / z**2, zero, k[1, 1] / z, -k[1, 1] * y / z**2], dim=-1
        ).unflatten(-1, (2, 3))
        factor = jacobian @ pose[:3, :3] @ (quaternion_to_matrix(quats) * scales[:, None])
        cov = factor @ factor.transpose(-1, -2) + 0.3 * torch.eye(2)
        det = cov[:, 0, 0] * cov[:, 1, 1] - cov[:, 0, 1] ** 2
        conic = torch.stack([cov[:, 1, 1], -cov[:, 0, 1], cov[:, 0, 0]], dim=-1) / det[:, None]
        u, v = k[0, 0] * x / z + k[0, 2], k[1, 1] * y / z + k[1, 2]
        color = (gaussians.sh[0, :, 0] * 0.28209479177387814 + 0.5).clamp_min(0)
        rows = torch.cat(
            [torch.stack([u, v], -1), conic, gaussians.opacities[0][:, None], color, z[:, None]], dim=-1
        )  # (N,10)
        with torch.no_grad():
            reach = (2 * (gaussians.opacities[0] / MIN_ALPHA).clamp_min(1).log()).sqrt()
            half = reach[:, None] * cov.diagonal(dim1=-2, dim2=-1).sqrt()
            columns, tile_rows = -(-cameras.width // TILE), -(-cameras.height // TILE)
            limit = torch.tensor([columns, tile_rows])
            uv = torch.stack([u, v], -1)
            low = ((uv - half) / TILE).floor().clamp(min=0).long()
            high = torch.minimum(((uv + half) / TILE).floor().long() + 1, limit)
            visible = (z > 0.01) & (gaussians.opacities[0] >= MIN_ALPHA)
            visible &= (high > low).all(-1) & (low < limit).all(-1)
            index = torch.nonzero(visible)[:, 0]
            index = index[z[index].argsort(stable=True)]
            size = high[index] - low[index]
            repeats = size[:, 0] * size[:, 1]
            owner = torch.repeat_interleave(torch.arange(len(index)), repeats)
            within = torch.arange(len(owner)) - (repeats.cumsum(0) - repeats)[owner]
            tile_x = low[index][owner, 0] + within % size[owner, 0]
            tile_y = low[index][owner, 1] + within // size[owner, 0]
            tile = tile_y * columns + tile_x
            order = tile.argsort(stable=True)
            listed = index[owner[order]]
            counts = torch.bincount(tile, minlength=columns * tile_rows)
            begin = counts.cumsum(0) - counts
        picture = torch.zeros(columns * tile_rows, TILE * TILE, 4)
        by_length = counts.argsort(descending=True)
        by_length = by_length[counts[by_length] > 0]
        done, parts = 0, []
        while done < len(by_length):
            longest = int(counts[by_length[done]])
            group = by_length[done : done + max(1, 40_000 // longest)]
            slots = torch.arange(longest)
            present = slots < counts[group][:, None]
            lists = listed[(begin[group][:, None] + slots).clamp_max(len(listed) - 1)]
            if rows.requires_grad:
                part = checkpoint(_composite, rows, lists, present, group, columns, use_reentrant=False)
            else:
                part = _composite(rows, lists, present, group, columns)
            parts.append((group, part[0]))
            pairs += int(part[1])
            done += len(group)
        picture = picture.index_put((torch.cat([g for g, _ in parts]),), torch.cat([p for _, p in parts]))
        picture = picture.unflatten(0, (tile_rows, columns)).unflatten(2, (TILE, TILE))
        picture = picture.permute(0, 2, 1, 3, 4).reshape(tile_rows * TILE, columns * TILE, 4)
        pictures.append(picture[: cameras.height, : cameras.width])
    return torch.stack(pictures), pairs


def _composite(rows: Tensor, lists: Tensor, present: Tensor, tiles: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """Colour and depth sums (T,256,4) of tiles (T) with lists (T,K), and how many pairs contributed."""
    r = rows[lists]  # (T,K,10)
    pixel = torch.arange(TILE * TILE)
    px = ((tiles % columns) * TILE)[:, None] + pixel % TILE + 0.5
    py = ((tiles // columns) * TILE)[:, None] + pixel // TILE + 0.5
    dx, dy = px[:, None] - r[..., 0:1], py[:, None] - r[..., 1:2]  # (T,K,256)
    sigma = 0.5 * (r[..., 2:3] * dx * dx + r[..., 4:5] * dy * dy) + r[..., 3:4] * dx * dy
    alpha = (r[..., 5:6] * torch.exp(-sigma)).clamp_max(MAX_ALPHA)
    alpha = torch.where((alpha >= MIN_ALPHA) & (sigma >= 0) & present[..., None], alpha, 0.0)
    after = torch.cumprod(1 - alpha, dim=1)
    before = torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], dim=1)
    weight = torch.where(after > MIN_TRANSMITTANCE, alpha * before, 0.0)
    return torch.einsum("tkp,tkc->tpc", weight, r[..., 6:]), (weight > 0).sum()


def measure(name: str, backend: str, backward: bool, repeats: int) -> dict[str, float]:
    """In this process: best wall time, process CPU time, and growth of the peak memory."""
    torch.set_num_threads(os.cpu_count() or 1)
    gaussians, cameras = workload(name)
    if backward:
        for field in ("means", "quats", "scales", "opacities", "sh"):
            getattr(gaussians, field).requires_grad_()

    def once() -> int:
        if backend == "cpu":
            rendering = render(gaussians, cameras, backend="cpu")
            value, pairs = rendering.color.sum() + (rendering.depth * rendering.alpha).sum(), 0
        else:
            picture, pairs = torch_rasterize(gaussians, cameras)
            value = picture.sum()
        if backward:
            value.backward()
        return pairs

    if backend == "cpu":  # compile outside the measurement, on a picture of nothing
        tiny = gaussians.select(torch.arange(2))
        rendering = render(tiny, cameras, backend="cpu")
        if backward:
            rendering.color.sum().backward()
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu, pairs = float("inf"), float("inf"), 0
    for _ in range(repeats):
        t, c = time.perf_counter(), time.process_time()
        pairs = once()
        wall, cpu = min(wall, time.perf_counter() - t), min(cpu, time.process_time() - c)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) / 1024
    return {"wall_seconds": wall, "cpu_seconds": cpu, "peak_mb": grown, "pairs": pairs}


@dataclass
class Settings:
    full: bool = False
    """more repetitions"""
    json: Path | None = None
    """write the same numbers there"""
    worker: str = ""
    """internal: one measurement as workload,backend,backward,repeats"""


def fit_of_a_capture() -> dict[str, float]:
    """Optimisation steps a second on a real capture (60k Gaussians, one picture a step), with either rasterizer."""
    folder = Path(os.environ.get("DA3_SPLAT_CAPTURES", Path(__file__).parents[2] / "shared" / "captures")) / "fox"
    if not folder.is_dir():
        print("no real capture here ($DA3_SPLAT_CAPTURES): the fit is skipped")
        return {}
    torch.set_num_threads(os.cpu_count() or 1)
    views = load_views(folder)
    scene = load_model("mini").reconstruct(views)
    start = starting_gaussians(scene, views, 60_000).gaussians
    speeds = {}
    for name, steps in (("ours", 20), ("torch", 2)):
        values = {
            field: getattr(start, field).clone().requires_grad_()
            for field in ("means", "quats", "scales", "opacities", "sh")
        }
        optimizer = torch.optim.Adam(values.values(), lr=1e-4)
        began = time.perf_counter()
        for step in range(steps):
            camera = views.cameras.select([step % 14])
            gaussians = replace(start, **values)
            if name == "ours":
                color = render(gaussians, camera).color[0, 0]
            else:
                color = torch_rasterize(gaussians, camera)[0][0, ..., :3].permute(2, 0, 1)
            optimizer.zero_grad()
            (color - views.images[0, step % 14]).abs().mean().backward()
            optimizer.step()
        speeds[f"{name}_steps_per_second"] = steps / (time.perf_counter() - began)
    height, width = views.images.shape[-2:]
    print(
        f"fit of fox, {start.means.shape[1]} Gaussians at {width}x{height}: "
        f"{speeds['ours_steps_per_second']:.2f} steps a second, "
        f"with the vectorised torch {speeds['torch_steps_per_second']:.3f}"
    )
    return speeds


def in_own_process(name: str, backend: str, backward: bool, repeats: int) -> dict[str, float]:
    job = f"{name},{backend},{int(backward)},{repeats}"
    out = subprocess.run([sys.executable, __file__, "--worker", job], capture_output=True, text=True, check=False)
    if out.returncode:
        sys.exit(f"{job} failed:\n{out.stderr}")
    return json.loads(out.stdout.strip().splitlines()[-1])


def peak_flops() -> float:
    torch.set_num_threads(1)
    a = torch.rand(1024, 1024)
    best = min(_timed(lambda: a @ a) for _ in range(10))
    return 2 * 1024**3 / best


def _timed(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main(settings: Settings) -> None:
    if settings.worker:
        name, backend, backward, repeats = settings.worker.split(",")
        print(json.dumps(measure(name, backend, backward == "1", int(repeats))))
        return
    peak, missed, numbers = peak_flops(), [], {}
    print(f"one core multiplies float32 matrices at {peak / 1e9:.0f} GFLOP/s; times are the best of several, 2 threads")
    titles = f"{'ours s':>9}{'torch s':>9}{'ratio':>7}{'cpu ratio':>10}{'ours MB':>9}{'torch MB':>9}{'memory':>8}"
    print(" " * 14 + titles)
    for name, limits in DEMANDED.items():
        for backward, limit in ((False, limits[0]), (True, limits[1])):
            if name == "W3" and backward:
                continue
            ours = in_own_process(name, "cpu", backward, 9 if settings.full else 5)
            theirs = in_own_process(name, "torch", backward, 3 if settings.full else 1)
            ratio, memory = theirs["wall_seconds"] / ours["wall_seconds"], theirs["peak_mb"] / max(ours["peak_mb"], 1)
            kind = "fwd+bwd" if backward else "forward"
            cpu_ratio = theirs["cpu_seconds"] / ours["cpu_seconds"]
            print(
                f"{name:4}{kind:10}{ours['wall_seconds']:9.3f}{theirs['wall_seconds']:9.2f}"
                f"{ratio:6.0f}x{cpu_ratio:9.0f}x{ours['peak_mb']:9.0f}{theirs['peak_mb']:9.0f}{memory:7.0f}x",
                flush=True,
            )
            numbers[f"{name} {kind}"] = {"ours": ours, "torch": theirs, "wall_ratio": ratio, "memory_ratio": memory}
            if not backward:
                millions, bound = theirs["pairs"] / 1e6, theirs["pairs"] * FLOP_PER_PAIR / peak
                spent = ours["cpu_seconds"]
                print(
                    f"{'':14}{millions:.1f} M pairs x {FLOP_PER_PAIR} operations: {1000 * bound:.0f} ms of one core; "
                    f"ours took {1000 * spent:.0f} ms ({spent / bound:.0f}x)"
                )
            if limit and ratio < limit:
                missed.append(f"{name} {kind} {ratio:.1f}x < {limit:.0f}x")
            if backward and memory < 8:
                missed.append(f"{name} memory 1/{memory:.1f} > 1/8")
    numbers["fit"] = fit_of_a_capture()
    if settings.json:
        settings.json.write_text(json.dumps({"full": settings.full, "results": numbers}, indent=1))
    w1 = numbers["W1 fwd+bwd"]["wall_ratio"]
    print(
        f"forward and backward on W1: {w1:.0f} times the vectorised torch" + (f"; missed: {missed}" if missed else "")
    )
    sys.exit(1 if missed else 0)


main(tyro.cli(Settings, description=__doc__))
