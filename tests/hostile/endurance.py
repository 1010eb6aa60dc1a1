"""Things done a thousand times, or by twenty at once: what they hold must not grow. Things done twice are the same."""

from __future__ import annotations

import gc
import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from captures import small_capture

from hostile.faults import Command, files
from hostile.processes import command, run

WALL_CLOCK = ("report.json", "report.html", "log.txt")  # these say how many seconds something took


@dataclass(frozen=True)
class Held:
    """Memory in MB and open files of this process."""

    memory_mb: float
    handles: int


def held() -> Held:
    """What this process holds now."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Held(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(list(Path("/proc/self/fd").iterdir())))


def many_reconstructions(times: int, folder: Path) -> tuple[Held, Held]:
    """Two views read, reconstructed and written so many times; what is held after the first tenth, and at the end."""
    from da3_splat import load_model, load_views
    from da3_splat.scene_folder import load_scene, save_scene

    torch.set_num_threads(1)
    capture = small_capture(folder / "capture", views=2, height=42, width=56)
    model = load_model("mini")
    for number in range(times):
        views = load_views(capture, resolution=56)
        save_scene(model.reconstruct(views), views, folder / "scene")
        load_scene(folder / "scene")
        if number == max(9, times // 10):
            start = held()
    return start, held()


def many_clients(times: int, together: int, folder: Path) -> tuple[Held, Held, list[str]]:
    """Connect to the viewer and go, so many times; then `together` at once. What is held before and after, and what
    went wrong in words."""
    import viser
    from websockets.sync.client import connect

    from da3_splat.io.ply import save_ply
    from da3_splat.types import Gaussians
    from da3_splat.viewer.content import load_content
    from da3_splat.viewer.server import SceneViewer

    count, folder = 500, Path(folder)
    gaussians = Gaussians(
        means=torch.rand(1, count, 3),
        quats=torch.rand(1, count, 4),
        scales=torch.full((1, count, 3), 0.01),
        opacities=torch.full((1, count), 0.9),
        sh=torch.rand(1, count, 1, 3),
    )
    folder.mkdir(parents=True, exist_ok=True)
    save_ply(gaussians, folder / "scene.ply")
    viewer = SceneViewer(port=18_080)
    viewer.show(load_content(folder / "scene.ply"))
    address = viewer.address.replace("http", "ws")
    protocol, wrong = [f"viser-v{viser.__version__}"], []

    def once() -> None:
        with connect(address, subprotocols=protocol, max_size=None, open_timeout=20) as client:
            client.send(_camera_message())
            if len(client.recv(timeout=20)) == 0:
                wrong.append("a client got an empty message")

    once()
    _counted(viewer, 0)
    start = held()
    for _ in range(times):
        once()
    open_clients = [connect(address, subprotocols=protocol, max_size=None, open_timeout=20) for _ in range(together)]
    for client in open_clients:
        client.send(_camera_message())
        if len(client.recv(timeout=20)) == 0:
            wrong.append("one of many clients got an empty message")
    if not _counted(viewer, together):
        wrong.append(f"{len(viewer.server.get_clients())} of {together} clients are counted")
    for client in open_clients:
        client.close()
    if not _counted(viewer, 0):
        wrong.append(f"{len(viewer.server.get_clients())} clients are still counted")
    once()  # it still answers
    _counted(viewer, 0)
    end = held()
    viewer.server.stop()
    return start, end, wrong


def _camera_message() -> bytes:
    """What a browser says first: where it looks from. Only then viser counts it as a client."""
    import msgspec

    place = {"wxyz": [1.0, 0.0, 0.0, 0.0], "position": [0.0, 0.0, -3.0], "look_at": [0.0, 0.0, 0.0]}
    lens = {
        "fov": 1.0,
        "near": 0.01,
        "far": 100.0,
        "image_height": 40,
        "image_width": 60,
        "up_direction": [0.0, -1.0, 0.0],
    }
    return msgspec.msgpack.encode({"type": "ViewerCameraMessage", **place, **lens})


def _counted(viewer, count: int, seconds: float = 20.0) -> bool:
    """Wait until the server has noticed that it has so many clients."""
    end = time.monotonic() + seconds
    while len(viewer.server.get_clients()) != count and time.monotonic() < end:
        time.sleep(0.05)
    return len(viewer.server.get_clients()) == count


def same_bytes(what: Command, folder: Path) -> tuple[int, list[str]]:
    """Run a command twice with one seed and one thread; files compared, and the names of those that differ."""
    found = []
    for name in ("first", "second"):
        limited = ["--steps", "4"] if what.endless else []
        output = folder / name / "output"
        output.parent.mkdir(parents=True, exist_ok=True)
        ended = run(command([*what.arguments(output), *limited]), output.parent / "log.txt")
        if ended.code != 0:
            return 0, [f"{what.name}: exit code {ended.code}: {ended.text[-300:]}"]
        found.append({path.relative_to(output): _digest(path) for path in files(output) if path.name not in WALL_CLOCK})
    names = found[0].keys() | found[1].keys()
    return len(names), sorted(str(name) for name in names if found[0].get(name) != found[1].get(name))


def _digest(path: Path) -> str:
    """Of a JSON of results without its `timing`, which is wall-clock time; of all others the bytes."""
    data = path.read_bytes()
    if path.name == "results.json" or path.parent.name == "scenes":
        import json

        content = json.loads(data)
        content.pop("timing", None)
        data = json.dumps(content).encode()
    return hashlib.sha256(data).hexdigest()
