"""Many penalised logistic regressions on the same rows, minimised at once.

All fits (penalties x folds x classes) share the rows, so each iteration is two matrix products for
all of them. Every fit runs its own L-BFGS [1]_, preconditioned with a Hessian that one
decomposition of the rows' second moments provides for any penalty and any mean curvature (the mean
of p(1 - p), or of diag(p) - pp' with more classes): exact at the start, close later. A fit that has
converged drops out of the products.

A fit ends when the step that L-BFGS proposes would hardly move the logits of a new row, and these
steps shrink (:meth:`_Run.error`). p(1 - p) cannot decide that, because it is almost 0 if labels can
be fitted exactly, nor can the gradient, which is small for narrow columns.

.. [1] Nocedal & Wright, Numerical Optimization (2006), algorithm 7.4;
   https://doi.org/10.1007/978-0-387-40065-5
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import torch
from torch.nn import functional

from probekit.held import Share
from probekit.probes.logistic_design import Design, Frame, ready_rows

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Objective", "Solution", "minimise"]

HISTORY = 10
DECREASE = 1e-4  # Armijo
SLOPE = 0.9  # Wolfe
IDLE = 8  # passes without progress after which rounding prevents any; more with many classes
LEAST_SHARE = 1e-6  # share at which a class without training rows in a fold starts and stays
LAST_STEPS = 3  # steps whose shrinking predicts that of later ones
SLOWEST = 0.97  # largest rate of shrinking that these few steps can distinguish from none
SAFETY = 1.5  # without it the smallest estimate of about 250 fits was 1.4 times the error
PER_CLASS = 3  # by the mathematics 2, with which 1 of 64 estimates was 0.7 of the error
TOLERATED = 1e-4  # error of a probability without a warning
LEAST_CURVATURE = 1e-7
LEAST_RIDGE = 1e-12
SMALLEST = 1e-37  # of a number that is divided by, in float32
OWN_BYTES = 1 << 29
WAIT = 25
MANY = 8  # classes from which on steps are scaled: halves the passes at 12, costs 7 % at 3
APART = 64  # classes from which on their coupling is left out of the mean Hessian


@dataclass
class Point:
    """State of J fits of K vectors: everything that a step needs."""

    theta: Tensor  # (J, K, width + 1), bias last
    loss: Tensor  # (J,)
    grad: Tensor  # (J, K, width + 1)
    peak: Tensor  # (J,) largest entry of the gradient
    curvature: Tensor  # (J, K, K) mean of diag(p) - pp'; its diagonal (J, K) of APART classes

    def pick(self, keep: Tensor) -> Point:
        return Point(*(value[keep] for value in vars(self).values()))

    def moved(self, other: Point, where: Tensor) -> Point:
        if where.all():
            return other
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Point(*(torch.where(where.view(-1, *[1] * (a.ndim - 1)), b, a) for a, b in pairs))


@dataclass
class Solution:
    """Minimisers (J, K, width + 1), passes, peak of the gradient, error of P, and convergence."""

    theta: Tensor
    n_iter: Tensor
    peak: Tensor
    error: Tensor
    converged: Tensor

    @classmethod
    def empty(cls, objective: Objective) -> Solution:
        """A solution of no passes, its numbers NaN."""
        theta = objective.start().fill_(torch.nan)
        fits = theta[:, 0, 0]
        none = torch.zeros_like(fits, dtype=torch.int64)
        return cls(theta, none, fits.clone(), fits.clone(), none.bool())


class Objective:
    """Weighted cross-entropy plus l2 |w|², for J fits at once.

    Parameters
    ----------
    design
        The rows and their second moments.
    targets
        (K, n) float64: P(second class) for K = 1, else every class's probability.
    row_weight
        (F, n), each row summing to 1: one set of weights for all rows and one per fold.
    fold, l2
        (J,): which set of weights and which penalty a fit has.
    bias
        False: the bias is and stays 0.
    """

    def __init__(
        self,
        design: Design,
        targets: Tensor,
        row_weight: Tensor,
        fold: Tensor,
        l2: Tensor,
        *,
        bias: bool = True,
    ) -> None:
        self.design, self.vectors = design, len(targets)
        self.fold, self.l2, self.bias = fold, l2, bias
        self.share = torch.stack([targets.double() @ weight.double() for weight in row_weight])
        # p - y loses digits if both are close to 1. For two classes such rows are reversed,
        # (1 - y) - (1 - p); for more, the residual of the likeliest class is minus the sum of the
        # others.
        if len(targets) == 1:
            major = targets > 0.5
            near = torch.where(major, 1 - targets, targets).to(design.dtype)
            sign = torch.where(major[0], -1.0, 1.0).to(design.dtype)
        else:
            near = targets.to(design.dtype)
            sign = torch.zeros_like(near)
            sign.scatter_(0, targets.argmax(0, keepdim=True), 1.0)
        put = design.rows.held.put
        self._labels = uuid4().hex, put(near), put(sign), put(row_weight)

    @property
    def step_dtype(self) -> torch.dtype:
        """Precision in which steps are proposed, which need not be exact.

        With few classes steps take little time; with many, they would cost as much as the passes.
        """
        return self.design.dtype if self.vectors >= MANY else torch.float64

    def pick(self, keep: Tensor) -> Objective:
        """The objective of some of the fits."""
        some = copy(self)
        some.fold, some.l2 = self.fold[keep], self.l2[keep]
        return some

    def start(self) -> Tensor:
        """Zero weights and the bias that gives the class shares of the training rows."""
        share = self.share[self.fold].clamp(LEAST_SHARE, 1 - LEAST_SHARE)
        theta = share.new_zeros(*share.shape, self.design.width + 1)
        if not self.bias:
            return theta
        single = share.shape[1] == 1
        theta[..., -1] = torch.logit(share) if single else share.log() - share.log().mean(1, True)
        return theta

    def seen(self, step: Tensor) -> Tensor:
        """A step (J, K, width + 1) without biases of classes that a fit's training rows lack.

        These have no optimum and keep falling, from a probability that is almost 0 already.
        """
        share = self.share[self.fold]
        seen = ((share > LEAST_SHARE) & (share < 1 - LEAST_SHARE)).double()
        if seen.all():
            return step
        bias = step[..., -1] * seen
        if seen.shape[1] > 1:
            # A change common to all other classes is a change against the missing ones.
            bias -= bias.sum(1, keepdim=True) / seen.sum(1, keepdim=True).clamp(min=1) * seen
        return torch.cat([step[..., :-1], bias[..., None]], -1)

    def __call__(self, theta: Tensor, curvature: Tensor | None = None) -> Point:
        """Evaluate every fit at theta (J, K, width + 1) in one pass over the rows.

        A ``curvature`` as :class:`Point` has it that is given is kept, not measured.
        """
        fits, vectors, _ = theta.shape
        measure = curvature is None
        loss, slope, bias_slope, *measured = self._sum(_evaluate, theta, self.bias, measure)
        wide = self._wide(theta)[..., :-1]
        loss += self.l2 * wide.reshape(fits, -1).square().sum(1)
        slope += 2 * self.l2.repeat_interleave(vectors)[:, None] * wide.flatten(0, 1)
        grad = torch.cat([slope, bias_slope[:, None]], 1).view_as(theta)
        if vectors > 1:
            # Adding the same to every class changes nothing: only rounding points there.
            grad -= grad.mean(1, keepdim=True)
        curvature = measured[0] if curvature is None else curvature
        return Point(theta, loss, grad, grad.abs().amax((1, 2)), curvature)

    def hessian(self, theta: Tensor) -> Tensor:
        """Hessian of every fit (J, K (width + 1), K (width + 1)) at theta."""
        fits, vectors, width = theta.shape
        (total,) = self._sum(_add_hessian, theta)
        if not self.bias:  # then it must not affect the step of the weights
            total[:, :, -1, :, :-1] = 0
            total[:, :, :-1, :, -1] = 0
        total = total.view(fits, vectors * width, vectors * width)
        penalty = total.new_full((vectors, width), 2.0)
        penalty[:, -1] = 0
        total.diagonal(dim1=1, dim2=2).add_(self.l2[:, None] * penalty.flatten())
        return total

    def _sum(
        self, work: Callable[..., Sequence[Tensor]], theta: Tensor, *more: Any
    ) -> list[Tensor]:
        """Sums over all rows of what ``work`` makes of the fits at theta."""
        return self.design.rows.sum(_labelled, work, more, self.fold, theta, *self._labels)

    def _wide(self, theta: Tensor) -> Tensor:
        """Theta as the products read it, in float64."""
        return theta.to(self.design.dtype).double()


class _Labelled:
    """A share's rows with their labels, and the weights that each fit gives them."""

    def __init__(
        self,
        share: Share,
        frame: Frame,
        fold: Any,
        theta: Any,
        key: str,
        *values: Any,
    ) -> None:
        self.ready = ready = ready_rows(share, frame)
        own = share.keep("labels", key, lambda: [ready.tensor(v[..., share.rows]) for v in values])
        self.targets, self.sign, self._weight = own
        self._fold, self.theta = ready.tensor(fold), ready.tensor(theta)
        self.fits, self.vectors, self.width = self.theta.shape
        flat = self.theta.reshape(-1, self.width).to(ready.dtype)
        self._coef, self._bias = flat[:, :-1], flat[:, -1:]

    def chunks(self) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """Yield row slices, their x (b, width), logits (J, K, b), and weights in fits (J, b)."""
        for rows, x in self.ready.passes(self.fits * self.vectors):
            logits = torch.addmm(self._bias, self._coef, x.T).view(self.fits, self.vectors, -1)
            yield rows, x, logits, self._weight[:, rows][self._fold]


def _labelled(
    share: Share, frame: Frame, work: Callable[..., list[Tensor]], more: tuple[Any, ...], *own: Any
) -> list[Tensor]:
    """Return ``work`` of a share's rows with their labels."""
    return work(_Labelled(share, frame, *own), *more)


def _evaluate(labelled: _Labelled, bias: bool, measure: bool) -> list[Tensor]:
    """Loss (J,), its gradient (J K, width) and (J K,), and the curvature if it is measured."""
    fits, vectors, columns = labelled.fits, labelled.vectors, labelled.fits * labelled.vectors
    theta = labelled.theta
    loss = theta.new_zeros(fits)
    shape = (fits, vectors) if vectors >= APART else (fits, vectors, vectors)
    measured = theta.new_zeros(shape) if measure else None
    slope, bias_slope = theta.new_zeros(columns, labelled.width - 1), theta.new_zeros(columns)
    part = _binary if vectors == 1 else _softmax
    for rows, x, logits, weight in labelled.chunks():
        some_loss, residual = part(
            logits, labelled.targets[:, rows], labelled.sign[..., rows], weight, measured
        )
        loss += some_loss
        residual = residual.reshape(columns, -1)
        slope += residual @ x
        if bias:  # else its gradient is 0, and no step ever moves it
            bias_slope += residual.sum(1, dtype=torch.float64)
    return [loss, slope, bias_slope, *([] if measured is None else [measured])]


def _add_hessian(labelled: _Labelled) -> list[Tensor]:
    """Σ w ∂²CE (J, K, width + 1, K, width + 1)."""
    fits, vectors, width = labelled.fits, labelled.vectors, labelled.width
    total = labelled.theta.new_zeros(fits, vectors, width, vectors, width)
    for _rows, x, z, weight in labelled.chunks():
        p = torch.sigmoid(z) if vectors == 1 else torch.softmax(z, 1)
        mass = p * weight[:, None]
        one = torch.cat([x, x.new_ones(len(x), 1)], 1)
        for j in range(fits):
            for k in range(vectors):
                for m in range(vectors):
                    part = mass[j, k] * (int(k == m) - p[j, m])
                    total[j, k, :, m] += (one * part[:, None]).T @ one
    return [total]


def _binary(
    z: Tensor, y: Tensor, sign: Tensor, weight: Tensor, curvature: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Loss and residuals; rows of ``sign`` -1 are reversed: their y is 1 - y.

    The curvature (J, 1, 1) is added to ``curvature``, unless that is None.
    """
    z = z[:, 0].mul_(sign)
    p = torch.sigmoid(z)
    # Above the threshold softplus(z) equals z in float64.
    loss = weight * (functional.softplus(z, threshold=40) - y * z)
    if curvature is not None:
        curvature += (weight * p).mul_(1 - p).sum(1, dtype=torch.float64)[:, None, None]
    residual = (p - y).mul_(weight).mul_(sign)
    return loss.sum(1, dtype=torch.float64), residual


def _softmax(
    z: Tensor, y: Tensor, top: Tensor, weight: Tensor, curvature: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Loss and residuals; ``top`` (K, b) is 1 at each row's likeliest label.

    The curvature (J, K, K), or its diagonal (J, K), is added to ``curvature``, unless that is None.
    """
    log_p = torch.log_softmax(z, 1)
    p = log_p.exp()
    loss = (weight * (y * log_p).sum(1)).sum(1, dtype=torch.float64).neg_()
    if curvature is not None:
        weighted = p * weight[:, None]
        if curvature.ndim == 2:
            curvature += weighted.mul_(1 - p).sum(2)
        else:
            curvature += torch.diag_embed(weighted.sum(2)) - weighted @ p.mT
    residual = (p - y).mul_(weight[:, None]).mul_(1 - top)
    residual -= residual.sum(1, keepdim=True) * top
    return loss, residual


class MeanHessian:
    """Inverse of curvature ⊗ second moments + 2 l2, the bias unpenalised.

    ``curvature`` (J, K, K) is the mean of diag(p) - pp' over the rows: one decomposition of the
    second moments serves all fits at any point. Of many classes it is the diagonal (J, K): each
    pair is then coupled little, and decomposing the whole costs more than it saves.
    """

    def __init__(self, objective: Objective, curvature: Tensor) -> None:
        design = objective.design
        self.basis = None if design.turned else design.basis
        self.vectors: Tensor | None = None
        kind = objective.step_dtype
        value = curvature
        if curvature.ndim == 3:
            # With more than one vector the smallest is 0, but no gradient ever points there.
            value, vectors = torch.linalg.eigh(curvature)
            self.vectors = vectors.to(kind)
        value = value.clamp(min=LEAST_CURVATURE)
        self.bias = (1 / value).to(kind)
        value, penalty = value[..., None], 2 * objective.l2[:, None, None]
        self.inverse = (1 / (value * design.spread + penalty)).to(kind)
        # Directions that the basis leaves out, if any.
        self.other: Tensor | None = None
        if design.basis.shape[1] < design.width:
            floor = float(design.spread[0]) * 1e-3
            self.other = (1 / (value * max(design.rest, floor) + penalty)).to(kind)

    def pick(self, keep: Tensor) -> MeanHessian:
        """The Hessians of some of the fits."""
        some = copy(self)
        some.bias, some.inverse = self.bias[keep], self.inverse[keep]
        some.vectors = None if self.vectors is None else self.vectors[keep]
        some.other = None if self.other is None else self.other[keep]
        return some

    def solve(self, g: Tensor) -> Tensor:
        """The inverse times g (J, K, width + 1), g in the precision of steps."""
        if self.vectors is not None:
            g = self.vectors.mT @ g
        weights, bias = g[..., :-1], self.bias * g[..., -1]
        if self.basis is None:
            weights = self.inverse * weights
        else:
            other = 0.0 if self.other is None else self.other
            inside = (weights.to(self.basis.dtype) @ self.basis).to(g.dtype)
            inside = ((self.inverse - other) * inside).to(self.basis.dtype)
            weights = other * weights + (inside @ self.basis.T).to(g.dtype)
        product = torch.cat([weights, bias[..., None]], -1)
        if self.vectors is None:
            product -= product.mean(1, keepdim=True)  # as every gradient: only rounding is lost
        else:
            product = self.vectors @ product
        return product


class OwnHessian:
    """Inverse of every fit's own Hessian at one point.

    Good also if p(1 - p) differs so much between rows that its mean is a poor model (labels that
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
        """Passes after which it pays to compute it; None if it does not fit into memory."""
        width = objective.vectors * (objective.design.width + 1)
        fits = 8 * len(objective.l2) * width**2 <= OWN_BYTES
        return max(WAIT, width // 8) if fits else None

    def pick(self, keep: Tensor) -> OwnHessian:
        """The Hessians of some of the fits."""
        other = copy(self)
        other.factor = self.factor[keep]
        return other

    def solve(self, g: Tensor) -> Tensor:
        """The inverse times g (J, K, width + 1)."""
        product = torch.cholesky_solve(g.double().reshape(len(g), -1, 1), self.factor)
        return product.view_as(g).to(g.dtype)


@dataclass
class _Memory:
    """Last steps s and changes of gradient y of every fit; zeros for rejected steps."""

    kind: torch.dtype
    """Precision of both, and of the steps that they propose."""
    pairs: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)

    def add(self, s: Tensor, y: Tensor, where: Tensor) -> None:
        mask = where[:, None, None]
        s, y = torch.where(mask, s, 0.0), torch.where(mask, y, 0.0)
        curvature = _dot(s, y)
        scale = torch.where(curvature > 0, 1 / curvature, 0.0)
        pair = s.to(self.kind), y.to(self.kind), scale.to(self.kind)
        self.pairs = [*self.pairs[1 - HISTORY :], pair]

    def pick(self, keep: Tensor) -> _Memory:
        pairs = [(s[keep], y[keep], scale[keep]) for s, y, scale in self.pairs]
        return _Memory(self.kind, pairs)

    def direction(self, grad: Tensor, hessian: MeanHessian | OwnHessian) -> Tensor:
        q, used = grad.to(self.kind, copy=True), []
        for s, y, scale in reversed(self.pairs):
            a = (scale * _dot(s, q))[:, None, None]
            q.addcmul_(a, y, value=-1)  # in place: with many classes, memory decides the speed
            used.append(a)
        q = hessian.solve(q)
        if self.pairs and grad.shape[1] >= MANY:
            # The rows for which a class is likely lie in its direction. The rarer the classes, the
            # more the mean curvature of all rows falls short there, and steps become too long. The
            # last step measures it (equation 7.20 with H for the identity): γ = s'y / y'H⁻¹y.
            s, y, _ = self.pairs[-1]
            size = _dot(s, y) / _dot(y, hessian.solve(y)).clamp(min=SMALLEST)
            q *= torch.where(size > 0, size, 1.0)[:, None, None]
        for (s, y, scale), a in zip(self.pairs, reversed(used), strict=True):
            q.addcmul_(a - (scale * _dot(y, q))[:, None, None], s)
        return -q.double()


class _Run:
    """Fits that have not ended: their points, directions and memories."""

    def __init__(self, objective: Objective, theta: Tensor) -> None:
        self.objective = objective
        self.point = point = objective(theta)
        self.number = torch.arange(len(point.loss), device=point.loss.device)
        self.direction, self.step = torch.zeros_like(point.theta), torch.ones_like(point.loss)
        self.fresh = torch.ones_like(point.loss, dtype=torch.bool)
        self.loss, self.peak, self.idle = point.loss, point.peak, torch.zeros_like(point.loss)
        self.memory, self.since = _Memory(objective.step_dtype), 0
        self.hessian: MeanHessian | OwnHessian = MeanHessian(objective, point.curvature)
        self.passes, self.measured = 0, True
        classes = len(point.theta[0])
        self.patience = IDLE * (1 if classes < MANY else 2 if classes < APART else 5)
        self.eps = torch.finfo(objective.design.dtype).eps
        self.sizes: list[Tensor] = []
        self.aim()

    def pick(self, keep: Tensor) -> None:
        """Keep some of the fits only."""
        self.objective, self.point = self.objective.pick(keep), self.point.pick(keep)
        self.memory, self.hessian = self.memory.pick(keep), self.hessian.pick(keep)
        self.sizes = [size[keep] for size in self.sizes]
        for name in ("number", "ahead", "direction", "step", "fresh", "loss", "peak", "idle"):
            setattr(self, name, getattr(self, name)[keep])

    def aim(self) -> None:
        """Propose a step from the point of each fit, and record its size."""
        delay = OwnHessian.delay(self.objective)
        if delay is not None and self.since > delay:
            self.hessian = OwnHessian(self.objective, self.point.theta)
            self.memory, self.since = _Memory(self.objective.step_dtype), 0
        elif self.measured and isinstance(self.hessian, MeanHessian):
            self.hessian = MeanHessian(self.objective, self.point.curvature)
        self.ahead = self.memory.direction(self.point.grad, self.hessian)
        seen = self.objective.seen(self.ahead)
        size = _dot(seen, seen).sqrt()
        self.sizes = [*self.sizes[-LAST_STEPS:], size]

    def error(self) -> Tensor:
        """Estimated largest error (J,) of P of new rows, compared with the optimum.

        A step changes P by at most a quarter of its change of the logits, and one row in a thousand
        differs by four standard deviations: together the root mean square. With many classes it is
        less: P_k changes by P_k (1 - P_k) times the difference between the change of logit k and a
        mean of the others', at most twice the largest root mean square of a class (see
        ``PER_CLASS``). Steps that shrink by a rate q sum to the next one times 1 / (1 - q); q also
        shows if the model of the Hessian overestimates the curvature, which makes steps too short.
        Without penalty there may be no optimum: then logits count by p(1 - p).
        """
        first, last = self.sizes[0], self.sizes[-1]
        steps = len(self.sizes) - 1
        rate = (last / first.clamp(min=1e-300)) ** (1 / steps) if steps else torch.ones_like(last)
        objective = self.objective
        each = objective.design.logit_change(objective.seen(self.ahead))
        moved = torch.minimum(each.square().sum(1).sqrt(), PER_CLASS * each.amax(1))
        error = SAFETY * moved / (1 - rate.clamp(max=SLOWEST))
        decrement = (-_dot(self.point.grad, self.ahead)).clamp(min=0).sqrt()
        return torch.where(objective.l2 > 0, error, decrement)

    def state(self, tol: float, *, last: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Masks (J,) of fits that end now, and of those that have converged; errors of P (J,)."""
        peak, stuck = self.point.peak, self.idle >= self.patience
        if not (last or ((peak <= tol) | stuck).any()):
            return stuck, stuck, peak
        error = self.error()
        small = (peak <= tol) & (error <= 100 * tol)
        return small | stuck | last, small | (stuck & (error <= TOLERATED)), error

    def advance(self) -> None:
        """Take one step, or shorten the last one if it made no progress."""
        point, self.since, self.passes = self.point, self.since + 1, self.passes + 1
        # Of many classes the mean curvature and its eigenvectors cost more than a pass.
        self.measured = len(point.theta[0]) < MANY or self.passes.bit_count() == 1
        self.direction = torch.where(self.fresh[:, None, None], self.ahead, self.direction)
        self.step = torch.where(self.fresh, 1.0, self.step)
        trial = self.objective(
            point.theta + self.step[:, None, None] * self.direction,
            None if self.measured else point.curvature,
        )
        before, after = _dot(point.grad, self.direction), _dot(trial.grad, self.direction)
        rounding = self.eps * point.loss.abs()
        fell = trial.loss <= point.loss + DECREASE * self.step * before + rounding
        # The loss is convex: a slope that still points down proves more than the loss itself,
        # unless rounding affects both.
        down = (after <= 0) & (trial.loss <= point.loss + 100 * rounding)
        self.fresh = down | (fell & (after <= SLOPE * before.abs()))
        shrink = torch.nan_to_num(before.abs() / (before.abs() + after), nan=0.1).clamp(0.1, 0.7)
        self.step = self.step * shrink
        self.memory.add(trial.theta - point.theta, trial.grad - point.grad, self.fresh)
        self.point = point.moved(trial, self.fresh)
        self._count_idle()
        self.aim()

    def _count_idle(self) -> None:
        """Count the passes since each fit last made progress."""
        loss, peak = self.point.loss, self.point.peak
        better = (loss < self.loss - self.eps * self.loss.abs()) | (peak < 0.9 * self.peak)
        self.loss, self.peak = torch.minimum(self.loss, loss), torch.minimum(self.peak, peak)
        self.idle = torch.where(better, 0.0, self.idle + 1)


def minimise(
    objective: Objective, *, tol: float, max_iter: int, start: Tensor | None = None
) -> Solution:
    """Minimise every fit until it has converged or is stuck, in at most ``max_iter`` passes.

    A fit has converged if no entry of its gradient exceeds ``tol`` and probabilities of new rows
    are within 100 ``tol`` of the optimum's (:meth:`_Run.error`); or if rounding allows no further
    progress and they are within ``TOLERATED``. It begins at ``start`` (J, K, width + 1).
    """
    run = _Run(objective, objective.start() if start is None else start)
    result = Solution(
        theta=run.point.theta.clone(),
        n_iter=torch.zeros_like(run.number),
        peak=run.point.peak.clone(),
        error=torch.zeros_like(run.point.peak),
        converged=torch.zeros_like(run.fresh),
    )
    for passes in range(1, max_iter + 1):
        done, converged, error = run.state(tol, last=passes == max_iter)
        if done.any():
            ended = run.number[done]
            result.theta[ended], result.peak[ended] = run.point.theta[done], run.point.peak[done]
            result.n_iter[ended], result.converged[ended] = passes, converged[done]
            result.error[ended] = error[done]
            if done.all():
                break
            run.pick(~done)
        run.advance()
    return result


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products (J,) of a and b (J, K, w), without their elementwise product in memory."""
    return torch.bmm(a.flatten(1)[:, None], b.flatten(1)[:, :, None])[:, 0, 0]
