"""A store and noisy labels whose truth is known."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from probekit.activations.create import Plan
from probekit.activations.index import Index
from probekit.activations.merge import merge
from probekit.activations.store import ActivationStore
from probekit.activations.writer import StoreWriter
from probekit.labels import WeakLabels


@pytest.fixture
def blobs():
    """Make rows of ``n_classes`` classes, each with a share of labels that are wrong."""

    def make(n=400, noise=(0.3, 0.1), width=8, distance=3.0, seed=0):
        rng = np.random.default_rng(seed)
        n_classes = len(noise)
        truth = rng.integers(0, n_classes, n)
        X = rng.normal(size=(n, width)).astype(np.float32)
        X[np.arange(n), truth] += distance
        wrong = rng.random(n) < np.asarray(noise)[truth]
        other = (truth + rng.integers(1, n_classes, n)) % n_classes
        return SimpleNamespace(X=X, truth=truth, weak=np.where(wrong, other, truth))

    return make


@pytest.fixture
def make_store(tmp_path):
    def make(
        X, *, hashes=None, name="acts.h5", layers=(3,), ids=None, source=None, spec=None, **more
    ):
        n = len(X)
        ids = [f"r{i}" for i in range(n)] if ids is None else ids
        hashes = [f"{i:016x}" for i in range(n)] if hashes is None else hashes
        widths = dict.fromkeys(layers, X.shape[1])
        with StoreWriter.open(
            tmp_path / name,
            Plan(
                spec={"model": "blobs", **(spec or {})},
                ids=ids,
                hashes=hashes,
                widths=widths,
                store_dtype="float32",
                **more,
            ),
        ) as writer:
            states = dict.fromkeys(layers, X)
            writer.write(np.arange(n), states, np.ones(n, np.int32), np.zeros(n, bool))
            writer.finish()
        return ActivationStore(tmp_path / name)

    return make


@pytest.fixture
def as_labels():
    """Weak labels of the rows r0, r1, … from class numbers, or P(1), or probabilities."""

    def make(y, *, ids=None, hashes=None, classes=None):
        y = np.asarray(y)
        if y.ndim == 1 and y.dtype.kind == "f":
            y = np.column_stack([1 - y, y])
        elif y.ndim == 1:
            y = np.eye(y.max() + 1)[y]
        names = tuple(map(str, range(y.shape[1]))) if classes is None else classes
        ids = [f"r{i}" for i in range(len(y))] if ids is None else ids
        return WeakLabels(ids, hashes, y.astype(np.float64), names)

    return make


@pytest.fixture
def make_folder(tmp_path):
    """The same rows as a folder of parts and, merged, as one file: ids r0, r1, …"""

    def make(X, *, size=70, layers=(3,), groups=None, store_dtype="float32"):
        n, folder = len(X), tmp_path / "acts"
        folder.mkdir()
        about = {
            "spec": {"model": "blobs"},
            "ids": [f"r{i}" for i in range(n)],
            "hashes": [f"{i:016x}" for i in range(n)],
            "widths": dict.fromkeys(layers, X.shape[1]),
            "store_dtype": store_dtype,
            "groups": groups,
        }
        index = Index.of(Plan(**about), folder, size)
        index.write(folder)
        for path, start in zip(index.paths(folder), index.starts, strict=False):
            rows = slice(start, start + size)
            own = {name: about[name][rows] for name in ("ids", "hashes")}
            own["groups"] = None if groups is None else groups[rows]
            with StoreWriter.open(path, Plan(**(about | own))) as writer:
                part = X[rows].astype(store_dtype)
                m = len(part)
                # Layers differ, and a deeper one is clearer.
                states = {layer: part * (part > -layer) for layer in layers}
                writer.write(np.arange(m), states, np.ones(m, np.int32), np.zeros(m, bool))
                writer.finish()
        merge([folder], tmp_path / "merged.h5")
        return ActivationStore(folder), ActivationStore(tmp_path / "merged.h5")

    return make
