"""Baseline: Nerfstudio's splatfacto, trained on the posed contexts from random points, by its own commands.

`--model splatfacto` or `--model splatfacto:STEPS`. Needs CUDA: gsplat's kernels have no CPU form, and splatfacto run
through another rasterizer (as this package's Nerfstudio plugin does on a CPU) would not be splatfacto.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from da3_splat.geometry.alignment import Similarity, transform_gaussians
from da3_splat.io.images import write_image
from da3_splat.io.json_files import json_number, load_json
from da3_splat.io.ply import load_ply
from da3_splat.io.transforms_json import write_transforms
from da3_splat.rendering import render
from da3_splat.types import Gaussians, Geometry, Scene, Views


@dataclass(frozen=True)
class Splatfacto:
    """`ns-train splatfacto` and `ns-export gaussian-splat` behind the one interface."""

    steps: int = 30_000
    device: str = "cuda"

    def __post_init__(self):
        if not self.device.startswith("cuda"):
            raise ValueError("splatfacto needs a CUDA device (gsplat has no CPU form); score it on a machine with one")
        for command in ("ns-train", "ns-export"):
            if shutil.which(command) is None:
                raise ValueError(f"splatfacto: the command {command} is not here; install nerfstudio")

    @property
    def identity(self) -> dict[str, object]:
        try:
            found = version("nerfstudio")
        except PackageNotFoundError:
            found = "unknown"
        return {"name": "splatfacto", "kind": "nerfstudio", "steps": self.steps, "version": found, "start": "random"}

    @torch.no_grad()
    def predict(self, views: Views, scene: str = "") -> Scene:
        """Trained on all views, in the frame of their cameras; depth is what the Gaussians show."""
        if views.cameras is None:
            raise ValueError("splatfacto finds no cameras; score it with --poses posed")
        with tempfile.TemporaryDirectory(prefix="da3_splat_splatfacto_") as work:
            gaussians = self._trained(views, Path(work)).to(views.images.device)
        depth = render(gaussians, views.cameras).depth
        geometry = Geometry(depth=depth, cameras=views.cameras)
        return Scene(geometry=geometry, gaussians=gaussians, cameras=views.cameras)

    def _trained(self, views: Views, work: Path) -> Gaussians:
        names = [f"images/{index:04d}.png" for index in range(views.images.shape[1])]
        for name, image in zip(names, views.images[0]):
            write_image(work / "data" / name, image.permute(1, 2, 0).cpu().numpy())
        write_transforms(work / "data" / "transforms.json", views.known_cameras, names)
        _run(["ns-train", "splatfacto", "--output-dir", work / "runs", "--max-num-iterations", self.steps,
              "--vis", "tensorboard", "nerfstudio-data", "--data", work / "data", "--eval-mode", "all"])  # fmt: skip
        configs = sorted((work / "runs").rglob("config.yml"))
        if not configs:
            raise ValueError("splatfacto: ns-train left no config.yml")
        _run(["ns-export", "gaussian-splat", "--load-config", configs[0], "--output-dir", work / "export"])
        gaussians = load_ply(next(iter(sorted((work / "export").glob("*.ply"))), work / "export" / "splat.ply"))
        return transform_gaussians(_to_nerfstudio(configs[0].parent).inverse(), gaussians)


def _to_nerfstudio(run: Path) -> Similarity:
    """From the frame of the transforms.json to the one that Nerfstudio trains and exports in."""
    path = run / "dataparser_transforms.json"
    content = load_json(path)
    matrix = torch.tensor(content["transform"], dtype=torch.float32)
    if matrix.shape != (3, 4):
        raise ValueError(f"{path}: transform: expected 3x4 numbers, got {tuple(matrix.shape)}")
    scale = torch.tensor(json_number(content["scale"], f"{path}: scale"))
    return Similarity(scale, matrix[:, :3], scale * matrix[:, 3])


def _run(command: list) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        last = ((done.stderr + done.stdout).strip().splitlines() or ["no word"])[-1]
        raise ValueError(f"{command[0]} stopped with {done.returncode}: {last}")
