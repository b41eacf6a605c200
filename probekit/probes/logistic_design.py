"""States as the logistic solver uses them: standardised rows, and their second moments."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import torch

from probekit import held
from probekit.errors import ProbeError
from probekit.held import Here, OnWorkers, Share
from probekit.states import COPY_BYTES, as_states, constant_columns, finite_rows, not_finite

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["Design", "Frame", "StandardRows", "device_of", "ready_rows"]

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


@dataclass(frozen=True)
class Frame:
    """What turns rows of X into those that fits read: all that a share of the rows needs."""

    key: str
    """Differs between designs."""
    dtype: torch.dtype
    device: str
    cell: int
    """Chunks of rows do not cross multiples of it, except on a GPU."""
    pilot: NDArray[Any]
    """(d,) that is subtracted first."""
    offset: NDArray[Any] | None = None
    """(d,) that is subtracted then."""
    inverse: NDArray[Any] | None = None
    """(d,) that the columns are multiplied with."""
    turn: NDArray[np.float64] | None = None
    """Basis (d, d) whose coordinates replace the columns."""


def ready_rows(share: Share, frame: Frame) -> ReadyRows:
    """The rows of a share as the frame wants them, kept for later calls."""
    rows: ReadyRows = share.keep("rows", frame.key, lambda: ReadyRows(share, frame))
    rows.advance(frame)
    return rows


class ReadyRows:
    """Rows of a share, first less the pilot, later standardised; in memory if they fit."""

    def __init__(self, share: Share, frame: Frame) -> None:
        self.device = device_of(frame.device)
        self._share, self._pilot, self._cell = share, frame.pilot, frame.cell
        self.n, self.d, self.dtype = len(share), share.X.shape[1], frame.dtype
        self.step = chunk_rows(self.d, self.dtype, self.device)
        self._offset: Tensor | None = None
        self._inverse: Tensor | None = None
        self._turn: Tensor | None = None
        self.image: Tensor | None = None
        self.data = self._copy() if self._fits() else None

    def advance(self, frame: Frame) -> None:
        """Standardise and turn the rows if the frame does, and that is not done."""
        if frame.offset is not None and self._offset is None:
            self._offset, self._inverse = self.tensor(frame.offset), self.tensor(frame.inverse)
            if self.data is not None:
                self.data.sub_(self._offset).mul_(self._inverse)
        if frame.turn is not None and self._turn is None:
            self._turn = self.tensor(frame.turn)
            if self.data is not None:
                for rows in self._slices(self.step):
                    self.data[rows] = self._turned(self.data[rows])

    def tensor(self, value: Any) -> Tensor:
        """An array or tensor on this device, not copied if it is here; it is not written to."""
        with warnings.catch_warnings():  # torch warns of arrays that only can be read
            warnings.simplefilter("ignore")
            return torch.as_tensor(value, device=self.device)

    def chunks(self, step: int | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Yield row slices and their states (b, d), in order."""
        for rows in self._slices(step or self.step):
            yield rows, self._read(rows) if self.data is None else self.data[rows]

    def passes(self, columns: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield row slices and their x (b, width), small enough for products with ``columns``."""
        width = self.d if self.image is None else self.image.shape[1]
        step = chunk_rows(max(columns, width), self.dtype, self.device)
        if self.image is None:
            yield from self.chunks(step)
            return
        for rows in self._slices(step):
            yield rows, self.image[rows]

    def _slices(self, step: int) -> Iterator[slice]:
        cell = self._cell if self.device.type == "cpu" else self.n
        for first in range(0, self.n, cell):
            stop = min(self.n, first + cell)
            for start in range(first, stop, step):
                yield slice(start, min(stop, start + step))

    def _fits(self) -> bool:
        size = self.n * self.d * self.dtype.itemsize
        if self.device.type == "cuda":
            return bool(size <= torch.cuda.mem_get_info(self.device)[0] // 2)
        return bool(size <= max(COPY_BYTES, self._share.room))

    def _copy(self) -> Tensor:
        data = torch.empty(self.n, self.d, dtype=self.dtype, device=self.device)
        for rows in self._slices(self.step):
            if self.device.type == "cpu":
                self._less_pilot(rows, out=data[rows].numpy())
            else:
                data[rows] = self._read(rows)
        return data

    def _read(self, rows: slice) -> Tensor:
        x = torch.from_numpy(self._less_pilot(rows)).to(self.device, self.dtype)
        if self._offset is not None and self._inverse is not None:
            x.sub_(self._offset).mul_(self._inverse)
        return x if self._turn is None else self._turned(x)

    def _turned(self, x: Tensor) -> Tensor:
        assert self._turn is not None
        return (x.double() @ self._turn).to(self.dtype)

    def _less_pilot(self, rows: slice, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Rows minus the pilot, in a new array or, cast to its type, in ``out``."""
        # In the wider of both precisions: otherwise a large offset would cost digits.
        wide = torch.promote_types(self.dtype, self.tensor(self._pilot).dtype)
        name = str(wide).removeprefix("torch.")
        with np.errstate(over="ignore"):  # StandardRows raises a ProbeError for it
            block: NDArray[Any] = np.subtract(
                as_states(self._share[rows]), self._pilot, out=out, dtype=name, casting="same_kind"
            )
        return block


class StandardRows:
    """X (n, d) with each column centred and divided by its scale, read in chunks of rows.

    Parameters
    ----------
    X
        Anything with ``shape`` that returns rows for a slice: an array, a memory map, an HDF5 data
        set, a tensor of any float type; or such rows in shares. Copied if it fits, else read again
        in every pass.
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
        self.held = X if isinstance(X, Here | OnWorkers) else Here(X)
        self.X, self.dtype, self.device = self.held.X, dtype, device
        self.n, self.d = self.X.shape
        self.step = chunk_rows(self.d, dtype, device)
        pilot = self._pilot()
        self.pilot = pilot if centre else np.zeros_like(pilot)
        there = str(device) if self.held.gpus is None else "auto" if self.held.gpus else "cpu"
        self._frame = Frame(uuid4().hex, dtype, there, held.CELL, self.pilot)
        self.weight = self.held.put(torch.as_tensor(weight, dtype=dtype, device=device))
        mean, variance = self._moments(centre=centre)
        self.common_scale = 1.0
        if standardize:
            scale = variance.sqrt()
            scale[self._constant(mean, scale)] = torch.inf  # out of the fit
        else:
            rms = float(variance.mean().sqrt())
            self.common_scale = rms if rms > 0 else 1.0
            scale = torch.full_like(variance, self.common_scale)
        self.offset, self.inverse = mean.to(dtype), (1 / scale).to(dtype)
        self._advance(offset=self.offset.cpu().numpy(), inverse=self.inverse.cpu().numpy())

    @property
    def here(self) -> ReadyRows | None:
        """The rows, unless the workers of a cluster have them."""
        return ready_rows(self.held.share, self._frame) if isinstance(self.held, Here) else None

    @property
    def data(self) -> Tensor | None:
        """The standardised states (n, d) if they are in this process's memory."""
        return None if self.here is None else self.here.data

    def turn(self, basis: NDArray[np.float64]) -> None:
        """Replace the rows by their coordinates in a basis (d, d)."""
        self._advance(turn=basis)

    def sum(self, work: Callable[..., Sequence[Any]], *common: Any) -> list[Tensor]:
        """Sums over the shares of the rows of the tensors ``work(share, frame, *common)``."""
        found = self.held.sum(work, self._sent, *common)
        return [torch.as_tensor(each, device=self.device) for each in found]

    def each(
        self, work: Callable[..., Sequence[Any]], *common: Any
    ) -> Iterator[tuple[slice, Sequence[Any]]]:
        """Yield the rows of every share and ``work(share, frame, *common)``."""
        return self.held.each(work, self._sent, *common)

    def chunks(self, step: int | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Yield row slices and their standardised states (b, d), in order, of rows here."""
        assert self.here is not None
        return self.here.chunks(step)

    def to_states(self, coef: Tensor, intercept: Tensor) -> tuple[Tensor, Tensor]:
        """Coef (..., d) and intercept (...) in the space of X, both float64."""
        coef = coef.double() * self.inverse.double()
        centre = torch.as_tensor(self.pilot, dtype=torch.float64, device=self.device)
        return coef, intercept.double() - coef @ (centre + self.offset.double())

    def from_states(self, coef: Tensor, intercept: Tensor) -> tuple[Tensor, Tensor]:
        """Undo ``to_states``."""
        centre = torch.as_tensor(self.pilot, dtype=torch.float64, device=self.device)
        scale = torch.where(self.inverse > 0, 1 / self.inverse.double(), 0.0)
        return coef * scale, intercept + coef @ (centre + self.offset.double())

    def _advance(self, **more: Any) -> None:
        self._frame = replace(self._frame, **more)
        self._sent = self.held.put(self._frame)

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

    def _moments(self, *, centre: bool) -> tuple[Tensor, Tensor]:
        """Weighted mean (d,) minus the pilot, and variance (d,); or 0 and mean square; float64."""
        self._advance()
        first, second = self.sum(_add_moments, self.weight)
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


def _add_moments(share: Share, frame: Frame, weight: Any) -> list[Tensor]:
    """Σ w x and Σ w x² (d,) of rows less the pilot, float64."""
    ready = ready_rows(share, frame)
    weight = ready.tensor(weight[share.rows])
    first = torch.zeros(ready.d, dtype=torch.float64, device=ready.device)
    second = torch.zeros_like(first)
    for rows, x in ready.chunks():
        first += weight[rows] @ x
        second += weight[rows] @ x.square()
    return [first, second]


def device_of(name: str) -> torch.device:
    """The device of a name; ``"auto"``: CUDA if available.

    Raises
    ------
    ProbeError
        If it cannot be used.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise ProbeError(f"device {name!r} cannot be used: {reason}") from None
    return device


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

    def __init__(self, rows: StandardRows, *, turn: bool = False) -> None:
        self.rows, self.dtype, self.device = rows, rows.dtype, rows.device
        self.n: int = rows.n
        self.width: int = rows.d
        self.factor: Tensor | None = None
        few = rows.here is not None and rows.n < rows.d
        if few and (rows.n <= WHOLE or self._halves_passes()):
            self.factor, self.independent = _factor(rows)
            self._image(self.factor)
            self.width = len(self.independent)
        decompose = self._whole if self.width <= WHOLE else self._sketch
        spread, self.basis, self.rest = decompose()
        # Smaller values of the decomposition are rounding; this also avoids 1 / 0 with l2 = 0.
        floor = 10 * torch.finfo(self.dtype).eps * spread[-1].clamp(min=1e-30)
        self.spread = torch.maximum(spread, floor).double()
        self.variance, self.other_variance = self._new_rows()
        self.turned = turn and self.width <= WHOLE and self._turn()

    def _image(self, factor: Tensor) -> None:
        assert self.rows.here is not None
        self.rows.here.image = factor.to(self.dtype)

    def _turn(self) -> bool:
        """Replace x by its coordinates in the basis; False if the rows are read in every pass."""
        if self.rows.here is None:  # as one machine would
            in_memory = self.n * self.width * self.dtype.itemsize <= COPY_BYTES
        else:
            in_memory = self.factor is not None or self.rows.data is not None
        if not in_memory:
            return False
        # In double precision, so that narrow directions keep their digits; orthonormal to these.
        self.exact_basis = torch.linalg.qr(self.basis.double())[0]
        if self.factor is not None:
            self._image(self.factor @ self.exact_basis)
        else:
            self.rows.turn(self.exact_basis.cpu().numpy())
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
        """Yield row slices and their x (b, width), as :meth:`ReadyRows.passes`, of rows here."""
        assert self.rows.here is not None
        return self.rows.here.passes(columns)

    def to_states(self, weights: Tensor, intercept: Tensor) -> tuple[Tensor, Tensor]:
        """Coef (m, d) and intercept (m,) in the space of X of weights (m, width), float64."""
        weights = weights.double()
        if self.turned:
            weights = weights @ self.exact_basis.T
        if self.factor is not None:
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
        weights = coef if self.factor is None else self._image_weights(coef)
        return weights @ self.exact_basis if self.turned else weights, intercept

    def _image_weights(self, coef: Tensor) -> Tensor:
        # x = L Q' w for the weights w of the states; as many independent rows as L has columns do.
        product = torch.cat([x.double() @ coef.T for _, x in self.rows.chunks()])
        assert self.factor is not None
        triangle = self.factor[self.independent]
        weights: Tensor = torch.linalg.solve_triangular(
            triangle, product[self.independent], upper=False
        ).T
        return weights

    def _whole(self) -> tuple[Tensor, Tensor, float]:
        """All directions, by an eigendecomposition."""
        stride = self._stride(GRAM_ROWS * self.width)
        (total,) = self.rows.sum(_add_gram, self.rows.weight, stride)
        return *torch.linalg.eigh(total.to(self.dtype)), 0.0

    def _sketch(self) -> tuple[Tensor, Tensor, float]:
        """The widest directions, by subspace iteration from random ones [1]_.

        .. [1] Halko, Martinsson & Tropp (2011), https://arxiv.org/abs/0909.4061
        """
        rank, stride = min(SKETCH, self.n, self.width), self._stride(GRAM_ROWS * SKETCH)
        generator = torch.Generator().manual_seed(0)
        basis = torch.randn(self.width, rank, generator=generator, dtype=self.dtype)
        basis = basis.to(self.device)
        for _ in range(SWEEPS):
            (total,) = self.rows.sum(_add_sketch, self.rows.weight, stride, basis)
            basis = torch.linalg.qr(total.to(self.dtype))[0]
        inner, trace = self.rows.sum(_add_inner, self.rows.weight, stride, basis)
        spread, turn = torch.linalg.eigh(inner.to(self.dtype))
        others = max(1, min(self.n - 1, self.width) - rank)
        return spread, basis @ turn, max(float(trace - spread.sum()) / others, 0.0)

    def _stride(self, size: int) -> int:
        """Rows are weighted for those left out if every ``stride``-th is a sample of this size."""
        return max(1, self.n // size)


def _sample(
    share: Share, frame: Frame, weight: Any, stride: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Chunks of every ``stride``-th row of a share, weighted for the rows left out."""
    ready = ready_rows(share, frame)
    weight = ready.tensor(weight[share.rows])
    for rows, x in ready.passes(1):
        yield x[::stride], weight[rows][::stride] * stride


# Sums over chunks are kept in float64, so that their order hardly matters.


def _add_gram(share: Share, frame: Frame, weight: Any, stride: int) -> list[Tensor]:
    """Second moments (width, width), lower triangle."""
    total: Tensor | None = None
    for x, w in _sample(share, frame, weight, stride):
        if total is None:
            total = x.new_zeros(x.shape[1], x.shape[1], dtype=torch.float64)
        _add_lower(total, (x * w[:, None]).T, x)
    assert total is not None
    return [total]


def _add_sketch(share: Share, frame: Frame, weight: Any, stride: int, basis: Any) -> list[Tensor]:
    """Second moments times the basis (width, rank)."""
    basis = ready_rows(share, frame).tensor(basis)
    total = torch.zeros_like(basis, dtype=torch.float64)
    for x, w in _sample(share, frame, weight, stride):
        total += x.T @ ((x @ basis) * w[:, None])
    return [total]


def _add_inner(share: Share, frame: Frame, weight: Any, stride: int, basis: Any) -> list[Tensor]:
    """Second moments within the basis (rank, rank), and their trace in all directions."""
    basis = ready_rows(share, frame).tensor(basis)
    inner = basis.new_zeros(basis.shape[1], basis.shape[1], dtype=torch.float64)
    trace = inner.new_zeros(())
    for x, w in _sample(share, frame, weight, stride):
        turned = x @ basis
        inner += (turned * w[:, None]).T @ turned
        trace += w @ x.square().sum(1)
    return [inner, trace]


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
        total[start:, start : start + step] += left[start:] @ right[:, start : start + step]
