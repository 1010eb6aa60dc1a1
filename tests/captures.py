"""Small captures on disk for tests, made from synthetic worlds."""

from pathlib import Path

from da3_splat.demo import write_capture


def small_capture(folder: Path, views: int = 9, height: int = 56, width: int = 84) -> Path:
    """A posed Nerfstudio capture with sparse points; returns its folder."""
    write_capture(folder, seed=7, views=views, height=height, width=width)
    return folder
