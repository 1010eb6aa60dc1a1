"""Procedural worlds, ray-cast in torch on the CPU: exact pictures, z-depth, sky mask and cameras.

A world is a room (or an open ground under a sky) with spheres and boxes in its middle, every surface with a solid
texture of its own, one directional light, and cameras on an arc around the middle. World axes are OpenCV's: y points
down. Everything is a function of the seed. Cost grows with rays times objects; nothing is kept between calls.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, normalize

from da3_splat.geometry.poses import intrinsics_matrix
from da3_splat.geometry.projection import rays_from_cameras
from da3_splat.geometry.rotations import quaternion_to_matrix
from da3_splat.types import Cameras, Geometry, Views

OBJECTS = 10  # spheres and boxes a world
FACES = 6  # of the room, each a surface of its own
FAR = 1e6


@dataclass(frozen=True)
class Worlds:
    """B worlds. room (B,3) half sizes, open (B) bool; objects: center, size (B,O,3), turn (B,O,3,3), sphere (B,O) bool;
    surfaces (first the room's faces, then the objects): color_a, color_b (B,F+O,3), kind, frequency (B,F+O)."""

    room: Tensor
    open: Tensor
    center: Tensor
    size: Tensor
    turn: Tensor
    sphere: Tensor
    color_a: Tensor
    color_b: Tensor
    kind: Tensor
    frequency: Tensor
    light: Tensor
    reach: Tensor  # (B) radius of the cylinder that holds the objects


def sample_worlds(count: int, seed: int) -> Worlds:
    """`count` worlds drawn from `seed`."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    room = torch.stack([uniform(2.4, 4.5, count), uniform(1.3, 2.0, count), uniform(2.4, 4.5, count)], dim=-1)
    reach = uniform(0.8, 1.3, count)
    angle, radius = uniform(0, 2 * torch.pi, count, OBJECTS), uniform(0, 1, count, OBJECTS).sqrt() * reach[:, None]
    size = uniform(0.12, 0.5, count, OBJECTS, 1) * uniform(0.6, 1.4, count, OBJECTS, 3)
    sphere = uniform(0, 1, count, OBJECTS) < 0.5
    size = torch.where(sphere[..., None], size[..., :1].expand_as(size), size)
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

    return Worlds(
        room=room,
        open=uniform(0, 1, count) < 0.25,
        center=center,
        size=size,
        turn=quaternion_to_matrix(torch.randn(count, OBJECTS, 4, generator=generator)),
        sphere=sphere,
        color_a=colors(),
        color_b=colors(),
        kind=torch.randint(0, 4, (count, surfaces), generator=generator),
        frequency=uniform(1.5, 6.0, count, surfaces),
        light=normalize(torch.randn(count, 3, generator=generator) * 0.6 + torch.tensor([0.0, -1.0, 0.0]), dim=-1),
        reach=reach,
    )


def sample_cameras(worlds: Worlds, views: int, height: int, width: int, seed: int, arc: float | None = None) -> Cameras:
    """Cameras (B,views) on an arc around the objects, evenly spaced, looking at the middle with a little unrest.

    `arc` is the whole angle in degrees; drawn between 10 and 100 for each world where it is None.
    """
    generator = torch.Generator().manual_seed(seed)
    count = worlds.room.shape[0]

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    outer = worlds.room[:, [0, 2]].amin(dim=-1) - 0.2
    inner = worlds.reach + 0.7
    radius = inner + (outer - inner).clamp_min(0) * uniform(0, 1, count)
    span = uniform(10, 100, count) if arc is None else torch.full((count,), float(arc))
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
    world_to_camera = look_at(position, target, roll)
    focal = width / 2 / torch.tan(torch.deg2rad(uniform(50, 85, count, 1)) / 2).expand(count, views)
    half_width, half_height = torch.full_like(focal, width / 2), torch.full_like(focal, height / 2)
    intrinsics = intrinsics_matrix(focal, focal, half_width, half_height)
    return Cameras(world_to_camera=world_to_camera, intrinsics=intrinsics, height=height, width=width)


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
    fine = rays_from_cameras(cameras, height * supersample, width * supersample)
    color, depth, sky = _cast(worlds, fine.origins, fine.directions)
    color = color.permute(0, 1, 4, 2, 3)
    if supersample > 1:
        color = avg_pool2d(color.flatten(0, 1), supersample).unflatten(0, color.shape[:2])
        if supersample % 2 == 0:  # no ray went through the pixel centres
            rays = rays_from_cameras(cameras)
            _, depth, sky = _cast(worlds, rays.origins, rays.directions, shade=False)
        else:
            middle = slice(supersample // 2, None, supersample)
            depth, sky = depth[..., middle, middle], sky[..., middle, middle]
    return color, Geometry(depth=depth, cameras=cameras, sky=sky.to(depth.dtype))


def make_scenes(
    count: int, views: int, height: int, width: int, seed: int, arc: float | None = None, supersample: int = 2
) -> tuple[Views, Geometry]:
    """`count` worlds with `views` posed pictures each, and their true geometry."""
    worlds = sample_worlds(count, seed)
    cameras = sample_cameras(worlds, views, height, width, seed + 1, arc)
    images, geometry = render_worlds(worlds, cameras, supersample)
    names = tuple(f"view_{index:04d}" for index in range(views))
    return Views(images=images, cameras=cameras, names=names), geometry


def _cast(worlds: Worlds, origins: Tensor, directions: Tensor, shade: bool = True):
    """Colour (...,3), depth along `directions` and sky of rays (B,V,H,W,3)."""
    shape = directions.shape[:-1]
    origins, directions = origins.flatten(1, 3), directions.flatten(1, 3)
    room_distance, room_face, room_normal = _room_hit(worlds, origins, directions)
    distance, surface, local, normal = _object_hits(worlds, origins, directions)
    in_room = room_distance < distance
    distance = torch.where(in_room, room_distance, distance)
    surface = torch.where(in_room, room_face, surface + FACES)
    sky = in_room & worlds.open[:, None] & (room_face != 4)  # face 4 is the floor
    depth = torch.where(sky, torch.zeros_like(distance), distance).reshape(shape)
    if not shade:
        return None, depth, sky.reshape(shape)
    world_points = origins + distance[..., None] * directions
    local = torch.where(in_room[..., None], world_points, local)
    normal = torch.where(in_room[..., None], room_normal, normal)
    color = _texture(worlds, surface, local)
    lambert = (normal * worlds.light[:, None]).sum(dim=-1, keepdim=True).clamp_min(0)
    color = color * (0.55 + 0.45 * lambert)
    up = -normalize(directions, dim=-1)[..., 1:2].clamp(-1, 0)
    horizon = worlds.color_a[:, :1] * 0.3 + 0.6
    sky_color = horizon * (1 - up) + up * color.new_tensor([0.35, 0.55, 0.9])
    color = torch.where(sky[..., None], sky_color, color)
    return color.clamp(0, 1).reshape(*shape, 3), depth, sky.reshape(shape)


def _room_hit(worlds: Worlds, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where rays (B,R,3) that start inside leave the room: distance, face 2 * axis + (0 high, 1 low), inner normal."""
    half = worlds.room[:, None]
    # An open world is a room whose walls and ceiling are too far to matter: they are sky.
    scale = torch.where(worlds.open[:, None, None], half.new_tensor([20.0, 1.0, 20.0]), half.new_ones(3))
    half = half * scale
    safe = torch.where(directions.abs() < 1e-9, torch.full_like(directions, 1e-9), directions)
    distance = (torch.sign(safe) * half - origins) / safe
    distance, axis = distance.clamp_min(0).min(dim=-1)
    sign = torch.sign(safe).gather(-1, axis[..., None])
    normal = torch.zeros_like(directions).scatter(-1, axis[..., None], -sign)
    face = torch.tensor([0, 4, 2])[axis] + (sign[..., 0] < 0).long()  # x: 0 1, y (down): 4 floor, 5; z: 2 3
    return distance, face, normal


def _object_hits(worlds: Worlds, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The nearest object along rays (B,R,3): distance (FAR where none), its index, the hit in its frame, the normal."""
    best = torch.full(directions.shape[:2], FAR)
    index = torch.zeros(directions.shape[:2], dtype=torch.long)
    local, normal = torch.zeros_like(directions), torch.zeros_like(directions)
    for item in range(OBJECTS):
        turn, half = worlds.turn[:, item], worlds.size[:, None, item]
        o = (origins - worlds.center[:, None, item]) @ turn.transpose(1, 2)
        d = directions @ turn.transpose(1, 2)
        a, b, c = d.square().sum(-1), (o * d).sum(-1), o.square().sum(-1) - half[..., 0].square()
        root = b * b - a * c
        sphere_distance = torch.where(root > 0, (-b - root.clamp_min(0).sqrt()) / a, FAR)
        inverse = 1 / torch.where(d.abs() < 1e-9, torch.full_like(d, 1e-9), d)
        near, far = -o * inverse - half * inverse.abs(), -o * inverse + half * inverse.abs()
        enter, axis = near.max(dim=-1)
        box_distance = torch.where(enter < far.amin(dim=-1), enter, FAR)
        is_sphere = worlds.sphere[:, item, None]
        distance = torch.where(is_sphere, sphere_distance, box_distance)
        closer = (distance > 1e-3) & (distance < best)
        hit = o + distance[..., None] * d
        face = torch.zeros_like(d).scatter(-1, axis[..., None], -torch.sign(d.gather(-1, axis[..., None])))
        normal_here = torch.where(is_sphere[..., None], hit / half[..., :1], face) @ turn
        best = torch.where(closer, distance, best)
        index = torch.where(closer, item, index)
        local = torch.where(closer[..., None], hit, local)
        normal = torch.where(closer[..., None], normal_here, normal)
    return best, index, local, normal


def _texture(worlds: Worlds, surface: Tensor, points: Tensor) -> Tensor:
    """Solid textures (B,R,3): fractal noise, checks, stripes or a plain colour, all over a little noise."""

    def of_surface(values: Tensor) -> Tensor:
        if values.ndim == 3:
            return values.gather(1, surface[..., None].expand(-1, -1, 3))
        return values.gather(1, surface)

    frequency, kind = of_surface(worlds.frequency), of_surface(worlds.kind)
    scaled = points * frequency[..., None] + surface[..., None] * 17.0
    noise = sum(_value_noise(scaled * 2.0**octave, octave) / 2.0**octave for octave in range(3)) / 1.75
    checks = (scaled.floor().sum(dim=-1).long() % 2).to(noise.dtype)
    stripes = (0.5 + 0.5 * torch.sin(6 * (scaled[..., 0] + 0.3 * scaled[..., 1]))).round()
    mix = torch.where(kind == 0, (2.5 * noise - 0.75).clamp(0, 1), torch.zeros_like(noise))
    mix = torch.where(kind == 1, checks, mix)
    mix = torch.where(kind == 2, stripes, mix)[..., None]
    color = of_surface(worlds.color_a) * (1 - mix) + of_surface(worlds.color_b) * mix
    return color * (0.7 + 0.6 * noise[..., None])


def _value_noise(points: Tensor, salt: int) -> Tensor:
    """Smooth noise (B,R) in [0,1]: hashed values on the integer lattice, blended with a cubic ease."""
    base = points.floor()
    t = points - base
    t = t * t * (3 - 2 * t)
    cell = base.int()
    total = torch.zeros_like(points[..., 0])
    for corner in range(8):
        offset = [(corner >> axis) & 1 for axis in range(3)]
        weight = torch.ones_like(total)
        for axis in range(3):
            weight = weight * (t[..., axis] if offset[axis] else 1 - t[..., axis])
        x, y, z = (cell[..., axis] + offset[axis] for axis in range(3))
        mixed = x * 374761393 + y * 668265263 + z * 1274126177 + salt * 974711
        mixed = (mixed ^ (mixed >> 13)) * 1103515245
        total = total + weight * ((mixed ^ (mixed >> 16)) & 0xFFFF).to(total.dtype) / 65535
    return total
