"""Where to render the targets of a method that found its own poses, in a frame that is not the given one."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from da3_splat.geometry.alignment import transform_cameras
from da3_splat.geometry.rotations import rigid_motion
from da3_splat.geometry.user_frame import camera_similarity
from da3_splat.rendering import render
from da3_splat.types import Cameras, Gaussians, Views

RATE = 4e-3  # of Adam: radians, and shares of the distance to the scene
PATIENCE = 20  # steps without improvement after which a pose is taken as found


def moved_to_prediction(targets: Cameras, predicted: Cameras, given: Cameras) -> Cameras:
    """`targets` (1,V) of the given frame in that of the prediction, by the contexts (1,S) that both frames know.

    The similarity is Umeyama's on the camera centres, and on points before and beside the cameras, so that two contexts
    or contexts on a line fix it too.
    """
    return transform_cameras(camera_similarity(predicted, given).inverse(), targets)


def aligned_to_pictures(gaussians: Gaussians, targets: Views, steps: int) -> Cameras:
    """The cameras (1,V) of `targets`, each pose optimised for `steps` steps on the fixed Gaussians (1,N).

    Adam on a rotation and a translation of the camera, over the mean squared error of unmasked pixels; the best pose
    seen is kept, so none gets worse. Both count the picture itself: a score taken so is no score of the poses.
    """
    found = [_aligned(gaussians, targets.select([view]), steps) for view in range(targets.images.shape[1])]
    return replace(targets.known_cameras, world_to_camera=torch.stack(found)[None])


def _aligned(gaussians: Gaussians, target: Views, steps: int) -> Tensor:
    """world_to_camera (4,4) of one target (1,1)."""
    gaussians, camera, picture = gaussians.detach(), target.known_cameras, target.images
    kept = torch.ones_like(picture[:, :, 0], dtype=torch.bool) if target.masks is None else target.masks
    with torch.no_grad():
        seen = render(gaussians, camera)
        covered = seen.depth[seen.alpha > 0.5]
    distance = covered.median() if len(covered) else picture.new_ones(())
    unit = torch.cat([torch.ones_like(distance).expand(3), distance.expand(3)])
    start = camera.world_to_camera
    motion = torch.zeros(6, device=start.device, requires_grad=True)
    optimizer = torch.optim.Adam([motion], lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=RATE / 20)
    best, best_error, waited = start, float("inf"), 0
    with torch.enable_grad():
        for _ in range(steps + 1):  # the last round only looks at what the last step gave
            moved = rigid_motion(motion * unit) @ start
            color = render(gaussians, replace(camera, world_to_camera=moved)).color
            error = (color - picture).square().mean(dim=2)[kept].mean()
            value = float(error.detach())
            waited = 0 if value < best_error * (1 - 1e-4) else waited + 1
            if value < best_error:
                best, best_error = moved.detach(), value
            if waited >= PATIENCE or not error.requires_grad:
                break
            optimizer.zero_grad(set_to_none=True)
            error.backward()
            optimizer.step()
            schedule.step()
    return best[0, 0]
