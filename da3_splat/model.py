"""Da3Splat: pictures in, a 3D Gaussian scene out. The one place that builds, loads and saves models.

Views (B,S,3,H,W in [0,1], cameras optional)
  backbone      -> Geometry(depth, confidence, ray map, cameras) + features
  frame         -> Geometry                the user's frame and scale; views made to agree (fusion/consensus.py)
  Gaussian head -> Gaussians (B, S*H*W)    in the frame of the geometry's cameras, one view at a time
  fusion        -> Gaussians (B, N)        merged, coloured, pruned (fusion/fuse.py)
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from da3_splat.backbone.checkpoints import load_checkpoint, preset_of, resolve
from da3_splat.backbone.interface import Backbone
from da3_splat.backbone.network import Features, NestedDepthAnything3, metres
from da3_splat.backbone.presets import NESTED, PRESETS, create_backbone, preset_names
from da3_splat.fusion.fuse import FusionConfig, Progress, agree, fuse
from da3_splat.fusion.merging import merge_pixels
from da3_splat.fusion.pruning import prune
from da3_splat.geometry.alignment import Similarity, scaled_about, transform_gaussians
from da3_splat.geometry.frames import camera_at_origin, cameras_for_encoder, known_poses
from da3_splat.geometry.user_frame import at_origin, camera_similarity, in_user_frame
from da3_splat.heads.pixel import PixelHead
from da3_splat.heads.plain import PlainHead
from da3_splat.io.files import replacing
from da3_splat.limits import LARGEST_LAYER, regular_file
from da3_splat.ranks import Workers
from da3_splat.types import Cameras, Gaussians, Geometry, Scene, Views

EMBEDDED = {"mini": Path(__file__).parent / "weights" / "mini.safetensors"}
METADATA_KEY = "da3_splat"
Watch = Callable[[int, Gaussians, Cameras], None]
VIEWS_PER_PIECE = 16  # that the heads answer for at a time, and that processes share out


@dataclass(frozen=True)
class SplatConfig:
    """What a checkpoint must say to be rebuilt. head: pixel (trained) or plain (naive lifting, no weights)."""

    preset: str
    head: str = "plain"
    rules: str = "exact"
    sh_degree: int = 0
    head_features: int = 32
    head_channels: tuple[int, int, int, int] = (32, 64, 96, 192)


@dataclass(frozen=True)
class Observation:
    """What the network says of the views of one scene, in the frame of the scene and made to agree: all that fusion
    needs. `gaussians_of_view(i)` lifts the pixels of view i."""

    geometry: Geometry
    features: Features
    gaussians_of_view: Callable[[int], Gaussians]
    report: dict[str, object]


class Da3Splat(nn.Module):
    """A backbone (any that is one by backbone/interface.py) and a Gaussian head."""

    def __init__(self, network: Backbone, gs_head: nn.Module, config: SplatConfig):
        super().__init__()
        self.network, self.gs_head, self.config = network, gs_head, config

    def forward(self, images: Tensor, cameras: Cameras | None = None, fuse: bool = False, **options) -> Scene:
        """One pass in the network's own frame and scale: images (B,S,3,H,W) in [0,1], cameras to condition on.

        The Gaussians are the head's own, one a pixel; `fuse` merges those of one spot and drops what nobody sees (batch
        size 1). `options` are those of the network's forward (reference_view, pose_from, rays).
        """
        if not self.network.predicts_cameras:
            raise ValueError(f"forward: {self.config.preset} predicts no cameras; reconstruct posed views with it")
        geometry, features = self._geometry(images, cameras, **options)
        gaussians = self.gs_head(features, images, geometry, cameras)
        geometry = self._in_metres(geometry, images)
        if geometry.metric_scale is not None:
            scale = geometry.metric_scale
            identity = torch.eye(3, device=scale.device).expand(len(scale), 3, 3)
            gaussians = transform_gaussians(Similarity(scale, identity, scale.new_zeros(len(scale), 3)), gaussians)
        if fuse:
            gaussians = prune(merge_pixels(geometry, gaussians)[0])
        return Scene(geometry=geometry, gaussians=gaussians, cameras=geometry.known_cameras)

    @torch.no_grad()
    def reconstruct(
        self,
        views: Views,
        reference_view: str | int = "saddle_balanced",
        fusion: FusionConfig = FusionConfig(),
        lifting_rays: Literal["cameras", "predicted"] = "cameras",
        progress: Progress = lambda title: lambda items: items,
        watch: Watch = lambda view, gaussians, cameras: None,
        workers: Workers = map,
        **options,
    ) -> Scene:
        """A scene (batch size 1) from posed or unposed views.

        Posed views come back in the frame and scale they came in: the cameras are the given ones exactly, and depth is
        scaled by the sparse points where the views bring some, else by the distances between the cameras. Views whose
        pose is NaN get the network's, moved into the frame of the given ones (the released weights were never tried on
        such a mixture). Unposed views have the reference camera at the origin. A monocular or metric model needs all
        cameras, or one picture whose EXIF tells its focal length. Then the views are made to agree, poses that were not
        given included, and their Gaussians are merged: `fusion` says how (NO_FUSION: not at all). `lifting_rays`
        "predicted" places the Gaussians on the network's ray map instead of the rays of the cameras. `workers` share
        out what is done view by view (ranks.py); `options` are those of the network's forward, and `storage` of the
        features (backbone/storage.py).

        `watch(view, gaussians, cameras)` is given the Gaussians (1,H*W) of each view as they are laid, before they are
        merged, with the cameras (1,S) of all. `report` says where scale and poses came from, what was merged and
        dropped, and the times.
        """
        views = views.to(next(self.parameters()).device)
        seen = self.observe(views, reference_view, fusion, lifting_rays, workers, **options)
        began = time.perf_counter()

        def gaussians_of_view(view: int) -> Gaussians:
            gaussians = seen.gaussians_of_view(view)
            watch(view, gaussians, seen.geometry.known_cameras)
            return gaussians

        gaussians, counts = fuse(seen.geometry, views, gaussians_of_view, fusion, progress, workers)
        report = {**seen.report, **counts, "lifting_seconds": time.perf_counter() - began}
        return Scene(geometry=seen.geometry, gaussians=gaussians, cameras=seen.geometry.known_cameras, report=report)

    @torch.no_grad()
    def observe(
        self,
        views: Views,
        reference_view: str | int = "saddle_balanced",
        fusion: FusionConfig = FusionConfig(),
        lifting_rays: Literal["cameras", "predicted"] = "cameras",
        workers: Workers = map,
        **options,
    ) -> Observation:
        """`reconstruct` up to fusion: geometry in the frame of the scene, made to agree, and how to lift each view."""
        if lifting_rays == "predicted" and (self.gs_head.rules != "exact" or not self.network.predicts_cameras):
            raise ValueError(f"reconstruct: the Gaussians of {self.config.preset} cannot be placed on predicted rays")
        if views.images.shape[0] != 1:
            raise ValueError(f"reconstruct: expected one scene, got a batch of {views.images.shape[0]}")
        views = views.to(next(self.parameters()).device)
        if views.cameras is not None and not bool(known_poses(views.cameras).any()):
            views = replace(views, cameras=None)
        began = time.perf_counter()
        if self.network.predicts_cameras:
            options |= {"rays": True} if lifting_rays == "predicted" else {}
            geometry, raw, features, report = self._posed_geometry(views, reference_view, options, workers)
        else:
            geometry, features, report = self._monocular_geometry(views)
            raw = geometry
        seen = time.perf_counter()
        unposed = views.cameras is None and self.network.predicts_cameras
        fixed = known_poses(views.cameras or geometry.cameras)[0] & (not unposed)
        geometry, agreement = agree(geometry, views, fixed, fusion)
        if unposed:
            geometry = at_origin(geometry, int(features.reference[0]))

        def gaussians_of_view(view: int) -> Gaussians:
            return self._lift(view, geometry, raw, features, views.images, lifting_rays)

        report |= {"views": geometry.depth.shape[1], **agreement}
        report |= {"network_seconds": seen - began, "consensus_seconds": time.perf_counter() - seen}
        return Observation(geometry, features, gaussians_of_view, report)

    def _posed_geometry(self, views: Views, reference_view: str | int, options: dict, workers: Workers):
        """Geometry in the user's frame, the network's own answer, features, and where poses and scale came from."""
        encoder_cameras = None if views.cameras is None else cameras_for_encoder(views.cameras)
        raw, features = self._geometry(views.images, encoder_cameras, workers, reference_view=reference_view, **options)
        geometry = self._in_metres(raw, views.images)
        report: dict[str, object] = {"poses": "da3"}
        if views.cameras is not None:
            known = known_poses(views.cameras)
            report["poses"] = "given" if bool(known.all()) else f"given for {int(known.sum())}, da3 for the others"
            geometry, report["scale_source"] = in_user_frame(geometry, views)
        else:
            geometry = at_origin(geometry, int(features.reference[0]))
            report["scale_source"] = "metric model" if geometry.metric_scale is not None else "none"
        return geometry, raw, features, report

    def _monocular_geometry(self, views: Views):
        """Every view by itself, laid from its given camera; the metric model's depth becomes metres."""
        cameras = views.cameras
        if cameras is None and views.images.shape[1] == 1 and views.focals is not None:
            cameras = camera_at_origin(float(views.focals[0]), *views.images.shape[-2:]).to(views.images.device)
        if cameras is None or not bool(known_poses(cameras).all()):
            raise ValueError(
                f"reconstruct: {self.config.preset} predicts no cameras, so every view must bring one "
                "(or give a single photo whose EXIF tells its focal length)"
            )
        features = self.network.encode(views.images)
        geometry = replace(self.network.decode(features), cameras=cameras)
        poses = "given" if views.cameras is not None else "one camera at the origin, focal length by EXIF"
        report: dict[str, object] = {"poses": poses, "scale_source": "none"}
        if self.config.preset == "da3metric-large":
            geometry = replace(geometry, depth=metres(geometry.depth, cameras))
            report["scale_source"] = "metric model"
        return geometry, features, report

    def _geometry(self, images: Tensor, cameras: Cameras | None, workers: Workers | None = None, **options):
        """The network's answer and its features. `workers` share out the heads, which see one view at a time."""
        encode_options = {key: options.pop(key) for key in ("reference_view", "storage") if key in options}
        features = self.network.encode(images, cameras, **encode_options)
        if workers is None or not features.taps or options.get("pose_from") == "rays":
            return self.network.decode(features, **options), features
        pieces = torch.arange(images.shape[1]).split(VIEWS_PER_PIECE)
        answers = workers(lambda piece: self.network.decode(features.select(piece), **options), pieces)
        return Geometry.concatenate(list(answers)), features

    def _in_metres(self, geometry: Geometry, images: Tensor) -> Geometry:
        if isinstance(self.network, NestedDepthAnything3):
            return self.network.to_metres(geometry, images)
        return geometry

    def _lift(self, view: int, geometry: Geometry, raw: Geometry, features, images: Tensor, rays: str) -> Gaussians:
        """The Gaussians (1,H*W) of one view in the frame of `geometry`.

        Released rules hold in the units and the frame of the network's own `raw` answer only: its Gaussians are moved
        with their camera and scaled about it, all by the median ratio of the depths, each by what is left of its own.
        """
        features, images, geometry = features.select([view]), images[:, [view]], geometry.select([view])
        if self.gs_head.rules == "exact":
            return self.gs_head(features, images, geometry, rays=rays)
        raw = raw.select([view])
        ratio = (geometry.depth / raw.depth).flatten(1)
        scale = ratio.median(dim=1).values
        motion = camera_similarity(raw.known_cameras, geometry.known_cameras, scale)
        gaussians = transform_gaussians(motion, self.gs_head(features, images, raw))
        return scaled_about(gaussians, geometry.known_cameras.centers, ratio / scale[:, None])


def create_model(preset: str, rules: str = "exact", sh_degree: int | None = None, head: str | None = None) -> Da3Splat:
    """A model of the named size with fresh weights. `rules="released"`: with the Giant weights' Gaussian head."""
    if rules == "released":
        config = SplatConfig(preset, "pixel", rules, 2, 256, (256, 512, 1024, 1024))
    else:
        size = PRESETS[NESTED[preset][0] if preset in NESTED else preset] if preset in (*PRESETS, *NESTED) else None
        if size is None:
            raise ValueError(f"model: expected one of {', '.join(preset_names())}, got {preset!r}")
        config = SplatConfig(
            preset, head or "pixel", rules, 1 if sh_degree is None else sh_degree, size.features, size.channels
        )
    return _build(config)


def _build(config: SplatConfig) -> Da3Splat:
    network = create_backbone(config.preset)
    if config.head == "plain":
        return Da3Splat(network, PlainHead(), config)
    name = NESTED[config.preset][0] if config.preset in NESTED else config.preset
    head = PixelHead(
        PRESETS[name].feature_dim, config.head_features, tuple(config.head_channels), config.sh_degree, config.rules
    )
    return Da3Splat(network, head, config)


def load_model(
    source: str | Path = "mini",
    device: str | torch.device = "cpu",
    preset: str | None = None,
    revision: str | None = None,
) -> Da3Splat:
    """A model with weights, ready to reconstruct: `mini` (embedded, needs no network), a file that `save_model` wrote,
    a released safetensors file (with its `preset`), or a hub id such as depth-anything/DA3-LARGE-1.1.

    Released Giant and Nested files bring their own Gaussian head; other released ones are lifted plainly.
    """
    path = EMBEDDED.get(str(source)) or resolve(source, revision)
    config = _config_of(path)
    if config is None:
        preset = preset or preset_of(str(source))
        if preset is None:
            raise ValueError(f"{source}: this file does not name its model; say which one with preset=")
        giant = NESTED.get(preset, (preset,))[0] == "da3-giant"
        model = create_model(preset, rules="released") if giant else _build(SplatConfig(preset))
    else:
        model = _described(config, path)
    load_checkpoint(model, path)
    return model.to(device).eval()


def save_model(model: Da3Splat, path: str | Path, half: bool = True) -> None:
    """Write all weights (float16, or float32 if not `half`) and what rebuilds the model, as one safetensors file."""
    dtype = torch.float16 if half else torch.float32
    state = {
        name.removeprefix("network."): value.detach().to("cpu", dtype).contiguous(memory_format=torch.contiguous_format)
        for name, value in model.state_dict().items()
    }
    with replacing(path) as beside:
        save_file(state, beside, metadata={METADATA_KEY: json.dumps(asdict(model.config))})


def _config_of(path: Path) -> SplatConfig | None:
    if path.suffix == ".json":
        return None
    try:
        with safe_open(regular_file(path), framework="pt") as file:
            content = (file.metadata() or {}).get(METADATA_KEY)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error}); pickles are never opened") from error
    if content is None:
        return None
    try:
        values = json.loads(content)
        return SplatConfig(**{**values, "head_channels": tuple(values["head_channels"])})
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{path}: its description of the model is not readable ({error})") from error


def _described(config: SplatConfig, path: Path) -> Da3Splat:
    """The model that a file of weights describes. ValueError where there cannot be such a model, or where it has more
    weights than the file has bytes: then nothing of that size is made."""
    sizes = (config.sh_degree, config.head_features, *config.head_channels)
    try:
        if not all(type(size) is int and 0 <= size <= LARGEST_LAYER for size in sizes) or config.sh_degree > 4:
            raise ValueError(f"expected sizes of 0 to {LARGEST_LAYER} and a degree of 0 to 4, got {sizes}")
        if _fewest_weights(config) > path.stat().st_size:
            raise ValueError(f"more than {_fewest_weights(config)} weights, but {path.stat().st_size} bytes")
        return _build(config)
    except (ValueError, TypeError, RuntimeError, IndexError, KeyError, ZeroDivisionError) as error:
        raise ValueError(f"{path}: its description of the model is not one ({error})") from error


def _fewest_weights(config: SplatConfig) -> int:
    """Weights of the transformer's matrices and of the head's convolutions: most of what a model has."""
    backbone = sum(
        8 * PRESETS[name].depth * PRESETS[name].dim ** 2 for name in NESTED.get(config.preset, (config.preset,))
    )
    if config.head == "plain":
        return backbone
    return backbone + 9 * config.head_features * (config.head_features + sum(config.head_channels))
