"""Small synthetic scenes on disk in the layouts of public data sets. Each writer returns what it wrote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from PIL import Image
from scipy.io import savemat

from da3_splat.data.synthetic import make_scenes
from da3_splat.geometry.rotations import matrix_to_quaternion

INDOORS = 78  # a world without sky


@dataclass(frozen=True)
class Written:
    """pixels (V,H,W,3) uint8, depth (V,H,W) float32, world_to_camera (V,4,4) and intrinsics (V,3,3) float64,
    points (V,H,W,3)."""

    pixels: np.ndarray
    depth: np.ndarray
    world_to_camera: np.ndarray
    intrinsics: np.ndarray
    points: np.ndarray


def world(views: int = 3, height: int = 56, width: int = 70, seed: int = INDOORS) -> Written:
    """What the writers write: a world whose depth has a hole in every view's corner."""
    scenes, truth = make_scenes(1, views, height, width, seed=seed, arc=40, supersample=1)
    points = truth.points()[0].numpy()
    depth = truth.depth[0].numpy().copy()
    depth[:, :5, :7] = 0
    pixels = (scenes.images[0].permute(0, 2, 3, 1).clamp(0, 1).numpy() * 255 + 0.5).astype(np.uint8)
    matrices = scenes.cameras.world_to_camera[0].double().numpy(), scenes.cameras.intrinsics[0].double().numpy()
    return Written(pixels, depth, *matrices, points)


def picture(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def integers(path: Path, values: np.ndarray) -> np.ndarray:
    """A 16-bit grey PNG; returns the rounded values."""
    rounded = np.round(values).clip(0, 65535).astype(np.uint16)
    picture(path, rounded)
    return rounded.astype(np.float64)


def numbers(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(" ".join(repr(float(value)) for value in row) for row in values) + "\n")


def cloud(path: Path, points: np.ndarray) -> None:
    """An ASCII PLY of points (P,3)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = ["ply", "format ascii 1.0", f"element vertex {len(points)}"]
    head += [f"property float {axis}" for axis in "xyz"] + ["end_header"]
    path.write_text("\n".join(head + [" ".join(f"{value:.6f}" for value in point) for point in points]) + "\n")


def mesh(path: Path, corners: np.ndarray, triangles: np.ndarray) -> None:
    """An ASCII PLY of a triangle mesh."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = ["ply", "format ascii 1.0", f"element vertex {len(corners)}"]
    head += [f"property float {axis}" for axis in "xyz"]
    head += [f"element face {len(triangles)}", "property list uchar int vertex_indices", "end_header"]
    body = [" ".join(f"{value:.6f}" for value in corner) for corner in corners]
    body += [" ".join(map(str, (3, *triangle))) for triangle in triangles.tolist()]
    path.write_text("\n".join(head + body) + "\n")


def colmap(folder: Path, written: Written, names: list[str], model: str = "PINHOLE", extra: str = "") -> None:
    """cameras.txt, images.txt, points3D.txt, one camera."""
    folder.mkdir(parents=True, exist_ok=True)
    height, width = written.depth.shape[1:]
    k = written.intrinsics[0]
    lens = f"{k[0, 0]!r} {k[1, 1]!r} {k[0, 2]!r} {k[1, 2]!r}".replace("np.float64(", "").replace(")", "")
    (folder / "cameras.txt").write_text(f"# Camera list\n#\n#\n1 {model} {width} {height} {lens}{extra}\n")
    lines = ["# Image list", "#", "#", "#"]
    for number, (name, pose) in enumerate(zip(names, written.world_to_camera), start=1):
        turn = matrix_to_quaternion(torch.from_numpy(pose[:3, :3])).tolist()
        lines += [f"{number} {' '.join(map(repr, [*turn, *pose[:3, 3].tolist()]))} 1 {name}", ""]
    (folder / "images.txt").write_text("\n".join(lines) + "\n")
    (folder / "points3D.txt").write_text("# 3D point list\n")


def hiroom(folder: Path, w: Written) -> np.ndarray:
    scene = folder / "data" / "a" / "b" / "c"
    depth = []
    for index in range(len(w.pixels)):
        picture(scene / "image" / f"{index:03d}.jpg", w.pixels[index])
        depth.append(integers(scene / "depth" / f"{index:03d}.png", w.depth[index] / 100 * 65535) * 100 / 65535)
        mask = np.zeros(w.depth.shape[1:], np.uint8)
        mask[-4:] = 255 * (index == 1)
        picture(scene / "aliasing_mask" / f"{index:03d}.png", mask)
        (scene / "pose").mkdir(exist_ok=True)
        np.save(scene / "pose" / f"{index:03d}.npy", w.world_to_camera[index])
    depth[1][-4:] = 0
    np.save(scene / "cam_K.npy", w.intrinsics[0])
    cloud(folder / "fused_pcd" / "a-b-c.ply", w.points.reshape(-1, 3))
    (folder / "selected_scene_list_val.txt").write_text("a/b/c\n")
    return np.stack(depth)


def seven_scenes(folder: Path, w: Written) -> np.ndarray:
    """Frames 0, 11, 22, ... are those of the world; the others are there and must not be read."""
    sequence, depth = folder / "7Scenes" / "chess" / "seq-01", []
    for frame in range(11 * len(w.pixels)):
        start, index = sequence / f"frame-{frame:06d}", frame // 11
        picture(Path(f"{start}.color.png"), w.pixels[index])
        numbers(Path(f"{start}.pose.txt"), np.linalg.inv(w.world_to_camera[index]))
        stored = w.depth[index] * 1000
        stored[3:6, 40:50] = 65535  # as the Kinect says that it does not know
        values = integers(Path(f"{start}.depth.png"), stored) / 1000
        if frame % 11 == 0:
            depth.append(np.where(values > 65.5, 0, values))
    cloud(folder / "7Scenes" / "meshes" / "chess.ply", w.points.reshape(-1, 3))
    return np.stack(depth)


def eth3d(folder: Path, w: Written) -> np.ndarray:
    names = [f"dslr_images/DSC_{number:04d}.JPG" for number in range(711, 711 + len(w.pixels))]
    for scene in ("office", "delivery_area"):
        colmap(folder / scene / "dslr_calibration_jpg", w, names, "THIN_PRISM_FISHEYE", " 0.01" + " 0" * 7)
        for index, name in enumerate(names):
            picture(folder / scene / "images" / name, w.pixels[index])
            values = np.where(w.depth[index] > 0, w.depth[index], np.inf).astype("<f4")
            path = folder / scene / "ground_truth_depth" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            values.tofile(path)
    cloud(folder / "office" / "combined_mesh.ply", w.points.reshape(-1, 3))
    return w.depth


def scannetpp(folder: Path, w: Written) -> None:
    scene = folder / "data" / "09c1414f1b"
    names = [f"iphone/frame_{5 * i + extra:06d}.jpg" for i in range(len(w.pixels)) for extra in range(5)]
    many = Written(w.pixels, w.depth, np.repeat(w.world_to_camera, 5, axis=0), w.intrinsics, w.points)
    colmap(scene / "merge_dslr_iphone" / "colmap" / "sparse_render_rgb", many, names, "OPENCV", " 0 0 0 0")
    for number, name in enumerate(names):
        picture(scene / "merge_dslr_iphone" / "images" / name, w.pixels[number // 5])
    cloud(scene / "scans" / "mesh_aligned_0.05.ply", w.points.reshape(-1, 3))


def tanks_and_temples(folder: Path, w: Written) -> None:
    names = [f"{index:05d}.jpg" for index in range(len(w.pixels))]
    colmap(folder / "truck" / "sparse" / "0", w, names)
    for index, name in enumerate(names):
        picture(folder / "truck" / "images" / name, w.pixels[index])


def kitti(folder: Path, w: Written, split: str = "val") -> np.ndarray:
    """Depth of every second pixel, as a laser scanner leaves holes."""
    drive, depth = "2011_09_26_drive_0002_sync", []
    for index in range(len(w.pixels)):
        name = f"{index + 5:010d}.png"
        picture(folder / "2011_09_26" / drive / "image_02" / "data" / name, w.pixels[index])
        sparse = np.where(np.indices(w.depth.shape[1:]).sum(axis=0) % 2 == 0, w.depth[index], 0)
        depth.append(integers(folder / split / drive / "proj_depth/groundtruth/image_02" / name, sparse * 256) / 256)
    matrix = np.concatenate([w.intrinsics[0], [[44.8], [0.2], [0.003]]], axis=1)
    (folder / "2011_09_26" / "calib_cam_to_cam.txt").write_text(
        "calib_time: 09-Jan-2012 13:57:47\nP_rect_01: 1 2 3\nP_rect_02: " + " ".join(f"{v:.17g}" for v in matrix.flat)
    )
    return np.stack(depth)


def kitti_selection(folder: Path, w: Written) -> np.ndarray:
    base, depth = folder / "depth_selection" / "val_selection_cropped", []
    for index in range(len(w.pixels)):
        name = f"2011_09_26_drive_0002_sync_{{}}_{index:010d}_image_02"
        picture(base / "image" / f"{name.format('image')}.png", w.pixels[index])
        numbers(base / "intrinsics" / f"{name.format('image')}.txt", w.intrinsics[index].reshape(1, 9))
        path = base / "groundtruth_depth" / f"{name.format('groundtruth_depth')}.png"
        depth.append(integers(path, w.depth[index] * 256) / 256)
    return np.stack(depth)


def nyuv2(folder: Path, w: Written) -> np.ndarray:
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / "nyu_depth_v2_labeled.mat", "w") as file:
        file.create_dataset("images", data=w.pixels.transpose(0, 3, 2, 1))
        file.create_dataset("rawDepths", data=w.depth.transpose(0, 2, 1))
        file.create_dataset("depths", data=np.full_like(w.depth.transpose(0, 2, 1), 9.0))
    savemat(folder / "splits.mat", {"testNdxs": np.array([[1], [3]]), "trainNdxs": np.array([[2]])})
    return w.depth[[0, 2]]


def sintel(folder: Path, w: Written) -> np.ndarray:
    base, tag = folder / "training", np.float32(202021.25).tobytes()
    height, width = w.depth.shape[1:]
    for index in range(len(w.pixels)):
        picture(base / "final" / "alley_1" / f"frame_{index + 1:04d}.png", w.pixels[index])
        for kind, ending, content in (
            ("depth", "dpt", np.array([width, height], "<i4").tobytes() + w.depth[index].astype("<f4").tobytes()),
            ("camdata_left", "cam", w.intrinsics[index].tobytes() + w.world_to_camera[index][:3].tobytes()),
        ):
            path = base / kind / "alley_1" / f"frame_{index + 1:04d}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(tag + content)
    return w.depth


def diode(folder: Path, w: Written) -> np.ndarray:
    for kind in ("indoors", "outdoor"):
        scan = folder / "val" / kind / "scene_00019" / "scan_00183"
        for index in range(len(w.pixels)):
            start = f"00019_00183_{kind}_{index:03d}_000"
            picture(scan / f"{start}.png", w.pixels[index])
            wrong = np.where(w.depth[index] > 0, w.depth[index], 123.0)  # the mask alone says that it is
            np.save(scan / f"{start}_depth.npy", wrong[..., None])
            np.save(scan / f"{start}_depth_mask.npy", (w.depth[index] > 0).astype(np.float64))
    return w.depth


def sun_rgbd(folder: Path, w: Written) -> np.ndarray:
    depth, names = [], []
    for index in range(len(w.pixels)):
        place = folder / "SUNRGBD" / "kv2" / "kinect2data" / f"000{index:03d}_2014"
        picture(place / "image" / f"{index:07d}.jpg", w.pixels[index])
        numbers(place / "intrinsics.txt", w.intrinsics[index].reshape(1, 9))
        millimetres = np.round(w.depth[index] * 1000).astype(np.uint16)
        integers(place / "depth_bfx" / f"{index:07d}.png", (millimetres << 3) | (millimetres >> 13))
        depth.append(millimetres / 1000)
        names.append(f"/n/fs/sun3d/data/SUNRGBD/kv2/kinect2data/000{index:03d}_2014")
    toolbox = folder / "SUNRGBDtoolbox" / "traintestSUNRGBD"
    toolbox.mkdir(parents=True)
    savemat(toolbox / "allsplit.mat", {"alltest": np.array([names[1:]], dtype=object)})
    return np.stack(depth[1:])


def dtu(folder: Path, w: Written) -> np.ndarray:
    """One scan in millimetres; its upper half is background."""
    depth = 100 * w.depth
    for index in range(len(w.pixels)):
        for light in range(7):
            picture(folder / "Rectified" / "scan9" / f"rect_{index + 1:03d}_{light}_r5000.png", w.pixels[index])
        maps = folder / "depth_raw" / "Depths" / "scan9"
        grey = np.zeros(depth.shape[1:], np.uint8)
        grey[28:] = 200
        picture(maps / f"depth_visual_{index:04d}.png", grey)
        head = f"Pf\n{depth.shape[2]} {depth.shape[1]}\n-1.0\n".encode()
        (maps / f"depth_map_{index:04d}.pfm").write_bytes(head + depth[index, ::-1].astype("<f4").tobytes())
        pose = w.world_to_camera[index].copy()
        pose[:3, 3] *= 100
        rows = [" ".join(f"{v:.17g}" for v in row) for row in pose]
        lens = [" ".join(f"{v:.17g}" for v in row) for row in w.intrinsics[index]]
        path = folder / "Cameras" / f"{index:08d}_cam.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(["extrinsic", *rows, "", "intrinsic", *lens, "", "425.0 2.5", ""]))
        picture(folder / "scan105" / "image" / f"{index:08d}.png", w.pixels[index])
    depth[:, :28] = 0
    points = 100 * w.points.reshape(-1, 3)
    cloud(folder / "Points" / "stl" / "stl009_total.ply", points)
    masks = folder / "SampleSet" / "mvs_data" / "ObsMask"
    masks.mkdir(parents=True)
    low, high = points.min(axis=0) - 5, points.max(axis=0) + 5
    size = 10.0
    seen = np.ones(np.ceil((high - low) / size).astype(int) + 1, np.uint8)
    savemat(masks / "ObsMask9_10.mat", {"ObsMask": seen, "BB": np.stack([low, high]), "Res": size})
    savemat(masks / "Plane9.mat", {"P": np.array([[0.0], [-1.0], [0.0], [points[:, 1].mean()]])})
    return depth
