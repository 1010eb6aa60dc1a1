"""The house: a module imports only lower floors, or neighbours that are named here, and nobody imports upwards."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "da3_splat"
FLOORS = {
    "types": 0, "limits": 0, "config": 0, "ranks": 0,
    "geometry": 1, "spherical_harmonics": 1, "io": 1,
    "backbone": 2, "rendering": 2, "data": 2, "losses": 2, "teacher_losses": 2, "metrics": 2, "perceptual": 2,
    "heads": 3, "fusion": 3,
    "model": 4, "acceleration": 4,
    "planning": 5, "sequence": 5,
    "scene_folder": 5, "export": 6, "posing": 6, "trained_run": 6,
    "starting_points": 5, "refinement": 5, "training": 5, "evaluation": 5,
    "viewer": 6, "demo": 6, "check": 6, "nerfstudio_plugin": 7,
    "commands": 7, "cli": 8,
}  # fmt: skip
NEIGHBOURS = {
    ("config", "limits"),
    ("geometry", "spherical_harmonics"),  # moving Gaussians turns their SH
    ("io", "geometry"),  # files hold cameras in other conventions
    ("io", "spherical_harmonics"),
    ("losses", "metrics"),  # SSIM is both
    ("starting_points", "refinement"),
    ("posing", "export"),
    ("viewer", "export"),  # the same flight
    ("viewer", "trained_run"),
}
HEAVY = {
    "nerfstudio": "nerfstudio_plugin",
    "viser": "viewer",
    "av": "io/video",
    "trimesh": "io/glb",
    "pycolmap": "io/colmap",
    "numba": "rendering/",
    "open3d": "evaluation/tsdf",
}  # who alone may import them


def imports_of(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.append(node.module)
            names += [f"{node.module}.{alias.name}" for alias in node.names if node.module == "da3_splat"]
    return names


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def modules() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def test_imports_go_down():
    wrong = []
    for path in modules():
        here = room_of(path)
        assert here in FLOORS, f"{here} has no floor: name it in {Path(__file__).name}"
        for name in imports_of(path):
            parts = name.split(".")
            if parts[0] != "da3_splat" or len(parts) == 1 or parts[1] == here or parts[1] not in FLOORS:
                continue
            # types.py reads the projection lazily, in one method that saves users an import.
            if (here, parts[1]) == ("types", "geometry"):
                continue
            if FLOORS[parts[1]] >= FLOORS[here] and (here, parts[1]) not in NEIGHBOURS:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_heavy_imports_have_one_home():
    wrong = []
    for path in modules():
        for name in imports_of(path):
            home = HEAVY.get(name.split(".")[0])
            if home and not str(path.relative_to(PACKAGE)).startswith(home):
                wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_no_file_is_a_warehouse():
    long = [f"{path.name}: {len(path.read_text().splitlines())} lines" for path in modules()]
    long = [line for line in long if int(line.split()[1]) > 400]
    assert not long, long
