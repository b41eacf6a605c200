"""Many penalised logistic regressions on the same rows, minimised at once.

All fits (penalties x folds x classes) share the rows, so each iteration is two matrix products for
all of them. Every fit runs its own L-BFGS [1]_, preconditioned with the Hessian that one
eigendecomposition of the rows' second moments gives for any penalty and any mean curvature (the
mean of p(1 - p), or of diag(p) - pp' with more classes): exact at the start, close later. A fit
that has converged drops out of the products.

.. [1] Nocedal & Wright, Numerical Optimization (2006), algorithm 7.4;
   https://doi.org/10.1007/978-0-387-40065-5
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor

    from probekit.probes.logistic_design import Design

__all__ = ["Objective", "Solution", "minimise"]

HISTORY = 10
DECREASE = 1e-4  # Armijo
SLOPE = 0.9  # Wolfe
IDLE = 8  # passes without progress after which rounding has the last word
LEAST_SHARE = 1e-6  # a class that a fold's training rows lack starts, and stays, here
LEAST_CURVATURE = 1e-7


@dataclass
class Point:
    """Where each fit stands: everything a step needs, J fits of K vectors in r coordinates."""

    theta: Tensor  # (J, K, r + 1), bias last
    loss: Tensor  # (J,)
    grad: Tensor  # (J, K, r + 1)
    peak: Tensor  # (J,) largest entry of the gradient, in features rather than coordinates
    curvature: Tensor  # (J, K, K) mean of diag(p) - pp'

    def pick(self, keep: Tensor) -> Point:
        return Point(*(value[keep] for value in vars(self).values()))

    def update(self, other: Point, where: Tensor) -> None:
        for name, value in vars(other).items():
            vars(self)[name][where] = value[where]


@dataclass
class Solution:
    """Minimisers (J, K, r + 1), passes over the rows, gradient's peak, whether it converged."""

    theta: Tensor
    n_iter: Tensor
    peak: Tensor
    converged: Tensor


class Objective:
    """Weighted cross-entropy plus l2 |w|², for J fits at once.

    Parameters
    ----------
    design
        The rows and their basis.
    targets
        (K, n): P(second class) for K = 1, else every class's probability.
    row_weight
        (F, n), each row summing to 1: one set of weights for all rows and one per fold.
    fold, l2
        (J,): which set of weights and which penalty a fit has.
    """

    def __init__(
        self, design: Design, targets: Tensor, row_weight: Tensor, fold: Tensor, l2: Tensor
    ) -> None:
        self.design, self.targets, self.row_weight = design, targets, row_weight
        self.fold, self.l2 = fold, l2

    def pick(self, keep: Tensor) -> Objective:
        """Return the objective of some of the fits."""
        return Objective(self.design, self.targets, self.row_weight, self.fold[keep], self.l2[keep])

    def start(self) -> Tensor:
        """Zero weights and the bias that gives the class shares of the training rows."""
        share = (self.row_weight.double() @ self.targets.double().T)[self.fold]
        share = share.clamp(LEAST_SHARE, 1 - LEAST_SHARE)
        theta = share.new_zeros(*share.shape, self.design.width + 1)
        single = share.shape[1] == 1
        theta[..., -1] = torch.logit(share) if single else share.log() - share.log().mean(1, True)
        return theta

    def __call__(self, theta: Tensor) -> Point:
        """Evaluate every fit at theta (J, K, r + 1) in one pass over the rows."""
        fits, vectors, _ = theta.shape
        columns = fits * vectors
        weights = self.design.weights(theta[..., :-1].reshape(columns, -1))
        bias = theta[..., -1].reshape(columns, 1).to(weights.dtype)
        loss = theta.new_zeros(fits)
        curvature = theta.new_zeros(fits, vectors, vectors)
        slope, bias_slope = theta.new_zeros(columns, self.design.width), theta.new_zeros(columns)
        part = _binary if vectors == 1 else _softmax
        for rows, x in self.design.chunks(columns):
            logits = torch.addmm(bias, weights, x.T).view(fits, vectors, -1)
            row_weight = self.row_weight[:, rows][self.fold]
            some_loss, residual, some_curvature = part(logits, self.targets[:, rows], row_weight)
            loss += some_loss
            curvature += some_curvature
            residual = residual.reshape(columns, -1)
            slope += residual @ x
            bias_slope += residual.sum(1, dtype=torch.float64)
        wide = weights.double()
        loss += self.l2 * wide.view(fits, -1).square().sum(1)
        slope += 2 * self.l2.repeat_interleave(vectors)[:, None] * wide
        grad = torch.cat([self.design.coordinates(slope), bias_slope[:, None]], 1)
        peak = torch.maximum(slope.abs().amax(1), bias_slope.abs())
        return Point(theta, loss, grad.view_as(theta), peak.view(fits, vectors).amax(1), curvature)


def _binary(z: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    z = z[:, 0]
    p = torch.sigmoid(z)
    # Beyond the threshold softplus(z) is z to the last digit of float64.
    loss = weight * (functional.softplus(z, threshold=40) - y * z)
    residual = (p - y).mul_(weight)
    curvature = (weight * p).mul_(1 - p).sum(1, dtype=torch.float64)
    return loss.sum(1, dtype=torch.float64), residual, curvature[:, None, None]


def _softmax(z: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    log_p = torch.log_softmax(z, 1)
    p = log_p.exp()
    loss = (weight * (y * log_p).sum(1)).sum(1, dtype=torch.float64).neg_()
    weighted = p * weight[:, None]
    curvature = torch.diag_embed(weighted.sum(2)) - weighted @ p.mT
    return loss, (p - y).mul_(weight[:, None]), curvature.double()


class _Hessian:
    """Inverse of curvature ⊗ second moments + 2 l2, the bias unpenalised."""

    def __init__(self, objective: Objective, curvature: Tensor) -> None:
        spread = torch.cat([objective.design.spread, curvature.new_ones(1)])
        penalty = torch.ones_like(spread)
        penalty[-1] = 0
        # Sorted ascending; with more than one class the first is 0: adding the same vector to
        # every class changes nothing, and no gradient ever points there.
        value, self.vectors = torch.linalg.eigh(curvature)
        value = value.clamp(min=LEAST_CURVATURE)
        self.inverse = 1 / (value[..., None] * spread + 2 * objective.l2[:, None, None] * penalty)

    def solve(self, g: Tensor) -> Tensor:
        product: Tensor = self.vectors @ (self.inverse * (self.vectors.mT @ g))
        return product


@dataclass
class _Memory:
    """Last steps s and changes of gradient y of every fit; zeros where a step was refused."""

    pairs: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)

    def add(self, s: Tensor, y: Tensor, where: Tensor) -> None:
        mask = where[:, None, None]
        s, y = torch.where(mask, s, 0.0), torch.where(mask, y, 0.0)
        curvature = _dot(s, y)
        scale = torch.where(curvature > 0, 1 / curvature, 0.0)
        self.pairs = [*self.pairs[1 - HISTORY :], (s, y, scale)]

    def pick(self, keep: Tensor) -> _Memory:
        return _Memory([(s[keep], y[keep], scale[keep]) for s, y, scale in self.pairs])

    def direction(self, grad: Tensor, hessian: _Hessian) -> Tensor:
        q, used = grad.clone(), []
        for s, y, scale in reversed(self.pairs):
            a = (scale * _dot(s, q))[:, None, None]
            q -= a * y
            used.append(a)
        q = hessian.solve(q)
        for (s, y, scale), a in zip(self.pairs, reversed(used), strict=True):
            q += (a - (scale * _dot(y, q))[:, None, None]) * s
        return -q


def minimise(objective: Objective, *, tol: float, max_iter: int) -> Solution:
    """Minimise every fit until its gradient is small, nothing moves any more, or ``max_iter``.

    A fit has converged when no entry of its gradient exceeds ``tol`` and the step that the
    quadratic model proposes changes logits by less than 100 ``tol`` (root mean square, each row
    weighted by p(1 - p)); or when rounding allows no further progress.
    """
    point = objective(objective.start())
    fits, device = len(point.loss), point.loss.device
    result = Solution(
        theta=point.theta.clone(),
        n_iter=torch.zeros(fits, dtype=torch.int64, device=device),
        peak=point.peak.clone(),
        converged=torch.zeros(fits, dtype=torch.bool, device=device),
    )
    active = torch.arange(fits, device=device)
    memory, track = _Memory(), _Progress(point)
    direction, step = torch.zeros_like(point.theta), torch.ones_like(point.loss)
    fresh = torch.ones(fits, dtype=torch.bool, device=device)
    eps = torch.finfo(objective.design.dtype).eps
    for passes in range(1, max_iter + 1):
        hessian = _Hessian(objective, point.curvature)
        decrement = _dot(point.grad, hessian.solve(point.grad)).clamp(min=0).sqrt()
        small = (point.peak <= tol) & (decrement <= 100 * tol)
        stuck = track.idle >= IDLE
        done = small | stuck | torch.full_like(small, passes == max_iter)
        if done.any():
            ended = active[done]
            result.theta[ended], result.peak[ended] = point.theta[done], point.peak[done]
            result.n_iter[ended] = passes
            result.converged[ended] = small[done] | (stuck & (decrement <= eps**0.5))[done]
            keep = ~done
            if not keep.any():
                break
            active, objective, point = active[keep], objective.pick(keep), point.pick(keep)
            memory, track = memory.pick(keep), track.pick(keep)
            direction, step, fresh = direction[keep], step[keep], fresh[keep]
            hessian = _Hessian(objective, point.curvature)
        new = memory.direction(point.grad, hessian)
        direction = torch.where(fresh[:, None, None], new, direction)
        step = torch.where(fresh, 1.0, step)
        trial = objective(point.theta + step[:, None, None] * direction)
        before, after = _dot(point.grad, direction), _dot(trial.grad, direction)
        # The loss is convex: a slope that still points down proves that it fell.
        fell = trial.loss <= point.loss + DECREASE * step * before + eps * point.loss.abs()
        fresh = (after <= 0) | (fell & (after <= SLOPE * before.abs()))
        shrink = torch.nan_to_num(before.abs() / (before.abs() + after), nan=0.1).clamp(0.1, 0.7)
        step = step * shrink
        memory.add(trial.theta - point.theta, trial.grad - point.grad, fresh)
        point.update(trial, fresh)
        track.update(point, eps)
    return result


class _Progress:
    """How many passes ago a fit last got anywhere."""

    def __init__(self, point: Point) -> None:
        self.loss, self.peak = point.loss.clone(), point.peak.clone()
        self.idle = torch.zeros_like(point.loss)

    def pick(self, keep: Tensor) -> _Progress:
        for name, value in vars(self).items():
            vars(self)[name] = value[keep]
        return self

    def update(self, point: Point, eps: float) -> None:
        better = (point.loss < self.loss - eps * self.loss.abs()) | (point.peak < 0.9 * self.peak)
        self.loss = torch.minimum(self.loss, point.loss)
        self.peak = torch.minimum(self.peak, point.peak)
        self.idle = torch.where(better, 0.0, self.idle + 1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((1, 2))
