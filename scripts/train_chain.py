"""The whole of DA3's training at a small size on synthetic worlds, with what the paper compares (Tables 5 to 7).

    uv run python scripts/train_chain.py            minutes: shows that every stage runs, not what it is worth
    uv run python scripts/train_chain.py --full     the comparison: hours on two cores
    uv run python scripts/train_chain.py --full --size 112 140 --dim 192 --pictures 96      larger, on a GPU

A teacher learns exact depth. The students' worlds are measured poorly (sparse, noisy, with holes) and labelled by the
teacher (RANSAC). Students start from a transformer that matches patches, which stands for DINOv2's weights, one for
each backbone and seed. All see the same batches in the same order for as many steps; measured depth first, labels from
60 % of the steps on:

    DA3                  shared depth and ray pyramid, labels, all five terms of the loss
    no labels            measured depth to the end
    separate heads       rays from a pyramid of their own (Table 7, d)
    no ray target        depth, camera and gradient terms only (Table 6)
    all blocks alternate cross-view attention in every second block from the first on (Table 7, b and c, in one)

Scores are means over held-out worlds: AUC30 of poses by camera head and by rays, AbsRel of depth without and with poses
given (up to one scale a world; `units`: scaled by the cameras, as in a reconstruction), error of depth steps. A finding
counts as reproduced where all seeds agree on its sign and its mean exceeds the spread (largest minus smallest) of the
differences; else it drowns. Every run that is finished is skipped, and the one that was interrupted goes on, when the
same command is given again. With --full, exit code 1 unless giving poses improves depth, in both ways of scaling.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch

import json
import math
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import nn

from da3_splat.backbone import DepthAnything3, load_checkpoint
from da3_splat.backbone.presets import Preset, build_backbone
from da3_splat.data.synthetic_batches import StepSampler, SyntheticBatches, WorldsConfig
from da3_splat.io.files import replacing
from da3_splat.io.images import color_of_depth, write_image
from da3_splat.training.fixed_worlds import (
    FixedBatches,
    FixedWorlds,
    make_fixed_worlds,
    student_scores,
    with_labels,
)
from da3_splat.training.geometry import STUDENT_TERMS, PatchObjective, StudentObjective, smooth_positions
from da3_splat.training.loop import CHECKPOINT, LoopConfig, make_loader, run
from da3_splat.training.optimization import OptimizationConfig, TrainingState, launch
from da3_splat.training.single_view import TeacherObjective, predict_maps

FIRST_SEED = 400_000_000  # of the students' worlds; held-out ones follow 50 million later
NOT_OF_A_RUN = ("output", "json", "full", "only", "seeds", "threads", "workers")
NO_RAYS = tuple(term for term in STUDENT_TERMS if term not in ("ray", "point"))


@dataclass(frozen=True)
class Variant:
    """How a student differs from DA3's."""

    labels: bool = True
    separate: bool = False
    terms: tuple[str, ...] = STUDENT_TERMS
    all_alternate: bool = False


VARIANTS = {
    "DA3": Variant(),
    "no labels": Variant(labels=False),
    "separate heads": Variant(separate=True),
    "no ray target": Variant(terms=NO_RAYS),
    "all blocks alternate": Variant(all_alternate=True),
}


@dataclass
class Settings:
    output: Path = Path("outputs/chain")
    full: bool = False
    """the sizes at which something can be seen: 4000 teacher, 4000 start and 1200 student steps on 600 worlds"""
    teacher_steps: int | None = None
    start_steps: int | None = None
    steps: int | None = None
    """of a student"""
    worlds: int | None = None
    """of the students, four views each"""
    held_out: int | None = None
    seeds: int = 3
    size: tuple[int, int] = (56, 70)
    dim: int = 96
    """width of the transformer; a third of it is a head's"""
    pictures: int = 24
    """of a batch"""
    given_share: float = 0.5
    """of the students' batches, in which poses are given; the paper's is 0.2 of 200,000 steps, not of some hundred"""
    only: tuple[str, ...] = tuple(VARIANTS)
    threads: int = 2
    workers: int = 1
    json: Path | None = None
    """write the figures there"""

    def __post_init__(self):
        names = ("teacher_steps", "start_steps", "steps", "worlds", "held_out")
        for name, short, full in zip(names, (60, 60, 16, 64, 16), (4000, 4000, 1200, 600, 64)):
            if getattr(self, name) is None:
                setattr(self, name, full if self.full else short)
        unknown = set(self.only) - set(VARIANTS)
        if unknown or "DA3" not in self.only:
            raise SystemExit(f"--only: expected DA3 and others of {', '.join(VARIANTS)}, got {', '.join(self.only)}")


def preset(settings: Settings, alone: bool = False, variant: Variant = Variant()) -> Preset:
    dim = settings.dim
    channels = (dim // 4, dim // 3, dim // 2, dim)
    start = None if alone else 0 if variant.all_alternate else 2
    return Preset(
        dim, 8, 3, (1, 3, 5, 7), start, dim // 4, channels, camera_heads=3, camera_blocks=1, objects=alone,
        separate_rays=variant.separate,
    )  # fmt: skip


def train(
    name: str,
    settings: Settings,
    network: DepthAnything3,
    objective: nn.Module,
    batches,
    sampler: StepSampler,
    steps: int,
) -> dict[str, float]:
    """Train, go on, or do nothing where it is done; the network ends with the averaged weights. What is known of it."""
    folder = settings.output / name
    if (folder / "result.json").is_file():
        load_checkpoint(network, load_file(folder / "weights.safetensors"))
        return json.loads((folder / "result.json").read_text())
    torch.manual_seed(0)
    optimization = OptimizationConfig(steps=steps, warmup_steps=max(1, steps // 20), rate=1e-3)
    dense = ".head." if isinstance(objective, PatchObjective) else "nothing"
    learned = [p for key, p in objective.named_parameters() if dense not in key]
    state = TrainingState(launch(), objective, {optimization.rate: learned}, optimization)
    if (folder / CHECKPOINT).is_file():
        sampler.load_state_dict(state.load(folder / CHECKPOINT))
    last: dict[str, float] = {}
    began, before = time.monotonic(), state.step
    run(
        state, make_loader(batches, settings.workers), sampler, folder,
        LoopConfig(log_steps=max(1, steps // 4), save_seconds=60), lambda step, parts, shares: last.update(parts),
    )  # fmt: skip
    weights = {
        key.removeprefix("network."): value.detach().contiguous().cpu()
        for key, value in state.averaged().items()
        if key.startswith("network.")
    }
    with replacing(folder / "weights.safetensors") as beside:
        save_file(weights, beside)
    load_checkpoint(network, weights)
    result = {
        "parameters": sum(p.numel() for p in network.parameters()),
        "seconds_a_step": (time.monotonic() - began) / max(1, state.step - before),
        "skipped_steps": state.skipped,
        "loss": last,
    }
    if state.step < steps:
        raise SystemExit(f"{name}: stopped at step {state.step}; the same command goes on")
    write_json(folder / "result.json", result)
    (folder / CHECKPOINT).unlink(missing_ok=True)  # hundreds of them would fill a disk
    return result


def write_json(path: Path, content: dict) -> None:
    with replacing(path) as beside:
        beside.write_text(json.dumps(content, indent=1))


def worlds_config(settings: Settings, seed: int, **options) -> WorldsConfig:
    height, width = settings.size
    pixels = settings.pictures * height * width
    config = WorldsConfig(((height, width),), (2, 3, 4), pixels, given_share=settings.given_share, seed=seed)
    return replace(config, **options)


def check_settings(settings: Settings) -> None:
    """Runs of other sizes must not be taken for these."""
    kept = {key: value for key, value in asdict(settings).items() if key not in NOT_OF_A_RUN}
    kept["size"] = list(kept["size"])
    path = settings.output / "settings.json"
    if path.is_file() and json.loads(path.read_text()) != kept:
        raise SystemExit(f"{path}: runs with other settings lie here; name another --output, or delete this folder")
    write_json(path, kept)


def train_teacher(settings: Settings) -> tuple[DepthAnything3, dict]:
    torch.manual_seed(1)
    network = build_backbone(preset(settings, alone=True))
    smooth_positions(network)
    sampler = StepSampler(worlds_config(settings, 11, views=(1,), given_share=0.0, objects=True))
    steps = settings.teacher_steps
    result = train("teacher", settings, network, TeacherObjective(network), SyntheticBatches(sampler), sampler, steps)
    return network, result


def train_student(settings: Settings, name: str, seed: int, worlds: FixedWorlds) -> tuple[DepthAnything3, dict]:
    """The student of a variant and seed, from the start of its backbone and seed."""
    variant = VARIANTS[name]
    backbone = "alternate" if variant.all_alternate else "plain"
    torch.manual_seed(100 + seed)
    start = build_backbone(preset(settings, variant=replace(Variant(), all_alternate=variant.all_alternate)))
    smooth_positions(start)
    sampler = StepSampler(worlds_config(settings, 21 + seed, widening_steps=settings.start_steps // 2))
    batches = SyntheticBatches(sampler)
    train(f"start-{backbone}-{seed}", settings, start, PatchObjective(start), batches, sampler, settings.start_steps)
    torch.manual_seed(200 + seed)
    network = build_backbone(preset(settings, variant=variant))
    for part in ("backbone", "cam_dec", "cam_enc"):
        getattr(network, part).load_state_dict(getattr(start, part).state_dict())
    sampler = StepSampler(worlds_config(settings, 31 + seed))
    labels_from = 0.6 * settings.steps if variant.labels else math.inf
    batches = FixedBatches(sampler, worlds, labels_from)
    folder = f"{name.replace(' ', '-')}-{seed}"
    objective = StudentObjective(network, variant.terms)
    return network, train(folder, settings, network, objective, batches, sampler, settings.steps)


@torch.no_grad()
def teacher_error(teacher: DepthAnything3, worlds: FixedWorlds) -> float | None:
    """AbsRel of the accepted labels on worlds whose measured depth it is aligned to; None: all were refused."""
    labelled, accepted = with_labels(worlds, teacher)
    both = (labelled.labels > 0) & (worlds.truth.depth > 0) & accepted[:, :, None, None]
    if not both.any():
        return None
    return float(((labelled.labels / worlds.truth.depth.clamp_min(1e-6) - 1).abs() * both).sum() / both.sum())


@torch.no_grad()
def picture(
    settings: Settings, networks: dict[str, DepthAnything3], teacher: DepthAnything3, worlds: FixedWorlds
) -> None:
    """Rows are three held-out worlds: a picture, exact depth, measured depth, the teacher's, then every student's."""
    rows = []
    for index in range(min(3, len(worlds.images))):
        images = worlds.images[index : index + 1]
        sky = worlds.truth.depth[index, 0] == 0
        maps = [worlds.truth.depth[index, 0], worlds.measured[index, 0]]
        said = [predict_maps(teacher.cpu(), images)["depth"][0]]
        said += [network.cpu()(images, reference_view="first").depth[0, 0] for network in networks.values()]
        maps += [torch.where(sky, 0, depth) for depth in said]
        row = [images[0, 0].permute(1, 2, 0).numpy(), *(color_of_depth(depth.float().numpy()) for depth in maps)]
        rows.append(np.concatenate(row, axis=1))
    write_image(settings.output / "depth.png", np.concatenate(rows).repeat(2, axis=0).repeat(2, axis=1))


FINDINGS = {
    # what, the variant, the score, and the sign that makes DA3 the better
    "labels improve depth": ("no labels", "abs_rel", -1),
    "labels sharpen depth": ("no labels", "edge_error", -1),
    "a shared pyramid improves poses": ("separate heads", "auc30_rays", 1),
    "the ray target improves poses": ("no ray target", "auc30_head", 1),
    "the ray target improves depth": ("no ray target", "abs_rel", -1),
    "late cross-view blocks improve poses": ("all blocks alternate", "auc30_head", 1),
    "late cross-view blocks improve depth": ("all blocks alternate", "abs_rel", -1),
}


def judge(differences: list[float]) -> str:
    """Whether a gain (positive: as the paper says) stands out of the spread of the seeds."""
    mean, spread = float(np.mean(differences)), max(differences) - min(differences)
    if len(differences) < 2:
        return "one seed: no spread"
    if abs(mean) <= spread or len({value > 0 for value in differences}) > 1:
        return "drowns in the spread"
    return "reproduced" if mean > 0 else "the opposite"


def main(settings: Settings) -> None:
    torch.set_num_threads(settings.threads)
    console = Console(soft_wrap=True)
    check_settings(settings)
    began = time.monotonic()
    teacher, teacher_result = train_teacher(settings)
    console.print(f"teacher: {teacher_result['parameters'] / 1e6:.2f} M parameters, loss {teacher_result['loss']}")
    size = settings.size
    worlds = make_fixed_worlds(settings.worlds, 4, *size, FIRST_SEED)
    held_out = make_fixed_worlds(settings.held_out, 4, *size, FIRST_SEED + 50_000_000)
    worlds, good = with_labels(worlds, teacher)
    accepted = float(good.float().mean())
    figures: dict = {
        "label_accepted_share": accepted,
        "label_abs_rel_held_out": teacher_error(teacher, held_out),
        "settings": {**asdict(settings), "output": str(settings.output), "json": str(settings.json)},
        "scores": {},
    }
    console.print(f"labels: {accepted:.0%} accepted; AbsRel on held-out worlds: {figures['label_abs_rel_held_out']}")
    shown = {}
    for seed in range(settings.seeds):
        for name in settings.only:
            network, result = train_student(settings, name, seed, worlds)
            path = settings.output / f"{name.replace(' ', '-')}-{seed}" / "scores.json"
            scores = json.loads(path.read_text()) if path.is_file() else {}
            if "abs_rel_units" not in scores:  # none yet, or those of an older version
                scores = student_scores(network, held_out)
            write_json(path, scores)
            figures["scores"].setdefault(name, []).append(scores)
            shown.setdefault(name, network)
            numbers = "  ".join(f"{key} {value:.3f}" for key, value in scores.items())
            console.print(f"{name}, seed {seed}: {numbers}  ({result['seconds_a_step']:.2f} s a step)")
    picture(settings, shown, teacher, held_out)
    figures["minutes"] = (time.monotonic() - began) / 60
    missed = report(figures, console)
    if settings.json:
        write_json(settings.json, figures)
    write_json(settings.output / "figures.json", figures)
    changes = ", ".join(f"{name} {-figures[f'pose_gain_{name}']['mean']:+.4f}" for name in ("abs_rel", "abs_rel_units"))
    console.print(
        f"{len(settings.only)} students, {settings.seeds} seeds, {figures['minutes']:.0f} min: giving poses changes "
        f"{changes}; {settings.output / 'depth.png'}"
    )
    sys.exit(1 if missed and settings.full else 0)


def report(figures: dict, console: Console) -> bool:
    """Print means and spreads and what they say; whether giving poses did not help."""
    scores = figures["scores"]
    names = list(next(iter(scores.values()))[0])
    console.print(f"{'mean (smallest .. largest)':26}" + "".join(f"{name:>30}" for name in names))
    for variant, found in scores.items():
        cells = ""
        for name in names:
            values = [one[name] for one in found]
            # A branch that nothing has taught says nothing.
            untaught = variant == "no ray target" and name == "auc30_rays"
            cell = "-" if untaught else f"{np.mean(values):.3f} ({min(values):.3f} .. {max(values):.3f})"
            cells += f"{cell:>30}"
        console.print(f"{variant:26}{cells}")
    figures["findings"] = {}
    for title, (variant, name, sign) in FINDINGS.items():
        if variant not in scores:
            continue
        gains = [sign * (ours[name] - theirs[name]) for ours, theirs in zip(scores["DA3"], scores[variant])]
        figures["findings"][title] = finding(title, name, gains, console)
    unhelpful = False
    for name in ("abs_rel", "abs_rel_units"):
        gains = [one[name] - one[f"{name}_given_poses"] for one in scores["DA3"]]
        gain = figures[f"pose_gain_{name}"] = finding("giving poses improves depth", name, gains, console)
        unhelpful |= not gain["mean"] > 0
    return unhelpful


def finding(title: str, name: str, gains: list[float], console: Console) -> dict:
    """The gains of all seeds in the score `name`, and what they are worth, printed and to keep."""
    mean, verdict = float(np.mean(gains)), judge(gains)
    console.print(f"{title:40} {name} {mean:+.4f} ({min(gains):+.4f} .. {max(gains):+.4f}): {verdict}")
    return {"gains": gains, "mean": mean, "verdict": verdict}


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
