"""One store from several processes, and from the shares of machines without a shared disk."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probekit.activations.create import Plan
from probekit.activations.extraction import extract
from probekit.activations.member import MemberWriter
from probekit.activations.merge import merge
from probekit.activations.ranks import Ranks, local_device, ranks_from_environment
from probekit.activations.store import ActivationStore
from probekit.activations.writer import StoreWriter
from probekit.errors import StaleStoreError, StoreError, UsageError

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "seven"]


@pytest.fixture
def rows(write_jsonl: Callable[..., Path]) -> Path:
    """400 rows of 1 to 40 words."""
    texts = [" ".join(WORDS[(i + j) % 11] for j in range(1 + i * 7 % 40)) for i in range(400)]
    return write_jsonl([{"id": f"r{i}", "text": text} for i, text in enumerate(texts)])


def start(
    arguments: Sequence[str], folders: Sequence[Path], **environment: str
) -> list[subprocess.Popen[str]]:
    """One process of ``probekit extract`` per folder, joined as torchrun would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(len(folders))}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "probekit", "extract", *arguments],
            cwd=folder,
            env={**os.environ, **common, **environment, "RANK": str(i), "LOCAL_RANK": str(i)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for i, folder in enumerate(folders)
    ]


def finish(processes: Sequence[subprocess.Popen[str]]) -> list[str]:
    outputs = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), outputs
    return outputs


def assert_equal_stores(first: Path, second: Path) -> None:
    """Ids, hashes and counts exactly; states too, as all plan the same batches."""
    with ActivationStore(first) as one, ActivationStore(second) as other:
        assert one.ids == other.ids
        assert one.hashes == other.hashes
        np.testing.assert_array_equal(one.n_tokens, other.n_tokens)
        for layer in one.layers:
            np.testing.assert_array_equal(one.layer(layer), other.layer(layer))


def done_rows(path: Path) -> Any:
    with ActivationStore(path, allow_incomplete=True) as store:
        return store.done


def test_two_processes_make_the_store_of_one(
    rows: Path, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = str(tiny_model("llama"))
    extract(rows, model, layers="all", output=tmp_path / "one.h5", batch_tokens=256).close()
    log = [str(rows), "-m", model, "--layers", "all", "-o", "two.h5", "--batch-tokens", "256"]
    outputs = finish(start([*log, "--forward-log", "forwarded"], [tmp_path, tmp_path]))
    assert_equal_stores(tmp_path / "one.h5", tmp_path / "two.h5")
    assert "400 rows" in outputs[0]
    assert "done before" not in outputs[0]
    assert outputs[1] == ""
    forwarded = [int(line) for line in (tmp_path / "forwarded").read_text().split()]
    assert sum(forwarded) == 400  # no row twice
    assert not list(tmp_path.glob("two.h5.*"))


@pytest.mark.slow
def test_killed_rank_resumes(rows: Path, tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    model = str(tiny_model("llama"))
    extract(rows, model, layers="all", output=tmp_path / "one.h5", batch_tokens=64).close()
    command = [str(rows), "-m", model, "--layers", "all", "-o", "two.h5", "--batch-tokens", "64"]
    command += ["--flush-rows", "1", "--forward-log", "forwarded"]
    processes = start(command, [tmp_path, tmp_path])
    log, deadline = tmp_path / "forwarded", time.monotonic() + 60
    while not (log.exists() and len(log.read_text().split()) > 8):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    processes[1].send_signal(signal.SIGKILL)
    processes[0].send_signal(signal.SIGKILL)
    for process in processes:
        process.communicate()
    log.unlink()
    finish(start(command, [tmp_path, tmp_path]))
    assert_equal_stores(tmp_path / "one.h5", tmp_path / "two.h5")
    again = sum(int(line) for line in log.read_text().split())
    assert again < 400  # the control: what was marked done is not forwarded again


@pytest.mark.slow
def test_disks_of_their_own_are_merged(
    rows: Path, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = str(tiny_model("gpt2", "bfloat16"))
    extract(rows, model, layers="all", output=tmp_path / "one.h5", batch_tokens=256).close()
    folders = [tmp_path / "node0", tmp_path / "node1"]
    for folder in folders:
        folder.mkdir()
    outputs = finish(
        start(
            [str(rows), "-m", model, "--layers", "all", "-o", "acts.h5", "--batch-tokens", "256"],
            folders,
        )
    )
    assert "probekit merge" in outputs[0]
    parts = [folder / "acts.h5" for folder in folders]
    done = [done_rows(part) for part in parts]
    assert (done[0] ^ done[1]).all()
    assert 100 < done[0].sum() < 300
    assert merge(parts, tmp_path / "all.h5") == 400
    assert_equal_stores(tmp_path / "one.h5", tmp_path / "all.h5")


class TestNotes:
    def plan(self, n: int = 10) -> Plan:
        names = [f"r{i}" for i in range(n)]
        return Plan({"model": "m"}, names, ["0" * 16] * n, {0: 3}, "float32", None)

    def open(self, path: Path, n: int = 10, **more: Any) -> StoreWriter:
        plan = self.plan(n)
        return StoreWriter.open(
            path,
            spec={"model": "m"},
            ids=plan.ids,
            hashes=plan.hashes,
            widths={0: 3},
            store_dtype="float32",
            **more,
        )

    def write(self, writer: StoreWriter, rows: Sequence[int]) -> None:
        states = np.repeat(np.asarray(rows, np.float32)[:, None], 3, 1)
        writer.write(np.array(rows), {0: states}, np.array(rows), np.zeros(len(rows), dtype=bool))

    def done(self, path: Path) -> list[int]:
        with self.open(path) as writer:
            return writer.done.nonzero()[0].tolist()

    def test_leader_takes_over_what_a_member_noted(self, tmp_path: Path) -> None:
        path = tmp_path / "acts.h5"
        with self.open(path) as leader:
            with MemberWriter(path, self.plan(), 1) as member:
                self.write(leader, [0, 2, 4, 6, 8])
                self.write(member, [1, 3, 5, 7])
            assert not leader.done[1]
            leader.take_notes()
            leader.flush()
            assert leader.done.tolist() == [True] * 9 + [False]
            with pytest.raises(StoreError, match="lacks 1 of 10 rows"):
                leader.finish()
            self.write(leader, [9])
            leader.finish()
        with ActivationStore(path) as store:
            np.testing.assert_array_equal(store.layer(0)[:, 0], np.arange(10))
            np.testing.assert_array_equal(store.n_tokens, np.arange(10))

    def test_unflushed_rows_are_not_noted(self, tmp_path: Path) -> None:
        path = tmp_path / "acts.h5"
        with self.open(path) as leader, MemberWriter(path, self.plan(), 1) as member:
            self.write(member, [1, 2])
            leader.take_notes()
            assert not leader.done.any()

    def test_single_process_takes_notes_of_a_killed_run(self, tmp_path: Path) -> None:
        path = tmp_path / "acts.h5"
        self.open(path).close()
        with MemberWriter(path, self.plan(), 3) as member:
            self.write(member, [4])
        assert list(tmp_path.glob(".*rank3"))
        assert self.done(path) == [4]
        assert not list(tmp_path.glob(".*rank3"))

    def test_notes_of_a_store_that_is_gone_say_nothing(self, tmp_path: Path) -> None:
        path = tmp_path / "acts.h5"
        self.open(path).close()
        with MemberWriter(path, self.plan(), 1) as member:
            self.write(member, [4])
        path.unlink()
        assert self.done(path) == []  # its states would be zeros

    def test_files_of_others_are_no_notes(self, tmp_path: Path) -> None:
        foreign = [
            tmp_path / name
            for name in ("acts.h5.ranking.csv", "acts.h5.rank1", "x.h5.rank1", ".acts.h5.rank1")
        ]
        for path in foreign:
            path.write_text("mine")
        for name in ("acts.h5", "*.h5", "[a].h5"):
            self.open(tmp_path / name).close()
        assert [path.read_text() for path in foreign] == ["mine"] * 4
        with MemberWriter(tmp_path / "*.h5", self.plan(), 1) as member:  # the control
            self.write(member, [4])
        assert self.done(tmp_path / "*.h5") == [4]

    def test_notes_cut_short_say_nothing(self, tmp_path: Path) -> None:
        path = tmp_path / "acts.h5"
        self.open(path).close()
        (tmp_path / ".acts.h5.probekit-rank1").write_bytes(b"\1" * 7)
        assert self.done(path) == []


class TestMerge:
    @pytest.fixture
    def model(self, tiny_model: Callable[..., Path]) -> str:
        return str(tiny_model("bert"))

    def test_rows_come_one_behind_the_other(self, model: str, tmp_path: Path) -> None:
        texts = {"a": "one text", "b": "another", "c": "a third text"}
        listed = [{"id": k, "text": v} for k, v in texts.items()]
        parts = [tmp_path / "x.h5", tmp_path / "y.h5"]
        extract(listed[:2], model, output=parts[0]).close()
        extract(listed[2:], model, output=parts[1]).close()
        assert merge(parts, tmp_path / "all.h5") == 3
        whole = extract(listed, model, output=tmp_path / "whole.h5")
        with whole, ActivationStore(tmp_path / "all.h5") as merged:
            assert merged.ids == ["a", "b", "c"]
            # Other batches: float32 sums differ in their last bits.
            np.testing.assert_allclose(merged.layer(), whole.layer(), atol=1e-5)

    def test_what_cannot_be_merged_is_reported(
        self, model: str, tiny_model: Callable[..., Path], tmp_path: Path
    ) -> None:
        paths = {name: tmp_path / f"{name}.h5" for name in ("a", "b", "other")}
        extract(["x", "y"], model, output=paths["a"]).close()
        extract(["z"], model, output=paths["b"]).close()
        extract(["z"], str(tiny_model("gpt2")), output=paths["other"]).close()
        output = tmp_path / "out.h5"
        with pytest.raises(StaleStoreError, match=r"other\.h5 differs from .*a\.h5 in .*model"):
            merge([paths["a"], paths["other"]], output)
        with pytest.raises(StoreError, match="have numbers and no ids"):
            merge([paths["a"], paths["b"]], output)
        named = [tmp_path / f"named{i}.h5" for i in range(2)]
        for path, text in zip(named, ("x", "y"), strict=True):
            extract([{"id": "r0", "text": text}], model, output=path).close()
        with pytest.raises(StoreError, match=r"1 ids are in two of the stores \(ids 'r0'\)"):
            merge(named, output)
        with pytest.raises(UsageError, match="two stores or more"):
            merge([paths["a"]], output)
        with pytest.raises(UsageError, match="given twice"):
            merge([paths["a"], paths["a"]], output)
        with pytest.raises(UsageError, match="is read here"):
            merge([paths["a"], paths["b"]], paths["a"])
        assert not output.exists()

    def test_missing_shares_are_reported(self, tmp_path: Path) -> None:
        notes = TestNotes()
        for name, rows in (("a", [0, 1]), ("b", [1, 2, 3])):
            with notes.open(tmp_path / f"{name}.h5") as writer:
                notes.write(writer, rows)
        with pytest.raises(StoreError, match="6 of 10 rows are done in none"):
            merge([tmp_path / "a.h5", tmp_path / "b.h5"], tmp_path / "out.h5")


class TestRanks:
    def test_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        assert ranks_from_environment() is None
        monkeypatch.setenv("WORLD_SIZE", "1")
        assert ranks_from_environment() is None

    def test_among_others(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in (("WORLD_SIZE", "4"), ("RANK", "3"), ("LOCAL_RANK", "1")):
            monkeypatch.setenv(name, value)
        assert ranks_from_environment() == Ranks(3, 4, 1)
        monkeypatch.delenv("RANK")
        with pytest.raises(UsageError, match="start with torchrun or accelerate launch"):
            ranks_from_environment()

    def test_one_model_over_all_cards_is_one_process(self) -> None:
        with pytest.raises(UsageError, match="--device map"):
            local_device("map", Ranks(0, 2, 0))
        assert local_device("cpu", Ranks(0, 2, 0)) == "cpu"
