"""Point clouds compared: how close the points found are to the surface, and how much of it was found."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree


@dataclass(frozen=True)
class CloudScores:
    """accuracy: mean distance from found to true points; completeness: from true to found; chamfer: the mean of both,
    in the units of the clouds. precision, recall: shares nearer than the threshold; f1: their harmonic mean."""

    accuracy: float
    completeness: float
    chamfer: float
    precision: float
    recall: float
    f1: float


def cloud_scores(found: np.ndarray, true: np.ndarray, threshold: float, cap: float | None = None) -> CloudScores:
    """Scores of the points found (P,3) beside the true ones (Q,3); a distance equal to the threshold is beyond it.

    With a `cap`, distances of that much and more are left out of accuracy and completeness, as DTU's protocol does;
    where that leaves none, the score is the cap. ValueError where a cloud has no point, or one that is not finite.
    """
    for name, points in (("found", found), ("true", true)):
        if points.ndim != 2 or points.shape[1] != 3 or len(points) == 0 or not np.isfinite(points).all():
            raise ValueError(f"{name}: expected finite points (P,3), at least one, got shape {points.shape}")
    if threshold <= 0:
        raise ValueError(f"threshold: expected a distance above 0, got {threshold}")
    to_true = cKDTree(true).query(found, workers=-1)[0]
    to_found = cKDTree(found).query(true, workers=-1)[0]
    accuracy, completeness = (_mean_below(distances, cap) for distances in (to_true, to_found))
    precision, recall = float((to_true < threshold).mean()), float((to_found < threshold).mean())
    return CloudScores(
        accuracy=accuracy,
        completeness=completeness,
        chamfer=(accuracy + completeness) / 2,
        precision=precision,
        recall=recall,
        f1=0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall),
    )


def _mean_below(distances: np.ndarray, cap: float | None) -> float:
    if cap is None:
        return float(distances.mean())
    return float(distances[distances < cap].mean()) if bool((distances < cap).any()) else cap


def within_box(points: np.ndarray, true: np.ndarray, margin: float) -> np.ndarray:
    """Of the points (P,3), those in the axis-aligned box of the true ones (Q,3), made larger by `margin` all around."""
    return points[((points >= true.min(axis=0) - margin) & (points <= true.max(axis=0) + margin)).all(axis=1)]


def thinned_to_voxels(points: np.ndarray, size: float) -> np.ndarray:
    """The mean of the points (P,3) in each cube of edge `size` that holds some: each place counts once, however many
    pixels saw it."""
    cells, inverse, counts = np.unique(
        np.floor(points / size).astype(np.int64), axis=0, return_inverse=True, return_counts=True
    )
    sums = np.zeros((len(cells), 3))
    np.add.at(sums, inverse.reshape(-1), points)
    return sums / counts[:, None]
