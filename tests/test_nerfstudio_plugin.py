"""The Nerfstudio method end to end on a small synthetic capture: train, zero steps, resume, evaluate, export, view.

Each trap of Nerfstudio 1.1.5 that the plugin steps around has an assertion here.
"""

import subprocess
import sys
import urllib.request
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import plyfile
import pytest
import torch
from PIL import Image

pytest.importorskip("nerfstudio", reason="Nerfstudio is not installed")

from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig  # noqa: E402
from nerfstudio.models.splatfacto import SplatfactoModel  # noqa: E402
from nerfstudio.plugins.registry import discover_methods  # noqa: E402
from nerfstudio.scripts.exporter import ExportGaussianSplat  # noqa: E402
from nerfstudio.utils import writer  # noqa: E402
from nerfstudio_runs import capture_folder, checkpoint_of, config_for, evaluate, train  # noqa: E402

from da3_splat import render  # noqa: E402
from da3_splat.nerfstudio_plugin.cameras import from_nerfstudio  # noqa: E402
from da3_splat.nerfstudio_plugin.config import da3_splat_method  # noqa: E402
from da3_splat.nerfstudio_plugin.model import LazyLpips  # noqa: E402
from da3_splat.refinement import trust_of  # noqa: E402


def test_lpips_without_a_network(monkeypatch):
    """NaN and one line, however often it is asked; its weights are not asked for again."""
    said, asked = [], []

    def offline(**_):
        asked.append(1)
        raise OSError("no network")

    monkeypatch.setattr("torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity", offline)
    monkeypatch.setattr("da3_splat.nerfstudio_plugin.model.CONSOLE.log", said.append)
    metric = LazyLpips(normalize=True)
    scores = [metric(torch.zeros(1, 3, 40, 56), torch.ones(1, 3, 40, 56)) for _ in range(2)]
    assert all(bool(score.isnan()) for score in scores) and len(asked) == 1
    assert said == ["LPIPS is not available: its weights could not be downloaded (no network)"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """A folder with a capture of nine views."""
    return capture_folder(tmp_path_factory)


@pytest.fixture(scope="module")
def trained(workspace):
    config = config_for(workspace, "trained", 60)
    return config, train(config)


def test_method_is_registered():
    methods, descriptions = discover_methods()
    assert "da3-splat" in methods and descriptions["da3-splat"]
    assert methods["da3-splat"].viewer.websocket_host == "127.0.0.1"
    assert methods["da3-splat"].machine.device_type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_entry_point_is_light():
    """Loading it costs ns-train nothing but what it imports anyway: no network, no kernels, no COLMAP."""
    code = (
        "import sys, nerfstudio.configs.method_configs\n"
        "print([m for m in ('numba', 'timm', 'pycolmap', 'da3_splat.model', 'da3_splat.backbone') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip().splitlines()[-1] == "[]", result.stderr


def test_cameras_cross_the_border():
    """A Nerfstudio camera at (0, 0, 4), unrotated, looks down -z: the world origin is 4 ahead of ours."""
    from nerfstudio.cameras.cameras import Cameras as NerfstudioCameras

    pose = torch.eye(4)[None, :3].clone()
    pose[0, 2, 3] = 4
    theirs = NerfstudioCameras(camera_to_worlds=pose, fx=20.0, fy=21.0, cx=5.0, cy=4.0, width=11, height=7)
    ours = from_nerfstudio(theirs)
    assert (ours.world_to_camera[0, 0] @ torch.tensor([0.0, 1.0, 0.0, 1.0])).tolist() == [0.0, -1.0, 4.0, 1.0]
    assert ours.intrinsics[0, 0].tolist() == [[20.0, 0, 5.0], [0, 21.0, 4.0], [0, 0, 1]]
    assert (ours.height, ours.width) == (7, 11)


def test_training_improves_on_the_start(trained, workspace):
    config, trainer = trained
    assert isinstance(trainer.pipeline.model, SplatfactoModel)
    results = evaluate(config, workspace)
    start = config_for(workspace, "start", 0)
    train(start)
    assert results["psnr"] > evaluate(start, workspace)["psnr"] + 1
    # LPIPS weights cannot be downloaded on a machine without a network: real, or not there at all.
    assert "lpips" not in results or np.isfinite(results["lpips"])
    assert (config.get_base_dir() / "dataparser_transforms.json").is_file()


def test_zero_iterations_evaluate_and_export(workspace):
    config = config_for(workspace, "zero", 0)
    trainer = train(config)
    assert evaluate(config, workspace)["psnr"] > 8
    export = ExportGaussianSplat(load_config=config.get_base_dir() / "config.yml", output_dir=workspace / "ply")
    export.main()
    vertex = plyfile.PlyData.read(str(workspace / "ply" / "splat.ply"))["vertex"]
    assert 0 < len(vertex) <= trainer.pipeline.model.num_points
    assert all(np.isfinite(vertex[name]).all() for name in vertex.data.dtype.names)


def test_same_config_same_start(workspace):
    """Nothing is random that need not be: two runs begin with the same Gaussians."""
    first, second = (train(config_for(workspace, f"same{i}", 0)) for i in range(2))
    for name, value in first.pipeline.model.gauss_params.items():
        assert torch.equal(value, second.pipeline.model.gauss_params[name]), name


def test_resume_goes_on(workspace):
    """20 steps, save, load, 20 more: parameters still belong to their optimizers, move, and the loss goes on."""
    config = config_for(workspace, "first", 20)
    before = train(config)
    losses = []
    resumed = config_for(workspace, "second", 20, load_dir=config.get_checkpoint_dir())
    trainer = resumed.setup(local_rank=0, world_size=1)
    writer.EVENT_WRITERS.clear()
    trainer.setup()
    assert trainer._start_step == 20
    start = {name: value.detach().clone() for name, value in trainer.pipeline.model.gauss_params.items()}
    for name, value in before.pipeline.model.gauss_params.items():
        assert torch.equal(value, start[name]), name
    step = trainer.train_iteration
    trainer.train_iteration = lambda index: losses.append(answer := step(index)) or answer
    trainer.train()
    moved = trainer.pipeline.model.gauss_params
    assert all((moved[name] - start[name]).abs().max() > 0 for name in ("means", "scales", "opacities", "features_dc"))
    state = checkpoint_of(resumed)
    assert state["step"] == 39 and state["optimizers"]["means"]["state"][0]["step"] == 40
    assert sum(float(loss) for loss, _, _ in losses[10:]) < sum(float(loss) for loss, _, _ in losses[:10])
    fresh = config_for(workspace, "fresh", 1)
    fresh_loss = float(train(fresh).pipeline.get_train_loss_dict(0)[1]["main_loss"].detach())
    assert float(losses[0][0]) < fresh_loss


def test_resume_with_another_number_of_gaussians(workspace, trained):
    """A checkpoint that was densified has more Gaussians than a new start; it loads and trains all the same."""
    _, trainer = trained
    config = config_for(workspace, "grown", 1)
    grown = train(config)
    state = checkpoint_of(config)
    doubled = {
        key: torch.cat([value, value]) if "gauss_params" in key else value for key, value in state["pipeline"].items()
    }
    for optimizer in state["optimizers"].values():
        for item in optimizer["state"].values():
            item.update({k: torch.cat([v, v]) for k, v in item.items() if k != "step"})
    folder = workspace / "grown_checkpoint"
    folder.mkdir()
    torch.save({**state, "pipeline": doubled}, folder / "step-000000000.ckpt")
    resumed = train(config_for(workspace, "grown2", 3, load_dir=folder))
    assert resumed.pipeline.model.num_points == 2 * grown.pipeline.model.num_points


def test_densification_works_on_the_cpu(workspace):
    """Splatfacto's own strategy gets what it needs from our renderer: Gaussians are split and duplicated."""
    config = config_for(workspace, "dense", 22)
    config.pipeline.model.warmup_length, config.pipeline.model.refine_every = 2, 5
    config.pipeline.model.densify_grad_thresh = 1e-5
    trainer = train(config)
    assert (
        trainer.pipeline.model.num_points
        > 1.1 * checkpoint_of(config_for(workspace, "start", 0))["pipeline"]["_model.gauss_params.means"].shape[0]
    )


def test_camera_optimizer_gets_gradients(workspace):
    config = config_for(workspace, "poses", 3)
    config.pipeline.model.camera_optimizer.mode = "SO3xR3"
    adjustment = train(config).pipeline.model.camera_optimizer.pose_adjustment
    assert adjustment.abs().max() > 0


def test_checkpoint_holds_no_network(trained):
    """Neither the feed-forward network nor a metric's weights are saved with every checkpoint."""
    config, trainer = trained
    keys = set(checkpoint_of(config)["pipeline"])
    assert keys == {f"_model.gauss_params.{name}" for name in trainer.pipeline.model.gauss_params} | {
        "_model.device_indicator_param",
        "_model._extra_state",  # the Gaussians as the network gave them
    }


def test_colmap_dataparser(workspace):
    """Any posed dataparser will do; this one reads the sparse model that COLMAP wrote."""
    from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig

    capture = workspace / "colmap"
    colmap_capture(workspace / "capture", capture)
    config = config_for(workspace, "colmap", 2)
    config.data = capture
    config.pipeline.datamanager.dataparser = ColmapDataParserConfig(
        data=capture, colmap_path=Path("sparse/0"), downscale_factor=1, eval_mode="interval"
    )
    trainer = train(config)
    assert trainer.pipeline.model.num_points > 100


def colmap_capture(source: Path, target: Path) -> None:
    """The capture at `source` as a COLMAP model with its sparse points."""
    import shutil

    from da3_splat import load_views
    from da3_splat.io.colmap import write_colmap

    shutil.copytree(source / "images", target / "images")
    views = load_views(source, resolution=84)
    write_colmap(
        target / "sparse" / "0", views.cameras, list(views.names), views.points.numpy(), views.point_colors.numpy()
    )


def test_viewer_works_while_training(workspace):
    """The live viewer serves its page on loopback and renders through our renderer during a run."""
    config = config_for(workspace, "viewed", 8, vis="viewer")
    config.viewer.websocket_port = None
    config.viewer.websocket_port_default = 7917
    writer.EVENT_WRITERS.clear()
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    try:
        host, port = trainer.viewer_state.viser_server.get_host(), trainer.viewer_state.viser_server.get_port()
        assert host == "127.0.0.1"
        with urllib.request.urlopen(f"http://{host}:{port}", timeout=20) as page:
            assert b"<html" in page.read().lower()
        trainer.train()
        camera = trainer.pipeline.datamanager.train_dataset.cameras[:1]
        outputs = trainer.pipeline.model.eval().get_outputs_for_camera(camera)
        assert outputs["rgb"].shape == (56, 84, 3) and outputs["depth"].shape == outputs["accumulation"].shape == (
            56,
            84,
            1,
        )
        _check_the_panel(trainer.pipeline.model, camera, outputs)
    finally:
        trainer.shutdown()


def _check_the_panel(model, camera, refined) -> None:
    """The viewer's switch shows what the network said before refinement, and its confidence where that is asked for."""
    from nerfstudio.viewer.utils import parse_object
    from nerfstudio.viewer.viewer_elements import ViewerElement

    names = {element.name for _, element in parse_object(model, ViewerElement, "model")}
    assert {"Gaussians", "Confidence"} <= names and "confidence" not in refined
    if model.feed_forward.confidence is None:  # where sparse points lead there is none
        model.feed_forward = replace(model.feed_forward, confidence=torch.rand(model.feed_forward.opacities.shape))
    model.shown.value, model.with_confidence.value = "feed-forward", True
    first = model.get_outputs_for_camera(camera)
    expected = render(model.feed_forward, from_nerfstudio(camera.to(model.device))).color[0, 0].permute(1, 2, 0)
    assert torch.allclose(first["rgb"], expected.clamp(0, 1), atol=1e-5)
    assert not torch.allclose(first["rgb"], refined["rgb"], atol=1e-3)
    confidence = first["confidence"]
    assert confidence.shape == (56, 84, 1) and 0 <= float(confidence.min()) < float(confidence.max()) <= 1.001
    model.train()
    assert "confidence" not in model.get_outputs(camera)
    model.eval()
    state = model.state_dict()
    model.feed_forward = None
    model.load_state_dict(state)
    again = model.get_outputs_for_camera(camera)
    assert torch.equal(first["rgb"], again["rgb"]) and torch.equal(first["confidence"], again["confidence"])
    del state["_extra_state"]
    model.load_state_dict(state)  # a checkpoint of an older version
    assert model.feed_forward is None and "confidence" not in model.get_outputs_for_camera(camera)


def test_stock_dataparser_from_the_command_line_keeps_our_defaults():
    """`ns-train da3-splat ... nerfstudio-data` still loads sparse points and splits by interval."""
    dataparser = da3_splat_method.config.pipeline.datamanager.dataparser
    assert isinstance(dataparser, NerfstudioDataParserConfig)
    assert dataparser.load_3D_points and dataparser.eval_mode == "interval" and dataparser.eval_interval == 8


@pytest.mark.slow
def test_head_method(workspace):
    """da3-splat-head trains the head on captures, goes on from its checkpoint, and shows what it has learned."""
    from da3_splat import load_model
    from da3_splat.nerfstudio_plugin.config import da3_splat_head_method

    recipe = workspace / "recipe.yaml"
    recipe.write_text("data: {source: captures, sizes: [[56, 70]], contexts: 3, workers: 0}\nprecision: 32-true\n")

    def head_config(name: str, steps: int):
        config = deepcopy(da3_splat_head_method.config)
        config.pipeline.recipe, config.pipeline.datamanager.data = recipe, workspace
        config.output_dir, config.experiment_name, config.timestamp = workspace / "runs", "head", name
        config.max_num_iterations, config.vis, config.machine.device_type = steps, "tensorboard", "cpu"
        config.viewer.quit_on_train_completion = True
        config.logging.local_writer.enable = False
        return config

    first = head_config("first", 3)
    trainer = train(first)
    before = checkpoint_of(first)
    assert before["step"] == 2 and before["training"]["sampler"]["epoch"] == 3  # one capture: an epoch is a step
    assert not any(name.startswith("model.network") for name in before["pipeline"])  # no backbone in checkpoints
    view = trainer.pipeline.datamanager.train_dataset.cameras[0:1]
    shown = trainer.pipeline.model.get_outputs_for_camera(view)
    assert shown["rgb"].shape == (56, 70, 3) and shown["rgb"].std() > 0.02
    second = head_config("second", 2)
    second.load_dir = first.get_checkpoint_dir()
    train(second)
    after = checkpoint_of(second)
    assert after["step"] == 4 and after["training"]["step"] == 5
    moved = [name for name, value in after["pipeline"].items() if not torch.equal(value, before["pipeline"][name])]
    assert moved and all("gs_head" in name for name in moved)
    model = load_model(second.get_base_dir() / "model.safetensors")
    weight = after["pipeline"]["model.gs_head.scratch.output_conv2.2.weight"]
    assert torch.equal(model.gs_head.scratch.output_conv2[2].weight, weight.half().float())


def test_export_in_the_frame_of_the_input(trained, capsys):
    """Nerfstudio's frame is another than the capture's; `da3-splat export RUN` gives splats that fit its pictures."""
    from da3_splat import load_ply, load_views, render
    from da3_splat.cli import main
    from da3_splat.metrics import psnr

    config, trainer = trained
    run = config.get_base_dir()
    main(["export", str(run), "--output", str(run / "user"), "--to", "ply,splat"])
    assert (run / "user" / "scene.splat").is_file() and "scene.ply" in capsys.readouterr().out
    views = load_views(config.data, resolution=84)
    with torch.no_grad():
        found = render(load_ply(run / "user" / "scene.ply"), views.cameras).color[0].clamp(0, 1)
        theirs = trainer.pipeline.model.gaussians()
    assert float(psnr(found, views.images[0]).mean()) > 20
    assert not torch.allclose(load_ply(run / "user" / "scene.ply").means, theirs.means, atol=0.05)
    with pytest.raises(SystemExit):
        main(["export", str(run), "--output", str(run / "colmap"), "--to", "colmap"])
    assert "colmap needs the views" in capsys.readouterr().err


def test_refined_poses_and_aligned_evaluation(workspace):
    """Cameras that are off: moved in training, and held-out ones aligned before they are scored."""
    from da3_splat.nerfstudio_plugin.da3_views import Da3ViewsDataParserConfig

    config = config_for(workspace, "poses", 40)
    config.pipeline.refine_poses = "on"
    trainer = train(config)
    pipeline = trainer.pipeline
    moved = pipeline.model.camera_optimizer.pose_adjustment.detach()
    assert pipeline.poses_move and float(moved.abs().max()) > 1e-4
    pipeline.eval()
    with torch.no_grad():
        unaligned = [
            pipeline.model.get_image_metrics_and_images(pipeline.model.get_outputs_for_camera(camera), batch)[0]["psnr"]
            for camera, batch in pipeline.datamanager.fixed_indices_eval_dataloader
        ]
    assert pipeline.get_average_eval_image_metrics()["psnr"] >= sum(unaligned) / len(unaligned) - 1e-3
    assert pipeline.get_eval_image_metrics_and_images(0)[0]["psnr"] > 15
    ours = config_for(workspace, "auto", 0)
    ours.pipeline.datamanager.dataparser = Da3ViewsDataParserConfig(data=config.data)
    assert not type(pipeline)(config_for(workspace, "given", 0).pipeline, "cpu").poses_move
    type(pipeline)._choose_optimizer(ours.pipeline)
    assert ours.pipeline.model.camera_optimizer.mode == "SO3xR3"


def test_depth_regularisation(workspace):
    config = config_for(workspace, "depth", 5)
    config.pipeline.model.depth_weight = 0.5
    model = train(config).pipeline.model
    assert set(model.depth_targets) == set(range(7))
    depth = model.depth_targets[2]
    outputs = {name: torch.rand(56, 84, 3) for name in ("rgb", "background")}
    outputs |= {"depth": 3 * depth[..., None], "accumulation": torch.ones(56, 84, 1)}
    batch = {"image": torch.rand(56, 84, 3), "image_idx": 2}
    model.train()
    assert float(model.get_loss_dict(outputs, batch)["depth_loss"]) < 1e-6  # another unit is no error
    outputs["depth"] = outputs["depth"] * torch.linspace(1, 2, 84)[:, None]
    assert float(model.get_loss_dict(outputs, batch)["depth_loss"]) > 0.01
    assert "depth_loss" not in model.get_loss_dict(outputs, {**batch, "image_idx": 99})


def test_a_bad_picture_counts_less_where_cameras_move(workspace, capsys):
    """One training picture is of something else: its loss is weighed down, and it is named at the end."""
    config = config_for(workspace, "bad", 36)
    config.pipeline.refine_poses = "on"
    path = sorted((workspace / "capture" / "images").iterdir())[3]
    before = path.read_bytes()
    try:
        noise = np.random.default_rng(0).integers(0, 255, (56, 84, 3), dtype=np.uint8)
        Image.fromarray(noise).resize(Image.open(path).size, Image.NEAREST).save(path)
        trainer = train(config)
    finally:
        path.write_bytes(before)
    trust = trust_of(trainer.pipeline.model.view_losses)
    names = [file.name for file in trainer.pipeline.datamanager.train_dataset.image_filenames]
    assert trust[names.index(path.name)] < 0.5 and trust.sum() > len(names) - 1.5
    assert f"{path.name} fits the others badly" in capsys.readouterr().out


def test_bilateral_grid(workspace):
    """Splatfacto's appearance grids learn, one for each training picture; the untouched ones stay the identity."""
    config = config_for(workspace, "grid", 3)
    config.pipeline.model.use_bilateral_grid = True
    trainer = train(config)
    grids = trainer.pipeline.model.bil_grids.grids.detach()
    identity = torch.eye(4)[:3].flatten()[None, :, None, None, None].expand_as(grids)
    changed = [not torch.equal(one, same) for one, same in zip(grids, identity)]
    assert len(changed) == 7 and any(changed)
    assert torch.isfinite(grids).all() and "rgb" in trainer.pipeline.model.eval().get_outputs_for_camera(
        trainer.pipeline.datamanager.train_dataset.cameras[:1]
    )
