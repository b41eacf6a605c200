"""What the logistic solver multiplies with, and the directions in which it varies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from probekit.probes.logistic_rows import StandardRows, chunk_rows

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["Design"]

WHOLE = 1024  # widths up to this are decomposed whole, wider ones sketched
IMAGE = 4096  # rows whose inner products are factorised where that halves every pass
SKETCH = 256  # directions of a sketch
SWEEPS = 2
GRAM_ROWS = 64  # per direction: it only preconditions, so a sample of the rows will do
JITTER = 1e-14
VANISHED = 100  # times the jitter: such a pivot is rounding


class Design:
    """Rows x to multiply weights w with, logits being x @ w, and their second moments.

    x (n, width) are the standardised states, or where these have more features than rows (twice as
    many, if the rows are not few), an isometric image: the Cholesky factor of the rows' inner
    products (n, rank).
    ``basis`` (width, r) holds orthonormal directions in which the second moments are about
    diagonal, ``spread`` (r,), and about ``rest`` in all directions that it leaves out.
    """

    def __init__(self, rows: StandardRows, weight: NDArray[np.float64]) -> None:
        self.rows, self.n, self.dtype, self.device = rows, rows.n, rows.dtype, rows.device
        self.image, self.width = None, rows.d
        if rows.n < rows.d and (rows.n <= WHOLE or self._halves_passes()):
            self.factor, self.independent = _factor(rows)
            self.image = self.factor.to(rows.dtype)
            self.width = len(self.independent)
        shares = torch.as_tensor(weight, dtype=self.dtype).to(self.device)
        decompose = self._whole if self.width <= WHOLE else self._sketch
        spread, self.basis, self.rest = decompose(shares)
        # Below this the decomposition knows nothing; it also keeps l2 = 0 from dividing by 0.
        floor = 10 * torch.finfo(self.dtype).eps * spread[-1].clamp(min=1e-30)
        self.spread = torch.maximum(spread, floor).double()
        self.variance, self.other_variance = self._new_rows()

    def logit_change(self, theta: Tensor) -> Tensor:
        """Root mean square (J,) of what theta (J, K, width + 1) adds to a new row's logits."""
        weights, bias = theta[..., :-1], theta[..., -1]
        inside = (weights.to(self.basis.dtype) @ self.basis).double().square()
        total = (inside @ self.variance).sum(1) + bias.square().sum(1)
        if self.basis.shape[1] < self.width:
            outside = weights.square().sum((1, 2)) - inside.sum((1, 2))
            total += self.other_variance * outside.clamp(min=0)
        return total.sqrt()

    def _new_rows(self) -> tuple[Tensor, float]:
        """Variance of new rows in the directions of ``basis`` (r,), and in all others.

        The rows at hand vary less than new ones do where they are narrowest, the more so the
        more features there are. With g = features / rows it is (1 - √g)² of the truth at worst,
        for equal variances (Marchenko & Pastur 1967); of the mean variance, a share g is enough.
        """
        ratio = self.rows.d / self.n
        others = max(min(self.n - 1, self.width) - len(self.spread), 0)
        total = float(self.spread.sum()) + self.rest * others
        floor = min(ratio, 1.0) * total / self.rows.d
        limit = max(1 - ratio**0.5, 0.0) ** 2
        spread = torch.cat([self.spread, self.spread.new_tensor([self.rest])])
        if limit > 0:
            variance = torch.maximum(spread, (spread / limit).clamp(max=floor))
        else:
            variance = spread.clamp(min=floor)
        return variance[:-1], float(variance[-1])

    def _halves_passes(self) -> bool:
        """Whether an image of more rows than a few pays: its factor takes n² d multiplications."""
        rows = self.rows
        return 2 * rows.n <= rows.d and rows.n <= IMAGE and rows.data is not None

    def chunks(self, columns: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield row slices and their x (b, width), small enough for products with ``columns``."""
        step = chunk_rows(max(columns, self.width), self.dtype, self.device)
        if self.image is None:
            yield from self.rows.chunks(step)
            return
        for start in range(0, self.n, step):
            rows = slice(start, min(self.n, start + step))
            yield rows, self.image[rows]

    def to_states(self, weights: Tensor, intercept: Tensor) -> tuple[Tensor, Tensor]:
        """Coef (m, d) and intercept (m,) in the space of X of weights (m, width), float64."""
        weights = weights.double()
        if self.image is not None:
            # Rows X_i = L Q' with L triangular and Q orthonormal; the weights Q w are X_i' L⁻ᵀ w.
            triangle = self.factor[self.independent]
            dual = weights.new_zeros(self.n, len(weights))
            dual[self.independent] = torch.linalg.solve_triangular(
                triangle.T, weights.T, upper=True
            )
            weights = weights.new_zeros(len(weights), self.rows.d)
            for rows, x in self.rows.chunks():
                weights += dual[rows].T @ x.double()
        return self.rows.to_states(weights, intercept)

    def from_states(self, coef: Tensor, intercept: Tensor) -> tuple[Tensor, Tensor]:
        """Undo ``to_states``: weights (m, width) and intercept (m,), float64."""
        coef, intercept = self.rows.from_states(coef, intercept)
        if self.image is None:
            return coef, intercept
        # x = L Q' w for the weights w of the states, of which rows as many as L is wide suffice.
        product = torch.cat([x.double() @ coef.T for _, x in self.rows.chunks()])
        triangle = self.factor[self.independent]
        return torch.linalg.solve_triangular(
            triangle, product[self.independent], upper=False
        ).T, intercept

    def _whole(self, weight: Tensor) -> tuple[Tensor, Tensor, float]:
        """All directions, by an eigendecomposition."""
        total = torch.zeros(self.width, self.width, dtype=self.dtype, device=self.device)
        for x, w in self._sample(weight, GRAM_ROWS * self.width):
            _add_lower(total, (x * w[:, None]).T, x)
        return *torch.linalg.eigh(total), 0.0

    def _sketch(self, weight: Tensor) -> tuple[Tensor, Tensor, float]:
        """The widest directions, by subspace iteration from random ones [1]_.

        .. [1] Halko, Martinsson & Tropp (2011), https://arxiv.org/abs/0909.4061
        """
        rank, size = min(SKETCH, self.n, self.width), GRAM_ROWS * SKETCH
        generator = torch.Generator().manual_seed(0)
        basis = torch.randn(self.width, rank, generator=generator, dtype=self.dtype)
        basis = basis.to(self.device)
        for _ in range(SWEEPS):
            total = torch.zeros_like(basis)
            for x, w in self._sample(weight, size):
                total += x.T @ ((x @ basis) * w[:, None])
            basis = torch.linalg.qr(total)[0]
        inner = torch.zeros(rank, rank, dtype=self.dtype, device=self.device)
        trace = torch.zeros((), dtype=self.dtype, device=self.device)
        for x, w in self._sample(weight, size):
            turned = x @ basis
            inner += (turned * w[:, None]).T @ turned
            trace += w @ x.square().sum(1)
        spread, turn = torch.linalg.eigh(inner)
        others = max(1, min(self.n - 1, self.width) - rank)
        return spread, basis @ turn, max(float(trace - spread.sum()) / others, 0.0)

    def _sample(self, weight: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Chunks of every so many rows, their weights standing for those left out."""
        stride = max(1, self.n // size)
        for rows, x in self.chunks(1):
            yield x[::stride], weight[rows][::stride] * stride


def _factor(rows: StandardRows) -> tuple[Tensor, Tensor]:
    """Cholesky factor (n, rank) of the rows' inner products, and the rows (rank,) it stands on.

    Double precision, because single loses what weakly penalised fits need. A row that is a
    combination of earlier ones (duplicates; the last of centred rows) has pivot 0: its column goes.
    """
    inner = torch.zeros(rows.n, rows.n, dtype=torch.float64, device=rows.device)
    data = rows.data if rows.data is not None else torch.cat([x for _, x in rows.chunks()])
    for start in range(0, rows.d, 1024):
        block = data[:, start : start + 1024].double()
        _add_lower(inner, block, block.T)
    diagonal = inner.diagonal()
    jitter = JITTER * float(diagonal.max().clamp(min=1e-30))
    diagonal.add_(jitter)
    factor, failed = torch.linalg.cholesky_ex(inner)
    while failed:
        diagonal.add_(9 * jitter)
        jitter *= 10
        factor, failed = torch.linalg.cholesky_ex(inner)
    pivot = factor.diagonal().square()
    kept = torch.nonzero((pivot > VANISHED * jitter) | (pivot == pivot.max()))[:, 0]
    return factor[:, kept], kept


def _add_lower(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add a symmetric product to the lower triangle, which is all that factorisations read."""
    step = max(256, len(total) // 8)
    for start in range(0, len(total), step):
        total[start:, start : start + step].addmm_(left[start:], right[:, start : start + step])
