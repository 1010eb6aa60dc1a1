"""Posed captures: transforms.json and COLMAP models whose numbers, names and counts lie."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

from hostile.case import Case, file_case
from hostile.pictures import encoded

IDENTITY = [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
LENS = {"w": 42, "h": 28, "fl_x": 40.0, "fl_y": 40.0, "cx": 21.0, "cy": 14.0}
HUGE = "1" + "0" * 4000  # a number that no float holds


def good_transforms(folder: Path) -> Path:
    """A capture of two pictures; returns its transforms.json."""
    (folder / "images").mkdir(parents=True)
    for name in ("a", "b"):
        (folder / "images" / f"{name}.png").write_bytes(encoded("PNG"))
    frames = [{"file_path": f"images/{name}.png", "transform_matrix": IDENTITY} for name in ("a", "b")]
    (folder / "transforms.json").write_text(json.dumps({**LENS, "frames": frames}))
    return folder / "transforms.json"


def _changed(name: str, change: Callable[[dict, dict], object]) -> Case:
    """`change(shared, first frame)` of a good capture."""

    def write(folder: Path) -> Path:
        path = good_transforms(folder)
        content = json.loads(path.read_text())
        change(content, content["frames"][0])
        path.write_text(json.dumps(content).replace('"HUGE"', HUGE))
        return path

    return Case(name, write)


def _set(where: str, key: str, value: object) -> Case:
    def change(shared: dict, frame: dict) -> None:
        (shared if where == "shared" else frame)[key] = value

    return _changed(f"{where} {key} = {repr(value)[:30]}", change)


def _pose(row: int, column: int, value: object) -> Case:
    def change(shared: dict, frame: dict) -> None:
        frame["transform_matrix"][row][column] = value

    return _changed(f"pose {row},{column} = {repr(value)[:30]}", change)


def _linked(name: str, link: str, target: str) -> Case:
    """A good capture with `link` in it, which leads to `target` beside the capture."""

    def write(folder: Path) -> Path:
        path = good_transforms(folder / "capture")
        (folder / "secret.png").write_bytes(encoded("PNG"))
        place = path.parent / link
        place.unlink(missing_ok=True)
        place.symlink_to(folder / target if target != "itself" else place)
        return path

    return Case(name, write)


def transforms_cases() -> list[Case]:
    """For `read_transforms` and reading its pictures."""
    nan, inf = float("nan"), float("inf")
    cases = [
        file_case(f"json {text[:12]!r}", "transforms.json", text)
        for text in (
            "",
            "{",
            "[]",
            "null",
            "3",
            '{"frames": 3}',
            '{"frames": [3]}',
            "\xff\xfe",
            "[" * 100_000,
            '"\\ud800"',
        )
    ]
    for key in LENS:
        cases += [_set("shared", key, value) for value in (nan, inf, -inf, "40", None, True, [], {}, "HUGE", 1e300)]
    cases += [_set("shared", "w", value) for value in (0, -42, 1e29, 1e-9)]
    cases += [_set("shared", "fl_x", value) for value in (0, -1, 1e-320, 1e29)]
    cases += [_set("shared", "k1", value) for value in (nan, "0", 1e29, -5.0)]
    cases += [_set("frame", "camera_model", value) for value in (3, "EQUIRECTANGULAR", [], "OPENCV_FISHEYE", None)]
    cases += [_set("frame", "transform_matrix", value) for value in (None, 3, [], [[]], "x", IDENTITY[:2], [[1]] * 4)]
    cases += [_pose(0, 0, value) for value in (nan, 2, -1, "1", None, "HUGE", [1])]
    cases += [_pose(0, 3, value) for value in (nan, inf, 1e300, 1e29, "HUGE")]
    cases += [_pose(3, 0, 1.0), _pose(3, 3, 0.0)]
    names = (
        "../secret.png",
        "/etc/hostname",
        "",
        ".",
        "images",
        "a\0b",
        "x" * 5000,
        "\ud800",
        3,
        None,
        "images/none.png",
    )
    cases += [_set("frame", "file_path", value) for value in names]
    cases += [_set("frame", "mask_path", value) for value in names[:9]]
    cases += [_set("shared", "ply_file_path", value) for value in names[:9]]
    cases += [_changed("the same frame twice", lambda shared, frame: shared["frames"].append(frame))]
    cases += [_changed(f"no {key}", lambda shared, frame, key=key: shared.pop(key)) for key in (*LENS, "frames")]
    cases += [_changed("no pose", lambda shared, frame: frame.pop("transform_matrix"))]
    cases += [
        _linked("a link out", "images/a.png", "secret.png"),
        _linked("a link to itself", "images/a.png", "itself"),
    ]

    def pipe(folder: Path) -> Path:
        path = good_transforms(folder)
        (folder / "images" / "a.png").unlink()
        os.mkfifo(folder / "images" / "a.png")
        return path

    return [*cases, Case("a pipe for a picture", pipe)]


def good_colmap(folder: Path) -> Path:
    """A binary model of two pictures with five points; returns the folder."""
    import numpy as np
    import torch

    from da3_splat.io.colmap import write_colmap
    from da3_splat.types import Cameras

    poses = torch.eye(4).repeat(1, 2, 1, 1)
    poses[0, 1, 0, 3] = -0.1
    intrinsics = torch.tensor([[40.0, 0, 21], [0, 40.0, 14], [0, 0, 1]]).repeat(1, 2, 1, 1)
    cameras = Cameras(world_to_camera=poses, intrinsics=intrinsics, height=28, width=42)
    points = np.random.default_rng(0).uniform(-0.3, 0.3, (5, 3)) + [0, 0, 2]
    write_colmap(folder, cameras, ["a.png", "b.png"], points, np.full((5, 3), 0.5))
    for name in ("a", "b"):
        (folder / f"{name}.png").write_bytes(encoded("PNG"))
    return folder


def good_colmap_text(folder: Path) -> Path:
    """The same as text files."""
    import pycolmap

    good_colmap(folder)
    pycolmap.Reconstruction(str(folder)).write_text(str(folder))
    for path in folder.glob("*.bin"):
        path.unlink()
    return folder


def _model(name: str, file: str, change: Callable[[bytes], bytes | None], text: bool = False) -> Case:
    def write(folder: Path) -> Path:
        (good_colmap_text if text else good_colmap)(folder / "model")
        path = folder / "model" / file
        data = change(path.read_bytes())
        path.unlink()
        if data is not None:
            path.write_bytes(data)
        return folder / "model"

    return Case(f"{file}: {name}", write)


def colmap_cases() -> list[Case]:
    """For `read_colmap`."""
    cases = []
    for file in ("cameras.bin", "images.bin", "points3D.bin", "frames.bin", "rigs.bin"):
        for count in (0, 1000, 2**31, 2**40, 2**63, 2**64 - 1):
            head = struct.pack("<Q", count)
            cases.append(_model(f"says {count}", file, lambda data, head=head: head + data[8:]))
        cases += [_model(f"cut by {size}", file, lambda data, size=size: data[:-size]) for size in (1, 8, 20)]
        cases += [_model("empty", file, lambda data: b""), _model("gone", file, lambda data: None)]
        cases += [_model("bytes after its end", file, lambda data: data + bytes(9))]
        cases += [_model("all ones", file, lambda data: b"\xff" * len(data))]
    outside = lambda data: data.replace(b"a.png\0", b"../..\0")  # noqa: E731
    cases.append(_model("a name that leads out", "images.bin", outside))
    for file in ("cameras.txt", "images.txt", "points3D.txt"):
        cases.append(_model("nan", file, lambda data: data.replace(b"0.", b"nan "), text=True))
        cases.append(_model("letters", file, lambda data: data.replace(b"1 ", b"x "), text=True))
        cases.append(_model("cut", file, lambda data: data[: len(data) * 2 // 3], text=True))
        cases.append(_model("bytes", file, lambda data: b"\xff\0" * 50, text=True))
        cases.append(_model("endless numbers", file, lambda data: data.replace(b"1", b"9" * 40), text=True))
    return cases


def damaged(source: Path, folder: Path, file: str, data: bytes) -> None:
    """A copy of the input `source` at `folder`, in which `file` holds `data`."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    (folder / file).write_bytes(data)
