"""States as the logistic solver reads them: centred (or not), scaled, in chunks of rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from probekit.errors import ProbeError
from probekit.states import as_states, constant_columns, finite_rows, not_finite

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["StandardRows", "chunk_rows"]

CHUNK_BYTES = 1 << 23  # states and their logits stay in the processor's cache between two products
CHUNK_BYTES_CUDA = 1 << 28
COPY_BYTES = 1 << 30  # larger states are read again in every pass
PILOT_ROWS = 31


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
        Divide every column by its own spread, and one that is constant up to rounding
        (:func:`probekit.states.constant_columns`) by infinity: its coefficient is 0. Otherwise all
        columns by one common scale, which only makes tolerances mean the same for states of any
        size.
    centre
        False: take no mean away, and measure spread from 0 (root mean square). For fits without a
        bias, which could not undo a shift.

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
        """Fold centre and scale into coef (..., d) and intercept (...), both float64."""
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
        # In the wider of both precisions: a large offset would cost digits otherwise.
        wide = torch.promote_types(self.dtype, torch.as_tensor(self.pilot).dtype)
        name = str(wide).removeprefix("torch.")
        with np.errstate(over="ignore"):  # _moments tells of it in a sentence
            block: NDArray[Any] = np.subtract(
                as_states(self.X[rows]), self.pilot, out=out, dtype=name, casting="same_kind"
            )
        return block

    def _pilot(self) -> NDArray[Any]:
        """Median of a few rows (d,): a value of each column, so a constant column becomes 0."""
        count = min(self.n, PILOT_ROWS)
        count -= 1 - count % 2
        places = np.linspace(0, self.n - 1, count).astype(int)
        sample = np.concatenate([as_states(self.X[i : i + 1]) for i in places.tolist()])
        if not np.isfinite(sample).all():
            raise self._not_finite()
        pilot: NDArray[Any] = np.sort(sample, axis=0)[count // 2]
        return pilot

    def _moments(self, weight: Tensor, *, centre: bool) -> tuple[Tensor, Tensor]:
        """Weighted mean (d,), less the pilot, and variance (d,); or 0 and mean square; float64."""
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
        """Which columns (d,) are constant up to rounding; ``mean`` is less the pilot."""
        found = constant_columns(
            mean.cpu().numpy() + self.pilot, spread.cpu().numpy(), self.pilot.dtype
        )
        return torch.from_numpy(found).to(spread.device)

    def _not_finite(self) -> ProbeError:
        bad: list[int] = []
        for start in range(0, self.n, self.step):
            block = as_states(self.X[start : start + self.step])
            bad += (np.flatnonzero(~finite_rows(block)) + start).tolist()
        if bad:
            return not_finite(bad, self.n)
        return ProbeError(
            "X holds numbers whose squares overflow "
            f"{str(self.dtype).removeprefix('torch.')}; divide X by a constant first."
        )


def chunk_rows(width: int, dtype: torch.dtype, device: torch.device) -> int:
    """Rows of ``width`` numbers that are worked on at once."""
    budget = CHUNK_BYTES_CUDA if device.type == "cuda" else CHUNK_BYTES
    return max(64, budget // (width * dtype.itemsize))
