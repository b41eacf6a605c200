"""Two models of a logistic objective's curvature, to take steps with."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from probekit.probes.logistic_solver import Objective

__all__ = ["MeanHessian", "OwnHessian"]

LEAST_CURVATURE = 1e-7
LEAST_RIDGE = 1e-12
OWN_BYTES = 1 << 29
WAIT = 25


class MeanHessian:
    """Inverse of curvature ⊗ second moments + 2 l2, the bias unpenalised.

    ``curvature`` (J, K, K) is the mean of diag(p) - pp' over the rows: one decomposition of the
    second moments serves all fits, wherever they stand.
    """

    def __init__(self, objective: Objective, curvature: Tensor) -> None:
        design = objective.design
        self.basis = design.basis
        # With more than one class the smallest is 0, but no gradient ever points there.
        value, self.vectors = torch.linalg.eigh(curvature)
        value = value.clamp(min=LEAST_CURVATURE)
        self.bias = 1 / value
        value, penalty = value[..., None], 2 * objective.l2[:, None, None]
        self.inverse = 1 / (value * design.spread + penalty)
        # Directions that the basis leaves out, if any.
        self.other: Tensor | float = 0.0
        if self.basis.shape[1] < design.width:
            floor = float(design.spread[0]) * 1e-3
            self.other = 1 / (value * max(design.rest, floor) + penalty)

    def solve(self, g: Tensor) -> Tensor:
        """Return the inverse times g (J, K, width + 1)."""
        g = self.vectors.mT @ g
        weights = g[..., :-1]
        inside = (weights.to(self.basis.dtype) @ self.basis).double()
        inside = ((self.inverse - self.other) * inside).to(self.basis.dtype)
        weights = self.other * weights + (inside @ self.basis.T).double()
        g = torch.cat([weights, (self.bias * g[..., -1])[..., None]], -1)
        product: Tensor = self.vectors @ g
        return product


class OwnHessian:
    """Inverse of every fit's own Hessian at one point.

    Good also where p(1 - p) differs so much between rows that its mean says little (labels that
    can be fitted exactly under a small penalty), but it costs as much as ``delay`` passes.
    """

    def __init__(self, objective: Objective, theta: Tensor) -> None:
        hessian = objective.hessian(theta)
        diagonal = hessian.diagonal(dim1=-2, dim2=-1)
        vectors = theta.shape[1]
        if vectors > 1:
            # Adding the same to every class changes nothing; this gives that direction curvature
            # and leaves all others as they are.
            same = torch.ones(vectors, vectors, dtype=hessian.dtype, device=hessian.device)
            each = torch.eye(hessian.shape[-1] // vectors, dtype=hessian.dtype).to(same.device)
            hessian += torch.kron(same, each) * diagonal.mean(-1)[:, None, None]
        ridge = LEAST_RIDGE * diagonal.amax(-1, keepdim=True).clamp(min=LEAST_CURVATURE)
        factor, failed = torch.linalg.cholesky_ex(hessian)
        # Singular without penalty, or by rounding.
        while failed.any():
            diagonal += torch.where(failed[:, None] > 0, ridge, 0.0)
            ridge = 10 * ridge
            factor, failed = torch.linalg.cholesky_ex(hessian)
        self.factor = factor

    @staticmethod
    def delay(objective: Objective) -> int | None:
        """Passes after which it pays to compute it; None where it does not fit into memory."""
        width = len(objective.targets) * (objective.design.width + 1)
        fits = 8 * len(objective.l2) * width**2 <= OWN_BYTES
        return max(WAIT, width // 8) if fits else None

    def pick(self, keep: Tensor) -> OwnHessian:
        """Return those of some of the fits."""
        other = copy(self)
        other.factor = self.factor[keep]
        return other

    def solve(self, g: Tensor) -> Tensor:
        """Return the inverse times g (J, K, width + 1)."""
        return torch.cholesky_solve(g.reshape(len(g), -1, 1), self.factor).view_as(g)
