"""Casting rays into synthetic worlds: what they hit, how it is textured and lit. Used by data/synthetic.py alone."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

OBJECTS = 10  # spheres, boxes and cylinders a world
FACES = 6  # of the room, each a surface of its own
FAR = 1e6
RAYS_AT_ONCE = 1 << 15  # on a CPU
SPHERE, BOX, CYLINDER = range(3)
NOISE, CHECKS, STRIPES, PLAIN, CELLS, PHOTO = range(6)  # kinds of texture
FLOOR = 4  # the face of the room below


@dataclass(frozen=True)
class Worlds:
    """B worlds. room (B,3) half sizes, open (B) bool; objects: center, size (B,O,3) half sizes, turn (B,O,3,3) world to
    object, shape (B,O); surfaces (first the room's faces, then the objects): color_a, color_b (B,F+O,3), kind,
    frequency (B,F+O); light (B,3) towards the sun, lamp (B,3) where a lamp hangs, lamp_color (B,3); reach (B) radius of
    the cylinder that holds the objects; photos (P,3,h,w), pictures that surfaces of kind PHOTO show."""

    room: Tensor
    open: Tensor
    center: Tensor
    size: Tensor
    turn: Tensor
    shape: Tensor
    color_a: Tensor
    color_b: Tensor
    kind: Tensor
    frequency: Tensor
    light: Tensor
    lamp: Tensor
    lamp_color: Tensor
    reach: Tensor
    photos: Tensor | None = None

    def to(self, device: torch.device | str) -> Worlds:
        """The same worlds on another device."""
        held = {item.name: getattr(self, item.name) for item in fields(self)}
        return replace(self, **{name: value.to(device) for name, value in held.items() if value is not None})


@dataclass(frozen=True)
class Hits:
    """What rays (...) hit: distance along the ray, sky bool, normal (...,3) in the world, colour (...,3) or None."""

    distance: Tensor
    sky: Tensor
    normal: Tensor
    color: Tensor | None


def cast(worlds: Worlds, origins: Tensor, directions: Tensor, shade: bool = True) -> Hits:
    """Cast rays (B,V,H,W,3). Where there is sky, the distance is 0."""
    shape = directions.shape[:-1]
    origins, directions = origins.flatten(1, 3), directions.flatten(1, 3)
    size = max(1, RAYS_AT_ONCE // shape[0]) if directions.device.type == "cpu" else directions.shape[1]
    parts = [
        _cast(worlds, origins[:, start : start + size], directions[:, start : start + size], shade)
        for start in range(0, directions.shape[1], size)
    ]
    distance, sky, normal = (torch.cat([part[i] for part in parts], dim=1) for i in range(3))
    color = torch.cat([part[3] for part in parts], dim=1).reshape(*shape, 3) if shade else None
    return Hits(distance.reshape(shape), sky.reshape(shape), normal.reshape(*shape, 3), color)


def _cast(worlds: Worlds, origins: Tensor, directions: Tensor, shade: bool):
    room_distance, room_face, room_normal = _room_hit(worlds, origins, directions)
    distance, item = _nearest_object(worlds, origins, directions)
    in_room = room_distance < distance
    distance = torch.where(in_room, room_distance, distance)
    sky = in_room & worlds.open[:, None] & (room_face != FLOOR)
    points = origins + distance[..., None] * directions
    local, normal = _surface(worlds, item, points)
    normal = torch.where(in_room[..., None], room_normal, normal)
    color = None
    if shade:
        surface = torch.where(in_room, room_face, item + FACES)
        color = _texture(worlds, surface, torch.where(in_room[..., None], points, local))
        color = color * _light(worlds, points, normal)
        up = -normalize(directions, dim=-1)[..., 1:2].clamp(-1, 0)
        horizon = worlds.color_a[:, :1] * 0.3 + 0.6
        sky_color = horizon * (1 - up) + up * color.new_tensor([0.35, 0.55, 0.9])
        color = torch.where(sky[..., None], sky_color, color).clamp(0, 1)
    return torch.where(sky, torch.zeros_like(distance), distance), sky, normal, color


def _light(worlds: Worlds, points: Tensor, normal: Tensor) -> Tensor:
    """(B,R,3): what arrives of sky light, sun and lamp; nothing casts a shadow."""
    sun = (normal * worlds.light[:, None]).sum(dim=-1, keepdim=True).clamp_min(0)
    to_lamp = worlds.lamp[:, None] - points
    square = to_lamp.square().sum(dim=-1, keepdim=True)
    lamp = (normal * to_lamp).sum(dim=-1, keepdim=True).clamp_min(0) * square.clamp_min(1e-6).rsqrt() / (1 + square)
    return 0.5 + 0.4 * sun + lamp * worlds.lamp_color[:, None]


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
    # Faces are x: 0 and 1, z: 2 and 3, y, which points down: 4 and 5.
    normal = torch.zeros_like(directions).scatter(-1, axis[..., None], -sign)
    face = torch.tensor([0, FLOOR, 2], device=axis.device)[axis] + (sign[..., 0] < 0).long()
    return distance, face, normal


def _nearest_object(worlds: Worlds, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest object along rays (B,R,3): distance (FAR where none) and its index (0 where none)."""
    best = torch.full_like(directions[..., 0], FAR)
    index = torch.zeros_like(best, dtype=torch.long)
    for item in range(OBJECTS):
        turn, half, shape = worlds.turn[:, item], worlds.size[:, None, item], worlds.shape[:, item, None]
        o = (origins - worlds.center[:, None, item]) @ turn.transpose(1, 2)
        d = directions @ turn.transpose(1, 2)
        # Every shape is what a quadric and three slabs share: a sphere is cut by no slab, a box by no quadric.
        upright = (shape == CYLINDER)[..., None]
        flat = torch.where(upright, o.new_tensor([1.0, 0.0, 1.0]), o.new_ones(3))
        a, b = (d * d * flat).sum(-1).clamp_min(1e-12), (o * d * flat).sum(-1)
        root = b * b - a * ((o * o * flat).sum(-1) - half[..., 0].square())
        reach, inverse_a = root.clamp_min(0).sqrt(), 1 / a
        is_box = shape == BOX
        enter_round = torch.where(is_box, -FAR, torch.where(root <= 0, FAR, (-b - reach) * inverse_a))
        leave_round = torch.where(is_box, FAR, torch.where(root <= 0, -FAR, (-b + reach) * inverse_a))
        slab = torch.where(is_box[..., None] | (upright & (flat == 0)), half, FAR)
        inverse = 1 / torch.where(d.abs() < 1e-9, 1e-9, d)
        middle, width = -o * inverse, slab * inverse.abs()
        enter = torch.maximum(enter_round, (middle - width).amax(dim=-1))
        leave = torch.minimum(leave_round, (middle + width).amin(dim=-1))
        closer = (enter < leave) & (enter > 1e-3) & (enter < best)
        best = torch.where(closer, enter, best)
        index = torch.where(closer, item, index)
    return best, index


def _surface(worlds: Worlds, item: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Points (B,R,3) in the frame of their object (B,R), and its outward normal there in the world."""
    batch = torch.arange(len(item), device=item.device)[:, None]
    turn, half, shape = worlds.turn[batch, item], worlds.size[batch, item], worlds.shape[batch, item][..., None]
    local = (turn @ (points - worlds.center[batch, item])[..., None])[..., 0]
    # The face that a point lies on is the one of whose half size it has the largest share.
    axis = (local.abs() / half).argmax(dim=-1, keepdim=True)
    flat = torch.zeros_like(local).scatter(-1, axis, torch.sign(local.gather(-1, axis)))
    ring = local * local.new_tensor([1.0, 0.0, 1.0])
    on_cap = (shape == CYLINDER) & (
        (local[..., 1:2].abs() / half[..., 1:2]) > ring.norm(dim=-1, keepdim=True) / half[..., :1]
    )
    curved = torch.where(shape == CYLINDER, ring, local) / half[..., :1]
    normal = torch.where((shape == BOX) | on_cap, torch.where(on_cap, _up(local), flat), curved)
    return local, (turn.transpose(-1, -2) @ normal[..., None])[..., 0]


def _up(local: Tensor) -> Tensor:
    """Along y, to the side of the points (...,3)."""
    return torch.sign(local) * local.new_tensor([0.0, 1.0, 0.0])


def _texture(worlds: Worlds, surface: Tensor, points: Tensor) -> Tensor:
    """Solid textures (B,R,3): fractal noise, checks, stripes, cells, photos or a plain colour, over a little noise."""

    def of_surface(values: Tensor) -> Tensor:
        if values.ndim == 3:
            return values.gather(1, surface[..., None].expand(-1, -1, 3))
        return values.gather(1, surface)

    frequency, kind = of_surface(worlds.frequency), of_surface(worlds.kind)
    scaled = points * frequency[..., None] + surface[..., None] * 17.0
    noise = sum(_value_noise(scaled * 2.0**octave, octave) / 2.0**octave for octave in range(3)) / 1.75
    checks = (scaled.floor().sum(dim=-1).long() % 2).to(noise.dtype)
    stripes = (0.5 + 0.5 * torch.sin(6 * (scaled[..., 0] + 0.3 * scaled[..., 1]))).round()
    mix = torch.where(kind == NOISE, (2.5 * noise - 0.75).clamp(0, 1), torch.zeros_like(noise))
    mix = torch.where(kind == CHECKS, checks, mix)
    mix = torch.where(kind == STRIPES, stripes, mix)
    cobbled = kind == CELLS
    mix[cobbled] = _cells(scaled[cobbled])
    mix = mix[..., None]
    color = of_surface(worlds.color_a) * (1 - mix) + of_surface(worlds.color_b) * mix
    if worlds.photos is not None and bool((kind == PHOTO).any()):
        color = torch.where((kind == PHOTO)[..., None], _photo(worlds.photos, surface, points, frequency), color)
    return color * (0.7 + 0.6 * noise[..., None])


def _cells(points: Tensor) -> Tensor:
    """Cobbles (R) in [0,1] of points (R,3): the squared distance to the nearest of one random site a cell."""
    base = points.floor()
    nearest = torch.full_like(points[..., 0], 4.0)
    for corner in range(8):  # sites keep to the middle half of their cell, so these eight suffice
        offset = points.new_tensor([(corner >> axis) & 1 for axis in range(3)])
        cell = base + torch.where(points - base < 0.5, -offset, offset)
        site = torch.stack([_hash(cell.int(), salt) for salt in (7, 8, 9)], dim=-1) * 0.5 + 0.25 + cell
        nearest = torch.minimum(nearest, (points - site).square().sum(dim=-1))
    return (1.6 * nearest).clamp(0, 1)


def _photo(photos: Tensor, surface: Tensor, points: Tensor, frequency: Tensor) -> Tensor:
    """The photo of each surface (B,R,3), mirrored to tile the plane across which the surface runs steepest."""
    count, _, height, width = photos.shape
    across = points.abs().argmax(dim=-1)
    u = torch.where(across == 0, points[..., 2], points[..., 0]) * frequency / 4
    v = torch.where(across == 1, points[..., 2], points[..., 1]) * frequency / 4

    def index(value: Tensor, size: int) -> Tensor:
        folded = 1 - (torch.remainder(value, 2) - 1).abs()
        return (folded * size).long().clamp(0, size - 1)

    return photos[surface % count, :, index(v, height), index(u, width)]


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
        total = total + weight * _hash(cell + cell.new_tensor(offset), salt)
    return total


def _hash(cell: Tensor, salt: int) -> Tensor:
    """A number in [0,1] for each lattice point (...,3) int32."""
    x, y, z = cell.unbind(-1)
    mixed = x * 374761393 + y * 668265263 + z * 1274126177 + salt * 974711
    mixed = (mixed ^ (mixed >> 13)) * 1103515245
    return ((mixed ^ (mixed >> 16)) & 0xFFFF).float() / 65535
