"""Views of one scene shared out over two gloo processes: the scene is that of one."""

import subprocess
import sys
from pathlib import Path

import torch

from da3_splat import load_model
from da3_splat.data.synthetic import make_scenes
from da3_splat.fusion.consensus import ConsensusConfig
from da3_splat.fusion.fuse import FusionConfig
from da3_splat.ranks import launched, moved, on_gpu
from da3_splat.types import Views

ROOT = Path(__file__).parents[1]


def scene_of(views: int, workers) -> dict[str, torch.Tensor]:
    """What `mini` makes of unposed synthetic views: everything a difference would show in."""
    torch.set_num_threads(1)
    pictures, _ = make_scenes(1, views, 28, 42, seed=31, arc=40)
    brief = FusionConfig(consensus=ConsensusConfig(iterations=1, samples=300))
    scene = load_model("mini").reconstruct(Views(images=pictures.images), fusion=brief, workers=workers)
    gaussians = scene.gaussians
    return {
        "depth": scene.geometry.depth,
        "poses": scene.cameras.world_to_camera,
        **{name: getattr(gaussians, name) for name in ("means", "quats", "scales", "opacities", "sh", "source_view")},
    }


def test_one_process_works_alone():
    with launched() as (workers, writes):
        assert writes and list(workers(lambda item: 2 * item, [1, 2, 3])) == [2, 4, 6]


def test_answers_travel_on_the_cpu():
    """Tensors and records of them, in tuples, too; `meta` stands for a GPU."""
    views = make_scenes(1, 2, 28, 42, seed=31)[0]
    away = (3, views.to("meta"), [torch.ones(2, device="meta")])
    assert on_gpu(away) and not on_gpu((3, views, "text"))
    number, back, (part,) = moved((3, views, [torch.ones(2)]), torch.device("meta"))
    assert number == 3 and back.images.device.type == back.cameras.intrinsics.device.type == part.device.type == "meta"


def test_two_ranks_give_the_scene_of_one(tmp_path, monkeypatch):
    """17 views: two pieces for the heads, an odd number for merging and colours; equal to the last bit."""
    program = tmp_path / "rank.py"
    program.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "import os, torch\nfrom da3_splat.ranks import launched\nfrom test_ranks import scene_of\n"
        "with launched() as (workers, writes):\n"
        "    found = scene_of(17, workers)\n"
        f"    torch.save(found, {str(tmp_path)!r} + f'/rank{{os.environ[\"RANK\"]}}.pt')\n"
        "    assert writes == (os.environ['RANK'] == '0')\n"
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
    result = subprocess.run(launch, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    threads = torch.get_num_threads()
    alone = scene_of(17, map)
    torch.set_num_threads(threads)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        for name, value in alone.items():
            assert torch.equal(found[name], value), f"rank {rank}: {name}"
