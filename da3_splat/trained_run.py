"""What `ns-train da3-splat` leaves behind, read back as Gaussians in the user's own frame.

Nerfstudio normalises what it reads (orientation, centre, scale) and exports splats in that frame. Training writes
user_frame.json beside its checkpoints: the similarity back to the frame of the file that was trained on.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from da3_splat.geometry.alignment import Similarity, transform_gaussians
from da3_splat.io.files import replacing
from da3_splat.types import Gaussians

CHECKPOINTS, FRAME = "nerfstudio_models", "user_frame.json"
PREFIX = "_model.gauss_params."


def is_run(folder: Path) -> bool:
    """Whether the folder is a training run (outputs/CAPTURE/da3-splat/TIME)."""
    return (folder / CHECKPOINTS).is_dir()


def write_user_frame(folder: Path, similarity: Similarity) -> None:
    """Keep the similarity (batch shape () or (1,)) from Nerfstudio's frame to the user's in a run's folder."""
    content = {
        "scale": float(similarity.scale),
        "rotation": similarity.rotation.reshape(3, 3).tolist(),
        "translation": similarity.translation.reshape(3).tolist(),
    }
    with replacing(folder / FRAME) as beside:
        beside.write_text(json.dumps(content, indent=1) + "\n")


def load_run(folder: Path) -> Gaussians:
    """The Gaussians (1,N) of the latest checkpoint of a run, in the user's frame.

    ValueError where there is no checkpoint, where it holds no splats, or where the run knows no user's frame.
    """
    checkpoints = sorted((folder / CHECKPOINTS).glob("step-*.ckpt"))
    if not checkpoints:
        raise ValueError(f"{folder / CHECKPOINTS}: no step-*.ckpt in this folder")
    if not (folder / FRAME).is_file():
        raise ValueError(f"{folder}: no {FRAME}; only runs of `ns-train da3-splat` know the frame of their input")
    state = torch.load(checkpoints[-1], map_location="cpu", weights_only=True)["pipeline"]
    if PREFIX + "means" not in state:
        raise ValueError(f"{checkpoints[-1]}: holds no Gaussians")
    raw = {name.removeprefix(PREFIX): value.float() for name, value in state.items() if name.startswith(PREFIX)}
    gaussians = Gaussians(
        means=raw["means"][None],
        quats=raw["quats"][None],
        scales=raw["scales"].exp()[None],
        opacities=raw["opacities"][None, :, 0].sigmoid(),
        sh=torch.cat([raw["features_dc"][:, None], raw["features_rest"]], dim=1)[None],
    )
    return transform_gaussians(_user_frame(folder / FRAME), gaussians)


def _user_frame(path: Path) -> Similarity:
    try:
        content = json.loads(path.read_text())
        scale, rotation, translation = (torch.tensor(content[name]) for name in ("scale", "rotation", "translation"))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not what training wrote ({error})") from error
    if rotation.shape != (3, 3) or translation.shape != (3,) or not bool(scale.isfinite()) or float(scale) <= 0:
        raise ValueError(f"{path}: expected a scale above 0, a rotation (3,3) and a translation (3)")
    return Similarity(scale, rotation, translation)
