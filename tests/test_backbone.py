"""The network against the official one's numbers, against timm's DINOv2, and its loading rules."""

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from scenes import random_cameras

from da3_splat.backbone import attention, create_backbone, load_checkpoint, vision_transformer
from da3_splat.backbone.checkpoints import our_key, preset_of
from da3_splat.backbone.presets import PRESETS, build_backbone
from da3_splat.backbone.reference_view import move_to_front, restore_order, select_reference_view
from da3_splat.backbone.storage import FeatureFiles
from da3_splat.backbone.vision_transformer import VisionTransformer
from da3_splat.check import recipe
from da3_splat.check.parity import TOLERANCE, read_cases, run_cases
from da3_splat.geometry.frames import cameras_for_encoder
from da3_splat.model import create_model

GOLDENS = Path(__file__).parent / "data" / "goldens"
LIGHT = ("da3-small", "da3-base")
ALIASES = 3  # names beside level 0's under which the released dual head's shared LayerNorm may be stored


def check_parity(folder: Path, configs) -> int:
    cases = [case for case in read_cases(folder) if case.config in configs]
    for case, errors in run_cases(cases):
        assert len(errors) >= 2, case.name
        assert max(errors.values()) <= TOLERANCE, (case.name, errors)
    return len(cases)


def test_parity_small_and_base():
    assert check_parity(GOLDENS, LIGHT) == 7


LARGEST = pytest.param("da3-giant", 1, marks=pytest.mark.long)


@pytest.mark.slow
@pytest.mark.parametrize("config, count", [("da3-large", 1), ("da3metric-large", 1), LARGEST])
def test_parity_larger_ones(config, count):
    assert check_parity(GOLDENS, (config,)) == count


def test_recipe_is_the_published_one():
    """The check value that came with the goldens."""
    values = recipe.weight("model.backbone.pretrained.blocks.0.attn.qkv.weight", (1152, 384)).flatten()[:4]
    assert torch.allclose(values, torch.tensor([-0.0786131, 0.0148330, 0.1243341, -0.0438590]), atol=1e-7)


def test_a_wrong_network_fails_parity():
    """Parity can fail: one weight in a hundred thousand off by a tenth is seen."""
    case = next(case for case in read_cases(GOLDENS) if case.name == "small_S2")
    model = recipe.fill(create_model("da3-small", head="plain"))
    with torch.no_grad():
        model.network.backbone.blocks[5].attn.q_norm.weight[3] *= 1.1
    from da3_splat.check import parity

    assert max(parity._compare(case, model).values()) > TOLERANCE


def test_plain_transformer_equals_timm():
    """With cross-view attention, RoPE and q/k norm off, the backbone is DINOv2 and its features are timm's."""
    theirs = timm.create_model("vit_small_patch14_dinov2", img_size=518, dynamic_img_size=True).eval()
    theirs.norm.eps = 1e-5  # the released DA3 code leaves this one LayerNorm at torch's default
    ours = VisionTransformer(384, 12, 6, taps=(2, 11), alternate_from=None, swiglu=False).eval()
    state = {k: v for k, v in theirs.state_dict().items() if not k.startswith("head")}
    missing, unexpected = ours.load_state_dict(state, strict=False)
    assert not missing and not unexpected
    images = torch.randn(1, 2, 3, 518, 518)  # the grid it was trained at: no resampling of positions is involved
    with torch.no_grad():
        want = theirs.forward_intermediates(
            images[0], indices=[2, 11], norm=True, output_fmt="NLC", intermediates_only=True
        )
        got = ours(images)[0]
    for a, b in zip(got, want):
        assert (a[0] - b).norm() / b.norm() < 1e-5


def test_views_come_back_in_input_order():
    network = create_backbone("mini").eval()
    images = torch.rand(1, 4, 3, 28, 42)
    with torch.no_grad():
        a = network(images, reference_view=2, rays=True)
        b = network(images[:, [2, 0, 3, 1]], reference_view=0, rays=True)
    assert torch.allclose(a.depth[:, [2, 0, 3, 1]], b.depth, rtol=1e-4)
    assert torch.allclose(a.camera_encoding[:, [2, 0, 3, 1]], b.camera_encoding, atol=1e-5)


def test_batch_items_do_not_mix_and_chunks_do_not_matter(monkeypatch):
    from da3_splat.backbone import network as module

    network = create_backbone("mini").eval()
    images = torch.rand(2, 5, 3, 28, 42)
    with torch.no_grad():
        both = network(images)
        monkeypatch.setitem(module.VIEWS_PER_CHUNK, "cpu", 3)
        alone = network(images[1:])
    assert torch.allclose(both.depth[1:], alone.depth, rtol=1e-4)
    assert torch.allclose(both.camera_encoding[1:], alone.camera_encoding, atol=1e-5)


@pytest.mark.parametrize("views", [1, 2, 3])
@pytest.mark.parametrize("strategy", ["saddle_balanced", "saddle_sim_range", "first", "middle", -1])
def test_any_number_of_views_any_strategy(views, strategy):
    network = create_backbone("mini").eval()
    with torch.no_grad():
        geometry = network(torch.rand(1, views, 3, 28, 42), reference_view=strategy)
    assert geometry.depth.shape == (1, views, 28, 42) and bool((geometry.depth > 0).all())
    assert geometry.ray_map is None


def test_given_cameras_matter_and_unknown_ones_are_ignored():
    network = create_backbone("mini").eval()
    images = torch.rand(1, 3, 3, 28, 42)
    cameras = cameras_for_encoder(random_cameras(views=3, height=28, width=42))
    pose = cameras.world_to_camera.clone()
    pose[:, 1] = float("nan")
    with torch.no_grad():
        without, given = network(images, reference_view=0), network(images, cameras)
        some = network(images, replace(cameras, world_to_camera=pose))
        none = network(images, replace(cameras, world_to_camera=torch.full_like(pose, float("nan"))))
    depths = [without.depth, given.depth, some.depth]
    assert all(bool(depth.isfinite().all()) for depth in (*depths, none.depth))
    assert not torch.allclose(depths[0], depths[1], rtol=1e-4) and not torch.allclose(depths[1], depths[2], rtol=1e-4)


def test_pose_from_rays_runs_and_fills_the_ray_map():
    network = create_backbone("mini").eval()
    with torch.no_grad():
        geometry = network(torch.rand(1, 2, 3, 28, 42), pose_from="rays")
    assert geometry.ray_map.directions.shape == (1, 2, 16, 24, 3)
    assert bool(geometry.cameras.world_to_camera.isfinite().all())


def tiny_monocular():
    """A monocular network of the released kind, small enough for a test."""
    from da3_splat.backbone.dpt import MonocularHead
    from da3_splat.backbone.network import DepthAnything3

    return DepthAnything3(
        VisionTransformer(48, 4, 3, (0, 1, 2, 3), None, False), MonocularHead(48, 16, (16,) * 4)
    ).eval()


def test_sky_is_filled_scene_by_scene():
    """Sky takes the 99th percentile of the other depths of its own scene; ten pixels or fewer are left alone."""
    from da3_splat.backbone.network import fill_sky
    from da3_splat.types import Geometry

    depth = torch.arange(2 * 20 * 10, dtype=torch.float32).reshape(2, 1, 20, 10)
    score = torch.zeros_like(depth)
    score[:, :, :2] = 0.3
    score[1, 0, 1, 3:] = 0.0
    score[1, 0, 0, 5:] = 0.0
    filled = fill_sky(Geometry(depth=depth), score)
    want = torch.quantile(depth[0, 0, 2:], 0.99)
    assert torch.allclose(filled.depth[0, 0, :2], want) and torch.equal(filled.depth[0, 0, 2:], depth[0, 0, 2:])
    assert torch.equal(filled.depth[1], depth[1])  # eight pixels of sky are too few to say so
    assert int(filled.sky_mask[0].sum()) == 20


def test_nested_scaling_golden(golden_cases):
    import numpy as np

    from da3_splat.backbone.network import _metric_scale, fill_sky, metres, scale_to_metres
    from da3_splat.types import Cameras, Geometry

    g = {key: torch.from_numpy(value) for key, value in np.load(golden_cases / "geom_sky_metric.npz").items()}
    bottom = torch.tensor([0, 0, 0, 1.0]).expand(1, 2, 1, 4)
    cameras = Cameras(world_to_camera=torch.cat([g["w2c"], bottom], dim=2), intrinsics=g["K"], height=20, width=30)
    geometry = Geometry(depth=g["depth"], confidence=g["conf"], cameras=cameras)
    assert torch.allclose(fill_sky(geometry, g["sky"]).depth, g["mono_depth_out"], rtol=1e-5)
    metric = metres(g["metric"], cameras)
    assert torch.allclose(metric, g["metric_scaled"], rtol=1e-5)
    scale = _metric_scale(g["depth"][0], g["conf"][0], metric[0], g["sky"][0] >= 0.3)
    assert torch.allclose(scale, g["scale"], rtol=1e-5)
    nested = scale_to_metres(geometry, scale[None], g["sky"])
    assert torch.allclose(nested.depth, g["nested_depth"], rtol=1e-5)
    assert torch.allclose(nested.confidence, g["nested_conf"], rtol=1e-5)
    assert torch.allclose(nested.cameras.world_to_camera[..., :3, :], g["nested_extr"], atol=1e-5)


def test_half_precision_is_close():
    network = recipe.fill(create_backbone("da3-small"))
    images = torch.stack([recipe.image(view, 56, 70) for view in range(3)])[None].permute(0, 1, 4, 2, 3) / 255
    with torch.no_grad():
        exact = network(images, reference_view=0)
        with torch.autocast("cpu", torch.bfloat16):
            half = network(images, reference_view=0)
    for a, b in ((half.depth, exact.depth), (half.cameras.world_to_camera, exact.cameras.world_to_camera)):
        assert a.dtype == torch.float32 and (a - b).norm() / b.norm() < 2e-2


def test_features_of_chosen_layers_in_input_order():
    network = create_backbone("mini").eval()
    images = torch.rand(1, 3, 3, 28, 42)
    with torch.no_grad():
        a = network.encode(images, reference_view=2, extra_layers=(1, 6)).extra
        b = network.encode(images[:, [2, 0, 1]], reference_view=0, extra_layers=(1, 6)).extra
    assert a.keys() == {1, 6} and a[6].shape == (1, 3, 6, 192)
    assert torch.allclose(a[6][:, [2, 0, 1]], b[6], atol=1e-4)


def test_errors_of_the_network():
    network = create_backbone("mini")
    with pytest.raises(ValueError, match="multiples of 14"):
        network(torch.rand(1, 1, 3, 30, 42))
    with pytest.raises(ValueError, match="reference_view"):
        network(torch.rand(1, 3, 3, 28, 42), reference_view="best")
    with pytest.raises(ValueError, match="pose_from"):
        network(torch.rand(1, 1, 3, 28, 42), pose_from="colmap")
    with pytest.raises(ValueError, match="expected one of mini"):
        create_backbone("da3-tiny")


def test_reference_view_by_hand():
    """Worked by hand: similarity, length and spread, scaled to [0,1], are (0, 0, 1), (1, 0.2, 0) and (0.09, 1, 0.46),
    so the sums of distances to 0.5 are 1.5, 1.3 and 0.95, and the last view is the most balanced."""
    tokens = torch.tensor([[[1.0, 0, 0, 0], [0.8, 0.8, 0.4, 0], [0, 1.6, 1.2, 0]]])
    assert select_reference_view(tokens, "saddle_balanced").tolist() == [2]
    assert select_reference_view(tokens, "first").tolist() == [0] and select_reference_view(tokens, -1).tolist() == [2]
    x, index = torch.randn(3, 5, 2), torch.tensor([4, 0, 2])
    moved = move_to_front(x, index)
    assert torch.equal(moved[0], x[0, [4, 0, 1, 2, 3]]) and torch.equal(restore_order(moved, index), x)


def test_reference_view_golden(golden_cases):
    import numpy as np

    g = np.load(golden_cases / "geom_refview.npz")
    tokens = torch.from_numpy(g["x"])[:, :, 0]
    for strategy in ("first", "middle", "saddle_balanced", "saddle_sim_range"):
        assert select_reference_view(tokens, strategy).tolist() == g[f"b_{strategy}"].tolist()


# --- checkpoints ------------------------------------------------------------------------------------------------------


def released_state(network, aliases: int) -> dict[str, torch.Tensor]:
    """The state dict as the released file would hold it, unused levels and LayerNorm aliases included."""
    state = {}
    for name, value in network.state_dict().items():
        key = recipe.released_key(name)
        state[key] = value.clone()
        if ".output_conv1_aux.3." in key or (".output_conv2_aux.3." in key and ".2." not in key.split("aux.3")[1]):
            for level in "012":
                state[key.replace("_aux.3.", f"_aux.{level}.")] = torch.randn_like(value)
        if "output_conv2_aux.3.2." in key:
            if aliases == 0:
                del state[key]
            for level in "012"[: 3 if aliases else 1]:
                state[key.replace("_aux.3.", f"_aux.{level}.")] = value.clone()
    return state


@pytest.mark.parametrize("aliases", [0, ALIASES])
def test_released_files_load_strictly(tmp_path, aliases):
    network = recipe.fill(create_backbone("da3-small"))
    state = released_state(network, aliases)
    assert len(state) == (443 if aliases else 437)
    fresh = create_backbone("da3-small")
    load_checkpoint(fresh, state)
    save_file({k: v.half() for k, v in state.items()}, tmp_path / "model.safetensors")
    half = create_backbone("da3-small")
    load_checkpoint(half, tmp_path)  # a folder, as a hub snapshot is one
    for name, value in network.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value), name
        assert torch.allclose(half.state_dict()[name], value, rtol=2e-3, atol=1e-4), name


def test_key_lists_of_all_released_models(golden_cases):
    """Every published key has a home in our networks, or is one that no output depends on; shapes agree."""
    import json

    for preset in (*PRESETS, "da3nested-giant-large"):
        if preset in ("mini", "da3teacher-large"):  # our own; never released
            continue
        released = dict(json.loads((golden_cases.parent / "keys" / f"{preset}.json").read_text()))
        with torch.device("meta"):
            rules = {"rules": "released"} if "giant" in preset else {"head": "plain"}
            ours = {k.removeprefix("network."): v.shape for k, v in create_model(preset, **rules).state_dict().items()}
        found = {our_key(key): tuple(shape) for key, shape in released.items() if our_key(key)}
        assert found.keys() == ours.keys(), preset
        assert all(tuple(ours[key]) == shape for key, shape in found.items()), preset


def test_sharded_files_load(tmp_path):
    import json

    network = create_backbone("mini")
    names = sorted(network.state_dict())
    for number, part in enumerate((names[::2], names[1::2])):
        shard = {name: network.state_dict()[name].contiguous() for name in part}
        save_file(shard, tmp_path / f"part-{number}.safetensors")
    index = {name: f"part-{number % 2}.safetensors" for number, name in enumerate(names)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    fresh = create_backbone("mini")
    load_checkpoint(fresh, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), network.state_dict().values()))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(ValueError, match="outside the folder"):
        load_checkpoint(fresh, tmp_path)


def test_wrong_checkpoints_are_refused(tmp_path):
    network = create_backbone("mini")
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    del state["backbone.norm.weight"]
    with pytest.raises(ValueError, match=r"missing keys: backbone.norm.weight; unexpected keys: extra"):
        load_checkpoint(network, {**state, "extra": torch.zeros(1)})
    with pytest.raises(ValueError, match="missing keys"):
        load_checkpoint(network, create_backbone("da3-small").state_dict() | {})
    wrong_shape = network.state_dict() | {"backbone.norm.weight": torch.zeros(5)}
    with pytest.raises(ValueError, match=r"backbone.norm.weight: expected shape \(192,\), got \(5,\)"):
        load_checkpoint(network, wrong_shape)

    whole = tmp_path / "a.safetensors"
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, whole)
    (tmp_path / "cut.safetensors").write_bytes(whole.read_bytes()[:-1000])
    torch.save({"a": torch.zeros(1)}, tmp_path / "pickle.pt")
    for name in ("cut.safetensors", "pickle.pt"):
        with pytest.raises(ValueError, match=f"{name}: not a readable safetensors file"):
            load_checkpoint(network, tmp_path / name)
    with pytest.raises(ValueError, match="no such checkpoint file"):
        load_checkpoint(network, tmp_path / "missing.safetensors")


def test_hub_ids_download_once_and_say_their_licence(tmp_path, monkeypatch, capsys):
    """The hub's client is asked for the file of the repository at the revision; without a network one line says so."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    network = create_backbone("da3-small")
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, tmp_path / "model.safetensors")
    asked = []

    def download(repository, name, revision=None):
        asked.append((repository, name, revision))
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    for _ in range(2):
        load_checkpoint(create_backbone("da3-small"), "depth-anything/DA3-SMALL", revision="abc")
    assert asked == [("depth-anything/DA3-SMALL", "model.safetensors", "abc")] * 2
    assert capsys.readouterr().err.count("licensed Apache-2.0") == 1

    def offline(*_, **__):
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(ValueError, match="DA3-GIANT: the model hub cannot be reached"):
        load_checkpoint(network, "depth-anything/DA3-GIANT")
    assert "CC BY-NC 4.0" in capsys.readouterr().err


def test_names_resolve():
    assert preset_of("depth-anything/DA3-LARGE-1.1") == "da3-large"
    assert preset_of("depth-anything/DA3NESTED-GIANT-LARGE") == "da3nested-giant-large"
    assert preset_of("depth-anything/DA3MONO-LARGE") == "da3mono-large"
    assert preset_of("someone/else") is None


def test_timm_dinov2_starts_a_training():
    from da3_splat.backbone.checkpoints import load_dinov2

    theirs = timm.create_model("vit_small_patch14_dinov2", img_size=518)
    network = create_backbone("da3-small")
    load_dinov2(network, theirs.state_dict())
    assert torch.equal(network.backbone.blocks[7].attn.qkv.weight, theirs.blocks[7].attn.qkv.weight)
    assert torch.equal(network.backbone.pos_embed, theirs.pos_embed)
    with pytest.raises(ValueError, match="not DINOv2 weights"):
        load_dinov2(network, {"a": torch.zeros(1)})


@pytest.mark.parametrize("alternate_from", [2, None])
def test_streaming_changes_nothing(alternate_from, monkeypatch, tmp_path):
    """Tokens in small pieces, features in files, against one piece with autograd's own path; B=2, S=5, non-square."""
    torch.manual_seed(0)
    network = build_backbone(replace(PRESETS["mini"], alternate_from=alternate_from)).eval()
    images = torch.rand(2, 5, 3, 28, 42)
    whole = network.encode(images)  # gradients are on: nothing is streamed
    monkeypatch.setitem(attention.TOKENS_PER_PIECE, "cpu", 15)
    monkeypatch.setattr(vision_transformer, "VIEWS_PER_PIECE", 2)
    with torch.no_grad():
        streamed = network.encode(images, storage=FeatureFiles(tmp_path))
        depth = network.decode(streamed).depth
    for a, b in zip(whole.taps, streamed.taps):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)
    assert torch.allclose(whole.camera_tokens, streamed.camera_tokens, rtol=1e-4, atol=1e-5)
    assert torch.allclose(network.decode(whole).depth, depth, rtol=1e-4)
    assert not list(tmp_path.iterdir())  # the files went with their names
