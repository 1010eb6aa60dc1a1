"""The command `da3-splat`. Heavy imports are inside each command, so that --help answers at once."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, Positional, arg

from da3_splat.evaluation.commands import Evaluations

FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130


def demo(
    output: Path = Path("da3_splat_demo"), steps: int = 300, as_json: Annotated[bool, arg(name="json")] = False
) -> None:
    """Make a small synthetic capture, reconstruct it, refine it briefly and show a view that was held out.

    Needs no GPU and no download; about a minute on two cores.

    Try: da3-splat demo --output /tmp/demo

    Args:
        output: folder for scene.ply, demo.png and the rest
        steps: refinement steps
        as_json: print the figures as JSON
    """
    from da3_splat.demo import run_demo

    figures = run_demo(output, steps, _bar)
    if as_json:
        print(json.dumps(figures))
        return
    print(
        f"held-out views: {figures['psnr_feed_forward_db']:.1f} dB feed-forward, "
        f"{figures['psnr_refined_db']:.1f} dB PSNR after {steps} steps; "
        f"{figures['gaussians']} Gaussians in {figures['seconds']:.0f} s"
    )
    print(f"started from: {figures['start']}")
    print(f"{output / 'scene.ply'}\n{output / 'demo.png'}  (input, depth, rendered held-out view, the real one)")


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
    export: str = "",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    as_json: Annotated[bool, arg(name="json")] = False,
) -> None:
    """Turn photos into a 3D Gaussian scene in one pass.

    Writes scene.ply, points.ply, depth/, depth.npz and a capture (transforms.json + images/) into --output; --export
    adds other formats.

    Try:
      da3-splat reconstruct photos/ --output scene/
      da3-splat reconstruct capture/transforms.json --output scene/ --resolution 336
      da3-splat reconstruct photos/ --output scene/ --poses colmap
      da3-splat reconstruct walk.mp4 --output scene/ --fps 1 --export colmap,video

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
        export: also write these, separated by commas: splat, compressed, glb, colmap, video (ply, npz, transforms are
            always there)
        device: cpu, cuda, or auto
        as_json: print the report as JSON
    """
    import time

    from da3_splat.export import export_scene, parse_formats

    extra = [name for name in parse_formats(export) if name not in ("ply", "npz", "transforms")]
    if not 0 <= prune < 1:
        raise ValueError(f"--prune: expected a share from 0 up to 1, got {prune}")
    if max_gaussians is not None and max_gaussians < 1:
        raise ValueError(f"--max-gaussians: expected at least 1, got {max_gaussians}")

    began = time.perf_counter()
    views, frames = _views(input, output, poses, resolution, max_views, fps, skip_unreadable)

    import torch

    from da3_splat.fusion.fuse import NO_FUSION, FusionConfig
    from da3_splat.model import load_model
    from da3_splat.scene_folder import save_scene

    loaded = time.perf_counter()
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no CUDA device here; leave it out or say --device cpu")
    try:
        config = replace(
            FusionConfig() if fusion else NO_FUSION, max_gaussians=max_gaussians, min_confidence=prune, sky=sky
        )
        scene = load_model(model, device).reconstruct(views, fusion=config, lifting_rays=rays, progress=_bar).to("cpu")
    except torch.OutOfMemoryError as error:
        raise ValueError("the GPU ran out of memory; use fewer views (--max-views) or a lower --resolution") from error
    if poses == "colmap":
        scene.report["poses"] = "colmap"
    done = time.perf_counter()
    count = save_scene(scene, views, output, _bar("writing"), frames)
    export_scene(scene, views, output, output, extra, _bar("flying"))
    report = {
        **scene.report,
        "gaussians_written": count,
        "load_seconds": loaded - began,
        "reconstruct_seconds": done - loaded,
        "write_seconds": time.perf_counter() - done,
    }
    if as_json:
        print(json.dumps(report))
        return
    print(
        f"{report['views']} views ({report['poses']} poses, scale: {report['scale_source']}) -> {count} Gaussians; "
        f"load {report['load_seconds']:.1f} s, reconstruct {report['reconstruct_seconds']:.1f} s, "
        f"write {report['write_seconds']:.1f} s: {output / 'scene.ply'}"
    )
    if report.get("consensus_accepted") is False:
        _note("the views could not be made to agree further; do they overlap?")
    if model == "mini" and report["poses"] == "da3":
        print(
            "note: mini was trained on synthetic rooms only; for photos give --model depth-anything/DA3-GIANT-1.1, "
            "or --poses colmap where there are more than a few"
        )


def _views(
    source: Path, output: Path, poses: str, resolution: int, max_views: int | None, fps: float, skip_unreadable: bool
):
    """The views of `source` and the frames behind them, with the cameras that `poses` asks for."""
    from da3_splat.data.captures import find_frames
    from da3_splat.data.views import read_frames
    from da3_splat.export import WRITTEN

    capture = find_frames(source, max_views, fps, _bar("choosing frames"))
    frames, points, colors = capture.frames, capture.points, capture.colors
    written = [(output / name).resolve() for name in WRITTEN]
    masks = (frame.mask for frame in frames if frame.mask is not None)
    read = (source, source / "transforms.json", source / "sparse", *(frame.path for frame in frames), *masks)
    for path in (path for path in read if path.exists()):
        if any(path.resolve().is_relative_to(target) for target in written):
            raise ValueError(f"{output}: writing here would replace the input; choose another --output")
    if poses == "given" and frames[0].world_to_camera is None:
        raise ValueError(f"{source}: --poses given, but this input has no cameras")
    if poses == "colmap":
        from da3_splat.io.colmap import run_colmap

        given = len(frames)
        frames, points, colors = run_colmap(frames, _say)
        if len(frames) < given:
            _note(f"COLMAP placed {len(frames)} of {given} photos; the others are left out")
    skipped: dict[int, str] | None = {} if skip_unreadable else None
    views = read_frames(frames, points, colors, resolution, _bar("reading"), skipped)
    for reason in (skipped or {}).values():
        _note(f"left out: {reason}")
    frames = [frame for index, frame in enumerate(frames) if index not in (skipped or {})]
    if poses == "da3":
        views = replace(views, cameras=None, points=None, point_colors=None)
    return views, frames


def _note(message: str) -> None:
    print(f"note: {message}", file=sys.stderr)


def export(
    input: Positional[Path],
    output: Path,
    to: str = "ply,transforms,colmap",
    overwrite: bool = False,
    as_json: Annotated[bool, arg(name="json")] = False,
) -> None:
    """Write a reconstruction in the formats of other programs: Nerfstudio, COLMAP, web viewers, video.

    Try:
      da3-splat export scene/ --output for_nerfstudio/ --to transforms
      da3-splat export scene/ --output for_colmap/ --to colmap
      da3-splat export scene/ --output web/ --to splat,compressed,video

    Args:
        input: folder that `da3-splat reconstruct` wrote
        output: folder for the results
        to: formats, separated by commas: ply, splat, compressed, glb, npz, colmap, transforms, video
        overwrite: write into a folder that holds such files already
        as_json: print the files as JSON
    """
    from da3_splat.export import WRITTEN, export_scene, parse_formats
    from da3_splat.scene_folder import load_scene

    formats = parse_formats(to)
    there = [name for name in WRITTEN if (output / name).exists()]
    if there and not overwrite:
        raise ValueError(f"{output / there[0]}: exists already; choose another --output, or say --overwrite")
    scene, views = load_scene(input)
    written = export_scene(scene, views, input, output, formats, _bar("flying"))
    print(json.dumps([str(path) for path in written]) if as_json else "\n".join(map(str, written)))


def evaluate(what: OmitArgPrefixes[OmitSubcommandPrefixes[Evaluations]]) -> None:
    """Score novel views, poses, depth or reconstruction under a stated protocol: results.json and report.html.

    Try: da3-splat evaluate novel-views --help
    """


def check(as_json: Annotated[bool, arg(name="json")] = False) -> None:
    """Check that this installation computes what it should; exit code 1 where it does not.

    The networks against the official one's numbers, the CPU rasterizer against its oracle, cameras recovered from rays.

    Try: da3-splat check

    Args:
        as_json: print the table as JSON
    """
    from da3_splat.check.run import run_checks

    checks = []
    for item in run_checks():
        checks.append(item)
        if not as_json:
            verdict = "ok" if item.passed else "FAILED"
            print(f"{item.name:55} {item.figure:9.2e} {item.unit:19} limit {item.limit:.0e}  {verdict}", flush=True)
    if as_json:
        print(json.dumps([{**asdict(item), "passed": item.passed} for item in checks]))
    if not all(item.passed for item in checks):
        sys.exit(FAILED)


def info(as_json: Annotated[bool, arg(name="json")] = False) -> None:
    """Print what a bug report needs: versions, devices, backends, weights.

    Try: da3-splat info

    Args:
        as_json: print it as JSON
    """
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    from da3_splat import __version__
    from da3_splat.model import EMBEDDED

    facts: dict[str, object] = {
        "da3_splat": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "threads": torch.get_num_threads(),
        "render backend": "gsplat" if torch.cuda.is_available() else "cpu",
        "embedded weights": ", ".join(
            f"{name} ({path.stat().st_size / 1e6:.1f} MB)" for name, path in EMBEDDED.items()
        ),
    }
    for package in ("torch", "torchvision", "timm", "gsplat", "numba", "numpy", "nerfstudio", "viser", "pycolmap"):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    if as_json:
        print(json.dumps(facts))
        return
    for name, value in facts.items():
        print(f"{name:18} {value}")


def _say(message: str) -> None:
    if sys.stderr.isatty():
        print(message, file=sys.stderr)


def _bar(title: str) -> Callable[[Iterable], Iterable]:
    """A progress bar on the terminal, nothing where the output is piped."""

    def wrap(items: Iterable) -> Iterable:
        from rich.console import Console
        from rich.progress import track

        return track(items, title, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True)

    return wrap


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. Expected errors end in one line and exit code 2, Ctrl-C in 130."""
    # Threads of torch that wait by spinning bring a busy machine to a halt: 100 s instead of 4 were measured beside one
    # other job on two cores. Must be said before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    commands = {"demo": demo, "reconstruct": reconstruct, "evaluate": evaluate, "export": export}
    commands |= {"check": check, "info": info}
    try:
        tyro.extras.subcommand_cli_from_dict(
            commands,
            args=arguments,
            prog="da3-splat",
            description="Photos to 3D Gaussian scenes, with Depth Anything 3.",
        )
    except (ValueError, OSError) as error:
        print(f"da3-splat: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except KeyboardInterrupt:
        print("da3-splat: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
