"""The page: what stands in the scene and what is switched on. The panels beside it are in panels.py."""

from __future__ import annotations

import contextlib
import io
import socket
import time

import numpy as np
import torch
import viser
from PIL import Image
from torch import Tensor

from da3_splat.fusion.pruning import thinned
from da3_splat.types import Cameras, Gaussians, Views
from da3_splat.viewer.content import Content
from da3_splat.viewer.drawing import (
    frustum_size,
    picture_of,
    points_by_confidence,
    pose_of,
    splat_arrays,
    up_direction,
    vertical_view,
)
from da3_splat.viewer.panels import CameraPanel, FlightPanel, RulerPanel
from da3_splat.viewer.splats import Splats

LOOPBACK = "127.0.0.1"
MOST_POINTS = 200_000
CHUNK = 20_000  # Gaussians of a view that is shown before the scene is done
THUMBNAIL = 192  # pixels, longest side of a photo on a frustum


class SceneViewer:
    """A viser server with one scene. `host` other than the loopback lets other machines in; a `port` that is taken
    makes viser try the next ones. ValueError where the address cannot be listened on."""

    def __init__(self, host: str = LOOPBACK, port: int = 8080):
        try:
            with socket.create_server((host, 0)):  # viser would wait for ever
                pass
        except OSError as error:
            raise ValueError(f"--host {host}: cannot listen there ({error})") from error
        with contextlib.redirect_stdout(io.StringIO()):  # its banner; the command prints the address itself
            self.server = viser.ViserServer(host=host, port=port, label="da3-splat", verbose=False)
        self.host, self.content = host, Content()
        self.frustums: list[viser.CameraFrustumHandle] = []
        self.splats = Splats(self.server)
        self.points: viser.PointCloudHandle | None = None
        self.status = self.server.gui.add_markdown("waiting for a scene")

    @property
    def address(self) -> str:
        """Where a browser on this machine finds the page."""
        host = LOOPBACK if self.host in ("0.0.0.0", "::") else self.host
        return f"http://{host}:{self.server.get_port()}"

    def wait(self) -> None:
        """Serve until Ctrl-C."""
        try:
            while True:
                time.sleep(0.5)
        except KeyboardInterrupt:
            pass
        self.server.stop()

    # While a scene is being made.

    def show_views(self, cameras: Cameras, views: Views) -> None:
        """The cameras (1,V) with their photos, as soon as they are known, and a first look from the first of them."""
        for frustum in self.frustums:
            frustum.remove()
        self.frustums = []
        cameras = cameras.to("cpu").resized(*views.images.shape[-2:])
        self.server.scene.set_up_direction(tuple(up_direction(cameras)))
        size = frustum_size(cameras, self._distance(cameras))
        for view in range(cameras.world_to_camera.shape[1]):
            self.frustums.append(self._add_frustum(cameras, view, photo(views, view), size))
        self._look_first(cameras)

    def show_chunk(self, view: int, gaussians: Gaussians, eye: Tensor | None = None) -> None:
        """The Gaussians (1,N) of one view, thinned, until `show_gaussians` brings those of all."""
        self.splats.show(f"/chunks/{view}", splat_arrays(thinned(gaussians.detach().to("cpu"), CHUNK), eye))
        self.status.content = f"view {view + 1}: its Gaussians are there"

    def show_gaussians(self, gaussians: Gaussians, eye: Tensor | None = None) -> None:
        """These Gaussians (1,N) instead of those shown so far."""
        self.splats.show("/gaussians", splat_arrays(gaussians.detach().to("cpu"), eye))
        for name in [name for name in self.splats.sets if name.startswith("/chunks/")]:
            self.splats.remove(name)
        self.status.content = f"{gaussians.means.shape[1]:,} Gaussians so far"

    # When it is there.

    def show(self, content: Content) -> None:
        """All of it, with its panels."""
        self.content, views = content, content.views
        if content.gaussians is not None:
            self.show_gaussians(content.gaussians, content.middle_of_cameras())
        if views is not None:
            self.show_views(views.known_cameras, views)
        elif content.gaussians is not None:
            self._look_at_gaussians(content.gaussians)
        self.status.content = self._statistics()
        self._add_switches()
        if views is not None:
            CameraPanel(self, views)
        if content.gaussians is not None:
            if views is not None:
                FlightPanel(self, views.known_cameras, content.gaussians)
            RulerPanel(self, content.gaussians)

    def _statistics(self) -> str:
        lines, gaussians, views = [], self.content.gaussians, self.content.views
        if gaussians is not None:
            count = gaussians.means.shape[1]
            megabytes = 4e-6 * count * (14 + 3 * gaussians.sh.shape[2])  # of scene.ply
            lines.append(f"**{count:,}** Gaussians, SH degree {gaussians.sh_degree}, {megabytes:.1f} MB")
        if views is not None:
            lines.append(f"**{views.images.shape[1]}** views of {views.images.shape[-1]}x{views.images.shape[-2]}")
        return "  \n".join(lines)

    def _add_switches(self) -> None:
        gui, content = self.server.gui, self.content
        with gui.add_folder("Show"):
            if content.gaussians is not None:
                splats = gui.add_checkbox("Gaussians", True)
                splats.on_update(lambda _: setattr(self.splats, "visible", splats.value))
            if content.views is not None:
                cameras = gui.add_checkbox("Cameras", True)

                @cameras.on_update
                def _(_) -> None:
                    for frustum in self.frustums:
                        frustum.visible = cameras.value

            cloud = self._cloud()
            if cloud is not None:
                self._add_points(*cloud, visible=content.gaussians is None)

    def _cloud(self) -> tuple[np.ndarray, np.ndarray, bool] | None:
        """Points (P,3), colours (P,3), and whether they are in the order of their confidence."""
        geometry, views = self.content.geometry, self.content.views
        if geometry is not None and views is not None:
            return (*points_by_confidence(geometry, views, MOST_POINTS), geometry.confidence is not None)
        if views is not None and views.points is not None:
            colors = torch.full_like(views.points, 0.5) if views.point_colors is None else views.point_colors
            return views.points.numpy(), colors.numpy(), False
        return None

    def _add_points(self, points: np.ndarray, colors: np.ndarray, ordered: bool, visible: bool) -> None:
        gui = self.server.gui
        switch = gui.add_checkbox("Point cloud", visible)
        share = gui.add_slider("Most confident %" if ordered else "Points %", 1, 100, 1, 50 if ordered else 100)
        assert self.content.views is not None, "points come with the views that see them"
        size = 0.002 * self._distance(self.content.views.known_cameras)

        def draw() -> None:
            count = max(1, round(len(points) * share.value / 100))
            self.points = self.server.scene.add_point_cloud(
                "/points", points[:count], colors[:count], point_size=size, precision="float32", visible=switch.value
            )

        switch.on_update(lambda _: setattr(self.points, "visible", switch.value))
        share.on_update(lambda _: draw())
        draw()

    def _add_frustum(self, cameras: Cameras, view: int, picture: np.ndarray, size: float) -> viser.CameraFrustumHandle:
        wxyz, position = pose_of(cameras, view)
        return self.server.scene.add_camera_frustum(
            f"/cameras/{view}",
            fov=vertical_view(cameras, view),
            aspect=cameras.width / cameras.height,
            scale=size,
            thickness=0.02 * size,
            color=(230, 120, 20),
            image=picture,
            wxyz=wxyz,
            position=position,
        )

    def _distance(self, cameras: Cameras) -> float:
        """The median distance from the middle of the cameras to what is shown."""
        content, middle = self.content, cameras.centers[0].mean(dim=0)
        if content.gaussians is not None:
            places = content.gaussians.means[0]
        elif content.views is not None and content.views.points is not None:
            places = content.views.points
        else:
            places = cameras.centers[0] * 2 - middle
        return float((places - middle).norm(dim=-1).median().clamp_min(1e-6))

    def _look_first(self, cameras: Cameras) -> None:
        """New browsers begin a little behind the first camera."""
        backwards, first = -cameras.camera_to_world[0, 0, :3, 2], cameras.centers[0, 0]
        distance, camera = self._distance(cameras), self.server.initial_camera
        camera.position = tuple((first + 0.3 * distance * backwards).double().numpy())
        camera.look_at = tuple((first - distance * backwards).double().numpy())

    def _look_at_gaussians(self, gaussians: Gaussians) -> None:
        """Without cameras: files of this kind mostly have y down and their first camera at the origin."""
        means = gaussians.means[0]
        middle = means.median(dim=0).values
        radius = float((means - middle).norm(dim=-1).median())
        self.server.scene.set_up_direction("-y")
        camera = self.server.initial_camera
        camera.position = tuple((middle + radius * torch.tensor([0.8, -0.8, -2.5])).double().numpy())
        camera.look_at = tuple(middle.double().numpy())


def photo(views: Views, view: int) -> np.ndarray:
    """A small copy (h,w,3) uint8 of one picture."""
    picture = Image.fromarray(picture_of(views.images[0, view]))
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    return np.asarray(picture)
