"""States of any library as one array of numbers, and the checks that every caller needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from probekit.errors import StatesError, first_few

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "as_array",
    "as_states",
    "check_finite",
    "constant_columns",
    "finite_rows",
    "not_finite",
    "row_chunks",
]

CHUNK_BYTES = 1 << 25
LARGEST = 1e150
CONSTANT = 2  # units in the last place


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


def finite_rows(X: NDArray[Any]) -> NDArray[np.bool_]:
    """Mask (n,) of the rows of X (n, d) without NaN and infinity."""
    finite = np.empty(len(X), dtype=bool)
    for rows in row_chunks(len(X), int(np.prod(X.shape[1:]))):
        finite[rows] = np.isfinite(X[rows]).reshape(rows.stop - rows.start, -1).all(axis=1)
    return finite


def check_finite(X: NDArray[Any], ids: Sequence[str] | None = None, *, name: str = "X") -> None:
    """Check that states (n, d) are finite, and small enough to be squared.

    Raises
    ------
    StatesError
        If not; the message names the first rows.
    """
    # Minimum and maximum show NaN and infinity without a mask of the size of X.
    largest = max(abs(float(X.max())), abs(float(X.min()))) if X.size else 0.0
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
