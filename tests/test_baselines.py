"""Baselines behind the one interface: a backbone without weights, the official code in a process, splatfacto."""

import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scenes import random_gaussians

from da3_splat.backbone import create_backbone, load_checkpoint
from da3_splat.backbone.plane_sweep import PlaneSweep
from da3_splat.data.synthetic import make_scenes
from da3_splat.evaluation.methods import load_method
from da3_splat.evaluation.splatfacto import Splatfacto
from da3_splat.geometry.alignment import Similarity, transform_gaussians
from da3_splat.io.ply import save_ply
from da3_splat.rendering import render
from da3_splat.types import Cameras


def posed(views=5, height=56, width=70, seed=31, arc=30.0):
    """A world with sky far away, its views and true depth."""
    return make_scenes(1, views, height, width, seed=seed, arc=arc)


# Another backbone -----------------------------------------------------------------------------------------------------


def test_plane_sweep_finds_depth_in_the_units_of_the_cameras():
    views, truth = posed()
    moved = replace(views.cameras, world_to_camera=views.cameras.world_to_camera.clone())
    moved.world_to_camera[..., :3, 3] *= 100  # the same world in centimetres
    found = load_method("plane-sweep").predict(replace(views, cameras=moved))
    known = truth.depth > 0
    off = ((found.geometry.depth / 100 - truth.depth).abs() / truth.depth.clamp_min(1e-6))[known]
    assert float(off.median()) < 0.05 and float((off < 0.25).float().mean()) > 0.7
    assert torch.equal(found.cameras.world_to_camera, moved.world_to_camera)
    with pytest.raises(ValueError, match="plane-sweep: expected two views or more with cameras"):
        load_method("plane-sweep").predict(replace(views, cameras=None))


def test_plane_sweep_by_hand():
    """A textured plane straight ahead at 2, seen by two cameras half a unit apart: 2 everywhere that both see."""
    generator = torch.Generator().manual_seed(0)
    texture = torch.rand(3, 40, 120, generator=generator)
    # 40 pixels a unit at a depth of 2 with focal length 80: half a unit is 20 pixels
    images = torch.stack([texture[..., :70], texture[..., 20:90]])[None]
    pose = torch.eye(4).repeat(1, 2, 1, 1)
    pose[0, 1, 0, 3] = -0.5
    k = torch.tensor([[80.0, 0, 35], [0, 80.0, 20], [0, 0, 1]]).expand(1, 2, 3, 3)
    sweep = PlaneSweep(planes=160)
    geometry = sweep.decode(sweep.encode(images, Cameras(world_to_camera=pose, intrinsics=k, height=40, width=70)))
    assert geometry.depth.shape == geometry.confidence.shape == (1, 2, 40, 70)
    seen = geometry.depth[0, 0, 5:-5, 28:-8]
    assert float(((seen - 2).abs() < 0.05).float().mean()) > 0.98


# The official code ----------------------------------------------------------------------------------------------------

API = """
import numpy as np
from types import SimpleNamespace

print("official code says hello")

class DepthAnything3:
    @classmethod
    def from_pretrained(cls, weights):
        with open(weights + "/loads", "a") as file:
            file.write("x")
        return cls()
    def to(self, device):
        return self
    def eval(self):
        return self
    def inference(self, images, extrinsics=None, intrinsics=None, infer_gs=False, process_res=504):
        count, (height, width) = len(images), images[0].shape[:2]
        assert process_res == max(height, width) and images[0].dtype == np.uint8
        if images[0].max() == 0:
            raise RuntimeError("all is dark")
        depth = np.stack([image[..., 0] / 100 + 1 for image in images])
        pose = np.tile(np.eye(4)[:3], (count, 1, 1))
        pose[:, 0, 3] = np.arange(count)
        lens = np.tile(np.array([[50.0, 0, width / 2], [0, 50.0, height / 2], [0, 0, 1]]), (count, 1, 1))
        gaussians = None
        if infer_gs:
            import torch
            one = torch.ones(1, 2)
            gaussians = SimpleNamespace(means=torch.arange(6.0).reshape(1, 2, 3), scales=0.1 * torch.ones(1, 2, 3),
                rotations=torch.tensor([[[1.0, 0, 0, 0]] * 2]), opacities=0.5 * one,
                harmonics=torch.arange(24.0).reshape(1, 2, 3, 4))
        pose = pose if extrinsics is None else extrinsics[:, :3]
        lens = lens if intrinsics is None else intrinsics
        return SimpleNamespace(depth=depth, conf=depth + 1, extrinsics=pose, intrinsics=lens, gaussians=gaussians)
"""


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A stand-in for the official repository, with its one entry point."""
    package = tmp_path / "checkout" / "src" / "depth_anything_3"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "api.py").write_text(API)
    (tmp_path / "weights").mkdir()
    return tmp_path / "checkout"


def test_official_code_in_a_process_of_its_own(checkout):
    """Pictures go over as bytes, what it finds comes back, its Gaussians in our order; it is started once."""
    weights = checkout.parent / "weights"
    method = load_method(f"official:{checkout}:{weights}")
    views, _ = posed(views=3)
    scene = method.predict(replace(views, cameras=None))
    red = (views.images[0, :, 0] * 255 + 0.5).floor()
    torch.testing.assert_close(scene.geometry.depth[0], red / 100 + 1)
    torch.testing.assert_close(scene.geometry.confidence, scene.geometry.depth + 1)
    assert scene.cameras.world_to_camera[0, :, 0, 3].tolist() == [0.0, 1.0, 2.0]
    assert scene.gaussians.sh.shape == (1, 2, 4, 3) and scene.gaussians.sh[0, 0, 1].tolist() == [1.0, 5.0, 9.0]
    given = method.predict(views)
    assert torch.equal(given.cameras.world_to_camera, views.cameras.world_to_camera)
    assert given.gaussians.means.shape[1] == 3 * 56 * 70  # one a pixel of its depth
    assert (weights / "loads").read_text() == "x" and given.report["official_seconds"] >= 0
    before = method.identity
    (checkout / "src" / "depth_anything_3" / "api.py").write_text(API + "\n")
    assert method.identity != before and before["name"] == "official DA3 weights"


def test_official_code_that_stops_is_quoted_and_started_again(checkout):
    method = load_method(f"official:{checkout}:{checkout.parent / 'weights'}")
    views, _ = posed(views=2)
    with pytest.raises(ValueError, match="stopped: RuntimeError: all is dark"):
        method.predict(replace(views, images=torch.zeros_like(views.images), cameras=None))
    assert method.predict(views).geometry.depth.shape == (1, 2, 56, 70)
    with pytest.raises(ValueError, match="expected a clone of Depth-Anything-3"):
        load_method(f"official:{checkout.parent}:weights")
    with pytest.raises(ValueError, match="expected official:CHECKOUT:WEIGHTS"):
        load_method("official:somewhere")


@pytest.mark.slow
def test_the_real_official_code(tmp_path):
    """$DA3_SPLAT_OFFICIAL, a checkout whose imports work: with fresh weights of the small model in a folder, it answers
    what our network answers with the same weights, up to its bfloat16."""
    place = os.environ.get("DA3_SPLAT_OFFICIAL")
    if place is None:
        pytest.skip("no checkout of the official code here ($DA3_SPLAT_OFFICIAL)")
    make = (
        "import sys; from depth_anything_3.api import DepthAnything3; import torch; torch.manual_seed(0); "
        "DepthAnything3(model_name='da3-small').save_pretrained(sys.argv[1])"
    )
    paths = os.pathsep.join(filter(None, [f"{place}/src", os.environ.get("PYTHONPATH")]))
    subprocess.run(
        [sys.executable, "-c", make, tmp_path / "da3-small"], check=True, env={**os.environ, "PYTHONPATH": paths}
    )
    views, _ = posed(views=3, height=112, width=140)
    theirs = load_method(f"official:{place}:{tmp_path / 'da3-small'}").predict(replace(views, cameras=None))
    network = create_backbone("da3-small").eval()
    load_checkpoint(network, tmp_path / "da3-small" / "model.safetensors")
    with torch.no_grad():
        ours = network((views.images * 255 + 0.5).floor() / 255)
    ratio = theirs.geometry.depth / ours.depth
    assert float((ratio / ratio.median() - 1).abs().median()) < 0.02


# Splatfacto -----------------------------------------------------------------------------------------------------------


def test_splatfacto_says_that_it_needs_cuda():
    with pytest.raises(ValueError, match="splatfacto needs a CUDA device"):
        load_method("splatfacto", "cpu")
    with pytest.raises(ValueError, match="expected splatfacto or splatfacto:STEPS"):
        load_method("splatfacto:many", "cuda")


def test_splatfacto_comes_back_in_the_frame_of_the_cameras(tmp_path, monkeypatch):
    """Commands that stand in for Nerfstudio's, which trains in a turned, moved and scaled frame."""
    gaussians = random_gaussians(count=20, degree=1)
    gaussians = gaussians.select(gaussians.opacities[0] > 0.01)  # fainter ones are not written
    turn = torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])
    shift, scale = torch.tensor([1.0, -2.0, 0.5]), torch.tensor(0.25)
    save_ply(transform_gaussians(Similarity(scale, turn, scale * shift), gaussians), tmp_path / "trained.ply")
    matrix = torch.cat([turn, shift[:, None]], dim=1).tolist()
    train = f"""#!/bin/sh
while [ $# -gt 0 ]; do
  case $1 in --output-dir) out=$2;; --data) data=$2;; --max-num-iterations) steps=$2;; esac
  shift
done
test -f $data/transforms.json && test -f $data/images/0002.png && test $steps = 77 || exit 3
mkdir -p $out/data/splatfacto/now && cd $out/data/splatfacto/now && touch config.yml
echo '{{"transform": {matrix}, "scale": 0.25}}' > dataparser_transforms.json
"""
    export = f"""#!/bin/sh
while [ $# -gt 0 ]; do case $1 in --output-dir) out=$2;; --load-config) test -f $2 || exit 4;; esac; shift; done
mkdir -p $out && cp {tmp_path}/trained.ply $out/splat.ply
"""
    for name, text in (("ns-train", train), ("ns-export", export)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
        assert (tmp_path / name).stat().st_mode & stat.S_IXUSR
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    views, _ = posed(views=3)
    scene = Splatfacto(77).predict(views)
    torch.testing.assert_close(scene.gaussians.means, gaussians.means, atol=1e-4, rtol=0)
    was, now = (render(g, views.cameras).color for g in (gaussians, scene.gaussians))
    np.testing.assert_allclose(was.numpy(), now.numpy(), atol=2e-3)
    with pytest.raises(ValueError, match="ns-train stopped with 3"):
        Splatfacto(78).predict(views)
    with pytest.raises(ValueError, match="finds no cameras"):
        Splatfacto(77).predict(replace(views, cameras=None))
