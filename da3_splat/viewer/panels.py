"""What is asked of a scene beside the page: compare at a camera, fly, measure."""

from __future__ import annotations

import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import viser

from da3_splat.export import FRAMES, FRAMES_PER_SECOND, write_flight
from da3_splat.geometry.paths import fly_through
from da3_splat.io.images import color_of_depth
from da3_splat.metrics import psnr
from da3_splat.rendering import render
from da3_splat.types import Cameras, Gaussians, Views
from da3_splat.viewer.drawing import picture_of, point_on_ray, pose_of, vertical_view

if TYPE_CHECKING:
    from da3_splat.viewer.server import SceneViewer


class CameraPanel:
    """Choose a camera, by name or by a click on it: the browser goes there, and its photo stands beside our rendering
    of the same view, with depth below and PSNR."""

    def __init__(self, viewer: SceneViewer, views: Views):
        self.viewer, self.content, self.views = viewer, viewer.content, views
        count = views.images.shape[1]
        self.names = [f"{view}: {name}" for view, name in enumerate(views.names or ["view"] * count)]
        gui = viewer.server.gui
        with gui.add_folder("Camera"):
            self.choice = gui.add_dropdown("View", self.names)
            self.button = gui.add_button("Go there")
            self.score = gui.add_markdown("")
            pictures, depth = self._comparison(0)
            self.compared = gui.add_image(pictures, label="Photo | rendering")
            self.depth = None if depth is None else gui.add_image(depth, label="Depth: network | rendering")
        self.choice.on_update(lambda event: self._compare(self._view()))
        self.button.on_click(lambda event: self._go(event.client, self._view()))
        for view, frustum in enumerate(viewer.frustums):
            frustum.on_click(partial(self._clicked, view))

    def _view(self) -> int:
        return self.names.index(self.choice.value)

    def _clicked(self, view: int, event: viser.SceneNodePointerEvent) -> None:
        self.choice.value = self.names[view]  # type: ignore[misc]  # viser's setter stands apart from its property
        self._go(event.client, view)

    def _go(self, client: viser.ClientHandle | None, view: int) -> None:
        # A frustum that one stands in would hide the view behind its photo.
        for index, frustum in enumerate(self.viewer.frustums):
            frustum.visible = index != view
        place(client, self.views.known_cameras, view)

    def _compare(self, view: int) -> None:
        self.compared.image, depth = self._comparison(view)
        if self.depth is not None and depth is not None:
            self.depth.image = depth

    @torch.no_grad()
    def _comparison(self, view: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Photo and rendering side by side (the photo alone where there are no Gaussians), and, where the network's
        depth is known, that and the rendered one, in the same colours. Says the PSNR."""
        given, gaussians, geometry = self.views.images[:, view], self.content.gaussians, self.content.geometry
        if gaussians is None:
            return picture_of(given[0]), None
        seen = render(gaussians, self.views.known_cameras.select([view]))
        rendered = seen.color[:, 0].clamp(0, 1)
        self.score.content = f"PSNR of this view: **{float(psnr(rendered, given)[0]):.1f} dB**"
        pictures = picture_of(torch.cat([given[0], rendered[0]], dim=2))
        if geometry is None:
            return pictures, None
        shown = torch.where(seen.alpha[0, 0] > 0.5, seen.depth[0, 0], torch.zeros(()))
        depth = torch.cat([geometry.depth[0, view], shown], dim=1)
        return pictures, (color_of_depth(depth.numpy()) * 255).astype(np.uint8)


class FlightPanel:
    """Fly past all cameras in the browser, or have the same flight rendered by our backend as a video."""

    def __init__(self, viewer: SceneViewer, cameras: Cameras, gaussians: Gaussians):
        self.cameras, self.gaussians = cameras, gaussians
        self.flying, self.rendering = threading.Event(), threading.Lock()
        gui = viewer.server.gui
        with gui.add_folder("Flight"):
            self.seconds = gui.add_slider("Seconds", 2, 30, 1, round(FRAMES / FRAMES_PER_SECOND))
            self.fly = gui.add_button("Fly / stop")
            self.save = gui.add_button("Save video")
            self.state = gui.add_markdown("")
        self.fly.on_click(lambda event: self._fly(event.client))
        self.save.on_click(lambda event: self._save(event.client))

    def _fly(self, client: viser.ClientHandle | None) -> None:
        if self.flying.is_set():
            self.flying.clear()
            return
        self.flying.set()
        seconds = self.seconds.value
        path, began = fly_through(self.cameras, seconds * FRAMES_PER_SECOND), time.monotonic()
        while self.flying.is_set() and (share := (time.monotonic() - began) / seconds) < 1:
            place(client, path, int(share * path.world_to_camera.shape[1]))
            time.sleep(1 / FRAMES_PER_SECOND)
        self.flying.clear()

    def _save(self, client: viser.ClientHandle | None) -> None:
        if client is None or not self.rendering.acquire(blocking=False):
            return  # nobody to send it to, or one at a time
        try:
            count = self.seconds.value * FRAMES_PER_SECOND
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "flight.mp4"
                write_flight(self.gaussians, self.cameras, path, self._progress, count)
                client.send_file_download("flight.mp4", path.read_bytes())
            self.state.content = "flight.mp4 is offered for download"
        finally:
            self.rendering.release()

    def _progress(self, frames):
        for index, frame in enumerate(frames):
            if index % 10 == 0:
                self.state.content = f"rendering: {index} of {len(frames)} frames"
            yield frame


class RulerPanel:
    """The distance between two points that are clicked on, in units of the scene, or metres where those are known."""

    def __init__(self, viewer: SceneViewer, gaussians: Gaussians):
        self.server, self.content, self.gaussians = viewer.server, viewer.content, gaussians
        self.ends: list[np.ndarray] = []
        with self.server.gui.add_folder("Ruler"):
            self.switch = self.server.gui.add_checkbox("Measure by clicking", False)
            self.result = self.server.gui.add_markdown("")
        self.switch.on_update(lambda _: self._switched())

    def _switched(self) -> None:
        if self.switch.value:
            self.server.scene.on_click()(self._clicked)
            self.result.content = "click on the first point"
        else:
            self.server.scene.remove_click_callback("all")
            self._clear()

    def _clear(self) -> None:
        self.ends = []
        self.result.content = ""
        for name in ("/ruler/line", "/ruler/0", "/ruler/1"):
            self.server.scene.remove_by_name(name)

    def _clicked(self, event: viser.SceneClickEvent) -> None:
        if len(self.ends) == 2:
            self._clear()
        found = point_on_ray(self.gaussians, np.array(event.ray_origin), np.array(event.ray_direction))
        if found is None:
            self.result.content = "nothing there; click on something solid"
            return
        reach = float(np.linalg.norm(found - np.array(event.ray_origin)))
        self.server.scene.add_icosphere(
            f"/ruler/{len(self.ends)}", radius=0.008 * reach, color=(255, 40, 40), position=tuple(found)
        )
        self.ends.append(found)
        self.result.content = "click on the second point"
        if len(self.ends) == 2:
            self.server.scene.add_line_segments(
                "/ruler/line", np.stack(self.ends)[None], colors=(255, 40, 40), thickness=0.004 * reach
            )
            distance = float(np.linalg.norm(self.ends[1] - self.ends[0]))
            self.result.content = f"**{distance:.4g} {self.content.unit}**"


def place(client: viser.ClientHandle | None, cameras: Cameras, view: int) -> None:
    """Put a browser's camera where one of the cameras (1,V) is, with its vertical field of view; nobody's nowhere."""
    if client is None:
        return
    wxyz, position = pose_of(cameras, view)
    with client.atomic():
        client.camera.wxyz, client.camera.position = wxyz, position
        client.camera.fov = vertical_view(cameras, view)
    client.flush()
