"""States as the logistic solver reads them: centred, scaled, in chunks, with their directions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from probekit.errors import ProbeError, first_few

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["Design", "StandardRows"]

CHUNK_BYTES = 1 << 23  # states and their logits stay in the processor's cache between two products
CHUNK_BYTES_CUDA = 1 << 28
COPY_BYTES = 1 << 30  # larger states are read again in every pass
PILOT_ROWS = 31
GRAM_ROWS = 64  # per feature: the Gram matrix only preconditions, so a sample will do
JITTER = 1e-14
VANISHED = 100  # times the jitter: such a pivot is rounding


class StandardRows:
    """X (n, d) with each column centred and divided by its scale, read in chunks of rows.

    Parameters
    ----------
    X
        Anything with ``shape`` that gives rows for a slice: an array, a memory map, an HDF5 data
        set, a tensor of any float type. What fits is copied; more is read again in every pass.
    weight
        Row weights (n,) that sum to 1.
    standardize
        Divide every column by its own spread (by 1 where that is 0); otherwise all columns by one
        common scale, which only makes tolerances mean the same for states of any size.

    Raises
    ------
    ProbeError
        NaN, infinity, or numbers whose squares overflow.
    """

    def __init__(
        self,
        X: Any,
        weight: NDArray[np.float64],
        *,
        standardize: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.X, self.dtype, self.device = X, dtype, device
        self.n, self.d = X.shape
        self.step = _chunk_rows(self.d, dtype, device)
        self.pilot = self._pilot()
        self.offset: Tensor | None = None
        self.data = self._copy() if self._fits() else None
        mean, variance = self._moments(torch.as_tensor(weight, dtype=dtype, device=device))
        self.common_scale = 1.0
        if standardize:
            scale = torch.where(variance > 0, variance.sqrt(), 1.0)
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
        """Fold centre and scale into coef (..., d) and intercept (...), both float64."""
        assert self.offset is not None
        coef = coef.double() * self.inverse.double()
        centre = torch.as_tensor(self.pilot, dtype=torch.float64, device=self.device)
        return coef, intercept.double() - coef @ (centre + self.offset.double())

    def _fits(self) -> bool:
        size = self.n * self.d * self.dtype.itemsize
        if self.device.type == "cuda":
            return bool(size <= torch.cuda.mem_get_info(self.device)[0] // 2)
        return bool(size <= COPY_BYTES)

    def _copy(self) -> Tensor:
        data = torch.empty(self.n, self.d, dtype=self.dtype, device=self.device)
        for start in range(0, self.n, self.step):
            rows = slice(start, min(self.n, start + self.step))
            data[rows] = self._read(rows)
        return data

    def _read(self, rows: slice) -> Tensor:
        """Rows minus the pilot, and standardised once mean and scale are known."""
        # In the wider of both precisions: a large offset would cost digits otherwise.
        wide = torch.promote_types(self.dtype, torch.as_tensor(self.pilot).dtype)
        block = torch.from_numpy(
            np.subtract(_numbers(self.X[rows]), self.pilot, dtype=str(wide).removeprefix("torch."))
        )
        x = block.to(self.device, self.dtype)
        return x if self.offset is None else x.sub_(self.offset).mul_(self.inverse)

    def _pilot(self) -> NDArray[Any]:
        """Median of a few rows (d,): a value of each column, so a constant column becomes 0."""
        count = min(self.n, PILOT_ROWS)
        count -= 1 - count % 2
        places = np.linspace(0, self.n - 1, count).astype(int)
        sample = np.concatenate([_numbers(self.X[i : i + 1]) for i in places.tolist()])
        if not np.isfinite(sample).all():
            raise self._not_finite()
        pilot: NDArray[Any] = np.sort(sample, axis=0)[count // 2]
        return pilot

    def _moments(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted mean (d,), less the pilot, and weighted variance (d,), float64."""
        first = torch.zeros(self.d, dtype=torch.float64, device=self.device)
        second = torch.zeros_like(first)
        for rows, x in self.chunks():
            first += weight[rows] @ x
            second += weight[rows] @ x.square()
        if not (torch.isfinite(first) & torch.isfinite(second)).all():
            raise self._not_finite()
        return first, (second - first.square()).clamp_(min=0)

    def _not_finite(self) -> ProbeError:
        bad: list[int] = []
        for start in range(0, self.n, self.step):
            block = _numbers(self.X[start : start + self.step])
            bad += (np.flatnonzero(~np.isfinite(block).all(axis=1)) + start).tolist()
        if bad:
            return ProbeError(
                f"X contains NaN or inf in {len(bad)} of {self.n} rows (first: {first_few(bad)}); "
                "leave these rows out or extract them again in float32."
            )
        return ProbeError(
            "X holds numbers whose squares overflow "
            f"{str(self.dtype).removeprefix('torch.')}; divide X by a constant first."
        )


class Design:
    """Standardised rows and an orthonormal basis in which their second moments are diagonal.

    A point is a set of coordinates c (..., r). ``weights(c)`` are what ``chunks`` are multiplied
    with; the logits of a chunk x are ``x @ weights(c).T``. With more features than rows, x is the
    Cholesky factor of the rows' inner products, an isometric image of the rows (n, rank).
    """

    def __init__(self, rows: StandardRows, weight: NDArray[np.float64]) -> None:
        self.rows, self.n, self.dtype, self.device = rows, rows.n, rows.dtype, rows.device
        self.image, self.width = None, rows.d
        if rows.n < rows.d:
            self.factor, self.independent = _factor(rows)
            self.image = self.factor.to(rows.dtype)
            self.width = len(self.independent)
        moments = self._second_moments(torch.as_tensor(weight, dtype=self.dtype).to(self.device))
        spread, self.basis = torch.linalg.eigh(moments)
        # Below this the decomposition knows nothing; it also keeps l2 = 0 from dividing by 0.
        floor = 10 * torch.finfo(self.dtype).eps * spread[-1].clamp(min=1e-30)
        self.spread = torch.maximum(spread, floor).double()

    def chunks(self, columns: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield row slices and what the coordinates' weights are multiplied with (b, width)."""
        step = _chunk_rows(max(columns, self.width), self.dtype, self.device)
        if self.image is None:
            yield from self.rows.chunks(step)
            return
        for start in range(0, self.n, step):
            rows = slice(start, min(self.n, start + step))
            yield rows, self.image[rows]

    def weights(self, c: Tensor) -> Tensor:
        """Weights (m, width) of coordinates (m, r)."""
        weights: Tensor = c.to(self.dtype) @ self.basis.T
        return weights

    def coordinates(self, weights: Tensor) -> Tensor:
        """Coordinates (m, r), float64, of weights (m, width)."""
        c: Tensor = weights.to(self.dtype) @ self.basis
        return c.double()

    def to_states(self, c: Tensor, intercept: Tensor) -> tuple[Tensor, Tensor]:
        """Coef (m, d) and intercept (m,) in the space of X, float64."""
        weights = self.weights(c).double()
        if self.image is not None:
            # Rows X_i = L Q' with L triangular and Q orthonormal; the weights Q w are X_i' L⁻ᵀ w.
            triangle = self.factor[self.independent]
            dual = weights.new_zeros(self.n, len(c))
            dual[self.independent] = torch.linalg.solve_triangular(
                triangle.T, weights.T, upper=True
            )
            weights = weights.new_zeros(len(c), self.rows.d)
            for rows, x in self.rows.chunks():
                weights += dual[rows].T @ x.double()
        return self.rows.to_states(weights, intercept)

    def _second_moments(self, weight: Tensor) -> Tensor:
        stride = max(1, self.n // (GRAM_ROWS * self.width))
        total = torch.zeros(self.width, self.width, dtype=self.dtype, device=self.device)
        for rows, chunk in self.chunks(1):
            x, w = chunk[::stride], weight[rows][::stride]
            total.addmm_((x * (w * stride)[:, None]).T, x)
        return total


def _factor(rows: StandardRows) -> tuple[Tensor, Tensor]:
    """Cholesky factor (n, rank) of the rows' inner products, and the rows (rank,) it stands on.

    Double precision, because single loses what weakly penalised fits need. A row that is a
    combination of earlier ones (duplicates; the last of centred rows) has pivot 0: its column goes.
    """
    inner = torch.zeros(rows.n, rows.n, dtype=torch.float64, device=rows.device)
    data = rows.data if rows.data is not None else torch.cat([x for _, x in rows.chunks()])
    for start in range(0, rows.d, 1024):
        block = data[:, start : start + 1024].double()
        inner.addmm_(block, block.T)
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


def _chunk_rows(width: int, dtype: torch.dtype, device: torch.device) -> int:
    budget = CHUNK_BYTES_CUDA if device.type == "cuda" else CHUNK_BYTES
    return max(64, budget // (width * dtype.itemsize))


def _numbers(block: Any) -> NDArray[Any]:
    """Float32 or float64 rows of an array, data set or tensor."""
    if isinstance(block, torch.Tensor):
        wide = block.dtype in (torch.float64, torch.int32, torch.int64)
        block = block.detach().to("cpu", torch.float64 if wide else torch.float32).numpy()
    values = np.asarray(block)
    if values.dtype in (np.float32, np.float64):
        return values
    # Two-byte floats (bfloat16 too, whose kind is "V") are exact in float32.
    wide = values.dtype.kind in "biu" or values.dtype.itemsize > 2
    return values.astype(np.float64 if wide else np.float32)
