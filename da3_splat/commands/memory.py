"""How a reconstruction is run within the memory there is: in one pass, with features on disk, or by chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from da3_splat.fusion.fuse import FusionConfig, Progress
    from da3_splat.io.frames import Frame
    from da3_splat.model import Da3Splat, Watch
    from da3_splat.planning import Plan, Rates
    from da3_splat.ranks import Workers
    from da3_splat.types import Scene, Views

READ_AT_A_TIME = 32
LEFT_FREE = 0.1  # of the memory that is free now
LONG = 60  # views from which on it is measured, in some seconds, how long they will take


def planned(
    model: Da3Splat, views: Views, limit: str, chunk: int | None, overlap: int | None, fusion: FusionConfig
) -> Plan | None:
    """What fits into `limit` (8GB; nothing: what is free), and says so where it is not one short pass without a limit.
    Of a GPU, its own memory counts. None where nobody can say: a model of another kind. ValueError where nothing fits.
    """
    from da3_splat.backbone.presets import NESTED, PRESETS
    from da3_splat.commands.terminal import note
    from da3_splat.planning import Placement, make_plan, measure_rates, parse_memory

    preset, (height, width) = model.config.preset, views.images.shape[-2:]
    device = next(model.parameters()).device
    start, most = _memory_of_gpu(device) if device.type == "cuda" else _memory_of_process(views)
    most = parse_memory(limit) if limit else most
    if preset not in (*PRESETS, *NESTED):
        return None
    count = views.images.shape[1]

    def plan_with(rates: Rates | None) -> Plan:
        placed = Placement.of(model)
        return make_plan(preset, count, height, width, most, start, rates, chunk, overlap, fusion, placed)

    plan = plan_with(None)  # what does not fit is refused before anything is measured
    if count >= LONG:
        note(f"{count} views: measuring how long they will take here")
        plan = plan_with(measure_rates(model, height, width))
    if plan.chunk or plan.features_on_disk or limit or count >= LONG:
        note(plan.line)
    return plan


def _memory_of_process(views: Views) -> tuple[float, float]:
    """What this process holds beside the pictures, and the most that it may hold, in MB."""
    from da3_splat.planning import held_mb

    held = held_mb()
    return held - 12 * views.images[0, :, 0].numel() / 2**20, held + (1 - LEFT_FREE) * _free_mb()


def _memory_of_gpu(device: torch.device) -> tuple[float, float]:
    """What torch holds there, the pictures not among it yet, and the most that it may hold, in MB."""
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    held, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    return held / 2**20, (held + (1 - LEFT_FREE) * (free + reserved - held)) / 2**20


def carried_out(
    plan: Plan | None,
    model: Da3Splat,
    views: Views,
    work: Path,
    recipe: dict,
    fusion: FusionConfig,
    rays: Literal["cameras", "predicted"],
    progress: Progress,
    workers: Workers,
    watch: Watch,
) -> Scene:
    """The scene as planned; where a GPU's memory ends before, by chunks of half as many views, until it does not.

    Chunks, and features on disk, lie in the folder `work`; chunks stay there. `watch` sees views as they are laid in
    one pass.
    """
    import torch

    from da3_splat.commands.terminal import note

    def as_planned(plan: Plan | None, folder: Path) -> Scene:
        if plan is not None and plan.chunk is not None:
            from da3_splat.sequence.reconstruct import SequenceConfig, reconstruct_sequence

            if rays != "cameras":
                raise ValueError("--rays predicted: not by chunks; give more --max-memory, or leave out --chunk")
            config = SequenceConfig(plan.chunk, plan.overlap)
            whole = {**recipe, **asdict(model.config)}
            return reconstruct_sequence(model, views, config, folder, whole, fusion, progress, workers)
        options: dict[str, Any] = {}
        if plan is not None and plan.features_on_disk:
            from da3_splat.backbone.storage import FeatureFiles

            options["storage"] = FeatureFiles(folder)
        return model.reconstruct(
            views, fusion=fusion, lifting_rays=rays, progress=progress, watch=watch, workers=workers, **options
        )

    folder = work
    while True:
        try:
            return as_planned(plan, folder)
        except torch.OutOfMemoryError:
            smaller = _halved(plan, views.images.shape[1])
            if smaller is None or rays != "cameras" or workers is not map:  # other processes would wait for this one
                raise
        note(f"the GPU ran out of memory; going on by chunks of {smaller.chunk} views")
        torch.cuda.empty_cache()
        plan, folder = smaller, work / f"by_{smaller.chunk}"  # those of another size are no use


def _halved(plan: Plan | None, views: int) -> Plan | None:
    """The plan for half as many views at a time; None where these would be too few."""
    from da3_splat.planning import SHORTEST_CHUNK, Plan, Prediction, shared_by_chunks

    size = (views if plan is None or plan.chunk is None else plan.chunk) // 2
    if size < SHORTEST_CHUNK:
        return None
    shared = shared_by_chunks(size) if plan is None or plan.chunk is None else min(plan.overlap, size - 1)
    return Plan(size, shared, False, Prediction(float("nan"), float("nan"), {}), "")


def views_on_disk(
    frames: Sequence[Frame],
    points: np.ndarray | None,
    colors: np.ndarray | None,
    resolution: int,
    progress: Callable[[Iterable], Iterable],
    folder: Path,
) -> Views:
    """`read_frames` with the pictures in a mapped file under `folder`, which the system puts aside where memory is
    short. ValueError where they are not of one size: these cannot be cropped to each other one by one."""
    from da3_splat.backbone.storage import FeatureFiles
    from da3_splat.data.views import read_frames
    from da3_splat.types import Cameras, Views

    parts, images = [], None
    for start in progress(range(0, len(frames), READ_AT_A_TIME)):
        part = read_frames(frames[start : start + READ_AT_A_TIME], points, colors, resolution)
        if images is None:
            images = FeatureFiles(folder)((1, len(frames), *part.images.shape[2:]), part.images)
        if part.images.shape[2:] != images.shape[2:]:
            raise ValueError(
                f"{frames[start].path}: pictures {part.images.shape[4]}x{part.images.shape[3]} after others of "
                f"{images.shape[4]}x{images.shape[3]}; by chunks they must be of one size"
            )
        images[:, start : start + READ_AT_A_TIME] = part.images
        parts.append(replace(part, images=images[:, start : start + READ_AT_A_TIME]))
    if images is None:
        raise ValueError("expected pictures, got none")
    return Views(
        images=images,
        cameras=None if parts[0].cameras is None else Cameras.concatenate([part.known_cameras for part in parts]),
        names=tuple(name for part in parts for name in part.names),
        points=parts[0].points,
        point_colors=parts[0].point_colors,
        masks=_joined([part.masks for part in parts], images),
        windows=tuple(window for part in parts for window in part.windows),
    )


def _joined(masks: list, images: Tensor) -> Tensor | None:
    """Masks of all views (1,S,H,W), where any part has some."""
    import torch

    if all(mask is None for mask in masks):
        return None
    whole = torch.ones(images.shape[1], *images.shape[3:], dtype=torch.bool)
    for start, mask in zip(range(0, len(whole), READ_AT_A_TIME), masks):
        if mask is not None:
            whole[start : start + READ_AT_A_TIME] = mask[0]
    return whole[None]


def _free_mb() -> float:
    """What the system can still give, in MB; without bound where it does not say."""
    info = Path("/proc/meminfo")
    if not info.exists():
        return float("inf")
    return float(info.read_text().split("MemAvailable:")[1].split()[0]) / 1024
