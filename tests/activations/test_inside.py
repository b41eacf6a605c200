"""A store that names other files, or code to unpack it with, is refused before it is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from probekit.activations.store import ActivationStore
from probekit.activations.writer import StoreWriter
from probekit.errors import NotAStoreError, OutputExistsError

SECRET = b"TOPSECRET" * 2000


@pytest.fixture
def store(tmp_path: Path, example: Callable[..., Any]) -> Path:
    rows = example()
    rows.make(tmp_path / "elsewhere.h5")
    (tmp_path / "secret.bin").write_bytes(SECRET)
    path: Path = rows.make(tmp_path / "acts.h5")
    return path


def external(file: h5py.File, folder: Path) -> None:
    shape = file["layers/3"].shape
    del file["layers/3"]
    outside = [(str(folder / "secret.bin"), 0, h5py.h5f.UNLIMITED)]
    file["layers"].create_dataset("3", shape, "<f4", external=outside)


def external_ids(file: h5py.File, folder: Path) -> None:
    shape, kind = file["rows/id"].shape, file["rows/id"].dtype
    del file["rows/id"]
    outside = [(str(folder / "secret.bin"), 0, h5py.h5f.UNLIMITED)]
    file["rows"].create_dataset("id", shape, kind, external=outside)


def virtual(file: h5py.File, folder: Path) -> None:
    shape = file["layers/3"].shape
    del file["layers/3"]
    layout = h5py.VirtualLayout(shape, "<f4")
    layout[...] = h5py.VirtualSource(str(folder / "elsewhere.h5"), "layers/3", shape)
    file["layers"].create_virtual_dataset("3", layout)


def external_link(file: h5py.File, folder: Path) -> None:
    del file["layers/3"]
    file["layers/3"] = h5py.ExternalLink(str(folder / "elsewhere.h5"), "/layers/3")


def external_group(file: h5py.File, folder: Path) -> None:
    del file["layers"]
    file["layers"] = h5py.ExternalLink(str(folder / "elsewhere.h5"), "/layers")


def external_rows(file: h5py.File, folder: Path) -> None:
    del file["rows"]
    file["rows"] = h5py.ExternalLink(str(folder / "elsewhere.h5"), "/rows")


def soft_link(file: h5py.File, _: Path) -> None:
    del file["layers/3"]
    file["layers/3"] = h5py.SoftLink("/layers/0")


def plug_in(file: h5py.File, _: Path) -> None:
    shape = file["layers/3"].shape
    del file["layers/3"]
    how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    how.set_chunk(shape)
    how.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (3,))  # Zstandard, not part of HDF5
    file["layers"].create_dataset("3", shape, "<f4", dcpl=how)


def named_type(file: h5py.File, _: Path) -> None:
    states = file["layers/3"][...]
    del file["layers/3"]
    file["kind"] = np.dtype("<f4")
    file["layers"].create_dataset("3", data=states, dtype=file["kind"])


def reference(file: h5py.File, _: Path) -> None:
    del file.attrs["source"]
    file.attrs["source"] = file["layers/3"].ref


def group_for_data(file: h5py.File, _: Path) -> None:
    del file["layers/3"]
    file["layers/3"] = file["rows"]  # a hard link


def nothing_there(file: h5py.File, _: Path) -> None:
    del file["layers/3"]
    n = file["rows/id"].shape[0]
    file["layers"].create_dataset("3", (n, 1 << 40), "<f4", chunks=(1, 16), compression="gzip")


ALL = [
    external,
    external_ids,
    virtual,
    external_link,
    external_group,
    external_rows,
    soft_link,
    plug_in,
    named_type,
    reference,
    group_for_data,
    nothing_there,
]


@pytest.mark.parametrize("change", ALL, ids=lambda change: change.__name__)
def test_what_leads_out_is_refused(store: Path, change: Callable[..., None]) -> None:
    with h5py.File(store, "r+") as file:
        change(file, store.parent)
    with pytest.raises(NotAStoreError, match="no store that can be trusted"):
        ActivationStore(store)


def test_columns_to_join_by_are_read_and_lead_nowhere_either(store: Path) -> None:
    with h5py.File(store, "r+") as file:
        n = len(file["rows/id"])
        file["rows"].create_group("keys")
        file["rows/keys"].create_dataset("0", data=np.array([b"k"] * n, "S1"))
    ActivationStore(store).close()  # control
    with h5py.File(store, "r+") as file:
        file["rows/keys/1"] = h5py.ExternalLink(str(store.with_name("elsewhere.h5")), "/rows/id")
    with pytest.raises(NotAStoreError, match="no store that can be trusted: /rows/keys/1 is a"):
        ActivationStore(store)


def test_the_same_layer_inside_is_read(store: Path) -> None:
    """The control: only what leads out is refused, not what another program has written anew."""
    with h5py.File(store, "r+") as file:
        states = file["layers/3"][...]
        del file["layers/3"]
        file["layers"].create_dataset("3", data=states, compression="gzip", maxshape=(None, None))
        file.attrs["note"] = "mine"
        file.attrs["scale"] = np.array([1.0, 2.0])
    with ActivationStore(store) as opened:
        np.testing.assert_array_equal(opened.layer(3), states)


def test_nothing_is_written_through_a_store(tmp_path: Path, example: Callable[..., Any]) -> None:
    """Going on with an incomplete store must not write states into whatever file it names."""
    rows = example()
    path, secret = tmp_path / "acts.h5", tmp_path / "secret.bin"
    begun = {"spec": rows.spec, "ids": rows.ids, "hashes": rows.hashes, "widths": rows.widths}
    StoreWriter.open(path, store_dtype="float32", **begun).close()
    secret.write_bytes(SECRET)
    with h5py.File(path, "r+") as file:
        external(file, tmp_path)
    with pytest.raises(OutputExistsError, match="cannot be gone on with"):
        StoreWriter.open(path, store_dtype="float32", **begun)
    assert secret.read_bytes() == SECRET
