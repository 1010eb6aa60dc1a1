"""A long sequence -> one scene, some views at a time.

views -- overlapping chunks --> each reconstructed alone --> work folder (a killed run goes on from there)
  neighbours share views      --> links: similarities of shared points and poses
  views of far chunks look alike --> bridge: some views of both, reconstructed together --> links that close loops
  links -- pose graph --> one world --> all views made to agree, and fused --> one splat
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from da3_splat.fusion.fuse import FusionConfig, Progress, agree, fuse, usable_pixels
from da3_splat.fusion.merging import kept_pixels
from da3_splat.geometry.alignment import Similarity, scaled_about, transform_cameras, transform_gaussians
from da3_splat.geometry.frames import known_poses
from da3_splat.geometry.projection import project
from da3_splat.model import Da3Splat
from da3_splat.ranks import Workers
from da3_splat.sequence.chunks import chunk_ranges, owned_ranges
from da3_splat.sequence.linking import Link, link
from da3_splat.sequence.pose_graph import chained, compose, optimized
from da3_splat.sequence.retrieval import describe, loop_candidates
from da3_splat.sequence.work_folder import ChunkResult, WorkFolder
from da3_splat.types import Gaussians, Geometry, Scene, Views

Result = TypeVar("Result")
REACH = 3  # views on both sides of those that look alike that a bridge takes along
CONFIRMED = 0.5  # share of shared points that must meet for a loop to count
LOOPS_PER_CHUNK = 1.0


@dataclass(frozen=True)
class SequenceConfig:
    """How a sequence is cut (views), and whether loops are looked for."""

    chunk: int
    overlap: int
    loops: bool = True


@torch.no_grad()
def reconstruct_sequence(
    model: Da3Splat,
    views: Views,
    config: SequenceConfig,
    folder: str | Path,
    recipe: dict,
    fusion: FusionConfig = FusionConfig(),
    progress: Progress = lambda title: lambda items: items,
    workers: Workers = map,
) -> Scene:
    """The scene of views (1,S) in order, as `Da3Splat.reconstruct` gives it, with the memory of one chunk's network.

    Unposed views come in the frame of the first chunk, posed ones in their own.
    `recipe` says what the chunks in `folder` depend on beside `config` and `fusion`: pictures, weights, resolution.
    `views.images` may be mapped from a file. `report` counts chunks, links and loops.
    """
    began = time.perf_counter()
    count = views.images.shape[1]
    chunks = chunk_ranges(count, config.chunk, config.overlap)
    work = WorkFolder(
        folder, {**recipe, "views": count, "chunk": config.chunk, "overlap": config.overlap, "fusion": fusion}
    )
    owned = owned_ranges(chunks)
    descriptions: list[Tensor] = []
    made = 0
    for index, chunk in enumerate(progress("chunks")(chunks)):
        result = work.load(_name(index))
        if result is None:
            own = range(owned[index].start - chunk.start, owned[index].stop - chunk.start)
            result = _chunk(model, views.select(slice(chunk.start, chunk.stop)), own, fusion, workers)
            work.save(_name(index), result)
            made += 1
        descriptions.append(result.descriptions)
    seen = time.perf_counter()
    places, report = _places(model, views, chunks, descriptions, config, work, fusion, workers)
    placed = time.perf_counter()
    parts, there = [], []
    for index, (chunk, own, place) in enumerate(zip(chunks, owned, places)):
        result = work.kept(_name(index))
        parts.append(_part(_moved(result.geometry, place), chunk, own))
        there.append(result.available[:, own.start - chunk.start : own.stop - chunk.start])
    geometry, available = Geometry.concatenate(parts), torch.cat(there, dim=1)
    owner = [index for index, own in enumerate(owned) for _ in own]
    load = lru_cache(maxsize=2)(lambda index: work.kept(_name(index)))

    def gaussians_of_view(view: int) -> Gaussians:
        index = owner[view]
        found = load(index).gaussians_of_view(view - chunks[index].start)
        return transform_gaussians(_single(places[index]), found)

    def joined(device: torch.device):
        seams = len(chunks) > 1  # what two chunks say of one place, and both of them alone could not compare
        return _joined(geometry, available, views, gaussians_of_view, seams, device, fusion, progress, workers)

    # Several processes must all do the same; one could run out of memory alone.
    device = next(model.parameters()).device if workers is map else torch.device("cpu")
    geometry, gaussians, counts = where_it_fits(joined, device)
    report |= {"chunks": len(chunks), "chunks_found": len(chunks) - made, "views": count, **counts}
    report |= {
        "poses": "da3" if views.cameras is None else "given",
        "scale_source": "first chunk" if views.cameras is None else "cameras",
        "chunks_seconds": seen - began,
        "alignment_seconds": placed - seen,
        "lifting_seconds": time.perf_counter() - placed,
    }
    return Scene(geometry=geometry, gaussians=gaussians, cameras=geometry.known_cameras, report=report)


def where_it_fits(step: Callable[[torch.device], Result], device: torch.device) -> Result:
    """What `step` does on `device`; on the CPU where the memory of another one ends: all views at once are many."""
    try:
        return step(device)
    except torch.OutOfMemoryError:
        if device.type == "cpu":
            raise
    return step(torch.device("cpu"))


def _joined(
    geometry: Geometry,
    available: Tensor,
    views: Views,
    gaussians_of_view: Callable[[int], Gaussians],
    seams: bool,
    device: torch.device,
    fusion: FusionConfig,
    progress: Progress,
    workers: Workers,
) -> tuple[Geometry, Gaussians, dict[str, object]]:
    """All views of all chunks made to agree, where there are `seams`, and fused, on `device`; what comes back lies on
    the CPU."""
    laid, available, views = geometry.to(device), available.to(device), views.to(device)
    agreed = laid
    report: dict[str, object] = {}
    if seams:
        fixed = torch.full((len(laid.depth[0]),), views.cameras is not None, device=device)
        agreed, report = agree(laid, views, fixed, fusion)

    def relaid_of_view(view: int) -> Gaussians:
        return relaid(gaussians_of_view(view).to(device), laid.select([view]), agreed.select([view]))

    gaussians, counts = fuse(agreed, views, relaid_of_view, fusion, progress, workers, available)
    return agreed.to("cpu"), gaussians.to("cpu"), {**report, **counts, "joined_on": device.type}


def relaid(gaussians: Gaussians, before: Geometry, after: Geometry) -> Gaussians:
    """The pixel-aligned Gaussians (1,H*W) of one view moved with its camera, and along its rays with its depth."""
    motion = after.known_cameras.camera_to_world[0, 0] @ before.known_cameras.world_to_camera[0, 0]
    gaussians = transform_gaussians(Similarity.rigid(motion), gaussians)
    ratio = torch.where(before.depth > 0, after.depth / before.depth, 1.0).flatten(1)
    return scaled_about(gaussians, after.known_cameras.centers, ratio)


def _name(index: int) -> str:
    return f"chunk_{index:04d}"


def _chunk(model: Da3Splat, views: Views, own: range, fusion: FusionConfig, workers: Workers) -> ChunkResult:
    """One chunk alone, and of the views that it answers for, `own`, the Gaussians that can stay when all are merged."""
    views = views.to(next(model.parameters()).device)
    seen = model.observe(views, fusion=fusion, workers=workers)
    usable = usable_pixels(seen.geometry, views, fusion)
    answered = torch.zeros_like(usable)
    answered[:, own.start : own.stop] = True
    if fusion.merge is not None and usable.shape[1] > 1:
        kept = kept_pixels(seen.geometry, fusion.merge, usable, answered)
    else:
        kept = [torch.nonzero(of_view.flatten())[:, 0] for of_view in (usable & answered)[0]]
    pixels = usable.shape[-2] * usable.shape[-1]
    parts = workers(lambda view: seen.gaussians_of_view(view).select(kept[view]).to("cpu"), own)
    places = torch.cat([view * pixels + kept[view].cpu() for view in own])
    gaussians = replace(Gaussians.concatenate(list(parts)), source_view=None)
    return ChunkResult(replace(seen.geometry, ray_map=None).to("cpu"), _described(seen, views), gaussians, places)


def _described(seen, views: Views) -> Tensor:
    """(S,D): pooled features of the last tap, or, of a backbone that leaves none, of the picture itself."""
    if seen.features.taps:
        return describe(seen.features.taps[-1][0]).cpu()
    small = torch.nn.functional.adaptive_avg_pool2d(views.images[0], (6, 8))
    return small.flatten(1).cpu()


def _places(
    model: Da3Splat,
    views: Views,
    chunks: list[range],
    descriptions: list[Tensor],
    config: SequenceConfig,
    work: WorkFolder,
    fusion: FusionConfig,
    workers: Workers,
) -> tuple[list[Similarity], dict[str, object]]:
    """The similarity from each chunk to the world, and what was found on the way."""
    if views.cameras is not None and bool(known_poses(views.cameras).all()):  # each chunk is in the user's frame
        return [Similarity.rigid(torch.eye(4, dtype=torch.float64))] * len(chunks), {"loops_closed": 0}
    links = []
    before = work.kept(_name(0)).geometry
    for index in range(len(chunks) - 1):
        after = work.kept(_name(index + 1)).geometry
        shared = range(chunks[index + 1].start, chunks[index].stop)
        ours, theirs = _part(before, chunks[index], shared), _part(after, chunks[index + 1], shared)
        links.append(link(index, index + 1, ours, theirs))
        before = after
    report: dict[str, object] = {"link_error": max((one.error for one in links), default=0.0)}
    loops = []
    if config.loops and len(chunks) > 2:
        joined = torch.zeros(views.images.shape[1], descriptions[0].shape[1])
        for chunk, described in zip(chunks, descriptions):
            joined[chunk.start : chunk.stop] = described
        most = max(1, round(LOOPS_PER_CHUNK * len(chunks)))
        for candidate in loop_candidates(joined, chunks, most):
            reach = max(0, min(REACH, (config.chunk // 2 - 1) // 2))  # a bridge is no longer than a chunk
            loops += _bridged(model, views, chunks, candidate, reach, work, fusion, workers)
    report |= {"loops_closed": len(loops)}
    places = optimized(links + loops, len(chunks)) if loops else chained(links, len(chunks))
    return places, report


def _bridged(
    model: Da3Splat,
    views: Views,
    chunks: list[range],
    candidate: tuple[int, int, int, int],
    reach: int,
    work: WorkFolder,
    fusion: FusionConfig,
    workers: Workers,
) -> list[Link]:
    """The link between two far chunks, through a reconstruction of some views of both; none where it does not hold."""
    i, j, u, v = candidate
    near_u = range(max(chunks[i].start, u - reach), min(chunks[i].stop, u + reach + 1))
    near_v = range(max(chunks[j].start, v - reach), min(chunks[j].stop, v + reach + 1))
    name = f"bridge_{i:04d}_{j:04d}_{u:06d}_{v:06d}"  # the same views of other chunks may have fewer beside them
    bridge = work.load(name)
    if bridge is None:
        some = views.select([*near_u, *near_v])
        seen = model.observe(some, fusion=fusion, workers=workers)
        bridge = ChunkResult(replace(seen.geometry, ray_map=None).to("cpu"), _described(seen, some))
        work.save(name, bridge)
    both = bridge.geometry
    if meeting(both, u - near_u.start, len(near_u) + v - near_v.start) < CONFIRMED:
        return []
    first = link(i, -1, _part(work.kept(_name(i)).geometry, chunks[i], near_u), both.select(slice(0, len(near_u))))
    second = link(j, -1, _part(work.kept(_name(j)).geometry, chunks[j], near_v), both.select(slice(len(near_u), None)))
    if min(first.inliers, second.inliers) < CONFIRMED:
        return []
    step = compose(first.similarity, second.similarity.inverse())
    return [Link(i, j, step, first.unit, max(first.error, second.error), min(first.inliers, second.inliers))]


def meeting(geometry: Geometry, u: int, v: int) -> float:
    """Share of the points of view u, among those that fall into view v, that v sees at their depth (within a tenth); 0
    where fewer than a tenth of them fall into it."""
    points = geometry.select([u]).points().reshape(1, -1, 3)
    pixels, z = project(points, geometry.known_cameras.select([v]))
    pixels, z = pixels[0, 0], z[0, 0]
    height, width = geometry.depth.shape[-2:]
    inside = (z > 0) & (pixels >= 0).all(dim=-1) & (pixels[:, 0] < width) & (pixels[:, 1] < height)
    if float(inside.float().mean()) < 0.1:
        return 0.0
    column, row = pixels[inside].long().unbind(-1)
    return float(((geometry.depth[0, v, row, column] / z[inside]).log().abs() < 0.1).float().mean())


def _part(geometry: Geometry, chunk: range, shared: range) -> Geometry:
    return geometry.select(slice(shared.start - chunk.start, shared.stop - chunk.start))


def _single(similarity: Similarity) -> Similarity:
    return Similarity(similarity.scale.float(), similarity.rotation.float(), similarity.translation.float())


def _moved(geometry: Geometry, place: Similarity) -> Geometry:
    place = _single(place)
    cameras = transform_cameras(place, geometry.known_cameras)
    return replace(geometry, depth=geometry.depth * place.scale, cameras=cameras)
