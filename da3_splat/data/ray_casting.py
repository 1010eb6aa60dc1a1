"""Casting rays into synthetic worlds: what they hit, how it is textured and lit. Used by data/synthetic.py alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
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
PRIMES, SALT = (374761393, 668265263, 1274126177), 974711  # for hashing lattice points in wrapping int32


@dataclass(frozen=True)
class Worlds:
    """B worlds. room (B,3) half sizes, open (B) bool; objects: center, size (B,O,3) half sizes, turn (B,O,3,3) world to
    object, shape (B,O); surfaces (first the room's faces, then the objects): color_a, color_b (B,F+O,3), kind,
    frequency (B,F+O); light (B,3) towards the sun, lamp (B,3) where a lamp hangs, lamp_color (B,3); reach (B) radius of
    the cylinder that holds the objects; photos (P,3,h,w), pictures that surfaces of kind PHOTO show;
    grain (B,F+O), how far the noise over every texture swings (None: 0.6 everywhere); gloss (B,F+O), which share of a
    surface's colour is what it mirrors (None: none)."""

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
    grain: Tensor | None = None
    gloss: Tensor | None = None

    def to(self, device: torch.device | str) -> Worlds:
        """The same worlds on another device."""
        held = {item.name: getattr(self, item.name) for item in fields(self)}
        return replace(self, **{name: value.to(device) for name, value in held.items() if value is not None})


@dataclass(frozen=True)
class Hits:
    """What rays (...) hit: distance along the ray, sky and object (not the room or ground) bool, normal (...,3) in the
    world, colour (...,3) or None."""

    distance: Tensor
    sky: Tensor
    objects: Tensor
    normal: Tensor
    color: Tensor | None


def cast(worlds: Worlds, origins: Tensor, directions: Tensor, shade: bool = True) -> Hits:
    """Cast rays (B,V,H,W,3). Where there is sky, the distance is 0."""
    shape = directions.shape[:-1]
    origins, directions = origins.flatten(1, 3), directions.flatten(1, 3)
    rays = directions.shape[1]
    on_cpu = directions.device.type == "cpu"
    size = max(1, RAYS_AT_ONCE // shape[0]) if on_cpu else rays

    def part(start: int) -> tuple[Tensor, ...]:
        some = slice(start, start + size)
        return _cast(worlds, origins[:, some].contiguous(), directions[:, some].contiguous(), shade)

    # A part is so small that its temporaries stay in the cache; torch would use one core for it, so parts share them.
    with ThreadPoolExecutor(torch.get_num_threads() if on_cpu else 1) as pool:
        parts = list(pool.map(part, range(0, rays, size)))
    distance, sky, objects, normal, *color = (torch.cat(pieces, dim=1).reshape(*shape, -1) for pieces in zip(*parts))
    return Hits(distance[..., 0], sky[..., 0], objects[..., 0], normal, color[0] if shade else None)


def _cast(worlds: Worlds, origins: Tensor, directions: Tensor, shade: bool) -> tuple[Tensor, ...]:
    """Distance, sky and object (B,R,1), normal (B,R,3) and, where wanted, colour (B,R,3) of rays (B,R,3)."""
    batch, rays = directions.shape[:2]
    distance, surface, normal = _room_hit(worlds, origins, directions)
    ray, item, enter, local, object_normal = _object_hits(worlds, origins, directions, distance)
    distance.view(-1)[ray] = enter
    surface.view(-1)[ray] = item + FACES
    normal.view(-1, 3)[ray] = object_normal
    sky = (worlds.open[:, None] & (surface < FACES) & (surface != FLOOR))[..., None]
    objects = (surface >= FACES)[..., None]
    distance = distance[..., None]
    seen = distance.masked_fill(sky, 0)
    if not shade:
        return seen, sky, objects, normal
    points = origins + distance * directions
    at = points.clone(memory_format=torch.contiguous_format)
    at.view(-1, 3)[ray] = local
    color = _texture(worlds, surface, at) * _light(worlds, points, normal)
    up = -normalize(directions, dim=-1)[..., 1:2].clamp(-1, 0)
    horizon = worlds.color_a[:, :1] * 0.3 + 0.6
    sky_color = horizon * (1 - up) + up * color.new_tensor([0.35, 0.55, 0.9])
    color = torch.where(sky, sky_color, color).clamp(0, 1)
    if worlds.gloss is not None:
        share = worlds.gloss.gather(1, surface)[..., None].masked_fill(sky, 0)
        color = color + share * (_mirrored(worlds, points, directions, normal) - color)
    return seen, sky, objects, normal, color


def _mirrored(worlds: Worlds, points: Tensor, directions: Tensor, normal: Tensor) -> Tensor:
    """The colours (B,R,3) that rays see which meet a mirror at each of the points; mirrors in it mirror nothing."""
    normal = normalize(normal, dim=-1)
    leaving = directions - 2 * (directions * normal).sum(dim=-1, keepdim=True) * normal
    return _cast(replace(worlds, gloss=None), points + 1e-3 * normal, leaving, shade=True)[4]


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


def _object_hits(worlds: Worlds, origins: Tensor, directions: Tensor, limit: Tensor) -> tuple[Tensor, ...]:
    """The nearest object along those of rays (B,R,3) that meet one within `limit` (B,R), for M of them: the ray (M) as
    its place among all B*R, the object's index (M), distance (M), point (M,3) in the object's frame and outward normal
    (M,3) in the world."""
    rays = directions.shape[1]
    world, ray, item = _near_pairs(worlds, origins, directions).nonzero().unbind(-1)
    flat_ray, flat_item = world * rays + ray, world * OBJECTS + item
    # All objects' frames at once are one matrix product; a pair takes its three numbers out of it.
    axes = worlds.turn.flatten(1, 2).transpose(1, 2)
    middle = torch.einsum("boij,boj->boi", worlds.turn, worlds.center).flatten(0, 1)
    o = (origins @ axes).unflatten(-1, (OBJECTS, 3))[world, ray, item] - middle[flat_item]
    d = (directions @ axes).unflatten(-1, (OBJECTS, 3))[world, ray, item]
    half, shape = worlds.size.flatten(0, 1)[flat_item], worlds.shape.flatten(0, 1)[flat_item]
    enter, leave = _crossing(o, d, half, shape)
    enter = torch.where((enter < leave) & (enter > 1e-3), enter, FAR)
    best = limit.flatten().scatter_reduce(0, flat_ray, enter, "amin")
    first = (enter == best[flat_ray]) & (enter < limit.flatten()[flat_ray])
    flat_ray, flat_item, item, enter = flat_ray[first], flat_item[first], item[first], enter[first]
    local = o[first] + enter[:, None] * d[first]
    normal = _local_normal(local, half[first], shape[first])
    normal = (normal[:, :, None] * worlds.turn.flatten(0, 1)[flat_item]).sum(dim=1)
    return flat_ray, item, enter, local, normal


def _near_pairs(worlds: Worlds, origins: Tensor, directions: Tensor) -> Tensor:
    """(B,R,O) bool: rays that pass through the sphere around an object. Few do, and only those are looked at."""
    half, shape = worlds.size, worlds.shape[..., None]
    square = torch.where(shape == SPHERE, half[..., :1].square(), half.square())
    sphere = torch.where(shape == SPHERE, square[..., :1], square.sum(dim=-1, keepdim=True))[..., 0] * 1.001 + 1e-3
    center = worlds.center.transpose(1, 2)
    along = directions @ center - (origins * directions).sum(dim=-1, keepdim=True)
    apart = worlds.center.square().sum(dim=-1)[:, None] - 2 * (origins @ center)
    apart = apart + origins.square().sum(dim=-1, keepdim=True) - sphere[:, None]
    # A camera may stand within the sphere of a long object that it looks along.
    ahead = (along > 0) | (apart < 0)
    return ahead & (apart * directions.square().sum(dim=-1, keepdim=True) < along.square())


def _crossing(o: Tensor, d: Tensor, half: Tensor, shape: Tensor) -> tuple[Tensor, Tensor]:
    """Where rays o + t d (M,3) enter and leave an object of its own frame each; enter > leave where they miss it.

    Every shape is what a quadric and three slabs share: a sphere is cut by no slab, a box by no quadric.
    """
    upright, is_box = shape == CYLINDER, shape == BOX
    flat_o, flat_d = o.clone(), d.clone()
    flat_o[:, 1].masked_fill_(upright, 0)
    flat_d[:, 1].masked_fill_(upright, 0)
    a, b = flat_d.square().sum(-1).clamp_min(1e-12), (flat_o * flat_d).sum(-1)
    root = b * b - a * (flat_o.square().sum(-1) - half[:, 0].square())
    reach = root.clamp_min(0).sqrt()
    missed = root <= 0
    enter_round = torch.where(is_box, -FAR, torch.where(missed, FAR, (-b - reach) / a))
    leave_round = torch.where(is_box, FAR, torch.where(missed, -FAR, (-b + reach) / a))
    cut = is_box[:, None].repeat(1, 3)
    cut[:, 1] |= upright
    inverse = 1 / torch.where(d.abs() < 1e-9, 1e-9, d)
    middle, width = -o * inverse, torch.where(cut, half, FAR) * inverse.abs()
    return torch.maximum(enter_round, (middle - width).amax(-1)), torch.minimum(leave_round, (middle + width).amin(-1))


def _local_normal(local: Tensor, half: Tensor, shape: Tensor) -> Tensor:
    """Outward normals (M,3), not of unit length, at points (M,3) on the surface of objects, in the objects' frames."""
    shape = shape[:, None]
    # The face that a point lies on is the one of whose half size it has the largest share.
    axis = (local.abs() / half).argmax(dim=-1, keepdim=True)
    face = torch.zeros_like(local).scatter(-1, axis, torch.sign(local.gather(-1, axis)))
    ring = local * local.new_tensor([1.0, 0.0, 1.0])
    on_cap = local[:, 1:2].abs() / half[:, 1:2] > ring.norm(dim=-1, keepdim=True) / half[:, :1]
    cap = torch.sign(local) * local.new_tensor([0.0, 1.0, 0.0])
    cylinder = torch.where(on_cap, cap, ring / half[:, :1])
    return torch.where(shape == BOX, face, torch.where(shape == CYLINDER, cylinder, local / half[:, :1]))


def _texture(worlds: Worlds, surface: Tensor, points: Tensor) -> Tensor:
    """Solid textures (B,R,3): fractal noise, checks, stripes, cells, photos or a plain colour, over a little noise."""

    def of_surface(values: Tensor) -> Tensor:
        if values.ndim == 3:
            return values.gather(1, surface[..., None].expand(-1, -1, 3))
        return values.gather(1, surface)

    frequency, kind = of_surface(worlds.frequency), of_surface(worlds.kind)
    scaled = points * frequency[..., None] + surface[..., None] * 17.0
    x, y, z = (axis.contiguous() for axis in scaled.unbind(-1))
    octaves = [_value_noise(x * 2.0**n, y * 2.0**n, z * 2.0**n, salt=n) / 2.0**n for n in range(3)]
    noise = (octaves[0] + octaves[1] + octaves[2]) / 1.75
    checks = torch.remainder(x.floor() + y.floor() + z.floor(), 2)
    stripes = (0.5 + 0.5 * torch.sin(6 * (x + 0.3 * y))).round()
    mix = torch.where(kind == NOISE, (2.5 * noise - 0.75).clamp(0, 1), torch.zeros_like(noise))
    mix = torch.where(kind == CHECKS, checks, mix)
    mix = torch.where(kind == STRIPES, stripes, mix)
    cobbled = kind == CELLS
    mix[cobbled] = _cells(scaled[cobbled])
    mix = mix[..., None]
    color = of_surface(worlds.color_a) * (1 - mix) + of_surface(worlds.color_b) * mix
    if worlds.photos is not None and bool((kind == PHOTO).any()):
        color = torch.where((kind == PHOTO)[..., None], _photo(worlds.photos, surface, points, frequency), color)
    if worlds.grain is None:
        return color * (0.7 + 0.6 * noise[..., None])
    return color * (1 + (of_surface(worlds.grain) * (noise - 0.5))[..., None])


def _cells(points: Tensor) -> Tensor:
    """Cobbles (R) in [0,1] of points (R,3): the squared distance to the nearest of one random site a cell."""
    base = points.floor()
    toward = torch.where(points - base < 0.5, -1.0, 1.0)
    nearest = torch.full_like(points[..., 0], 4.0)
    for corner in range(8):  # sites keep to the middle half of their cell, so these eight suffice
        cell = base + toward * points.new_tensor([(corner >> axis) & 1 for axis in range(3)])
        x, y, z = (number * prime for number, prime in zip(cell.int().unbind(-1), PRIMES))
        site = torch.stack([_hash(x + y + z + salt * SALT) for salt in (7, 8, 9)], dim=-1) * 0.5 + 0.25 + cell
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


def _value_noise(x: Tensor, y: Tensor, z: Tensor, salt: int) -> Tensor:
    """Smooth noise in [0,1] of coordinates of one shape: hashed values on the integer lattice, blended with a cubic
    ease. By far the most work of a picture, so what corners share is computed once."""
    ease, keys = [], []
    for values, prime in zip((x, y, z), PRIMES):
        base = values.floor()
        t = values - base
        ease.append(t * t * (3 - 2 * t))
        low = base.int() * prime
        keys.append((low, low + prime))
    planes = []
    for key_z in keys[2]:
        rows = []
        for key_y in keys[1]:
            key = key_y + (key_z + salt * SALT)
            rows.append(torch.lerp(_hash(keys[0][0] + key), _hash(keys[0][1] + key), ease[0]))
        planes.append(torch.lerp(rows[0], rows[1], ease[1]))
    return torch.lerp(planes[0], planes[1], ease[2])


def _hash(key: Tensor) -> Tensor:
    """A number in [0,1] for each int32, which is changed."""
    key ^= key >> 13
    key *= 1103515245
    key ^= key >> 16
    return (key & 0xFFFF).float().div_(65535)
