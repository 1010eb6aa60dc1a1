"""Numba kernels that project Gaussians to the picture and carry gradients back, float32.

Each works on a range of its items and releases the GIL. They are plain sequential code: threads are the caller's (see
threads.py), so no threading layer of Numba is involved and the result does not depend on how the work is split.

A projected Gaussian is one row of `packed` (N,12):
    0-1 mean in pixels, 2-4 conic a, b, c, 5 opacity, 6 2 ln(255 opacity), 7 half height in pixels, 8-10 colour, 11 z;
and a row of gradients is (10): mean in pixels 0-1, conic 2-4, opacity 5, colour 6-8, z 9.
"""

import math

import numpy as np
from numba import njit

from da3_splat.rendering.constants import FOV_MARGIN, GRADIENTS, KERNEL, MAX_EXTENT, MIN_ALPHA, TILE

_F = np.float32
_MIN_ALPHA = _F(MIN_ALPHA)
_ZERO, _ONE, _HALF = _F(0), _F(1), _F(0.5)


@njit(inline="always")
def _rotation(q0, q1, q2, q3):
    """Rotation matrix of a unit quaternion wxyz, row by row."""
    return (
        1 - 2 * (q2 * q2 + q3 * q3), 2 * (q1 * q2 - q0 * q3), 2 * (q1 * q3 + q0 * q2),
        2 * (q1 * q2 + q0 * q3), 1 - 2 * (q1 * q1 + q3 * q3), 2 * (q2 * q3 - q0 * q1),
        2 * (q1 * q3 - q0 * q2), 2 * (q2 * q3 + q0 * q1), 1 - 2 * (q1 * q1 + q2 * q2),
    )  # fmt: skip


@njit(inline="always")
def _clamped(t, z, focal, center, size):
    """z * clamp(t / z) to a little more than the field of view, and whether it was inside."""
    margin = _F(FOV_MARGIN) * _HALF * size / focal
    ratio = t / z
    high, low = (size - center) / focal + margin, -(center / focal + margin)
    return z * min(high, max(low, ratio)), low <= ratio <= high


@njit(**KERNEL)
def _sh_basis(x, y, z, degree, basis, gradient, with_gradient):
    """SH basis (K) at the unit direction (x, y, z) in gsplat's order, and its gradient (K,3) by x, y, z."""
    basis[0] = 0.28209479177387814
    if with_gradient:
        gradient[:] = 0
    if degree >= 1:
        c = 0.4886025119029199
        basis[1], basis[2], basis[3] = -c * y, c * z, -c * x
        if with_gradient:
            gradient[1, 1], gradient[2, 2], gradient[3, 0] = -c, c, -c
    if degree >= 2:
        xx, yy, zz = x * x, y * y, z * z
        c0, c2, c4 = 1.0925484305920792, 0.31539156525252005, 0.5462742152960396
        basis[4], basis[5], basis[7] = c0 * x * y, -c0 * y * z, -c0 * x * z
        basis[6], basis[8] = c2 * (2 * zz - xx - yy), c4 * (xx - yy)
        if with_gradient:
            gradient[4, 0], gradient[4, 1] = c0 * y, c0 * x
            gradient[5, 1], gradient[5, 2] = -c0 * z, -c0 * y
            gradient[6, 0], gradient[6, 1], gradient[6, 2] = -2 * c2 * x, -2 * c2 * y, 4 * c2 * z
            gradient[7, 0], gradient[7, 2] = -c0 * z, -c0 * x
            gradient[8, 0], gradient[8, 1] = 2 * c4 * x, -2 * c4 * y
    if degree >= 3:
        c0, c1, c2 = 0.5900435899266435, 2.890611442640554, 0.4570457994644658
        c3, c5 = 0.3731763325901154, 1.445305721320277
        basis[9] = -c0 * y * (3 * xx - yy)
        basis[10] = c1 * x * y * z
        basis[11] = -c2 * y * (4 * zz - xx - yy)
        basis[12] = c3 * z * (2 * zz - 3 * xx - 3 * yy)
        basis[13] = -c2 * x * (4 * zz - xx - yy)
        basis[14] = c5 * z * (xx - yy)
        basis[15] = -c0 * x * (xx - 3 * yy)
        if with_gradient:
            gradient[9, 0], gradient[9, 1] = -6 * c0 * x * y, -c0 * (3 * xx - 3 * yy)
            gradient[10, 0], gradient[10, 1], gradient[10, 2] = c1 * y * z, c1 * x * z, c1 * x * y
            gradient[11, 0], gradient[11, 1] = 2 * c2 * x * y, -c2 * (4 * zz - xx - 3 * yy)
            gradient[11, 2] = -8 * c2 * y * z
            gradient[12, 0], gradient[12, 1] = -6 * c3 * x * z, -6 * c3 * y * z
            gradient[12, 2] = c3 * (6 * zz - 3 * xx - 3 * yy)
            gradient[13, 0], gradient[13, 1] = -c2 * (4 * zz - 3 * xx - yy), 2 * c2 * x * y
            gradient[13, 2] = -8 * c2 * x * z
            gradient[14, 0], gradient[14, 1], gradient[14, 2] = 2 * c5 * x * z, -2 * c5 * y * z, c5 * (xx - yy)
            gradient[15, 0], gradient[15, 1] = -c0 * (3 * xx - 3 * yy), 6 * c0 * x * y
    if degree >= 4:
        c0, c1, c2, c3 = 2.5033429417967046, 1.7701307697799304, 0.9461746957575601, 0.6690465435572892
        c4, c6, c8 = 0.10578554691520431, 0.47308734787878004, 0.6258357354491761
        basis[16] = c0 * x * y * (xx - yy)
        basis[17] = -c1 * y * z * (3 * xx - yy)
        basis[18] = c2 * x * y * (7 * zz - 1)
        basis[19] = -c3 * y * z * (7 * zz - 3)
        basis[20] = c4 * (zz * (35 * zz - 30) + 3)
        basis[21] = -c3 * x * z * (7 * zz - 3)
        basis[22] = c6 * (xx - yy) * (7 * zz - 1)
        basis[23] = -c1 * x * z * (xx - 3 * yy)
        basis[24] = c8 * (xx * (xx - 3 * yy) - yy * (3 * xx - yy))
        if with_gradient:
            gradient[16, 0], gradient[16, 1] = c0 * y * (3 * xx - yy), c0 * x * (xx - 3 * yy)
            gradient[17, 0], gradient[17, 1] = -6 * c1 * x * y * z, -c1 * z * (3 * xx - 3 * yy)
            gradient[17, 2] = -c1 * y * (3 * xx - yy)
            gradient[18, 0], gradient[18, 1] = c2 * y * (7 * zz - 1), c2 * x * (7 * zz - 1)
            gradient[18, 2] = 14 * c2 * x * y * z
            gradient[19, 1], gradient[19, 2] = -c3 * z * (7 * zz - 3), -c3 * y * (21 * zz - 3)
            gradient[20, 2] = c4 * (140 * zz * z - 60 * z)
            gradient[21, 0], gradient[21, 2] = -c3 * z * (7 * zz - 3), -c3 * x * (21 * zz - 3)
            gradient[22, 0], gradient[22, 1] = 2 * c6 * x * (7 * zz - 1), -2 * c6 * y * (7 * zz - 1)
            gradient[22, 2] = 14 * c6 * z * (xx - yy)
            gradient[23, 0], gradient[23, 1] = -c1 * z * (3 * xx - 3 * yy), 6 * c1 * x * y * z
            gradient[23, 2] = -c1 * x * (xx - 3 * yy)
            gradient[24, 0], gradient[24, 1] = c8 * (4 * xx * x - 12 * x * yy), c8 * (4 * yy * y - 12 * xx * y)


@njit(**KERNEL)
def project(
    start, stop, means, quats, scales, opacities, sh, degree, view, intrinsics, width, height,
    near, far, eps2d, radius_clip, antialiased, packed, radii, tiles,
):  # fmt: skip
    """Fill packed (N,12), radii (N,2) int32 (0, 0: culled) and tiles (N,4) int16 [x0, x1, y0, y1) for start..stop."""
    fx, fy, cx, cy = intrinsics[0, 0], intrinsics[1, 1], intrinsics[0, 2], intrinsics[1, 2]
    r00, r01, r02, t0 = view[0, 0], view[0, 1], view[0, 2], view[0, 3]
    r10, r11, r12, t1 = view[1, 0], view[1, 1], view[1, 2], view[1, 3]
    r20, r21, r22, t2 = view[2, 0], view[2, 1], view[2, 2], view[2, 3]
    eye0 = -(r00 * t0 + r10 * t1 + r20 * t2)
    eye1 = -(r01 * t0 + r11 * t1 + r21 * t2)
    eye2 = -(r02 * t0 + r12 * t1 + r22 * t2)
    columns, rows = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
    basis, unused = np.empty(25, np.float32), np.empty((1, 1), np.float32)
    bases = (degree + 1) * (degree + 1)
    for n in range(start, stop):
        radii[n, 0] = 0
        radii[n, 1] = 0
        m0, m1, m2 = means[n, 0], means[n, 1], means[n, 2]
        z = r20 * m0 + r21 * m1 + r22 * m2 + t2
        if not (near <= z <= far):
            continue
        x = r00 * m0 + r01 * m1 + r02 * m2 + t0
        y = r10 * m0 + r11 * m1 + r12 * m2 + t1
        q0, q1, q2, q3 = quats[n, 0], quats[n, 1], quats[n, 2], quats[n, 3]
        length = _ONE / math.sqrt(q0 * q0 + q1 * q1 + q2 * q2 + q3 * q3)
        g = _rotation(q0 * length, q1 * length, q2 * length, q3 * length)
        s0, s1, s2 = scales[n, 0], scales[n, 1], scales[n, 2]
        # Columns of M = R_view R_gaussian S, then the two rows of J M.
        tx, _ = _clamped(x, z, fx, cx, _F(width))
        ty, _ = _clamped(y, z, fy, cy, _F(height))
        inverse = _ONE / z
        j00, j02 = fx * inverse, -fx * tx * inverse * inverse
        j11, j12 = fy * inverse, -fy * ty * inverse * inverse
        u0, u1, u2 = j00 * r00 + j02 * r20, j00 * r01 + j02 * r21, j00 * r02 + j02 * r22
        v0, v1, v2 = j11 * r10 + j12 * r20, j11 * r11 + j12 * r21, j11 * r12 + j12 * r22
        a0, a1, a2 = (
            (u0 * g[0] + u1 * g[3] + u2 * g[6]) * s0,
            (u0 * g[1] + u1 * g[4] + u2 * g[7]) * s1,
            (u0 * g[2] + u1 * g[5] + u2 * g[8]) * s2,
        )
        b0, b1, b2 = (
            (v0 * g[0] + v1 * g[3] + v2 * g[6]) * s0,
            (v0 * g[1] + v1 * g[4] + v2 * g[7]) * s1,
            (v0 * g[2] + v1 * g[5] + v2 * g[8]) * s2,
        )
        c00, c01, c11 = a0 * a0 + a1 * a1 + a2 * a2, a0 * b0 + a1 * b1 + a2 * b2, b0 * b0 + b1 * b1 + b2 * b2
        sharp = c00 * c11 - c01 * c01
        c00 += eps2d
        c11 += eps2d
        det = c00 * c11 - c01 * c01
        if not det > 0:
            continue
        opacity = opacities[n]
        if antialiased:
            opacity *= math.sqrt(max(_ZERO, sharp / det))
        if not opacity >= _MIN_ALPHA:
            continue
        level = _F(2) * math.log(opacity / _MIN_ALPHA)
        extent = min(_F(MAX_EXTENT), math.sqrt(level))
        deviation_x, deviation_y = math.sqrt(c00), math.sqrt(c11)
        radius_x, radius_y = math.ceil(extent * deviation_x), math.ceil(extent * deviation_y)
        if radius_x <= radius_clip and radius_y <= radius_clip:
            continue
        px, py = fx * x * inverse + cx, fy * y * inverse + cy
        if px + radius_x <= 0 or px - radius_x >= width or py + radius_y <= 0 or py - radius_y >= height:
            continue
        # A hair more than the ellipse of alpha = 1/255, so that rounding never drops a pixel that counts.
        reach = math.sqrt(level) * _F(1.0001) + _F(1e-3)
        half_x, half_y = reach * deviation_x + _F(0.01), reach * deviation_y + _F(0.01)
        x0 = max(0, int(math.floor((px - half_x) / TILE)))
        x1 = min(columns, int(math.floor((px + half_x) / TILE)) + 1)
        y0 = max(0, int(math.floor((py - half_y) / TILE)))
        y1 = min(rows, int(math.floor((py + half_y) / TILE)) + 1)
        if x0 >= x1 or y0 >= y1:
            x1, y1 = x0, y0  # in the picture by its radius, in no pixel by its alpha
        tiles[n, 0], tiles[n, 1], tiles[n, 2], tiles[n, 3] = x0, x1, y0, y1
        radii[n, 0] = np.int32(min(radius_x, 1e9))
        radii[n, 1] = np.int32(min(radius_y, 1e9))
        d0, d1, d2 = m0 - eye0, m1 - eye1, m2 - eye2
        unit = _ONE / max(math.sqrt(d0 * d0 + d1 * d1 + d2 * d2), _F(1e-12))
        _sh_basis(d0 * unit, d1 * unit, d2 * unit, degree, basis, unused, False)
        red = green = blue = _HALF
        for k in range(bases):
            red += basis[k] * sh[n, k, 0]
            green += basis[k] * sh[n, k, 1]
            blue += basis[k] * sh[n, k, 2]
        out = packed[n]
        out[0], out[1] = px, py
        out[2], out[3], out[4] = c11 / det, -c01 / det, c00 / det
        out[5], out[6], out[7] = opacity, level, half_y
        out[8], out[9], out[10], out[11] = max(red, _ZERO), max(green, _ZERO), max(blue, _ZERO), z


@njit(**KERNEL)
def project_backward(
    start, stop, means, quats, scales, opacities, sh, degree, view, intrinsics, width, height, eps2d, antialiased,
    radii, packed, offsets, gradients, absolute, with_absolute,
    v_means, v_quats, v_scales, v_opacities, v_sh, v_means2d, v_absolute, v_view,
):  # fmt: skip
    """Add the gradients of start..stop to v_* (N,...) and v_view (3,4), from the rows offsets[n]:offsets[n+1]."""
    fx, fy, cx, cy = intrinsics[0, 0], intrinsics[1, 1], intrinsics[0, 2], intrinsics[1, 2]
    r = view[:3, :3].copy()
    t = view[:3, 3].copy()
    eye = np.zeros(3, np.float32)
    for i in range(3):
        eye[i] = -(r[0, i] * t[0] + r[1, i] * t[1] + r[2, i] * t[2])
    bases = (degree + 1) * (degree + 1)
    basis, slope = np.empty(25, np.float32), np.empty((25, 3), np.float32)
    row = np.empty(GRADIENTS, np.float32)
    c = np.empty(3, np.float32)
    turn, cov, cov_c = np.empty((3, 3), np.float32), np.empty((3, 3), np.float32), np.empty((3, 3), np.float32)
    jac, v_jac = np.zeros((2, 3), np.float32), np.empty((2, 3), np.float32)
    v_cov_c, v_cov, v_turn = np.empty((3, 3), np.float32), np.empty((3, 3), np.float32), np.empty((3, 3), np.float32)
    half, v_c, v_eye = np.empty((3, 3), np.float32), np.empty(3, np.float32), np.empty(3, np.float32)
    for n in range(start, stop):
        if radii[n, 0] == 0 or offsets[n + 1] == offsets[n]:
            continue
        row[:] = 0
        for k in range(offsets[n], offsets[n + 1]):
            for i in range(GRADIENTS):
                row[i] += gradients[k, i]
        a, b, cc = packed[n, 2], packed[n, 3], packed[n, 4]
        v_px, v_py = row[0], row[1]
        v_a, v_b, v_cc = row[2], row[3], row[4]
        v_means2d[n, 0] += v_px
        v_means2d[n, 1] += v_py
        if with_absolute:
            for k in range(offsets[n], offsets[n + 1]):
                v_absolute[n, 0] += absolute[k, 0]
                v_absolute[n, 1] += absolute[k, 1]

        # The same projection as forward.
        for i in range(3):
            c[i] = r[i, 0] * means[n, 0] + r[i, 1] * means[n, 1] + r[i, 2] * means[n, 2] + t[i]
        x, y, z = c[0], c[1], c[2]
        inverse = _ONE / z
        q0, q1, q2, q3 = quats[n, 0], quats[n, 1], quats[n, 2], quats[n, 3]
        length = _ONE / math.sqrt(q0 * q0 + q1 * q1 + q2 * q2 + q3 * q3)
        q0, q1, q2, q3 = q0 * length, q1 * length, q2 * length, q3 * length
        g = _rotation(q0, q1, q2, q3)
        for i in range(3):
            for j in range(3):
                turn[i, j] = g[3 * i + j]
        for i in range(3):
            for j in range(3):
                cov[i, j] = (
                    turn[i, 0] * turn[j, 0] * scales[n, 0] * scales[n, 0]
                    + turn[i, 1] * turn[j, 1] * scales[n, 1] * scales[n, 1]
                    + turn[i, 2] * turn[j, 2] * scales[n, 2] * scales[n, 2]
                )
        for i in range(3):
            for j in range(3):
                half[i, j] = r[i, 0] * cov[0, j] + r[i, 1] * cov[1, j] + r[i, 2] * cov[2, j]
        for i in range(3):
            for j in range(3):
                cov_c[i, j] = half[i, 0] * r[j, 0] + half[i, 1] * r[j, 1] + half[i, 2] * r[j, 2]
        tx, inside_x = _clamped(x, z, fx, cx, _F(width))
        ty, inside_y = _clamped(y, z, fy, cy, _F(height))
        jac[0, 0], jac[0, 2] = fx * inverse, -fx * tx * inverse * inverse
        jac[1, 1], jac[1, 2] = fy * inverse, -fy * ty * inverse * inverse

        # conic = inverse(cov2d): v_cov2d = -conic v_conic conic, with v_b counted once for both off-diagonals.
        h = _HALF * v_b
        p00, p01 = a * v_a + b * h, a * h + b * v_cc
        p10, p11 = b * v_a + cc * h, b * h + cc * v_cc
        w00 = -(p00 * a + p01 * b)
        w01 = -(p00 * b + p01 * cc)
        w11 = -(p10 * b + p11 * cc)
        v_opacity = row[5]
        if antialiased:
            c00, c01, c11 = cc, -b, a  # cov2d = inverse(conic)
            det_conic = a * cc - b * b
            c00, c01, c11 = c00 / det_conic, c01 / det_conic, c11 / det_conic
            det = c00 * c11 - c01 * c01
            sharp = (c00 - eps2d) * (c11 - eps2d) - c01 * c01
            factor = math.sqrt(max(_ZERO, sharp / det))
            v_factor = v_opacity * opacities[n]
            v_opacity *= factor
            if factor > 0:
                v_ratio = v_factor * _HALF / factor
                v_sharp, v_det = v_ratio / det, -v_ratio * sharp / (det * det)
                w00 += v_sharp * (c11 - eps2d) + v_det * c11
                w11 += v_sharp * (c00 - eps2d) + v_det * c00
                w01 += -(v_sharp + v_det) * c01  # half of the gradient by c01, which stands twice
        v_opacities[n] += v_opacity

        # cov2d = J cov_c J^T
        for i in range(3):
            for j in range(3):
                v_cov_c[i, j] = jac[0, i] * (w00 * jac[0, j] + w01 * jac[1, j]) + jac[1, i] * (
                    w01 * jac[0, j] + w11 * jac[1, j]
                )
        for j in range(3):
            k0 = jac[0, 0] * cov_c[0, j] + jac[0, 2] * cov_c[2, j]
            k1 = jac[1, 1] * cov_c[1, j] + jac[1, 2] * cov_c[2, j]
            v_jac[0, j] = 2 * (w00 * k0 + w01 * k1)
            v_jac[1, j] = 2 * (w01 * k0 + w11 * k1)
        inverse2 = inverse * inverse
        v_x = fx * inverse * v_px
        v_y = fy * inverse * v_py
        v_z = -(fx * x * v_px + fy * y * v_py) * inverse2
        v_z += -fx * inverse2 * v_jac[0, 0] - fy * inverse2 * v_jac[1, 1]
        if inside_x:
            v_x += -fx * inverse2 * v_jac[0, 2]
            v_z += 2 * fx * tx * inverse2 * inverse * v_jac[0, 2]
        else:
            v_z += fx * tx * inverse2 * inverse * v_jac[0, 2]
        if inside_y:
            v_y += -fy * inverse2 * v_jac[1, 2]
            v_z += 2 * fy * ty * inverse2 * inverse * v_jac[1, 2]
        else:
            v_z += fy * ty * inverse2 * inverse * v_jac[1, 2]
        v_c[0], v_c[1], v_c[2] = v_x, v_y, v_z + row[9]

        # Colour: SH at the direction from the eye to the mean.
        d0, d1, d2 = means[n, 0] - eye[0], means[n, 1] - eye[1], means[n, 2] - eye[2]
        unit = _ONE / max(math.sqrt(d0 * d0 + d1 * d1 + d2 * d2), _F(1e-12))
        d0, d1, d2 = d0 * unit, d1 * unit, d2 * unit
        _sh_basis(d0, d1, d2, degree, basis, slope, True)
        v_d0 = v_d1 = v_d2 = _ZERO
        for channel in range(3):
            v_color = row[6 + channel]
            if packed[n, 8 + channel] <= 0:
                continue
            for k in range(bases):
                v_sh[n, k, channel] += v_color * basis[k]
                s = v_color * sh[n, k, channel]
                v_d0 += s * slope[k, 0]
                v_d1 += s * slope[k, 1]
                v_d2 += s * slope[k, 2]
        along = v_d0 * d0 + v_d1 * d1 + v_d2 * d2
        v_eye[0], v_eye[1], v_eye[2] = (
            (v_d0 - along * d0) * unit,
            (v_d1 - along * d1) * unit,
            (v_d2 - along * d2) * unit,
        )
        for i in range(3):
            v_means[n, i] += r[0, i] * v_c[0] + r[1, i] * v_c[1] + r[2, i] * v_c[2] + v_eye[i]

        # cov_c = R cov R^T, means_c = R mean + t, eye = -R^T t
        for i in range(3):
            for j in range(3):
                v_cov[i, j] = 0
                for k in range(3):
                    v_cov[i, j] += r[k, i] * (
                        v_cov_c[k, 0] * r[0, j] + v_cov_c[k, 1] * r[1, j] + v_cov_c[k, 2] * r[2, j]
                    )
        for i in range(3):
            for j in range(3):
                s = v_c[i] * means[n, j] + t[i] * v_eye[j]
                for k in range(3):
                    s += 2 * v_cov_c[i, k] * half[k, j]
                v_view[i, j] += s
            v_view[i, 3] += v_c[i] + r[i, 0] * v_eye[0] + r[i, 1] * v_eye[1] + r[i, 2] * v_eye[2]

        # cov = (turn S)(turn S)^T
        for j in range(3):
            s = scales[n, j]
            v_s = _ZERO
            for i in range(3):
                m = 2 * (v_cov[i, 0] * turn[0, j] + v_cov[i, 1] * turn[1, j] + v_cov[i, 2] * turn[2, j]) * s
                v_s += m * turn[i, j]
                v_turn[i, j] = m * s
            v_scales[n, j] += v_s
        g0 = 2 * (
            q3 * (v_turn[1, 0] - v_turn[0, 1]) + q2 * (v_turn[0, 2] - v_turn[2, 0]) + q1 * (v_turn[2, 1] - v_turn[1, 2])
        )
        g1 = 2 * (
            -2 * q1 * (v_turn[1, 1] + v_turn[2, 2]) + q2 * (v_turn[0, 1] + v_turn[1, 0])
            + q3 * (v_turn[0, 2] + v_turn[2, 0]) + q0 * (v_turn[2, 1] - v_turn[1, 2])
        )  # fmt: skip
        g2 = 2 * (
            q1 * (v_turn[0, 1] + v_turn[1, 0]) - 2 * q2 * (v_turn[0, 0] + v_turn[2, 2])
            + q3 * (v_turn[1, 2] + v_turn[2, 1]) + q0 * (v_turn[0, 2] - v_turn[2, 0])
        )  # fmt: skip
        g3 = 2 * (
            q1 * (v_turn[0, 2] + v_turn[2, 0]) + q2 * (v_turn[1, 2] + v_turn[2, 1])
            - 2 * q3 * (v_turn[0, 0] + v_turn[1, 1]) + q0 * (v_turn[1, 0] - v_turn[0, 1])
        )  # fmt: skip
        radial = g0 * q0 + g1 * q1 + g2 * q2 + g3 * q3
        v_quats[n, 0] += (g0 - radial * q0) * length
        v_quats[n, 1] += (g1 - radial * q1) * length
        v_quats[n, 2] += (g2 - radial * q2) * length
        v_quats[n, 3] += (g3 - radial * q3) * length
