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
