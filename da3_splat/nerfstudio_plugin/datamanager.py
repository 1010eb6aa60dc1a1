"""Nerfstudio's full-image data manager, able to cache any number of pictures on a machine without a GPU."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanager, FullImageDatamanagerConfig


@dataclass
class Da3SplatDatamanagerConfig(FullImageDatamanagerConfig):
    _target: type = field(default_factory=lambda: Da3SplatDatamanager)


class Da3SplatDatamanager(FullImageDatamanager):
    def _load_images(self, split, cache_images_device):
        # "cpu" means pinned memory, which needs CUDA, and more than 500 pictures force it; "gpu" means `.to(device)`.
        return super()._load_images(split, cache_images_device if torch.cuda.is_available() else "gpu")
