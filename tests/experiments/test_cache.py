"""Steps: done once, in order, found again by what they depend on."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from probekit import files
from probekit.errors import DataError, StoppedError, WriteError
from probekit.experiments.cache import Cache, Step, in_order
from probekit.files import beside, locked


def a_step(
    name: str, calls: list[str], *inputs: Step, params: Mapping[str, Any] | None = None
) -> Step:
    def make(folder: Path, given: Mapping[str, Path]) -> None:
        calls.append(name)
        text = "+".join((path / "out").read_text() for path in given.values())
        (folder / "out").write_text(f"{name}({text})")

    return Step(
        name,
        "test",
        params or {"name": name},
        make,
        inputs={str(i): step for i, step in enumerate(inputs)},
    )


def test_each_step_is_done_once_after_what_it_reads(tmp_path: Path) -> None:
    calls: list[str] = []
    lines: list[str] = []
    first = a_step("a", calls)
    left, right = a_step("b", calls, first), a_step("c", calls, first)
    last = a_step("d", calls, left, right)
    cache = Cache(tmp_path, lines.append)
    cache.run([last, right])
    assert calls == ["a", "b", "c", "d"]
    assert (cache.path(last) / "out").read_text() == "d(b(a())+c(a()))"
    # A line when it starts, one when it ends.
    assert lines[0] == "[1/4] a: started"
    assert re.fullmatch(r"\[1/4\] a: \d+\.\d s", lines[1])
    assert [line.split("] ")[1].split(":")[0] for line in lines[::2]] == calls
    assert cache.seconds(last) >= 0

    Cache(tmp_path, lines.append).run([last])
    assert calls == ["a", "b", "c", "d"]
    assert all("done before" in line for line in lines[8:])


def test_key_follows_everything_that_a_step_depends_on() -> None:
    calls: list[str] = []
    one, other = a_step("a", calls), a_step("a", calls, params={"name": "a", "lr": 1e-3})
    same = a_step("a", calls)
    assert one.key == same.key != other.key
    assert a_step("b", calls, one).key == a_step("b", calls, same).key
    assert a_step("b", calls, one).key != a_step("b", calls, other).key  # through its input
    assert in_order([a_step("b", calls, one), same])[0].key == one.key


def test_names_and_places_are_not_part_of_the_key() -> None:
    def make(folder: Path, given: Mapping[str, Path]) -> None: ...

    one = Step("first", "test", {"x": 1}, make, rows=5)
    assert one.key == Step("second", "test", {"x": 1}, make, model="elsewhere").key
    assert one.key != Step("first", "other", {"x": 1}, make).key


def test_failed_step_is_done_again_in_its_folder(tmp_path: Path) -> None:
    calls: list[int] = []

    def make(folder: Path, given: Mapping[str, Path]) -> None:
        calls.append(len(list(folder.glob("part*"))))
        (folder / f"part{len(calls)}").write_text("")
        if len(calls) == 1:
            raise DataError("no")

    step = Step("s", "test", {}, make)
    cache = Cache(tmp_path, lambda _: None)
    cache.run([step])
    cache.run([step])
    assert calls == [0], "it is not tried twice in one run"
    assert cache.failure(step) == "no"
    assert not cache.done(step)
    again = Cache(tmp_path, lambda _: None)
    again.run([step])
    assert calls == [0, 1]  # the second attempt resumes what the first left
    assert again.done(step)
    assert again.failure(step) is None


class TestFailures:
    def failing(self, error: BaseException) -> Step:
        def make(folder: Path, given: Mapping[str, Path]) -> None:
            raise error

        return Step("seed 0: filter", "test", {}, make)

    def test_what_reads_it_is_left_out_and_all_else_goes_on(self, tmp_path: Path) -> None:
        calls: list[str] = []
        lines: list[str] = []
        broken = self.failing(DataError("The set is empty."))
        child = a_step("child", calls, broken)
        cache = Cache(tmp_path, lines.append)
        cache.run([a_step("grandchild", calls, child), a_step("other", calls)])
        assert calls == ["other"]
        assert cache.failure(broken) == "The set is empty"
        # Both name where it began, not the step between.
        for name in ("child", "grandchild"):
            told = f"{name}: left out because its step 'seed 0: filter' failed: The set is empty"
            assert any(line.endswith(told) for line in lines)
        assert cache.failure(a_step("other", calls)) is None

    @pytest.mark.parametrize("error", [RuntimeError("singular\nmatrix"), ZeroDivisionError()])
    def test_what_a_library_raises_is_a_reason(self, error: Exception, tmp_path: Path) -> None:
        step = self.failing(error)
        cache = Cache(tmp_path, lambda _: None)
        cache.run([step])
        reason = cache.failure(step)
        assert reason is not None
        assert reason.startswith(type(error).__name__)
        assert "\n" not in reason
        assert "PROBEKIT_TRACEBACK=1" in reason

    def test_with_a_traceback_where_it_is_asked_for(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PROBEKIT_TRACEBACK", "1")
        with pytest.raises(RuntimeError):
            Cache(tmp_path, lambda _: None).run([self.failing(RuntimeError("bug"))])

    @pytest.mark.parametrize(
        "error",
        [
            OSError(28, "No space left on device"),
            RuntimeError("I/O error: No space left on device (os error 28)"),  # safetensors'
            WriteError("x"),
            StoppedError("x"),
            MemoryError(),
            KeyboardInterrupt(),
        ],
    )
    def test_what_is_wrong_with_the_machine_ends_the_run(
        self, error: BaseException, tmp_path: Path
    ) -> None:
        with pytest.raises(type(error)):
            Cache(tmp_path, lambda _: None).run([self.failing(error)])


def test_two_processes_do_a_step_once(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import sys, time
        from pathlib import Path
        from probekit.experiments.cache import Cache, Step

        def make(folder, given):
            time.sleep(0.5)
            with (folder / "calls").open("a") as file:
                file.write("x")

        Cache(Path(sys.argv[1]), print).run([Step("s", "test", {}, make)])
        """
    )
    started = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.DEVNULL)
        for _ in range(2)
    ]
    assert [process.wait(60) for process in started] == [0, 0]
    assert next(tmp_path.glob("test-*/calls")).read_text() == "x"


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_it_continues_with_a_warning(
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Lustre without flock says "Function not implemented"."""

    def refuse(file: Any, how: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    monkeypatch.setattr(files, "_warned", [])
    calls: list[str] = []
    cache = Cache(tmp_path, lambda _: None)
    cache.run([a_step("a", calls), a_step("b", calls)])
    assert calls == ["a", "b"]
    told = capsys.readouterr().err
    assert told.count("has no locks; let no second command write there") == 1
    # The control: what is no lack of locks is not passed over.
    code = errno.EBADF
    with pytest.raises(OSError, match="Bad file"):
        cache.run([a_step("c", calls)])


def test_the_lock_of_a_run_killed_at_the_end_of_a_step_is_cleared(tmp_path: Path) -> None:
    step = a_step("a", [])
    Cache(tmp_path, lambda _: None).run([step])
    left = beside(Cache(tmp_path, print).path(step), ".probekit-lock")
    left.touch()
    Cache(tmp_path, lambda _: None).run([step])
    assert not left.exists()
    with locked(Cache(tmp_path, print).path(step)):  # the control: its writer is alive
        Cache(tmp_path, lambda _: None).run([step])
        assert left.exists()


def test_damaged_record_is_told(tmp_path: Path) -> None:
    step = a_step("a", [])
    cache = Cache(tmp_path, lambda _: None)
    cache.run([step])
    (cache.path(step) / "done.json").write_text("{")
    with pytest.raises(DataError, match="damaged; remove the folder"):
        cache.seconds(step)
