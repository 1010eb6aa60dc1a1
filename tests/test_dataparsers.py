"""The Nerfstudio dataparsers: light to import, right cameras, splits, sparse points, sizes that differ."""

import subprocess
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("nerfstudio", reason="Nerfstudio is not installed")

from nerfstudio.plugins.registry_dataparser import DataParserSpecification  # noqa: E402
from PIL import Image  # noqa: E402

from da3_splat.data.layouts import (  # noqa: E402
    scene_hash,
    write_dl3dv_scene,
    write_dl3dv_zip,
    write_megadepth_scene,
)
from da3_splat.data.synthetic import make_scenes  # noqa: E402
from da3_splat.io.transforms_json import opengl_to_world_to_camera  # noqa: E402
from da3_splat.nerfstudio_plugin.dataparsers import (  # noqa: E402
    Dl3dvDataParserConfig,
    MegadepthDataParserConfig,
    dl3dv_dataparser,
    megadepth_dataparser,
)

VIEWS = 9


@pytest.fixture(scope="module")
def views():
    return make_scenes(1, VIEWS, 28, 42, 3, supersample=1)[0]


@pytest.fixture(scope="module")
def landmark(tmp_path_factory):
    root = tmp_path_factory.mktemp("megadepth")
    truth = write_megadepth_scene(root, "0000", 0, VIEWS, 42, 56, seed=1, supersample=1)
    return root / "phoenix" / "S6" / "zl548" / "MegaDepth_v1" / "0000" / "dense0", truth


def original(outputs) -> torch.Tensor:
    """world_to_camera (V,4,4) before the dataparser moved and scaled the world."""
    poses = outputs.transform_poses_to_original_space(outputs.cameras.camera_to_worlds, camera_convention="opengl")
    bottom = torch.tensor([0.0, 0.0, 0.0, 1.0]).expand(len(poses), 1, 4)
    return opengl_to_world_to_camera(torch.cat([poses, bottom], dim=1))


def test_specifications():
    for specification, kind in (
        (dl3dv_dataparser, Dl3dvDataParserConfig),
        (megadepth_dataparser, MegadepthDataParserConfig),
    ):
        assert isinstance(specification, DataParserSpecification) and specification.description
        assert isinstance(specification.config, kind)
        assert (specification.config.eval_mode, specification.config.eval_interval) == ("interval", 8)


def test_importing_is_light():
    """A data manager here breaks every ns-* command (circular import); the rest would slow them all down."""
    code = (
        "import sys, da3_splat.nerfstudio_plugin.dataparsers\n"
        "print([m for m in sys.modules if 'datamanager' in m\n"
        "       or m.startswith(('da3_splat.data', 'da3_splat.model', 'pycolmap', 'h5py', 'numba', 'timm'))])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout.strip().splitlines()[-1] == "[]", result.stderr


@pytest.mark.parametrize("benchmark", [False, True])
def test_dl3dv(tmp_path, views, benchmark):
    """Both layouts: the split, the pictures' own size and K, distortion, and the way back to the file's world."""
    scene = write_dl3dv_scene(
        tmp_path, views, scene_hash(1), distortion=(0.1, 0.02, 0.003, 0.0004), benchmark=benchmark
    )
    parser = Dl3dvDataParserConfig(data=scene).setup()
    train, held_out = parser.get_dataparser_outputs("train"), parser.get_dataparser_outputs("val")
    assert [path.name for path in held_out.image_filenames] == ["frame_00001.png", "frame_00009.png"]
    assert [path.name for path in train.image_filenames] == [f"frame_{i:05d}.png" for i in range(2, 9)]
    assert all(path.is_file() for path in train.image_filenames)
    cameras = train.cameras
    assert cameras.width.unique().tolist() == [42] and cameras.height.unique().tolist() == [28]
    assert torch.allclose(cameras.get_intrinsics_matrices(), views.cameras.intrinsics[0, 1:8], atol=1e-4)
    assert torch.allclose(cameras.distortion_params[0], torch.tensor([0.1, 0.02, 0, 0, 0.003, 0.0004]))
    assert train.cameras.camera_to_worlds[..., 3].abs().max() <= 1 + 1e-5
    from da3_splat.data.dl3dv import Dl3dvScene

    truth = torch.stack([frame.world_to_camera for frame in Dl3dvScene("x", scene).frames()]).float()
    assert torch.allclose(original(train), truth[1:8], atol=1e-4)
    assert torch.allclose(original(held_out), truth[[0, 8]], atol=1e-4)


def test_dl3dv_options(tmp_path, views):
    scene = write_dl3dv_scene(tmp_path, views, scene_hash(1), factors=(4, 8))
    everything = Dl3dvDataParserConfig(data=scene, eval_mode="all", pictures="images_8").setup()
    outputs = everything.get_dataparser_outputs("train")
    assert len(outputs.image_filenames) == VIEWS and outputs.image_filenames[0].parent.name == "images_8"
    assert outputs.cameras.width.unique().tolist() == [21]
    fraction = Dl3dvDataParserConfig(data=scene, eval_mode="fraction").setup()
    assert len(fraction.get_dataparser_outputs("train").image_filenames) == VIEWS  # a tenth of 9 is none
    with pytest.raises(ValueError, match="eval mode fraction leaves no test frames"):
        fraction.get_dataparser_outputs("test")
    plain = Dl3dvDataParserConfig(
        data=scene, orientation_method="none", center_method="none", auto_scale_poses=False
    ).setup()
    outputs = plain.get_dataparser_outputs("train")
    assert outputs.dataparser_scale == 1.0 and torch.equal(outputs.dataparser_transform, torch.eye(4)[:3])
    archive = write_dl3dv_zip(tmp_path, views, scene_hash(2))
    with pytest.raises(ValueError, match="expected the folder of one scene"):
        Dl3dvDataParserConfig(data=archive).setup().get_dataparser_outputs("train")
    with pytest.raises(ValueError, match="split"):
        plain.get_dataparser_outputs("all")


def test_megadepth(landmark):
    """Every camera has its own size and focal length; the sparse points move with the cameras."""
    dense, truth = landmark
    parser = MegadepthDataParserConfig(data=dense).setup()
    train = parser.get_dataparser_outputs("train")
    kept = [truth[index] for index in range(VIEWS) if index % 8]
    assert [path.name for path in train.image_filenames] == [written.frame.name for written in kept]
    assert len(train.cameras.width.unique()) > 1 and len(train.cameras.fx.unique()) > 1
    for index, (path, written) in enumerate(zip(train.image_filenames, kept)):
        with Image.open(path) as picture:
            assert picture.size == (int(train.cameras.width[index]), int(train.cameras.height[index]))
        intrinsics = train.cameras[index].get_intrinsics_matrices()
        assert torch.allclose(intrinsics, written.frame.intrinsics.float(), atol=1e-3)
    assert torch.allclose(original(train), torch.stack([w.frame.world_to_camera for w in kept]).float(), atol=1e-3)
    points, colors = train.metadata["points3D_xyz"], train.metadata["points3D_rgb"]
    assert points.shape == colors.shape == (40 * VIEWS, 3) and colors.dtype == torch.uint8
    # The points of the second photo fall on pixels of their colour, seen from its Nerfstudio camera.
    bottom = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    matrix = opengl_to_world_to_camera(torch.cat([train.cameras.camera_to_worlds[0], bottom]))
    local = points[40:80] @ matrix[:3, :3].T + matrix[:3, 3]
    pixels = local @ train.cameras[0].get_intrinsics_matrices().T
    columns, rows = (pixels[:, :2] / pixels[:, 2:]).long().unbind(-1)
    with Image.open(train.image_filenames[0]) as picture:
        seen = np.asarray(picture, np.float32)[rows, columns]
    assert (local[:, 2] > 0).all() and np.abs(seen - colors[40:80].numpy()).mean() < 25
    bare = MegadepthDataParserConfig(data=dense, load_3D_points=False).setup().get_dataparser_outputs("train")
    assert "points3D_xyz" not in bare.metadata


def test_dataset_reads_the_pictures(landmark):
    """What Nerfstudio's own data set makes of the outputs: pictures of the size that their cameras have."""
    from nerfstudio.data.datasets.base_dataset import InputDataset

    dataset = InputDataset(MegadepthDataParserConfig(data=landmark[0]).setup().get_dataparser_outputs("train"))
    for index in range(len(dataset)):
        height, width = dataset[index]["image"].shape[:2]
        assert (height, width) == (int(dataset.cameras.height[index]), int(dataset.cameras.width[index]))


def test_da3_views_poses_photos_once(tmp_path):
    """Unposed photos become a posed capture beside them; the second run finds it, changed photos make a new one."""
    from captures import small_capture
    from nerfstudio.data.datasets.base_dataset import InputDataset

    from da3_splat.nerfstudio_plugin.da3_views import Da3ViewsDataParserConfig, da3_views_dataparser

    assert isinstance(da3_views_dataparser, DataParserSpecification)
    photos = small_capture(tmp_path / "capture", views=5) / "images"
    config = Da3ViewsDataParserConfig(data=photos, resolution=84, eval_mode="all")
    outputs = config.setup().get_dataparser_outputs("train")
    assert len(outputs.image_filenames) == 5 and len(outputs.metadata["points3D_xyz"]) > 20
    assert InputDataset(outputs)[0]["image"].shape == (56, 84, 3)
    made = list((photos / "da3_views").iterdir())
    assert len(made) == 1 and (made[0] / "transforms.json").is_file()
    stamp = (made[0] / "transforms.json").stat().st_mtime_ns
    assert len(config.setup().get_dataparser_outputs("val").image_filenames) == 5
    assert (made[0] / "transforms.json").stat().st_mtime_ns == stamp
    (photos / "view_0004.png").unlink()
    assert len(config.setup().get_dataparser_outputs("train").image_filenames) == 4
    assert len(list((photos / "da3_views").iterdir())) == 2


def test_all_dataparsers_are_registered():
    from importlib.metadata import entry_points

    names = {entry.name for entry in entry_points(group="nerfstudio.dataparser_configs")}
    assert names >= {"da3-views", "dl3dv", "megadepth"}
