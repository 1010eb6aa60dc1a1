"""Gaussians on the page, sent so that they are seen soon.

The page draws the first splats of all twice without showing much: before it knows their camera, and while they fade in.
Where a browser draws without a GPU, each time takes seconds. So every browser first gets one splat that cannot be seen,
and the real ones a moment later, which then appear at once: scripts/benchmark_viewer.py measures it.
"""

from __future__ import annotations

import threading
import time

import numpy as np
import viser

from da3_splat.viewer.drawing import SplatArrays

HEAD_START = 0.8  # seconds that the splat that cannot be seen is ahead; with 0.3 it is not always drawn by then


class Splats:
    """Sets of Gaussians by name in every browser, also in those that come later."""

    def __init__(self, server: viser.ViserServer):
        self.server = server
        self.sets: dict[str, SplatArrays] = {}
        self.handles: dict[int, dict[str, viser.GaussianSplatHandle]] = {}  # by browser and name
        self._visible, self._lock = True, threading.Lock()
        nothing = np.zeros((1, 3), np.float32)
        server.scene.add_gaussian_splats(
            "/unseen", centers=nothing, covariances=np.eye(3)[None] * 1e-4, rgbs=nothing, opacities=nothing[:, :1]
        )
        server.on_client_connect(self._welcome)
        server.on_client_disconnect(self._forget)

    @property
    def visible(self) -> bool:
        """Whether they are shown, all sets alike."""
        return self._visible

    @visible.setter
    def visible(self, value: bool) -> None:
        with self._lock:
            self._visible = value
            for held in self.handles.values():
                for handle in held.values():
                    handle.visible = value

    def show(self, name: str, arrays: SplatArrays) -> None:
        """This set, instead of what had its name."""
        with self._lock:
            self.sets[name] = arrays
            clients = self.server.get_clients()
            for number, held in self.handles.items():
                if number in clients:
                    held[name] = self._send(clients[number], name)

    def remove(self, name: str) -> None:
        with self._lock:
            del self.sets[name]
            for held in self.handles.values():
                if name in held:
                    held.pop(name).remove()

    def _welcome(self, client: viser.ClientHandle) -> None:
        time.sleep(HEAD_START)
        with self._lock:
            if client.client_id not in self.server.get_clients():
                return  # it has left meanwhile, and nobody would forget it
            self.handles[client.client_id] = {name: self._send(client, name) for name in self.sets}

    def _forget(self, client: viser.ClientHandle) -> None:
        with self._lock:
            self.handles.pop(client.client_id, None)

    def _send(self, client: viser.ClientHandle, name: str) -> viser.GaussianSplatHandle:
        arrays = self.sets[name]
        return client.scene.add_gaussian_splats(
            name,
            centers=arrays.centers,
            covariances=arrays.covariances,
            rgbs=arrays.colors,
            opacities=arrays.opacities,
            scale=arrays.unit,
            visible=self._visible,
        )
