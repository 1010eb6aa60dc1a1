"""A scene as one web page that needs no other file and no network: page.html with the Gaussians inside.

Written only; the page draws the degree 0 of colours, or the colours that one place sees, and one byte a channel.
"""

from __future__ import annotations

import base64
import json
import zlib
from html import escape
from pathlib import Path
from string import Template

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from da3_splat.io.files import replacing
from da3_splat.io.ply import drawable
from da3_splat.spherical_harmonics import colors_from
from da3_splat.types import Cameras, Gaussians

PAGE = Path(__file__).parent / "page.html"
DEFAULT_VIEW = 0.9  # radians, of a scene without cameras


def save_html(gaussians: Gaussians, path: str | Path, cameras: Cameras | None = None, title: str = "scene") -> int:
    """Write one scene (batch size 1) as a page; returns its number of Gaussians.

    The first look is from the one of `cameras` (1,V) that is most in their middle; colours are as seen from there.
    Without cameras it is from in front (-z) of the scene, y downwards, and colours are those of degree 0.
    """
    gaussians = drawable(gaussians)
    look = _first_look(gaussians, None if cameras is None else cameras.detach().to("cpu", torch.float64))
    eye = None if cameras is None else torch.tensor(look["eye"])
    count = gaussians.means.shape[1]
    columns, low, span = packed(gaussians, eye)
    header = {**look, "count": count, "log_scale": [low, span]}
    values = {
        "title": escape(f"{title}: {count:,} Gaussians"),
        "header": json.dumps(header),
        "data": base64.b64encode(zlib.compress(columns, 9)).decode(),
    }
    page = Template(_escaped(PAGE.read_text())).substitute(values)
    with replacing(path) as beside:
        beside.write_text(page)
    return count


def packed(gaussians: Gaussians, eye: Tensor | None) -> tuple[bytes, float, float]:
    """23 bytes a Gaussian, column by column: centers float32, log-scales uint8, quaternions int8, rgba uint8; and what
    log-scale the byte 0 means, and how much more the byte 255."""
    logs = gaussians.scales[0].log()
    low = float(logs.min()) if logs.numel() else 0.0
    span = max(float(logs.max()) - low, 1e-6) if logs.numel() else 1.0
    quats = normalize(gaussians.quats[0], dim=-1)
    colors = colors_from(gaussians.means[0], gaussians.sh[0], eye)
    rgba = torch.cat([colors, gaussians.opacities[0, :, None]], dim=1).clamp(0, 1)
    parts = [
        gaussians.means[0].numpy().astype("<f4"),
        ((logs - low) / span * 255).round().numpy().astype(np.uint8),
        (quats * 127).round().numpy().astype(np.int8),
        (rgba * 255).round().numpy().astype(np.uint8),
    ]
    return b"".join(part.tobytes() for part in parts), low, span


def _first_look(gaussians: Gaussians, cameras: Cameras | None) -> dict[str, object]:
    """Where the page's camera stands, what it turns around, what is up, its vertical field of view in radians."""
    means = gaussians.means[0].double()
    middle = means.median(dim=0).values if len(means) else torch.zeros(3).double()
    if cameras is None:
        radius = float((means - middle).norm(dim=-1).median()) if len(means) else 1.0
        eye, target, up, view = middle - 2.5 * radius * torch.eye(3)[2], middle, -torch.eye(3)[1], DEFAULT_VIEW
    else:
        centers = cameras.centers[0]
        best = int((centers - centers.mean(dim=0)).norm(dim=-1).argmin())
        pose = cameras.camera_to_world[0, best]
        eye, forward = pose[:3, 3], pose[:3, 2]
        ahead = (means - eye) @ forward
        ahead = ahead[ahead > 0]
        target = eye + (ahead.median() if len(ahead) else torch.ones(())) * forward
        up = -cameras.camera_to_world[0, :, :3, 1].mean(dim=0)
        up = up if bool(up.norm() > 0.3) else -pose[:3, 1]
        view = 2 * float(torch.atan(cameras.height / 2 / cameras.intrinsics[0, best, 1, 1]))
    places = {"eye": eye.tolist(), "target": target.tolist(), "up": up.tolist()}
    return {**places, "vertical_view": view}


def _escaped(page: str) -> str:
    """The page as a `Template`: of its dollar signs only those before the three names are ours."""
    page = page.replace("$", "$$")
    for name in ("title", "header", "data"):
        page = page.replace(f"$${name}", f"${name}")
    return page
