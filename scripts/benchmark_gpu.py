"""Everything that only a GPU can answer, in one run of less than 8 minutes: a table, and a JSON with versions and date.

    uv run python scripts/benchmark_gpu.py --json results.json
    uv run python scripts/benchmark_gpu.py --only renderer,network --official PATH

Parts, in order, while there is time left of --minutes:
    renderer   gsplat beside the oracle: colours, alpha, gradients
    precision  the network on CUDA, in bfloat16, compiled, and as CUDA graphs, beside the CPU's float32, which the tests
               hold to goldens
    network    views a second and memory by preset, size and views, with the options below
    head       Giant with its Gaussian head end to end, 32 and 100 views
    most       the largest number of views before memory ends
    refine     refinement steps a second
    fusion     consensus and fusion of `mini`

Random weights: speed does not depend on them. Options of the network are those of `da3_splat.acceleration.accelerate`:
bfloat16 (whose attention torch gives its flash kernel), and by --compile compiled pieces and CUDA graphs, at 1 and 32
views of 504x280. "Plain layout" is bfloat16 without channels-last heads. Without CUDA every part is left out, with a
line. Nothing here has been measured yet: it was written on a machine without a GPU.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
import tyro

from da3_splat import create_model, load_model, render
from da3_splat.acceleration import accelerate
from da3_splat.backbone import create_backbone
from da3_splat.check import recipe
from da3_splat.data.synthetic import make_scenes
from da3_splat.evaluation.measuring import hardware, versions
from da3_splat.heads.lifting import lift, raw_channels
from da3_splat.refinement import RefinementConfig, refine
from da3_splat.types import Views

PARTS = ("renderer", "precision", "network", "head", "most", "refine", "fusion")
# Views a second published or reported for an A100, 32 views of 504x336: what to beat.
REPORTED = {"da3-giant": 37.6, "da3-large": 78.4}
COLOR_OFF, GRADIENT_OFF = 2e-3, 2e-2  # of gsplat against the oracle: largest colour, relative L2 of gradients


@dataclass
class Settings:
    only: str = ""
    """parts to run, separated by commas"""
    minutes: float = 8.0
    """a part does not begin, and a table does not grow, when so much has passed"""
    compile: bool = False
    """also measure compiled pieces and CUDA graphs: the first call of each takes a minute"""
    official: Path | None = None
    """checkout of the official code, to measure beside ours"""
    json: Path | None = None
    """write the same numbers there"""


class Run:
    """The numbers so far, the demands that were missed, and the time that is left."""

    def __init__(self, settings: Settings):
        self.settings, self.numbers, self.missed = settings, {}, []
        self.end = time.perf_counter() + 60 * settings.minutes

    def late(self) -> bool:
        return time.perf_counter() > self.end

    def say(self, name: str, **values: float) -> None:
        self.numbers[name] = values
        print(f"{name:44}" + "  ".join(f"{key} {value:.4g}" for key, value in values.items()), flush=True)


def timed(step: Callable[[], object], repeats: int = 3) -> tuple[float, float]:
    """Best seconds of some calls after one that warms up, and the peak of GPU memory in MB."""
    step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    best = float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        step()
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return best, torch.cuda.max_memory_allocated() / 2**20


def renderer(run: Run) -> None:
    """gsplat against the plain-torch oracle on pixel-aligned Gaussians: a picture and the gradients of its sum."""
    views, truth = make_scenes(1, 2, 42, 70, seed=5, arc=20)
    answers = {}
    for backend in ("gsplat", "reference"):
        raw = torch.zeros(1, 2, 42, 70, raw_channels(1), device="cuda", requires_grad=True)
        gaussians = lift(raw, views.images.cuda(), truth.to("cuda"))
        picture = render(gaussians, truth.cameras.to("cuda"), backend=backend)
        weights = torch.rand(picture.color.shape, generator=torch.Generator().manual_seed(0)).cuda()
        ((picture.color * weights).sum() + picture.alpha.sum()).backward()
        answers[backend] = (picture.color.detach(), picture.alpha.detach(), raw.grad)
    (color, alpha, gradient), (want, want_alpha, want_gradient) = answers["gsplat"], answers["reference"]
    found = {
        "color_off": float((color - want).abs().max()),
        "alpha_off": float((alpha - want_alpha).abs().max()),
        "gradient_relative_l2": float((gradient - want_gradient).norm() / want_gradient.norm()),
    }
    run.say("renderer, gsplat beside the oracle", **found)
    if found["color_off"] > COLOR_OFF or found["alpha_off"] > COLOR_OFF or found["gradient_relative_l2"] > GRADIENT_OFF:
        run.missed.append("gsplat differs from the oracle")


@torch.no_grad()
def precision(run: Run) -> None:
    """Relative L2 of depth with the weights of the goldens' recipe, beside float32 on the CPU."""
    model = recipe.fill(create_backbone("da3-small")).eval()
    images = torch.stack([recipe.image(view, 112, 140) for view in range(3)])[None].permute(0, 1, 4, 2, 3).float() / 255
    exact = model(images, reference_view="first").depth
    model, images = model.cuda(), images.cuda()
    kinds: dict[str, dict] = {"float32": {}, "bf16": {"precision": "bfloat16"}}
    if run.settings.compile:
        kinds |= {"compiled": {"compiled": True}, "graphs": {"graphs": True}}
    answers = {}
    for kind, options in kinds.items():
        accelerate(model, **{"precision": "float32", **options})
        for _ in range(3):  # graphs are warmed up, captured, and played
            answers[kind] = model(images, reference_view="first").depth
        torch._dynamo.reset()  # captured graphs keep their memory
    off = {name: float((depth.cpu() - exact).norm() / exact.norm()) for name, depth in answers.items()}
    run.say("da3-small on CUDA, relative L2 of depth", **off)
    run.missed += [f"{name} is {value:.1e} off" for name, value in off.items() if not value < 2e-2]


@torch.no_grad()
def network(run: Run) -> None:
    """Depth and poses: views a second and peak memory, by the options that are cheap and safe."""
    official = official_network(run.settings.official)
    for preset in ("da3-small", "da3-base", "da3-large", "da3-giant"):
        for height, width in ((280, 504), (336, 504)):
            for views in (1, 8, 32, 100):
                if run.late():
                    return
                images = torch.rand(1, views, 3, height, width, device="cuda")
                model = create_backbone(preset).cuda().eval()
                name = f"{preset} {width}x{height} {views} views"
                if views <= 8:  # beyond, what nobody would choose
                    measure_network(run, f"{name}, float32", accelerate(model, "float32"), images)
                measure_network(run, f"{name}, bf16", accelerate(model), images)
                if run.settings.compile and height == 280 and views in (1, 32):
                    measure_network(run, f"{name}, bf16, compiled", accelerate(model, compiled=True), images)
                    measure_network(run, f"{name}, bf16, graphs", accelerate(model, graphs=True), images)
                    accelerate(model)
                    torch._dynamo.reset()  # captured graphs keep their memory
                if views == 32:
                    for weights in model.head.parameters():
                        weights.data = weights.data.contiguous()
                    measure_network(run, f"{name}, bf16, plain layout", model, images)
                if official is not None and views in (8, 32):
                    theirs = official(preset).cuda().eval()
                    with torch.autocast("cuda", torch.bfloat16):
                        measure_network(run, f"{name}, official", theirs, images)
        found = run.numbers.get(f"{preset} 504x336 32 views, bf16")
        if preset in REPORTED and found and found["views_per_second"] < REPORTED[preset]:
            run.missed.append(f"{preset}: {found['views_per_second']:.1f} views a second < {REPORTED[preset]}")


def measure_network(run: Run, name: str, model, images: torch.Tensor) -> None:
    seconds, peak = timed(lambda: model(images))
    run.say(name, views_per_second=images.shape[1] / seconds, peak_mb=peak)


def official_network(path: Path | None):
    """A maker of the official networks, where there is a checkout."""
    if path is None:
        return None
    sys.path.insert(0, str(path / "src"))
    from depth_anything_3.cfg import create_object, load_config
    from depth_anything_3.registry import MODEL_REGISTRY

    return lambda preset: create_object(load_config(MODEL_REGISTRY[preset]))


@torch.no_grad()
def head(run: Run) -> None:
    """Giant and its Gaussian head, 504x336, end to end without fusion."""
    model = accelerate(create_model("da3-giant", rules="released").cuda().eval())
    for views in (32, 100):
        if run.late():
            return
        images = torch.rand(1, views, 3, 336, 504, device="cuda")
        seconds, peak = timed(lambda: model(images), repeats=1)  # noqa: B023
        run.say(f"da3-giant with Gaussian head, {views} views", seconds=seconds, peak_mb=peak)


@torch.no_grad()
def most(run: Run) -> None:
    """How many views of 504x280 da3-large takes before memory ends, found by doubling."""
    model, views, fits = accelerate(create_backbone("da3-large").cuda().eval()), 128, 0
    while not run.late():
        try:
            images = torch.rand(1, views, 3, 280, 504, device="cuda")
            model(images)
            torch.cuda.synchronize()
        except torch.OutOfMemoryError:
            break
        fits, views = views, 2 * views
    run.say("da3-large 504x280, bf16, most views tried that fit", views=fits)


def refinement(run: Run) -> None:
    """Steps a second on a synthetic capture of 12 views at 504x280."""
    views, truth = make_scenes(1, 12, 280, 504, seed=9, arc=40, supersample=1, device="cuda")
    raw = torch.zeros(1, 12, 280, 504, raw_channels(1), device="cuda")
    gaussians = lift(raw, views.images, truth).select((truth.depth > 0).flatten())
    began = time.perf_counter()
    found = refine(gaussians, views, RefinementConfig(steps=200))
    run.say(
        "refinement, 1.7 M Gaussians", steps_per_second=found.steps / (time.perf_counter() - began), psnr_db=found.psnr
    )


def fusion(run: Run) -> None:
    """`mini` with consensus and fusion on 24 views of 224x168: seconds of each part."""
    views, _ = make_scenes(1, 24, 168, 224, seed=11, arc=60, supersample=1, device="cuda")
    model = load_model("mini", "cuda")
    given = Views(images=views.images)
    model.reconstruct(given)
    report = model.reconstruct(given).report
    run.say("mini, 24 views, fused", **{key: report[key] for key in report if key.endswith("_seconds")})


def main(settings: Settings) -> None:
    steps = dict(zip(PARTS, (renderer, precision, network, head, most, refinement, fusion)))
    parts = settings.only.split(",") if settings.only else list(PARTS)
    if set(parts) - set(PARTS):
        sys.exit(f"benchmark_gpu: no such part: {', '.join(sorted(set(parts) - set(PARTS)))}")
    run, cuda = Run(settings), torch.cuda.is_available()
    print(f"{torch.cuda.get_device_name() if cuda else 'no CUDA device'}, torch {torch.__version__}")
    for part in parts:
        if not cuda:
            print(f"{part}: left out, no CUDA device here")
        elif run.late():
            print(f"{part}: left out, {settings.minutes:g} minutes have passed")
        else:
            steps[part](run)
            torch.cuda.empty_cache()
    if settings.json:
        about = {"date": datetime.now(UTC).isoformat(), **versions(), **hardware("cuda" if cuda else "cpu")}
        settings.json.write_text(json.dumps({"about": about, **run.numbers, "missed": run.missed}, indent=1))
    done = f"{len(run.numbers)} measurements" if cuda else "nothing measured: no CUDA device"
    print(f"{done}; missed: {'; '.join(run.missed) or 'nothing'}")
    sys.exit(1 if run.missed else 0)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
