"""What is written, where, by whom: no input is replaced, one writer at a time, whole or not."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from probekit.errors import (
    DataError,
    OutputExistsError,
    UsageError,
    WriteError,
    disk_errno,
    disk_errors,
    is_out_of_memory,
)
from probekit.files import (
    TEMPORARY,
    atomic_write,
    beside,
    locked,
    refuse_inside,
    refuse_reads,
)
from probekit.labels import WeakLabels, load_labels
from probekit.output_tables import write_table
from probekit.sidecars import read_sidecar


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Rows under many names, in the working directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "rows.jsonl"
    path.write_text("{}\n")
    (tmp_path / "rows.jsonl.meta.json").write_text("{}")
    (tmp_path / "link.jsonl").symlink_to("rows.jsonl")
    (tmp_path / "hard.jsonl").hardlink_to(path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inner.jsonl").write_text("{}\n")
    (tmp_path / "way").symlink_to("folder")
    return path


@pytest.mark.usefixtures("rows")
class TestInputs:
    @pytest.mark.parametrize(
        "output",
        ["rows.jsonl", "./rows.jsonl", "folder/../rows.jsonl", "link.jsonl", "hard.jsonl"],
    )
    @pytest.mark.parametrize("read", ["rows.jsonl", "link.jsonl", "n=rows.jsonl", "x,rows.jsonl"])
    def test_no_input_is_replaced_under_any_name(self, output: str, read: str) -> None:
        with pytest.raises(UsageError, match="is read here"):
            refuse_reads([Path(output)], [read])
        refuse_reads([Path("other.jsonl")], [read])  # the control

    def test_what_describes_a_file_counts_as_the_file(self) -> None:
        with pytest.raises(UsageError, match="is read here"):
            refuse_reads([Path("rows.jsonl.meta.json")], ["rows.jsonl"])
        with pytest.raises(UsageError, match="named twice"):
            refuse_reads([Path("new.jsonl"), Path("new.jsonl.meta.json")], [])

    @pytest.mark.parametrize("two", [("n.jsonl", "./n.jsonl"), ("link.jsonl", "hard.jsonl")])
    def test_no_two_outputs_are_one(self, two: tuple[str, str]) -> None:
        with pytest.raises(UsageError, match="named twice"):
            refuse_reads([Path(each) for each in two], [])
        refuse_reads([Path("n.jsonl"), Path("m.jsonl")], [])

    def test_no_file_of_a_folder_that_is_read_is_replaced(self) -> None:
        inner = Path("way/inner.jsonl")
        with pytest.raises(UsageError, match="lies in folder, which is read"):
            refuse_reads([inner], ["folder"], overwrite=True)
        refuse_reads([inner], ["folder"])  # resumed, not replaced
        refuse_reads([Path("folder/new.jsonl")], ["folder"], overwrite=True)

    def test_no_folder_is_replaced_that_holds_an_input(self) -> None:
        for read in ("folder/inner.jsonl", "way/inner.jsonl", "n=folder/inner.jsonl"):
            with pytest.raises(UsageError, match="which would be replaced"):
                refuse_inside(Path("way"), [read])
        refuse_inside(Path("folder"), ["rows.jsonl", "docstrings@student", "x" * 5000])


class TestLocks:
    def test_a_second_writer_is_refused_and_no_file_stays(self, tmp_path: Path) -> None:
        target = tmp_path / "out.parquet"
        with locked(target):
            (tmp_path / "link").symlink_to("out.parquet")
            for name in ("out.parquet", "link"):
                with (
                    pytest.raises(WriteError, match="being written by another process"),
                    locked(tmp_path / name),
                ):
                    pass
            with locked(tmp_path / "other"):  # the control
                pass
        with locked(target):
            pass
        assert [path.name for path in tmp_path.iterdir()] == ["link"]

    def test_a_killed_writer_holds_nothing(self, tmp_path: Path) -> None:
        script = textwrap.dedent(
            """
            import os, signal, sys
            from pathlib import Path
            from probekit.files import atomic_write
            from probekit.files import locked
            with locked(Path(sys.argv[1]), command="c"):
                with atomic_write(sys.argv[1], "w") as file:
                    file.write("made")
                os.kill(os.getpid(), signal.SIGKILL)
            """
        )
        target = tmp_path / "out.txt"
        done = subprocess.run([sys.executable, "-c", script, str(target)], check=False)
        assert done.returncode == -signal.SIGKILL
        with locked(target, command="c") as lock:
            assert lock.wrote  # by the same command, which may replace it
        assert list(tmp_path.iterdir()) == [target]

    def test_only_the_same_command_replaces_what_it_had_put(self, tmp_path: Path) -> None:
        target = tmp_path / "out.txt"

        def stopped(command: str) -> None:
            with locked(target, command=command):
                with atomic_write(target, "w") as file:
                    file.write("x")
                raise KeyboardInterrupt

        for again, same in (("a", True), ("b", False)):
            with pytest.raises(KeyboardInterrupt):
                stopped("a")
            with locked(target, command=again) as lock:
                assert lock.wrote is same
        with pytest.raises(KeyboardInterrupt):
            stopped("a")
        target.write_text("somebody else's")
        with locked(target, command="a") as lock:
            assert not lock.wrote

    @pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
    def test_a_file_system_without_locks_is_warned_of(
        self,
        code: int,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        def refuse(*_: object) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(fcntl, "flock", refuse)
        monkeypatch.setattr("probekit.files._warned", [])
        with locked(tmp_path / "a"), atomic_write(tmp_path / "a") as file:
            file.write(b"x")
        assert (tmp_path / "a").read_bytes() == b"x"
        assert capsys.readouterr().err.count("has no locks") == 1

    def test_long_names_have_a_lock_too(self, tmp_path: Path) -> None:
        target = tmp_path / ("n" * 250)
        with locked(target), atomic_write(target, "w") as file:
            file.write("x")
        assert list(tmp_path.iterdir()) == [target]


class TestLeftovers:
    def test_of_a_kill_are_cleared_and_nothing_else(self, tmp_path: Path) -> None:
        target = tmp_path / "v.parquet"
        left = tmp_path / f".v.parquet.abcd_123{TEMPORARY}"
        foreign = [
            tmp_path / name
            for name in (".v.parquet.backup01", f".w.parquet.abcd_123{TEMPORARY}", ".v.parquet.swp")
        ]
        for path in (left, *foreign):
            path.write_text("x")
        with atomic_write(target, "w") as file:
            file.write("y")
        assert sorted(tmp_path.iterdir()) == sorted([target, *foreign])

    def test_who_is_alive_goes_on(self, tmp_path: Path) -> None:
        target = tmp_path / "v.parquet"
        with atomic_write(target, "w") as slow:
            slow.write("slow")
            with atomic_write(target, "w") as fast:
                fast.write("fast")
            assert target.read_text() == "fast"
        assert target.read_text() == "slow"
        assert list(tmp_path.iterdir()) == [target]


def labels(names: tuple[str, str], p: float) -> WeakLabels:
    return WeakLabels(["a", "b"], None, np.array([[p, 1 - p], [1 - p, p]]), names)


class TestTwoFiles:
    """``x.jsonl`` and ``x.jsonl.meta.json``, stopped before each of their moves into place."""

    @pytest.mark.parametrize("first", [True, False], ids=["new", "replaced"])
    def test_stopped_anywhere_the_old_or_the_new_is_there(
        self, first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path, true = tmp_path / "w.jsonl", os.replace
        seen = set()
        for moves in range(4):
            for each in tmp_path.iterdir():
                each.unlink()
            if not first:
                labels(("spam", "ham"), 0.9).save(path)
            left = [moves]

            def stop(a: str, b: Path, left: list[int] = left) -> None:
                if not left[0]:
                    raise KeyboardInterrupt
                left[0] -= 1
                true(a, b)

            monkeypatch.setattr(os, "replace", stop)
            with contextlib.suppress(KeyboardInterrupt):
                labels(("neg", "pos"), 0.2).save(path)
            monkeypatch.setattr(os, "replace", true)
            if not path.exists():
                seen.add(None)
                continue
            result = load_labels(path)
            seen.add((result.classes, round(float(result.probs[0, 0]), 9)))
        old = None if first else (("spam", "ham"), 0.9)
        assert seen == {old, (("neg", "pos"), 0.2)}

    def test_the_description_of_an_earlier_file_goes(self, tmp_path: Path) -> None:
        path = tmp_path / "w.jsonl"
        labels(("spam", "ham"), 0.9).save(path)
        write_table({"id": ["a"], "label": [0]}, path)
        assert list(tmp_path.iterdir()) == [path]
        (tmp_path / "w.jsonl.meta.json").write_text('{"mine": 1}')
        write_table({"id": ["a"], "label": [1]}, path)
        with pytest.raises(OutputExistsError, match="was not written by probekit"):
            labels(("spam", "ham"), 0.9).save(path)
        assert json.loads((tmp_path / "w.jsonl.meta.json").read_text()) == {"mine": 1}

    def test_two_that_do_not_belong_together_are_reported(self, tmp_path: Path) -> None:
        path = tmp_path / "w.jsonl"
        labels(("spam", "ham"), 0.9).save(path)
        about = read_sidecar(path)
        assert about is not None
        assert about["classes"] == ["spam", "ham"]
        text = path.read_text()
        path.write_text(text.replace("0.9", "0.8"))  # of the same size
        with pytest.raises(DataError, match="describes: one of the two was changed"):
            load_labels(path)

    def test_a_packed_name_is_not_written_unpacked(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"ending '\.gz'"):
            write_table({"id": ["a"]}, tmp_path / "w.jsonl.gz")


def _raise(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


class TestTrouble:
    @pytest.mark.parametrize(
        "error",
        [
            OSError(errno.ENOSPC, "No space left on device"),
            OSError("[Errno 28] Error writing bytes to file. Detail: No space left on device"),
            RuntimeError("I/O error: No space left on device (os error 28)"),
            Exception("No space left on device (os error 28)"),
            RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 128 vs 64"),
            RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"),
            OSError("Unable to write (file write failed: errno = 28, error message = 'No space')"),
        ],
        ids=repr,
    )
    def test_a_full_disk_in_every_language(self, error: Exception, tmp_path: Path) -> None:
        assert disk_errno(error) == errno.ENOSPC
        pattern = r"model needs 2\.0 MB, but .* are free .*; free some space, then run the same"
        with (
            pytest.raises(WriteError, match=pattern),
            disk_errors(tmp_path / "model", needed=2_000_000),
        ):
            _raise(error)()

    def test_other_failures_stay_what_they_are(self, tmp_path: Path) -> None:
        for error in (ValueError("28"), RuntimeError("shapes differ"), KeyboardInterrupt()):
            assert disk_errno(error) is None
            with pytest.raises(type(error)), disk_errors(tmp_path):
                raise error

    @pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EFBIG])
    def test_each_refusal_has_its_repair(self, code: int, tmp_path: Path) -> None:
        repairs = {
            errno.EROFS: "read-only; name an output",
            errno.EACCES: "change the rights",
            errno.EDQUOT: "your quota on its disk is less; free some space",
            errno.EFBIG: "file",
        }
        with pytest.raises(WriteError, match=repairs[code]), disk_errors(tmp_path / "x"):
            raise OSError(code, os.strerror(code))

    def test_memory(self) -> None:
        assert is_out_of_memory(MemoryError())
        assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: not enough memory: you tried"))
        assert is_out_of_memory(OSError(errno.ENOMEM, "Cannot allocate memory"))
        assert not is_out_of_memory(RuntimeError("size mismatch"))


def test_hidden_names_stand_beside_their_file() -> None:
    assert beside(Path("a/b"), ".x") == Path("a/.b.x")
    assert len(beside(Path("n" * 250), ".x").name) < 60
