"""How novel views are scored, as a record that stands beside every number.

The same model has 20.7, 21.3 and 22.4 dB on one benchmark under three protocols, so nothing here has a silent default.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from da3_splat.data.view_index import ViewIndex, check_length, read_view_index
from da3_splat.data.view_selection import farthest_point_views, hold_out
from da3_splat.data.views import PATCH
from da3_splat.types import Cameras

PoseProtocol = Literal["posed", "raw", "aligned"]
POSES = {
    "posed": "the method is given the cameras of the contexts; targets are rendered at their given cameras",
    "raw": "the method is given pictures alone; the given target cameras are moved by the similarity (Umeyama on "
    "camera centres and axes) from the given to the predicted context cameras; target intrinsics are the given ones",
    "aligned": "as raw, then the pose of each target is optimised against its picture on fixed Gaussians",
}


@dataclass(frozen=True)
class Size:
    """What a target is rendered and scored at, height x width in pixels; None: as large as its picture is."""

    height: int | None = None
    width: int | None = None

    @staticmethod
    def parse(text: str) -> Size:
        """`native`, or height x width such as 270x480."""
        if text == "native":
            return Size()
        match = re.fullmatch(r"(\d+)x(\d+)", text)
        if match is None or min(int(match[1]), int(match[2])) < PATCH:
            raise ValueError(f"size: expected native or HEIGHTxWIDTH of at least {PATCH} pixels, got {text!r}")
        return Size(int(match[1]), int(match[2]))

    @property
    def network(self) -> Size:
        """What the contexts have: the next smaller multiples of 14 (270x480 is seen at 266x476)."""
        if self.height is None or self.width is None:
            return self
        return Size(self.height // PATCH * PATCH, self.width // PATCH * PATCH)

    @property
    def covering_patches(self) -> dict[str, int]:
        """The smallest height and width of whole patches that cover it: what synthetic pictures are cast at."""
        if self.height is None or self.width is None:
            raise ValueError("size: expected HEIGHTxWIDTH, native pictures have no size of their own to cast at")
        return {"height": -(-self.height // PATCH) * PATCH, "width": -(-self.width // PATCH) * PATCH}

    def __str__(self) -> str:
        return "native" if self.height is None else f"{self.height}x{self.width}"


@dataclass(frozen=True)
class NovelViewProtocol:
    """Which views go in and which are asked for, at what size, with which poses.

    Without an index, targets are every `every`-th frame and `contexts` of the others are chosen by farthest point on
    pose distance, as DA3's paper does (section 6.1); fewer where a scene has fewer. An `index` file says both itself.
    """

    contexts: int = 12
    every: int = 8
    size: Size = Size(270, 480)
    poses: PoseProtocol = "posed"
    alignment_steps: int = 100
    index: Path | None = None

    def __post_init__(self):
        if self.contexts < 1:
            raise ValueError(f"contexts: expected at least 1, got {self.contexts}")
        if self.every < 2:
            raise ValueError(f"every: expected at least 2 (1 leaves no contexts), got {self.every}")
        if self.alignment_steps < 1:
            raise ValueError(f"alignment_steps: expected at least 1, got {self.alignment_steps}")

    def read_index(self) -> dict[str, ViewIndex | None] | None:
        """What the index file says of each scene, None where there is no such file."""
        return None if self.index is None else read_view_index(self.index)

    def choose(self, cameras: Cameras, views: ViewIndex | None, scene: str) -> ViewIndex:
        """Contexts and targets among the V frames of a scene, whose `cameras` are (1,V); `views` is the index's say."""
        count = cameras.world_to_camera.shape[1]
        if views is not None:
            check_length(views, count, f"{self.index}: {scene}")
            return views
        targets = hold_out(count, self.every)
        candidates = [frame for frame in range(count) if frame not in set(targets)]
        if not candidates:
            raise ValueError(f"{scene}: {count} frames leave no contexts beside the targets")
        chosen = farthest_point_views(cameras, min(self.contexts, len(candidates)), candidates)
        return ViewIndex(context=tuple(sorted(chosen)), target=tuple(targets))

    def describe(self) -> dict[str, object]:
        """All of it in plain words and numbers, for results.json."""
        if self.index is None:
            views = {
                "views": f"targets every {self.every}th frame, contexts by farthest point on pose distance (centre "
                "distance over extent + angle over 180 degrees), as DA3 section 6.1",
                "contexts": self.contexts,
                "targets_every": self.every,
            }
        else:
            digest = hashlib.sha256(self.index.read_bytes()).hexdigest()[:16]
            views = {"views": "view-index file", "index": self.index.name, "index_sha256": digest}
        return {
            **views,
            "scored_at": str(self.size),
            "network_at": str(self.size.network),
            "pictures": "scaled to cover (antialiased), cropped around the centre; native: sides snapped to 14 pixels",
            "poses": self.poses,
            "pose_protocol": POSES[self.poses],
            "alignment_steps": self.alignment_steps if self.poses == "aligned" else 0,
            "scores": "renderings clamped to [0,1]; SSIM 11x11 Gaussian, sigma 1.5; masked pixels black in both; mean "
            "over the targets of a scene, then over scenes",
        }
