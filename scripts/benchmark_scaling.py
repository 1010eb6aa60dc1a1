"""Memory and time by number of views, beside what the planner says; long sequences, loops, kills, two processes.

    uv run python scripts/benchmark_scaling.py             `mini` up to 300 views, the loop, a kill, two ranks
    uv run python scripts/benchmark_scaling.py --full      also 1,000 views in one pass, 4,000 by chunks, da3-small
    uv run python scripts/benchmark_scaling.py --only table,loop
                                                           parts: table, loop, quality, resume, ranks, small, chunks

Pictures of one walk around a synthetic room, unposed, 168x126 (4,000 views: 112x84; da3-small, random weights:
504x280). Every measurement of memory is a process of its own; the figure is the peak of the whole process.
`loop`: 600 frames, true geometry with simulated errors of a network (sequence/simulation.py: each step 0.1 degrees and
0.1 % of the depth off, scale growing by 0.02 % a step with 0.1 % of unrest, 1 % smooth depth error), consensus off, so
that only alignment is measured; drift is how far the last camera is off when the first ten are laid on the true ones.
`quality`: a length where one pass and chunks both run, held against the pictures themselves.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro

from da3_splat import create_model, load_model, render
from da3_splat.data.disturbance import Disturbance
from da3_splat.data.synthetic import render_worlds, sample_walk, sample_worlds
from da3_splat.evaluation.measuring import forget_peak, peak_bytes
from da3_splat.fusion.fuse import NO_FUSION
from da3_splat.heads.plain import PlainHead
from da3_splat.metrics import psnr
from da3_splat.model import Da3Splat, SplatConfig
from da3_splat.planning import held_mb, make_plan, measure_rates, predict
from da3_splat.ranks import launched
from da3_splat.sequence.reconstruct import SequenceConfig, reconstruct_sequence
from da3_splat.sequence.simulation import Drift, SimulatedBackbone, end_drift, trajectory_error
from da3_splat.types import Geometry, Views

SEED, THREADS, LIMIT_MB = 7_000_003, 2, 12 * 1024
NOTHING = 2.0  # seconds that a plan may always be off by: 10 views of the walk hardly overlap, and it cannot know
SIZE, LONG_SIZE, SMALL_SIZE = (126, 168), (84, 112), (280, 504)
COUNTS, FULL_COUNTS = (10, 30, 100, 300), (10, 30, 100, 300, 1000)
BARE = ("table", "loop", "quality", "resume", "ranks")
DRIFT = Drift(rotation=0.1, translation=0.001, scale=0.001, growth=0.0002)
NOISE = Disturbance(depth=0.01)
DRAWN = ("means", "scales", "quats", "opacities", "sh")


@dataclass
class Settings:
    full: bool = False
    """also 1,000 views in one pass, 4,000 by chunks, and 100 views of da3-small (hours on two cores)"""
    only: str = ""
    """parts to run, separated by commas"""
    counts: str = ""
    """view counts of the table, separated by commas, instead of the usual ones"""
    json: Path | None = None
    """write the same numbers there"""
    plot: Path = Path("outputs/scaling.png")
    """picture of memory and time by views"""
    worker: str = ""
    """internal: one measurement"""


def walk(views: int, height: int, width: int) -> tuple[Views, Geometry]:
    """A closed walk around one room: pictures and true geometry."""
    worlds = sample_worlds(1, SEED)
    cameras = sample_walk(worlds, views, height, width, seed=7)
    images, parts = torch.empty(1, views, 3, height, width), []
    for start in range(0, views, 8):
        few = slice(start, min(start + 8, views))
        images[:, few], geometry = render_worlds(worlds, cameras.select(few))
        parts.append(geometry)
    return Views(images=images), Geometry.concatenate(parts)


def pictures(folder: Path, views: int, size: tuple[int, int]) -> Views:
    """The walk's pictures, made by the first process that asks."""
    file = folder / f"walk_{views}_{size[0]}x{size[1]}.pt"
    if not file.exists():
        torch.save(walk(views, *size)[0].images, file)
    return Views(images=torch.load(file, weights_only=True))


def measure(kind: str, views: int, folder: Path) -> dict[str, float]:
    """One reconstruction in this process: seconds, peak MB, and what the planner said beforehand."""
    torch.set_num_threads(THREADS)
    size = {"chunks": LONG_SIZE, "small": SMALL_SIZE}.get(kind, SIZE)
    given = pictures(folder, views, size)
    if kind == "pictures":
        return {}
    preset = "da3-small" if kind == "small" else "mini"
    model = load_model("mini") if preset == "mini" else create_model(preset, head="plain").eval()
    start = held_mb() - given.images.numel() * 4 / 2**20  # what the next line leaves behind is used again
    rates = measure_rates(model, *size)
    forget_peak()  # of making and measuring
    began, cpu = time.perf_counter(), time.process_time()
    if kind == "chunks":
        plan = make_plan(preset, views, *size, LIMIT_MB, start, rates, chunk=100, overlap=20)
        config = SequenceConfig(plan.chunk, plan.overlap)
        scene, said = reconstruct_sequence(model, given, config, folder / "chunks", {}), plan.prediction
    else:
        said = predict(preset, views, *size, start, rates, sh_degree=0 if kind == "small" else 1)
        scene = model.reconstruct(given)
    report = {name: value for name, value in scene.report.items() if isinstance(value, (int, float))}
    return {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu,
        "peak_mb": peak_bytes() / 2**20,
        "start_mb": start,
        "predicted_mb": said.peak_mb,
        "predicted_seconds": said.seconds,
        **report,
    }


def in_own_process(kind: str, views: int, folder: Path) -> dict[str, float]:
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, __file__, "--worker", f"{kind},{views},{folder}"]
    out = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if out.returncode:
        sys.exit(f"{kind}, {views} views: failed\n{out.stderr[-2000:]}")
    return json.loads(out.stdout.strip().splitlines()[-1])


def table(counts: tuple[int, ...], folder: Path, numbers: dict, missed: list[str], plot: Path) -> None:
    print("mini, 168x126, one pass; peak of the process")
    print(f"{'views':>6}{'s':>9}{'planned':>9}{'MB':>8}{'planned':>9}{'s/view':>8}{'MB/view':>9}{'Gaussians':>11}")
    rows = {}
    for views in counts:
        in_own_process("pictures", views, folder)
        row = rows[views] = in_own_process("single", views, folder)
        print(
            f"{views:6}{row['seconds']:9.1f}{row['predicted_seconds']:9.1f}{row['peak_mb']:8.0f}{row['predicted_mb']:9.0f}"
            f"{row['seconds'] / views:8.2f}{(row['peak_mb'] - row['start_mb']) / views:9.2f}{row['gaussians']:11.0f}",
            flush=True,
        )
        if row["peak_mb"] > LIMIT_MB:
            missed.append(f"{views} views: {row['peak_mb']:.0f} MB")
        for name, unit in (("mb", "peak_mb"), ("seconds", "seconds")):
            off = row[f"predicted_{name}"] / row[unit] - 1
            if abs(off) > 0.2 and not (name == "seconds" and abs(row["predicted_seconds"] - row["seconds"]) < NOTHING):
                missed.append(f"{views} views: planned {name} off by {off:+.0%}")
    numbers["table"] = rows
    if len(rows) > 1:
        low, high = min(rows), max(rows)
        growth = (rows[high]["peak_mb"] - rows[low]["peak_mb"]) / (high - low)
        numbers["growth_mb_per_view"] = growth
        print(f"growth from {low} to {high} views: {growth:.2f} MB a view")
        draw(rows, plot)


def draw(rows: dict[int, dict], path: Path) -> None:
    """Memory and time by views, measured and planned, as two panels of one picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.5))
    for panel, name, said, title in (
        (panels[0], "peak_mb", "predicted_mb", "peak memory, MB"),
        (panels[1], "seconds", "predicted_seconds", "time, s"),
    ):
        panel.plot(list(rows), [row[name] for row in rows.values()], "o-", label="measured")
        panel.plot(list(rows), [row[said] for row in rows.values()], "x--", label="planned")
        panel.set(xscale="log", yscale="log", xlabel="views", title=title)
        panel.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def simulated(views: int, height: int, width: int, drift: Drift, noise: Disturbance):
    given, truth = walk(views, height, width)
    backbone = SimulatedBackbone(given.images, truth, drift, noise)
    return Da3Splat(backbone, PlainHead(), SplatConfig("simulated")), given, truth


def loop(folder: Path, numbers: dict, missed: list[str]) -> None:
    model, given, truth = simulated(600, 42, 56, DRIFT, NOISE)
    fusion = replace(NO_FUSION, max_gaussians=1000)  # where the cameras are is all that is asked
    rows = {}
    for loops in (False, True):
        config = SequenceConfig(60, 15, loops)
        scene = reconstruct_sequence(model, given, config, folder / "loop", {}, fusion)
        rows["closed" if loops else "open"] = {
            "trajectory_error_percent": 100 * trajectory_error(scene.cameras, truth.cameras),
            "end_drift_percent": 100 * end_drift(scene.cameras, truth.cameras),
            "loops": scene.report["loops_closed"],
        }
    for name, row in rows.items():
        print(
            f"600 frames by chunks of 60, loops {name}: trajectory error {row['trajectory_error_percent']:.3f} % of "
            f"the path, drift at the end {row['end_drift_percent']:.3f} %, {row['loops']} loops"
        )
    numbers["loop"] = rows
    if rows["closed"]["trajectory_error_percent"] > 2:
        missed.append("trajectory error over 2 % of the path")
    if rows["closed"]["end_drift_percent"] > 0.5 * rows["open"]["end_drift_percent"]:
        missed.append("closing the loop does not halve the drift")


def quality(folder: Path, numbers: dict, missed: list[str]) -> None:
    """36 views in one pass, and by chunks of 16, from the same simulated network: PSNR of the views' own pictures."""
    model, given, truth = simulated(36, 56, 84, replace(DRIFT, growth=0.0), NOISE)
    scenes = {
        "one pass": model.reconstruct(given),
        "chunks": reconstruct_sequence(model, given, SequenceConfig(16, 5), folder / "quality", {}),
    }
    shown = list(range(0, 36, 3))
    seen = truth.depth[0, shown] > 0
    scores = {}
    for name, scene in scenes.items():
        with torch.no_grad():
            picture = render(scene.gaussians, scene.cameras.select(shown)).color[0]
        picture = torch.where(seen[:, None], picture, given.images[0, shown])
        scores[name] = float(psnr(picture, given.images[0, shown]).mean())
        print(f"36 views of 84x56, {name}: {scores[name]:.2f} dB, {scene.gaussians.means.shape[1]} Gaussians")
    numbers["quality_db"] = scores
    if scores["chunks"] < scores["one pass"] - 1:
        missed.append(f"chunks are {scores['one pass'] - scores['chunks']:.2f} dB below one pass")


def resume(folder: Path, numbers: dict, missed: list[str]) -> None:
    """A process by chunks, killed when it has written two, and the same command again; beside one never killed."""
    for name in ("whole", "killed"):
        command = [sys.executable, __file__, "--worker", f"resume,36,{folder / name}"]
        if name == "killed":
            with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
                while process.poll() is None and len(list((folder / name).glob("work/chunk*.safetensors"))) < 2:
                    time.sleep(0.05)
                process.kill()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    same, found = compared(folder / "whole", folder / "killed")
    print(f"killed after two chunks and run again ({found} chunks found): same scene: {same}")
    numbers["resume"] = {"same": same, "chunks_found": found}
    if not same or found < 1:
        missed.append("a resumed run differs")


def ranks(folder: Path, numbers: dict, missed: list[str]) -> None:
    """Two gloo processes beside one, every number of the Gaussians."""
    alone = [sys.executable, __file__, "--worker", f"ranks,20,{folder / 'one'}"]
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    subprocess.run(alone, check=True, stdout=subprocess.DEVNULL)
    command = [*two, "--worker", f"ranks,20,{folder / 'two'}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    same, _ = compared(folder / "one", folder / "two")
    print(f"two gloo ranks and one process: same scene: {same}")
    numbers["ranks"] = {"same": same}
    if not same:
        missed.append("two ranks differ from one")


def compared(first: Path, second: Path) -> tuple[bool, int]:
    """Whether the scenes that `written` left in two folders are the same to the last bit, and how many chunks the
    second found."""
    one, other = (torch.load(folder / "scene.pt", weights_only=True) for folder in (first, second))
    return all(torch.equal(one[key], other[key]) for key in DRAWN), int(other["found"])


def written(kind: str, views: int, folder: Path) -> None:
    """A scene of `mini` in one thread (sums must not depend on how many there are), written to `folder`."""
    torch.set_num_threads(1)
    given, model = walk(views, 42, 56)[0], load_model("mini")
    found = 0
    with launched() as (workers, writes):
        if kind == "ranks":
            scene = model.reconstruct(given, workers=workers)
        else:
            scene = reconstruct_sequence(model, given, SequenceConfig(12, 4), folder / "work", {}, workers=workers)
            found = scene.report["chunks_found"]
        if writes:
            folder.mkdir(parents=True, exist_ok=True)
            kept = {key: getattr(scene.gaussians, key) for key in DRAWN}
            torch.save({**kept, "found": torch.tensor(found)}, folder / "scene.pt")


def alone(kind: str, views: int, most_mb: float, folder: Path, numbers: dict, missed: list[str]) -> None:
    """One long measurement with a limit."""
    row = numbers[f"{kind}_{views}"] = in_own_process(kind, views, folder)
    print(
        f"{kind}, {views} views: {row['seconds']:.0f} s (planned {row['predicted_seconds']:.0f}), peak "
        f"{row['peak_mb']:.0f} MB (planned {row['predicted_mb']:.0f}, allowed {most_mb:.0f})",
        flush=True,
    )
    if row["peak_mb"] > most_mb:
        missed.append(f"{kind}, {views} views: {row['peak_mb']:.0f} MB")


def main(settings: Settings) -> None:
    if settings.worker:
        kind, views, folder = settings.worker.split(",", 2)
        if kind in ("ranks", "resume"):
            written(kind, int(views), Path(folder))
        else:
            print(json.dumps(measure(kind, int(views), Path(folder))))
        return
    torch.set_num_threads(THREADS)
    known = (*BARE, "small", "chunks")
    parts = settings.only.split(",") if settings.only else known if settings.full else BARE
    if set(parts) - set(known):
        sys.exit(f"benchmark_scaling: no such part: {', '.join(sorted(set(parts) - set(known)))}")
    counts = FULL_COUNTS if settings.full else COUNTS
    counts = tuple(map(int, settings.counts.split(","))) if settings.counts else counts
    numbers: dict = {}
    missed: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        steps = {
            "table": lambda: table(counts, folder, numbers, missed, settings.plot),
            "loop": lambda: loop(folder, numbers, missed),
            "quality": lambda: quality(folder, numbers, missed),
            "resume": lambda: resume(folder, numbers, missed),
            "ranks": lambda: ranks(folder, numbers, missed),
            "small": lambda: alone("small", 100, 8 * 1024, folder, numbers, missed),
            "chunks": lambda: alone("chunks", 4000, LIMIT_MB, folder, numbers, missed),
        }
        for part in parts:
            steps[part]()
    if settings.json:
        settings.json.write_text(json.dumps({**numbers, "missed": missed}, indent=1))
    growth = numbers.get("growth_mb_per_view")
    headline = "" if growth is None else f"{growth:.2f} MB a further view, "
    print(f"{headline}missed: {'; '.join(missed) or 'nothing'}")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
