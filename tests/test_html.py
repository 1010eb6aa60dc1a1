"""The page that holds a scene: its bytes by hand, and the picture it shows in a real browser beside our renderer's."""

import base64
import json
import math
import re
import zlib

import numpy as np
import pytest
import torch
from browser import open_page, picture, wait_for
from captures import small_capture
from PIL import Image
from scenes import random_gaussians
from test_cli import run

from da3_splat import load_model, load_views, render
from da3_splat.export import export_gaussians
from da3_splat.io.html import packed, save_html
from da3_splat.scene_folder import load_scene, save_scene
from da3_splat.types import Cameras


def test_what_is_packed_comes_back():
    gaussians = random_gaussians(count=50)
    data, low, span = packed(gaussians, None)
    count = 50
    centers = np.frombuffer(data, "<f4", 3 * count).reshape(count, 3)
    logs = low + np.frombuffer(data, np.uint8, 3 * count, 12 * count) / 255 * span
    quats = np.frombuffer(data, np.int8, 4 * count, 15 * count).reshape(count, 4) / 127
    rgba = np.frombuffer(data, np.uint8, 4 * count, 19 * count).reshape(count, 4) / 255
    assert len(data) == 23 * count and np.array_equal(centers, gaussians.means[0].numpy())
    assert np.abs(logs.reshape(count, 3) - gaussians.scales[0].log().numpy()).max() <= span / 510 + 1e-6
    unit = torch.nn.functional.normalize(gaussians.quats[0], dim=-1).numpy()
    assert np.abs(quats - unit).max() <= 0.5 / 127 + 1e-6
    assert np.allclose(rgba[:, 3], gaussians.opacities[0].numpy(), atol=0.5 / 255 + 1e-6)


def test_one_file_and_no_network(tmp_path):
    count = save_html(random_gaussians(count=60), tmp_path / "scene.html", title="<a $title>")
    page = (tmp_path / "scene.html").read_text()
    assert "http" not in page and "src=" not in page and "import(" not in page and "fetch(" not in page
    assert "&lt;a $title&gt;: " in page and [path.name for path in tmp_path.iterdir()] == ["scene.html"]
    header = json.loads(re.search(r"const head = (.*);", page)[1])
    data = zlib.decompress(base64.b64decode(re.search(r'const packed = "(.*)";', page)[1]))
    assert header["count"] == count and len(data) == 23 * count


def test_in_a_browser(tmp_path, capsys):
    """`export --html`: the page shows what our renderer does from the same place, and turns when it is dragged."""
    views = load_views(small_capture(tmp_path / "capture", views=3), resolution=84)
    save_scene(load_model("mini").reconstruct(views), views, tmp_path / "scene")
    code, out, err = run(capsys, "export", tmp_path / "scene", "--output", tmp_path / "mail", "--html")
    assert code == 0 and out.strip() == str(tmp_path / "mail" / "scene.html"), err
    header = json.loads(re.search(r"const head = (.*);", (tmp_path / "mail" / "scene.html").read_text())[1])
    width, height = 480, 300
    with open_page(width, height) as page:
        page.goto((tmp_path / "mail" / "scene.html").as_uri())
        wait_for(page, lambda: page.evaluate("document.body.dataset.frames"))
        page.wait_for_timeout(500)
        before = picture(page)
        page.mouse.move(200, 150)
        page.mouse.down()
        page.mouse.move(300, 170, steps=3)
        page.mouse.up()
        wait_for(page, lambda: np.abs(picture(page) - before).mean() > 0.02)

        # Two fingers that spread: what was in the middle fills the picture.
        page.reload()
        wait_for(page, lambda: page.evaluate("document.body.dataset.frames"))
        fingers = page.context.new_cdp_session(page)
        for kind, apart in (("touchStart", 60), ("touchMove", 75), ("touchMove", 90)):
            points = [{"x": 240 - apart, "y": 150, "id": 0}, {"x": 240 + apart, "y": 150, "id": 1}]
            fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        fingers.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        wait_for(page, lambda: np.abs(picture(page) - before).mean() > 0.02)
        page.wait_for_timeout(500)
        after = picture(page)
    crop = Image.fromarray(np.uint8(255 * before[50:250, 80:400])).resize((480, 300))
    larger = np.asarray(crop, np.float32) / 255
    middle = (slice(60, 240), slice(90, 390))
    alike = [np.corrcoef(after[middle].ravel(), shown[middle].ravel())[0, 1] for shown in (larger, before)]
    assert alike[0] > alike[1] + 0.2, alike  # not one: what is near comes nearer
    ours = _rendering(tmp_path / "scene", header, height, width)
    signal = -10 * math.log10(np.square(before[:-30] - ours[:-30]).mean())
    assert before.std() > 0.03 and signal > 30, signal


def _rendering(folder, header, height, width) -> np.ndarray:
    """Our renderer at the page's first look, colours of degree 0 and 1 as they are."""
    scene, _ = load_scene(folder)
    eye, up = (torch.tensor(header[name], dtype=torch.float32) for name in ("eye", "up"))
    forward = torch.nn.functional.normalize(torch.tensor(header["target"]) - eye, dim=0)
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, up), dim=0)
    pose = torch.eye(4)
    pose[:3, :3] = torch.stack([right, torch.linalg.cross(forward, right), forward])
    pose[:3, 3] = -pose[:3, :3] @ eye
    focal = height / 2 / math.tan(header["vertical_view"] / 2)
    lens = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    camera = Cameras(world_to_camera=pose[None, None], intrinsics=lens[None, None], height=height, width=width)
    return render(scene.gaussians, camera).color[0, 0].permute(1, 2, 0).clamp(0, 1).numpy()


def test_only_a_scene_has_formats_with_views(tmp_path):
    with pytest.raises(ValueError, match="glb needs the views"):
        export_gaussians(random_gaussians(), tmp_path, ["html", "glb"])
    assert export_gaussians(random_gaussians(), tmp_path, ["html"]) == [tmp_path / "scene.html"]
