"""What `ns-train da3-splat` leaves behind, read back as Gaussians in the user's own frame.

Nerfstudio normalises what it reads (orientation, centre, scale) and exports splats in that frame. Training writes
user_frame.json beside its checkpoints: the similarity back to the frame of the file that was trained on.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from da3_splat.geometry.alignment import Similarity, transform_gaussians
from da3_splat.io.checkpoints import read_checkpoint
from da3_splat.io.files import replacing
from da3_splat.io.json_files import load_json
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
    gaussians = _gaussians(read_checkpoint(checkpoints[-1]).get("pipeline"), checkpoints[-1])
    return transform_gaussians(_user_frame(folder / FRAME), gaussians)


def _gaussians(state: object, path: Path) -> Gaussians:
    """The splats in a pipeline's state; ValueError names the checkpoint that has none."""
    names = ("means", "quats", "scales", "opacities", "features_dc", "features_rest")
    found = [state.get(PREFIX + name) for name in names] if isinstance(state, dict) else []
    held = [value for value in found if isinstance(value, torch.Tensor) and value.ndim >= 2]
    if len(held) < len(names):
        raise ValueError(f"{path}: holds no Gaussians")
    means, quats, scales, opacities, dc, rest = (value.float() for value in held)
    try:
        return Gaussians(
            means=means[None],
            quats=quats[None],
            scales=scales.exp()[None],
            opacities=opacities[None, :, 0].sigmoid(),
            sh=torch.cat([dc[:, None], rest], dim=1)[None],
        )
    except (ValueError, RuntimeError, IndexError) as error:
        raise ValueError(f"{path}: its Gaussians do not fit together ({error})") from error


def _user_frame(path: Path) -> Similarity:
    content = load_json(path)
    try:
        scale, rotation, translation = (
            torch.tensor(content[name]).float() for name in ("scale", "rotation", "translation")
        )
    except (ValueError, KeyError, TypeError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{path}: not what training wrote ({error})") from error
    shapes = [tuple(value.shape) for value in (scale, rotation, translation)]
    finite = all(bool(value.isfinite().all()) for value in (scale, rotation, translation))
    if shapes != [(), (3, 3), (3,)] or not finite or float(scale) <= 0:
        raise ValueError(f"{path}: expected a scale above 0, a rotation (3,3) and a translation (3)")
    return Similarity(scale, rotation, translation)
