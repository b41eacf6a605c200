"""The file format: old files stay readable, damaged and foreign ones get one sentence.

A store that names other files, or code to unpack it with, is refused before it is read.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from probekit.activations.create import Plan
from probekit.activations.layout import (
    VERSION,
    Header,
    StoreFile,
    damaged,
    open_hdf5,
    read_header,
    spec_json,
    widen,
)
from probekit.activations.store import ActivationStore
from probekit.activations.writer import StoreWriter
from probekit.errors import NotAStoreError, OutputExistsError, StoreError, human_bytes

OLD = Path(__file__).parent / "data" / "v1.h5"


def test_importing_the_store_does_not_import_torch() -> None:
    code = (
        "import sys, probekit.activations\n"
        "from probekit.activations import ActivationStore\n"
        "print([m for m in ('torch', 'transformers', 'pandas', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_unknown_name_of_the_package_is_an_attribute_error() -> None:
    import probekit.activations

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = probekit.activations.nothing
    assert dir(probekit.activations) == probekit.activations.__all__


def test_version_1_stays_readable() -> None:
    # Committed when version 1 was made; never to be written again.
    with ActivationStore(OLD) as store:
        assert store.layers == [0, 2]
        assert store.ids == ["a", "b", "ü", "row 4", "5"]
        assert store.hashes == [f"{i:016x}" for i in range(5)]
        assert store.n_tokens.tolist() == [3, 1, 4, 1, 5]
        assert store.truncated.tolist() == [False, False, True, False, False]
        assert store.spec == {"layers": [0, 2], "model": "tiny", "pooling": "last"}
        assert store.source == "rows.jsonl"
        assert store.complete
        assert store.rows_intact()
        assert store.fingerprint == "6ec1bba93a92f5be"
        expected = np.arange(5)[:, None] + np.arange(4) / 4
        for layer in store.layers:
            np.testing.assert_array_equal(store.layer(layer), expected - layer)


def test_version_1_lies_as_the_page_says(tmp_path: Path) -> None:
    with h5py.File(OLD, "r") as file:
        assert file.attrs["format"] == "probekit-activations"
        assert file.attrs["version"] == 1
        assert sorted(file) == ["layers", "rows"]
        assert sorted(file["rows"]) == ["done", "id", "n_tokens", "text_hash", "truncated"]
        layer = file["layers/0"]
        assert layer.attrs["dtype"] == "bfloat16"
        assert layer.dtype == np.uint16
        assert layer.chunks is None
        assert layer.id.get_offset() % 64 == 0


def write_foreign(path: Path, **attributes: object) -> Path:
    """A file with the right names made by plain h5py; as ``docs/format.md`` says."""
    with h5py.File(path, "w") as file:
        marks = {
            "format": "probekit-activations",
            "version": 1,
            "spec": "{}",
            "rows_fingerprint": "0" * 16,
            "complete": True,
            **attributes,
        }
        for name, value in marks.items():
            if value is not None:
                file.attrs[name] = value
        file["rows/id"] = np.array([b"a", b"b"])
        file["rows/text_hash"] = np.array([b"0" * 16] * 2)
        file["rows/n_tokens"] = np.array([1, 2], np.int32)
        file["rows/truncated"] = np.zeros(2, np.uint8)
        file["rows/done"] = np.ones(2, np.uint8)
        file["layers/1"] = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    return path


def test_a_file_made_by_plain_h5py_is_a_store(tmp_path: Path) -> None:
    with ActivationStore(write_foreign(tmp_path / "a.h5")) as store:
        assert store.layer().tolist() == [[1, 2, 3], [4, 5, 6]]
        assert store.source is None
        assert not store.rows_intact()  # its fingerprint is not that of these rows


def change(path: Path, name: str, values: object) -> None:
    with h5py.File(path, "r+") as file:
        if name in file:
            del file[name]
        if values is not None:
            file[name] = values


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("rows/done", None, "done"),
        ("rows/done", np.ones(3, np.uint8), "/rows/done has the shape"),
        ("rows/n_tokens", np.ones(2, np.float32), "/rows/n_tokens has the dtype"),
        ("rows/id", np.zeros(0, "S1"), "has the shape"),
        ("layers/1", np.ones((3, 2), np.float32), "/layers/1 has the shape"),
        ("layers/1", np.ones((2, 3), np.float64), "/layers/1 has the dtype"),
        ("layers/1", np.ones((2, 3), ">f4"), "/layers/1 has the dtype"),
        ("layers/1", np.ones((2, 3), np.uint16), "and the mark None"),
        ("layers/1", None, "holds no layers"),
        ("layers/x", np.ones((2, 3), np.float32), "/layers/x is not named by the number"),
        ("layers/01", np.ones((2, 3), np.float32), "/layers/01 is not named by the number"),
        ("rows/group", np.array([b"a", b"b"]), "groups without a fingerprint"),
        ("layers", None, "layers"),
    ],
)
def test_wrong_contents(tmp_path: Path, name: str, values: object, message: str) -> None:
    path = write_foreign(tmp_path / "a.h5")
    change(path, name, values)
    with pytest.raises(NotAStoreError, match=message) as caught:
        ActivationStore(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"format": None}, "not an activation store: its root attribute 'format' is None"),
        ({"format": "AnnData"}, "'AnnData', not 'probekit-activations'"),
        ({"version": VERSION + 1}, "version 2 .* install a newer probekit"),
        ({"version": "x"}, "damaged"),
        ({"version": [1, 2]}, "damaged"),
        ({"complete": "x"}, "damaged"),
        ({"spec": 3}, "its spec is not text"),
        ({"format": [1, 2]}, "not an activation store"),
        ({"spec": "no json"}, "damaged"),
        ({"spec": "[1]"}, "spec is not a JSON object"),
        ({"rows_fingerprint": None}, "damaged"),
    ],
)
def test_wrong_marks(tmp_path: Path, attributes: dict[str, object], message: str) -> None:
    with pytest.raises(NotAStoreError, match=message):
        ActivationStore(write_foreign(tmp_path / "a.h5", **attributes))


def test_ids_that_are_not_utf8_are_reported(tmp_path: Path) -> None:
    path = write_foreign(tmp_path / "a.h5")
    change(path, "rows/id", np.array([b"a", b"\xff"]))
    with (
        ActivationStore(path) as store,
        pytest.raises(NotAStoreError, match="/rows/id is not UTF-8"),
    ):
        _ = store.ids


def test_a_bug_is_not_reported_as_a_damaged_file(tmp_path: Path) -> None:
    path = write_foreign(tmp_path / "a.h5")
    for bug in (lambda: len(3), lambda: {}["x"], lambda: int("x"), lambda: None.x):  # type: ignore
        with (
            pytest.raises((TypeError, KeyError, ValueError, AttributeError)) as caught,
            damaged(path),
        ):
            bug()
        assert caught.value.__notes__ == [f"Raised while {path} was read."]
    # NumPy raises this one, but no damaged file leads to it.
    with pytest.raises(ZeroDivisionError) as raised, damaged(path):
        np.average([1.0], weights=[0.0])
    assert raised.value.__notes__ == [f"Raised while {path} was read."]
    # The control: h5py raises a KeyError too.
    with h5py.File(path) as file, pytest.raises(NotAStoreError, match="damaged"), damaged(path):
        _ = file["rows/nothing"]


def test_other_files_are_reported(tmp_path: Path) -> None:
    empty, text = tmp_path / "empty.h5", tmp_path / "text.h5"
    empty.touch()
    text.write_text("id,label\n1,0\n" * 100, encoding="utf-8")
    for path, message in [
        (tmp_path / "none.h5", "does not exist"),
        (tmp_path, "is a folder"),
        (empty, "is empty"),
        (text, "not an HDF5 file"),
    ]:
        with pytest.raises(NotAStoreError, match=message):
            ActivationStore(path)


def test_a_store_cut_anywhere_is_reported(tmp_path: Path) -> None:
    good = OLD.read_bytes()
    for length in [*range(1, len(good), 191), len(good) - 1]:
        path = tmp_path / "cut.h5"
        path.write_bytes(good[:length])
        with pytest.raises(NotAStoreError):
            ActivationStore(path)


def test_zeroed_pieces_and_flipped_bytes_never_escape_as_another_error(tmp_path: Path) -> None:
    # 0 in the heap of strings once made HDF5 loop for ever, and a flipped type made it crash.
    good, path = OLD.read_bytes(), tmp_path / "broken.h5"
    rng = random.Random(0)
    zeroed = [good[:at] + bytes(64) + good[at + 64 :] for at in range(0, len(good) - 64, 64)]
    flipped = []
    for _ in range(150):
        data = bytearray(good)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        flipped.append(bytes(data))
    sentences = []
    for data in zeroed + flipped:
        path.write_bytes(data)
        try:
            with ActivationStore(path, allow_incomplete=True) as store:
                store.rows_intact()
                for layer in store.layers:
                    store.layer(layer)
        except StoreError as error:
            sentences.append(str(error))
    assert all("\n" not in sentence for sentence in sentences)
    assert len(sentences) > 50  # much of so small a file is metadata


def test_fingerprint_tells_spec_rows_and_completeness() -> None:
    def fingerprint(**changes: object) -> str:
        values = {"spec": {"a": 1, "b": [2]}, "rows_fingerprint": "0" * 16, "complete": True}
        return Header(
            source=None,
            id_column=None,
            text_column=None,
            n_rows=1,
            layers={},
            **{**values, **changes},
        ).fingerprint  # type: ignore[arg-type]

    first = fingerprint()
    assert len(first) == 16
    assert fingerprint(spec={"b": [2], "a": 1}) == first
    others = {
        fingerprint(spec={"a": 1, "b": [3]}),
        fingerprint(rows_fingerprint="1" * 16),
        fingerprint(complete=False),
    }
    assert len(others | {first}) == 4


def test_header_is_read_without_the_numbers(tmp_path: Path) -> None:
    with StoreFile(OLD) as stream, open_hdf5(OLD, stream) as file:
        header = read_header(file, OLD)
    assert header.n_rows == 5
    assert header.layers[2].width == 4
    assert header.layers[2].dtype == "bfloat16"


def test_bfloat16_widens_to_the_float32_whose_upper_half_it_is() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)  # every bfloat16 there is, infinities and NaN too
    out = np.empty(bits.shape, np.float32)
    widen(bits, out)
    import torch

    expected = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(out.view(np.uint32), expected.view(np.uint32))
    double = np.empty(bits.shape, np.float64)
    widen(bits, double)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(double, expected.astype(np.float64))


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1234, "1.2 kB"), (5 * 10**9, "5.0 GB")],
)
def test_bytes_are_written_for_people(count: int, text: str) -> None:
    assert human_bytes(count) == text


def test_spec_has_one_text_whatever_its_order() -> None:
    assert spec_json({"b": 1, "a": "é"}) == spec_json({"a": "é", "b": 1}) == '{"a":"é","b":1}'


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
    with pytest.raises(NotAStoreError, match="not a store that can be trusted"):
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
    """Resuming an incomplete store must not write states into whatever file it names."""
    rows = example()
    path, secret = tmp_path / "acts.h5", tmp_path / "secret.bin"
    begun = {"spec": rows.spec, "ids": rows.ids, "hashes": rows.hashes, "widths": rows.widths}
    StoreWriter.open(path, Plan(store_dtype="float32", **begun)).close()
    secret.write_bytes(SECRET)
    with h5py.File(path, "r+") as file:
        external(file, tmp_path)
    with pytest.raises(OutputExistsError, match="cannot be resumed"):
        StoreWriter.open(path, Plan(store_dtype="float32", **begun))
    assert secret.read_bytes() == SECRET
