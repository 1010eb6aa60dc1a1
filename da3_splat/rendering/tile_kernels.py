"""Numba kernels that sort Gaussians into tiles and composite the tiles, forward, backward and by weights, float32.

Lane loops run over exactly TILE pixels of a tile row without a branch, with selects in its place: that is what makes
LLVM turn them into vector instructions. `packed` rows are described in projection_kernels.py.
"""

import math

import numpy as np
from numba import njit

from da3_splat.rendering.constants import KERNEL, MAX_ALPHA, MIN_ALPHA, MIN_TRANSMITTANCE, TILE

_F = np.float32
_MAX_ALPHA, _MIN_ALPHA, _MIN_T = _F(MAX_ALPHA), _F(MIN_ALPHA), _F(MIN_TRANSMITTANCE)
_ZERO, _ONE, _HALF = _F(0), _F(1), _F(0.5)
# exp(-s) = p(s / 8)^8 for 0 <= s <= 5.6, where it counts; p is the Chebyshev fit of exp(-x) on [0, 0.7].
_FIT = np.polynomial.chebyshev.Chebyshev.interpolate(lambda x: np.exp(-x), 7, domain=[0, 0.7])
_E0, _E1, _E2, _E3, _E4, _E5, _E6, _E7 = (_F(c) for c in _FIT.convert(kind=np.polynomial.Polynomial).coef)
_EIGHTH, _LIMIT = _F(0.125), _F(0.7)
_ROW_MARGIN = _F(0.02)  # pixels; rounding never drops a lane that counts
CHECK_EVERY = 8  # splats between looks at whether a tile is finished


@njit(inline="always")
def _exp_negative(sigma):
    x = min(sigma * _EIGHTH, _LIMIT)
    p = _E0 + x * (_E1 + x * (_E2 + x * (_E3 + x * (_E4 + x * (_E5 + x * (_E6 + x * _E7))))))
    p = p * p
    p = p * p
    return p * p


@njit(inline="always")
def _row_span(packed, n, dy):
    """Pixel interval of row `dy` below the mean in which alpha can reach 1/255; empty (1, 0) where there is none."""
    a, b, c, level = packed[n, 2], packed[n, 3], packed[n, 4], packed[n, 6]
    reach = (level + _F(1e-3)) * a - (a * c - b * b) * dy * dy
    if reach < 0:
        return _ONE, _ZERO
    half = math.sqrt(reach) / a + _ROW_MARGIN
    middle = packed[n, 0] - b * dy / a
    return middle - half, middle + half


@njit(**KERNEL)
def count_tiles(start, stop, order, tiles, columns, counts):
    """Gaussians in each tile of the tile rows start..stop; counts (rows*columns) must be zero there."""
    for k in range(order.shape[0]):
        n = order[k]
        for y in range(max(start, tiles[n, 2]), min(stop, tiles[n, 3])):
            for x in range(tiles[n, 0], tiles[n, 1]):
                counts[y * columns + x] += 1


@njit(**KERNEL)
def fill_tiles(start, stop, order, tiles, columns, cursor, offsets, gaussian, slot):
    """List the Gaussians of each tile of the tile rows start..stop, nearest first.

    `cursor` (rows*columns) holds where each tile's list begins and is advanced. gaussian[i] is the Gaussian of entry i,
    slot[i] its row in the gradient buffer, which is grouped by Gaussian (offsets (N+1)); slot may be empty.
    """
    with_slots = slot.shape[0] > 0
    for k in range(order.shape[0]):
        n = order[k]
        x0, x1, y0 = tiles[n, 0], tiles[n, 1], tiles[n, 2]
        for y in range(max(start, y0), min(stop, tiles[n, 3])):
            for x in range(x0, x1):
                entry = cursor[y * columns + x]
                cursor[y * columns + x] += 1
                gaussian[entry] = n
                if with_slots:
                    slot[entry] = offsets[n] + (y - y0) * (x1 - x0) + (x - x0)


@njit(**KERNEL)
def composite(start, stop, columns, width, height, packed, begin, gaussian, picture, transmittance, last):
    """Composite tiles start..stop into picture (H,W,4: colour, sum of w z), transmittance and last (H,W).

    last is the number of list entries after which a pixel saw nothing more.
    """
    light = np.empty((TILE, TILE), np.float32)
    live = np.empty((TILE, TILE), np.float32)
    seen = np.empty((TILE, TILE), np.float32)
    red, green = np.empty((TILE, TILE), np.float32), np.empty((TILE, TILE), np.float32)
    blue, depth = np.empty((TILE, TILE), np.float32), np.empty((TILE, TILE), np.float32)
    for tile in range(start, stop):
        left, top = (tile % columns) * TILE, (tile // columns) * TILE
        rows, lanes = min(TILE, height - top), min(TILE, width - left)
        light[:] = 1
        live[:] = 0
        live[:rows, :lanes] = 1
        seen[:] = 0
        red[:] = 0
        green[:] = 0
        blue[:] = 0
        depth[:] = 0
        first = _F(left) + _HALF
        for entry in range(begin[tile], begin[tile + 1]):
            n = gaussian[entry]
            position = _F(entry - begin[tile] + 1)
            mx, my = packed[n, 0], packed[n, 1]
            a, b, c, opacity = packed[n, 2], packed[n, 3], packed[n, 4], packed[n, 5]
            r, g, u, z = packed[n, 8], packed[n, 9], packed[n, 10], packed[n, 11]
            reach = packed[n, 7]
            y0 = max(0, int(math.ceil(my - reach - _HALF - top)))
            y1 = min(rows, int(math.floor(my + reach - _HALF - top)) + 1)
            for y in range(y0, y1):
                dy = _F(top + y) + _HALF - my
                low, high = _row_span(packed, n, dy)
                if low > high or high < first or low > first + _F(TILE - 1):
                    continue
                base, slope = _HALF * c * dy * dy, b * dy
                for i in range(TILE):
                    dx = first + _F(i) - mx
                    sigma = (_HALF * a * dx + slope) * dx + base
                    alpha = min(_MAX_ALPHA, opacity * _exp_negative(max(sigma, _ZERO)))
                    t = light[y, i]
                    after = t * (_ONE - alpha)
                    counts = (sigma >= _ZERO) & (alpha >= _MIN_ALPHA) & (live[y, i] > _ZERO)
                    stays = after > _MIN_T
                    takes = counts & stays
                    weight = alpha * t if takes else _ZERO
                    red[y, i] += weight * r
                    green[y, i] += weight * g
                    blue[y, i] += weight * u
                    depth[y, i] += weight * z
                    light[y, i] = after if takes else t
                    seen[y, i] = position if takes else seen[y, i]
                    live[y, i] = _ZERO if counts & (not stays) else live[y, i]
            if (entry - begin[tile]) % CHECK_EVERY == CHECK_EVERY - 1 and live.sum() == 0:
                break
        for y in range(rows):
            for i in range(lanes):
                picture[top + y, left + i, 0] = red[y, i]
                picture[top + y, left + i, 1] = green[y, i]
                picture[top + y, left + i, 2] = blue[y, i]
                picture[top + y, left + i, 3] = depth[y, i]
                transmittance[top + y, left + i] = light[y, i]
                last[top + y, left + i] = seen[y, i]


@njit(**KERNEL)
def composite_backward(
    start, stop, columns, width, height, packed, begin, gaussian, slot, transmittance, last,
    v_picture, v_alpha, gradients, absolute, with_absolute,
):  # fmt: skip
    """Gradients of tiles start..stop by their lists' Gaussians, one row of `gradients` (and `absolute`) an entry.

    Back to front: T before a Gaussian is T after it divided by 1 - alpha, starting at the saved final T; `behind` is
    what lies behind it, times the gradient of the picture. With g = dL/dsigma and dx, dy from the mean, everything
    follows from the moments sum g, sum g dx, sum g dx^2 of each row, since dy is constant in it.
    """
    light, behind = np.empty((TILE, TILE), np.float32), np.empty((TILE, TILE), np.float32)
    seen = np.empty((TILE, TILE), np.float32)
    v_red, v_green = np.empty((TILE, TILE), np.float32), np.empty((TILE, TILE), np.float32)
    v_blue, v_depth = np.empty((TILE, TILE), np.float32), np.empty((TILE, TILE), np.float32)
    g_lane, w_lane = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    for tile in range(start, stop):
        left, top = (tile % columns) * TILE, (tile // columns) * TILE
        rows, lanes = min(TILE, height - top), min(TILE, width - left)
        light[:] = 1
        behind[:] = 0
        seen[:] = 0
        v_red[:] = 0
        v_green[:] = 0
        v_blue[:] = 0
        v_depth[:] = 0
        deepest = _ZERO
        for y in range(rows):
            for i in range(lanes):
                light[y, i] = transmittance[top + y, left + i]
                seen[y, i] = last[top + y, left + i]
                deepest = max(deepest, seen[y, i])
                v_red[y, i] = v_picture[top + y, left + i, 0]
                v_green[y, i] = v_picture[top + y, left + i, 1]
                v_blue[y, i] = v_picture[top + y, left + i, 2]
                v_depth[y, i] = v_picture[top + y, left + i, 3]
                behind[y, i] = -v_alpha[top + y, left + i] * light[y, i]
        first = _F(left) + _HALF
        for entry in range(begin[tile] + int(deepest) - 1, begin[tile] - 1, -1):
            n = gaussian[entry]
            position = _F(entry - begin[tile])
            mx, my = packed[n, 0], packed[n, 1]
            a, b, c, opacity = packed[n, 2], packed[n, 3], packed[n, 4], packed[n, 5]
            r, g, u, z = packed[n, 8], packed[n, 9], packed[n, 10], packed[n, 11]
            reach = packed[n, 7]
            y0 = max(0, int(math.ceil(my - reach - _HALF - top)))
            y1 = min(rows, int(math.floor(my + reach - _HALF - top)) + 1)
            v_x = v_y = v_a = v_b = v_c = total = s_red = s_green = s_blue = s_depth = abs_x = abs_y = _ZERO
            for y in range(y0, y1):
                dy = _F(top + y) + _HALF - my
                low, high = _row_span(packed, n, dy)
                if low > high or high < first or low > first + _F(TILE - 1):
                    continue
                base, slope = _HALF * c * dy * dy, b * dy
                for i in range(TILE):
                    dx = first + _F(i) - mx
                    sigma = (_HALF * a * dx + slope) * dx + base
                    raw = opacity * _exp_negative(max(sigma, _ZERO))
                    alpha = min(_MAX_ALPHA, raw)
                    takes = (sigma >= _ZERO) & (alpha >= _MIN_ALPHA) & (position < seen[y, i])
                    inverse = _ONE / (_ONE - alpha)
                    t = light[y, i]
                    before = t * inverse
                    weight = alpha * before if takes else _ZERO
                    value = r * v_red[y, i] + g * v_green[y, i] + u * v_blue[y, i] + z * v_depth[y, i]
                    v_opaque = before * value - behind[y, i] * inverse
                    g_lane[i] = -raw * v_opaque if takes & (raw <= _MAX_ALPHA) else _ZERO
                    w_lane[i] = weight
                    light[y, i] = before if takes else t
                    behind[y, i] += weight * value
                m0 = m1 = m2 = p_red = p_green = p_blue = p_depth = _ZERO
                for i in range(TILE):
                    dx = first + _F(i) - mx
                    m0 += g_lane[i]
                    m1 += g_lane[i] * dx
                    m2 += g_lane[i] * dx * dx
                    p_red += w_lane[i] * v_red[y, i]
                    p_green += w_lane[i] * v_green[y, i]
                    p_blue += w_lane[i] * v_blue[y, i]
                    p_depth += w_lane[i] * v_depth[y, i]
                v_x -= a * m1 + slope * m0
                v_y -= b * m1 + c * dy * m0
                v_a += _HALF * m2
                v_b += dy * m1
                v_c += _HALF * dy * dy * m0
                total += m0
                s_red += p_red
                s_green += p_green
                s_blue += p_blue
                s_depth += p_depth
                if with_absolute:
                    for i in range(TILE):
                        dx = first + _F(i) - mx
                        abs_x += abs(g_lane[i] * (a * dx + slope))
                        abs_y += abs(g_lane[i] * (b * dx + c * dy))
            row = slot[entry]
            gradients[row, 0], gradients[row, 1] = v_x, v_y
            gradients[row, 2], gradients[row, 3], gradients[row, 4] = v_a, v_b, v_c
            gradients[row, 5] = -total / opacity
            gradients[row, 6], gradients[row, 7], gradients[row, 8] = s_red, s_green, s_blue
            gradients[row, 9] = s_depth
            if with_absolute:
                absolute[row, 0], absolute[row, 1] = abs_x, abs_y


@njit(**KERNEL)
def spread(start, stop, columns, width, height, packed, begin, gaussian, last, values, sums):
    """For every entry of tiles start..stop: the sums over its pixels of its weight there times `values` (H,W,4).

    The walk of `composite` once more; `last` says which entries each pixel took.
    """
    light, seen = np.empty((TILE, TILE), np.float32), np.empty((TILE, TILE), np.float32)
    first_value, second_value = np.empty((TILE, TILE), np.float32), np.empty((TILE, TILE), np.float32)
    third_value, fourth_value = np.empty((TILE, TILE), np.float32), np.empty((TILE, TILE), np.float32)
    for tile in range(start, stop):
        left, top = (tile % columns) * TILE, (tile // columns) * TILE
        rows, lanes = min(TILE, height - top), min(TILE, width - left)
        light[:] = 1
        seen[:] = 0
        first_value[:] = 0
        second_value[:] = 0
        third_value[:] = 0
        fourth_value[:] = 0
        deepest = _ZERO
        for y in range(rows):
            for i in range(lanes):
                seen[y, i] = last[top + y, left + i]
                deepest = max(deepest, seen[y, i])
                first_value[y, i] = values[top + y, left + i, 0]
                second_value[y, i] = values[top + y, left + i, 1]
                third_value[y, i] = values[top + y, left + i, 2]
                fourth_value[y, i] = values[top + y, left + i, 3]
        first = _F(left) + _HALF
        sums[begin[tile] + int(deepest) : begin[tile + 1]] = 0
        for entry in range(begin[tile], begin[tile] + int(deepest)):
            n = gaussian[entry]
            position = _F(entry - begin[tile])
            mx, my = packed[n, 0], packed[n, 1]
            a, b, c, opacity = packed[n, 2], packed[n, 3], packed[n, 4], packed[n, 5]
            reach = packed[n, 7]
            y0 = max(0, int(math.ceil(my - reach - _HALF - top)))
            y1 = min(rows, int(math.floor(my + reach - _HALF - top)) + 1)
            s_first = s_second = s_third = s_fourth = _ZERO
            for y in range(y0, y1):
                dy = _F(top + y) + _HALF - my
                low, high = _row_span(packed, n, dy)
                if low > high or high < first or low > first + _F(TILE - 1):
                    continue
                base, slope = _HALF * c * dy * dy, b * dy
                for i in range(TILE):
                    dx = first + _F(i) - mx
                    sigma = (_HALF * a * dx + slope) * dx + base
                    alpha = min(_MAX_ALPHA, opacity * _exp_negative(max(sigma, _ZERO)))
                    takes = (sigma >= _ZERO) & (alpha >= _MIN_ALPHA) & (position < seen[y, i])
                    weight = alpha * light[y, i] if takes else _ZERO
                    light[y, i] -= weight
                    s_first += weight * first_value[y, i]
                    s_second += weight * second_value[y, i]
                    s_third += weight * third_value[y, i]
                    s_fourth += weight * fourth_value[y, i]
            sums[entry, 0], sums[entry, 1], sums[entry, 2], sums[entry, 3] = s_first, s_second, s_third, s_fourth
