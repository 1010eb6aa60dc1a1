"""Per-scene optimisation of Gaussians against their pictures: Adam on every field, L1 + SSIM, no densification."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from da3_splat.losses import image_loss
from da3_splat.rendering import render
from da3_splat.types import Gaussians, Views


@dataclass(frozen=True)
class RefinementConfig:
    """Learning rates of Adam; that of the means is multiplied by the scene's extent and falls to a hundredth."""

    steps: int = 300
    means_rate: float = 4e-4
    scales_rate: float = 1e-2
    quats_rate: float = 2e-3
    opacities_rate: float = 5e-2
    dc_rate: float = 1e-2
    rest_rate: float = 5e-4
    sh_degree: int = 1
    seed: int = 0


def refine(
    gaussians: Gaussians,
    views: Views,
    config: RefinementConfig = RefinementConfig(),
    progress: Callable[[Iterable], Iterable] = lambda items: items,
) -> Gaussians:
    """The Gaussians (1,N) after `config.steps` steps, one picture of the posed `views` a step, each once a round.

    Renders on the device of the Gaussians. The optimised values are logits, log-scales and SH in float32.
    """
    if views.cameras is None:
        raise ValueError("refine: expected views with cameras")
    start, views = gaussians.detach(), views.to(gaussians.means.device)
    rest = start.means.new_zeros(1, start.means.shape[1], (config.sh_degree + 1) ** 2 - 1, 3)
    carried = start.sh[:, :, 1 : rest.shape[2] + 1]
    rest[:, :, : carried.shape[2]] = carried
    raw = {
        "means": start.means.clone(),
        "scales": start.scales.log(),
        "quats": start.quats.clone(),
        "opacities": torch.logit(start.opacities, eps=1e-4),
        "dc": start.sh[:, :, :1].clone(),
        "rest": rest,
    }
    raw = {name: value.contiguous().requires_grad_() for name, value in raw.items()}
    extent = scene_extent(views)
    rates = {name: getattr(config, f"{name}_rate") * (extent if name == "means" else 1.0) for name in raw}
    optimizer = torch.optim.Adam([{"params": [raw[name]], "lr": rates[name]} for name in raw], eps=1e-15)
    generator = torch.Generator().manual_seed(config.seed)
    queue: list[int] = []
    for step in progress(range(config.steps)):
        if not queue:
            queue = torch.randperm(views.images.shape[1], generator=generator).tolist()
        view = queue.pop()
        optimizer.param_groups[0]["lr"] = rates["means"] * 0.01 ** (step / max(1, config.steps))
        rendering = render(activated(start, raw), views.cameras.select([view]))
        loss = image_loss(rendering.color[0], views.images[0, view : view + 1])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return activated(start, raw).detach()


def activated(start: Gaussians, raw: dict[str, Tensor]) -> Gaussians:
    """Gaussians of the optimised values; what is not optimised comes from `start`."""
    return replace(
        start,
        means=raw["means"],
        scales=raw["scales"].exp(),
        quats=raw["quats"],
        opacities=raw["opacities"].sigmoid(),
        sh=torch.cat([raw["dc"], raw["rest"]], dim=2),
    )


def scene_extent(views: Views) -> float:
    """Radius of the cameras' positions around their mean, at least a tenth of their mean distance to the origin."""
    centers = views.cameras.centers[0]
    radius = (centers - centers.mean(dim=0)).norm(dim=-1).max()
    return float(1.1 * torch.maximum(radius, 0.1 * centers.norm(dim=-1).mean()).clamp_min(1e-3))
