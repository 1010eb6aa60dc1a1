"""All data sets by name, with the tasks they are scored on and the rules that others score them by.

DA3's paper does not print its depth ranges and crops. Those here are the ones each set is usually scored with; `source`
says whose they are. Rules of reconstruction are those of the DA3 benchmark (its code and section 6 of the paper).
"""

from __future__ import annotations

from typing import Literal

from da3_splat.data.benchmarks import (
    diode,
    dtu,
    eth3d,
    hiroom,
    kitti,
    nyuv2,
    scannetpp,
    seven_scenes,
    sintel,
    sun_rgbd,
    tanks_and_temples,
)
from da3_splat.data.benchmarks.scene import Benchmark, DepthRules, ReconstructionRules

FINE = 4 / 512  # metres: voxels of the indoor sets
INDOORS = ReconstructionRules(threshold=0.05, voxel=FINE, truncation=0.04, thinned=FINE)
WIDE = ReconstructionRules(threshold=0.25, voxel=5 * FINE, truncation=0.2, thinned=5 * FINE)
SCANNED = ReconstructionRules(threshold=0.05, voxel=0.02, truncation=0.15, thinned=0.02, max_depth=5.0, margin=0.1)
MILLIMETRES = ReconstructionRules(threshold=1.0, voxel=0.2, truncation=1.0, thinned=0.2, cap=20.0, fusion="points")


def rules_at(threshold: float, fusion: Literal["tsdf", "points"] = "tsdf") -> ReconstructionRules:
    """The indoor rules with all lengths in proportion to another threshold, for scenes of any scale."""
    if threshold <= 0:
        raise ValueError(f"threshold: expected a distance above 0, got {threshold}")
    share = threshold / INDOORS.threshold
    return ReconstructionRules(
        threshold, share * INDOORS.voxel, share * INDOORS.truncation, share * INDOORS.thinned, fusion=fusion
    )


GARG = (0.40810811, 0.99189189, 0.03594771, 0.96405229)
NYU_CROP = (45 / 480, 471 / 480, 41 / 640, 601 / 640)

BENCHMARKS = {
    "hiroom": Benchmark(hiroom.scenes, ("poses", "depth", "reconstruction"), reconstruction=INDOORS),
    "eth3d": Benchmark(
        eth3d.scenes,
        ("poses", "depth", "reconstruction"),
        DepthRules(1e-3, 72.0, "MiDaS: depth up to 72 m, pictures averaged"),
        WIDE,
    ),
    "7scenes": Benchmark(seven_scenes.scenes, ("poses", "depth", "reconstruction"), reconstruction=INDOORS),
    "scannetpp": Benchmark(scannetpp.scenes, ("poses", "reconstruction"), reconstruction=SCANNED),
    "dtu": Benchmark(dtu.scenes, ("poses", "depth", "reconstruction"), reconstruction=MILLIMETRES),
    "dtu64": Benchmark(dtu.pose_scenes, ("poses",)),
    "kitti": Benchmark(
        kitti.scenes, ("depth",), DepthRules(1e-3, 80.0, "Eigen split, Garg crop, up to 80 m, pictures averaged", GARG)
    ),
    "nyuv2": Benchmark(
        nyuv2.scenes,
        ("depth",),
        DepthRules(1e-3, 10.0, "Eigen crop (rows 45-471, columns 41-601), up to 10 m, pictures averaged", NYU_CROP),
    ),
    "sintel": Benchmark(
        sintel.scenes, ("poses", "depth"), DepthRules(1e-3, 72.0, "MiDaS: depth up to 72 m, pictures averaged")
    ),
    "diode": Benchmark(
        diode.scenes, ("depth",), DepthRules(0.6, 350.0, "the scanner's range, 0.6 to 350 m, pictures averaged")
    ),
    "diode-indoors": Benchmark(
        diode.indoor_scenes, ("depth",), DepthRules(1e-2, 25.0, "UniDepth: indoors, up to 25 m, pictures averaged")
    ),
    "sun-rgbd": Benchmark(
        sun_rgbd.scenes, ("depth",), DepthRules(1e-3, 8.0, "the toolbox's range: up to 8 m, pictures averaged")
    ),
    "tanks-and-temples": Benchmark(tanks_and_temples.scenes, ("novel-views",)),
}
