"""Baseline: Depth Anything 3 by its authors' own code, run from a checkout in a process of its own.

`--model official:CHECKOUT:WEIGHTS`: CHECKOUT is a clone of ByteDance-Seed/Depth-Anything-3, WEIGHTS a hub id or a
folder with config.json and model.safetensors. The process runs CHECKOUT/.venv/bin/python where there is one, else this
Python; what else the official code needs to import may be on PYTHONPATH.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from da3_splat.heads.plain import PlainHead
from da3_splat.types import Cameras, Gaussians, Geometry, Scene, Views

WORKER = Path(__file__).with_name("official_worker.py")


@dataclass
class OfficialDA3:
    """The official code as a method. Where it has Gaussians of its own and finds the cameras itself, they are taken as
    they are; else every pixel of its depth becomes one (heads/plain.py), as for our models without a head."""

    checkout: Path
    weights: str
    device: str = "cpu"
    _process: subprocess.Popen | None = field(default=None, repr=False)

    def __post_init__(self):
        if not (self.checkout / "src" / "depth_anything_3" / "api.py").is_file():
            raise ValueError(f"{self.checkout}: no src/depth_anything_3/api.py; expected a clone of Depth-Anything-3")

    @property
    def identity(self) -> dict[str, object]:
        digest, source = hashlib.sha256(), self.checkout / "src" / "depth_anything_3"
        weights = Path(self.weights)
        for path in [*sorted(source.rglob("*.py")), *(sorted(weights.glob("*")) if weights.is_dir() else [])]:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        held = weights.name if weights.exists() else self.weights
        return {
            "name": f"official DA3 {weights.name}",
            "kind": "official code",
            "weights": held,
            "sha256": digest.hexdigest()[:16],
        }

    def predict(self, views: Views, scene: str = "") -> Scene:
        """One pass of the official `inference` over all views."""
        with tempfile.TemporaryDirectory(prefix="da3_splat_official_") as work:
            request, target = Path(work) / "request.npz", Path(work) / "answer.npz"
            pixels = (views.images[0].permute(0, 2, 3, 1).clamp(0, 1) * 255 + 0.5).to(torch.uint8)
            arrays: dict[str, Any] = {"images": pixels.cpu().numpy()}
            if views.cameras is not None:
                arrays["extrinsics"] = views.cameras.world_to_camera[0].cpu().numpy()
                arrays["intrinsics"] = views.cameras.intrinsics[0].cpu().numpy()
            np.savez(request, **arrays)
            self._ask(f"{request}\t{target}")
            with np.load(target) as found:
                answer = {name: torch.from_numpy(found[name])[None].to(views.images) for name in found.files}
        return _scene(answer, views)

    def _ask(self, line: str) -> None:
        """Send a line to the worker, started at the first, and wait for its `done`."""
        if self._process is None:
            python = self.checkout / ".venv" / "bin" / "python"
            paths = [str(self.checkout / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
            self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the process
            self._process = subprocess.Popen(
                [python if python.is_file() else sys.executable, WORKER, self.weights, self.device],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            )  # fmt: skip
        stopped = self._process.poll() is not None
        if not stopped:
            assert self._process.stdin is not None and self._process.stdout is not None, "both are pipes"
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            stopped = self._process.stdout.readline() != "done\n"
        if stopped:
            self._process.wait()
            self._process = None
            self._errors.seek(0)
            last = (self._errors.read().strip().splitlines() or ["no word"])[-1]
            raise ValueError(f"the official code in {self.checkout} stopped: {last}")


def _scene(answer: dict[str, Tensor], views: Views) -> Scene:
    height, width = views.images.shape[-2:]
    if answer["depth"].shape[-2:] != (height, width):
        raise ValueError(f"official DA3: expected depth of {height}x{width}, got {tuple(answer['depth'].shape[-2:])}")
    if views.cameras is None:
        pose = torch.eye(4, device=views.images.device).repeat(1, answer["depth"].shape[1], 1, 1)
        pose[..., :3, :] = answer["extrinsics"][..., :3, :]
        cameras = Cameras(world_to_camera=pose, intrinsics=answer["intrinsics"], height=height, width=width)
    else:
        cameras = views.cameras
    geometry = Geometry(depth=answer["depth"], confidence=answer.get("confidence"), cameras=cameras)
    if "means" in answer and views.cameras is None:
        parts = {name: answer[name][0] for name in ("means", "scales", "rotations", "harmonics", "opacities")}
        gaussians = Gaussians(
            means=parts["means"],
            quats=parts["rotations"],
            scales=parts["scales"],
            opacities=parts["opacities"].flatten(1),
            sh=parts["harmonics"].transpose(-1, -2).contiguous(),
        )
    else:
        gaussians = PlainHead()(None, views.images, geometry)
    report: dict[str, object] = {"official_seconds": float(answer["seconds"])}
    return Scene(geometry=geometry, gaussians=gaussians, cameras=cameras, report=report)
