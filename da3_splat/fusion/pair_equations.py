"""The normal equations of corrections that pairs of views share: solved as one matrix for few views, by conjugate
gradients on the blocks of the pairs for many, whose memory and work grow with the pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST_DENSE = 2000  # unknowns up to which the equations are laid out as one full matrix
RESIDUAL = 1e-9  # of the right side, at which conjugate gradients end
MOST_ROUNDS = 1000


@dataclass(frozen=True)
class PairEquations:
    """(sum of J^T W J over pairs + diag(prior)) x = -(sum of J^T W r + pull), M unknowns of each of S views, float64.

    pairs (P,2); blocks (P,2M,2M) and vectors (P,2M) of each pair, the first view's unknowns first; prior (M) > 0;
    pull (S,M); `free` (S,M) bool, False where an unknown stays zero.
    """

    pairs: Tensor
    blocks: Tensor
    vectors: Tensor
    prior: Tensor
    pull: Tensor
    free: Tensor

    def solve(self) -> Tensor:
        """(S,M)."""
        right = self.pull.clone()
        size = right.shape[1]
        right.index_add_(0, self.pairs[:, 0], self.vectors[:, :size])
        right.index_add_(0, self.pairs[:, 1], self.vectors[:, size:])
        right = -right * self.free
        return self._dense(right) if right.numel() <= LARGEST_DENSE else self._conjugate_gradients(right)

    def _dense(self, right: Tensor) -> Tensor:
        views, size = right.shape
        normal = torch.zeros(views, size, views, size, dtype=right.dtype)
        for (i, j), block in zip(self.pairs.tolist(), self.blocks):
            normal[i, :, i] += block[:size, :size]
            normal[i, :, j] += block[:size, size:]
            normal[j, :, i] += block[size:, :size]
            normal[j, :, j] += block[size:, size:]
        flat = normal.reshape(views * size, views * size)
        flat.diagonal().add_(self.prior.repeat(views))
        index = torch.nonzero(self.free.flatten())[:, 0]
        factor = torch.linalg.cholesky(flat[index][:, index])
        solution = torch.zeros_like(right).flatten()
        solution[index] = torch.cholesky_solve(right.flatten()[index, None], factor)[:, 0]
        return solution.reshape(views, size)

    def _conjugate_gradients(self, right: Tensor) -> Tensor:
        """Preconditioned by the inverse of each view's own block (Hestenes and Stiefel 1952)."""
        size = right.shape[1]
        own = torch.diag(self.prior).repeat(len(right), 1, 1)
        own.index_add_(0, self.pairs[:, 0], self.blocks[:, :size, :size])
        own.index_add_(0, self.pairs[:, 1], self.blocks[:, size:, size:])
        free = self.free.to(right)
        # Unknowns that stay zero are equations of their own.
        own = own * free[:, :, None] * free[:, None, :] + torch.diag_embed(1 - free)
        inverse = torch.linalg.inv(own)
        across = self.blocks[:, :size, size:]
        first, second = self.pairs.unbind(1)

        def apply(x: Tensor) -> Tensor:
            answer = (own @ x[..., None])[..., 0]
            x = x * free
            answer.index_add_(0, first, (across @ x[second][..., None])[..., 0] * free[first])
            answer.index_add_(0, second, (across.transpose(1, 2) @ x[first][..., None])[..., 0] * free[second])
            return answer

        solution, residual = torch.zeros_like(right), right.clone()
        z = (inverse @ residual[..., None])[..., 0]
        direction, product = z.clone(), (residual * z).sum()
        goal = RESIDUAL * float(right.norm())
        for _ in range(MOST_ROUNDS):
            if float(residual.norm()) <= goal:
                break
            turned = apply(direction)
            step = product / (direction * turned).sum()
            solution += step * direction
            residual -= step * turned
            z = (inverse @ residual[..., None])[..., 0]
            previous, product = product, (residual * z).sum()
            direction = z + product / previous * direction
        return solution
