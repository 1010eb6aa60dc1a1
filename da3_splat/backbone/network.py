"""Depth Anything 3: images (and cameras, where known) -> Geometry.

images (B,S,3,H,W) in [0,1] --- ImageNet normalisation ---> vision transformer
cameras (optional) --- camera encoder ---> camera tokens ---^   |
                                                                |-- 4 tapped features --> dual DPT: depth, rays
                                                                '-- camera tokens ------> camera head: cameras
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from da3_splat.backbone.attention import at_once
from da3_splat.backbone.camera import CameraDecoder, CameraEncoder
from da3_splat.backbone.compiling import CompiledHead
from da3_splat.backbone.dpt import DualDPT, MonocularHead
from da3_splat.backbone.vision_transformer import Storage, VisionTransformer, in_memory
from da3_splat.geometry.poses import cameras_from_rays, decode_cameras
from da3_splat.types import SKY_THRESHOLD, Cameras, Geometry, RayMap

METRIC_FOCAL = 300.0  # the metric model's canonical focal length in pixels (section 4.4)
METRIC_VIEWS = 8  # that the metric branch of a nested model sees at a time
VIEWS_PER_CHUNK = {"cpu": 2, "cuda": 8}  # the heads run on so many views at a time, which bounds their memory


@dataclass(frozen=True)
class Features:
    """What the transformer gives the heads: taps 4 x (B,S,P,D), camera_tokens (B,S,D), extra {layer: (B,S,P,dim)}."""

    taps: list[Tensor]
    camera_tokens: Tensor
    extra: dict[int, Tensor]
    reference: Tensor  # (B) the view that defines the world
    height: int
    width: int

    def select(self, views) -> Features:
        """The features of the given view indices."""
        return replace(
            self,
            taps=[tap[:, views] for tap in self.taps],
            camera_tokens=self.camera_tokens[:, views],
            extra={layer: tokens[:, views] for layer, tokens in self.extra.items()},
        )


class DepthAnything3(nn.Module):
    """One DA3 network. The any-view models have a camera head and encoder; monocular and metric ones have neither."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: VisionTransformer,
        head: DualDPT | MonocularHead,
        camera_decoder: CameraDecoder | None = None,
        camera_encoder: CameraEncoder | None = None,
    ):
        super().__init__()
        self.backbone, self.head = backbone, head
        self.cam_dec, self.cam_enc = camera_decoder, camera_encoder
        self.precision: torch.dtype | None = None  # of the transformer and its features, without gradients
        self.compiled: CompiledHead | None = None  # runs the dense heads; acceleration.py sets both
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225])[:, None, None], persistent=False)

    @property
    def predicts_cameras(self) -> bool:
        return self.cam_dec is not None

    def forward(
        self,
        images: Tensor,
        cameras: Cameras | None = None,
        reference_view: str | int = "saddle_balanced",
        pose_from: str = "camera_head",
        rays: bool = False,
    ) -> Geometry:
        """Geometry of S views. images (B,S,3,H,W) in [0,1], H and W multiples of 14.

        `cameras` go to the camera encoder as they are (NaN poses: not known); what comes back is the network's own
        prediction. Without cameras and with three or more views, `reference_view` (a strategy's name or an index)
        defines the world. `pose_from` is "camera_head" or "rays"; `rays` fills `geometry.ray_map`.
        """
        features = self.encode(images, cameras, reference_view)
        return self.decode(features, pose_from, rays)

    def encode(
        self,
        images: Tensor,
        cameras: Cameras | None = None,
        reference_view: str | int = "saddle_balanced",
        extra_layers: tuple[int, ...] = (),
        queries: int = 0,
        storage: Storage = in_memory,
    ) -> Features:
        """Run the transformer once; the heads of this network and others decode from its features.

        The last `queries` views attend to the others and are never attended to (training asks for the poses of target
        views so); where cameras are given, theirs may be NaN.
        """
        tokens = None
        if cameras is not None:
            if self.cam_enc is None:
                raise ValueError("cameras: expected None, this model takes no cameras")
            tokens = self.cam_enc(cameras)
        exact = self.precision is None or torch.is_grad_enabled()
        cast = nullcontext() if exact else torch.autocast(images.device.type, self.precision)
        with cast:
            answer = self.backbone(
                images, tokens, reference_view, extra_layers, queries, self.normalise, self._in_precision(storage)
            )
        return Features(*answer, *images.shape[-2:])

    def _in_precision(self, storage: Storage) -> Storage:
        if self.precision is None:
            return storage
        return lambda shape, like: storage(shape, like.new_empty(0, dtype=self.precision))

    def normalise(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std

    def decode(self, features: Features, pose_from: str = "camera_head", rays: bool = False) -> Geometry:
        """Heads on features: depth and confidence always, rays only if wanted, cameras from head or rays."""
        if pose_from not in ("camera_head", "rays"):
            raise ValueError(f"pose_from: expected camera_head or rays, got {pose_from!r}")
        height, width = features.height, features.width
        rays = rays or pose_from == "rays"
        with self._head_precision(features):
            maps = self.maps(features, rays)
            if not self.predicts_cameras:
                return fill_sky(Geometry(depth=maps["depth"]), maps["sky"])
            encoding = self.camera_encoding(features)
        ray_map: RayMap | None = None
        if rays:
            directions, origins = maps["ray"].split(3, dim=-1)
            ray_map = RayMap(directions=directions, origins=origins, confidence=maps["ray_confidence"])
        if ray_map is not None and pose_from == "rays":
            cameras = cameras_from_rays(ray_map, height, width)
        else:
            cameras = decode_cameras(encoding, height, width)
        return Geometry(
            depth=maps["depth"],
            confidence=maps["confidence"],
            cameras=cameras,
            ray_map=ray_map,
            camera_encoding=encoding,
        )

    def maps(self, features: Features, rays: bool = False) -> dict[str, Tensor]:
        """What the dense head says (B,S,...), by its names: depth as it is, without the sky fill of `decode`."""
        size, weight = (features.height, features.width), self._head_weight
        run: Callable[..., dict[str, Tensor]] = self.head
        if self.compiled is not None and not torch.is_grad_enabled():
            run = partial(self.compiled, self.head, largest=views_per_chunk(weight.device))
        return run_in_chunks(
            lambda taps: run([tap.to(weight) for tap in taps], *size, rays), features.taps, weight.device
        )

    def _head_precision(self, features: Features):
        # As released, the heads of a half-precision pass run in float32; training lets autocast have them, too.
        device_type = features.camera_tokens.device.type
        return nullcontext() if self.training else torch.autocast(device_type, enabled=False)

    def cameras(self, features: Features) -> Cameras:
        """What the camera head says of all views, queries included, without running the dense heads."""
        return decode_cameras(self.camera_encoding(features), features.height, features.width)

    def camera_encoding(self, features: Features) -> Tensor:
        """The camera head's raw answer (B,S,9): translation, quaternion xyzw, field of view (y, x)."""
        assert self.cam_dec is not None, "whoever asks has looked at predicts_cameras"
        return self.cam_dec(features.camera_tokens.to(self._head_weight)).float()

    @property
    def _head_weight(self) -> Tensor:
        """Whose device and dtype the heads take."""
        return self.head.scratch.output_conv1.weight


class NestedDepthAnything3(nn.Module):
    """The any-view model scaled to metres by the metric model (DA3NESTED)."""

    def __init__(self, anyview: DepthAnything3, metric: DepthAnything3):
        super().__init__()
        self.da3, self.da3_metric = anyview, metric

    predicts_cameras = True

    @property
    def encode(self):
        return self.da3.encode

    @property
    def decode(self):
        """The any-view branch alone; `to_metres` scales what it says."""
        return self.da3.decode

    def forward(self, images: Tensor, cameras: Cameras | None = None, **options) -> Geometry:
        """As `DepthAnything3.forward`; depth and cameras in metres, sky far away, `metric_scale` (B,) the factor."""
        geometry = self.da3(images, cameras, **options)
        return self.to_metres(geometry, images)

    def to_metres(self, geometry: Geometry, images: Tensor) -> Geometry:
        """Scale `geometry` of the any-view branch (B,S) so that it fits the metric branch's depth of `images`."""
        # Views do not look at each other here; only sky pixels, which the scale leaves out, depend on the rest.
        pieces = [self.da3_metric(piece) for piece in images.split(METRIC_VIEWS, dim=1)]
        metric_depth = metres(torch.cat([piece.depth for piece in pieces], dim=1), geometry.known_cameras)
        sky = torch.cat([piece.sky for piece in pieces], dim=1)
        assert geometry.confidence is not None, "any-view models predict it"
        found = zip(geometry.depth, geometry.confidence, metric_depth, sky >= SKY_THRESHOLD)
        return scale_to_metres(geometry, torch.stack([_metric_scale(*item) for item in found]), sky)


def metres(depth: Tensor, cameras: Cameras) -> Tensor:
    """Depth (B,S,H,W) of the metric model in metres: times the mean focal length of its camera over 300 pixels."""
    focal = cameras.intrinsics.diagonal(dim1=-2, dim2=-1)[..., :2].mean(dim=-1)
    return depth * (focal / METRIC_FOCAL)[..., None, None]


def scale_to_metres(geometry: Geometry, scale: Tensor, sky: Tensor) -> Geometry:
    """Depth, camera positions and ray origins times scale (B,); sky at most 200 m away with confidence 1."""
    depth = geometry.depth * scale[:, None, None, None]
    sky_mask = sky >= SKY_THRESHOLD
    world_to_camera = geometry.known_cameras.world_to_camera.clone()
    world_to_camera[..., :3, 3] *= scale[:, None, None]
    confidence, ray_map = geometry.confidence, geometry.ray_map
    if confidence is not None:
        confidence = confidence.masked_fill(sky_mask, 1.0)
    if ray_map is not None:
        ray_map = replace(ray_map, origins=ray_map.origins * scale[:, None, None, None, None])
    far = torch.stack(
        [_far_depth(d[~s]).clamp_max(200) if (~s).any() else d.new_tensor(200.0) for d, s in zip(depth, sky_mask)]
    )
    return replace(
        geometry,
        depth=torch.where(sky_mask, far[:, None, None, None], depth),
        confidence=confidence,
        cameras=replace(geometry.known_cameras, world_to_camera=world_to_camera),
        ray_map=ray_map,
        sky=sky,
        metric_scale=scale,
    )


def _metric_scale(depth: Tensor, confidence: Tensor, metric_depth: Tensor, sky: Tensor) -> Tensor:
    """Least-squares factor from depth to metric depth (S,H,W) where the confident half of the non-sky pixels is."""
    ground = ~sky
    if ground.sum() <= 10:
        raise ValueError("metric scale: expected more than 10 pixels that are not sky, cannot fix the scale")
    confident = confidence >= torch.quantile(_thinned(confidence[ground]), 0.5)
    used = confident & ground & (metric_depth > 1e-2) & (depth > 1e-3)
    return (metric_depth[used] * depth[used]).sum() / depth[used].square().sum().clamp_min(1e-12)


def fill_sky(geometry: Geometry, sky_score: Tensor) -> Geometry:
    """Put sky (score >= 0.3) of each scene at the 99th percentile of its other depths.

    Left alone where one of the two has ten pixels or fewer.
    """
    geometry = replace(geometry, sky=sky_score)
    sky, depth = geometry.sky_mask, geometry.depth.clone()
    for item in range(depth.shape[0]):
        if sky[item].sum() > 10 and (~sky[item]).sum() > 10:
            depth[item][sky[item]] = _far_depth(depth[item][~sky[item]])
    return replace(geometry, depth=depth)


def _far_depth(depth: Tensor) -> Tensor:
    return torch.quantile(_thinned(depth), 0.99)


def _thinned(values: Tensor, limit: int = 4_000_000) -> Tensor:
    """Every n-th value, so that torch.quantile (16 M values at most) takes it; the same ones every time."""
    return values.flatten()[:: -(-values.numel() // limit)]


def views_per_chunk(device: torch.device) -> int:
    return at_once(VIEWS_PER_CHUNK, device)


def run_in_chunks(head, taps: list[Tensor], device: torch.device | None = None) -> dict[str, Tensor]:
    """Call `head` on a few views of taps 4 x (B,S,P,D) at a time; its maps (N,...) come back as (B,S,...)."""
    batch, views = taps[0].shape[:2]
    size = views_per_chunk(device or taps[0].device)
    flat = [tap.flatten(0, 1) for tap in taps]
    starts = range(0, batch * views, size)
    parts = (head([tap[start : start + size] for tap in flat]) for start in starts)
    joined: dict[str, Tensor]
    if torch.is_grad_enabled():
        held = list(parts)
        joined = held[0] if len(held) == 1 else {k: torch.cat([part[k] for part in held]) for k in held[0]}
    else:
        joined = {}
        for start, part in zip(starts, parts):
            for name, values in part.items():
                if name not in joined:
                    joined[name] = values.new_empty(batch * views, *values.shape[1:])
                joined[name][start : start + size] = values
    return {k: v.unflatten(0, (batch, views)) for k, v in joined.items()}
