"""Public data sets: what was written in their layouts is what comes back; what is broken is named."""

from pathlib import Path

import benchmark_layouts as layouts
import numpy as np
import pytest
import torch

from da3_splat.data.benchmarks import dtu
from da3_splat.data.benchmarks.scene import DepthRules
from da3_splat.data.benchmarks.table import BENCHMARKS
from da3_splat.io.depth_maps import read_depth, read_raw_depth

WORLD = layouts.world()
# format -> (writer, names of the scenes, which views of the world come back, whether with their own cameras)
SETS = {
    "hiroom": (layouts.hiroom, ["a/b/c"], [0, 1, 2], True),
    "7scenes": (layouts.seven_scenes, ["chess"], [0, 1, 2], False),
    "scannetpp": (layouts.scannetpp, ["09c1414f1b"], [0, 1, 2], True),
    "dtu": (layouts.dtu, ["scan9"], [0, 1, 2], True),
    "dtu64": (layouts.dtu, ["scan105"], [0, 1, 2], True),
    "kitti": (layouts.kitti, ["2011_09_26_drive_0002_sync"], [0, 1, 2], False),
    "sintel": (layouts.sintel, ["alley_1"], [0, 1, 2], True),
    "diode-indoors": (layouts.diode, ["indoors/scene_00019/scan_00183"], [0, 1, 2], False),
    "sun-rgbd": (layouts.sun_rgbd, ["kv2/kinect2data"], [1, 2], False),
    "tanks-and-temples": (layouts.tanks_and_temples, ["truck"], [0, 1, 2], True),
}


@pytest.mark.parametrize("name", SETS)
def test_what_was_written_comes_back(name, tmp_path):
    write, names, views, posed = SETS[name]
    depth = write(tmp_path, WORLD)
    scenes = BENCHMARKS[name].scenes(tmp_path)
    assert [scene.name for scene in scenes] == names
    frames = scenes[0].frames()
    assert len(frames) == len(views)
    for index, (view, frame) in enumerate(zip(views, frames)):
        assert (frame.height, frame.width) == WORLD.depth.shape[1:] and frame.lens is None
        assert frame.path.is_file()
        if posed:
            pose = WORLD.world_to_camera[view].copy()
            pose[:3, 3] *= 100 if name.startswith("dtu") else 1
            np.testing.assert_allclose(frame.world_to_camera.numpy(), pose, atol=1e-6)
        if name not in ("7scenes", "diode-indoors"):  # which have one lens for all
            np.testing.assert_allclose(frame.intrinsics.numpy(), WORLD.intrinsics[view], atol=1e-6)
        if depth is None or name == "dtu64":
            assert scenes[0].depth(index) is None and not scenes[0].has_depth(index)
        else:
            np.testing.assert_array_equal(scenes[0].depth(index).numpy(), depth[index].astype(np.float32))
    if "reconstruction" in BENCHMARKS[name].tasks:
        assert scenes[0].surface.is_file()
    assert BENCHMARKS[name].scenes(tmp_path / "nowhere") == []


def test_camera_to_world_files_are_turned(tmp_path):
    layouts.seven_scenes(tmp_path, WORLD)
    frames = BENCHMARKS["7scenes"].scenes(tmp_path)[0].frames()
    np.testing.assert_allclose(frames[2].world_to_camera.numpy(), WORLD.world_to_camera[2], atol=1e-6)
    assert frames[2].path.name == "frame-000022.color.png" and frames[0].intrinsics[0, 2] == 320
    (frames[1].path.parent / "frame-000011.pose.txt").write_text("1 0 0 0\n0 2 0 0\n0 0 1 0\n0 0 0 1\n")
    with pytest.raises(ValueError, match=r"frame-000011.pose.txt: its rotation"):
        BENCHMARKS["7scenes"].scenes(tmp_path)[0].frames()


def test_eth3d_leaves_out_photos_on_their_side(tmp_path):
    """Depth is of the photo as taken: the lens is left alone, and 711 to 714 of one scene are not used."""
    depth = layouts.eth3d(tmp_path, WORLD)
    scenes = {scene.name: scene for scene in BENCHMARKS["eth3d"].scenes(tmp_path)}
    assert set(scenes) == {"office", "delivery_area"}
    frames = scenes["office"].frames()
    assert [frame.lens for frame in frames] == [None] * 3
    np.testing.assert_allclose(frames[1].world_to_camera.numpy(), WORLD.world_to_camera[1], atol=1e-6)
    np.testing.assert_allclose(frames[1].intrinsics.numpy(), WORLD.intrinsics[0], atol=1e-6)
    np.testing.assert_array_equal(scenes["office"].depth(1).numpy(), depth[1])
    with pytest.raises(ValueError, match="delivery_area: no picture"):
        scenes["delivery_area"].frames()
    (tmp_path / "office" / "ground_truth_depth" / "dslr_images" / "DSC_0711.JPG").write_bytes(b"\0" * 40)
    with pytest.raises(ValueError, match="expected 56x70 float32 numbers, got 10"):
        scenes["office"].depth(0)


def test_nyuv2_reads_the_test_split_one_picture_a_scene(tmp_path):
    depth = layouts.nyuv2(tmp_path, WORLD)
    scenes = BENCHMARKS["nyuv2"].scenes(tmp_path)
    assert [scene.name for scene in scenes] == ["nyuv2_0001", "nyuv2_0003"]
    for scene, truth, pixels in zip(scenes, depth, WORLD.pixels[[0, 2]]):
        frame = scene.frames()[0]
        np.testing.assert_array_equal(np.asarray(frame.picture), pixels)
        np.testing.assert_array_equal(scene.depth(0).numpy(), truth)
    assert BENCHMARKS["nyuv2"].scenes(tmp_path / "nowhere") == []
    (tmp_path / "splits.mat").unlink()
    with pytest.raises(ValueError, match="splits.mat: no list testNdxs"):
        BENCHMARKS["nyuv2"].scenes(tmp_path)


def test_kitti_lists_and_selection(tmp_path):
    """The Eigen list picks pictures, whichever split their depth is in; the official selection reads by its names."""
    layouts.kitti(tmp_path / "raw_form", WORLD, split="train")
    assert BENCHMARKS["kitti"].scenes(tmp_path / "raw_form") == []  # nothing is scored on the training split
    line = "2011_09_26/2011_09_26_drive_0002_sync/image_02/data/0000000006.png None 721.5377\n"
    (tmp_path / "raw_form" / "eigen_test_files_with_gt.txt").write_text(line + "\n")
    frames = BENCHMARKS["kitti"].scenes(tmp_path / "raw_form")[0].frames()
    assert [frame.name for frame in frames] == ["2011_09_26_drive_0002_sync/0000000006.png"]
    (tmp_path / "raw_form" / "2011_09_26" / "calib_cam_to_cam.txt").write_text("P_rect_02: 1 2 3\n")
    with pytest.raises(ValueError, match="no P_rect_02 with 12 numbers"):
        BENCHMARKS["kitti"].scenes(tmp_path / "raw_form")[0].frames()
    depth = layouts.kitti_selection(tmp_path / "selection", WORLD)
    scene = BENCHMARKS["kitti"].scenes(tmp_path / "selection")[0]
    np.testing.assert_array_equal(scene.depth(2).numpy(), depth[2].astype(np.float32))
    np.testing.assert_allclose(scene.frames()[2].intrinsics.numpy(), WORLD.intrinsics[2])


def test_diode_indoors_are_part_of_diode(tmp_path):
    layouts.diode(tmp_path, WORLD)
    names = [scene.name for scene in BENCHMARKS["diode"].scenes(tmp_path)]
    assert names == ["indoors/scene_00019/scan_00183", "outdoor/scene_00019/scan_00183"]


def test_dtu_counts_what_the_scanner_saw(tmp_path):
    """Cubes of 10 mm from the corner (0,0,0), of which one is seen; the table is y = 5 and up is -y."""
    from scipy.io import savemat

    seen = np.zeros((3, 3, 3), np.uint8)
    seen[1, 1, 1] = 1
    savemat(tmp_path / "mask.mat", {"ObsMask": seen, "BB": np.array([[0.0, 0, 0], [20, 20, 20]]), "Res": 10.0})
    savemat(tmp_path / "plane.mat", {"P": np.array([[0.0], [-1.0], [0.0], [5.0]])})
    found = np.array([[10.0, 10, 10], [14.9, 5.1, 10], [15.1, 10, 10], [4.9, 10, 10], [-90, 10, 10], [990, 0, 0]])
    true = np.array([[0.0, 4.9, 0], [0, 5.1, 0]])
    kept, above = dtu.counted(tmp_path / "mask.mat", tmp_path / "plane.mat", found, true)
    np.testing.assert_array_equal(kept, found[:2])
    np.testing.assert_array_equal(above, true[:1])
    with pytest.raises(ValueError, match=r"nothing.mat: not readable with its plane.mat"):
        dtu.counted(tmp_path / "nothing.mat", tmp_path / "plane.mat", found, true)


def test_rules_crop_and_range():
    """KITTI's crop of 375x1242 as its users compute it, NYU's of 480x640; depth at the limit counts."""
    garg, nyu = BENCHMARKS["kitti"].depth, BENCHMARKS["nyuv2"].depth
    kept = torch.nonzero(garg.counted(torch.full((375, 1242), 10.0)))
    assert kept.amin(dim=0).tolist() == [153, 44] and kept.amax(dim=0).tolist() == [370, 1196]
    kept = torch.nonzero(nyu.counted(torch.full((480, 640), 10.0)))
    assert kept.amin(dim=0).tolist() == [45, 41] and kept.amax(dim=0).tolist() == [470, 600]
    values = DepthRules(0.5, 10.0, "").counted(torch.tensor([[0.0, 0.5, 0.6, 10.0, 10.1]]))
    assert values.tolist() == [[0.0, 0.0, pytest.approx(0.6), 10.0, 0.0]]


def test_depth_files_that_are_none(tmp_path):
    for name, content in (("a.dpt", b"nothing at all"), ("a.pfm", b"Pf"), ("b.dpt", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}: not a readable depth map"):
            read_depth(tmp_path / name)
    with pytest.raises(ValueError, match="nothing: no such file"):
        read_raw_depth(tmp_path / "nothing", 2, 3)


def test_every_set_names_its_tasks():
    for name, benchmark in BENCHMARKS.items():
        assert benchmark.tasks, name
        assert ("reconstruction" in benchmark.tasks) == (benchmark.reconstruction is not None), name
        assert benchmark.depth is None or "depth" in benchmark.tasks, name
    for module in Path(dtu.__file__).parent.glob("*.py"):
        assert module.read_text().startswith('"""'), module
