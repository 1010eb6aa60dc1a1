"""results.json and the records behind it: one file a scene, so that runs resume and processes share the work.

output/scenes/<scene>.json     what is known of one scene, or why it could not be scored; written once, atomically
output/pictures/<scene>/       the pictures of it that the report shows
output/results.json            all scenes, their means, protocol, versions; `timing` alone differs between runs
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from da3_splat.io.files import replacing
from da3_splat.io.images import write_image
from da3_splat.io.json_files import load_json


@dataclass(frozen=True)
class ResultsFolder:
    """The output of one evaluation. Records of another protocol, method or data count as not there."""

    path: Path
    identity: str

    def record(self, scene: str) -> dict | None:
        """What is known of a scene: {"scores": ..., "timing": ...} or {"error": ...}; None where nothing is."""
        path = self.path / "scenes" / f"{file_name(scene)}.json"
        if not path.is_file():
            return None
        try:
            content = load_json(path)
        except ValueError:  # of another program, or a disk that failed: scored again
            return None
        fits = isinstance(content, dict) and content.get("identity") == self.identity and content.get("name") == scene
        return content if fits else None

    def save(self, scene: str, content: dict, pictures: dict[str, np.ndarray] | None = None) -> None:
        """Write the record of a scene, its pictures (H,W,3) first."""
        for name, pixels in (pictures or {}).items():
            write_image(self.picture(scene, name), pixels)
        record = {"identity": self.identity, "name": scene, **content}
        _write_json(self.path / "scenes" / f"{file_name(scene)}.json", record)

    def picture(self, scene: str, name: str) -> Path:
        """Where a picture of the scene lies."""
        return self.path / "pictures" / file_name(scene) / f"{name}.jpg"

    def write(self, results: dict) -> Path:
        """Write results.json."""
        _write_json(self.path / "results.json", results)
        return self.path / "results.json"


def identity_of(description: dict) -> str:
    """A short name for a protocol, a method and data: equal only where all of them are."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]


def file_name(scene: str) -> str:
    """The scene's name in letters that every file system takes, different for different scenes."""
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", scene).lstrip(".")
    return plain if plain == scene else f"{plain}_{zlib.crc32(scene.encode()):08x}"


def mean_of(values: Sequence[float | None]) -> float | None:
    """The mean, None where a value is missing or there is none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _write_json(path: Path, content: dict) -> None:
    with replacing(path) as beside:
        beside.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
