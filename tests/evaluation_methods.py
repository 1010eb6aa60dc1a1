"""Methods to evaluate that need no network: quick ones, and one that knows the answer."""

from dataclasses import dataclass, field, replace

import torch

from da3_splat.evaluation.scenes import SyntheticScene
from da3_splat.geometry.alignment import Similarity, transform_cameras, transform_gaussians
from da3_splat.geometry.rotations import quaternion_to_matrix
from da3_splat.heads.plain import PlainHead
from da3_splat.types import Cameras, Geometry, Scene, Views

IDENTITY = {"name": "stand-in", "kind": "test"}


def laid(images: torch.Tensor, geometry: Geometry) -> Scene:
    """Every pixel of every view as a Gaussian on the depth of `geometry`."""
    gaussians = PlainHead()(None, images, geometry)
    return Scene(geometry=geometry, gaussians=gaussians, cameras=geometry.cameras)


@dataclass
class Planes:
    """Every context a plane 3 units before it; keeps what it was given and what it made of it."""

    seen: list[Views] = field(default_factory=list)
    scenes: list[Scene] = field(default_factory=list)
    identity = IDENTITY

    def predict(self, views: Views, scene: str = "") -> Scene:
        cameras = views.cameras
        if cameras is None:
            batch, count, _, height, width = views.images.shape
            pose = torch.eye(4).repeat(batch, count, 1, 1)
            pose[..., 0, 3] = torch.arange(count) / 10
            intrinsics = torch.tensor([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1.0]])
            cameras = Cameras(
                world_to_camera=pose, intrinsics=intrinsics.expand(batch, count, 3, 3), height=height, width=width
            )
        self.seen.append(views)
        depth = torch.full((*views.images.shape[:2], *views.images.shape[-2:]), 3.0)
        self.scenes.append(laid(views.images, Geometry(depth=depth, cameras=cameras)))
        return self.scenes[-1]


@dataclass
class Oracle:
    """Knows depth and cameras of a synthetic scene, and answers unposed pictures in a frame of its own."""

    scene: SyntheticScene
    pose_noise: float = 0.0
    identity = IDENTITY

    def predict(self, views: Views, scene: str = "") -> Scene:
        frames = self.scene.frames()
        chosen = [int(name.removesuffix(".png")[-4:]) for name in views.names]
        depth = torch.stack([self.scene.depth(index) for index in chosen])[None]
        depth = torch.where(depth > 0, depth, 50.0)  # the sky, far away
        cameras = Cameras(
            world_to_camera=torch.stack([frames[i].world_to_camera for i in chosen])[None].float(),
            intrinsics=torch.stack([frames[i].intrinsics for i in chosen])[None].float(),
            height=self.scene.height,
            width=self.scene.width,
        )
        found = laid(views.images, Geometry(depth=depth, cameras=cameras))
        if views.cameras is not None:
            return found
        rotation = quaternion_to_matrix(torch.tensor([[0.8, 0.3, -0.4, 0.2]]))
        motion = Similarity(torch.tensor([0.37]), rotation, torch.tensor([[1.0, -2.0, 0.5]]))
        moved = transform_cameras(motion, cameras)
        if self.pose_noise:
            pose = moved.world_to_camera.clone()
            pose[0, :, 0, 3] += self.pose_noise
            moved = replace(moved, world_to_camera=pose)
        geometry = Geometry(depth=depth * 0.37, cameras=moved)
        return Scene(geometry=geometry, gaussians=transform_gaussians(motion, found.gaussians), cameras=moved)
