"""Label a data set with a teacher's depth, aligned to what was measured (RANSAC, section 3.4), and report its quality.

    uv run python scripts/label_depth.py --data CAPTURES --teacher outputs/teacher/geometry.safetensors --output labels
    torchrun --nproc-per-node 8 scripts/label_depth.py ...           each process takes its share of the scenes
    uv run python scripts/label_depth.py --rank 3 --world-size 16 ...   or each by hand, on any machine

CAPTURES holds transforms.json files whose frames have a `depth_file_path`, or (--kind megadepth) MegaDepth. The same
command goes on where it was stopped or killed. When all scenes are done, report.json and report.html (one file, with
pictures) say how many pictures were accepted, how well they fit, and which were rejected and why. Exit code 1 where
fewer than --demand of the pictures were accepted. Bare (no --data), it labels a few synthetic captures, whose depth is
made sparse and noisy, with a stand-in for a teacher: their exact depth, bent.
"""

import os
import signal

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during these imports ends it without a traceback

import base64
import html
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
import tyro
from rich.console import Console

from da3_splat.acceleration import accelerate
from da3_splat.backbone import create_backbone, load_checkpoint
from da3_splat.commands.endings import one_line
from da3_splat.data.depth_captures import DepthScene, find_depth_scenes, write_depth_capture
from da3_splat.data.episodes import UNREADABLE
from da3_splat.data.measurement import Measurement, measure
from da3_splat.data.synthetic import make_scenes
from da3_splat.io.files import NotWritten, replacing
from da3_splat.training.labelling import Teacher, label_scene, read_quality, summary
from da3_splat.training.pseudo_labels import LabelConfig
from da3_splat.training.single_view import predict_maps


@dataclass
class Settings:
    data: Path | None = None
    """the collection; none: synthetic captures, written to OUTPUT/data"""
    kind: Literal["captures", "megadepth"] = "captures"
    teacher: Path | None = None
    """weights of a teacher; none: a stand-in that knows the synthetic captures"""
    preset: str = "da3teacher-large"
    output: Path = Path("outputs/labels")
    resolution: int = 504
    """longest side the teacher sees"""
    compile: bool = False
    """compile the teacher first: a minute or more for each picture size, of a long job on a GPU"""
    leave_out: tuple[str, ...] = ()
    """words in the names of scenes to leave out"""
    rank: int = int(os.environ.get("RANK", 0))
    world_size: int = int(os.environ.get("WORLD_SIZE", 1))
    demand: float = 0.5
    """smallest share of accepted pictures"""
    synthetic_scenes: int = 3
    align: LabelConfig = field(default_factory=LabelConfig)
    json: Path | None = None
    """write the figures there, too"""


def network_teacher(settings: Settings) -> Teacher:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = create_backbone(settings.preset).eval().to(device)
    load_checkpoint(network, settings.teacher)
    accelerate(network, compiled=settings.compile)

    @torch.no_grad()
    def teacher(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            maps = predict_maps(network, images[None].to(device))
        return maps["depth"], maps["sky"]

    return teacher


def write_synthetic(settings: Settings) -> tuple[Path, Teacher]:
    """Captures with poor depth, and a teacher that finds the exact depth of a picture by its pixels."""
    known: dict[bytes, torch.Tensor] = {}
    for number in range(settings.synthetic_scenes):
        views, truth = make_scenes(1, 4, 84, 112, seed=31_000_000 + number, supersample=1)
        poor = measure(truth.depth, Measurement(), seed=number)
        if number == 0:
            poor[0, 3] = poor[0, 3].flip(-1)  # depth of another picture: nothing can be made of it
        folder = settings.output / "data" / f"world_{number}"
        if not (folder / "transforms.json").exists():
            write_depth_capture(folder, views, poor)
        for image, depth in zip((views.images[0] * 255 + 0.5).byte(), truth.depth[0]):
            known[image.numpy().tobytes()] = depth

    def teacher(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        exact = torch.stack([known[image.numpy().tobytes()] for image in (images * 255 + 0.5).byte()])
        ripples = 1 + 0.02 * torch.sin(torch.linspace(0, 9, exact.shape[-1]))
        return 0.2 * exact * ripples + 0.3, (exact == 0).float()

    settings.resolution = 112
    return settings.output / "data", teacher


def report(settings: Settings, scenes: list[DepthScene], broken: dict[str, str]) -> dict:
    """report.json and report.html of all that is labelled."""
    done = {scene.name: read_quality(settings.output / scene.name) for scene in scenes if scene.name not in broken}
    figures = summary({name: found for name, found in done.items() if found is not None}, broken)
    with replacing(settings.output / "report.json") as beside:
        beside.write_text(json.dumps(figures, indent=1))
    rows = "".join(f"<tr><td>{name}<td>{value}" for name, value in figures.items() if not isinstance(value, dict))
    for title in ("rejected", "broken_scenes"):
        lines = "".join(f"<li>{html.escape(name)}: {html.escape(why)}" for name, why in figures[title].items())
        rows += f"<tr><td>{title}<td><ul>{lines or '<li>none'}</ul>"
    pictures = ""
    for path in [path for name in done for path in sorted((settings.output / name / "pictures").glob("*.png"))][:60]:
        key = f"{path.parent.parent.relative_to(settings.output)}/{path.stem}"
        reason = next((why for name, why in figures["rejected"].items() if name.rpartition(".")[0] == key), "accepted")
        data = base64.b64encode(path.read_bytes()).decode()
        pictures += f'<p>{html.escape(key)}: {html.escape(reason)}<br><img src="data:image/png;base64,{data}"></p>'
    text = (
        "<!doctype html><meta charset=utf-8><title>Depth labels</title><style>body{font-family:sans-serif;margin:2em}"
        "td{padding:.2em 1em;vertical-align:top}img{max-width:100%}</style><h1>Depth labels</h1>"
        f"<table>{rows}</table><h2>Picture, measured depth, label (rejected: the teacher's depth), "
        f"relative difference up to 20 %</h2>{pictures}"
    )
    with replacing(settings.output / "report.html") as beside:
        beside.write_text(text)
    return figures


def main(settings: Settings) -> None:
    console = Console()
    if settings.data is None:
        data, teacher = write_synthetic(settings)
    elif settings.teacher is None:
        raise SystemExit("--teacher: expected the weights of a teacher for --data")
    else:
        data, teacher = settings.data, network_teacher(settings)
    scenes = find_depth_scenes(settings.kind, data, settings.leave_out)
    teacher_name = None if settings.teacher is None else f"{settings.teacher.name} {settings.teacher.stat().st_size}"
    kept = {"teacher": teacher_name, "resolution": settings.resolution, "align": vars(settings.align)}
    for scene in scenes[settings.rank :: settings.world_size]:
        failed = settings.output / scene.name / "broken.txt"
        try:
            found = label_scene(scene, teacher, settings.output, kept, settings.resolution, settings.align)
            failed.unlink(missing_ok=True)
        except NotWritten:
            raise
        except UNREADABLE as error:
            if "other settings" in str(error):
                raise SystemExit(str(error)) from error
            with replacing(failed) as beside:
                beside.write_text(str(error))
            console.print(f"{scene.name}: broken: {error}")
            continue
        console.print(f"{scene.name}: {sum(frame.reason is None for frame in found)} of {len(found)} pictures labelled")
    broken = {
        scene.name: (settings.output / scene.name / "broken.txt").read_text()
        for scene in scenes
        if (settings.output / scene.name / "broken.txt").is_file()
    }
    waiting = [
        scene.name
        for scene in scenes
        if scene.name not in broken and not (settings.output / scene.name / "quality.json").is_file()
    ]
    if waiting:
        console.print(f"rank {settings.rank} of {settings.world_size} is done; {len(waiting)} scenes are others' to do")
        return
    figures = report(settings, scenes, broken)
    for name, value in figures.items():
        if not isinstance(value, dict):
            console.print(f"{name:28} {value if not isinstance(value, float) else round(value, 4)}")
    if settings.json:
        settings.json.write_text(json.dumps(figures, indent=1))
    console.print(
        f"{figures['accepted_frames']} of {figures['frames']} pictures labelled ({figures['accepted_share']:.0%}, "
        f"demanded {settings.demand:.0%}), median residual {figures['median_relative_residual'] or 0:.2%}: "
        f"{settings.output / 'report.html'}",
        soft_wrap=True,
    )
    sys.exit(0 if figures["accepted_share"] >= settings.demand else 1)


with one_line("label_depth"):
    main(tyro.cli(Settings, description=__doc__))
