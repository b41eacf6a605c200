"""The folder of a training: claimed late, held by one, replaced only by what is whole."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from probekit.errors import OutputExistsError, WriteError
from probekit.students import folder as folders
from probekit.students.folder import Folder, checkpoint_error, last_checkpoint, mark

MEASURED = {
    "objective": "lm",
    "rows": 1,
    "steps": 1,
    "train_loss": 0.5,
    "history": [],
    "seconds": 1,
}
ONE, TWO = {"lr": 1.0}, {"lr": 2.0}


class Killed(BaseException):
    """Stands in for SIGKILL: nothing of ours catches it."""


def train(path: Path, settings: dict[str, Any], **how: bool) -> None:
    """What a training does with its folder."""
    with Folder.claim(path, settings, **how) as folder:
        if folder.metrics is None:
            folder.begin()
            folder.model.mkdir(exist_ok=True)
            (folder.model / "weights").write_text(json.dumps(settings))
            folder.finish({**MEASURED, "of": settings["lr"]})


def stopped(
    path: Path,
    settings: dict[str, Any],
    error: BaseException,
    *,
    step: int,
    marked: bool = True,
    **how: bool,
) -> None:
    """A training that ends after its first checkpoint."""
    with Folder.claim(path, settings, **how) as folder:
        folder.begin()
        checkpoint(folder.work / "checkpoints", step, marked=marked)
        raise error


def result(path: Path) -> float | None:
    """Which training's result lies there; fails where it is a mixture or half of one."""
    if not path.exists():
        return None
    written = [json.loads((path / name).read_text()) for name in ("metrics.json", "run.json")]
    weights = json.loads((path / "model" / "weights").read_text())
    assert written[0]["of"] == written[1]["settings"]["lr"] == weights["lr"]
    return float(weights["lr"])


class TestClaim:
    def test_what_is_refused_early_leaves_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="loss"), Folder.claim(tmp_path / "s", ONE):
            raise ValueError("no such loss")
        assert list(tmp_path.iterdir()) == []
        train(tmp_path / "s", TWO)  # the corrected command

    def test_a_run_that_came_to_nothing_gives_way(self, tmp_path: Path) -> None:
        path = tmp_path / "s"
        with pytest.raises(ValueError, match="diverged"):
            stopped(path, ONE, ValueError("diverged"), step=1, marked=False)
        train(path, TWO)
        assert result(path) == 2
        assert not (path / "checkpoints").exists()

    def test_a_run_with_a_checkpoint_does_not(self, tmp_path: Path) -> None:
        path = tmp_path / "s"
        with pytest.raises(KeyboardInterrupt) as caught:
            stopped(path, ONE, KeyboardInterrupt(), step=7)
        assert "checkpoint of step 7 is kept" in caught.value.__notes__[0]
        with pytest.raises(OutputExistsError, match=r"another run .lr differ.*--overwrite"):
            train(path, TWO)
        with Folder.claim(path, ONE) as folder:
            assert folder.last_checkpoint() == str(path / "checkpoints" / "checkpoint-7")

    def test_only_one_trains_there(self, tmp_path: Path) -> None:
        with Folder.claim(tmp_path / "s", ONE):
            with pytest.raises(WriteError, match="written by another process"):
                train(tmp_path / "s", ONE)
            train(tmp_path / "t", ONE)  # the control

    @pytest.mark.parametrize(
        "note", ['{"my": "app"}', '{"key": "0123456789abcdef", "settings": {}}', "[]", "{"]
    )
    def test_folders_of_other_programs_are_never_touched(self, note: str, tmp_path: Path) -> None:
        path = tmp_path / "app"
        (path / "model").mkdir(parents=True)
        (path / "run.json").write_text(note)
        (path / "model" / "x").write_text("precious")
        for how in ({}, {"overwrite": True}, {"resume": False}):
            with pytest.raises((OutputExistsError, folders.DataError)):
                train(path, ONE, **how)
        assert (path / "model" / "x").read_text() == "precious"
        assert [each.name for each in tmp_path.iterdir()] == ["app"]

    def test_a_folder_of_an_earlier_version_is_known(self, tmp_path: Path) -> None:
        path = tmp_path / "s"
        train(path, ONE)
        note = json.loads((path / "run.json").read_text())
        del note["format"]
        (path / "run.json").write_text(json.dumps(note))
        train(path, TWO, overwrite=True)
        assert result(path) == 2


class TestOverwrite:
    def test_the_old_result_stays_until_the_new_one_is_whole(self, tmp_path: Path) -> None:
        path = tmp_path / "s"
        train(path, ONE)
        (path / "notes.txt").write_text("mine")
        with (
            pytest.raises(ValueError, match="no such model"),
            Folder.claim(path, TWO, overwrite=True),
        ):
            raise ValueError("no such model")
        assert result(path) == 1
        with pytest.raises(KeyboardInterrupt):
            stopped(path, TWO, KeyboardInterrupt(), step=3, overwrite=True)
        assert result(path) == 1
        with Folder.claim(path, TWO, overwrite=True) as folder:
            assert folder.last_checkpoint() is not None  # resumed
        train(path, TWO, overwrite=True)
        assert result(path) == 2
        assert (path / "notes.txt").read_text() == "mine"
        assert [each.name for each in tmp_path.iterdir()] == ["s"]

    @pytest.mark.parametrize("atomic", [True, False], ids=["exchange", "two renames"])
    def test_killed_at_any_call_one_of_both_is_there_and_the_command_ends_it(
        self, atomic: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The calls that move, make or remove names, one after the other."""
        path = tmp_path / "s"
        seen: set[float | None] = set()
        for calls in range(40):
            for each in tmp_path.iterdir():
                shutil.rmtree(each) if each.is_dir() else each.unlink()
            train(path, ONE)
            (path / "notes.txt").write_text("mine")
            with killed_after(calls, monkeypatch, atomic=atomic) as reached:
                train(path, TWO, overwrite=True)
            there = result(path)
            seen.add(there)
            if atomic:
                assert there is not None
            train(path, TWO, overwrite=there != 2)
            assert result(path) == 2
            assert (path / "notes.txt").read_text() == "mine"
            if not reached:
                break
        else:
            pytest.fail("never came to its end")
        assert seen >= {1.0, 2.0}


@contextmanager
def killed_after(
    calls: int, monkeypatch: pytest.MonkeyPatch, *, atomic: bool
) -> Iterator[list[bool]]:
    """End at a call of the system, once so many have been made; true where it came to that."""
    left, reached = [calls], []

    def counted(true: Any) -> Any:
        def call(*args: Any, **more: Any) -> Any:
            if not left[0] or reached:  # a dead process calls nothing more
                reached.append(True)
                raise Killed
            left[0] -= 1
            return true(*args, **more)

        return call

    def no_exchange(*_: object) -> None:
        raise OSError

    with monkeypatch.context() as patch:
        for name in ("replace", "rename", "rmdir", "mkdir", "unlink"):
            patch.setattr(os, name, counted(getattr(os, name)))
        patch.setattr(folders, "_exchange", counted(folders._exchange) if atomic else no_exchange)
        with suppress(Killed):
            yield reached


def checkpoint(folder: Path, step: int, *, best: int | None = None, marked: bool = True) -> Path:
    """A checkpoint as the Trainer leaves it."""
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (path / name).write_text(f"{name} {step}" * 9)
    state = {"global_step": step, "best_global_step": best, "best_model_checkpoint": best and "x"}
    (path / "trainer_state.json").write_text(json.dumps(state))
    if marked:
        mark(path)
    return path


FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


class TestCheckpoints:
    @pytest.mark.parametrize("name", FILES)
    @pytest.mark.parametrize("how", ["cut", "changed", "gone", "empty"])
    def test_a_damaged_one_falls_back_to_the_one_before_and_says_so(
        self, name: str, how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before, last = checkpoint(tmp_path, 5), checkpoint(tmp_path, 12)
        assert last_checkpoint(tmp_path, clear=True) == last  # the control
        path = last / name
        data = path.read_bytes()
        if how == "gone":
            path.unlink()
        else:
            changed = bytes([data[0] ^ 1]) + data[1:]
            path.write_bytes({"cut": data[:-3], "changed": changed, "empty": b""}[how])
        assert name in str(checkpoint_error(last))
        assert last_checkpoint(tmp_path, clear=True) == before
        written = capsys.readouterr().err
        assert "checkpoint of step 12" in written
        assert name in written
        assert written.endswith("resuming from step 5.\n")
        assert not last.exists()

    def test_one_without_a_mark_was_not_written_to_its_end(self, tmp_path: Path) -> None:
        checkpoint(tmp_path, 10, marked=False)
        assert last_checkpoint(tmp_path, clear=False) is None
        checkpoint(tmp_path, 9)
        assert last_checkpoint(tmp_path, clear=True) == tmp_path / "checkpoint-9"

    def test_what_was_not_written_with_it_is_never_loaded(self, tmp_path: Path) -> None:
        path = checkpoint(tmp_path, 1)
        (path / "pytorch_model.bin").write_text("x")
        assert "pytorch_model.bin" in str(checkpoint_error(path))
        (path / "pytorch_model.bin").unlink()
        assert checkpoint_error(path) is None
        target = tmp_path / "elsewhere.pt"
        (path / "optimizer.pt").rename(target)
        (path / "optimizer.pt").symlink_to(target)
        assert "optimizer.pt is damaged" in str(checkpoint_error(path))

    def test_the_best_one_that_it_names_must_be_whole_too(self, tmp_path: Path) -> None:
        checkpoint(tmp_path, 3)
        best = checkpoint(tmp_path, 5)
        checkpoint(tmp_path, 9, best=5)
        assert last_checkpoint(tmp_path, clear=False) == tmp_path / "checkpoint-9"
        (best / "model.safetensors").write_bytes(b"")
        assert last_checkpoint(tmp_path, clear=True) == tmp_path / "checkpoint-3"
