"""States as the logistic solver uses them: standardised rows, and their second moments."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from probekit.errors import ProbeError
from probekit.states import COPY_BYTES, as_states, constant_columns, finite_rows, not_finite

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["Design", "StandardRows"]

CHUNK_BYTES = 1 << 23  # states and their logits stay in the processor's cache between two products
CHUNK_BYTES_CUDA = 1 << 28
PILOT_ROWS = 31

WHOLE = 1024  # widths up to this are decomposed whole, wider ones sketched
IMAGE = 4096  # rows whose inner products are factorised if that halves every pass
SKETCH = 256  # directions of a sketch
SWEEPS = 2
GRAM_ROWS = 64  # per direction: a preconditioner needs only a sample of the rows
JITTER = 1e-14
VANISHED = 100  # times the jitter: such a pivot is rounding


class StandardRows:
    """X (n, d) with each column centred and divided by its scale, read in chunks of rows.

    Parameters
    ----------
    X
        Anything with ``shape`` that returns rows for a slice: an array, a memory map, an HDF5 data
        set, a tensor of any float type. Copied if it fits, else read again in every pass.
    weight
        Row weights (n,) that sum to 1.
    standardize
        Divide every column by its spread, and columns that are constant up to rounding
        (:func:`probekit.states.constant_columns`) by infinity: their coefficients are 0. Otherwise
        divide all columns by one common scale, so that tolerances mean the same for states of any
        size.
    centre
        False: subtract no mean, and measure spread from 0 (root mean square), for fits without a
        bias, which could not undo a shift.

    Raises
    ------
    ProbeError
        If X has NaN or infinity, or numbers whose squares overflow.
    """

    def __init__(
        self,
        X: Any,
        weight: NDArray[np.float64],
        *,
        standardize: bool,
        dtype: torch.dtype,
        device: torch.device,
        centre: bool = True,
    ) -> None:
        self.X, self.dtype, self.device = X, dtype, device
        self.n, self.d = X.shape
        self.step = chunk_rows(self.d, dtype, device)
        pilot = self._pilot()
        self.pilot = pilot if centre else np.zeros_like(pilot)
        self.offset: Tensor | None = None
        self.data = self._copy() if self._fits() else None
        shares = torch.as_tensor(weight, dtype=dtype, device=device)
        mean, variance = self._moments(shares, centre=centre)
        self.common_scale = 1.0
        if standardize:
            scale = variance.sqrt()
            scale[self._constant(mean, scale)] = torch.inf  # out of the fit
        else:
            rms = float(variance.mean().sqrt())
            self.common_scale = rms if rms > 0 else 1.0
            scale = torch.full_like(variance, self.common_scale)
        self.offset, self.inverse = mean.to(dtype), (1 / scale).to(dtype)
        if self.data is not None:
            self.data.sub_(self.offset).mul_(self.inverse)

    def chunks(self, step: int | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Yield row slices and their standardised states (b, d), in order."""
        step = step or self.step
        for start in range(0, self.n, step):
            rows = slice(start, min(self.n, start + step))
            yield rows, self._read(rows) if self.data is None else self.data[rows]

    def to_states(self, coef: Tensor, intercept: Tensor) -> tuple[Tensor, Tensor]:
        """Coef (..., d) and intercept (...) in the space of X, both float64."""
        assert self.offset is not None
        coef = coef.double() * self.inverse.double()
        centre = torch.as_tensor(self.pilot, dtype=torch.float64, device=self.device)
        return coef, intercept.double() - coef @ (centre + self.offset.double())

    def from_states(self, coef: Tensor, intercept: Tensor) -> tuple[Tensor, Tensor]:
        """Undo ``to_states``."""
        assert self.offset is not None
        centre = torch.as_tensor(self.pilot, dtype=torch.float64, device=self.device)
        scale = torch.where(self.inverse > 0, 1 / self.inverse.double(), 0.0)
        return coef * scale, intercept + coef @ (centre + self.offset.double())

    def _fits(self) -> bool:
        size = self.n * self.d * self.dtype.itemsize
        if self.device.type == "cuda":
            return bool(size <= torch.cuda.mem_get_info(self.device)[0] // 2)
        return bool(size <= COPY_BYTES)

    def _copy(self) -> Tensor:
        data = torch.empty(self.n, self.d, dtype=self.dtype, device=self.device)
        for start in range(0, self.n, self.step):
            rows = slice(start, min(self.n, start + self.step))
            if self.device.type == "cpu":
                self._less_pilot(rows, out=data[rows].numpy())
            else:
                data[rows] = self._read(rows)
        return data

    def _read(self, rows: slice) -> Tensor:
        """Rows minus the pilot, and standardised once mean and scale are known."""
        x = torch.from_numpy(self._less_pilot(rows)).to(self.device, self.dtype)
        return x if self.offset is None else x.sub_(self.offset).mul_(self.inverse)

    def _less_pilot(self, rows: slice, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Rows minus the pilot, in a new array or, cast to its type, in ``out``."""
        # In the wider of both precisions: otherwise a large offset would cost digits.
        wide = torch.promote_types(self.dtype, torch.as_tensor(self.pilot).dtype)
        name = str(wide).removeprefix("torch.")
        with np.errstate(over="ignore"):  # _moments raises a ProbeError for it
            block: NDArray[Any] = np.subtract(
                as_states(self.X[rows]), self.pilot, out=out, dtype=name, casting="same_kind"
            )
        return block

    def _pilot(self) -> NDArray[Any]:
        """Median of a few rows (d,): a value of each column, so that constant columns become 0."""
        count = min(self.n, PILOT_ROWS)
        count -= 1 - count % 2
        places = np.linspace(0, self.n - 1, count).astype(int)
        sample = np.concatenate([as_states(self.X[i : i + 1]) for i in places.tolist()])
        if not np.isfinite(sample).all():
            raise self._not_finite()
        pilot: NDArray[Any] = np.sort(sample, axis=0)[count // 2]
        return pilot

    def _moments(self, weight: Tensor, *, centre: bool) -> tuple[Tensor, Tensor]:
        """Weighted mean (d,) minus the pilot, and variance (d,); or 0 and mean square; float64."""
        first = torch.zeros(self.d, dtype=torch.float64, device=self.device)
        second = torch.zeros_like(first)
        for rows, x in self.chunks():
            first += weight[rows] @ x
            second += weight[rows] @ x.square()
        if not (torch.isfinite(first) & torch.isfinite(second)).all():
            raise self._not_finite()
        if not centre:
            return torch.zeros_like(first), second
        return first, (second - first.square()).clamp_(min=0)

    def _constant(self, mean: Tensor, spread: Tensor) -> Tensor:
        """Mask (d,) of columns that are constant up to rounding; ``mean`` is minus the pilot."""
        constant = constant_columns(
            mean.cpu().numpy() + self.pilot, spread.cpu().numpy(), self.pilot.dtype
        )
        return torch.from_numpy(constant).to(spread.device)

    def _not_finite(self) -> ProbeError:
        bad: list[int] = []
        for start in range(0, self.n, self.step):
            block = as_states(self.X[start : start + self.step])
            bad += (np.flatnonzero(~finite_rows(block)) + start).tolist()
        if bad:
            return not_finite(bad, self.n)
        return ProbeError(
            "X has numbers whose squares overflow "
            f"{str(self.dtype).removeprefix('torch.')}; divide X by a constant first."
        )


def chunk_rows(width: int, dtype: torch.dtype, device: torch.device) -> int:
    """Number of rows of ``width`` numbers in one chunk."""
    budget = CHUNK_BYTES_CUDA if device.type == "cuda" else CHUNK_BYTES
    return max(64, budget // (width * dtype.itemsize))


class Design:
    """Rows x of the logits x @ w for weights w, and their second moments.

    x (n, width) are the standardised states. If these have more features than rows (twice as many
    for more than a few rows), x is an isometric image instead: the Cholesky factor (n, rank) of the
    rows' inner products. ``basis`` (width, r) are orthonormal directions in which the second
    moments are nearly diagonal, with values ``spread`` (r,); in all other directions they are about
    ``rest``. With ``turn``, if the rows are in memory and the basis is complete, x are the
    coordinates in that basis (``turned``): steps then need no product with it, which with many
    classes costs as much as a pass over a few thousand rows.
    """

    def __init__(
        self, rows: StandardRows, weight: NDArray[np.float64], *, turn: bool = False
    ) -> None:
        self.rows, self.n, self.dtype, self.device = rows, rows.n, rows.dtype, rows.device
        self.image, self.width = None, rows.d
        if rows.n < rows.d and (rows.n <= WHOLE or self._halves_passes()):
            self.factor, self.independent = _factor(rows)
            self.image = self.factor.to(rows.dtype)
            self.width = len(self.independent)
        shares = torch.as_tensor(weight, dtype=self.dtype).to(self.device)
        decompose = self._whole if self.width <= WHOLE else self._sketch
        spread, self.basis, self.rest = decompose(shares)
        # Smaller values of the decomposition are rounding; this also avoids 1 / 0 with l2 = 0.
        floor = 10 * torch.finfo(self.dtype).eps * spread[-1].clamp(min=1e-30)
        self.spread = torch.maximum(spread, floor).double()
        self.variance, self.other_variance = self._new_rows()
        self.turned = turn and self.width <= WHOLE and self._turn()

    def _turn(self) -> bool:
        """Replace x by its coordinates in the basis; False if the rows are read in every pass."""
        x = self.rows.data
        if self.image is None and x is None:
            return False
        # In double precision, so that narrow directions keep their digits; orthonormal to these.
        self.exact_basis = torch.linalg.qr(self.basis.double())[0]
        if self.image is not None:
            self.image = (self.factor @ self.exact_basis).to(self.dtype)
            return True
        assert x is not None
        for start in range(0, self.n, self.rows.step):
            rows = slice(start, start + self.rows.step)
            x[rows] = (x[rows].double() @ self.exact_basis).to(self.dtype)
        return True

    def logit_change(self, theta: Tensor) -> Tensor:
        """Root mean square changes (J, K) of a new row's logits by theta (J, K, width + 1)."""
        weights, bias = theta[..., :-1], theta[..., -1]
        if not self.turned:
            weights = weights.to(self.basis.dtype) @ self.basis
        inside = weights.double().square()
        total = inside @ self.variance + bias.square()
        if self.basis.shape[1] < self.width:
            outside = theta[..., :-1].square().sum(2) - inside.sum(2)
            total += self.other_variance * outside.clamp(min=0)
        return total.sqrt()

    def _new_rows(self) -> tuple[Tensor, float]:
        """Variance of new rows in the directions of ``basis`` (r,), and in all others.

        In the narrowest directions training rows vary less than new ones, the more so the more
        features there are. With g = features / rows it is (1 - √g)² of the truth at worst, for
        equal variances (Marchenko & Pastur 1967); a share g of the mean variance is enough.
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
        """Whether an image of more than a few rows pays: its factor needs n² d multiplications."""
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
        if self.turned:
            weights = weights @ self.exact_basis.T
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
        weights = coef if self.image is None else self._image_weights(coef)
        return weights @ self.exact_basis if self.turned else weights, intercept

    def _image_weights(self, coef: Tensor) -> Tensor:
        # x = L Q' w for the weights w of the states; as many independent rows as L has columns do.
        product = torch.cat([x.double() @ coef.T for _, x in self.rows.chunks()])
        triangle = self.factor[self.independent]
        weights: Tensor = torch.linalg.solve_triangular(
            triangle, product[self.independent], upper=False
        ).T
        return weights

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
        """Chunks of every ``stride``-th row, weighted for the rows left out."""
        stride = max(1, self.n // size)
        for rows, x in self.chunks(1):
            yield x[::stride], weight[rows][::stride] * stride


def _factor(rows: StandardRows) -> tuple[Tensor, Tensor]:
    """Cholesky factor (n, rank) of the rows' inner products, and its linearly independent rows.

    In double precision, because single loses digits that weakly penalised fits need. A row that is
    a combination of earlier ones (duplicates; the last of centred rows) has pivot 0 and no column.
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
    """Add a symmetric product to the lower triangle; factorisations read no other entries."""
    step = max(256, len(total) // 8)
    for start in range(0, len(total), step):
        total[start:, start : start + step].addmm_(left[start:], right[:, start : start + step])
