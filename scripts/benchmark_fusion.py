"""What fusion gains over laying every view's Gaussians side by side: novel-view PSNR at 6, 12 and 24 views.

    uv run python scripts/benchmark_fusion.py                 about 12 minutes on two cores
    uv run python scripts/benchmark_fusion.py --only true,mini
    uv run python scripts/benchmark_fusion.py --full          every part on 8 worlds

Worlds of seeds that nothing was trained on, 168x224. Contexts are nested (6 of 12 of 24 on one arc of 60 degrees), the
four targets lie between them and are the same for every count, and PSNR is taken over the same pixels: those that one
of the 6 contexts sees. Parts: `true` geometry of 8 views on 50 degrees beside naive lifting (isotropic, half a pixel
wide, opacity 0.95); geometry `disturbed` like a network's (2 % smooth depth error, poses off by 0.5 degrees and 1 % of
the depth) and the same depth with the `posed` cameras given exactly; disturbances that no parameter was tuned on
(`scale`: 3 % a view, `bleed`: depth grows two pixels over edges, `astray`: one view turned by 3 degrees); the `mini`
network on posed views, on both kinds of rays; real `captures`, every 8th view held out; and an `ablation` of the
defaults (with --full or by name).
"""

import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from rich.console import Console

from da3_splat import load_model, load_views, render
from da3_splat.data.disturbance import Disturbance, disturb
from da3_splat.data.synthetic import render_worlds, sample_cameras, sample_worlds
from da3_splat.evaluation.measuring import peak_bytes
from da3_splat.fusion.fuse import NO_FUSION, FusionConfig, agree, fuse
from da3_splat.geometry.projection import project, unproject
from da3_splat.geometry.surfaces import pixel_widths
from da3_splat.heads.lifting import lift, raw_channels
from da3_splat.metrics import psnr
from da3_splat.types import Gaussians, Geometry, Views

HEIGHT, WIDTH, FIRST_SEED = 168, 224, 7_000_000
COUNTS = {6: [0, 5, 9, 14, 18, 23], 12: [0, 2, 5, 7, 9, 11, 12, 14, 16, 18, 21, 23], 24: list(range(24))}
NETWORK_LIKE = Disturbance(depth=0.02, rotation=0.5, translation=0.01)
DISTURBANCES = {
    "disturbed": NETWORK_LIKE,
    "posed": Disturbance(depth=0.02),
    "scale": replace(NETWORK_LIKE, scale=0.03),
    "bleed": replace(NETWORK_LIKE, bleed=2),
    "astray": replace(NETWORK_LIKE, one_view=3.0),
}
DEMANDED = ("disturbed", "posed")  # with demands on the gain; elsewhere fusion must not lose


@dataclass
class Settings:
    only: str = ""
    """parts to run, separated by commas: true, disturbed, posed, scale, bleed, astray, mini, captures, ablation"""
    full: bool = False
    """8 worlds for every part, and the ablation"""
    captures: Path | None = None
    """folder of real captures; default $DA3_SPLAT_CAPTURES, else ../shared/captures"""
    json: Path | None = None
    """write the same numbers there"""


@dataclass
class World:
    contexts: Views
    truth: Geometry
    targets: Views
    mask: torch.Tensor  # (V,H,W) target pixels that the fewest contexts see


def make_world(seed: int, contexts: int, arc: float, targets: tuple[float, ...], fewest: list[int]) -> World:
    """A world with `contexts` views on an arc, and targets between them at the given positions (in quarters)."""
    worlds = sample_worlds(1, seed)
    path = sample_cameras(worlds, 4 * (contexts - 1) + 1, HEIGHT, WIDTH, seed + 1, arc)
    seen, aimed = path.select([4 * i for i in range(contexts)]), path.select([int(4 * at) for at in targets])
    images, truth = render_worlds(worlds, seen)
    target_images, target_truth = render_worlds(worlds, aimed)
    mask = visible(target_truth, truth.select(fewest))
    return World(Views(images=images, cameras=seen), truth, Views(images=target_images, cameras=aimed), mask)


def visible(target: Geometry, contexts: Geometry) -> torch.Tensor:
    """(V,H,W) bool: surface points of the targets that some context sees."""
    points = unproject(target.depth, target.cameras)[0]
    pixels, z = project(points.reshape(1, -1, 3), contexts.cameras)
    found = torch.zeros(points.shape[:3], dtype=torch.bool)
    for view in range(contexts.depth.shape[1]):
        x, y = pixels[0, view].unbind(-1)
        inside = (x >= 0) & (x < WIDTH) & (y >= 0) & (y < HEIGHT) & (z[0, view] > 0)
        depth = contexts.depth[0, view, y.long().clamp(0, HEIGHT - 1), x.long().clamp(0, WIDTH - 1)]
        found |= (inside & ((z[0, view] / depth - 1).abs() < 0.02)).reshape(found.shape)
    return found & (target.depth[0] > 0)


@torch.no_grad()
def score(gaussians: Gaussians, targets: Views, mask: torch.Tensor) -> float:
    """Mean PSNR in dB of the targets over the pixels of the mask."""
    error = (render(gaussians, targets.cameras).color[0] - targets.images[0]).square().mean(dim=1)
    return float(torch.stack([-10 * torch.log10(e[m].mean()) for e, m in zip(error, mask)]).mean())


def plain(geometry: Geometry, images: torch.Tensor) -> Gaussians:
    return lift(images.new_zeros(*geometry.depth.shape, raw_channels(0)), images, geometry)


def naive(geometry: Geometry, images: torch.Tensor) -> Gaussians:
    """The baseline of the field: round, half a pixel wide, nearly opaque."""
    gaussians = plain(geometry, images)
    width = 0.5 * pixel_widths(geometry.depth, geometry.cameras).flatten(1)[..., None]
    gaussians = replace(
        gaussians, scales=width.expand_as(gaussians.scales), opacities=torch.full_like(gaussians.opacities, 0.95)
    )
    return gaussians.select((geometry.depth > 0).flatten())


@torch.no_grad()
def fused(geometry: Geometry, images: torch.Tensor, fixed: bool, config: FusionConfig) -> tuple[Gaussians, dict]:
    """Our fusion of plainly lifted pixels, with its report, seconds, and MB of memory that it took at its peak."""
    Path("/proc/self/clear_refs").write_text("5")  # forget earlier peaks
    held = peak_mb()
    views, began = Views(images=images), time.perf_counter()
    poses = torch.full((images.shape[1],), fixed)
    geometry, agreement = agree(geometry, views, poses, config)

    def of_view(view: int) -> Gaussians:
        return plain(geometry.select([view]), images[:, [view]])

    gaussians, counts = fuse(geometry, views, of_view, config)
    return gaussians, {**agreement, **counts, "seconds": time.perf_counter() - began, "mb": peak_mb() - held}


def peak_mb() -> float:
    """Peak memory of this process so far."""
    return peak_bytes() / 2**20


def true_geometry(worlds: int, numbers: dict, missed: list[str]) -> None:
    """Lifting and rendering alone, no network: the bound of everything else."""
    rows = []
    for index in range(worlds):
        world = make_world(FIRST_SEED + 10 * index, 8, 50, (0.5, 2.5, 4.5, 6.5), list(range(8)))
        images, geometry = world.contexts.images, world.truth
        rows.append([score(naive(geometry, images), world.targets, world.mask)])
        for config in (FusionConfig(consensus=None, recolor_passes=0), FusionConfig(consensus=None)):
            rows[-1].append(score(fused(geometry, images, True, config)[0], world.targets, world.mask))
    naive_db, merged, colored = torch.tensor(rows).mean(dim=0).tolist()
    print(
        f"true geometry, 8 views, {worlds} worlds: naive {naive_db:.2f} dB, merged {merged:.2f}, coloured {colored:.2f}"
    )
    numbers["true"] = {"naive_db": naive_db, "merged_db": merged, "fused_db": colored}
    if colored < naive_db + 1.5:
        missed.append(f"true geometry: {colored - naive_db:.2f} dB over naive lifting < 1.5")


def disturbed_geometry(name: str, worlds: list[World], numbers: dict, missed: list[str]) -> None:
    means = {}
    for count, chosen in COUNTS.items():
        rows = []
        for index, world in enumerate(worlds):
            geometry = disturb(world.truth, DISTURBANCES[name], seed=index).select(chosen)
            images = world.contexts.images[:, chosen]
            concatenated = plain(geometry, images).select((geometry.depth > 0).flatten())
            gaussians, report = fused(geometry, images, name == "posed", FusionConfig())
            exact = fused(world.truth.select(chosen), images, True, FusionConfig(consensus=None))[0]
            scores = [score(g, world.targets, world.mask) for g in (concatenated, gaussians, exact)]
            share = gaussians.means.shape[1] / concatenated.means.shape[1]
            rows.append([*scores, share, report["seconds"], report["mb"], float(report["consensus_accepted"])])
        before, after, bound, share, seconds, mb, accepted = torch.tensor(rows).mean(dim=0).tolist()
        print(
            f"{name:10}{count:5} views{before:9.2f} dB side by side{after:9.2f} dB fused{bound:9.2f} dB fused truth"
            f"{100 * share:6.0f} % of the Gaussians{seconds / count:7.2f} s and {mb / count:.0f} MB a view, "
            f"accepted {100 * accepted:.0f} %",
            flush=True,
        )
        means[count] = {
            "side_by_side_db": before, "fused_db": after, "fused_truth_db": bound, "gaussians_ratio": share,
            "seconds_per_view": seconds / count, "mb_per_view": mb / count,
        }  # fmt: skip
        if after < before:
            missed.append(f"{name}, {count} views: fused is {before - after:.2f} dB below side by side")
    numbers[name] = means
    if name in DEMANDED:
        if not means[6]["fused_db"] < means[12]["fused_db"] < means[24]["fused_db"]:
            missed.append(f"{name}: PSNR does not rise with views")
        if means[24]["fused_db"] < means[24]["side_by_side_db"] + 0.7:
            missed.append(f"{name}: less than 0.7 dB gained at 24 views")
        if means[24]["gaussians_ratio"] > 0.5:
            missed.append(f"{name}: more than half of the Gaussians at 24 views")


def ablation(worlds: list[World], numbers: dict) -> None:
    """What each default is worth: 12 disturbed views, one setting changed at a time."""
    base = FusionConfig()
    variants = {
        "defaults": base,
        "no consensus": replace(base, consensus=None),
        "no merging": replace(base, merge=None),
        "no colours": replace(base, recolor_passes=0),
        "1 pass of colours": replace(base, recolor_passes=1),
        "4 passes of colours": replace(base, recolor_passes=4),
        "2 copies a spot": replace(base, merge=replace(base.merge, copies=2)),
        "sharpness to the bit": replace(base, merge=replace(base.merge, area_step=1.001)),
        "coarse depth grid 3x4": replace(base, consensus=replace(base.consensus, grid=(3, 4))),
        "fine depth grid 6x8": replace(base, consensus=replace(base.consensus, grid=(6, 8))),
        "sharp pictures only": replace(base, consensus=replace(base.consensus, blurs=(0.75,), iterations=12)),
        "no edges (5 %)": replace(base, edge_limit=0.05),
    }
    for label, config in variants.items():
        scores, seconds = [], []
        for index, world in enumerate(worlds):
            geometry = disturb(world.truth, NETWORK_LIKE, seed=index).select(COUNTS[12])
            gaussians, report = fused(geometry, world.contexts.images[:, COUNTS[12]], False, config)
            scores.append(score(gaussians, world.targets, world.mask))
            seconds.append(report["seconds"])
        mean, spent = (float(torch.tensor(column).mean()) for column in (scores, seconds))
        print(f"{label:24}{mean:9.2f} dB{spent:8.1f} s", flush=True)
        numbers[f"ablation {label}"] = {"psnr_db": mean, "seconds": spent}


def with_mini(worlds: list[World], numbers: dict) -> None:
    """The embedded weights on posed views, Gaussians on the cameras' rays and on the predicted ones."""
    model = load_model("mini")
    for rays in ("cameras", "predicted"):
        for count, chosen in COUNTS.items():
            rows = []
            for world in worlds:
                views = world.contexts.select(chosen)
                scenes = [
                    model.reconstruct(views, fusion=config, lifting_rays=rays) for config in (NO_FUSION, FusionConfig())
                ]
                rows.append([score(scene.gaussians, world.targets, world.mask) for scene in scenes])
                rows[-1].append(scenes[1].gaussians.means.shape[1] / scenes[0].gaussians.means.shape[1])
            before, after, share = torch.tensor(rows).mean(dim=0).tolist()
            print(
                f"mini, posed, rays of {rays:10}{count:4} views{before:9.2f} dB side by side{after:9.2f} dB fused"
                f"{100 * share:6.0f} % of the Gaussians",
                flush=True,
            )
            numbers[f"mini {rays} {count}"] = {"side_by_side_db": before, "fused_db": after, "gaussians_ratio": share}


def on_captures(folder: Path, numbers: dict) -> None:
    """Real posed captures with the embedded weights: held-out and context views."""
    model = load_model("mini")
    for name in ("fox", "horns"):
        views = load_views(folder / name, resolution=224)
        held_out = list(range(0, views.images.shape[1], 8))
        context = views.select([i for i in range(views.images.shape[1]) if i not in held_out])
        row = {}
        for label, config in (("side_by_side", NO_FUSION), ("fused", FusionConfig())):
            scene = model.reconstruct(context, fusion=config)
            for kind, aimed in (("held_out", views.select(held_out)), ("context", context)):
                with torch.no_grad():
                    picture = render(scene.gaussians, aimed.cameras).color[0]
                row[f"{label}_{kind}_db"] = float(psnr(picture, aimed.images[0]).mean())
            row[f"{label}_gaussians"] = scene.gaussians.means.shape[1]
        print(f"{name}: " + ", ".join(f"{key} {value:.2f}" for key, value in row.items()), flush=True)
        numbers[name] = row


def main(settings: Settings) -> None:
    import os

    torch.set_num_threads(2)
    console = Console(stderr=True)
    known = ["true", *DISTURBANCES, "mini", "captures", "ablation"]
    parts = settings.only.split(",") if settings.only else known if settings.full else known[:-1]
    unknown = set(parts) - set(known)
    if unknown:
        sys.exit(f"benchmark_fusion: no such part: {', '.join(sorted(unknown))}")
    numbers: dict = {}
    missed: list[str] = []
    if "true" in parts:
        true_geometry(8, numbers, missed)
    with console.status("casting worlds"):
        arc = (60, (1.5, 7.5, 13.5, 20.5), COUNTS[6])
        worlds = [make_world(FIRST_SEED + 1000 + 10 * index, 24, *arc) for index in range(8)]
    for name in DISTURBANCES:
        if name in parts:
            some = worlds if settings.full or name in DEMANDED else worlds[:3]
            with console.status(name):
                disturbed_geometry(name, some, numbers, missed)
    if "ablation" in parts:
        ablation(worlds[:3], numbers)
    if "mini" in parts:
        with_mini(worlds if settings.full else worlds[:3], numbers)
    folder = settings.captures or Path(
        os.environ.get("DA3_SPLAT_CAPTURES", Path(__file__).parents[2] / "shared" / "captures")
    )
    if "captures" in parts:
        if folder.is_dir():
            on_captures(folder, numbers)
        else:
            print(f"no real captures at {folder}: skipped ($DA3_SPLAT_CAPTURES)")
    if settings.json:
        settings.json.write_text(json.dumps({**numbers, "missed": missed}, indent=1))
    gains = [numbers[n][24]["fused_db"] - numbers[n][24]["side_by_side_db"] for n in DEMANDED if n in numbers]
    gained = "" if not gains else f"gained at 24 views: {min(gains):.2f} dB at least; "
    print(f"{gained}missed: {'; '.join(missed) or 'nothing'}")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
