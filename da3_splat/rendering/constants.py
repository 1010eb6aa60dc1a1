"""The numbers of gsplat 1.5.3's rasterizer that pictures depend on, in one place."""

from typing import Any

MAX_ALPHA = 0.999  # a single Gaussian never covers more
MIN_ALPHA = 1 / 255  # contributions below are skipped
MIN_TRANSMITTANCE = 1e-4  # a pixel is finished before the Gaussian that would take it to or below this
MAX_EXTENT = 3.33  # standard deviations, the cap of a Gaussian's radius
FOV_MARGIN = 0.3  # half-widths outside the image up to which the projection's Jacobian follows the mean
NEAR, FAR = 0.01, 1e10  # depths between which Gaussians are drawn, unless told otherwise
EPS2D = 0.3  # square pixels by which every Gaussian is blurred, unless told otherwise
EXPECTED_DEPTH_FLOOR = 1e-10  # expected depth = sum(w z) / max(alpha, this)

# The CPU kernels' own.
TILE = 16  # pixels a side; a tile row is one vector of lanes
PACKED = 12  # columns of a projected Gaussian
GRADIENTS = 10  # columns of its gradient
KERNEL: dict[str, Any] = dict(nogil=True, cache=True, fastmath=True, error_model="numpy")  # how Numba compiles them
