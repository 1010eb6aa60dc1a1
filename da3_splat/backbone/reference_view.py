"""Which of three or more unposed views defines the world, and moving it to the front and back."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

STRATEGIES = ("saddle_balanced", "saddle_sim_range", "first", "middle")


def select_reference_view(class_tokens: Tensor, strategy: str | int) -> Tensor:
    """Index (B,) of the reference view, from class tokens (B,S,D) or from a fixed choice.

    `saddle_balanced` takes the view that is most average in similarity to the others, token length and spread;
    `saddle_sim_range` the one with the widest range of similarities. An int is that view.
    """
    batch, views, _ = class_tokens.shape
    if isinstance(strategy, int):
        if not -views <= strategy < views:
            raise ValueError(f"reference_view: expected an index into {views} views, got {strategy}")
        return class_tokens.new_full((batch,), strategy % views, dtype=torch.long)
    if strategy == "first" or views == 1:
        return class_tokens.new_zeros((batch,), dtype=torch.long)
    if strategy == "middle":
        return class_tokens.new_full((batch,), views // 2, dtype=torch.long)
    if strategy not in STRATEGIES:
        raise ValueError(f"reference_view: expected an index or one of {', '.join(STRATEGIES)}, got {strategy!r}")
    class_tokens = class_tokens.float()
    unit = normalize(class_tokens, dim=-1)
    with torch.autocast(unit.device.type, enabled=False):  # views are often nearly alike
        similarity = unit @ unit.transpose(1, 2) - torch.eye(views, device=unit.device)
    if strategy == "saddle_sim_range":
        return (similarity.amax(dim=-1) - similarity.amin(dim=-1)).argmax(dim=1)
    measures = torch.stack([similarity.sum(dim=-1) / (views - 1), class_tokens.norm(dim=-1), unit.var(dim=-1)])
    low, high = measures.amin(dim=-1, keepdim=True), measures.amax(dim=-1, keepdim=True)
    return ((measures - low) / (high - low + 1e-8) - 0.5).abs().sum(dim=0).argmin(dim=1)


def move_to_front(x: Tensor, index: Tensor) -> Tensor:
    """Views (B,S,...) with view `index` (B,) first and the others in their order."""
    return _permute_views(x, front_order(index, x.shape[1]))


def restore_order(x: Tensor, index: Tensor | None) -> Tensor:
    """Undo `move_to_front`; None means the views were never moved."""
    return x if index is None else _permute_views(x, front_order(index, x.shape[1]).argsort(dim=1))


def front_order(index: Tensor, views: int) -> Tensor:
    """(B,S): which view stands where after `move_to_front`."""
    position = torch.arange(views, device=index.device).expand(index.shape[0], -1)
    return torch.where(position == index[:, None], -1, position).argsort(dim=1)


def _permute_views(x: Tensor, order: Tensor) -> Tensor:
    batch = torch.arange(x.shape[0], device=x.device)[:, None]
    return x[batch, order]
