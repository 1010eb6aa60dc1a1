"""`da3-splat reconstruct`. Heavy imports are inside, so that --help answers at once."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from da3_splat.commands.device import Device, Precision, chosen_device
from da3_splat.commands.refining import asked_refinement, refined
from da3_splat.commands.terminal import bar, note, say
from da3_splat.commands.view import announce

if TYPE_CHECKING:
    from da3_splat.model import Watch
    from da3_splat.types import Cameras, Gaussians, Views
    from da3_splat.viewer.server import SceneViewer

DOUBTFUL_AGREEMENT = 0.75  # true geometry of synthetic worlds has 0.90, mini there 0.48 to 0.74, on photos 0.46 to 0.66


def reconstruct(
    input: Positional[Path],
    output: Path,
    model: str = "mini",
    poses: Literal["auto", "da3", "colmap", "given"] = "auto",
    resolution: int = 504,
    max_views: int | None = None,
    fps: float = 2.0,
    skip_unreadable: bool = False,
    fusion: bool = True,
    max_gaussians: int | None = None,
    prune: float = 0.0,
    sky: Literal["shell", "drop"] = "shell",
    rays: Literal["cameras", "predicted"] = "cameras",
    refine: str = "",
    refine_poses: Literal["auto", "yes", "no"] = "auto",
    export: str = "",
    view: bool = False,
    chunk: int | None = None,
    overlap: int | None = None,
    max_memory: str = "",
    device: Device = "auto",
    precision: Precision = "auto",
    as_json: Annotated[bool, arg(name="json")] = False,
) -> None:
    """Turn photos into a 3D Gaussian scene in one pass, and refine it for as long as you like.

    Writes scene.ply, points.ply, depth/, depth.npz and a capture (transforms.json + images/) into --output; --export
    adds other formats.

    Try:
      da3-splat reconstruct photos/ --output scene/
      da3-splat reconstruct capture/transforms.json --output scene/ --resolution 336
      da3-splat reconstruct photos/ --output scene/ --poses colmap
      da3-splat reconstruct walk.mp4 --output scene/ --fps 1 --export colmap,video
      da3-splat reconstruct capture/ --output scene/ --refine 2m
      da3-splat reconstruct photos/ --output scene/ --view
      da3-splat reconstruct long.mp4 --output scene/ --chunk 60 --max-memory 8GB

    Args:
        input: folder of photos, a video, a transforms.json or its folder, or a COLMAP model
        output: folder for the results
        model: mini (embedded), a weights file, or a hub id such as depth-anything/DA3-GIANT-1.1
        poses: where the cameras come from; auto takes the input's own where it has them, else da3
        resolution: longest side of the pictures in pixels
        max_views: use this many views at most, evenly spaced
        fps: of a video, use so many frames a second: sharp ones, spread evenly over its motion
        skip_unreadable: leave out pictures that cannot be read, instead of stopping at the first
        fusion: make the views agree and merge what they see twice; --no-fusion lays every pixel of every view
        max_gaussians: thin the scene evenly to so many
        prune: leave out this share of each view's pixels, the least confident ones
        sky: sky pixels become Gaussians on a far shell, or nothing
        rays: place Gaussians on the rays of the cameras, or on those the network predicts
        refine: then optimise the Gaussians against the photos, for 30s, 2m, or a number of steps such as 300; the best
            so far is always in scene.ply, and Ctrl-C ends it early and keeps what there is
        refine_poses: move the cameras, too; auto moves those that the network found, and not those that were given
        export: also write these, separated by commas: splat, compressed, glb, colmap, video, html (ply, npz,
            transforms are always there)
        chunk: reconstruct so many views at a time and align them to one scene, for long sequences; a run that was
            killed goes on from OUTPUT/work. Without it, only where one pass would not fit into memory
        overlap: views that neighbouring chunks share; chosen with the chunk where it is not given
        max_memory: most that may be used, such as 8GB, of the GPU's where there is one; without it, what is free
        view: watch it in the browser while it is made (only from this machine), and stay there until Ctrl-C
        device: cpu, cuda, or auto
        precision: what the transformer computes in; auto is bfloat16 on a GPU that has it, as in the released
            code, else float32
        as_json: print the report as JSON
    """
    import time

    from da3_splat.export import export_scene, parse_formats

    extra = [name for name in parse_formats(export) if name not in ("ply", "npz", "transforms")]
    if not 0 <= prune < 1:
        raise ValueError(f"--prune: expected a share from 0 up to 1, got {prune}")
    if max_gaussians is not None and max_gaussians < 1:
        raise ValueError(f"--max-gaussians: expected at least 1, got {max_gaussians}")

    if chunk is None and overlap is not None:
        raise ValueError("--overlap: only with --chunk")
    refinement = asked_refinement(refine)
    window = _window() if view else None

    began = time.perf_counter()
    streamed = output / "work" / "frames" if chunk is not None else None
    views, frames = _views(input, output, poses, resolution, max_views, fps, skip_unreadable, streamed)

    import torch

    from da3_splat.acceleration import accelerate
    from da3_splat.commands.memory import carried_out, planned
    from da3_splat.fusion.fuse import NO_FUSION, FusionConfig
    from da3_splat.model import load_model
    from da3_splat.ranks import launched
    from da3_splat.scene_folder import save_scene
    from da3_splat.starting_points import error_at_points

    loaded = time.perf_counter()
    place = chosen_device(device)
    try:
        config = replace(
            FusionConfig() if fusion else NO_FUSION, max_gaussians=max_gaussians, min_confidence=prune, sky=sky
        )
        watch = _shown(window, views)
        stamps = [_stamp(frame.path) for frame in frames if isinstance(frame.path, Path)]
        weights = _stamp(Path(model)) if Path(model).exists() else model
        recipe = {
            "model": weights,
            "size": list(views.images.shape),
            "pictures": stamps,
            "poses": poses,
            "precision": precision,
        }
        work = output / "work"
        with launched() as (workers, writes):
            # Weights that want gradients would each be kept in half precision, too.
            network = accelerate(load_model(model, place).requires_grad_(False), precision)
            # All processes go by the plan of the first.
            (plan,) = workers(lambda _: planned(network, views, max_memory, chunk, overlap, config), [None])
            scene = carried_out(plan, network, views, work, recipe, config, rays, bar, workers, watch).to("cpu")
        if not writes:
            return
    except torch.OutOfMemoryError as error:
        raise ValueError("the GPU ran out of memory; use fewer views (--max-views) or a lower --resolution") from error
    if poses == "colmap":
        scene.report["poses"] = "colmap"
    done = time.perf_counter()
    count = save_scene(scene, views, output, bar("writing"), frames)
    if refinement is not None:
        poses_free = refine_poses == "yes" or (refine_poses == "auto" and views.cameras is None)
        refining = replace(refinement, poses=poses_free)
        scene = refined(scene, views, refining, max_gaussians, place, output, window)
        count = save_scene(scene, views, output, bar("writing"), frames)
    export_scene(scene, views, output, output, extra, bar("flying"))
    report = {
        **scene.report,
        "gaussians_written": count,
        "load_seconds": loaded - began,
        "reconstruct_seconds": done - loaded,
        "write_seconds": time.perf_counter() - done,
    }
    if refinement is None and (off := error_at_points(scene, views)) is not None:
        report["depth_error_at_points"] = off
    if window is not None:
        from da3_splat.viewer.content import content_of

        window.show(content_of(scene, views))
    if as_json:
        print(json.dumps(report), flush=True)
    else:
        _tell(report, output, model)
    if window is not None:
        window.wait()


def _stamp(path: Path) -> tuple[str, int, int]:
    """What tells a file from another one in work/recipe.json, without saying where on this machine it lies."""
    found = path.stat()
    return path.name, found.st_size, found.st_mtime_ns


def _window() -> SceneViewer:
    """The page that fills while the scene is made."""
    from da3_splat.viewer.server import SceneViewer

    window = SceneViewer()
    announce(window, sys.stderr)
    return window


def _shown(window: SceneViewer | None, views: Views) -> Watch:
    """What shows each view's Gaussians as they are laid; nothing without a window."""
    if window is None:
        return lambda view, gaussians, cameras: None

    def show(view: int, gaussians: Gaussians, cameras: Cameras) -> None:
        if not window.frustums:
            window.show_views(cameras, views)
        window.show_chunk(view, gaussians, cameras.centers[0].mean(dim=0))

    return show


def _tell(report: dict, output: Path, model: str) -> None:
    """What was made, and what about it is doubtful, in a few lines."""
    from da3_splat.starting_points import STRONG_ERROR

    count = report["gaussians_written"]
    print(
        f"{report['views']} views ({report['poses']} poses, scale: {report['scale_source']}) -> {count} Gaussians; "
        f"load {report['load_seconds']:.1f} s, reconstruct {report['reconstruct_seconds']:.1f} s, "
        f"write {report['write_seconds']:.1f} s: {output / 'scene.ply'}"
    )
    if "refined_psnr_db" in report:
        print(
            f"refined from {report['start']}: {report['refine_steps']} steps in {report['refine_seconds']:.0f} s, "
            f"{report['refined_psnr_db']:.1f} dB on the photos themselves"
        )
    if report.get("doubtful_views"):
        from da3_splat.refinement import doubtful_remark

        for name in report["doubtful_views"]:
            note(doubtful_remark(name))
    agreement = report.get("consensus_agreement")
    if report["poses"] == "da3" and agreement is not None and agreement < DOUBTFUL_AGREEMENT:
        note(
            f"the views agree on only {agreement:.0%} of the depth that two of them see (true geometry: some 90%), so "
            "the poses found are doubtful: --poses colmap, or stronger weights (--model)"
        )
    off = report.get("depth_error_at_points")
    if off is not None and off > STRONG_ERROR:
        note(
            f"the depth is {off:.0%} off at the sparse points of this capture: --refine 1m starts from those instead, "
            "or give stronger weights (--model)"
        )
    if report.get("consensus_accepted") is False:
        note("the views could not be made to agree further; do they overlap?")
    if model == "mini" and report["poses"] == "da3":
        print(
            "note: mini was trained on synthetic rooms only; for photos give --model depth-anything/DA3-GIANT-1.1, "
            "or --poses colmap where there are more than a few"
        )
    say(f"look at it: da3-splat view {output}")


def _views(
    source: Path,
    output: Path,
    poses: str,
    resolution: int,
    max_views: int | None,
    fps: float,
    skip_unreadable: bool,
    streamed: Path | None = None,
):
    """The views of `source` and the frames behind them, with the cameras that `poses` asks for. Where there is a
    folder `streamed`, the frames of a video, and the views themselves, are kept there instead of in memory."""
    from da3_splat.data.captures import find_frames
    from da3_splat.data.views import read_frames
    from da3_splat.export import WRITTEN

    capture = find_frames(source, max_views, fps, bar("choosing frames"), streamed)
    frames, points, colors = capture.frames, capture.points, capture.colors
    written = [(output / name).resolve() for name in WRITTEN]
    masks = (frame.mask for frame in frames if frame.mask is not None)
    read = (source, source / "transforms.json", source / "sparse", *(frame.path for frame in frames), *masks)
    for path in (path for path in read if path.exists()):
        if isinstance(path, Path) and any(path.resolve().is_relative_to(target) for target in written):
            raise ValueError(f"{output}: writing here would replace the input; choose another --output")
    if poses == "given" and frames[0].world_to_camera is None:
        raise ValueError(f"{source}: --poses given, but this input has no cameras")
    if poses == "colmap":
        from da3_splat.io.colmap import run_colmap

        given = len(frames)
        frames, points, colors = run_colmap(frames, say)
        if len(frames) < given:
            note(f"COLMAP placed {len(frames)} of {given} photos; the others are left out")
    skipped: dict[int, str] | None = {} if skip_unreadable else None
    if streamed is not None and skipped is None:
        from da3_splat.commands.memory import views_on_disk

        views = views_on_disk(frames, points, colors, resolution, bar("reading"), streamed)
    else:
        views = read_frames(frames, points, colors, resolution, bar("reading"), skipped)
    for reason in (skipped or {}).values():
        note(f"left out: {reason}")
    frames = [frame for index, frame in enumerate(frames) if index not in (skipped or {})]
    if poses == "da3":
        views = replace(views, cameras=None, points=None, point_colors=None)
    return views, frames
