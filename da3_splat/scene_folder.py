"""A reconstruction as a folder that opens everywhere: splats, points, depth, and a capture Nerfstudio can train on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from da3_splat.data.views import original_picture
from da3_splat.io.files import replacing
from da3_splat.io.frames import Frame
from da3_splat.io.images import FORMATS, color_of_depth, depth_limits, read_image, write_image
from da3_splat.io.json_files import load_json
from da3_splat.io.npz import load_geometry, save_geometry
from da3_splat.io.ply import load_ply, save_ply, save_points
from da3_splat.io.transforms_json import read_transforms, write_transforms
from da3_splat.types import Cameras, Geometry, Scene, Views, Window

MAX_POINTS = 200_000
COPIED = (".jpg", ".jpeg", ".png")  # what every Nerfstudio method reads; other formats are converted


def save_scene(
    scene: Scene,
    views: Views,
    folder: str | Path,
    progress: Callable[[Iterable], Iterable] = lambda items: items,
    frames: Sequence[Frame] | None = None,
) -> int:
    """Write one scene (batch size 1) into `folder`; returns the number of Gaussians in scene.ply.

    scene.ply (3DGS), points.ply (the confident half of the pixels, thinned), depth.npz (depth, confidence and cameras
    as the network had them), depth/NAME.png (near is bright), transforms.json + images/ (a Nerfstudio capture of the
    cameras used). Where `frames`, the files behind the views, are given, resizing and cropping are undone: images/
    holds the pictures at their full size (undistorted), transforms.json their cameras, depth/NAME.npz their depth
    (nearest value, so that no surface appears between two; NaN where the view was cropped). report.json is the scene's
    report.
    """
    folder = Path(folder)
    names = picture_names(views)
    masks: list[str | None] = [None] * len(names)
    if views.masks is not None:
        masks = _write_masks(views, views.masks, names, folder, frames is not None)
    depth = scene.geometry.depth[0].detach().cpu()
    written, limits = [], depth_limits(depth.numpy())
    for index in progress(range(len(depth))):
        write_image(folder / "depth" / f"{names[index]}.png", color_of_depth(depth[index].numpy(), limits))
        if frames is None:
            written.append(f"images/{names[index]}.png")
            write_image(folder / written[-1], views.images[0, index].permute(1, 2, 0).cpu().numpy())
        else:
            written.append(f"images/{write_original(frames[index], folder / 'images', names[index])}")
            with replacing(folder / "depth" / f"{names[index]}.npz") as beside:
                np.savez_compressed(beside, depth=_at_original_size(depth[index], views, index).numpy())
    save_geometry(scene.geometry, folder / "depth.npz", () if frames is None else views.windows)
    points, colors = confident_points(scene.geometry, views, MAX_POINTS)
    save_points(points, colors, folder / "points.ply")
    cameras = scene.cameras if frames is None else original_cameras(scene.cameras, views)
    write_transforms(folder / "transforms.json", cameras, written, "points.ply", masks)
    with replacing(folder / "report.json") as beside:
        beside.write_text(json.dumps(scene.report, indent=1) + "\n")
    return save_ply(scene.gaussians, folder / "scene.ply")


def load_scene(folder: str | Path) -> tuple[Scene, Views]:
    """The scene that `save_scene` wrote into `folder`, and its views at the size the network saw."""
    folder = Path(folder)
    for name in ("scene.ply", "depth.npz", "transforms.json"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder}: no {name} in this folder; expected what `da3-splat reconstruct` wrote")
    geometry, windows = load_geometry(folder / "depth.npz")
    frames, _ = read_transforms(folder / "transforms.json")
    if len(frames) != geometry.depth.shape[1] or (windows and len(windows) != len(frames)):
        raise ValueError(f"{folder}: transforms.json and depth.npz are not of one reconstruction")
    size = geometry.depth.shape[-2:]
    images, masks = [], []
    for frame, window in zip(frames, windows or [None] * len(frames)):
        images.append(_in_window(read_image(frame.path, upright=False), window, size) / 255)
        masks.append(None if frame.mask is None else _in_window(read_image(frame.mask, upright=False), window, size)[0])
    kept = None
    if any(mask is not None for mask in masks):
        everything = torch.full(size, 255.0)
        kept = torch.stack([everything if mask is None else mask for mask in masks])[None] >= 128
    views = Views(
        images=torch.stack(images)[None],
        cameras=geometry.cameras,
        names=tuple(frame.name for frame in frames),
        masks=kept,
        windows=windows,
    )
    gaussians, report = load_ply(folder / "scene.ply"), _load_report(folder / "report.json")
    return Scene(geometry=geometry, gaussians=gaussians, cameras=geometry.known_cameras, report=report), views


def _load_report(path: Path) -> dict[str, object]:
    """What `save_scene` wrote there; empty where there is none, as in folders of older versions."""
    if not path.is_file():
        return {}
    report = load_json(path)
    if not isinstance(report, dict):
        raise ValueError(f"{path}: not a report of da3_splat (expected an object)")
    return report


def _in_window(picture: Image.Image, window: Window | None, size: tuple[int, ...]) -> Tensor:
    """What a view shows of its picture: (3,*size) in 0 to 255."""
    box = None
    if window is not None:
        box = (window.left, window.top, window.left + window.window_width, window.top + window.window_height)
    pixels = picture.resize((size[1], size[0]), Image.Resampling.LANCZOS, box=box)
    return torch.from_numpy(np.asarray(pixels, np.float32)).permute(2, 0, 1)


def _write_masks(views: Views, masks: Tensor, names: list[str], folder: Path, full_size: bool) -> list[str | None]:
    """masks/NAME.png (white is the scene) of the views that have something masked; their names, None elsewhere."""
    written: list[str | None] = []
    for index, (name, mask) in enumerate(zip(names, masks[0].cpu())):
        if bool(mask.all()):
            written.append(None)
            continue
        values = mask.float()
        if full_size:
            values = _at_original_size(values, views, index).nan_to_num(0)
        written.append(f"masks/{name}.png")
        write_image(folder / f"masks/{name}.png", (values[..., None].expand(-1, -1, 3).numpy() * 255).astype(np.uint8))
    return written


def picture_names(views: Views) -> list[str]:
    """A name without ending for each view, of letters a file system takes, each once."""
    given = views.names or tuple(f"view_{index:04d}" for index in range(views.images.shape[1]))
    names = [Path(name).stem for name in given]
    return names if len(set(names)) == len(names) else [f"{index:04d}_{name}" for index, name in enumerate(names)]


def original_cameras(cameras: Cameras, views: Views) -> list[Cameras]:
    """The cameras (1,V) at the size of each view's original picture: V cameras (1,1)."""
    single = [cameras.select([index]) for index in range(cameras.world_to_camera.shape[1])]
    if not views.windows:
        return single
    return [window.original(camera) for window, camera in zip(views.windows, single)]


def confident_points(geometry: Geometry, views: Views, count: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `count` points (P,3) of the confident half of the pixels, spread over all views, and their colours."""
    index = confident_pixels(geometry, views, count)
    pixels = geometry.depth.shape[-2] * geometry.depth.shape[-1]
    points, colors = [], []
    for view in range(geometry.depth.shape[1]):  # the cloud of all pixels would take fifty bytes each
        chosen = index[(index >= view * pixels) & (index < (view + 1) * pixels)] - view * pixels
        points.append(geometry.select([view]).points().detach().cpu().reshape(-1, 3)[chosen])
        colors.append(views.images[0, view].cpu().flatten(1)[:, chosen].T)
    return torch.cat(points).numpy(), torch.cat(colors).numpy()


def confident_pixels(geometry: Geometry, views: Views, count: int) -> Tensor:
    """Indices into S*H*W of at most `count` pixels that are finite, no sky, unmasked, of the confident half."""
    keep = (geometry.depth[0].isfinite() & (geometry.depth[0] > 0)).flatten().cpu()
    if geometry.sky is not None:
        keep &= ~geometry.sky_mask[0].cpu().flatten()
    if views.masks is not None:
        keep &= views.masks[0].cpu().flatten()
    if geometry.confidence is not None and bool(keep.any()):
        confidence = geometry.confidence[0].detach().cpu().flatten()
        keep &= confidence >= confidence[keep].median()
    kept = torch.nonzero(keep)[:, 0]
    return kept[:: max(1, -(-len(kept) // count))]


def _at_original_size(depth: Tensor, views: Views, index: int) -> Tensor:
    """Depth (H,W) of a view as float32 at the size of its original picture."""
    window = views.windows[index]
    rows = (torch.arange(window.height) + 0.5 - window.top) / window.window_height * depth.shape[0]
    columns = (torch.arange(window.width) + 0.5 - window.left) / window.window_width * depth.shape[1]
    full = depth[rows.long().clamp(0, depth.shape[0] - 1)[:, None], columns.long().clamp(0, depth.shape[1] - 1)].clone()
    outside = ((rows < 0) | (rows >= depth.shape[0]))[:, None] | (columns < 0) | (columns >= depth.shape[1])
    full[outside] = float("nan")
    return full


def write_original(frame: Frame, folder: Path, name: str) -> str:
    """Copy the picture of a frame as it is, or write what undistortion or turning made of it; its name in `folder`."""
    suffix = frame.path.suffix.lower()
    untouched = frame.picture is None and frame.lens is None and suffix in COPIED
    if untouched and (frame.world_to_camera is not None or _stored_upright(frame)):
        with (
            replacing(folder / f"{name}{suffix}") as beside,
            frame.path.open("rb") as source,
            beside.open("wb") as copy,
        ):
            shutil.copyfileobj(source, copy)
        return f"{name}{suffix}"
    picture = original_picture(frame)
    suffix = ".jpg" if suffix in (".jpg", ".jpeg") else ".png"
    with replacing(folder / f"{name}{suffix}") as beside:
        picture.save(beside, quality=95)  # which PNG does not heed
    return f"{name}{suffix}"


def _stored_upright(frame: Frame) -> bool:
    with frame.path.open("rb") as stream, Image.open(stream, formats=FORMATS) as image:
        return image.getexif().get(ExifTags.Base.Orientation, 1) == 1 and image.mode == "RGB"
