"""Stores made in the tests: small, with states that tell their row and layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probekit.activations.create import Plan
from probekit.activations.index import Index
from probekit.activations.writer import StoreWriter
from probekit.data import text_hash
from probekit.joins import Keys


class Example:
    """n rows and their states in two layers; exact in every store dtype."""

    def __init__(self, n: int = 100, store_dtype: str = "float32", widths: Any = None) -> None:
        self.n = n
        self.ids = [f"zeile-{i}-é" for i in range(n)]
        self.hashes = [text_hash(i) for i in self.ids]
        self.widths = dict(widths or {3: 16, 0: 8})
        self.store_dtype = store_dtype
        self.spec = {"model": "tiny", "layers": sorted(self.widths), "pooling": "mean"}
        rng = np.random.default_rng(0)
        # Small multiples of 1/8: bfloat16 keeps them, so every comparison is exact.
        self.states = {
            layer: rng.integers(-64, 64, (n, width)).astype(np.float32) / 8
            for layer, width in self.widths.items()
        }
        self.n_tokens = np.arange(1, n + 1, dtype=np.int32)
        self.truncated = np.arange(n) % 7 == 0

    def options(self, **changes: Any) -> dict[str, Any]:
        return {
            "spec": self.spec,
            "ids": self.ids,
            "hashes": self.hashes,
            "widths": self.widths,
            "store_dtype": self.store_dtype,
            "source": "docstrings",
            **changes,
        }

    def stored(self, layer: int, rows: Any = slice(None)) -> np.ndarray:
        states = self.states[layer][rows]
        if self.store_dtype == "bfloat16":
            # The definition: the upper half of the float32's bits.
            return (states.view(np.uint32) >> 16).astype(np.uint16)
        return states.astype(self.store_dtype)

    def write(self, writer: StoreWriter, rows: Any) -> None:
        rows = np.asarray(rows)
        states = {layer: self.stored(layer, rows) for layer in self.widths}
        writer.write(rows, states, self.n_tokens[rows], self.truncated[rows])

    def open(self, path: Path, **changes: Any) -> StoreWriter:
        how = {k: changes.pop(k) for k in ("overwrite", "compression") if k in changes}
        return StoreWriter.open(path, Plan(**self.options(**changes)), **how)

    def make(self, path: Path, **changes: Any) -> Path:
        """Write the whole store, in a scattered order, three flushes."""
        with self.open(path, **changes) as writer:
            for rows in np.array_split(np.random.default_rng(1).permutation(self.n), 3):
                self.write(writer, rows)
                writer.flush()
            writer.finish()
        return path

    def make_folder(self, folder: Path, size: int = 30, **changes: Any) -> Path:
        """Write the same rows as a folder of parts of ``size`` rows."""
        options = self.options(**changes)
        compression = options.pop("compression", None)
        folder.mkdir()
        index = Index.of(Plan(**options), folder, size)
        index.write(folder)
        for first, path in zip(index.starts, index.paths(folder), strict=False):
            rows = slice(int(first), int(first) + size)
            part = {k: options[k][rows] for k in ("ids", "hashes", "groups") if options.get(k)}
            keys = {"keys": Keys(part["ids"], columns={"k": part["ids"]}), "source": None}
            plan = Plan(**{**options, **part, **keys})
            with StoreWriter.open(path, plan, compression=compression) as writer:
                numbers = np.arange(self.n)[rows]
                states = {layer: self.stored(layer, numbers) for layer in self.widths}
                places = np.arange(len(numbers))
                writer.write(places, states, self.n_tokens[rows], self.truncated[rows])
                writer.finish()
        return folder


@pytest.fixture
def example() -> Callable[..., Example]:
    """``example(n=100, store_dtype="float32", widths={0: 8, 3: 16})`` makes rows and states."""
    return Example
