"""What a reconstruction will take, before it begins: peak memory and time from views, resolution and preset, and how to
cut it where it does not fit. docs/scaling.md derives the formulas and holds them against measurements.

Memory is counted from what the code holds at its three highest points (attention across all views; consensus; fusion
and colours) above what the process holds already. Time is counted from the work of each part and `Rates`, which
`measure_rates` finds on this machine in some seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.nn.functional import scaled_dot_product_attention

from da3_splat.acceleration import precision_of
from da3_splat.backbone.attention import TOKENS_PER_CHUNK, at_once
from da3_splat.backbone.network import views_per_chunk
from da3_splat.backbone.presets import NESTED, PRESETS, Preset
from da3_splat.backbone.vision_transformer import PATCH
from da3_splat.data.synthetic import make_scenes
from da3_splat.fusion.consensus import ConsensusConfig, reach_consensus
from da3_splat.fusion.fuse import FusionConfig
from da3_splat.fusion.merging import MergeConfig, SurfaceMaps
from da3_splat.fusion.recoloring import recolor
from da3_splat.heads.lifting import lift, raw_channels
from da3_splat.model import Da3Splat

MB = 2**20
# Measured once, on walks through synthetic rooms with `mini` (docs/scaling.md): nothing of the machine is in them.
KEPT, KEPT_OF_FEW = 0.09, 3.4  # of S views' pixels this + that / S stay when 24 neighbours are merged
IN_SIGHT = 0.7  # of all Gaussians, from one view
SPARE_MB = 300  # kernels that are compiled, pools of threads, pieces, what the allocator keeps
SHORTEST_CHUNK = 8
BRIDGE = 14  # views of two chunks that are reconstructed together where a loop may close
WARM_UP = (42, 56)  # height and width of the pictures that kernels are compiled with


@dataclass(frozen=True)
class Rates:
    """Seconds on this machine, of pictures of one size with one model."""

    view: float  # of one view: everything of the network that is linear in views, and lifting
    score: float  # of one query with one key of one head dimension, in attention
    look: float  # of one pair of views in one step of consensus, and its solving
    spot: float  # of one pixel compared with one neighbour in merging
    draw: float  # of one Gaussian in sight, drawn and given back what is missing


@dataclass(frozen=True)
class Prediction:
    """Peak memory in MB of the whole process, and seconds (NaN without rates); `parts` say of what."""

    peak_mb: float
    seconds: float
    parts: dict[str, float]


@dataclass(frozen=True)
class Placement:
    """What memory depends on beside sizes: how many views go through the dense heads together and tokens through a
    block, in how many bytes a number of the features is kept, and whether chunks are joined in the same memory (from a
    GPU, the CPU takes over where they do not fit)."""

    heads_at_once: int = 2
    tokens_at_once: int = 1536
    feature_bytes: int = 4
    joined_here: bool = True

    @staticmethod
    def of(model: Da3Splat) -> Placement:
        device = next(model.parameters()).device
        half = precision_of(model) is not torch.float32
        tokens = at_once(TOKENS_PER_CHUNK, device)
        return Placement(views_per_chunk(device), tokens, 2 if half else 4, device.type != "cuda")


@dataclass(frozen=True)
class Plan:
    """How to run it: in one pass (`chunk` None) or by chunks of so many views that share `overlap`; `features_on_disk`
    where those of one pass do not fit beside the rest. `line` says it to the user."""

    chunk: int | None
    overlap: int
    features_on_disk: bool
    prediction: Prediction
    line: str


def predict(
    preset: str,
    views: int,
    height: int,
    width: int,
    start_mb: float,
    rates: Rates | None = None,
    features_on_disk: bool = False,
    fusion: FusionConfig = FusionConfig(),
    sh_degree: int = 1,
    placement: Placement = Placement(),
) -> Prediction:
    """One pass over `views` pictures, height x width, with what the process holds now (weights included, pictures not),
    in MB. ValueError for a preset without a name."""
    size = _size_of(preset)
    pixels, patches = views * height * width, height * width // PATCH**2
    tokens = views * (patches + 1)
    gaussians = gaussians_kept(views, height, width, fusion)
    pictures, maps = 12 * pixels, 8 * pixels  # float32 colours; depth and confidence
    taps = 0 if features_on_disk else placement.feature_bytes * len(size.taps) * size.feature_dim * views * patches
    # At the last block across views: tokens, queries, keys, values and their mixture; three of four taps are written.
    attending = (
        5 * 4 * size.dim * tokens + 0.75 * taps if size.alternate_from is not None else 2 * 4 * size.dim * tokens
    )
    pairs = _pairs(views, fusion)
    agreeing = taps + maps + _consensus_bytes(pixels, views, fusion)
    gaussian = _gaussian_bytes(sh_degree)
    # The network's own maps and the corrected depth, merging's 18; then Gaussians twice, while they are joined.
    fusing = taps + maps + 4 * pixels + 18 * pixels + 2 * gaussian * gaussians
    drawn = 1 if fusion.recolor_passes else 0
    coloring = (
        taps + maps + 4 * pixels + gaussian * gaussians + drawn * gaussians * (120 + IN_SIGHT * (2 * gaussian + 150))
    )
    stages = {"attention": attending, "consensus": agreeing, "fusion": max(fusing, coloring)}
    chunk = _head_bytes(size, height, width, min(views, placement.heads_at_once))
    widened = 2 * 4 * 4 * size.dim * min(tokens, placement.tokens_at_once)  # what a block makes of some tokens
    peak = start_mb + SPARE_MB + (pictures + chunk + widened + max(stages.values())) / MB
    memory = {f"{name}_mb": value / MB for name, value in stages.items()} | {"pictures_mb": pictures / MB}
    if rates is None:
        return Prediction(peak, float("nan"), memory)
    across = sum(1 for i in range(size.alternate_from or size.depth, size.depth) if i % 2 == 1)
    drawings = fusion.recolor_passes * min(views, fusion.recolor_views)
    steps = len(fusion.consensus.blurs) * fusion.consensus.iterations if fusion.consensus else 0
    merged = min(fusion.merge.neighbours, views - 1) if fusion.merge else 0
    seconds = {
        "network_seconds": views * rates.view + across * size.dim * float(tokens) ** 2 * rates.score,
        "consensus_seconds": steps * pairs * rates.look,
        "merging_seconds": pixels * merged * rates.spot,
        "coloring_seconds": drawings * IN_SIGHT * gaussians * rates.draw,
    }
    return Prediction(peak, sum(seconds.values()), memory | seconds)


def gaussians_kept(views: int, height: int, width: int, fusion: FusionConfig) -> float:
    """How many Gaussians stay of `views` pictures, as they did of synthetic walks."""
    pixels = views * height * width
    share = min(1.0, KEPT + KEPT_OF_FEW / views) if fusion.merge else 1.0
    return min(pixels * share, fusion.max_gaussians or float("inf"))


def make_plan(
    preset: str,
    views: int,
    height: int,
    width: int,
    limit_mb: float,
    start_mb: float,
    rates: Rates | None = None,
    chunk: int | None = None,
    overlap: int | None = None,
    fusion: FusionConfig = FusionConfig(),
    placement: Placement = Placement(),
) -> Plan:
    """One pass where it fits into `limit_mb`; else with features on disk; else by the longest chunks that fit; `chunk`
    asks for chunks of so many views. ValueError, in one line, where not even the shortest do."""

    def of(count: int, on_disk: bool = False) -> Prediction:
        return predict(preset, count, height, width, start_mb, rates, on_disk, fusion, placement=placement)

    if chunk is not None and not 1 <= (1 if overlap is None else overlap) < chunk:
        raise ValueError(f"--chunk, --overlap: expected 1 <= overlap < chunk, got {overlap} and {chunk}")
    whole = of(views)
    if chunk is None and whole.peak_mb <= limit_mb:
        return Plan(None, 0, False, whole, f"one pass over {views} views, {_words(whole)}")
    mapped = of(views, True)
    if chunk is None and mapped.peak_mb <= limit_mb:
        return Plan(None, 0, True, mapped, f"one pass over {views} views with features on disk, {_words(mapped)}")
    size = min(views, chunk or views)
    while True:
        shared = overlap if overlap is not None else shared_by_chunks(size)
        found = _by_chunks(of(size), views, size, shared, height, width, start_mb, fusion, placement)
        if found.peak_mb <= limit_mb:
            line = f"{views} views in chunks of {size} that share {shared}, {_words(found)}"
            return Plan(size, shared, False, found, line)
        if chunk is not None or size <= SHORTEST_CHUNK:
            raise ValueError(
                f"{views} views of {width}x{height} with {preset} need {found.peak_mb / 1024:.1f} GB by chunks of "
                f"{size}, and there are {limit_mb / 1024:.1f}; take a lower --resolution, fewer views, or more "
                "--max-memory"
            )
        size = max(SHORTEST_CHUNK, int(0.8 * size))


def shared_by_chunks(size: int) -> int:
    """Views that neighbouring chunks of `size` views share, unless told otherwise."""
    return min(size - 1, max(3, min(20, size // 4)))


def _by_chunks(
    one: Prediction,
    views: int,
    size: int,
    overlap: int,
    height: int,
    width: int,
    start_mb: float,
    fusion: FusionConfig,
    placement: Placement,
) -> Prediction:
    """The peak is that of a chunk beside all pictures, or of fusion over all views; that of a chunk alone where chunks
    are joined elsewhere. Every chunk takes its time."""
    pixels = views * height * width
    gaussians = gaussians_kept(views, height, width, fusion)
    agreeing = _consensus_bytes(pixels, views, fusion)
    last = start_mb + SPARE_MB + (24 * pixels + max(agreeing, 18 * pixels + 3 * _gaussian_bytes(1) * gaussians)) / MB
    beside = max(one.peak_mb + 12 * (views - size) * height * width / MB, last)
    peak = beside if placement.joined_here else one.peak_mb
    chunks = 1 + max(0, -(-(views - size) // max(1, size - overlap)))
    per_chunk = one.seconds - one.parts.get("coloring_seconds", 0.0)
    agreeing_again = one.parts.get("consensus_seconds", 0.0) * views / size  # of all, once they are in one frame
    bridges = per_chunk * BRIDGE / size * chunks if chunks > 2 else 0.0  # one a chunk at most
    merging = one.parts.get("merging_seconds", 0.0) * views / size
    coloring = one.parts.get("coloring_seconds", 0.0) * gaussians / gaussians_kept(size, height, width, fusion)
    seconds = chunks * per_chunk + bridges + agreeing_again + merging + coloring
    return Prediction(peak, seconds, one.parts | {"chunks": chunks})


def measure_rates(model: Da3Splat, height: int, width: int, seed: int = 0) -> Rates:
    """A few runs of each part on a small synthetic scene of the size asked for: seconds in all with `mini`."""
    with torch.no_grad():
        for step, _ in _parts(model, *WARM_UP, tokens=64, seed=seed).values():
            step()  # compiles kernels and starts threads, which a first run on a machine would be counted for
        parts = _parts(model, height, width, tokens=6144, seed=seed)
        return Rates(**{"score": 0.0} | {name: _seconds(step) / work for name, (step, work) in parts.items()})


def _parts(
    model: Da3Splat, height: int, width: int, tokens: int, seed: int
) -> dict[str, tuple[Callable[[], object], float]]:
    """What is timed for each rate, and how many of its units that is."""
    device = next(model.parameters()).device
    many, true = make_scenes(1, 16, height, width, seed, arc=50, supersample=1)
    many, true = many.to(device), true.to(device)  # fewer views would fit into a cache that real ones do not
    few = torch.arange(6)
    views, truth = many.select(few), true.select(few)
    size, two = _size_of(model.config.preset), views.images[:, :2]
    query = torch.rand(1, size.heads, tokens, size.dim // size.heads, device=device, dtype=precision_of(model))
    config, free = ConsensusConfig(blurs=(1.5,), iterations=1), torch.zeros(16, dtype=torch.bool, device=device)
    plain = lift(views.images.new_zeros(*truth.depth.shape, raw_channels(1)), views.images, truth)
    plain = plain.select(torch.nonzero(truth.depth.flatten() > 0)[:, 0])
    posed = replace(views, cameras=truth.cameras)
    parts: dict[str, tuple[Callable[[], object], float]] = {
        "view": (lambda: _network_and_lifting(model, two), 2),
        "score": (lambda: scaled_dot_product_attention(query, query, query), tokens**2 * size.dim),
        "look": (
            lambda: reach_consensus(true, many.images, free, config),
            16 * 6 * 1.4,  # one step; finding neighbours and judging weigh nearly half as much
        ),
        "spot": (lambda: _compare(truth), 6 * height * width * 5),
        "draw": (lambda: recolor(plain, posed, passes=1), 6 * 0.9 * plain.means.shape[1]),
    }
    if size.alternate_from is None:
        del parts["score"]  # every view by itself
    return parts


def _seconds(step: Callable[[], object]) -> float:
    """The best of three runs; of one where that is long already."""
    best = float("inf")
    for _ in range(3):
        if 2.0 < best < float("inf"):
            break
        began = time.perf_counter()
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return best


def _network_and_lifting(model: Da3Splat, images: torch.Tensor) -> None:
    if model.network.predicts_cameras:
        model(images)
    else:
        model.network.decode(model.network.encode(images))


def _compare(geometry) -> None:
    config = MergeConfig()
    maps = SurfaceMaps.of(geometry, config)
    for view in range(geometry.depth.shape[1]):
        maps.spots(view, config, 0.02)


def held_mb() -> float:
    """What this process holds now, in MB."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 700.0  # what Python, torch and the imports take
    return float(status.read_text().split("VmRSS:")[1].split()[0]) / 1024


def parse_memory(text: str) -> float:
    """MB of `8GB`, `512MB`, `6.5G`. ValueError for anything else."""
    number, unit = text.strip().rstrip("Bb")[:-1], text.strip().rstrip("Bb")[-1:].upper()
    try:
        found = float(number) * {"G": 1024.0, "M": 1.0}[unit]
    except (ValueError, KeyError):
        found = 0.0
    if not 0 < found < float("inf"):
        raise ValueError(f"--max-memory: expected a size such as 8GB or 512MB, got {text!r}")
    return found


def _size_of(preset: str) -> Preset:
    name = NESTED[preset][0] if preset in NESTED else preset
    if name not in PRESETS:
        raise ValueError(f"preset: expected one of {', '.join((*PRESETS, *NESTED))}, got {preset!r}")
    return PRESETS[name]


def _head_bytes(size: Preset, height: int, width: int, views: int) -> float:
    """The dense heads on a few views: maps at eight times the patch grid, several at once, and at full size."""
    patches = height * width // PATCH**2
    return views * 4 * (5 * 64 * patches * size.features + 1.5 * height * width * (size.features + 32))


def _pairs(views: int, fusion: FusionConfig) -> int:
    """Pairs of views that consensus looks at."""
    return views * min(fusion.consensus.neighbours, views - 1) if fusion.consensus else 0


def _consensus_bytes(pixels: int, views: int, fusion: FusionConfig) -> int:
    """Colours, log depth and flags (18 a pixel), log depth on its way (8); blocks of pairs twice, while joined."""
    if fusion.consensus is None:
        return 0
    unknowns = 6 + fusion.consensus.grid[0] * fusion.consensus.grid[1]
    return 26 * pixels + 2 * 8 * (2 * unknowns) ** 2 * _pairs(views, fusion)


def _gaussian_bytes(sh_degree: int) -> int:
    """Of one Gaussian with confidence and source view."""
    return 4 * (3 + 4 + 3 + 1 + 3 * (sh_degree + 1) ** 2 + 1) + 8


def _words(prediction: Prediction) -> str:
    memory = f"about {prediction.peak_mb / 1024:.1f} GB"
    if prediction.seconds != prediction.seconds:
        return memory
    seconds = prediction.seconds
    return f"{memory}, {seconds:.0f} s" if seconds < 120 else f"{memory}, {seconds / 60:.0f} min"
