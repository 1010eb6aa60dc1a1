"""How a reconstruction is run within the memory there is: in one pass, with features on disk, or by chunks."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from da3_splat.fusion.fuse import FusionConfig, Progress
    from da3_splat.model import Da3Splat
    from da3_splat.planning import Plan
    from da3_splat.ranks import Workers
    from da3_splat.types import Scene, Views

LEFT_FREE = 0.1  # of the memory that is free now


def planned(
    model: Da3Splat, views: Views, limit: str, chunk: int | None, overlap: int | None, fusion: FusionConfig
) -> Plan | None:
    """What fits into `limit` (8GB; nothing: what is free). None where nobody can say: a model of another kind, or a GPU
    whose limit was not given. ValueError where nothing fits."""
    from da3_splat.backbone.presets import NESTED, PRESETS
    from da3_splat.planning import held_mb, make_plan, parse_memory

    preset, (height, width) = model.config.preset, views.images.shape[-2:]
    held = held_mb()
    most = parse_memory(limit) if limit else held + (1 - LEFT_FREE) * _free_mb()
    if preset not in (*PRESETS, *NESTED) or (not limit and chunk is None and next(model.parameters()).is_cuda):
        return None
    start = held - 12 * views.images[0, :, 0].numel() / 2**20
    return make_plan(preset, views.images.shape[1], height, width, most, start, None, chunk, overlap, fusion)


def carried_out(
    plan: Plan | None,
    model: Da3Splat,
    views: Views,
    work: Path,
    recipe: dict,
    fusion: FusionConfig,
    rays: str,
    progress: Progress,
    workers: Workers,
) -> Scene:
    """The scene as planned. Chunks, and features on disk, lie in the folder `work`; chunks stay there."""
    if plan is not None and plan.chunk is not None:
        from da3_splat.sequence.reconstruct import SequenceConfig, reconstruct_sequence

        if rays != "cameras":
            raise ValueError("--rays predicted: not by chunks; give more --max-memory, or leave out --chunk")
        config = SequenceConfig(plan.chunk, plan.overlap)
        recipe = {**recipe, **asdict(model.config)}
        return reconstruct_sequence(model, views, config, work, recipe, fusion, progress, workers)
    options = {}
    if plan is not None and plan.features_on_disk:
        from da3_splat.backbone.storage import FeatureFiles

        options["storage"] = FeatureFiles(work)
    return model.reconstruct(views, fusion=fusion, lifting_rays=rays, progress=progress, workers=workers, **options)


def _free_mb() -> float:
    """What the system can still give, in MB; without bound where it does not say."""
    info = Path("/proc/meminfo")
    if not info.exists():
        return float("inf")
    return float(info.read_text().split("MemAvailable:")[1].split()[0]) / 1024
