"""Layers added to a store: what is forwarded, what is kept, and what a stop leaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from probekit.activations import extraction
from probekit.activations import job as job_module
from probekit.activations import units as units_module
from probekit.activations.extraction import extract, prepare_adding, run
from probekit.activations.job import Request
from probekit.activations.store import ActivationStore
from probekit.errors import StaleStoreError, StoreError, UsageError

pytestmark = pytest.mark.usefixtures("one_thread")

Folder = Callable[..., Path]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "acts.h5"


def add_layers(request: Request, **options: Any) -> Any:
    return run(prepare_adding(request), **options)


def contents(path: Path) -> dict[str, bytes]:
    """Every data set and attribute of a store, as bytes."""
    values: dict[str, bytes] = {}
    with h5py.File(path) as file:
        for name, value in file.attrs.items():
            values[f"@{name}"] = np.asarray(value).astype("S").tobytes()

        def keep(name: str, item: Any) -> None:
            if hasattr(item, "shape"):
                values[name] = item[...].tobytes()

        file.visititems(keep)
    return values


@pytest.fixture
def tapped(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The layers that each run pools."""
    asked = []
    original = job_module.tapped

    def recorded(checkpoint: Any, layers: Any, *more: Any) -> Any:
        asked.append(tuple(layers))
        return original(checkpoint, layers, *more)

    monkeypatch.setattr(job_module, "tapped", recorded)
    return asked


@pytest.mark.parametrize("store_dtype", ["float32", "bfloat16"])
def test_only_missing_layers_are_pooled_and_the_store_is_that_of_one_run(
    store_dtype: str,
    tiny_model: Folder,
    texts: list[str],
    out: Path,
    tapped: list[tuple[int, ...]],
) -> None:
    how: dict[str, Any] = {"store_dtype": store_dtype, "batch_tokens": 200}
    folder = tiny_model("gpt2")
    whole = out.with_name("whole.h5")
    extract(texts, folder, output=whole, layers="all", **how)
    extract(texts, folder, output=out, layers=[1], **how)
    rows = []
    request = Request(texts, folder, out, "1-3", **how)
    report = add_layers(request, on_batch=lambda batch: rows.extend(batch.rows.tolist()))
    assert sorted(rows) == list(range(len(texts)))
    assert (report.rows_forwarded, report.layers) == (len(texts), [1, 2, 3])
    add_layers(Request(texts, folder, out, [0], **how))
    assert tapped == [(0, 1, 2, 3), (1,), (2, 3), (0,)]
    assert contents(out) == contents(whole)
    # Nothing is left to do, and nothing is left behind.
    again = add_layers(Request(texts, folder, out, "all", **how))
    assert (again.rows_forwarded, again.layers) == (0, [0, 1, 2, 3])
    assert len(tapped) == 4
    assert sorted(path.name for path in out.parent.iterdir()) == ["acts.h5", "whole.h5"]


def test_a_stop_leaves_the_store_as_it_was_and_the_same_call_resumes(
    tiny_model: Folder, texts: list[str], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how: dict[str, Any] = {"batch_tokens": 100, "flush_rows": 1}
    folder = tiny_model("gpt2")
    whole = out.with_name("whole.h5")
    extract(texts, folder, output=whole, layers="all", **how)
    before = extract(texts, folder, output=out, layers=[0, 1, 3], **how)
    before.close()
    kept, batches = contents(out), []

    def stop(batch: Any) -> None:
        batches.append(len(batch))
        if len(batches) == 2:
            raise KeyboardInterrupt

    request = Request(texts, folder, out, "all", **how)
    with pytest.raises(KeyboardInterrupt):
        add_layers(request, on_batch=stop)
    assert contents(out) == kept

    # Once more, in the middle of the copy.
    def half(stores: Any, first: int, writer: Any) -> None:
        rows = np.arange(first, 7)
        states = {layer: store.read(layer, rows) for store in stores for layer in store.layers}
        writer.write(rows, states, stores[0].n_tokens[rows], stores[0].truncated[rows])
        writer.flush()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(units_module, "copy_rows", half)
        with pytest.raises(KeyboardInterrupt):
            add_layers(request, on_batch=lambda batch: batches.append(len(batch)))
    assert sum(batches) == len(texts)  # the first two batches were not forwarded again
    assert contents(out) == kept
    report = add_layers(request, on_batch=lambda batch: batches.append(len(batch)))
    assert (report.rows_forwarded, sum(batches)) == (0, len(texts))
    assert contents(out) == contents(whole)
    assert sorted(path.name for path in out.parent.iterdir()) == ["acts.h5", "whole.h5"]


def test_other_rows_settings_or_models_are_refused(
    tiny_model: Folder, texts: list[str], out: Path
) -> None:
    folder = tiny_model("gpt2")
    with pytest.raises(StoreError, match="is not there to add layers to"):
        add_layers(Request(texts, folder, out, [2]))
    extract(texts, folder, output=out, layers=[1]).close()
    before = out.read_bytes()
    with pytest.raises(StaleStoreError, match="other rows: 1 of 40 rows have another text"):
        add_layers(Request([*texts[:-1], "other"], folder, out, [2]))
    with pytest.raises(StaleStoreError, match="pooling is 'last' in the file and 'mean' now"):
        add_layers(Request(texts, folder, out, [2], pool="mean"))
    with pytest.raises(StaleStoreError, match="weights is"):
        add_layers(Request(texts, tiny_model("llama"), out, [2]))
    with pytest.raises(UsageError, match="give one"):
        add_layers(Request(texts, folder, out, [2], overwrite=True))
    assert out.read_bytes() == before
    assert [path.name for path in out.parent.iterdir()] == ["acts.h5"]


def test_an_incomplete_store_is_finished_first(
    tiny_model: Folder, texts: list[str], out: Path
) -> None:
    def stop(_: Any) -> None:
        raise KeyboardInterrupt

    folder = tiny_model("gpt2")
    request = Request(texts, folder, out, [1], batch_tokens=100)
    with pytest.raises(KeyboardInterrupt):
        extraction.run(extraction.prepare(request), on_batch=stop)
    with pytest.raises(StoreError, match="is not complete; finish it first"):
        add_layers(Request(texts, folder, out, [2], batch_tokens=100))
    with ActivationStore(out, allow_incomplete=True) as store:
        assert store.layers == [1]
