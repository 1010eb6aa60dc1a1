"""What can be scored: anything that says `predict(views) -> Scene`. Ours, baselines, others' results on disk."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from da3_splat.acceleration import accelerate, precision_of
from da3_splat.backbone.checkpoints import resolve
from da3_splat.backbone.plane_sweep import PlaneSweep
from da3_splat.evaluation.official import OfficialDA3
from da3_splat.evaluation.splatfacto import Splatfacto
from da3_splat.heads.plain import PlainHead
from da3_splat.io.frames import Frame
from da3_splat.io.ply import load_ply
from da3_splat.io.transforms_json import read_transforms
from da3_splat.model import EMBEDDED, Da3Splat, SplatConfig, load_model
from da3_splat.rendering import render
from da3_splat.types import Cameras, Geometry, Scene, Views


class Method(Protocol):
    """`identity` tells one method from another, weights included: a score of one is never taken for the other's."""

    @property
    def identity(self) -> dict[str, object]: ...

    def predict(self, views: Views, scene: str = "") -> Scene:
        """A scene (batch size 1) of context views, in their frame where they bring cameras; `scene` is their name."""
        ...


@dataclass(frozen=True)
class OurMethod:
    """A model of this package."""

    model: Da3Splat
    identity: dict[str, object]

    def predict(self, views: Views, scene: str = "") -> Scene:
        return self.model.reconstruct(views)


@dataclass(frozen=True)
class ResultsOnDisk:
    """Results of any tool: folder/<scene>/scene.ply (3DGS) and transforms.json with the cameras of the contexts.

    Frames are found by the names of the pictures. Depth is what the Gaussians show. Whether the tool saw only the
    contexts, and their cameras or not, nobody can tell from the files: whoever wrote them answers for it.
    """

    folder: Path

    @property
    def identity(self) -> dict[str, object]:
        digest = hashlib.sha256()
        for path in sorted(self.folder.glob("*/scene.ply")) + sorted(self.folder.glob("*/transforms.json")):
            digest.update(f"{path.relative_to(self.folder)} {path.stat().st_size}".encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return {"name": self.folder.name, "kind": "results on disk", "sha256": digest.hexdigest()[:16]}

    @torch.no_grad()
    def predict(self, views: Views, scene: str = "") -> Scene:
        place = self.folder / scene
        if not place.resolve().is_relative_to(self.folder.resolve()) or not (place / "scene.ply").is_file():
            raise ValueError(f"{place}: no scene.ply of this scene in the folder of results")
        gaussians = load_ply(place / "scene.ply").to(views.images.device)
        cameras = self._cameras(place, views).to(views.images.device)
        if views.cameras is not None:
            cameras = views.cameras  # the results are in the frame of the given cameras
        depth = render(gaussians, cameras).depth
        return Scene(geometry=Geometry(depth=depth, cameras=cameras), gaussians=gaussians, cameras=cameras)

    def _cameras(self, place: Path, views: Views) -> Cameras:
        """The tool's cameras of the views, at the size and crop that the views have."""
        frames = {Path(frame.name).stem: frame for frame in read_transforms(place / "transforms.json")[0]}
        missing = [name for name in views.names if Path(name).stem not in frames]
        if missing or not views.names:
            raise ValueError(f"{place / 'transforms.json'}: no frame for the context {(missing or ['(unnamed)'])[0]}")
        single = [_covering(frames[Path(name).stem], *views.images.shape[-2:]) for name in views.names]
        return Cameras.concatenate(single)


def _covering(frame: Frame, height: int, width: int) -> Cameras:
    """The camera (1,1) float32 of a frame scaled to cover height x width and cropped around the centre."""
    camera = frame.camera.to(torch.float32)
    scale = max(height / camera.height, width / camera.width)
    tall, wide = max(height, round(camera.height * scale)), max(width, round(camera.width * scale))
    return camera.resized(tall, wide).cropped((tall - height) // 2, (wide - width) // 2, height, width)


def load_method(source: str, device: str = "cpu") -> Method:
    """`mini`, weights (a file, a folder of them, a hub id), a folder of results (see `ResultsOnDisk`), or a baseline:
    `official:CHECKOUT:WEIGHTS`, `splatfacto[:STEPS]`, `plane-sweep`."""
    kind, _, rest = source.partition(":")
    if kind == "official":
        checkout, _, weights = rest.partition(":")
        if not checkout or not weights:
            raise ValueError(f"model: expected official:CHECKOUT:WEIGHTS, got {source}")
        return OfficialDA3(Path(checkout), weights, device)
    if kind == "splatfacto":
        if rest and not rest.isdigit():
            raise ValueError(f"model: expected splatfacto or splatfacto:STEPS, got {source}")
        return Splatfacto(int(rest or 30_000), device)
    if source == "plane-sweep":
        model = Da3Splat(PlaneSweep(), PlainHead(), SplatConfig("plane-sweep"))
        return OurMethod(model.to(device).eval(), {"name": source, "kind": "plane sweep, nothing learnt"})
    folder = Path(source)
    if folder.is_dir() and any(folder.glob("*/scene.ply")):
        return ResultsOnDisk(folder)
    path = EMBEDDED.get(source) or resolve(source, None)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    name = source if path in EMBEDDED.values() or not Path(source).exists() else Path(source).name
    identity: dict[str, object] = {"name": name, "kind": "da3_splat", "sha256": digest}
    model = accelerate(load_model(source, device))
    if precision_of(model) is torch.bfloat16:
        identity["precision"] = "bfloat16"
    return OurMethod(model, identity)
