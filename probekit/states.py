"""States of any library as one array of numbers, and the checks that every caller needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from probekit.errors import StatesError, first_few

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "COPY_BYTES",
    "Streamed",
    "as_array",
    "as_rows",
    "as_states",
    "check_finite",
    "column_means",
    "constant_columns",
    "extremes",
    "finite_rows",
    "not_finite",
    "row_chunks",
]

CHUNK_BYTES = 1 << 25
COPY_BYTES = 1 << 30  # larger states that cannot be mapped are read again, not copied
LARGEST = 1e150
CONSTANT = 2  # units in the last place


class Streamed:
    """States (n, d) float32 of several files that are read when they are asked for.

    ``X[rows]`` reads a slice of rows, or rows by number; ``X[:, columns]`` is a view of a slice of
    columns. NumPy and other libraries read all of it.

    Parameters
    ----------
    reads : sequence of callables
        Each returns some rows (b, width) of a layer, for a slice or for row numbers (b,).
    widths : sequence of int
        Number of columns of each; they are side by side.
    rows : int or ndarray of shape (n,)
        Number of rows, or the numbers of those that are meant.

    Examples
    --------
    >>> import numpy as np
    >>> numbers = np.arange(12, dtype=np.float32).reshape(4, 3)
    >>> X = Streamed([numbers.__getitem__], [3], 4)
    >>> X.shape, X[:, 1:][1:3].tolist()
    ((4, 2), [[4.0, 5.0], [7.0, 8.0]])
    """

    dtype = np.dtype(np.float32)
    ndim = 2

    def __init__(
        self,
        reads: Sequence[Callable[[Any], NDArray[Any]]],
        widths: Sequence[int],
        rows: int | NDArray[np.int64],
    ) -> None:
        # A function, its columns that are meant, and where they stand here.
        self._pieces = [(read, slice(0, width)) for read, width in zip(reads, widths, strict=True)]
        self._rows = rows

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and of columns."""
        n = self._rows if isinstance(self._rows, int) else len(self._rows)
        return n, sum(part.stop - part.start for _, part in self._pieces)

    @property
    def size(self) -> int:
        """Number of numbers."""
        return self.shape[0] * self.shape[1]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, tuple):
            rows, columns = key
            whole = isinstance(rows, slice) and rows == slice(None)
            view = self._view(*columns.indices(self.shape[1])[:2])
            return view if whole else view[rows]
        rows = key if isinstance(self._rows, int) else self._rows[key]
        blocks = [read(rows)[:, part] for read, part in self._pieces]
        return blocks[0] if len(blocks) == 1 else np.hstack(blocks)

    def _view(self, start: int, stop: int) -> Streamed:
        view, first = Streamed([], [], self._rows), 0
        for read, part in self._pieces:
            width = part.stop - part.start
            a, b = max(start - first, 0), min(stop - first, width)
            if a < b:
                view._pieces.append((read, slice(part.start + a, part.start + b)))
            first += width
        return view

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        del copy
        X = np.empty(self.shape, self.dtype if dtype is None else dtype)
        for rows in row_chunks(len(self), 4 * self.shape[1]):
            X[rows] = self[rows]
        return X

    @cached_property
    def extremes(self) -> tuple[float, float]:
        """Smallest and largest number."""
        return _extremes(self)


def as_array(values: Any, *, name: str = "X") -> NDArray[Any]:
    """Return values of any library as a NumPy array, two-byte floats as float32.

    Takes torch tensors of any floating type, layout and device, with or without gradient;
    anything with ``__array__`` or ``__dlpack__``; data frames, masked arrays and lists. Missing
    numbers become NaN.

    Raises
    ------
    StatesError
        If they are a sparse array of SciPy, or not a rectangular array.
    """
    if hasattr(values, "tocsr") or (hasattr(values, "sparse") and hasattr(values, "to_coo")):
        raise StatesError(
            f"{name} is sparse ({type(values).__name__}), and dense data is required; give "
            f"{name}.toarray()."
        )
    try:
        array = _read(values)
    except (TypeError, ValueError, RuntimeError, NotImplementedError, BufferError) as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise StatesError(
            f"{name} ({type(values).__name__}) cannot be read as an array: {reason}."
        ) from None
    if isinstance(array, np.ma.MaskedArray):
        if array.dtype.kind in "biu":
            array = np.ma.asarray(array, dtype=np.float64)
        array = np.ma.filled(array, np.nan)
    if array.dtype == np.float16 or _is_small_float(array.dtype):
        array = array.astype(np.float32)
    return array


def _is_small_float(dtype: np.dtype[Any]) -> bool:
    """Whether these are bfloat16 or smaller floats of ml_dtypes, exact in float32; kind "V" too."""
    return dtype.kind == "V" and dtype.itemsize <= 2 and not issubclass(dtype.type, np.void)


def _is_tensor(values: Any) -> bool:
    return hasattr(values, "requires_grad") and hasattr(values, "detach")


def _read(values: Any) -> NDArray[Any]:
    if _is_tensor(values):
        return _tensor(values)
    if isinstance(values, list | tuple) and any(_is_tensor(value) for value in values):
        return np.stack([as_array(value) for value in values])
    if hasattr(values, "iloc") and hasattr(values, "columns"):
        return _frame(values)
    if not hasattr(values, "__array__") and hasattr(values, "__dlpack__"):
        import torch.utils.dlpack

        return _tensor(torch.utils.dlpack.from_dlpack(values))
    return np.asanyarray(values)


def _tensor(tensor: Any) -> NDArray[Any]:
    import torch

    tensor = tensor.detach()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.is_floating_point() and tensor.dtype != torch.float64:
        tensor = tensor.float()
    array: NDArray[Any] = tensor.resolve_conj().resolve_neg().cpu().numpy()
    return array


def _frame(frame: Any) -> NDArray[Any]:
    """Columns of pandas with missing numbers (its own types too) as NaN; others as they are."""
    kinds = {str(getattr(kind, "kind", "O")) for kind in np.atleast_1d(frame.dtypes).tolist()}
    if kinds <= set("biuf"):
        return np.asarray(frame.to_numpy(dtype=np.float64, na_value=np.nan))
    return np.asarray(frame)


def as_states(X: Any, *, name: str = "X") -> NDArray[Any]:
    """Return states of any library (:func:`as_array`) as float32 or float64, as precise as given.

    Two-byte floats become float32; whole numbers and booleans float64. float32 and float64 are not
    copied.

    Raises
    ------
    StatesError
        If they are complex numbers, strings, dates or objects, or not a rectangular array.
    """
    array = as_array(X, name=name)
    kind = array.dtype.kind
    if kind == "c":
        raise StatesError(
            f"Complex data not supported: {name} holds {array.dtype}; give real numbers, such as "
            f"{name}.real."
        )
    if kind == "O":
        array = _objects(array, name)
    elif kind not in "biuf":
        raise StatesError(
            f"{name} holds {array.dtype}, and a row of states must be numbers; convert it first."
        )
    # Also converts other byte orders and long doubles.
    small = array.dtype.kind == "f" and array.dtype.itemsize <= 4
    return np.asarray(array, dtype=np.float32 if small else np.float64)


def as_rows(X: Any) -> Any:
    """:func:`as_states`, except that states which are streamed stay so."""
    return X if isinstance(X, Streamed) else as_states(X)


def column_means(X: Any) -> NDArray[np.float64]:
    """Mean (d,) of every column of X (n, d), of the same bits for an array and streamed states."""
    total = np.zeros(X.shape[1])
    for rows in row_chunks(len(X), 4 * X.shape[1]):
        total += X[rows].sum(axis=0, dtype=np.float64)
    return total / len(X)


def extremes(X: Any) -> tuple[float, float]:
    """Smallest and largest number of X (n, d); NaN if any is, 0 if there is none."""
    return X.extremes if isinstance(X, Streamed) else _extremes(X)


def _extremes(X: Any) -> tuple[float, float]:
    if not X.size:
        return 0.0, 0.0
    chunks = row_chunks(len(X), 4 * int(np.prod(X.shape[1:])))
    both = [(block.min(), block.max()) for block in (X[rows] for rows in chunks)]
    low, high = np.array(both, dtype=np.float64).T
    return float(low.min()), float(high.max())


def _objects(array: NDArray[Any], name: str) -> NDArray[Any]:
    try:
        return array.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise StatesError(
            f"{name} holds Python objects, and each argument must be a number, or a string that "
            f"is a number: {error}."
        ) from None


def row_chunks(n: int, row_bytes: int, budget: int = CHUNK_BYTES) -> Iterator[slice]:
    """Yield slices of about ``budget`` bytes that make up ``n`` rows."""
    step = max(1, budget // max(1, row_bytes))
    for start in range(0, n, step):
        yield slice(start, min(n, start + step))


def finite_rows(X: Any) -> NDArray[np.bool_]:
    """Mask (n,) of the rows of X (n, d) without NaN and infinity."""
    finite = np.empty(len(X), dtype=bool)
    for rows in row_chunks(len(X), int(np.prod(X.shape[1:]))):
        finite[rows] = np.isfinite(X[rows]).reshape(rows.stop - rows.start, -1).all(axis=1)
    return finite


def check_finite(X: Any, ids: Sequence[str] | None = None, *, name: str = "X") -> None:
    """Check that states (n, d) are finite, and small enough to be squared.

    Raises
    ------
    StatesError
        If not; the message names the first rows.
    """
    # Minimum and maximum show NaN and infinity without a mask of the size of X.
    largest = float(np.abs(extremes(X)).max())
    if np.isfinite(largest):
        if largest > LARGEST:
            raise StatesError(
                f"{name} holds numbers up to {largest:.0e}, whose squares overflow float64; divide "
                "it by a constant first."
            )
        return
    bad = np.flatnonzero(~finite_rows(X)).tolist()
    raise not_finite(bad, len(X), ids, name=name)


def not_finite(
    bad: Sequence[int], n: int, ids: Sequence[str] | None = None, *, name: str = "X"
) -> StatesError:
    """Error for the rows ``bad`` of n that hold NaN or infinity."""
    shown: Iterable[object] = bad if ids is None else (ids[i] for i in bad)
    return StatesError(
        f"{name} contains NaN or inf in {len(bad)} of {n} rows (first: {first_few(shown)}); "
        "leave these rows out, or extract them again with --dtype float32."
    )


def constant_columns(
    mean: NDArray[np.float64], spread: NDArray[np.float64], dtype: Any
) -> NDArray[np.bool_]:
    """Mask (d,) of the columns that are constant up to rounding.

    Their spread (standard deviation, or root mean square if nothing is centred) is at most
    2 ε |mean|, ε the unit in the last place of the states' own type, or 2 · 2⁻²³ of the largest
    column's spread: states are sums over all columns, in float32 at best, which leave that much
    noise in a column without information (docs/methods/states.md).
    """
    own = np.finfo(np.float64 if np.dtype(dtype) == np.float64 else np.float32).eps
    largest = np.finfo(np.float32).eps * spread.max(initial=0.0)
    return np.asarray(spread <= CONSTANT * np.maximum(own * np.abs(mean), largest))
