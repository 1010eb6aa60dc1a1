"""Where chunks lie in one world: similarities of neighbours multiplied up, or, with loops, the ones that fit all links
best, by SciPy's sparse least squares with a robust loss."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import least_squares
from scipy.sparse import lil_matrix
from scipy.spatial.transform import Rotation

from da3_splat.geometry.alignment import Similarity
from da3_splat.sequence.linking import Link

SIGMAS = np.array([0.01, *[0.01] * 3, *[0.02] * 3])  # of a link: log scale, radians, shares of the median depth


def compose(a: Similarity, b: Similarity) -> Similarity:
    """First b, then a."""
    return Similarity(a.scale * b.scale, a.rotation @ b.rotation, a.apply(b.translation[None])[0])


def chained(links: list[Link], count: int) -> list[Similarity]:
    """The similarities from `count` chunks to the frame of chunk 0, by links of neighbours alone."""
    found = [Similarity.rigid(torch.eye(4, dtype=torch.float64))]
    steps = {one.first: one for one in links if one.second == one.first + 1}
    for index in range(count - 1):
        if index not in steps:
            raise ValueError(f"pose graph: no link between chunks {index} and {index + 1}")
        found.append(compose(found[-1], steps[index].similarity))
    return found


def optimized(links: list[Link], count: int) -> list[Similarity]:
    """The similarities from `count` chunks to the frame of chunk 0 that fit all links best, loops included.

    A link's residual is the similarity that is left when one goes around by the two chunks and back by the link: log
    scale, rotation vector and translation in median depths, over SIGMAS. The loss turns linear beyond a few of them, so
    that a false loop cannot bend everything. Jacobians are taken by differences, along the links.
    """
    start = chained(links, count)
    if count < 2 or len(links) < count:
        return start
    units = np.array([one.unit for one in links])
    measured = [_numbers(one.similarity) for one in links]
    first, second = (np.array([getattr(one, name) for one in links]) for name in ("first", "second"))
    m_scale, m_turn, m_shift = (np.stack([one[part] for one in measured]) for part in range(3))

    def residuals(unknowns: np.ndarray) -> np.ndarray:
        values = np.concatenate([np.zeros((1, 7)), unknowns.reshape(-1, 7)])
        scale, turn, shift = np.exp(values[:, 0]), Rotation.from_rotvec(values[:, 1:4]), values[:, 4:]
        back = turn[first].inv()
        relative_scale = scale[second] / scale[first]
        relative_turn = back * turn[second]
        relative_shift = back.apply(shift[second] - shift[first]) / scale[first, None]
        left = (relative_turn * Rotation.from_matrix(m_turn).inv()).as_rotvec()
        parts = [
            np.log(relative_scale / m_scale)[:, None],
            left,
            (relative_shift - m_shift) / units[:, None],
        ]
        return (np.concatenate(parts, axis=1) / SIGMAS).ravel()

    sparsity = lil_matrix((7 * len(links), 7 * (count - 1)), dtype=int)
    for row, (i, j) in enumerate(zip(first, second)):
        for node in (i, j):
            if node > 0:
                sparsity[7 * row : 7 * row + 7, 7 * (node - 1) : 7 * node] = 1
    guess = np.concatenate([_as_vector(one) for one in start[1:]])
    answer = least_squares(residuals, guess, jac_sparsity=sparsity, loss="soft_l1", f_scale=3.0, x_scale="jac")
    return [start[0], *(_from_vector(values) for values in answer.x.reshape(-1, 7))]


def _numbers(similarity: Similarity) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return similarity.scale.numpy(), similarity.rotation.numpy(), similarity.translation.numpy()


def _as_vector(similarity: Similarity) -> np.ndarray:
    scale, rotation, translation = _numbers(similarity)
    return np.concatenate([[np.log(scale)], Rotation.from_matrix(rotation).as_rotvec(), translation])


def _from_vector(values: np.ndarray) -> Similarity:
    turn = torch.from_numpy(Rotation.from_rotvec(values[1:4]).as_matrix())
    return Similarity(torch.tensor(np.exp(values[0])), turn, torch.from_numpy(values[4:].copy()))
