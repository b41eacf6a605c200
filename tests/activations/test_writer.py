"""Writing a store: resuming, refusing what differs, one writer, full disks, kills at any moment."""

from __future__ import annotations

import errno
import os
import random
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from probekit.activations.create import Plan
from probekit.activations.store import ActivationStore
from probekit.activations.writer import StoreWriter
from probekit.errors import (
    DataError,
    OutputExistsError,
    StaleStoreError,
    StoreError,
    UsageError,
)


def only(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def part(rows: Any, path: Path, numbers: Any, **changes: Any) -> None:
    """One run that writes these rows and ends."""
    with rows.open(path, **changes) as writer:
        rows.write(writer, numbers)


# --- resuming -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_resumed_file_equals_an_uninterrupted_one(
    tmp_path: Path, example: Callable[..., Any], dtype: str
) -> None:
    rows = example(store_dtype=dtype)
    whole, parts = tmp_path / "whole.h5", tmp_path / "parts.h5"
    rows.make(whole)
    for numbers in np.array_split(np.random.default_rng(5).permutation(rows.n), 4):
        part(rows, parts, numbers)
    with rows.open(parts) as writer:
        assert writer.done.all()
        assert not writer.complete
        writer.finish()
    assert parts.read_bytes() == whole.read_bytes()


def test_done_tells_what_is_left(tmp_path: Path, example: Callable[..., Any]) -> None:
    rows, path = example(), tmp_path / "acts.h5"
    with rows.open(path) as writer:
        assert not writer.done.any()
        rows.write(writer, [4, 2])
        assert not writer.done.any()  # written, but nobody has waited for the disk
        writer.flush()
        assert np.flatnonzero(writer.done).tolist() == [2, 4]
        rows.write(writer, [9])
    with rows.open(path) as writer:
        assert np.flatnonzero(writer.done).tolist() == [2, 4, 9]
        with pytest.raises(StoreError, match="lacks 97 of 100 rows"):
            writer.finish()


def test_rows_that_are_done_are_never_touched(tmp_path: Path, example: Callable[..., Any]) -> None:
    rows, path = example(), tmp_path / "acts.h5"
    part(rows, path, [1, 2])
    other = example()
    other.states = {layer: states + 1 for layer, states in rows.states.items()}
    part(other, path, [2, 3])
    with ActivationStore(path, allow_incomplete=True) as store:
        np.testing.assert_array_equal(store.read(0, [1, 2]), rows.states[0][[1, 2]])
        np.testing.assert_array_equal(store.read(0, [3]), other.states[0][[3]])


def test_a_complete_store_opens_with_all_rows_done(
    tmp_path: Path, example: Callable[..., Any]
) -> None:
    rows = example()
    path = rows.make(tmp_path / "acts.h5")
    before = path.read_bytes()
    with rows.open(path) as writer:
        assert writer.complete
        assert writer.done.all()
        writer.finish()
    assert path.read_bytes() == before


def test_an_error_in_the_run_keeps_what_was_written(
    tmp_path: Path, example: Callable[..., Any]
) -> None:
    rows, path = example(), tmp_path / "acts.h5"

    def run() -> None:
        with rows.open(path) as writer:
            rows.write(writer, [1, 5])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    with rows.open(path) as writer:
        assert np.flatnonzero(writer.done).tolist() == [1, 5]


def test_a_link_leads_to_the_file_that_is_written(
    tmp_path: Path, example: Callable[..., Any]
) -> None:
    rows, big = example(), tmp_path / "big"
    big.mkdir()
    link = tmp_path / "acts.h5"
    link.symlink_to(big / "real.h5")
    rows.make(link)
    rows.make(link, overwrite=True)
    assert link.is_symlink()
    assert only(big) == ["real.h5"]
    assert only(tmp_path) == ["acts.h5", "big"]


@pytest.mark.parametrize("compression", ["gzip", "lzf"])
def test_compression_packs_at_the_end(
    tmp_path: Path, example: Callable[..., Any], compression: str
) -> None:
    rows, path = example(n=4000), tmp_path / "acts.h5"
    part(rows, path, np.arange(50), compression=compression)
    unpacked = path.stat().st_size
    with rows.open(path, compression=compression) as writer:
        rows.write(writer, np.flatnonzero(~writer.done))
        writer.finish()
        with pytest.raises(StoreError, match="being written by another"):
            rows.open(path)
    assert path.stat().st_size < unpacked
    assert only(tmp_path) == ["acts.h5"]
    with h5py.File(path, "r") as file:
        assert file["layers/0"].compression == compression
    with rows.open(path) as writer:  # complete, in whatever form
        assert writer.done.all()


# --- what differs ---------------------------------------------------------------------------------


def stale(path: Path, rows: Any, **changes: Any) -> str:
    before = path.read_bytes()
    with pytest.raises(StaleStoreError) as caught:
        rows.open(path, **changes)
    assert path.read_bytes() == before
    text = str(caught.value)
    assert text.endswith("name another output, or pass --overwrite to replace it.")
    assert "\n" not in text
    return text


@pytest.mark.parametrize("complete", [False, True])
def test_another_spec_is_reported_key_by_key(
    tmp_path: Path, example: Callable[..., Any], complete: bool
) -> None:
    rows, path = example(), tmp_path / "acts.h5"
    rows.make(path) if complete else part(rows, path, [1])
    text = stale(path, rows, spec={**rows.spec, "pooling": "last", "max_length": 128})
    assert "pooling is 'mean' in the file and 'last' now" in text
    assert "max_length is not set in the file and 128 now" in text
    assert "model is" not in text
    text = stale(path, rows, spec={"model": "tiny"})
    assert "layers is [0, 3] in the file and not set now" in text


def test_long_values_are_shown_where_they_part(tmp_path: Path, example: Callable[..., Any]) -> None:
    rows, path = example(), tmp_path / "acts.h5"
    rows.spec["template"] = "a" * 500 + "OLD" + "z" * 500
    part(rows, path, [1])
    text = stale(path, rows, spec={**rows.spec, "template": "a" * 500 + "NEW" + "z" * 500})
    assert "OLD" in text
    assert "NEW" in text
    assert len(text) < 500 + len(str(path))


def test_what_does_not_fit_is_reported(tmp_path: Path, example: Callable[..., Any]) -> None:
    # The same spec, as if it had not said these.
    rows, path = example(), tmp_path / "acts.h5"
    part(rows, path, [1])
    assert "store_dtype" in stale(path, rows, store_dtype="float16")
    assert "{0: 8, 3: 16} in the file and {0: 8} now" in stale(path, rows, widths={0: 8})


def test_other_rows_are_reported(tmp_path: Path, example: Callable[..., Any]) -> None:
    rows, path = example(), tmp_path / "acts.h5"
    part(rows, path, [1, *range(95, 100)])
    ids, hashes = rows.ids, rows.hashes
    assert "it has 100 rows and there are 99 now" in stale(
        path, rows, ids=ids[1:], hashes=hashes[1:]
    )
    other = [*hashes[:-5], *(["0" * 16] * 5)]
    assert (
        "5 of 100 rows have another text (ids 'zeile-95-é', 'zeile-96-é', 'zeile-97-é', …)"
        in stale(path, rows, hashes=other)
    )
    assert "100 of 100 rows are in another order" in stale(path, rows, ids=ids[::-1])
    assert "1 of 100 rows have another id (now 'new')" in stale(path, rows, ids=["new", *ids[1:]])


def test_rows_that_are_not_done_may_be_repaired(
    tmp_path: Path, example: Callable[..., Any]
) -> None:
    rows, path, whole = example(), tmp_path / "acts.h5", tmp_path / "whole.h5"
    part(rows, path, [1, 2])
    repaired = [*rows.hashes[:-5], *(["0" * 16] * 5)]
    # Killed between the two writes: the hashes are there and the fingerprint is the old one.
    half = tmp_path / "half.h5"
    half.write_bytes(path.read_bytes())
    with h5py.File(half, "r") as store:
        place = store["rows/text_hash"].id.get_offset()
    with half.open("r+b") as file:
        file.seek(place)
        file.write("".join(repaired).encode())
    for begun, changed in ((path, 5), (half, 0)):
        with rows.open(begun, hashes=repaired) as writer:
            assert writer.changed == changed
            assert np.flatnonzero(writer.done).tolist() == [1, 2]
            rows.write(writer, np.arange(rows.n))
            writer.finish()
        rows.make(whole, hashes=repaired, overwrite=True)
        assert begun.read_bytes() == whole.read_bytes()
    # Control: what is done keeps its text, and a store that is complete keeps them all.
    done = ["f" * 16, *repaired[1:]]
    assert "1 of 100 rows have another text" in stale(path, rows, hashes=done)
    part(rows, tmp_path / "other.h5", [0])
    other = ["f" * 16, *rows.hashes[1:]]
    assert "1 of 100 rows have another text" in stale(tmp_path / "other.h5", rows, hashes=other)


def test_spec_is_compared_as_json(tmp_path: Path, example: Callable[..., Any]) -> None:
    rows, path = example(), tmp_path / "acts.h5"
    part(rows, path, [1])
    part(rows, path, [2], spec={**rows.spec, "layers": (0, 3)})  # a tuple is a list in JSON


def test_overwrite_replaces_what_is_stale_or_complete(
    tmp_path: Path, example: Callable[..., Any]
) -> None:
    rows = example()
    path = rows.make(tmp_path / "acts.h5")
    for changes in ({}, {"spec": {"model": "other"}}, {"store_dtype": "float32", "widths": {0: 8}}):
        with rows.open(path, overwrite=True, **changes) as writer:
            assert not writer.done.any()
    assert only(tmp_path) == ["acts.h5"]


def test_overwrite_resumes_what_the_same_call_began(
    tmp_path: Path, example: Callable[..., Any]
) -> None:
    # "The same command again" must not lose the night's work because it says --overwrite.
    rows, path = example(), tmp_path / "acts.h5"
    part(rows, path, [1, 2], overwrite=True)
    with rows.open(path, overwrite=True) as writer:
        assert writer.done.sum() == 2


def test_a_foreign_file_is_left_alone(tmp_path: Path, example: Callable[..., Any]) -> None:
    rows, path = example(), tmp_path / "notes.txt"
    path.write_text("mine")
    with pytest.raises(OutputExistsError, match=r"not an HDF5 file.*--overwrite"):
        rows.open(path)
    assert path.read_text() == "mine"
    with pytest.raises(OutputExistsError, match="not a plain file"):
        rows.open(tmp_path, overwrite=True)
    with pytest.raises(DataError, match="does not exist"):
        rows.open(tmp_path / "no" / "acts.h5")
    rows.make(path, overwrite=True)
    assert ActivationStore(path).complete


@pytest.mark.parametrize(
    "changes",
    [
        {"ids": [], "hashes": []},
        {"hashes": ["0" * 16]},
        {"widths": {}},
        {"ids": [*map(str, range(99)), "x\0"]},
    ],
)
def test_what_cannot_be_stored_is_refused(
    tmp_path: Path, example: Callable[..., Any], changes: dict[str, Any]
) -> None:
    with pytest.raises((UsageError, DataError)):
        example().open(tmp_path / "acts.h5", **changes)
    assert only(tmp_path) == []


def test_wrong_states_are_refused(tmp_path: Path, example: Callable[..., Any]) -> None:
    rows, path = example(), tmp_path / "acts.h5"
    with rows.open(path) as writer:
        good = {layer: rows.stored(layer, [1]) for layer in rows.widths}
        for numbers, states in [
            ([100], good),  # would be written over the next layer
            ([-1], good),
            ([1, 2], good),
            ([1], {0: good[0]}),
            ([1], {**good, 0: good[0].astype(np.float64)}),
            ([1], {**good, 0: good[0][:, :4]}),
        ]:
            with pytest.raises(UsageError):
                writer.write(np.array(numbers), states, np.ones(1), np.zeros(1))


@pytest.mark.parametrize(
    ("source", "stored"),
    [
        ("docstrings@student", "docstrings@student"),
        ("hf:org/name@train", "hf:org/name@train"),
        ("in/rows.jsonl", "rows.jsonl"),
        ("in/sub/rows.jsonl", "sub/rows.jsonl"),
        ("out/rows.jsonl", "rows.jsonl"),
    ],
)
def test_source_tells_no_path_of_this_machine(
    tmp_path: Path, example: Callable[..., Any], source: str, stored: str
) -> None:
    for name in ("in/rows.jsonl", "in/sub/rows.jsonl", "out/rows.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    given = str(tmp_path / source) if "/rows" in source else source
    path = example().make(tmp_path / "in" / "acts.h5", source=given)
    with ActivationStore(path) as store:
        assert store.source == stored
    assert str(tmp_path).encode() not in path.read_bytes()


def test_a_long_spec_fits(tmp_path: Path, example: Callable[..., Any]) -> None:
    # A chat template may be longer than the 64 kB of an HDF5 header.
    rows = example()
    rows.spec["template"] = "{% if x %}é" * 20_000
    with ActivationStore(rows.make(tmp_path / "acts.h5")) as store:
        assert store.spec == rows.spec


# --- one writer -----------------------------------------------------------------------------------


def test_two_writers_are_not_let_in(tmp_path: Path, example: Callable[..., Any]) -> None:
    rows, path = example(), tmp_path / "acts.h5"
    with rows.open(path) as first:
        rows.write(first, [1])
        for overwrite in (False, True):
            with pytest.raises(StoreError, match="is being written by another process"):
                rows.open(path, overwrite=overwrite)
        with ActivationStore(path, allow_incomplete=True) as store:  # a reader is
            assert not store.done.any()
    part(rows, path, [2])  # the lock goes with its writer


def test_two_creators_are_not_let_in(
    tmp_path: Path, example: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, path = example(), tmp_path / "acts.h5"
    replace, errors = os.replace, []

    def second_comes(*names: Any) -> None:
        monkeypatch.setattr(os, "replace", replace)
        with pytest.raises(StoreError, match="is being written by another process") as caught:
            rows.open(path)
        errors.append(caught)
        replace(*names)

    monkeypatch.setattr(os, "replace", second_comes)
    rows.make(path)
    assert errors
    assert only(tmp_path) == ["acts.h5"]
    assert ActivationStore(path).complete


# --- full disks -----------------------------------------------------------------------------------


def test_a_full_disk_is_reported_before_anything_is_written(
    tmp_path: Path, example: Callable[..., Any]
) -> None:
    options = example().options(widths={0: 10**13})  # 100 rows of 40 TB
    with pytest.raises(StoreError, match=r"needs 4000\.\d TB, but .* are free .* fewer layers"):
        StoreWriter.open(tmp_path / "acts.h5", Plan(**options))
    assert only(tmp_path) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_disk_that_refuses_leaves_the_old_file(
    tmp_path: Path, example: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(code, os.strerror(code))

    rows = example()
    path = rows.make(tmp_path / "acts.h5")
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", refuse)
        with pytest.raises(StoreError, match=r"needs \d+\.\d kB, but") as caught:
            rows.make(path, overwrite=True)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
    assert only(tmp_path) == ["acts.h5"]


def test_file_systems_without_reservation_are_served(
    tmp_path: Path, example: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "no such call here")

    rows = example()
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with ActivationStore(rows.make(tmp_path / "a.h5")) as store:
        np.testing.assert_array_equal(store.layer(3), rows.states[3])
    monkeypatch.delattr(os, "posix_fallocate")
    with ActivationStore(rows.make(tmp_path / "b.h5")) as store:
        np.testing.assert_array_equal(store.layer(3), rows.states[3])


LIMITED = """
import resource, sys
from probekit.activations.create import Plan
from probekit.activations.writer import StoreWriter
from probekit.errors import StoreError
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    ids, hashes = [str(i) for i in range(1000)], ["0" * 16] * 1000
    StoreWriter.open(sys.argv[1], Plan({}, ids, hashes, {0: 64}, "float32")).close()
except StoreError as error:
    print(error)
"""


@pytest.mark.parametrize("limit", [0, 100, 5000, 100_000, 280_000])
def test_a_limit_on_file_sizes_is_reported_at_once(tmp_path: Path, limit: int) -> None:
    # 280,000 bytes hold the layer and the ids, but not all of it together.
    path = tmp_path / "acts.h5"
    run = [sys.executable, "-c", LIMITED, str(path)]
    done = subprocess.run([*run, str(limit)], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "(ulimit -f); raise that limit" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert only(tmp_path) == []
    fine = subprocess.run([*run, str(10**6)], capture_output=True, text=True, check=True)
    assert fine.stdout == fine.stderr == ""
    assert only(tmp_path) == ["acts.h5"]


@pytest.mark.parametrize("call", ["pwrite", "fdatasync"])
def test_a_disk_that_fills_up_later_keeps_what_is_done(
    tmp_path: Path, example: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    # File systems that copy on write can promise no room.
    rows, path = example(), tmp_path / "acts.h5"
    real, count = getattr(os, call), [0]

    def fills_up(*arguments: Any) -> Any:
        count[0] += 1
        if count[0] > {"pwrite": 100, "fdatasync": 1}[call]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments)

    opened = rows.open(path)

    def run() -> None:
        with opened as writer:
            for numbers in np.random.default_rng(2).permutation(rows.n).reshape(10, 10):
                rows.write(writer, numbers)
                writer.flush()

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fills_up)
        with pytest.raises(StoreError, match="free some space"):
            run()
    assert count[0] > 1
    with ActivationStore(path, allow_incomplete=True) as store:
        done = store.done
        assert 0 < done.sum() < rows.n
        np.testing.assert_array_equal(store.layer(3)[done], rows.states[3][done])
    with rows.open(path) as writer:
        rows.write(writer, np.flatnonzero(~writer.done))
        writer.finish()
    with ActivationStore(path) as store:
        np.testing.assert_array_equal(store.layer(3), rows.states[3])


def test_a_disk_too_full_to_pack_leaves_the_store_as_it_is(
    tmp_path: Path, example: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    rows, path = example(), tmp_path / "acts.h5"
    part(rows, path, np.arange(rows.n))
    writer = rows.open(path, compression="gzip")
    with monkeypatch.context() as patch, writer:
        patch.setattr(os, "posix_fallocate", refuse)
        with pytest.raises(StoreError, match="finish it as it is, without compression"):
            writer.finish()
    assert only(tmp_path) == ["acts.h5"]
    with rows.open(path) as writer:
        writer.finish()
    with ActivationStore(path) as store:
        np.testing.assert_array_equal(store.layer(0), rows.states[0])


# --- kill -9 --------------------------------------------------------------------------------------

KILLED_AT = """
import os, signal, sys
from probekit.activations.create import Plan
from probekit.activations.writer import StoreWriter
import numpy as np
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
plan = Plan({}, ["a", "b"], ["0" * 16] * 2, {0: 4}, "float32")
def write(**more):
    with StoreWriter.open(sys.argv[1], plan, **more) as writer:
        writer.write(np.arange(2), {0: np.ones((2, 4), np.float32)}, np.ones(2), np.zeros(2))
        writer.finish()
"""


@pytest.mark.parametrize("moment", ["posix_fallocate", "fsync", "replace"])
@pytest.mark.parametrize("packing", [False, True])
def test_a_kill_while_a_file_is_made_harms_nothing(
    tmp_path: Path, moment: str, packing: bool
) -> None:
    path = tmp_path / "acts.h5"
    program = KILLED_AT
    if packing:  # the second file that is made is the packed one
        program += "StoreWriter.open(sys.argv[1], plan).close()\n"
        program += f"os.{moment} = die\nwrite(compression='gzip')\n"
        if moment == "posix_fallocate":
            # Resuming asks for room too; only the packed file's call is to die.
            program = program.replace(
                "os.posix_fallocate = die",
                "import probekit.activations.create as c\nc.reserve = die",
            )
    else:
        program += f"os.{moment} = die\nwrite()\n"
    killed = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.exists() is packing
    assert (tmp_path / ".acts.h5.new").exists()
    again = KILLED_AT + "write()\n"
    subprocess.run([sys.executable, "-c", again, str(path)], check=True)
    assert only(tmp_path) == ["acts.h5"]
    with ActivationStore(path) as store:
        assert (store.layer() == 1).all()


N_ROWS, WIDTH, LAYERS = 3000, 96, (0, 5)

WRITER = f"""
import sys, time
import numpy as np
from probekit.activations.create import Plan
from probekit.activations.writer import StoreWriter
n, width, layers = {N_ROWS}, {WIDTH}, {LAYERS}
class Careless(StoreWriter):
    def flush(self):  # marks first, writes later: what the store must never do
        late, self.late = self.late, []
        self._pending = [rows for rows, *_ in late]
        super().flush()
        time.sleep(0.02)  # so that a kill is likely to come between
        for rows, *rest in late:
            self._columns["done"][rows] = 0
            StoreWriter.write(self, rows, *rest)
            self._columns["done"][rows] = 1
        self._pending = []
    def write(self, *row):
        self.late.append(row)
kind = {{"right": StoreWriter, "careless": Careless}}[sys.argv[2]]
kind.late = []
ids, hashes = [str(i) for i in range(n)], ["0" * 16] * n
plan = Plan({{}}, ids, hashes, dict.fromkeys(layers, width), "float32")
writer = kind.open(sys.argv[1], plan)
todo = np.random.default_rng(0).permutation(n)
todo = todo[~writer.done[todo]]
print(len(todo), flush=True)
for at, rows in enumerate(np.array_split(todo, max(1, len(todo) // 16))):
    states = {{i: np.repeat(rows[:, None] + i / 8, width, 1).astype(np.float32) for i in layers}}
    writer.write(rows, states, rows + 1, rows % 2)
    if at % 4 == 3:
        writer.flush()
writer.flush()
writer.finish()
"""


def wrong_rows(path: Path) -> tuple[int, int]:
    """Rows that are marked done, and how many of them are not what was to be written."""
    with h5py.File(path, "r") as file:  # plain h5py: a killed writer's file must open anywhere
        done = np.flatnonzero(file["rows/done"][:])
        wrong = np.zeros(len(done), bool)
        for layer in LAYERS:
            expected = (done[:, None] + layer / 8).astype(np.float32)
            wrong |= (file[f"layers/{layer}"][:][done] != expected).any(1)
        wrong |= file["rows/n_tokens"][:][done] != done + 1
        wrong |= file["rows/truncated"][:][done] != done % 2
    return len(done), int(wrong.sum())


def run_and_kill(path: Path, kind: str, seconds: float) -> int:
    """Start a writer, kill it ``seconds`` after it has begun; -9 where that came in time."""
    run = [sys.executable, "-c", WRITER, str(path), kind]
    with subprocess.Popen(run, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], 60)
        assert ready
        process.stdout.readline()
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def test_no_row_is_marked_done_before_it_is_written_whenever_the_writer_is_killed(
    tmp_path: Path,
) -> None:
    rng, path, killed, finished = random.Random(0), tmp_path / "acts.h5", 0, 0
    counts = [0]
    while killed < 10:
        if run_and_kill(path, "right", rng.uniform(0, 0.04)) == -signal.SIGKILL:
            killed += 1
            done, wrong = wrong_rows(path)
            assert wrong == 0
            assert done >= counts[-1]  # nothing that was done is lost
            counts.append(done)
        else:
            finished += 1
            path.unlink()
            counts = [0]
        assert finished < 10
    assert run_and_kill(path, "right", 60) == 0
    assert wrong_rows(path) == (N_ROWS, 0)
    assert ActivationStore(path).complete


def test_control_a_writer_that_marks_first_is_caught(tmp_path: Path) -> None:
    rng, caught = random.Random(0), 0
    for attempt in range(40):
        path = tmp_path / f"{attempt}.h5"
        run_and_kill(path, "careless", rng.uniform(0, 0.15))
        caught += wrong_rows(path)[1] > 0
        if caught:
            return
    pytest.fail("forty kills of a careless writer, and no row marked done was wrong")
