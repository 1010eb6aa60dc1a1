"""The viewer: what it draws against oracles, the command, and all of it in a real browser."""

import math
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from browser import open_page, picture, wait_for
from captures import small_capture
from scenes import random_cameras, random_gaussians
from test_cli import run

from da3_splat import load_model, load_views, render
from da3_splat.geometry.projection import project
from da3_splat.geometry.rotations import quaternion_to_matrix
from da3_splat.scene_folder import load_scene, save_scene
from da3_splat.spherical_harmonics import rgb_to_dc
from da3_splat.types import Gaussians, Geometry, Views
from da3_splat.viewer import splats
from da3_splat.viewer.content import content_of, load_content
from da3_splat.viewer.drawing import (
    frustum_size,
    point_on_ray,
    points_by_confidence,
    splat_arrays,
    up_direction,
    vertical_view,
)
from da3_splat.viewer.server import SceneViewer

WIDTH, HEIGHT = 860, 360  # of the page; software rendering takes its time with more
PANEL = 330  # pixels at the right that viser's panel takes

SPOTS = ((100, 250), (300, 200))  # pixels that the ruler is put to


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """The folder of a small scene: 4 views of 56x84."""
    folder = tmp_path_factory.mktemp("made")
    views = load_views(small_capture(folder / "capture", views=4), resolution=84)
    scene = load_model("mini").reconstruct(views)
    save_scene(scene, views, folder / "scene")
    return folder / "scene"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wall(distance: float = 3.0) -> Gaussians:
    """An opaque wall of small flat Gaussians at z = `distance`."""
    x, y = torch.meshgrid(torch.linspace(-1, 1, 101), torch.linspace(-1, 1, 101), indexing="ij")
    means = torch.stack([x, y, torch.full_like(x, distance)], dim=-1).reshape(1, -1, 3)
    count = means.shape[1]
    return Gaussians(
        means=means,
        quats=torch.tensor([1.0, 0, 0, 0]).expand(1, count, 4),
        scales=torch.tensor([0.02, 0.02, 1e-4]).expand(1, count, 3),
        opacities=torch.full((1, count), 0.99),
        sh=rgb_to_dc(torch.tensor([0.9, 0.5, 0.1])).expand(1, count, 1, 3),
    )


def test_splats_are_what_the_renderer_draws():
    """Covariances by hand for a quarter turn about z; colours as our renderer shows them from the same place."""
    gaussians = Gaussians(
        means=torch.tensor([[[0.0, 0.0, 2.0]]]),
        quats=torch.tensor([[[math.cos(math.pi / 4), 0, 0, math.sin(math.pi / 4)]]]) * 3,
        scales=torch.tensor([[[0.1, 0.2, 0.4]]]),
        opacities=torch.tensor([[0.999]]),
        sh=torch.cat([rgb_to_dc(torch.tensor([[[[0.6, 0.4, 0.5]]]])), torch.full((1, 1, 3, 3), 0.2)], dim=2),
    )
    camera = random_cameras(views=1)
    pose = torch.eye(4)
    pose[0, 3] = 0.5  # the camera stands at x = -0.5
    lens = torch.tensor([[40.0, 0, 0.25 * 40 + 20], [0, 40.0, 15], [0, 0, 1]])
    camera = camera.__class__(world_to_camera=pose[None, None], intrinsics=lens[None, None], height=30, width=60)
    arrays = splat_arrays(gaussians, camera.centers[0, 0])
    assert np.allclose(arrays.covariances[0] * arrays.unit**2, np.diag([0.04, 0.01, 0.16]), atol=1e-6)
    assert np.allclose(arrays.centers[0] * arrays.unit, [0, 0, 2]) and arrays.opacities.shape == (1, 1)
    seen = render(gaussians, camera)
    (column, row), _ = (value[0, 0, 0] for value in project(gaussians.means, camera))
    place = int(row), int(column)
    color = seen.color[0, 0, :, place[0], place[1]] / seen.alpha[0, 0, place[0], place[1]]
    assert np.allclose(arrays.colors[0], color.numpy(), atol=1e-3)
    assert np.allclose(splat_arrays(gaussians).colors[0], [0.6, 0.4, 0.5], atol=1e-6)
    many = splat_arrays(random_gaussians(count=200))
    assert np.abs(many.covariances).max() < np.finfo(np.float16).max and np.isfinite(many.covariances).all()


class _Page:
    """Of a viser server and its browsers, what `Splats` uses: who is there, and what each has been sent."""

    def __init__(self):
        self.scene, self.clients, self.sent, self.removed = self, {}, [], []

    def add_gaussian_splats(self, name, **arrays):
        self.sent.append((name, arrays.get("visible", True)))
        return SimpleNamespace(visible=True, remove=lambda: self.removed.append(name))

    def on_client_connect(self, welcome):
        self.welcome = welcome

    def on_client_disconnect(self, forget):
        self.forget = forget

    def get_clients(self):
        return self.clients


def test_every_browser_gets_all_sets_and_those_that_left_are_forgotten(monkeypatch):
    monkeypatch.setattr(splats, "HEAD_START", 0.0)
    server, first, late, gone = _Page(), _Page(), _Page(), _Page()
    for number, client in enumerate((first, late, gone)):
        client.client_id = number
    shown, arrays = splats.Splats(server), splat_arrays(random_gaussians(count=3))
    assert [name for name, _ in server.sent] == ["/unseen"]
    server.clients = {0: first}
    server.welcome(first)
    shown.show("/a", arrays)
    shown.show("/b", arrays)
    shown.visible = False
    server.clients[1] = late
    server.welcome(late)
    server.welcome(gone)  # left before its turn
    assert first.sent == [("/a", True), ("/b", True)] and late.sent == [("/a", False), ("/b", False)]
    assert not gone.sent and set(shown.handles) == {0, 1} and not shown.handles[0]["/a"].visible
    shown.remove("/a")
    server.forget(first)
    assert first.removed == late.removed == ["/a"] and set(shown.handles) == {1} and set(shown.sets) == {"/b"}


def test_a_click_finds_the_wall():
    origin, direction = np.array([0.1, -0.2, 0.5]), np.array([0.2, 0.1, 1.0])
    found = point_on_ray(wall(), origin, direction)
    assert np.allclose(found, origin + 2.5 * direction, atol=1e-2)  # half a Gaussian
    assert point_on_ray(wall(), origin, -direction) is None


def test_cameras_as_the_browser_gets_them():
    cameras = random_cameras(views=3, height=36, width=50)
    lens = cameras.intrinsics.clone()
    lens[..., 1, 2] = 18.0
    cameras = cameras.__class__(
        world_to_camera=cameras.world_to_camera, intrinsics=lens, height=cameras.height, width=cameras.width
    )
    half = vertical_view(cameras, 1) / 2
    top = cameras.camera_to_world[0, 1] @ torch.tensor([0.0, -math.sin(half), math.cos(half), 1.0])
    assert project(top[None, :3], cameras)[0][0, 1, 0, 1] == pytest.approx(0, abs=1e-3)
    up = torch.from_numpy(up_direction(cameras)).float()
    above, _ = project((cameras.camera_to_world[0, 0] @ torch.tensor([0.0, 0, 3, 1]))[None, :3] + 0.1 * up, cameras)
    assert above[0, 0, 0, 1] < 18.0
    assert 0 < frustum_size(cameras, 4.0) <= 0.4 and frustum_size(cameras.select([0]), 4.0) == pytest.approx(0.4)


def test_points_come_in_the_order_of_confidence():
    cameras = random_cameras(views=1, height=5, width=7)
    confidence = torch.arange(35.0).reshape(1, 1, 5, 7)
    depth = torch.full((1, 1, 5, 7), 2.0)
    depth[0, 0, 4, 6] = 0  # the most confident pixel has no depth
    images = confidence[:, :, None].expand(1, 1, 3, 5, 7) / 35
    views = Views(images=images, cameras=cameras)
    points, colors = points_by_confidence(Geometry(depth=depth, confidence=confidence, cameras=cameras), views, 100)
    assert len(points) == 34 and np.allclose(colors[:, 0] * 35, np.arange(33, -1, -1), atol=1e-4)


def test_what_can_be_looked_at(made, tmp_path):
    content = load_content(made)
    assert content.geometry is not None and content.views.images.shape[1] == 4 and content.unit == "units"
    assert load_content(made / "scene.ply").views is None
    capture = load_content(made.parent / "capture")
    assert capture.gaussians is None and capture.views.points is not None
    scene, views = load_scene(made)
    assert scene.report["poses"] == "given"
    scene.report["scale_source"] = "metric model"
    assert content_of(scene, views).unit == "m"
    for source, message in (
        (tmp_path / "none", "no such file or folder"),
        (made / "images", "have no cameras yet"),
        (made / "points.ply", "not a Gaussian PLY"),
    ):
        with pytest.raises(ValueError, match=message):
            load_content(source)


def test_errors_of_the_command(made, tmp_path, capsys):
    code, out, err = run(capsys, "view", tmp_path / "none")
    assert code == 2 and "none: no such file or folder" in err and len(err.strip().splitlines()) == 1 and not out
    code, _, err = run(capsys, "view", made, "--host", "203.0.113.7")
    assert code == 2 and "--host 203.0.113.7: cannot listen there" in err
    (made.parent / "broken").mkdir()
    for name in ("scene.ply", "depth.npz", "transforms.json"):
        (made.parent / "broken" / name).write_bytes((made / name).read_bytes()[:50])
    code, _, err = run(capsys, "view", made.parent / "broken")
    assert code == 2 and "broken" in err and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("host, word", [("127.0.0.1", "only from this machine"), ("0.0.0.0", "open to every machine")])
def test_the_command_serves_until_interrupted(made, host, word):
    command = [sys.executable, "-m", "da3_splat.cli", "view", str(made / "scene.ply"), "--host", host]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [*command, "--port", str(free_port())],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in the background
    ) as served:
        try:
            line = served.stdout.readline()
            assert line.startswith("http://127.0.0.1:") and word in line
            with urllib.request.urlopen(line.split()[0]) as answer:
                assert answer.status == 200
            served.send_signal(signal.SIGINT)
            assert served.wait(timeout=60) == 0
        finally:
            served.kill()


def test_a_scene_fills_while_it_is_made(made, tmp_path, capsys, monkeypatch):
    """`reconstruct --view`: every view's Gaussians are shown before those of the scene, and refinement goes on."""
    seen = []
    for name in ("show_views", "show_chunk", "show_gaussians", "show"):
        method = getattr(SceneViewer, name)
        monkeypatch.setattr(
            SceneViewer, name, lambda self, *given, n=name, m=method: (seen.append((n, given)), m(self, *given))
        )
    monkeypatch.setattr(SceneViewer, "wait", lambda self: self.server.stop())
    monkeypatch.setattr("da3_splat.commands.refining.SECONDS_BETWEEN_WRITES", 0.0)
    capture = made.parent / "capture"
    code, out, err = run(
        capsys, "reconstruct", capture, "--output", tmp_path, "--resolution", 84, "--refine", 8, "--view", "--json"
    )
    assert code == 0 and "http://127.0.0.1" in err and out.startswith("{"), err
    names = [name for name, _ in seen]
    assert names[0] == "show_views" and names[1 : names.index("show_gaussians")].count("show_chunk") >= 4
    assert names.count("show_gaussians") >= 2 and "show" in names
    assert {given[0] for name, given in seen if name == "show_chunk"} == {0, 1, 2, 3}


@pytest.mark.slow
@pytest.mark.long  # without a GPU a frame takes seconds where other tests run beside it, and at times no click arrives
def test_in_a_browser(made):
    """Splats appear; switches and sliders change what is shown; a click on a camera leads there, to what our renderer
    shows from the same place; the ruler measures."""
    viewer = SceneViewer(port=free_port())
    content = load_content(made)
    with open_page(WIDTH, HEIGHT) as page:
        viewer.show(content)
        page.goto(viewer.address)
        client = wait_for(page, lambda: next(iter(viewer.server.get_clients().values()), None))
        area = (slice(0, HEIGHT), slice(0, WIDTH - PANEL))

        def shown() -> bool:
            return picture(page)[area].std() > 0.15

        wait_for(page, shown)
        page.get_by_role("alert").get_by_role("button").click()  # the remark that there is no GPU
        page.wait_for_timeout(2000)
        before = picture(page)[area]

        # The slider of the point cloud, then the cloud instead of the Gaussians.
        points = len(viewer.points.points)
        page.get_by_role("slider").first.focus()
        for _ in range(10):
            page.keyboard.press("ArrowLeft")
        wait_for(page, lambda: len(viewer.points.points) < 0.85 * points)
        page.get_by_role("checkbox", name="Gaussians").click()
        wait_for(page, lambda: not viewer.splats.visible)
        page.wait_for_timeout(1000)
        assert np.abs(picture(page)[area] - before).mean() > 0.05
        page.get_by_role("checkbox", name="Gaussians").click()

        # A click on the photo of a camera: that which is most to the left, where the panel covers nothing.
        places = content.views.cameras.centers[0].numpy()

        def arrived() -> bool:
            return np.abs(places - client.camera.position).max(axis=1).min() < 1e-3

        def clicked() -> bool:
            """A slow machine may not have drawn what is under the pointer when the click comes: then once more."""
            spots = [_spot(viewer, client.camera, view) for view in range(len(places))]
            over = page.evaluate("(all) => all.map(([x, y]) => document.elementFromPoint(x, y)?.tagName)", spots)
            assert "CANVAS" in over, f"something lies over all cameras at {spots}: {over}"
            x, y = min(spot for spot, element in zip(spots, over) if element == "CANVAS")
            page.mouse.move(x - 40, y - 40)
            page.wait_for_timeout(500)
            page.mouse.move(x, y)
            page.wait_for_timeout(1500)  # the page asks under the pointer what can be clicked
            page.mouse.click(x, y)
            for _ in range(50):
                page.wait_for_timeout(200)
                if arrived():
                    return True
            return False

        wait_for(page, clicked, seconds=1.0)  # five clicks
        view = int(np.abs(places - client.camera.position).max(axis=1).argmin())
        assert not viewer.frustums[view].visible
        page.get_by_role("checkbox", name="Cameras").click()  # the photos of the others stand in the picture, too
        page.wait_for_timeout(3000)
        after = picture(page)[area]
        ours = _as_the_browser(content, view)[area]
        alike = np.corrcoef(after.ravel(), ours.ravel())[0, 1]
        other = _as_the_browser(content, (view + 2) % len(places))[area]
        assert alike > 0.75 and alike > np.corrcoef(after.ravel(), other.ravel())[0, 1] + 0.05
        assert np.abs(after - before).mean() > 0.03
        values = page.evaluate("[...document.querySelectorAll('input')].map((input) => input.value)")
        assert f"{view}: view_{view:04d}.png" in values
        assert "PSNR of this view" in page.inner_text("body")

        # The ruler, between two places whose distance our depth tells.
        page.get_by_role("checkbox", name="Measure by clicking").click()
        for spot, answer in zip(SPOTS, ("click on the first point", "click on the second point")):
            wait_for(page, lambda answer=answer: answer in page.inner_text("body"))
            page.mouse.move(*spot)
            page.wait_for_timeout(500)
            page.mouse.click(*spot)
        result = wait_for(page, lambda: next(iter(page.get_by_text(" units").all_inner_texts()), None))
        assert float(result.split()[0]) == pytest.approx(_distance(content, view), rel=0.1)

        # The slider of the point cloud while it is alone in the picture.
        page.get_by_role("checkbox", name="Gaussians").click()
        page.get_by_role("checkbox", name="Point cloud").click()
        wait_for(page, lambda: viewer.points.visible and not viewer.splats.visible)
        page.wait_for_timeout(2000)
        many = _covered(picture(page)[area])
        page.get_by_role("slider").first.focus()
        page.keyboard.press("Home")  # the most confident per cent
        wait_for(page, lambda: len(viewer.points.points) < 0.03 * points)
        page.wait_for_timeout(2000)
        assert 0 < _covered(picture(page)[area]) < 0.5 * many and not viewer.splats.visible

        # The flight moves the browser until its button is pressed again.
        stood = np.array(client.camera.position)
        page.get_by_role("button", name="Fly / stop").click()
        wait_for(page, lambda: np.abs(client.camera.position - stood).max() > 1e-3)
        page.get_by_role("button", name="Fly / stop").click()
        page.wait_for_timeout(1500)
        stood = np.array(client.camera.position)
        page.wait_for_timeout(500)
        assert np.array_equal(client.camera.position, stood)
    viewer.server.stop()


def _covered(shown: np.ndarray) -> float:
    """The share of a picture that is not the white ground."""
    return float((shown.min(axis=-1) < 0.9).mean())


def _spot(viewer, camera, view) -> tuple[float, float]:
    """Where on the page the middle of a frustum's photo is."""
    turn = quaternion_to_matrix(torch.from_numpy(np.array(camera.wxyz))).numpy()
    frustum = viewer.frustums[view]
    forward = viewer.content.views.cameras.camera_to_world[0, view, :3, 2].numpy()
    x, y, z = turn.T @ (frustum.position + frustum.scale * forward - np.array(camera.position))
    focal = HEIGHT / 2 / math.tan(camera.fov / 2)
    return WIDTH / 2 + focal * x / z, HEIGHT / 2 + focal * y / z


def _browser_camera(content, view):
    """The browser's camera when it stands at a view: same place and vertical field of view, the window's shape."""
    cameras = content.views.cameras.select([view])
    lens = torch.eye(3)
    lens[0, 0] = lens[1, 1] = HEIGHT / 2 / math.tan(vertical_view(content.views.cameras, view) / 2)
    lens[0, 2], lens[1, 2] = WIDTH / 2, HEIGHT / 2
    pose = cameras.world_to_camera
    return cameras.__class__(world_to_camera=pose, intrinsics=lens[None, None], height=HEIGHT, width=WIDTH)


def _as_the_browser(content, view) -> np.ndarray:
    camera = _browser_camera(content, view)
    seen = render(content.gaussians, camera, background=torch.ones(3))
    return seen.color[0, 0].permute(1, 2, 0).clamp(0, 1).numpy()


def _distance(content, view) -> float:
    """Between the two places of the scene behind the pixels of SPOTS."""
    camera = _browser_camera(content, view)
    points = Geometry(depth=render(content.gaussians, camera).depth, cameras=camera).points()[0, 0]
    return float((points[SPOTS[0][::-1]] - points[SPOTS[1][::-1]]).norm())
