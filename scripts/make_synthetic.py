"""Write synthetic scenes in the layout of a public collection, to try readers and training runs on.

    uv run python scripts/make_synthetic.py --layout dl3dv --scenes 4 --output outputs/synthetic

Everything follows from the seed. MegaDepth's depth files are read as depth from about 160x160 pixels on only.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.progress import track

from da3_splat.data.layouts import scene_hash, write_dl3dv_scene, write_dl3dv_zip, write_megadepth_scene
from da3_splat.data.synthetic import make_scenes
from da3_splat.io.images import write_image


@dataclass
class Settings:
    output: Path
    """the folder to write into"""
    layout: Literal["nerfstudio", "dl3dv", "dl3dv-benchmark", "megadepth", "colmap"] = "nerfstudio"
    scenes: int = 1
    views: int = 24
    """pictures a scene"""
    height: int = 168
    width: int = 224
    seed: int = 0
    unpacked: bool = False
    """dl3dv: folders rather than the zips that are published"""


def write_scene(settings: Settings, seed: int) -> Path:
    """Write one scene and return where it is."""
    size = (settings.views, settings.height, settings.width)
    if settings.layout == "nerfstudio":
        from da3_splat.demo import write_capture  # and with it all of the package

        write_capture(settings.output / f"scene_{seed:04d}", seed, *size)
        return settings.output / f"scene_{seed:04d}"
    if settings.layout == "megadepth":
        landmark = f"{seed % 10_000:04d}"
        write_megadepth_scene(settings.output, landmark, 0, *size, seed=seed)
        return settings.output / "phoenix" / "S6" / "zl548" / "MegaDepth_v1" / landmark / "dense0"
    views, geometry = make_scenes(1, *size, seed, arc=60)
    if settings.layout == "dl3dv-benchmark":
        return write_dl3dv_scene(settings.output, views, scene_hash(seed), factors=(4, 8), benchmark=True)
    if settings.layout == "dl3dv":
        write = write_dl3dv_scene if settings.unpacked else write_dl3dv_zip
        return write(settings.output / "1K", views, scene_hash(seed))
    from da3_splat.io.colmap import write_colmap  # pycolmap takes a moment to import

    folder = settings.output / f"scene_{seed:04d}"
    names = [f"{name}.png" for name in views.names]
    for name, image in zip(names, views.images[0]):
        write_image(folder / "images" / name, image.permute(1, 2, 0).numpy())
    seen = geometry.depth.flatten() > 0
    points = geometry.points().reshape(-1, 3)[seen][::97].numpy()
    colors = views.images.permute(0, 1, 3, 4, 2).reshape(-1, 3)[seen][::97].numpy()
    write_colmap(folder / "sparse" / "0", views.cameras, names, points, colors)
    return folder


settings = tyro.cli(Settings, description=__doc__)
if settings.scenes < 1 or settings.views < 2:
    raise SystemExit("expected at least one scene of two views")
folder = settings.output
began = time.perf_counter()
for seed in track(range(settings.seed, settings.seed + settings.scenes), "writing", console=Console(stderr=True)):
    folder = write_scene(settings, seed)
seconds = (time.perf_counter() - began) / settings.scenes
summary = (
    f"{settings.scenes} scenes of {settings.views} views in {settings.output}, {seconds:.2f} s each; the last: {folder}"
)
Console().print(summary)
