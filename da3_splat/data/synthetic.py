"""Procedural worlds, ray-cast in torch on any device: exact pictures, z-depth, normals, sky mask and cameras.

A world is a room (or an open ground under a sky) with spheres, boxes and cylinders in its middle, every surface with a
solid texture of its own, sun, sky light and a lamp, and cameras on an arc around the middle or on a smooth walk. World
axes are OpenCV's: y points down. Everything is a function of the seed. Cost grows with rays times objects; nothing is
kept between calls.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, normalize

from da3_splat.data.ray_casting import CYLINDER, FACES, OBJECTS, PHOTO, SPHERE, Worlds, cast
from da3_splat.geometry.poses import intrinsics_matrix
from da3_splat.geometry.projection import rays_from_cameras
from da3_splat.geometry.rotations import quaternion_to_matrix
from da3_splat.types import Cameras, Geometry, Views


def sample_worlds(count: int, seed: int, photos: Tensor | None = None) -> Worlds:
    """`count` worlds drawn from `seed`. With `photos` (P,3,h,w) in [0,1], a third of the surfaces show them."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    room = torch.stack([uniform(2.4, 4.5, count), uniform(1.3, 2.0, count), uniform(2.4, 4.5, count)], dim=-1)
    reach = uniform(0.8, 1.3, count)
    angle, radius = uniform(0, 2 * torch.pi, count, OBJECTS), uniform(0, 1, count, OBJECTS).sqrt() * reach[:, None]
    size = uniform(0.12, 0.5, count, OBJECTS, 1) * uniform(0.6, 1.4, count, OBJECTS, 3)
    shape = torch.randint(0, 3, (count, OBJECTS), generator=generator)
    size = torch.where((shape == SPHERE)[..., None], size[..., :1].expand_as(size), size)
    # Most objects stand on the floor (y = room height), some float.
    height = (
        room[:, None, 1]
        - size[..., 1]
        - torch.where(
            uniform(0, 1, count, OBJECTS) < 0.6, torch.zeros(()), uniform(0, 1, count, OBJECTS) * room[:, None, 1]
        )
    )
    center = torch.stack([radius * angle.cos(), height, radius * angle.sin()], dim=-1)
    surfaces = FACES + OBJECTS

    def colors() -> Tensor:
        """Half of all surfaces are nearly grey, as most things are."""
        full, saturation = uniform(0.05, 0.95, count, surfaces, 3), uniform(0, 1, count, surfaces, 1)
        grey = full.mean(dim=-1, keepdim=True)
        return grey + saturation * (full - grey)

    # Cylinders stand upright, the rest is turned at random.
    turn = quaternion_to_matrix(torch.randn(count, OBJECTS, 4, generator=generator))
    turn = torch.where((shape == CYLINDER)[..., None, None], torch.eye(3), turn)
    kind = torch.randint(0, 5, (count, surfaces), generator=generator)
    if photos is not None:
        kind = torch.where(uniform(0, 1, count, surfaces) < 1 / 3, PHOTO, kind)
    lamp = uniform(-0.6, 0.6, count, 3) * room
    lamp[:, 1] = -0.8 * room[:, 1]
    return Worlds(
        room=room,
        open=uniform(0, 1, count) < 0.25,
        center=center,
        size=size,
        turn=turn,
        shape=shape,
        color_a=colors(),
        color_b=colors(),
        kind=kind,
        frequency=uniform(1.5, 6.0, count, surfaces),
        light=normalize(torch.randn(count, 3, generator=generator) * 0.6 + torch.tensor([0.0, -1.0, 0.0]), dim=-1),
        lamp=lamp,
        lamp_color=uniform(0, 1.5, count, 1) * uniform(0.7, 1, count, 3),
        reach=reach,
        photos=photos,
    )


def sample_cameras(
    worlds: Worlds, views: int, height: int, width: int, seed: int, arc: float | Tensor | None = None
) -> Cameras:
    """Cameras (B,views) on an arc around the objects, evenly spaced, looking at the middle with a little unrest.

    `arc` is the whole angle in degrees, or that of each world (B); drawn between 10 and 100 where it is None.
    """
    generator = torch.Generator().manual_seed(seed)
    count = worlds.room.shape[0]

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    outer = worlds.room[:, [0, 2]].amin(dim=-1) - 0.2
    inner = worlds.reach + 0.7
    radius = inner + (outer - inner).clamp_min(0) * uniform(0, 1, count)
    span = uniform(10, 100, count) if arc is None else torch.as_tensor(arc, dtype=torch.float32).expand(count)
    along = torch.linspace(-0.5, 0.5, views) if views > 1 else torch.zeros(1)
    azimuth = uniform(0, 2 * torch.pi, count, 1) + torch.deg2rad(span)[:, None] * along
    azimuth = azimuth + 0.02 * torch.randn(count, views, generator=generator)
    level = worlds.room[:, None, 1] * (
        uniform(-0.5, 0.4, count, 1) + 0.05 * torch.randn(count, views, generator=generator)
    )
    distance = radius[:, None] * uniform(0.95, 1.0, count, views)
    position = torch.stack([distance * azimuth.cos(), level, distance * azimuth.sin()], dim=-1)
    target = torch.stack(
        [0.2 * uniform(-1, 1, count, 1), 0.55 * worlds.room[:, None, 1], 0.2 * uniform(-1, 1, count, 1)], dim=-1
    )
    target = target + 0.1 * torch.randn(count, views, 3, generator=generator)
    roll = torch.deg2rad(4 * torch.randn(count, views, generator=generator))
    intrinsics = sample_intrinsics(count, views, height, width, generator)
    return Cameras(world_to_camera=look_at(position, target, roll), intrinsics=intrinsics, height=height, width=width)


def sample_walk(worlds: Worlds, views: int, height: int, width: int, seed: int, turns: float = 1.0) -> Cameras:
    """Cameras (B,views) on a smooth closed walk around the objects that keeps looking at them, `turns` times around.

    Distance, height and gaze swing slowly; neighbours differ by little, and the last view comes home to the first.
    """
    generator = torch.Generator().manual_seed(seed)
    count = worlds.room.shape[0]
    phase = torch.linspace(0, 2 * torch.pi, views + 1)[:-1]

    def swing(periods: int) -> Tensor:
        """(B,views) within [-1,1], periodic."""
        shift = 2 * torch.pi * torch.rand(count, 1, generator=generator)
        return torch.sin(periods * phase + shift)

    outer, inner = worlds.room[:, [0, 2]].amin(dim=-1, keepdim=True) - 0.2, worlds.reach[:, None] + 0.7
    distance = inner + (outer - inner).clamp_min(0) * (0.5 + 0.4 * swing(2))
    azimuth = turns * phase + 2 * torch.pi * torch.rand(count, 1, generator=generator)
    level = worlds.room[:, 1:2] * (0.25 * swing(1) + 0.15 * swing(3))
    position = torch.stack([distance * azimuth.cos(), level, distance * azimuth.sin()], dim=-1)
    target = torch.stack([0.4 * swing(1), 0.5 * worlds.room[:, 1:2] + 0.2 * swing(2), 0.4 * swing(3)], dim=-1)
    roll = torch.deg2rad(3 * swing(2))
    intrinsics = sample_intrinsics(count, views, height, width, generator)
    return Cameras(world_to_camera=look_at(position, target, roll), intrinsics=intrinsics, height=height, width=width)


def sample_intrinsics(count: int, views: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """(B,views,3,3): one lens a world, 50 to 85 degrees wide, principal point in the centre."""
    field = torch.deg2rad(50 + 35 * torch.rand(count, 1, generator=generator))
    focal = (width / 2 / torch.tan(field / 2)).expand(count, views)
    return intrinsics_matrix(focal, focal, torch.full_like(focal, width / 2), torch.full_like(focal, height / 2))


def with_zoom(cameras: Cameras, seed: int, zoom: float = 0.15, shift: float = 0.1) -> Cameras:
    """The cameras with a lens of its own each: focal length off by `zoom` at most, centre by `shift` half sizes."""
    generator = torch.Generator().manual_seed(seed)
    draw = 2 * torch.rand(3, *cameras.intrinsics.shape[:2], generator=generator) - 1
    focal = cameras.intrinsics[..., 0, 0] * torch.exp(zoom * draw[0])
    center_x, center_y = cameras.width / 2 * (1 + shift * draw[1]), cameras.height / 2 * (1 + shift * draw[2])
    return replace(cameras, intrinsics=intrinsics_matrix(focal, focal, center_x, center_y))


def look_at(position: Tensor, target: Tensor, roll: Tensor | None = None) -> Tensor:
    """world_to_camera (...,4,4) of cameras at `position` (...,3) that look at `target`, world y pointing down."""
    forward = normalize(target - position, dim=-1)
    down = torch.zeros_like(forward)
    down[..., 1] = 1
    right = normalize(torch.linalg.cross(down, forward, dim=-1), dim=-1)
    down = torch.linalg.cross(forward, right, dim=-1)
    if roll is not None:
        cos, sin = roll.cos()[..., None], roll.sin()[..., None]
        right, down = cos * right + sin * down, cos * down - sin * right
    rotation = torch.stack([right, down, forward], dim=-2)
    matrix = torch.zeros(*position.shape[:-1], 4, 4)
    matrix[..., :3, :3] = rotation
    matrix[..., :3, 3] = -(rotation @ position[..., None])[..., 0]
    matrix[..., 3, 3] = 1
    return matrix


def render_worlds(worlds: Worlds, cameras: Cameras, supersample: int = 2) -> tuple[Tensor, Geometry]:
    """Pictures (B,V,3,H,W) of the worlds and the exact geometry behind their pixel centres.

    Colour is the mean of supersample^2 rays a pixel; depth and sky are those of the ray through the pixel centre.
    Sky pixels have depth 0.
    """
    height, width = cameras.height, cameras.width
    worlds = worlds.to(cameras.intrinsics.device)
    fine = rays_from_cameras(cameras, height * supersample, width * supersample)
    hits = cast(worlds, fine.origins, fine.directions)
    assert hits.color is not None, "cast with shading"
    color, depth, sky = hits.color.permute(0, 1, 4, 2, 3), hits.distance, hits.sky
    if supersample > 1:
        color = avg_pool2d(color.flatten(0, 1), supersample).unflatten(0, color.shape[:2])
        if supersample % 2 == 0:  # no ray went through the pixel centres
            rays = rays_from_cameras(cameras)
            hits = cast(worlds, rays.origins, rays.directions, shade=False)
            depth, sky = hits.distance, hits.sky
        else:
            middle = slice(supersample // 2, None, supersample)
            depth, sky = depth[..., middle, middle], sky[..., middle, middle]
    return color, Geometry(depth=depth, cameras=cameras, sky=sky.to(depth.dtype))


def render_normals(worlds: Worlds, cameras: Cameras) -> Tensor:
    """Unit normals (B,V,H,W,3) in the axes of each camera, facing it; zero where there is sky."""
    rays = rays_from_cameras(cameras)
    hits = cast(worlds.to(cameras.intrinsics.device), rays.origins, rays.directions, shade=False)
    normals = torch.einsum("bvij,bvhwj->bvhwi", cameras.world_to_camera[..., :3, :3], normalize(hits.normal, dim=-1))
    return normals * ~hits.sky[..., None]


def render_objects(worlds: Worlds, cameras: Cameras) -> Tensor:
    """(B,V,H,W) bool: where an object stands, not the room, the ground or the sky."""
    rays = rays_from_cameras(cameras)
    return cast(worlds.to(cameras.intrinsics.device), rays.origins, rays.directions, shade=False).objects


def make_scenes(
    count: int,
    views: int,
    height: int,
    width: int,
    seed: int,
    arc: float | Tensor | None = None,
    supersample: int = 2,
    device: torch.device | str = "cpu",
) -> tuple[Views, Geometry]:
    """`count` worlds with `views` posed pictures each, and their true geometry."""
    worlds = sample_worlds(count, seed)
    cameras = sample_cameras(worlds, views, height, width, seed + 1, arc).to(device)
    images, geometry = render_worlds(worlds, cameras, supersample)
    names = tuple(f"view_{index:04d}" for index in range(views))
    return Views(images=images, cameras=cameras, names=names), geometry
