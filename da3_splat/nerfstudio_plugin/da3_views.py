"""Nerfstudio dataparser `da3-views`: unposed photos or a video, posed by DA3 or COLMAP, for any method.

`ns-train splatfacto da3-views --data photos/`. Nerfstudio loads this module for every command, before its data
managers: it imports none of them, and this package only where pictures are posed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.dataparsers.nerfstudio_dataparser import Nerfstudio, NerfstudioDataParserConfig
from nerfstudio.plugins.registry_dataparser import DataParserSpecification
from nerfstudio.utils.rich_utils import CONSOLE


@dataclass
class Da3ViewsDataParserConfig(NerfstudioDataParserConfig):
    """Those of `nerfstudio-data`, and how the pictures are posed."""

    _target: type = field(default_factory=lambda: Da3ViewsDataParser)
    load_3D_points: bool = True
    eval_mode: Literal["fraction", "filename", "interval", "all"] = "interval"
    poses: Literal["da3", "colmap"] = "da3"
    """Who poses the pictures: the network, or COLMAP (pycolmap)."""
    network: str = "mini"
    """Weights of the network: mini (embedded), a file, or a hub id such as depth-anything/DA3-LARGE-1.1."""
    resolution: int = 504
    """Longest side of the pictures that the network sees; those that are trained on keep their size."""
    max_views: int | None = None
    """Pictures to use at most, evenly spaced."""
    fps: float = 2.0
    """Pictures a second to take from a video."""
    cache: Path | None = None
    """Where posed captures are kept for the next run; default: da3_views/ in the folder of the pictures."""


@dataclass
class Da3ViewsDataParser(Nerfstudio):
    config: Da3ViewsDataParserConfig

    def _generate_dataparser_outputs(self, split: str = "train") -> DataparserOutputs:
        from da3_splat.posing import posed_capture

        given = self.config
        folder = given.data if given.data.is_dir() else given.data.parent
        capture = posed_capture(
            given.data,
            given.cache or folder / "da3_views",
            given.poses,
            given.network,
            given.resolution,
            given.max_views,
            given.fps,
            "cuda" if torch.cuda.is_available() else "cpu",
        )
        CONSOLE.log(f"da3-views: posed by {given.poses}, kept in {capture}")
        self.config = replace(given, data=capture)
        try:
            return super()._generate_dataparser_outputs(split)
        finally:
            self.config = given


da3_views_dataparser = DataParserSpecification(
    config=Da3ViewsDataParserConfig(), description="Unposed photos or a video, posed by Depth Anything 3 or COLMAP."
)
