"""Numbers in files: PLY, npz, npy, safetensors, HDF5 and depth maps with headers that lie, and pickles."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from functools import cache
from pathlib import Path

import h5py
import numpy as np

from hostile.case import Case, file_case

STANDARD = ["x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity", "scale_0", "scale_1", "scale_2"]
STANDARD += ["rot_0", "rot_1", "rot_2", "rot_3"]


class Bomb:
    """Unpickling it would write a file."""

    def __reduce__(self):
        return Path.touch, (Path("unpickled"),)


def ply(
    count: object, names: list[str] = STANDARD, kind: str = "float", rows: bytes | None = None, form: str = ""
) -> bytes:
    """A PLY whose header says `count` vertices."""
    head = f"ply\nformat {form or 'binary_little_endian'} 1.0\nelement vertex {count}\n"
    head += "".join(f"property {kind} {name}\n" for name in names) + "end_header\n"
    return head.encode() + (np.ones((2, len(names)), "<f4").tobytes() if rows is None else rows)


def ply_cases() -> list[Case]:
    """For `load_ply` and `load_points`."""
    rows = np.ones((2, 14), "<f4")
    strange = {
        str(value): np.where(np.eye(2, 14) > 0, np.float32(value), rows).tobytes() for value in (np.nan, np.inf, 1e38)
    }
    content = {
        **{f"says {count}": ply(count) for count in (0, 3, -1, 10**9, 2**63, 10**30, "x", "")},
        **{f"text says {count}": ply(count, form="ascii", rows=b"1 " * 28) for count in (2, 10**9, 2**62, -1)},
        **{f"holds {name}": ply(2, rows=data) for name, data in strange.items()},
        "a list for x": ply(2, kind="list int float"),
        "lists of 2^31": ply(2, kind="list int float", rows=struct.pack("<i", 2**31 - 1) * 40),
        "negative lists": ply(2, kind="list int float", rows=struct.pack("<i", -5) * 40),
        "an unknown kind": ply(2, kind="quad"),
        "x twice": ply(2, ["x", *STANDARD]),
        "f_rest_x": ply(2, [*STANDARD, "f_rest_x"], rows=bytes(200)),
        "f_rest_5 alone": ply(2, [*STANDARD, "f_rest_5"], rows=bytes(200)),
        "red alone": ply(2, ["x", "y", "z", "red"], rows=bytes(32)),
        "a big-endian format of no such name": ply(2, form="binary_middle_endian"),
        "no end of the header": ply(2)[:60],
        "bytes in the header": b"ply\n\xff\xfe\n",
        "an endless line": b"ply\nformat ascii 1.0\ncomment " + b"x" * 1_000_000,
        "no vertex": b"ply\nformat ascii 1.0\nelement face 1\nproperty int x\nend_header\n1\n",
    }
    return [file_case(name, "scene.ply", data) for name, data in content.items()]


def npy(shape: object, kind: str = "<f4", data: bytes = b"", order: bool = False) -> bytes:
    """A .npy whose header says shape and kind."""
    head = f"{{'descr': {kind!r}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    head += b" " * (63 - (10 + len(head)) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + data


LYING = {
    "a shape of 10^12": npy((10**12,)),
    "a shape of 10^6 x 10^6": npy((10**6, 10**6)),
    "a shape beyond 2^64": npy((2**40, 2**40)),
    "a negative shape": npy((-4, 4), data=bytes(64)),
    "no shape": npy("'x'", data=bytes(64)),
    "nothing in it": npy((0, 0)),
    "letters": npy((4, 4), "<U8", bytes(512)),
    "complex": npy((4, 4), "<c8", bytes(128)),
    "big-endian": npy((4, 4), ">f4", bytes(64)),
    "dates": npy((4, 4), "<M8[s]", bytes(128)),
    "objects": npy((1,), "|O", pickle.dumps(Bomb())),
    "an unknown kind": npy((4, 4), "<q9", bytes(64)),
    "cut": npy((40, 40), data=bytes(64)),
    "a header of code": b"\x93NUMPY\x01\x00\x40\x00" + b"__import__('os').system('touch unpickled')".ljust(63) + b"\n",
    "four dimensions": npy((1, 2, 3, 4), data=bytes(96)),
    "version 9": b"\x93NUMPY\x09\x00" + bytes(100),
}


def zipped(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


def good_geometry() -> dict[str, np.ndarray]:
    """What depth.npz holds of two views."""
    intrinsics = np.array([[40, 0, 21], [0, 40, 14], [0, 0, 1]], np.float32)
    depth = np.random.default_rng(0).uniform(1, 2, (2, 28, 42)).astype(np.float32)
    poses, windows = np.stack([np.eye(4, dtype=np.float32)] * 2), np.array([[28, 42, 0, 0, 28, 42.0]] * 2)
    return {"depth": depth, "world_to_camera": poses, "intrinsics": np.stack([intrinsics] * 2), "windows": windows}


def as_npz(arrays: dict[str, np.ndarray]) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


@cache
def _bomb() -> bytes:
    """A zip of a megabyte that unpacks to a gigabyte."""
    head = npy((1 << 18, 32, 32))
    stream = io.BytesIO()
    archive = zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
    with archive, archive.open("depth.npy", "w", force_zip64=True) as member:
        member.write(head)
        for _ in range(256):
            member.write(bytes(1 << 22))
    return stream.getvalue()


def npz_cases() -> list[Case]:
    """For `load_geometry`."""
    good = good_geometry()
    content = {
        "empty": b"",
        "no archive": b"PK\x03\x04" + bytes(100),
        "cut": as_npz(good)[:-40],
        "an array alone": npy((4, 4), data=bytes(64)),
        "a pickle alone": pickle.dumps(Bomb()),
        "a bomb of a gigabyte": _bomb(),
    }
    for name in good:
        content[f"no {name}"] = as_npz({key: value for key, value in good.items() if key != name})
        for title, data in LYING.items():
            members = {f"{key}.npy": _as_npy(value) for key, value in good.items() if key != name}
            content[f"{name}: {title}"] = zipped({**members, f"{name}.npy": data})
        for value in (np.nan, np.inf, -1.0, 0.0, 1e300):
            content[f"{name} all {value}"] = as_npz(
                {**good, name: np.full_like(good[name], np.float64(value), dtype="<f8")}
            )
    return [file_case(name, "depth.npz", data) for name, data in content.items()]


def _as_npy(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def depth_cases() -> list[Case]:
    """For `read_depth`: every form it knows."""
    tag = struct.pack("<f", 202021.25)
    cases = [file_case(f"npy: {name}", "a.npy", data) for name, data in LYING.items()]
    dpt = {
        "empty": b"",
        "cut": tag,
        "huge": tag + struct.pack("<ii", 2**30, 2**30),
        "negative": tag + struct.pack("<ii", -1, 4),
    }
    dpt |= {"odd bytes": tag + struct.pack("<ii", 1, 1) + bytes(5), "of nothing": tag + bytes(8)}
    cases += [file_case(f"dpt: {name}", "a.dpt", data) for name, data in dpt.items()]
    pfm = {
        **{
            f"says {size}": f"Pf\n{size}\n-1.0\n".encode() + bytes(64)
            for size in ("4 4", "30000 30000", "-4 4", "x 4", "0 0")
        },
        **{f"scale {scale}": f"Pf\n4 4\n{scale}\n".encode() + bytes(64) for scale in ("0", "nan", "x", "1e300", "")},
        "empty": b"",
        "colours": b"PF\n2 2\n-1.0\n" + bytes(48),
        "a picture of another kind": b"P6\n4 4\n255\n" + bytes(48),
        "no end": b"Pf\n" + b"4" * 100_000,
    }
    return cases + [file_case(f"pfm: {name}", "a.pfm", data) for name, data in pfm.items()]


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def safetensors_cases() -> list[Case]:
    """For `load_model`."""
    tensor = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}

    def described(**changes: object) -> bytes:
        config = {"preset": "mini", "head": "pixel", "rules": "exact", "sh_degree": 1, "head_features": 8}
        config = {**config, "head_channels": [8, 8, 8, 8], **changes}
        return safetensors({"__metadata__": {"da3_splat": json.dumps(config)}, "x": tensor}, bytes(16))

    content = {
        "empty": b"",
        "a pickle": pickle.dumps(Bomb()),
        **{f"a header of {size}": safetensors(b"{}", length=size) for size in (0, 100, 2**40, 2**63, 2**64 - 1)},
        **{f"a header {text!r}": safetensors(text) for text in (b"[]", b"{", b"null", b"\xff", b"[" * 50_000)},
        "offsets beyond the file": safetensors({"x": {**tensor, "data_offsets": [0, 2**40]}}, bytes(16)),
        "a shape beyond 2^64": safetensors({"x": {**tensor, "shape": [2**40, 2**40]}}, bytes(16)),
        "a negative shape": safetensors({"x": {**tensor, "shape": [-2, -2]}}, bytes(16)),
        "two in one place": safetensors({"x": tensor, "y": tensor}, bytes(16)),
        "an unknown kind": safetensors({"x": {**tensor, "dtype": "F3"}}, bytes(16)),
        "a strange kind": safetensors({"x": {"dtype": "F8_E8M0", "shape": [16], "data_offsets": [0, 16]}}, bytes(16)),
        "weights of nobody": safetensors({"x": tensor}, bytes(16)),
        "a description of lists": safetensors({"__metadata__": {"da3_splat": "[" * 50_000}, "x": tensor}, bytes(16)),
        "a description of 3": safetensors({"__metadata__": {"da3_splat": "3"}, "x": tensor}, bytes(16)),
        "another preset": described(preset="da3-none"),
        "a preset of 3": described(preset=3),
        "a preset of lists": described(preset=["mini"]),
        "unknown rules": described(rules="mine"),
        "a head of a million features": described(head_features=1_000_000),
        "a head of 10^18 features": described(head_features=10**18),
        "channels of a million": described(head_channels=[1_000_000] * 4),
        "channels of letters": described(head_channels=["8"] * 4),
        "one channel": described(head_channels=[8]),
        "negative features": described(head_features=-8),
        "a degree of 10^6": described(sh_degree=10**6),
        "a degree of -1": described(sh_degree=-1),
        "an unknown head": described(head="other"),
    }
    return [file_case(name, "model.safetensors", data) for name, data in content.items()]


def shard_cases() -> list[Case]:
    """Lists of shards, for `read_safetensors`."""
    name = "model.safetensors.index.json"
    maps = (
        {"x": name},
        {"x": "../a.safetensors"},
        {"x": "/etc/hostname"},
        {"x": 3},
        {"x": "."},
        {"x": ".."},
        3,
        None,
        {},
    )
    content = [json.dumps({"weight_map": value}) for value in maps] + ["[" * 50_000, "", "[]", "\xff"]
    return [file_case(text[:40], name, text) for text in content]


def h5_cases() -> list[Case]:
    """For MegaDepth's `read_depth`."""

    def made(fill) -> object:
        def write(folder: Path) -> Path:
            with h5py.File(folder / "a.h5", "w") as file:
                fill(file)
            return folder / "a.h5"

        return write

    def huge(file: h5py.File) -> None:
        file.create_dataset("depth", (1 << 20, 1 << 20), "f4", chunks=(64, 64), compression="gzip")

    def bomb(file: h5py.File) -> None:
        file.create_dataset("depth", (1 << 13, 1 << 14), "f8", chunks=(64, 64), compression="gzip")

    def linked(file: h5py.File) -> None:
        file["depth"] = h5py.ExternalLink("other.h5", "/depth")

    def circle(file: h5py.File) -> None:
        file["depth"] = h5py.SoftLink("/depth")

    fills = {"10^12 pixels": huge, "a bomb": bomb, "a link to another file": linked, "a link to itself": circle}
    kinds = {
        "letters": "S8",
        "objects": h5py.string_dtype(),
        "bool": bool,
        "complex": "c8",
        "half": "f2",
        "big-endian": ">f8",
    }
    for name, kind in kinds.items():
        fills[name] = lambda file, kind=kind: file.create_dataset("depth", (4, 4), kind)
    fills["nothing"] = lambda file: None
    fills["a group"] = lambda file: file.create_group("depth")
    fills["a number"] = lambda file: file.create_dataset("depth", data=3.0)
    fills["no rows"] = lambda file: file.create_dataset("depth", (0, 4), "f4")
    fills["no space"] = lambda file: file.create_dataset("depth", data=h5py.Empty("f4"))
    cases = [Case(name, made(fill)) for name, fill in fills.items()]
    return [*cases, file_case("empty", "a.h5", b""), file_case("text", "a.h5", "hello" * 100)]
