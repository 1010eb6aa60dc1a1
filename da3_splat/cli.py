"""The command `da3-splat`. Heavy imports are inside each command, so that --help answers at once."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, Positional, arg

from da3_splat.commands.endings import one_line
from da3_splat.commands.evaluate import Evaluations
from da3_splat.commands.reconstruct import reconstruct
from da3_splat.commands.terminal import bar, refining_bar, say
from da3_splat.commands.view import view

FAILED = 1


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
    if steps < 0:
        raise ValueError(f"--steps: expected at least 0, got {steps}")
    from da3_splat.demo import run_demo

    with refining_bar() as watch:
        figures = run_demo(output, steps, watch)
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
    say(f"look at it: da3-splat view {output}")


def export(
    input: Positional[Path],
    output: Path,
    to: str = "",
    html: bool = False,
    overwrite: bool = False,
    as_json: Annotated[bool, arg(name="json")] = False,
) -> None:
    """Write a reconstruction, or a run of ns-train da3-splat, in the formats of other programs.

    A run gives ply, splat, compressed and html, in the frame of the file that was trained on (ns-export gives
    Nerfstudio's).

    Try:
      da3-splat export scene/ --output for_nerfstudio/ --to transforms
      da3-splat export scene/ --output for_colmap/ --to colmap
      da3-splat export scene/ --output web/ --to splat,compressed,video
      da3-splat export scene/ --output mail/ --html        (one file that turns in any browser)
      da3-splat export outputs/fox/da3-splat/2026-11-24_200000 --output fox/ --to ply,splat

    Args:
        input: folder that `da3-splat reconstruct` wrote, or that of a training run (with nerfstudio_models/ in it)
        output: folder for the results
        to: formats, separated by commas: ply, splat, compressed, glb, npz, colmap, transforms, video, html; by default
            what other programs start from (of a run: ply)
        html: write scene.html, a page with the scene in it that needs no network; with --to, that as well
        overwrite: write into a folder that holds such files already
        as_json: print the files as JSON
    """
    from da3_splat.export import WRITTEN, export_gaussians, export_scene, parse_formats
    from da3_splat.trained_run import is_run, load_run

    run = is_run(input)
    formats = parse_formats(to or ("html" if html else "ply" if run else "ply,transforms,colmap"))
    formats += ["html"] if html and "html" not in formats else []
    there = [name for name in WRITTEN if (output / name).exists()]
    if there and not overwrite:
        raise ValueError(f"{output / there[0]}: exists already; choose another --output, or say --overwrite")
    if run:
        written = export_gaussians(load_run(input), output, formats)
    else:
        from da3_splat.scene_folder import load_scene

        scene, views = load_scene(input)
        written = export_scene(scene, views, input, output, formats, bar("flying"))
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
        "cuda of torch": torch.version.cuda or "none",
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "threads": torch.get_num_threads(),
        "render backend": "gsplat" if torch.cuda.is_available() else "cpu",
        "embedded weights": ", ".join(
            f"{name} ({path.stat().st_size / 1e6:.1f} MB)" for name, path in EMBEDDED.items()
        ),
    }
    found = _cached_weights()
    facts["weights in caches"] = ", ".join(found) if found else "none"
    for package in (
        "torch",
        "torchvision",
        "timm",
        "gsplat",
        "numba",
        "numpy",
        "nerfstudio",
        "viser",
        "pycolmap",
        "av",
    ):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    if as_json:
        print(json.dumps(facts))
        return
    for name, value in facts.items():
        print(f"{name:18} {value}")


def _cached_weights() -> list[str]:
    """Hub models and torch's weights that lie on this machine already, by the folders where both keep them."""
    import torch
    from huggingface_hub.constants import HF_HUB_CACHE

    hub = (path.name.removeprefix("models--").replace("--", "/") for path in Path(HF_HUB_CACHE).glob("models--*"))
    return sorted([*hub, *(path.name for path in Path(torch.hub.get_dir()).glob("checkpoints/*.pth"))])


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. Expected errors end in one line and exit code 2, Ctrl-C in 130; anything else is ours, and
    ends in a traceback and exit code 1."""
    # Threads of torch that wait by spinning bring a busy machine to a halt: 100 s instead of 4 were measured beside one
    # other job on two cores. Must be said before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    commands: dict[str, Callable[..., Any]] = {
        "demo": demo,
        "reconstruct": reconstruct,
        "view": view,
        "evaluate": evaluate,
        "export": export,
    }
    commands |= {"check": check, "info": info}
    with one_line("da3-splat"):
        tyro.extras.subcommand_cli_from_dict(
            commands,
            args=arguments,
            prog="da3-splat",
            description="Photos to 3D Gaussian scenes, with Depth Anything 3.",
        )


if __name__ == "__main__":
    main()
