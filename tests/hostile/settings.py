"""Small files of settings and results: recipes, view indices, records, checkpoints, and folders that we wrote."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path

import torch

from hostile.arrays import Bomb, as_npz, good_geometry, npz_cases, ply, ply_cases, safetensors, safetensors_cases
from hostile.captures import good_transforms, transforms_cases
from hostile.case import Case, file_case

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)
TEXTS = ("", "3", "[]", "null", "{", "\xff\0", "[" * 50_000, '{"a": ' * 50_000, "NaN", "9" * 5000)


def recipe_cases() -> list[Case]:
    """For `load_config`: YAML."""
    lines = (
        *TEXTS,
        LAUGHS + "steps: *a9\n",
        "steps: !!python/object/apply:os.system ['touch unpickled']",
        *(f"steps: !!{kind} x" for kind in ("int", "float", "timestamp", "bool", "binary", "set", "omap", "pairs")),
        "? [a]\n: 3",
        "steps: 1e400",
        "steps: .nan",
        "rate: .inf",
        "rate: .nan",
        "rate: -1",
        "steps: -5",
        "steps: 10:60:60",
        "rate: [1]",
        "rate: {a: 3}",
        "rate: null",
        "rate: true",
        "steps: 3\nsteps: 4",
        "nothing_of_this_name: 3",
        "steps: &a\n  - *a",
        "a: " + "- " * 20_000,
        "%YAML 9.9\n---\nsteps: 3",
        "steps: 2026-99-99",
        f"steps: {'9' * 5000}",
    )
    return [file_case(f"{number}: {text[:30]!r}", "recipe.yaml", text) for number, text in enumerate(lines)]


def view_index_cases() -> list[Case]:
    """For `read_view_index`."""
    entries = ({"context": [0], "target": [1]}, 3, [], {}, {"context": 0, "target": [1]}, {"context": [], "target": []})
    entries += ({"context": [-1], "target": [1]}, {"context": [0.5], "target": [1]}, {"context": [True], "target": [1]})
    entries += (
        {"context": [[0]], "target": [{}]},
        {"context": [10**30], "target": [1]},
        {"context": [0, 0], "target": [1]},
    )
    texts = [json.dumps({"a": entry}) for entry in entries] + [*TEXTS, '{"a": null, "a": null}', '{"\\ud800": 3}']
    return [file_case(f"{number}: {text[:30]!r}", "index.json", text) for number, text in enumerate(texts)]


def good_scene(folder: Path) -> Path:
    """A folder as `save_scene` leaves it."""
    good_transforms(folder)
    (folder / "depth.npz").write_bytes(as_npz(good_geometry()))
    (folder / "scene.ply").write_bytes(ply(2))
    (folder / "report.json").write_text("{}")
    return folder


def _within(case: Case, file: str) -> Case:
    """A good scene in which `file` is that of another case."""

    def write(folder: Path) -> Path:
        scene, other = good_scene(folder / "scene"), folder / "other"
        other.mkdir()
        (scene / file).unlink()
        case.write(other).replace(scene / file)
        return scene

    return Case(f"{file}: {case.name}", write)


def scene_cases() -> list[Case]:
    """For `load_scene`: a third of what its parts are tried with by themselves."""
    geometry = [case for case in npz_cases() if "gigabyte" not in case.name]
    cameras = [case for case in transforms_cases() if not case.name.startswith("a ")]
    cases = [_within(case, "depth.npz") for case in geometry[::3]]
    cases += [_within(case, "scene.ply") for case in ply_cases()[::3]]
    cases += [_within(case, "transforms.json") for case in cameras[::3]]
    return cases + [_within(file_case(repr(text[:20]), "x", text), "report.json") for text in TEXTS]


def chunk_cases() -> list[Case]:
    """For `WorkFolder.load`: chunk.safetensors of a work folder."""
    tensor = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    names = ("depth", "world_to_camera", "intrinsics", "descriptions", "places", "gaussians.means")
    held = {name: {**tensor, "data_offsets": [16 * i, 16 * i + 16]} for i, name in enumerate(names)}
    extra = {"other things": safetensors({"x": tensor}, bytes(16)), "flat things": safetensors(held, bytes(96))}
    cases = [file_case(case.name, "x", _bytes_of(case)) for case in safetensors_cases()]
    cases += [file_case(name, "x", data) for name, data in extra.items()]
    return [
        Case(case.name, lambda folder, case=case: case.write(folder).rename(folder / "chunk.safetensors"))
        for case in cases
    ]


def _bytes_of(case: Case) -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return case.write(Path(folder)).read_bytes()


def checkpoint(content: object) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def run_cases() -> list[Case]:
    """For `load_run`: what ns-train leaves behind."""
    frame = json.dumps({"scale": 1.0, "rotation": [[1, 0, 0], [0, 1, 0], [0, 0, 1]], "translation": [0, 0, 0]})
    prefix = "_model.gauss_params."
    shapes = {"means": 3, "quats": 4, "scales": 3, "opacities": 1, "features_dc": 3}
    good = {prefix + name: torch.ones(2, size) for name, size in shapes.items()} | {
        prefix + "features_rest": torch.ones(2, 0, 3)
    }
    stream = io.BytesIO(checkpoint({"pipeline": good}))
    emptied = io.BytesIO()
    with zipfile.ZipFile(stream) as source, zipfile.ZipFile(emptied, "w") as target:
        for item in source.namelist():
            target.writestr(item, b"" if "/data/" in item else source.read(item))
    states = {
        "good": checkpoint({"pipeline": good}),
        "a pickle": pickle.dumps(Bomb()),
        "empty": b"",
        "text": b"hello",
        "cut": checkpoint({"pipeline": good})[:-100],
        "no pipeline": checkpoint({}),
        "a list": checkpoint([1]),
        "a pipeline of 3": checkpoint({"pipeline": 3}),
        "means alone": checkpoint({"pipeline": {prefix + "means": torch.ones(2, 3)}}),
        "means of another shape": checkpoint({"pipeline": {**good, prefix + "means": torch.ones(3)}}),
        "means that are text": checkpoint({"pipeline": {**good, prefix + "means": "x"}}),
        "a bomb": checkpoint({"pipeline": Bomb()}),
        "no numbers": emptied.getvalue(),
    }
    frames = [
        *TEXTS,
        frame.replace("1.0", "NaN"),
        frame.replace("1.0", '"x"'),
        frame.replace("[0, 0, 0]", "[[0],[0, 1]]"),
    ]
    frames += [frame.replace("1.0", "9" * 400), frame.replace("[1, 0, 0]", "[1]")]

    def made(state: bytes, text: str):
        def write(folder: Path) -> Path:
            (folder / "run" / "nerfstudio_models").mkdir(parents=True)
            (folder / "run" / "nerfstudio_models" / "step-000000010.ckpt").write_bytes(state)
            (folder / "run" / "user_frame.json").write_bytes(text.encode("latin-1"))
            return folder / "run"

        return write

    cases = [Case(name, made(state, frame)) for name, state in states.items()]
    return cases + [Case(f"frame {text[:20]!r}", made(states["good"], text)) for text in frames]


def quality_cases() -> list[Case]:
    """For `read_quality`: what is known of labels."""
    texts = [
        *TEXTS,
        "{}",
        '{"settings": 3}',
        '{"settings": null, "frames": 3}',
        '{"settings": null, "frames": [{"a": 1}]}',
    ]
    return [file_case(f"{text[:30]!r}", "quality.json", text) for text in texts]
