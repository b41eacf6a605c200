"""States that were computed elsewhere, such as embeddings from an API, as an activation store."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from probekit.activations.create import Plan
from probekit.activations.store import ActivationStore
from probekit.activations.writer import StoreWriter
from probekit.errors import DataError, UsageError, first_few
from probekit.kinds import check
from probekit.safe import one_line, regular_file
from probekit.states import finite_rows
from probekit.tables import read_file, suffix_of

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from probekit.data import Rows

SUFFIXES = (".npy", ".parquet", ".safetensors")
CHUNK = 4096
LAST_LAYER = 9999
LAST_NUMBER = re.compile(r"(\d+)\D*$")
STORED = {np.dtype(np.float16): "float16", np.dtype(np.float32): "float32"}


def import_states(
    states: str | Path | ArrayLike | Mapping[int, ArrayLike],
    rows: Rows,
    output: str | Path,
    *,
    layer: int | None = None,
    column: str | None = None,
    overwrite: bool = False,
) -> ActivationStore:
    """Make a store of states that were computed elsewhere; every command works on it.

    Parameters
    ----------
    states : path, array of shape (n, d) or mapping of int to array
        A NumPy file, a safetensors file with an array for each layer (the last number in its name
        is the layer), or a Parquet file with a column of lists; or the arrays themselves.
    rows : Rows
        The n rows, in the same order.
    output : path
        HDF5 file to write.
    layer : int, default=1
        Number of the layer, if there is one.
    column : str, default=None
        Column of a Parquet file; None: the only one that holds lists of numbers.
    overwrite : bool, default=False
        Replace the output.

    Returns
    -------
    ActivationStore
        float16 stays float16; every other dtype is stored as float32.

    Raises
    ------
    DataError
        If the file holds no such arrays, they are not of these rows, or a state is not finite.

    Examples
    --------
    >>> import_states("states.npy", load_rows("rows.csv"), "acts.h5")  # doctest: +SKIP
    """
    check(layer=layer)
    name = "the array"
    if isinstance(states, str | Path):
        name = Path(states).name
        arrays = read_states_file(states, layer=layer, column=column)
    elif isinstance(states, Mapping):
        arrays = {int(key): _states(value, f"layer {key}") for key, value in states.items()}
    else:
        arrays = {1 if layer is None else layer: _states(states, name)}
    dtypes = {array.dtype for array in arrays.values()}
    stored = STORED.get(dtypes.pop(), "float32") if len(dtypes) == 1 else "float32"
    digest = hashlib.sha256()
    for number, array in sorted(arrays.items()):
        if len(array) != len(rows):
            raise DataError(
                f"{name} has {len(array):,} states in layer {number}, and {rows.source} has "
                f"{len(rows):,} rows; give the rows that the states were computed of, in order."
            )
        _digest(digest, array, rows.ids, f"{name}, layer {number},")
    spec = {"origin": "imported", "file": name, "content": digest.hexdigest()[:16]}
    n = len(rows)
    plan = Plan(
        {**spec, "layers": sorted(arrays), "store_dtype": stored},
        rows.ids,
        rows.hashes,
        {number: array.shape[1] for number, array in arrays.items()},
        stored,
        rows.source,
        rows.keys,
        rows.groups,
    )
    with StoreWriter.open(output, plan, overwrite=overwrite) as writer:
        for start in range(0, n, CHUNK):
            part = np.arange(start, min(start + CHUNK, n))
            todo = part[~writer.done[part]]
            if len(todo):
                chunk = {k: array[todo].astype(stored) for k, array in arrays.items()}
                writer.write(todo, chunk, np.zeros(len(todo), np.int32), np.zeros(len(todo), bool))
        writer.finish()
    return ActivationStore(output)


def read_states_file(
    path: str | Path, *, layer: int | None = None, column: str | None = None
) -> dict[int, NDArray[Any]]:
    """Arrays (n, d) by layer of a .npy, .safetensors or .parquet file; a .npy is mapped.

    Raises DataError or UsageError if the file is of another kind, damaged, or has no array of
    numbers with two dimensions.
    """
    path = regular_file(path)
    suffix, one = suffix_of(path), 1 if layer is None else layer
    if suffix not in SUFFIXES:
        raise UsageError(f"{path} must end in {', '.join(SUFFIXES)}; these are read as states.")
    if suffix == ".parquet":
        return {one: _of_column(path, column)}
    if column is not None:
        raise UsageError(f"A column is one of a Parquet file, and {path} is none; leave it out.")
    if suffix == ".npy":
        try:
            array = np.load(path, mmap_mode="r")  # never a pickle, unless asked
        except (ValueError, OSError, EOFError) as error:
            reason = one_line(str(error)).rstrip(".")
            raise DataError(f"{path} cannot be read as a NumPy array: {reason}.") from None
        return {one: _states(array, str(path))}
    return _of_safetensors(path, layer)


def _of_safetensors(path: Path, layer: int | None) -> dict[int, NDArray[Any]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        reason = one_line(str(error)).rstrip(".")
        raise DataError(f"{path} cannot be read as safetensors: {reason}.") from None
    arrays: dict[int, NDArray[Any]] = {}
    for name, tensor in tensors.items():
        found = LAST_NUMBER.search(name)
        number = int(found[1]) if found else 1
        if len(tensors) == 1 and layer is not None:
            number = layer
        if number in arrays:
            raise DataError(
                f"{path} has two arrays for layer {number} ({', '.join(sorted(tensors))}); the "
                "last number in a name is the layer."
            )
        if number > LAST_LAYER:
            raise DataError(f"{path} names layer {number} ({name}); the last one is {LAST_LAYER}.")
        whole = tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor
        arrays[number] = _states(whole.numpy(), f"{path}, {name}")
    if not arrays:
        raise DataError(f"{path} holds no array.")
    return arrays


def _of_column(path: Path, column: str | None) -> NDArray[Any]:
    """The lists of a column of Parquet as an array (n, d)."""
    columns = read_file(path).columns
    if column is None:
        lists = [name for name, values in columns.items() if _is_vector(next(iter(values), None))]
        if len(lists) != 1:
            raise UsageError(
                f"{path} has {len(lists)} columns that hold lists of numbers "
                f"({', '.join(lists) or 'it has ' + ', '.join(columns)}); name one with --column."
            )
        column = lists[0]
    elif column not in columns:
        raise UsageError(f"{path} has no column {column!r}; it has {', '.join(columns)}.")
    values, arrays = columns[column], []
    with suppress(TypeError, ValueError):
        for start in range(0, len(values), CHUNK):
            rows = [row for row in values[start : start + CHUNK] if _is_vector(row)]
            arrays.append(np.array(rows, np.float32))
        states = np.concatenate(arrays)
        if len(states) == len(values):
            return states
    raise DataError(f"{path} has values in {column!r} that are not lists of numbers of one length.")


def _is_vector(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], int | float)


def _states(array: ArrayLike, name: str) -> NDArray[Any]:
    """An array of numbers (n, d)."""
    states = np.asarray(array) if not isinstance(array, np.ndarray) else array
    if states.ndim != 2 or states.dtype.kind not in "fiu" or not states.shape[1]:
        raise DataError(
            f"{name} must hold numbers of shape (n, d), one row for each text; got "
            f"{states.dtype} of shape {states.shape}."
        )
    return states


def _digest(digest: Any, array: NDArray[Any], ids: Sequence[str], name: str) -> None:
    """Add an array's numbers to a digest, and check that they are finite."""
    wrong: list[str] = []
    for start in range(0, len(array), CHUNK):
        part = np.ascontiguousarray(array[start : start + CHUNK], np.float32)
        digest.update(part.tobytes())
        bad = np.flatnonzero(~finite_rows(part))
        wrong += [ids[start + i] for i in bad.tolist()]
    if wrong:
        raise DataError(
            f"{name} has NaN or infinity in {len(wrong):,} rows (ids {first_few(wrong)}); leave "
            "these rows out of states and rows."
        )
