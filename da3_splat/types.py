"""The whole domain in a handful of records. Letters: B batch, S source views, V target views, N Gaussians, K SH bases.

Axes are OpenCV's (x right, y down, z forward), the stored pose is `world_to_camera`, intrinsics are in pixels with
pixel centres at +0.5, depth is z-depth, quaternions are wxyz and Gaussians hold post-activation values.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

SKY_THRESHOLD = 0.3  # of the sky score, as released


def _check_shape(owner: str, name: str, value: Tensor, *shape: int | None) -> None:
    """Raise unless `value` has `shape`; None stands for any size."""
    fits = value.ndim == len(shape) and all(want in (None, got) for want, got in zip(shape, value.shape))
    if not fits:
        expected = "(" + ", ".join("*" if size is None else str(size) for size in shape) + ")"
        raise ValueError(f"{owner}.{name}: expected shape {expected}, got {tuple(value.shape)}")


@dataclass(frozen=True)
class Record:
    """What all records share: moving every tensor (and record) they hold."""

    def to(self, *args, **kwargs) -> Self:
        """The same record with every tensor moved as by `Tensor.to`; masks and indices keep their dtype."""
        moved: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, (Tensor, Record)):
                moved[item.name] = value.to(*args, **kwargs)
                if isinstance(value, Tensor) and not value.is_floating_point():
                    moved[item.name] = value.to(moved[item.name].device)
        return replace(self, **moved)

    def pin_memory(self) -> Self:
        """The same record in page-locked memory, from where a GPU fetches it while it computes; torch's loader asks."""
        pinned = {
            item.name: value.pin_memory()
            for item in fields(self)
            if isinstance(value := getattr(self, item.name), (Tensor, Record))
        }
        return replace(self, **pinned)

    def item(self, index: int) -> Self:
        """One scene of the batch as a record of batch size 1 (not for Views that bring sparse points)."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        cut: dict[str, Any] = {
            name: value[index : index + 1] for name, value in values.items() if isinstance(value, Tensor)
        }
        cut |= {name: value.item(index) for name, value in values.items() if isinstance(value, Record)}
        return replace(self, **cut)

    def detach(self) -> Self:
        """The same record cut off from autograd."""
        cut = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, (Tensor, Record)):
                cut[item.name] = value.detach()
        return replace(self, **cut)


@dataclass(frozen=True, kw_only=True)
class Cameras(Record):
    """Pinhole cameras. world_to_camera (B,V,4,4), intrinsics (B,V,3,3) in pixels of a height x width image."""

    world_to_camera: Tensor
    intrinsics: Tensor
    height: int
    width: int

    def __post_init__(self):
        _check_shape("Cameras", "world_to_camera", self.world_to_camera, None, None, 4, 4)
        batch, views = self.world_to_camera.shape[:2]
        _check_shape("Cameras", "intrinsics", self.intrinsics, batch, views, 3, 3)

    @property
    def camera_to_world(self) -> Tensor:
        """(B,V,4,4), the rigid inverse of `world_to_camera`."""
        rotation = self.world_to_camera[..., :3, :3].transpose(-1, -2)
        translation = -rotation @ self.world_to_camera[..., :3, 3:]
        bottom = self.world_to_camera[..., 3:, :]
        return torch.cat([torch.cat([rotation, translation], dim=-1), bottom], dim=-2)

    @property
    def centers(self) -> Tensor:
        """(B,V,3), camera positions in the world."""
        return self.camera_to_world[..., :3, 3]

    def resized(self, height: int, width: int) -> Cameras:
        """The same cameras for the image scaled to height x width."""
        scale = self.intrinsics.new_tensor([width / self.width, height / self.height, 1.0])
        return replace(self, intrinsics=self.intrinsics * scale[:, None], height=height, width=width)

    def cropped(self, top: int, left: int, height: int, width: int) -> Cameras:
        """The same cameras for the window height x width whose upper left pixel is (top, left)."""
        shift = torch.zeros_like(self.intrinsics)
        shift[..., 0, 2], shift[..., 1, 2] = left, top
        return replace(self, intrinsics=self.intrinsics - shift, height=height, width=width)

    @staticmethod
    def concatenate(parts: list[Cameras]) -> Cameras:
        """The cameras of all parts (B,V), which are of one size, one after the other."""
        poses, intrinsics = (
            torch.cat([getattr(part, name) for part in parts], dim=1) for name in ("world_to_camera", "intrinsics")
        )
        return replace(parts[0], world_to_camera=poses, intrinsics=intrinsics)

    def select(self, views) -> Cameras:
        """The cameras of the given view indices (list, slice or index tensor)."""
        return replace(self, world_to_camera=self.world_to_camera[:, views], intrinsics=self.intrinsics[:, views])


@dataclass(frozen=True)
class Window:
    """Which part of its original picture (height x width pixels) a view shows: all in pixels of the original."""

    height: int
    width: int
    top: float
    left: float
    window_height: float
    window_width: float

    def original(self, camera: Cameras) -> Cameras:
        """The camera (1,1) of the whole original picture, from that of the view: resizing and cropping undone."""
        scale = camera.intrinsics.new_tensor([self.window_width / camera.width, self.window_height / camera.height, 1])
        intrinsics = camera.intrinsics * scale[:, None]
        intrinsics[..., 0, 2] += self.left
        intrinsics[..., 1, 2] += self.top
        return replace(camera, intrinsics=intrinsics, height=self.height, width=self.width)


@dataclass(frozen=True, kw_only=True)
class Views(Record):
    """Pictures that go in. images (B,S,3,H,W) in [0,1]; cameras of the same size or None.

    `points` (P,3) and `point_colors` (P,3) in [0,1] are a sparse cloud in the frame of the cameras, where the input
    brought one (batch size 1). `masks` (B,S,H,W) bool is False where a picture does not show the scene. `names` are the
    S file names, `windows` say which part of its original each view shows, `focals` (S) are focal lengths in pixels of
    the view that EXIF tells (NaN: it does not), which nothing is conditioned on but a single metric view.
    """

    images: Tensor
    cameras: Cameras | None = None
    names: tuple[str, ...] = ()
    points: Tensor | None = None
    point_colors: Tensor | None = None
    masks: Tensor | None = None
    windows: tuple[Window, ...] = ()
    focals: Tensor | None = None

    def __post_init__(self):
        _check_shape("Views", "images", self.images, None, None, 3, None, None)
        if self.cameras is not None:
            _check_shape("Views", "cameras.world_to_camera", self.cameras.world_to_camera, *self.images.shape[:2], 4, 4)
            if (self.cameras.height, self.cameras.width) != tuple(self.images.shape[-2:]):
                raise ValueError(
                    f"Views.cameras: expected cameras of {self.images.shape[-2]}x{self.images.shape[-1]} images, "
                    f"got {self.cameras.height}x{self.cameras.width}"
                )
        if self.masks is not None:
            _check_shape("Views", "masks", self.masks, *self.images.shape[:2], *self.images.shape[-2:])

    @property
    def known_cameras(self) -> Cameras:
        """`cameras`, for what cannot do without; ValueError where there are none."""
        if self.cameras is None:
            raise ValueError("Views.cameras: expected cameras, got None (pictures without poses)")
        return self.cameras

    def select(self, views) -> Views:
        """The views of the given indices; the sparse points stay."""
        indices = torch.arange(self.images.shape[1])[views].tolist()
        return replace(
            self,
            images=self.images[:, views],
            cameras=None if self.cameras is None else self.cameras.select(views),
            masks=None if self.masks is None else self.masks[:, views],
            focals=None if self.focals is None else self.focals[views],
            names=tuple(self.names[i] for i in indices) if self.names else (),
            windows=tuple(self.windows[i] for i in indices) if self.windows else (),
        )


@dataclass(frozen=True, kw_only=True)
class RayMap(Record):
    """Rays in the world, not normalised: point = origin + depth * direction. directions, origins (B,S,h,w,3)."""

    directions: Tensor
    origins: Tensor
    confidence: Tensor | None = None

    def __post_init__(self):
        _check_shape("RayMap", "directions", self.directions, None, None, None, None, 3)
        _check_shape("RayMap", "origins", self.origins, *self.directions.shape)
        if self.confidence is not None:
            _check_shape("RayMap", "confidence", self.confidence, *self.directions.shape[:-1])

    @staticmethod
    def concatenate(parts: list[RayMap]) -> RayMap:
        """The rays of all parts (B,S), one after the other."""
        names = [item.name for item in fields(RayMap) if getattr(parts[0], item.name) is not None]
        return RayMap(**{name: torch.cat([getattr(part, name) for part in parts], dim=1) for name in names})

    def select(self, views) -> RayMap:
        """The rays of the given view indices."""
        confidence = None if self.confidence is None else self.confidence[:, views]
        return replace(
            self, directions=self.directions[:, views], origins=self.origins[:, views], confidence=confidence
        )


@dataclass(frozen=True, kw_only=True)
class Geometry(Record):
    """What the backbone says of S views: z-depth and its confidence (B,S,H,W), cameras, rays, sky (B,S,H,W),
    a score >= 0 that says sky from 0.3 on.

    `camera_encoding` (B,S,9) is the camera head's raw answer (translation, quaternion xyzw, field of view), for losses.
    `metric_scale` (B,) is what a nested model multiplied its any-view branch by to reach metres.
    """

    depth: Tensor
    confidence: Tensor | None = None
    cameras: Cameras | None = None
    ray_map: RayMap | None = None
    sky: Tensor | None = None
    camera_encoding: Tensor | None = None
    metric_scale: Tensor | None = None

    def __post_init__(self):
        _check_shape("Geometry", "depth", self.depth, None, None, None, None)
        for name in ("confidence", "sky"):
            if getattr(self, name) is not None:
                _check_shape("Geometry", name, getattr(self, name), *self.depth.shape)

    @property
    def known_cameras(self) -> Cameras:
        """`cameras`, for what cannot do without; ValueError where the model predicts none."""
        if self.cameras is None:
            raise ValueError("Geometry.cameras: expected cameras, got None (a monocular model predicts none)")
        return self.cameras

    def select(self, views) -> Geometry:
        """What is said of the given view indices."""
        maps: dict[str, Any] = {}
        for name in ("depth", "confidence", "sky", "camera_encoding"):
            value = getattr(self, name)
            maps[name] = None if value is None else value[:, views]
        return replace(
            self,
            **maps,
            cameras=None if self.cameras is None else self.cameras.select(views),
            ray_map=None if self.ray_map is None else self.ray_map.select(views),
        )

    @staticmethod
    def concatenate(parts: list[Geometry]) -> Geometry:
        """The views of `parts` one after the other; what one part does not say, none may."""
        joined: dict[str, Any] = {}
        for name in ("depth", "confidence", "sky", "camera_encoding"):
            values = [getattr(part, name) for part in parts]
            joined[name] = None if values[0] is None else torch.cat(values, dim=1)
        cameras, rays = ([getattr(part, name) for part in parts] for name in ("cameras", "ray_map"))
        return replace(
            parts[0],
            **joined,
            cameras=None if cameras[0] is None else Cameras.concatenate(cameras),
            ray_map=None if rays[0] is None else RayMap.concatenate(rays),
        )

    @property
    def sky_mask(self) -> Tensor:
        """(B,S,H,W) bool, True where there is sky; ValueError where the model does not say."""
        if self.sky is None:
            raise ValueError("Geometry.sky_mask: this model predicts no sky")
        return self.sky >= SKY_THRESHOLD

    def points(self) -> Tensor:
        """The point cloud (B,S,H,W,3) in the world: origin + depth * direction of the cameras' rays."""
        from da3_splat.geometry.projection import unproject

        return unproject(self.depth, self.known_cameras)


@dataclass(frozen=True, kw_only=True)
class Gaussians(Record):
    """N Gaussians in the world: means (B,N,3), quats (B,N,4) wxyz, scales (B,N,3) > 0, opacities (B,N) in [0,1],
    sh (B,N,K,3). Optional: confidence (B,N), source_view (B,N) int, mask (B,N) bool (False = padding)."""

    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    sh: Tensor
    confidence: Tensor | None = None
    source_view: Tensor | None = None
    mask: Tensor | None = None

    def __post_init__(self):
        _check_shape("Gaussians", "means", self.means, None, None, 3)
        batch, count = self.means.shape[:2]
        _check_shape("Gaussians", "quats", self.quats, batch, count, 4)
        _check_shape("Gaussians", "scales", self.scales, batch, count, 3)
        _check_shape("Gaussians", "opacities", self.opacities, batch, count)
        _check_shape("Gaussians", "sh", self.sh, batch, count, None, 3)
        if self.sh.shape[2] not in (1, 4, 9, 16, 25):
            raise ValueError(f"Gaussians.sh: expected 1, 4, 9, 16 or 25 bases, got {self.sh.shape[2]}")
        for name in ("confidence", "source_view", "mask"):
            if getattr(self, name) is not None:
                _check_shape("Gaussians", name, getattr(self, name), batch, count)

    @property
    def sh_degree(self) -> int:
        return int(self.sh.shape[2] ** 0.5) - 1

    def kept_on_disk(self) -> dict[str, Tensor]:
        """What draws them, and their confidence where there is one, by the names of the fields."""
        names = ("means", "quats", "scales", "opacities", "sh", "confidence")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def select(self, index: Tensor | slice) -> Gaussians:
        """The Gaussians of a slice, or of a boolean or integer index, over N (the same one for every batch item)."""
        picked = {
            item.name: getattr(self, item.name)[:, index]
            for item in fields(self)
            if getattr(self, item.name) is not None
        }
        return replace(self, **picked)

    @staticmethod
    def concatenate(parts: list[Gaussians]) -> Gaussians:
        """All Gaussians of `parts` one after the other; an optional field must be set in all or in none."""
        joined: dict[str, Any] = {}
        for item in fields(Gaussians):
            values = [getattr(part, item.name) for part in parts]
            present = [value is not None for value in values]
            if any(present) and not all(present):
                raise ValueError(f"Gaussians.concatenate: {item.name} is set in some parts and missing in others")
            joined[item.name] = torch.cat(values, dim=1) if all(present) else None
        return Gaussians(**joined)


@dataclass(frozen=True, kw_only=True)
class Rendering(Record):
    """Pictures that come out: color (B,V,3,H,W), expected depth (B,V,H,W), alpha (B,V,H,W)."""

    color: Tensor
    depth: Tensor
    alpha: Tensor

    def __post_init__(self):
        _check_shape("Rendering", "color", self.color, None, None, 3, None, None)
        batch, views, _, height, width = self.color.shape
        _check_shape("Rendering", "depth", self.depth, batch, views, height, width)
        _check_shape("Rendering", "alpha", self.alpha, batch, views, height, width)


@dataclass(frozen=True, kw_only=True)
class Scene(Record):
    """A reconstruction: what the network saw, the Gaussians, the cameras of the input views, all in one frame.

    `report` says how it was made: times in seconds, counts, where the scale and the poses came from.
    """

    geometry: Geometry
    gaussians: Gaussians
    cameras: Cameras
    report: dict[str, object] = field(default_factory=dict)
