"""Half precision, compiled pieces in fixed counts of views, and what is done when a GPU's memory is not enough."""

import json

import pytest
import torch
from captures import small_capture
from test_cli import run
from torch._dynamo.utils import counters

from da3_splat import load_model, planning
from da3_splat.acceleration import accelerate
from da3_splat.backbone.compiling import CompiledBlocks, CompiledHead, buckets
from da3_splat.backbone.vision_transformer import VisionTransformer
from da3_splat.data.synthetic import make_scenes
from da3_splat.geometry.frames import cameras_for_encoder
from da3_splat.model import Da3Splat
from da3_splat.planning import Placement, make_plan, predict
from da3_splat.sequence.reconstruct import where_it_fits


def test_buckets_by_hand():
    """Whole pieces, and the rest filled up to the next power of two, no more than the largest."""
    assert list(buckets(11, 4)) == [(slice(0, 4), 4), (slice(4, 8), 4), (slice(8, 11), 4)]
    assert list(buckets(5, 8)) == [(slice(0, 5), 8)] and list(buckets(1, 8)) == [(slice(0, 1), 1)]
    assert list(buckets(7, 6)) == [(slice(0, 6), 6), (slice(6, 7), 1)]


def in_pieces(model, largest: int):
    """The model with its pieces run as they would be compiled, by nothing that compiles."""
    network = model.network
    network.backbone.compiled = CompiledBlocks(largest, lambda function: function)
    network.compiled = CompiledHead(lambda function: function)
    return model


@pytest.mark.parametrize(("batch", "views", "given"), [(1, 5, False), (2, 3, False), (1, 4, True)])
@torch.no_grad()
def test_pieces_say_what_the_whole_says(batch, views, given):
    """Filled-up pieces of views, within and across views, and the heads: the same geometry and rays."""
    images, truth = make_scenes(batch, views, 42, 70, seed=31)
    cameras = cameras_for_encoder(truth.cameras) if given else None
    plain, pieces = load_model("mini").network, in_pieces(load_model("mini"), largest=2).network
    expected, found = (network(images.images, cameras, rays=True) for network in (plain, pieces))
    for name in ("depth", "confidence", "camera_encoding"):
        assert torch.allclose(getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-5), name
    assert torch.allclose(found.ray_map.directions, expected.ray_map.directions, atol=1e-5)


@torch.no_grad()
def test_networks_of_single_views_go_through_pieces_too():
    """No rotary embedding, no attention across views, gated layers."""
    torch.manual_seed(3)
    transformer = VisionTransformer(24, 3, 2, (0, 1, 2), None, swiglu=True).eval()
    images = torch.rand(1, 3, 3, 28, 42)
    expected = transformer(images)[0]
    transformer.compiled = CompiledBlocks(2, lambda function: function)
    for one, other in zip(transformer(images)[0], expected):
        assert torch.allclose(one, other, atol=1e-5)


@torch.no_grad()
def test_half_precision_keeps_features_in_half_the_memory():
    """As under autocast of the released code; the heads answer in float32, close to the exact answer."""
    images = make_scenes(1, 3, 42, 70, seed=32)[0].images
    exact, model = load_model("mini").network(images), accelerate(load_model("mini"), precision="bfloat16")
    features = model.network.encode(images)
    assert {tap.dtype for tap in features.taps} == {torch.bfloat16}
    answer = model.network.decode(features)
    assert answer.depth.dtype == torch.float32
    assert float(((answer.depth - exact.depth) / exact.depth).abs().mean()) < 0.05
    accelerate(model, precision="float32")
    assert torch.equal(model.network(images).depth, exact.depth)


@torch.no_grad()
def test_other_view_counts_compile_nothing_anew():
    """torch's compiler is really asked (its cheapest backend), one graph of a part serves all blocks of a kind, and 6
    views run on what 5 compiled."""
    images = make_scenes(1, 6, 28, 42, seed=33)[0].images
    plain, model = load_model("mini").network, load_model("mini")
    network = accelerate(model, precision="float32", compiled=True, backend="eager").network
    network.backbone.compiled.largest = 4
    torch._dynamo.reset()
    counters.clear()
    network(images[:, :5], reference_view="first")
    made = counters["stats"]["unique_graphs"]
    assert 0 < made <= 12, made  # 8 blocks of which 3 look across would be 24 with none shared
    found = network(images, reference_view="first").depth
    assert counters["stats"]["unique_graphs"] - made <= 5  # pieces of two instead of one
    made = counters["stats"]["unique_graphs"]
    network(images[:, :2], reference_view="first")
    network(images[:, :5], reference_view="first")
    assert counters["stats"]["unique_graphs"] == made
    assert torch.allclose(found, plain(images, reference_view="first").depth, rtol=1e-3)


def test_memory_that_ends_makes_chunks_of_half_as_many_views(tmp_path, monkeypatch, capsys):
    """A GPU that runs out with more than 3 views: a line each time, a scene of all views by chunks that work/ keeps for
    the next time, and no bridge longer than a chunk; where the fewest are too many, one error."""
    capture = small_capture(tmp_path / "photos", views=12)
    photos = tmp_path / "plain"
    photos.mkdir()
    for file in sorted((capture / "images").iterdir()):
        (photos / file.name).write_bytes(file.read_bytes())
    whole = Da3Splat.observe

    def bounded(most: int):
        def observe(self, views, *args, **options):
            if views.images.shape[1] > most:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return whole(self, views, *args, **options)

        return observe

    arguments = ("reconstruct", photos, "--resolution", 56, "--no-fusion", "--output")
    monkeypatch.setattr(planning, "SHORTEST_CHUNK", 3)
    monkeypatch.setattr(Da3Splat, "observe", bounded(3))
    for found in (0, 10):
        code, out, err = run(capsys, *arguments, tmp_path / "scene", "--json")
        for size in (6, 3):
            assert code == 0 and err.count(f"the GPU ran out of memory; going on by chunks of {size} views") == 1, err
        report = json.loads(out)
        assert (report["views"], report["chunks"], report["chunks_found"]) == (12, 10, found)
    monkeypatch.setattr(Da3Splat, "observe", bounded(2))
    code, _, err = run(capsys, *arguments, tmp_path / "other")
    assert code == 2 and "the GPU ran out of memory; use fewer views" in err.splitlines()[-1], err


def test_what_does_not_fit_on_a_gpu_is_done_on_the_cpu():
    """Once there, once here; what does not fit here ends."""
    tried = []

    def step(device: torch.device) -> str:
        tried.append(device.type)
        if device.type == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return "done"

    assert where_it_fits(step, torch.device("cuda")) == "done" and tried == ["cuda", "cpu"]
    with pytest.raises(torch.OutOfMemoryError):
        where_it_fits(lambda device: step(torch.device("cuda")), torch.device("cpu"))


def test_memory_is_planned_for_the_precision_and_the_device():
    """Half of the features in half precision; eight views a time through the heads of a GPU."""
    model = accelerate(load_model("mini"), precision="bfloat16")
    assert Placement.of(model) == Placement(feature_bytes=2) and Placement.of(load_model("mini")) == Placement()
    exact, half, many = (
        predict("da3-small", 100, 280, 504, 0.0, placement=placement)
        for placement in (Placement(), Placement(feature_bytes=2), Placement(heads_at_once=8))
    )
    taps = 4 * 768 * 100 * 720
    assert (exact.parts["consensus_mb"] - half.parts["consensus_mb"]) * 2**20 == pytest.approx(2 * taps)
    assert many.peak_mb > exact.peak_mb


@pytest.mark.long
@pytest.mark.slow
@torch.no_grad()
def test_the_compiler_that_is_used_agrees():
    """inductor, which writes C++ here: pieces of two sizes, both kinds of attention, and the heads."""
    images = make_scenes(1, 3, 28, 42, seed=34)[0].images
    plain, model = load_model("mini").network, load_model("mini")
    found = accelerate(model, precision="float32", compiled=True).network(images, rays=True)
    expected = plain(images, rays=True)
    assert torch.allclose(found.depth, expected.depth, rtol=2e-3)
    assert torch.allclose(found.ray_map.origins, expected.ray_map.origins, atol=1e-3)


def test_joining_chunks_counts_only_where_it_is_done():
    """5,000 views by chunks of 60 need a chunk's memory on a GPU, and that of all views where they are joined, too."""
    here, elsewhere = (Placement(joined_here=here) for here in (True, False))
    arguments = ("mini", 5000, 280, 504, 12_000.0, 700.0)
    with pytest.raises(ValueError, match="more --max-memory"):
        make_plan(*arguments, chunk=60, placement=here)
    assert make_plan(*arguments, chunk=60, placement=elsewhere).chunk == 60


def test_the_command_takes_a_precision(tmp_path, capsys):
    """Half of the bits, nearly the same scene, and chunks of another precision are not taken for its own."""
    capture = small_capture(tmp_path / "capture", views=4)
    found = {}
    for precision in ("auto", "bfloat16"):
        arguments = ("reconstruct", capture, "--resolution", 56, "--output", tmp_path / precision)
        code, out, err = run(capsys, *arguments, "--precision", precision, "--json")
        assert code == 0, err
        found[precision] = json.loads(out)["gaussians"]
    assert found["auto"] != found["bfloat16"] and abs(found["auto"] / found["bfloat16"] - 1) < 0.2
    common = ("reconstruct", capture, "--resolution", 56, "--output", tmp_path / "chunks", "--chunk", 3, "--precision")
    assert run(capsys, *common, "float32")[0] == 0
    code, _, err = run(capsys, *common, "bfloat16")
    assert code == 2 and "holds chunks of other pictures or settings" in err
