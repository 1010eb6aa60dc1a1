"""What is known of each chunk, on disk: written whole or not at all, so that a run that was killed goes on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from da3_splat.io.files import replacing
from da3_splat.types import Cameras, Gaussians, Geometry

_MAPS = ("depth", "confidence", "sky")
_PREFIX = "gaussians."


@dataclass(frozen=True)
class ChunkResult:
    """One chunk alone: its geometry (1,S) in its own frame, descriptions (S,D) of its views, and those of its pixels'
    Gaussians (1,K) that may stay, with their places: view * H * W + pixel (K), ascending. None for a bridge."""

    geometry: Geometry
    descriptions: Tensor
    gaussians: Gaussians | None = None
    places: Tensor | None = None

    @property
    def available(self) -> Tensor:
        """(1,S,H,W) bool: pixels whose Gaussians were kept."""
        there = torch.zeros(self.geometry.depth.numel(), dtype=torch.bool)
        there[self.places] = True
        return there.reshape(self.geometry.depth.shape)

    def gaussians_of_view(self, view: int) -> Gaussians:
        """(1,H*W) of one view; pixels that were not kept have opacity 0."""
        pixels = self.geometry.depth.shape[-2] * self.geometry.depth.shape[-1]
        assert self.gaussians is not None and self.places is not None, "no view of a bridge is laid"
        low, high = torch.searchsorted(self.places, torch.tensor([view * pixels, (view + 1) * pixels])).tolist()
        index = self.places[low:high] - view * pixels
        values = {}
        for name, kept in self.gaussians.kept_on_disk().items():
            values[name] = kept.new_zeros(1, pixels, *kept.shape[2:])
            values[name][:, index] = kept[:, low:high]
        return Gaussians(**values)


class WorkFolder:
    """A folder of chunks made with one `recipe`. ValueError where it holds those of another."""

    def __init__(self, path: str | Path, recipe: dict):
        self.path = Path(path)
        text, file = json.dumps(recipe, sort_keys=True, default=str), self.path / "recipe.json"
        if file.is_file() and file.read_bytes() != text.encode():
            raise ValueError(f"{self.path}: holds chunks of other pictures or settings; remove it or choose another")
        if not file.is_file():
            with replacing(file) as beside:
                beside.write_text(text)

    def load(self, name: str) -> ChunkResult | None:
        """What `save` wrote under this name; None where it is not there, or not whole."""
        file = self.path / f"{name}.safetensors"
        if not file.is_file():
            return None
        try:
            return _result(load_file(file))
        except (SafetensorError, KeyError, ValueError):
            return None  # a disk that filled up, a copy broken off, or another program's: made again

    def kept(self, name: str) -> ChunkResult:
        """What was there a moment ago; ValueError where somebody has taken it away since."""
        result = self.load(name)
        if result is None:
            raise ValueError(f"{self.path / name}.safetensors: was written, and is gone or broken now")
        return result

    def save(self, name: str, result: ChunkResult) -> None:
        geometry = result.geometry
        values = {key: getattr(geometry, key) for key in _MAPS if getattr(geometry, key) is not None}
        values |= {
            "world_to_camera": geometry.known_cameras.world_to_camera,
            "intrinsics": geometry.known_cameras.intrinsics,
        }
        values["descriptions"] = result.descriptions
        if result.gaussians is not None:
            values["places"] = result.places
            values |= {_PREFIX + key: value for key, value in result.gaussians.kept_on_disk().items()}
        with replacing(self.path / f"{name}.safetensors") as beside:
            save_file({key: value.detach().cpu().contiguous() for key, value in values.items()}, beside)


def _result(values: dict[str, Tensor]) -> ChunkResult:
    """What `WorkFolder.save` wrote; KeyError or ValueError where these are other tensors."""
    maps: dict[str, Any] = {key: values[key] for key in _MAPS if key in values}
    height, width = maps["depth"].shape[-2:]
    cameras = Cameras(
        world_to_camera=values["world_to_camera"], intrinsics=values["intrinsics"], height=height, width=width
    )
    gaussians = None
    if "places" in values:
        found = {key: value for key, value in values.items() if key.startswith(_PREFIX)}
        gaussians = Gaussians(**{key.removeprefix(_PREFIX): value for key, value in found.items()})
    geometry = Geometry(**maps, cameras=cameras)
    return ChunkResult(geometry, values["descriptions"], gaussians, values.get("places"))
