"""Reading a store: whole layers, slices, batches; agreement with the arrays that went in."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from probekit.activations import part as part_module
from probekit.activations.merge import merge
from probekit.activations.spec import DIFFERENCE
from probekit.activations.store import ActivationStore
from probekit.errors import (
    IncompleteStoreError,
    NotAStoreError,
    StaleStoreError,
    StoreError,
    UsageError,
)
from probekit.strings import Strings

KINDS = [
    ("float32", None),
    ("float16", None),
    ("bfloat16", None),
    ("float32", "gzip"),
    ("bfloat16", "lzf"),
]


@pytest.fixture(params=KINDS, ids=lambda kind: f"{kind[0]}-{kind[1]}")
def made(request: pytest.FixtureRequest, tmp_path: Path, example: Callable[..., Any]) -> Any:
    """An example and its store, of every dtype, mapped and packed."""
    dtype, compression = request.param
    rows = example(store_dtype=dtype)
    path = rows.make(tmp_path / "acts.h5", compression=compression)
    with ActivationStore(path) as store:
        yield rows, store


def test_everything_comes_back(made: Any) -> None:
    rows, store = made
    assert len(store) == rows.n
    assert store.layers == [0, 3]
    assert store.ids == rows.ids
    assert store.hashes == rows.hashes
    assert store.spec == rows.spec
    assert store.source == "docstrings"
    assert store.complete
    assert store.done.dtype == store.truncated.dtype == bool
    assert store.done.all()
    np.testing.assert_array_equal(store.n_tokens, rows.n_tokens)
    np.testing.assert_array_equal(store.truncated, rows.truncated)
    for layer, states in rows.states.items():
        read = store.layer(layer)
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, states)
        np.testing.assert_array_equal(store.layer(layer, dtype="float64"), states)
        np.testing.assert_array_equal(store.layer(layer, dtype="float16"), states)
        np.testing.assert_array_equal(store.layer(layer, dtype=None), rows.stored(layer))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_copies_have_one_text_or_equal_states(
    tmp_path: Path, example: Callable[..., Any], dtype: str
) -> None:
    rows = example(store_dtype=dtype)
    assert rows.n >= 9
    first, deepest = rows.states[0], rows.states[3]
    deepest[2] = deepest[5]
    deepest[2, 0], deepest[5, 0] = 0.0, -0.0
    first[3] = first[6]  # a copy in a layer that is not the deepest is none
    deepest[8] = np.inf
    deepest[7] = np.inf  # nor are rows that could not be computed
    hashes = list(rows.hashes)
    hashes[4] = hashes[5]
    rows.hashes = hashes
    with ActivationStore(rows.make(tmp_path / "acts.h5")) as store:
        found = store.copies()
        assert found[2] == found[4] == found[5]
        assert len(set(found.tolist())) == rows.n - 2
        some = store.copies(np.array([5, 0, 2, 3]))
        assert some[0] == some[2]
        assert sorted(some.tolist()) in ([0, 0, 1, 2], [0, 1, 1, 2], [0, 1, 2, 2])
        other = [f"{i:016x}".encode() for i in range(rows.n)]
        store.__dict__["hashes"] = Strings(np.array(other))
        assert len(set(store.copies().tolist())) == rows.n - 1
        deepest = store.copies(np.array([2, 5]))  # which are all that is asked for, and equal
        assert deepest.tolist() == [0, 1]


def test_plain_h5py_reads_the_same(made: Any) -> None:
    rows, store = made
    with h5py.File(store.path, "r") as file:
        for layer in rows.states:
            np.testing.assert_array_equal(file[f"layers/{layer}"][:], rows.stored(layer))
        assert file["rows/id"].asstr()[:].tolist() == rows.ids
        assert file["rows/text_hash"].asstr()[:].tolist() == rows.hashes


def test_rows_are_read_in_the_order_asked_for(made: Any) -> None:
    rows, store = made
    states = rows.states[3]
    mask = np.arange(rows.n) % 3 == 0
    for selection in (
        slice(None),
        slice(10, 20),
        slice(20, 10),
        slice(None, None, -7),
        slice(-5, None),
        np.array([5, 99, 5, 0]),
        [-1, 2],
        mask,
        np.zeros(0, np.int64),
        [],
    ):
        read = store.read(3, selection)
        assert read.dtype == np.float32
        expected = states[selection] if len(read) else states[:0]
        np.testing.assert_array_equal(read, expected)
    assert len(store.read(3, [])) == len(store.read(3, slice(20, 10))) == 0
    assert len(store.read(3, slice(-5, None))) == 5


@pytest.mark.parametrize("selection", [[100], [-101], [0.5], [[1, 2]], np.ones(7, bool), 3])
def test_rows_that_are_none_are_refused(made: Any, selection: object) -> None:
    with pytest.raises(UsageError):
        made[1].read(0, selection)


@pytest.mark.parametrize("batch_size", [1, 7, 100, 1000])
@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_hold_every_row_once(made: Any, batch_size: int, shuffle: bool) -> None:
    rows, store = made
    seen = []
    for numbers, states in store.batches(0, batch_size, shuffle=shuffle):
        assert states.shape == (len(numbers), 8)
        np.testing.assert_array_equal(states, rows.states[0][numbers])
        seen.append(numbers)
    order = np.concatenate(seen)
    assert sorted(order.tolist()) == list(range(rows.n))
    assert (order.tolist() == list(range(rows.n))) is not shuffle
    assert {len(numbers) for numbers in seen[:-1]} <= {batch_size}


def test_batches_look_their_layer_up_once(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look-up in HDF5 takes longer than reading a batch."""
    rows, store = made
    looked_up: list[str] = []
    get = h5py.Group.__getitem__

    def noted(group: h5py.Group, name: Any) -> Any:
        looked_up.append(f"{group.name}/{name}")
        return get(group, name)

    monkeypatch.setattr(h5py.Group, "__getitem__", noted)
    for _ in range(5):
        np.testing.assert_array_equal(store.read(3, [2, 0]), rows.states[3][[2, 0]])
        store.read(0, slice(0, 2))
    assert sorted(name for name in looked_up if "layers/" in name) == ["/layers/0", "/layers/3"]


def test_shuffling_follows_its_seed(made: Any) -> None:
    def order(seed: int) -> list[int]:
        batches = made[1].batches(0, 16, shuffle=True, seed=seed)
        return np.concatenate([numbers for numbers, _ in batches]).tolist()

    assert order(1) == order(1) != order(2)


def test_only_float32_in_one_piece_is_mapped(made: Any) -> None:
    rows, store = made
    mapped = store.info(0).offset is not None and rows.store_dtype == "float32"
    read = store.layer(0)
    assert read.flags.writeable is not mapped
    assert np.shares_memory(read, store.layer(0)) is mapped
    if mapped:
        with pytest.raises(ValueError, match="read-only"):
            read[0, 0] = 1


def test_maps_outlive_the_store_and_a_replaced_file(
    tmp_path: Path, example: Callable[..., Any]
) -> None:
    rows = example()
    store = ActivationStore(rows.make(tmp_path / "acts.h5"))
    other = example()
    other.states[3] = other.states[3] + 100
    other.make(tmp_path / "acts.h5", spec={"model": "other"}, overwrite=True)
    states = store.layer(3)  # mapped after the file was replaced
    store.close()
    np.testing.assert_array_equal(states, rows.states[3])


def test_a_layer_is_read_without_the_others(tmp_path: Path, example: Callable[..., Any]) -> None:
    rows = example()
    path = rows.make(tmp_path / "acts.h5")
    with ActivationStore(path) as store:
        place, size = store.info(0).offset, rows.stored(0).nbytes
    with path.open("r+b") as file:  # garbage in layer 0 does not matter to layer 3
        file.seek(place)
        file.write(b"\xff" * size)
    with ActivationStore(path) as store:
        np.testing.assert_array_equal(store.layer(3), rows.states[3])
        assert np.isnan(store.layer(0)).all()


def test_the_only_layer_needs_no_name(tmp_path: Path, example: Callable[..., Any]) -> None:
    one = example(widths={5: 4})
    with ActivationStore(one.make(tmp_path / "one.h5")) as store:
        np.testing.assert_array_equal(store.layer(), one.states[5])
        assert len(list(store.batches())) == 1
    with (
        ActivationStore(example().make(tmp_path / "two.h5")) as store,
        pytest.raises(UsageError, match=r"holds the layers 0, 3; choose one"),
    ):
        store.layer()


def test_wrong_wishes_are_refused(made: Any) -> None:
    store = made[1]
    with pytest.raises(UsageError, match=r"has no layer 7; it has 0, 3"):
        store.layer(7)
    with pytest.raises(UsageError, match="float16, float32, float64"):
        store.layer(0, dtype="int8")
    with pytest.raises(UsageError, match="at least one row"):
        next(store.batches(0, 0))


def test_a_closed_store_says_so(tmp_path: Path, example: Callable[..., Any]) -> None:
    store = ActivationStore(example().make(tmp_path / "acts.h5"))
    store.close()
    with pytest.raises(StoreError, match="is closed"):
        store.layer(0)


def test_an_incomplete_store_opens_only_on_request(
    tmp_path: Path, example: Callable[..., Any]
) -> None:
    rows, path = example(), tmp_path / "acts.h5"
    done = np.array([3, 50, 7])
    with rows.open(path) as writer:
        rows.write(writer, done)
    with pytest.raises(IncompleteStoreError, match=r"3 of 100 rows are done; run the same"):
        ActivationStore(path)
    with ActivationStore(path, allow_incomplete=True) as store:
        assert not store.complete
        assert np.flatnonzero(store.done).tolist() == [3, 7, 50]
        (batch,) = store.batches(3)
        assert batch[0].tolist() == [3, 7, 50]
        np.testing.assert_array_equal(batch[1], rows.states[3][[3, 7, 50]])
        unfinished = store.fingerprint
    with rows.open(path) as writer:
        rows.write(writer, np.flatnonzero(~writer.done))
        writer.finish()
    with ActivationStore(path) as store:
        assert store.fingerprint != unfinished


def test_what_a_foreign_writer_left_unaligned_is_read(
    tmp_path: Path, example: Callable[..., Any]
) -> None:
    rows = example(widths={1: 3})
    path = rows.make(tmp_path / "acts.h5")
    data = path.read_bytes()
    with h5py.File(path, "r+", alignment_threshold=1 << 30) as file:
        # 1-byte data sets push what follows to an odd place.
        del file["layers/1"]
        for pad in range(3):
            file.create_dataset(f"pad{pad}", data=np.zeros(1 + pad, np.uint8))
        file.create_dataset("layers/1", data=rows.states[1])
    assert path.read_bytes() != data
    with ActivationStore(path) as store:
        np.testing.assert_array_equal(store.layer(), rows.states[1])
        np.testing.assert_array_equal(store.read(1, [9, 2]), rows.states[1][[9, 2]])


def test_ids_of_any_script_come_back(tmp_path: Path, example: Callable[..., Any]) -> None:
    rows = example(n=4)
    rows.ids = ["日本語", "a b\tc", "x" * 300, "lone \ud800"]
    with ActivationStore(rows.make(tmp_path / "acts.h5")) as store:
        assert store.ids == rows.ids
        assert store.rows_intact()


GROUPS = ["q1", "", "q1", "frage-é", ""]


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_groups_are_kept(
    tmp_path: Path, example: Callable[..., Any], compression: str | None
) -> None:
    rows = example(n=5)
    path = rows.make(tmp_path / "acts.h5", groups=GROUPS, compression=compression)
    plain = rows.make(tmp_path / "plain.h5")
    with ActivationStore(path) as store, ActivationStore(plain) as other:
        assert store.groups == GROUPS
        assert store.rows_intact()
        assert other.groups is None
        assert store.rows_fingerprint == other.rows_fingerprint
        assert store.fingerprint != other.fingerprint
        assert len(set(other.copies().tolist())) == 5
        together = store.copies()
        assert together[0] == together[2]
        assert len(set(together.tolist())) == 4
    with h5py.File(path, "r") as file:
        assert file["rows/group"].asstr()[:].tolist() == GROUPS


def test_groups_and_copies_are_joined_in_turn(tmp_path: Path, example: Callable[..., Any]) -> None:
    rows = example(n=6)
    rows.hashes[2] = rows.hashes[4]
    rows.states[3][4] = rows.states[3][5]
    with ActivationStore(rows.make(tmp_path / "a.h5", groups=["u", "v", "u", "", "", ""])) as store:
        together = store.copies()
        assert together[0] == together[2] == together[4] == together[5]
        assert len(set(together.tolist())) == 3


def test_a_store_of_other_groups_is_stale(tmp_path: Path, example: Callable[..., Any]) -> None:
    rows = example(n=5)
    with rows.open(tmp_path / "a.h5", groups=GROUPS) as writer:
        rows.write(writer, [0, 1])
    with rows.open(tmp_path / "a.h5", groups=GROUPS) as writer:
        assert writer.done.sum() == 2  # the same groups: resumed
    for groups, words in ((None, "now they have none"), (["x"] * 5, "rows in other groups")):
        with pytest.raises(StaleStoreError, match=words):
            rows.open(tmp_path / "a.h5", groups=groups)
    rows.make(tmp_path / "b.h5")
    with pytest.raises(StaleStoreError, match="without groups, and now they have some"):
        rows.open(tmp_path / "b.h5", groups=GROUPS)


def test_groups_that_were_changed_are_reported(tmp_path: Path, example: Callable[..., Any]) -> None:
    path = example(n=5).make(tmp_path / "a.h5", groups=GROUPS)
    with h5py.File(path, "r+") as file:
        file["rows/group"][0] = b"q2"
    with ActivationStore(path) as store:
        assert not store.rows_intact()
    with h5py.File(path, "r+") as file:
        del file["rows/group"]
    with pytest.raises(NotAStoreError, match="groups without a fingerprint"):
        ActivationStore(path)


def test_merged_stores_keep_their_groups(tmp_path: Path, example: Callable[..., Any]) -> None:
    rows, other = example(n=5), example(n=5)
    other.ids = [f"b{i}" for i in range(5)]
    other.hashes = [f"{i:016x}" for i in range(5)]
    paths = [
        rows.make(tmp_path / "a.h5", groups=GROUPS),
        other.make(tmp_path / "b.h5", groups=["q1", *"wxyz"]),
    ]
    plain = other.make(tmp_path / "plain.h5")
    merge(paths, tmp_path / "all.h5")
    with ActivationStore(tmp_path / "all.h5") as store:
        assert store.groups == [*GROUPS, "q1", *"wxyz"]
    with pytest.raises(StaleStoreError, match="the groups of its rows; extract both"):
        merge([paths[0], plain], tmp_path / "mixed.h5")


def test_a_pair_turned_round_is_a_copy(tmp_path: Path, example: Callable[..., Any]) -> None:
    rows = example(n=6)
    rows.states[3][1] = -rows.states[3][4]
    plain = rows.make(tmp_path / "plain.h5")
    rows.spec = {**rows.spec, **DIFFERENCE}
    with ActivationStore(rows.make(tmp_path / "d.h5")) as store, ActivationStore(plain) as other:
        together = store.copies()
        assert together[1] == together[4]
        assert len(set(together.tolist())) == 5
        assert len(set(other.copies().tolist())) == 6  # states that are no differences


# Reading ahead asks for rows that are not in memory, for no others, and changes no number.


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Places and sizes that are asked for; also where the system could not be."""
    places: list[tuple[int, int]] = []

    def note(*arguments: int) -> None:
        places.append(arguments[1:3])

    monkeypatch.setattr(part_module, "CAN_PREFETCH", True)
    for name, value in {"RWF_NOWAIT": 8, "POSIX_FADV_WILLNEED": 3, "posix_fadvise": note}.items():
        monkeypatch.setattr(os, name, value, raising=False)
    return places


def cached(monkeypatch: pytest.MonkeyPatch, error: OSError | None) -> None:
    def preadv(*_: Any) -> int:
        if error is not None:
            raise error
        return 1

    monkeypatch.setattr(os, "preadv", preadv)


@pytest.mark.parametrize(
    ("error", "times"),
    [
        (BlockingIOError(errno.EAGAIN, "not in memory"), 1),
        (None, 0),
        (OSError(errno.EOPNOTSUPP, "cannot tell"), 0),
    ],
)
def test_only_rows_that_are_not_in_memory_are_asked_for(
    tmp_path: Path,
    example: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    asked: list[tuple[int, int]],
    error: OSError | None,
    times: int,
) -> None:
    rows = example()
    with ActivationStore(rows.make(tmp_path / "acts.h5")) as store:
        chosen = np.array([70, 3, 3, 99])
        store.read(3, chosen)
        with monkeypatch.context() as patch:
            cached(patch, error)
            read = store.read(3, chosen)
        place = store.info(3).offset
        assert asked == times * [(place + row * 64, 64) for row in chosen.tolist()]
        np.testing.assert_array_equal(read, rows.states[3][chosen])


def test_the_next_batch_is_asked_for_before_this_one_is_given(
    tmp_path: Path,
    example: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    asked: list[tuple[int, int]],
) -> None:
    rows = example()
    with ActivationStore(rows.make(tmp_path / "acts.h5")) as store:
        batches = store.batches(3, 10, shuffle=True)
        store.layer(3)
        _ = store.done, store.complete
        with monkeypatch.context() as patch:
            cached(patch, BlockingIOError(errno.EAGAIN, "not in memory"))
            first, _ = next(batches)
        second, _ = next(batches)
        place = store.info(3).offset
        wanted = [place + row * 64 for row in [*first.tolist(), *second.tolist()]]
        assert [at for at, _ in asked] == wanted


def test_a_system_that_cannot_be_asked_reads_all_the_same(
    tmp_path: Path,
    example: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    asked: list[tuple[int, int]],
) -> None:
    rows = example()
    monkeypatch.setattr(part_module, "CAN_PREFETCH", False)
    with ActivationStore(rows.make(tmp_path / "acts.h5")) as store:
        np.testing.assert_array_equal(store.read(0, [5, 1]), rows.states[0][[5, 1]])
    assert asked == []
