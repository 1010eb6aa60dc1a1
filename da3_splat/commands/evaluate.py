"""`da3-splat evaluate ...`. Heavy imports are inside each command, so that --help answers at once."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes, arg, subcommand

from da3_splat.commands.device import Device, chosen_device
from da3_splat.commands.terminal import bar, note

NovelViewFormat = Literal["captures", "synthetic", "dl3dv", "megadepth", "tanks-and-temples"]
PoseFormat = Literal[
    "captures", "synthetic", "dl3dv", "megadepth", "hiroom", "eth3d", "dtu", "dtu64", "7scenes", "scannetpp", "sintel"
]
DepthFormat = Literal[
    "captures", "synthetic", "megadepth",
    "kitti", "nyuv2", "sintel", "eth3d", "diode", "diode-indoors", "sun-rgbd", "hiroom", "dtu", "7scenes",
]  # fmt: skip
ReconstructionFormat = Literal["synthetic", "megadepth", "hiroom", "eth3d", "dtu", "7scenes", "scannetpp"]
MOST_ROWS = 60  # of a table in the terminal


@dataclass(frozen=True)
class Scored:
    """What every evaluation is told: what is scored, on what, where the results go."""

    output: Path
    """folder for results.json, report.html and what they are made from"""
    data: Path | None = None
    """a capture, a folder of captures, or the folder of a data set as published; not for synthetic worlds"""
    model: str = "mini"
    """mini (embedded), weights (file or hub id), a folder of another tool's results (SCENE/scene.ply and
    SCENE/transforms.json), or a baseline: official:CHECKOUT:WEIGHTS (DA3's own code), splatfacto[:STEPS] (novel views,
    CUDA), plane-sweep (posed)"""
    worlds: int = 20
    """how many synthetic worlds"""
    stress: bool = False
    """score each synthetic world plain and made hard in seven ways: textureless, mirrors, thin, repeated, wide, moving,
    exposure"""
    seed: int = 20_000_000
    """the first world's; the others follow two apart"""
    device: Device = "auto"
    as_json: Annotated[bool, arg(name="json")] = False
    """print the means as JSON"""

    @property
    def place(self) -> str:
        """cuda or cpu."""
        return chosen_device(self.device)


def novel_views(
    scored: OmitArgPrefixes[Scored],
    format: NovelViewFormat = "captures",
    contexts: int = 12,
    every: int = 8,
    index: Path | None = None,
    size: str = "270x480",
    poses: Literal["posed", "raw", "aligned"] = "posed",
    steps: int = 100,
) -> None:
    """Score novel views: some pictures go in, others are rendered and compared. PSNR, SSIM, LPIPS.

    Writes results.json and report.html into --output. Run again, it goes on where it stopped; under torchrun the
    processes share the scenes. LPIPS is there where its weights are on this machine, and says so where they are not.

    Try:
      da3-splat evaluate novel-views --data captures/ --output scores/ --size 252x252
      da3-splat evaluate novel-views --format synthetic --worlds 20 --size 168x224 --output scores/
      da3-splat evaluate novel-views --format synthetic --stress --worlds 4 --size 168x224 --output scores/
      da3-splat evaluate novel-views --data mipnerf360/ --contexts 64 --size native --output scores/   (32, 64, 128)
      da3-splat evaluate novel-views --data captures/ --contexts 8 --size 512x960 --output scores/
      da3-splat evaluate novel-views --data DL3DV-Benchmark/ --format dl3dv --index ctx_12v_tgt_8v.json --size 252x252
        --poses aligned --steps 200 --model depth-anything/DA3-GIANT-1.1 --output scores/

    Args:
        format: how the data lies there
        contexts: how many pictures of a scene go in, spread by farthest point on pose distance
        every: one picture in so many is held out and asked for
        index: a view-index file that says contexts and targets itself
        size: height x width that is scored, such as 252x252, 256x448, 270x480, or native
        poses: the method is given the cameras (posed), or finds its own; then targets are placed by the contexts (raw),
            and optimised against their pictures (aligned)
        steps: of that optimisation, at most
    """
    from da3_splat.evaluation.protocol import NovelViewProtocol, Size

    settings = NovelViewProtocol(
        contexts=contexts,
        every=every,
        size=Size.parse(size),
        poses=poses,
        alignment_steps=steps,
        index=index,
    )
    scenes, described = _scenes(scored, format, settings.size, every)
    asked = settings.read_index()
    if asked is not None:
        from da3_splat.evaluation.scenes import in_index

        scenes, described["index_notes"] = in_index(scenes, asked)
    place = scored.place

    from da3_splat.evaluation.methods import load_method
    from da3_splat.evaluation.novel_views import NovelViews

    _run(NovelViews(load_method(scored.model, place), settings, device=place), scenes, described, scored)


def poses(
    scored: OmitArgPrefixes[Scored],
    format: PoseFormat = "captures",
    views: int = 100,
    resolution: int = 504,
) -> None:
    """Score camera poses found from pictures alone: AUC at 3, 5, 15 and 30 degrees over all pairs.

    Writes results.json (with the errors of every pair and their histogram) and report.html into --output.

    Try:
      da3-splat evaluate poses --data captures/ --output scores/ --views 12 --resolution 252
      da3-splat evaluate poses --format synthetic --worlds 20 --views 8 --resolution 224 --output scores/

    Args:
        format: how the data lies there
        views: random pictures of a scene, at most
        resolution: longest side of the pictures in pixels
    """
    scenes, described = _scenes(scored, format)
    place = scored.place

    from da3_splat.evaluation.methods import load_method
    from da3_splat.evaluation.poses import Poses

    task = Poses(load_method(scored.model, place), views=views, resolution=resolution, device=place)
    _run(task, scenes, described, scored)


def depth(
    scored: OmitArgPrefixes[Scored],
    format: DepthFormat = "megadepth",
    align: Literal["none", "scale", "scale-shift"] = "scale",
    views: int | None = None,
    resolution: int = 504,
) -> None:
    """Score depth picture by picture: AbsRel, SqRel, RMSE, delta 1 to 3.

    Writes results.json and report.html into --output.

    Try:
      da3-splat evaluate depth --data MegaDepth/ --output scores/
      da3-splat evaluate depth --data KITTI/ --format kitti --align none --output scores/
        --model depth-anything/DA3METRIC-LARGE
      da3-splat evaluate depth --format synthetic --worlds 20 --resolution 224 --align scale-shift --output scores/

    Args:
        format: how the data lies there; captures are those whose transforms.json names depth maps
        align: what each picture's depth is fitted by first; none is for metric models
        views: pictures of a scene, at most, evenly spaced; all of a data set that has rules of its own, else 8
        resolution: longest side of the pictures in pixels
    """
    scenes, described = _scenes(scored, format)
    place = scored.place

    from da3_splat.data.benchmarks.table import BENCHMARKS
    from da3_splat.evaluation.depth import Depth
    from da3_splat.evaluation.methods import load_method

    rules = BENCHMARKS[format].depth if format in BENCHMARKS else None
    most = 8 if views is None and rules is None else views
    _run(Depth(load_method(scored.model, place), align, most, resolution, place, rules), scenes, described, scored)


def reconstruction(
    scored: OmitArgPrefixes[Scored],
    format: ReconstructionFormat = "synthetic",
    poses: Literal["posed", "free"] = "free",
    threshold: float | None = None,
    fusion: Literal["tsdf", "points"] | None = None,
    views: int | None = None,
    resolution: int = 504,
) -> None:
    """Score the surface that all views together give: F1 at a threshold, chamfer distance.

    Writes results.json and report.html into --output.

    Try:
      da3-splat evaluate reconstruction --worlds 20 --resolution 224 --output scores/
      da3-splat evaluate reconstruction --worlds 20 --resolution 224 --poses posed --output scores_posed/
      da3-splat evaluate reconstruction --data HiRoom/ --format hiroom --model depth-anything/DA3-LARGE --output scores/

    Args:
        format: how the data lies there
        poses: the method is given the cameras, or pictures alone and is aligned by its cameras
        threshold: of F1, in units of the scene. Without it, the data set's own; 0.05 (metres in synthetic worlds) where
            it has none, with voxels in proportion
        fusion: tsdf makes one surface of all depth maps; points takes every pixel. Without it, the data set's own rule
        views: pictures of a scene, at most, evenly spaced; 100 of a data set with rules of its own, else 8
        resolution: longest side of the pictures in pixels
    """
    scenes, described = _scenes(scored, format)
    place = scored.place

    from da3_splat.data.benchmarks.table import BENCHMARKS, rules_at
    from da3_splat.evaluation.methods import load_method
    from da3_splat.evaluation.reconstruction import Reconstruction

    own = BENCHMARKS[format].reconstruction if format in BENCHMARKS else None
    if own is None:
        rules = rules_at(0.05 if threshold is None else threshold)
    else:
        rules = own if threshold is None else replace(own, threshold=threshold)
    rules = rules if fusion is None else replace(rules, fusion=fusion)
    most = views if views is not None else 8 if own is None else 100
    task = Reconstruction(load_method(scored.model, place), rules, poses, most, resolution, place)
    _run(task, scenes, described, scored)


Evaluations = (
    Annotated[None, subcommand("novel-views", constructor=novel_views)]
    | Annotated[None, subcommand("poses", constructor=poses)]
    | Annotated[None, subcommand("depth", constructor=depth)]
    | Annotated[None, subcommand("reconstruction", constructor=reconstruction)]
)


def _scenes(scored: Scored, form: str, size: Any = None, every: int = 8) -> tuple[list, dict]:
    """The scenes to score, and where they come from in plain words for results.json."""
    from da3_splat.evaluation.scenes import SyntheticScene, scenes_at

    if form != "synthetic":
        if scored.stress:
            raise ValueError(f"--stress: only of synthetic worlds, not of {form}; say --format synthetic")
        if scored.data is None:
            raise ValueError(f"--data: expected the folder of the {form} scenes")
        scenes, problems = scenes_at(scored.data, form)
        for problem in problems:
            note(problem)
        place = scored.data.resolve()
        # Another folder of the same name is other data; where either lies is nobody's business who reads the results.
        digest = hashlib.sha256(str(place).encode()).hexdigest()[:16]
        return scenes, {"format": form, "folder": place.name, "place_sha256": digest}
    if scored.data is not None or scored.worlds < 1:
        raise ValueError("--format synthetic: expected no --data, and --worlds of at least 1")
    shape = {} if size is None or size.height is None else size.covering_patches
    worlds = [SyntheticScene(scored.seed + 2 * index, **shape) for index in range(scored.worlds)]
    first = worlds[0]
    pictures = {"views": first.views, "height": first.height, "width": first.width, "arc_degrees": first.arc}
    described = {"format": form, "worlds": scored.worlds, **pictures}
    if scored.stress:
        from da3_splat.data.stress import VARIATIONS
        from da3_splat.evaluation.stress import stressed

        worlds, groups = stressed(worlds, every)
        described |= {"stress": VARIATIONS, "groups": groups}
    return worlds, described


def _run(task: Any, scenes: list, data: dict, scored: Scored) -> None:
    from rich.console import Console
    from rich.table import Table

    from da3_splat.evaluation.headline import headline, table
    from da3_splat.evaluation.report import write_report
    from da3_splat.evaluation.results import ResultsFolder
    from da3_splat.evaluation.runner import run
    from da3_splat.evaluation.stress import stress_headline, stress_table

    output = scored.output
    results = run(task, scenes, output, data, scored.seed, scored.place, bar(task.name), scored.data)
    if results is None:
        print(f"this process is done; the last one of the others writes {output / 'results.json'}")
        return
    report = write_report(results, ResultsFolder(output, ""))
    if not results["scenes_scored"]:
        raise ValueError(f"{headline(results)}; the first: {results['failed'][0]['error']}")
    if scored.as_json:
        listed = ("scenes", "failed", "versions", "hardware", "timing")
        print(json.dumps({name: value for name, value in results.items() if name not in listed}))
        return
    titles, rows = stress_table(results) if "groups" in results else table(results)
    shown = Table(*titles)
    width = None if sys.stdout.isatty() else 160  # a pipe has no width of its own
    for row in rows[:MOST_ROWS]:
        shown.add_row(*row)
    if len(rows) > MOST_ROWS:
        shown.add_row(f"{len(rows) - MOST_ROWS} more in results.json")
    Console(width=width).print(shown)
    for reason in results["protocol"].get("not_available", {}).values():
        note(reason)
    print(f"{output / 'results.json'}\n{report}")
    if "groups" in results:
        print(stress_headline(results))
    print(headline(results))
