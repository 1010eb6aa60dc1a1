"""Numbers that others published, to stand beside ours in a table of their own: each with its source and protocol.

None of them was measured here. Arguments about them are in the sources; a difference in protocol alone is worth 1.7 dB.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedTable:
    """Rows of text as printed: a method, then a cell for each column."""

    title: str
    source: str
    protocol: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def _rows(text: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(cell.strip() for cell in line.split("|")) for line in text.strip().splitlines())


NOVEL_VIEWS = (
    PublishedTable(
        title="Depth Anything 3, Table 5 (PSNR / SSIM / LPIPS)",
        source="Depth Anything 3, arXiv 2511.10647, Table 5",
        protocol="12 contexts by farthest point, targets every 8th image, 270x480, rendered at the given COLMAP poses; "
        "all methods retrained by the authors on DL3DV. LPIPS network, resizing and the evaluation code are not "
        "published, and the benchmark model is not released",
        columns=("DL3DV (140 scenes)", "Tanks and Temples (6)", "MegaDepth (19)"),
        rows=_rows(
            """
            pixelSplat | 16.55 / .456 / .480 | 13.81 / .347 / .558 | 13.87 / .367 / .561
            MVSplat | 18.13 / .559 / .393 | 14.81 / .391 / .508 | 14.67 / .398 / .533
            DepthSplat | 19.24 / .620 / .322 | 15.80 / .474 / .418 | 15.90 / .471 / .450
            Fast3R | 19.30 / .604 / .320 | 16.24 / .478 / .409 | 16.43 / .493 / .421
            MV-DUSt3R | 20.01 / .645 / .294 | 17.04 / .529 / .370 | 16.20 / .484 / .437
            VGGT | 20.96 / .697 / .253 | 17.18 / .550 / .347 | 16.45 / .500 / .417
            DA3 | 21.33 / .711 / .241 | 18.10 / .578 / .311 | 17.89 / .561 / .351
            """
        ),
    ),
    PublishedTable(
        title="DL3DV, 140 scenes, pose-free, target poses aligned (PSNR in dB)",
        source="ZipSplat README (github.com/cvg/ZipSplat)",
        protocol="252x252, 8 targets a scene over spans of 50, 100 and 150 frames (6, 12, 24 contexts), target poses "
        "optimised on fixed Gaussians (200 steps); at 12 views 137 of 1120 targets are contexts too",
        columns=("6 views", "12 views", "24 views"),
        rows=_rows(
            """
            DA3 | 23.77 | 22.38 | 21.69
            YoNoSplat (their run) | 24.10 | 22.73 | 22.01
            ZipSplat | 25.24 | 24.27 | 24.14
            ZipSplat with priors | 25.34 | 24.37 | 24.23
            """
        ),
    ),
    PublishedTable(
        title="DL3DV, pose-free, small pictures (PSNR / SSIM / LPIPS)",
        source="NoDrift3R, arXiv 2607.07168; YoNoSplat, ICLR 2026 (PSNR alone)",
        protocol="224x224; view sampling and alignment as each paper has them",
        columns=("6 views", "12 views", "24 views"),
        rows=_rows(
            """
            NoDrift3R | 24.92 / .826 / .127 | 24.25 / .797 / .141 | 24.24 / .794 / .142
            YoNoSplat | 24.53 | 22.93 | 22.17
            """
        ),
    ),
    PublishedTable(
        title="DL3DV, pose-free, 12 views (PSNR in dB)",
        source="AirSplat, arXiv 2603.25129",
        protocol="252x448, frozen DA3-Giant backbone",
        columns=("12 views",),
        rows=_rows("DA3 | 20.74\nAirSplat | 22.50"),
    ),
    PublishedTable(
        title="DL3DV, posed, 8 views (PSNR in dB)",
        source="ReSplat, arXiv 2510.08575",
        protocol="512x960, cameras given",
        columns=("8 views",),
        rows=_rows("MVSplat | 22.49\n3DGS, 4000 steps | 23.46\nDepthSplat | 24.17\nReSplat | 27.70"),
    ),
)

POSES = (
    PublishedTable(
        title="Depth Anything 3, Table 2: pose (AUC3 / AUC30, percent)",
        source="Depth Anything 3, arXiv 2511.10647, Table 2",
        protocol="at most 100 random frames a scene, all pairs, 1-degree histogram; "
        "real data sets that were not run here",
        columns=("HiRoom", "ETH3D", "DTU", "7Scenes", "ScanNet++"),
        rows=_rows(
            """
            DUSt3R | 17.6 / 54.3 | 4.30 / 27.3 | 4.00 / 74.3 | 6.90 / 61.6 | 8.10 / 33.9
            Fast3R | 25.9 / 77.0 | 8.10 / 44.4 | 9.50 / 79.1 | 19.0 / 78.6 | 17.9 / 72.5
            MapAnything | 17.9 / 82.8 | 19.2 / 77.4 | 6.50 / 72.7 | 12.6 / 79.7 | 20.2 / 84.1
            Pi3 | 67.0 / 94.8 | 35.2 / 87.3 | 62.5 / 94.9 | 25.5 / 86.3 | 50.7 / 92.1
            VGGT | 49.1 / 88.0 | 26.3 / 80.8 | 79.2 / 99.8 | 23.9 / 85.0 | 62.6 / 95.1
            DA3-Giant | 80.3 / 95.9 | 48.4 / 91.2 | 94.1 / 99.4 | 28.5 / 86.8 | 85.0 / 98.1
            DA3-Large | 58.7 / 94.2 | 32.2 / 86.9 | 70.2 / 96.7 | 29.2 / 86.6 | 60.2 / 94.7
            DA3-Base | 19.0 / 83.2 | 15.1 / 74.6 | 60.1 / 95.9 | 20.1 / 82.9 | 25.1 / 83.4
            DA3-Small | 9.49 / 75.2 | 8.59 / 62.1 | 30.6 / 91.2 | 14.0 / 78.7 | 10.9 / 71.9
            """
        ),
    ),
)

DEPTH = (
    PublishedTable(
        title="Depth Anything 3, Table 4: monocular depth (delta1, percent)",
        source="Depth Anything 3, arXiv 2511.10647, Table 4",
        protocol="alignment, ranges and crops are not in the table; real data sets that were not run here",
        columns=("KITTI", "NYUv2", "Sintel", "ETH3D", "DIODE"),
        rows=_rows(
            """
            Depth Anything 2 | 94.6 | 97.9 | 77.2 | 86.5 | 95.2
            VGGT | 91.7 | 97.9 | 67.9 | 97.5 | 95.3
            DA3 | 95.3 | 97.4 | 75.5 | 98.6 | 95.4
            DA3 teacher | 97.2 | 97.9 | 81.4 | 99.8 | 96.6
            """
        ),
    ),
    PublishedTable(
        title="Depth Anything 3, Table 11: metric depth (delta1 / AbsRel)",
        source="Depth Anything 3, arXiv 2511.10647, Table 11",
        protocol="metric depth, no alignment; real data sets that were not run here",
        columns=("NYUv2", "KITTI", "ETH3D", "SUN-RGBD", "DIODE (indoor)"),
        rows=_rows(
            """
            DepthPro | .932 / .093 | .843 / .121 | .386 / .349 | .950 / .126 | .734 / .173
            Metric3Dv2 | .971 / .067 | .976 / .051 | .830 / .138 | .954 / .132 | .018 / .154
            UniDepthV1 | .980 / .061 | .978 / .051 | .234 / .464 | .971 / .113 | .570 / .266
            UniDepthV2 | .968 / .064 | .968 / .076 | .863 / .152 | .977 / .111 | .856 / .123
            DA3-metric | .963 / .070 | .953 / .086 | .917 / .104 | .973 / .105 | .838 / .128
            """
        ),
    ),
)

RECONSTRUCTION = (
    PublishedTable(
        title="Depth Anything 3, Table 3: reconstruction without / with poses (F1 percent; DTU chamfer in mm)",
        source="Depth Anything 3, arXiv 2511.10647, Table 3",
        protocol="the poses' frames, RANSAC alignment, TSDF fusion, F1 at 0.05 m (ETH3D 0.25 m); "
        "real data sets that were not run here",
        columns=("HiRoom", "ETH3D", "DTU", "7Scenes", "ScanNet++"),
        rows=_rows(
            """
            DUSt3R | 30.1 / 39.5 | 19.7 / 18.8 | 7.60 / 7.97 | 26.6 / 39.8 | 18.9 / 27.3
            Fast3R | 40.7 / 48.2 | 38.5 / 50.3 | 6.88 / 8.20 | 41.0 / 49.8 | 37.1 / 53.7
            MapAnything | 32.4 / 69.2 | 54.8 / 71.9 | 7.91 / 3.97 | 44.8 / 55.2 | 39.4 / 71.3
            Pi3 | 75.8 / 85.0 | 72.7 / 80.6 | 3.28 / 1.72 | 44.2 / 57.5 | 63.1 / 73.3
            VGGT | 56.7 / 70.2 | 57.2 / 66.7 | 2.05 / 1.44 | 47.9 / 51.4 | 66.4 / 70.7
            DA3-Giant | 85.1 / 95.6 | 79.0 / 87.1 | 1.85 / 1.85 | 53.5 / 56.5 | 77.0 / 79.3
            DA3-Large | 69.5 / 87.1 | 65.8 / 75.2 | 2.08 / 1.23 | 56.3 / 49.2 | 67.9 / 75.7
            DA3-Base | 25.9 / 71.4 | 49.5 / 66.7 | 2.87 / 2.36 | 49.9 / 50.6 | 47.2 / 67.8
            DA3-Small | 18.3 / 52.2 | 41.6 / 63.4 | 5.83 / 2.49 | 41.0 / 46.8 | 32.3 / 53.8
            """
        ),
    ),
)

TABLES = {"novel-views": NOVEL_VIEWS, "poses": POSES, "depth": DEPTH, "reconstruction": RECONSTRUCTION}
