"""A store that is a folder: read as one store, and extracted part by part by any processes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from probekit.activations import store as store_module
from probekit.activations import units as units_module
from probekit.activations.extraction import (
    estimate,
    extract,
    extract_differences,
    prepare,
    prepare_adding,
    run,
)
from probekit.activations.index import INDEX, Index
from probekit.activations.job import Request
from probekit.activations.merge import merge
from probekit.activations.store import ActivationStore
from probekit.activations.units import run_units
from probekit.cli.info import describe_layer
from probekit.cli.main import cli
from probekit.errors import (
    IncompleteStoreError,
    NotAStoreError,
    OutputExistsError,
    StaleStoreError,
    StoreError,
    UsageError,
)

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "seven"]
ROWS = [
    {"id": f"r{i}", "text": " ".join(WORDS[(i + j) % 11] for j in range(1 + i * 7 % 20))}
    for i in range(70)
]


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units of 20 rows: 70 rows are four parts, the last of 10."""
    monkeypatch.setattr(units_module, "UNIT_ROWS", 20)


@pytest.fixture
def model(tiny_model: Callable[..., Path]) -> str:
    return str(tiny_model("llama"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class TestReading:
    """Against the arrays that went in, as tests/activations/test_store.py does for a file."""

    @pytest.mark.parametrize(
        ("dtype", "compression"),
        [("float32", None), ("bfloat16", None), ("float16", None), ("float32", "gzip")],
    )
    def test_it_is_one_store(
        self,
        tmp_path: Path,
        example: Callable[..., Any],
        monkeypatch: pytest.MonkeyPatch,
        dtype: str,
        compression: str | None,
    ) -> None:
        monkeypatch.setattr(store_module, "OPEN_PARTS", 2)  # of four
        rows = example(store_dtype=dtype)
        groups = [f"q{i // 8}" for i in range(rows.n)]
        path = rows.make_folder(tmp_path / "acts", groups=groups, compression=compression)
        whole = rows.make(tmp_path / "acts.h5", groups=groups)
        with ActivationStore(path) as store, ActivationStore(whole) as file:
            assert (len(store), store.layers, store.ids) == (rows.n, [0, 3], rows.ids)
            assert store.hashes == rows.hashes
            assert store.groups == groups
            assert store.source == "docstrings"
            assert store.keys.columns == {"k": rows.ids}
            assert store.fingerprint == file.fingerprint
            assert store.rows_intact()
            assert store.done.all()
            assert store.copies().tolist() == file.copies().tolist()
            assert store.nbytes == sum(part.stat().st_size for part in path.glob("part-*"))
            np.testing.assert_array_equal(store.n_tokens, rows.n_tokens)
            np.testing.assert_array_equal(store.truncated, rows.truncated)
            for layer, states in rows.states.items():
                np.testing.assert_array_equal(store.layer(layer), states)
                np.testing.assert_array_equal(store.layer(layer, dtype="float64"), states)
                np.testing.assert_array_equal(store.layer(layer, dtype=None), rows.stored(layer))
                norm, other = (describe_layer(each, layer)["mean_norm"] for each in (store, file))
                assert norm == pytest.approx(other, rel=1e-12)  # sums of another order
            mask = np.arange(rows.n) % 3 == 0
            for chosen in (
                *(slice(29, 31), slice(30, 60), slice(60, 60), slice(None, None, -7)),
                *([-1, 2], np.array([5, 99, 5, 0]), mask, []),
            ):
                read = store.read(3, chosen)
                assert read.dtype == np.float32
                np.testing.assert_array_equal(read, rows.states[3][chosen] if len(read) else read)
            assert len(store.read(3, slice(30, 60))) == 30
            seen = []
            for numbers, states in store.batches(0, 7, shuffle=True):
                np.testing.assert_array_equal(states, rows.states[0][numbers])
                seen += numbers.tolist()
            assert sorted(seen) == list(range(rows.n))
            assert len(store._open or {}) <= 2
            states = store.read(3, slice(0, 30))
        np.testing.assert_array_equal(states, rows.states[3][:30])  # still there after closing
        with pytest.raises(StoreError, match="is closed"):
            store.layer(0)

    def test_merge_makes_a_file_of_it(self, tmp_path: Path, example: Callable[..., Any]) -> None:
        rows = example(store_dtype="bfloat16")
        path = rows.make_folder(tmp_path / "acts")
        assert merge([path], tmp_path / "acts.h5") == rows.n
        with ActivationStore(tmp_path / "acts.h5") as file, ActivationStore(path) as store:
            assert file.fingerprint == store.fingerprint
            assert file.keys.columns == store.keys.columns
            np.testing.assert_array_equal(file.layer(3, dtype=None), rows.stored(3))

    def test_an_id_in_two_parts_names_both(
        self, tmp_path: Path, example: Callable[..., Any]
    ) -> None:
        rows = example(n=6)
        rows.ids[4] = rows.ids[1]
        path = rows.make_folder(tmp_path / "acts", size=2)
        with pytest.raises(StoreError, match=r"part-00000\.h5 and part-00002\.h5 of .* both have"):
            ActivationStore(path).ids  # noqa: B018

    def test_parts_that_are_wrong(self, tmp_path: Path, example: Callable[..., Any]) -> None:
        path = example(n=6).make_folder(tmp_path / "acts", size=2)
        other = example(n=6, widths={0: 9, 3: 16})
        other.make_folder(tmp_path / "other", size=2)
        foreign = example(n=6)
        foreign.spec = {**foreign.spec, "model": "another"}
        foreign.make_folder(tmp_path / "foreign", size=2)
        part, kept = path / "part-00001.h5", (path / "part-00001.h5").read_bytes()
        for wrong, words in [
            (path / "part-00002.h5", "does not hold the 2 rows of this part"),
            (tmp_path / "other" / "part-00001.h5", "has other layers"),
            (tmp_path / "foreign" / "part-00001.h5", r"another spec \(model\)"),
        ]:
            shutil.copy(wrong, part)
            with pytest.raises(StaleStoreError, match=rf"part-00001\.h5 .*{words}.*remove this"):
                ActivationStore(path).layer(0)
        part.write_bytes(kept)
        ActivationStore(path).layer(0)  # the control
        part.unlink()
        with pytest.raises(
            IncompleteStoreError,
            match=r"4 of 6 rows are done \(missing parts: 1 of 3, the first is part-00001\.h5\)",
        ):
            ActivationStore(path, allow_incomplete=True)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"version": 2}, "install a newer probekit"),
            ({"format": "x"}, "another format"),
            ({"parts": []}, "is damaged"),
            ({"parts": [{"file": "../a.h5", "rows": 6, "rows_fingerprint": "0"}]}, "is damaged"),
            ({"parts": [{"file": "part-00000.h5", "rows": 0, "rows_fingerprint": ""}]}, "damaged"),
            ({"widths": {"x": 3}}, "layers have no numbers"),
            ({"spec": 3}, "spec is not an object|spec is not a dict"),
        ],
    )
    def test_a_damaged_index(
        self, tmp_path: Path, example: Callable[..., Any], change: dict[str, Any], words: str
    ) -> None:
        path = example(n=6).make_folder(tmp_path / "acts", size=6)
        content = json.loads((path / INDEX).read_text())
        (path / INDEX).write_text(json.dumps({**content, **change}))
        with pytest.raises(NotAStoreError, match=words):
            ActivationStore(path)

    def test_other_folders_are_no_stores(self, tmp_path: Path) -> None:
        with pytest.raises(NotAStoreError, match=r"a folder without store\.json"):
            ActivationStore(tmp_path)


@pytest.mark.usefixtures("small_units")
class TestExtracting:
    def test_same_states_as_in_a_file(self, model: str, tmp_path: Path) -> None:
        file = extract(ROWS, model, layers="all", output=tmp_path / "acts.h5")
        store = extract(ROWS, model, layers="all", output=f"{tmp_path / 'acts'}/")
        assert [p.name for p in sorted(store.path.iterdir())] == [
            *(f"part-0000{i}.h5" for i in range(4)),
            INDEX,
        ]
        assert store.ids == file.ids
        assert store.fingerprint == file.fingerprint
        np.testing.assert_array_equal(store.n_tokens, file.n_tokens)
        for layer in store.layers:  # other batches, so other sums in float32; states reach 10
            np.testing.assert_allclose(store.layer(layer), file.layer(layer), atol=1e-4)
        job = prepare(Request(ROWS, model, f"{tmp_path / 'new'}/", "all"))
        assert estimate(job)["tokens"] == store.n_tokens.sum()

    def test_any_number_of_processes_make_the_same_bytes(self, model: str, tmp_path: Path) -> None:
        extract(ROWS, model, output=f"{tmp_path / 'one'}/").close()
        job = prepare(Request(ROWS, model, f"{tmp_path / 'three'}/"))
        for rank in (2, 0):
            assert run_units(job, share=(rank, 3)) is None
        with pytest.raises(IncompleteStoreError):
            ActivationStore(job.path)
        report = run_units(job, share=(1, 3))
        assert report is not None
        assert (report.rows, report.rows_forwarded) == (70, 20)
        assert contents(tmp_path / "one") == contents(tmp_path / "three")

    def test_a_stop_costs_no_part_that_is_there(self, model: str, tmp_path: Path) -> None:
        extract(ROWS, model, output=f"{tmp_path / 'one'}/").close()
        job = prepare(Request(ROWS, model, f"{tmp_path / 'acts'}/", batch_tokens=64, flush_rows=1))
        extract(ROWS, model, output=f"{tmp_path / 'ones'}/", batch_tokens=64).close()
        seen: list[int] = []

        def stop(batch: Any) -> None:
            seen.append(len(batch))
            if sum(seen) > 30:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt) as stopped:
            run(job, on_batch=stop)
        assert "20 of 70 rows are stored" in stopped.value.__notes__[0]
        assert (job.path / ".part-00001.h5").exists()
        again: list[int] = []
        report = run(job, on_batch=lambda batch: again.append(len(batch)))
        assert report.rows_forwarded == sum(again) < 50  # also within the unit that was stopped
        assert contents(tmp_path / "ones") == contents(job.path)
        assert run(job).rows_forwarded == 0

    def test_numbered_rows_and_groups(self, model: str, tmp_path: Path) -> None:
        rows = [{"text": row["text"], "q": i // 3, "key": f"k{i}"} for i, row in enumerate(ROWS)]
        store = extract(rows, model, output=f"{tmp_path / 'acts'}/", group_column="q")
        assert store.ids == [str(i) for i in range(70)]
        assert store.keys.id_column is None
        assert list(store.keys.columns) == ["key"]
        assert store.groups == [str(i // 3) for i in range(70)]
        with pytest.raises(StaleStoreError, match="was made with other groups"):
            extract(rows, model, output=store.path)

    def test_what_is_there_is_kept_or_replaced(self, model: str, tmp_path: Path) -> None:
        path = tmp_path / "acts"
        extract(ROWS, model, output=f"{path}/").close()
        before = contents(path)
        with pytest.raises(StaleStoreError, match=r"layers is \[1\] there and \[3\] now"):
            extract(ROWS, model, output=path, layers="last")
        with pytest.raises(StaleStoreError, match="made from 70 rows, and there are 50 now"):
            extract(ROWS[:50], model, output=path)
        changed = [{**ROWS[0], "text": "another"}, *ROWS[1:]]
        with pytest.raises(StaleStoreError, match=r"holds part-00000\.h5, which does not hold"):
            extract(changed, model, output=path)
        assert contents(path) == before
        (path / "part-00000.h5").unlink()
        extract(changed, model, output=path).close()  # a row not done may be repaired
        assert contents(path)["part-00001.h5"] == before["part-00001.h5"]
        extract(ROWS[:50], model, output=path, layers="last", overwrite=True).close()
        assert sorted(contents(path)) == [*(f"part-0000{i}.h5" for i in range(3)), INDEX]
        shutil.copy(path / "part-00000.h5", path / "part-00001.h5")
        with pytest.raises(StaleStoreError, match=r"holds part-00001\.h5"):
            extract(ROWS[:50], model, output=path, layers="last")

    def test_folders_of_others_are_refused(self, model: str, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(OutputExistsError, match=r"holds other things \('notes\.txt'\)"):
            extract(ROWS, model, output=tmp_path, overwrite=True)
        assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.usefixtures("small_units")
class TestTorchrun:
    def command(
        self, monkeypatch: pytest.MonkeyPatch, rank: int, *arguments: str
    ) -> tuple[int, str]:
        for name, value in (("RANK", rank), ("WORLD_SIZE", 2), ("LOCAL_RANK", rank)):
            monkeypatch.setenv(name, str(value))
        result = CliRunner().invoke(cli, ["extract", *arguments])
        return result.exit_code, result.output

    def test_each_process_adds_its_parts(
        self,
        model: str,
        tmp_path: Path,
        write_jsonl: Callable[..., Path],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        rows, path = str(write_jsonl(ROWS)), tmp_path / "acts"
        code, output = self.command(monkeypatch, 1, rows, "-m", model, "-o", f"{path}/")
        assert (code, "process 1 has written its parts" in output) == (0, True)
        code, output = self.command(monkeypatch, 0, rows, "-m", model, "-o", f"{path}/")
        assert (code, "70 rows" in output) == (0, True), output
        monkeypatch.delenv("WORLD_SIZE")
        extract(rows, model, output=f"{tmp_path / 'one'}/").close()
        assert contents(path) == contents(tmp_path / "one")
        shown = CliRunner().invoke(cli, ["info", str(path), "--json"])
        assert json.loads(shown.stdout)["rows"] == 70

    def test_they_share_pairs_and_further_layers(
        self,
        model: str,
        tmp_path: Path,
        write_jsonl: Callable[..., Path],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        rows, path = str(write_jsonl(PAIRS)), f"{tmp_path / 'd'}/"
        words = [rows, "-m", model, "-o", path, "--compare"]
        assert self.command(monkeypatch, 1, *words)[0] == 0
        code, output = self.command(monkeypatch, 0, *words)
        assert (code, "70 pairs of 106 texts, second minus first" in output) == (0, True), output
        words = [str(write_jsonl(ROWS)), "-m", model, "-o", f"{tmp_path / 'acts'}/", "--layers"]
        for more in (["1"], ["2", "--add-layers"]):
            assert self.command(monkeypatch, 1, *words, *more)[0] == 0
            code, output = self.command(monkeypatch, 0, *words, *more)
            assert (code, "70 rows" in output) == (0, True), output
        with ActivationStore(tmp_path / "acts") as store:
            assert store.layers == [1, 2]

    def test_a_file_and_overwrite_are_refused(
        self, model: str, tmp_path: Path, write_jsonl: Callable[..., Path], monkeypatch: Any
    ) -> None:
        rows = str(write_jsonl(ROWS))
        file, folder = str(tmp_path / "acts.h5"), f"{tmp_path / 'acts'}/"
        code, output = self.command(monkeypatch, 0, rows, "-m", model, "-o", file)
        assert (code, f"-o {folder}" in output) == (2, True), output
        code, output = self.command(monkeypatch, 0, rows, "-m", model, "-o", folder, "--overwrite")
        assert (code, "remove" in output) == (2, True), output
        assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]


def add_layers(request: Request, **options: Any) -> Any:
    return run(prepare_adding(request), **options)


def killed_in(module: Any, name: str, at: int, patch: pytest.MonkeyPatch) -> None:
    """The function is as it was, and its call number ``at`` is the last."""
    original, calls = getattr(module, name), []

    def stop(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    patch.setattr(module, name, stop)


@pytest.mark.usefixtures("small_units", "one_thread")
class TestAdding:
    """Each row is a batch of its own, so that a file's numbers are the folder's, bit by bit."""

    def request(self, model: str, path: Any, layers: Any, **options: Any) -> Request:
        return Request(ROWS, model, path, layers, batch_tokens=1, **options)

    def test_it_is_the_file_and_the_folder_of_one_run(self, model: str, tmp_path: Path) -> None:
        path, file = tmp_path / "acts", tmp_path / "acts.h5"
        how: dict[str, Any] = {"batch_tokens": 1, "store_dtype": "bfloat16"}
        extract(ROWS, model, output=f"{path}/", layers=[1], **how).close()
        merge([path], file)
        extract(ROWS, model, output=f"{tmp_path / 'whole'}/", layers=[0, 1, 3], **how).close()
        request = self.request(model, f"{path}/", "0,1,3", store_dtype="bfloat16")
        report = add_layers(request)
        assert (report.rows_forwarded, report.layers) == (70, [0, 1, 3])
        add_layers(replace(request, output=file))
        assert contents(path) == contents(tmp_path / "whole")
        merge([path], tmp_path / "merged.h5")
        assert (tmp_path / "merged.h5").read_bytes() == file.read_bytes()
        again = add_layers(request)
        assert (again.rows_forwarded, again.layers) == (0, [0, 1, 3])
        # The control: other states are other bytes.
        extract(ROWS, model, output=f"{tmp_path / 'other'}/", layers=[0, 1, 2], **how).close()
        assert contents(tmp_path / "other") != contents(path)

    @pytest.mark.parametrize("where", ["forward", "copy", "rename", "index"])
    def test_a_kill_leaves_the_store_as_it_was(
        self, where: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path, seen = tmp_path / "acts", list[int]()
        extract(ROWS, model, output=f"{path}/", layers=[1], batch_tokens=1).close()
        extract(ROWS, model, output=f"{tmp_path / 'whole'}/", layers=[1, 2], batch_tokens=1).close()
        with ActivationStore(path) as store:
            before, fingerprint = store.layer(1), store.fingerprint
        request = self.request(model, path, "1,2", flush_rows=1)

        def stop(batch: Any) -> None:
            seen.append(len(batch))
            if where == "forward" and len(seen) == 33:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            if where == "copy":
                killed_in(units_module, "copy_rows", 2, patch)
            elif where == "rename":  # two of each part: its file's creation, and its own
                killed_in(units_module.os, "replace", 6, patch)
            elif where == "index":
                killed_in(Index, "write", 1, patch)
            with pytest.raises(KeyboardInterrupt):
                add_layers(request, on_batch=stop)
        assert len(seen) < 70 or where == "index"
        with ActivationStore(path) as store:  # with a part of two layers, or all four
            assert (store.layers, store.fingerprint) == ([1], fingerprint)
            np.testing.assert_array_equal(store.layer(1), before)
            assert store.read(1, [0, 69]).shape == (2, before.shape[1])
        assert contents(path) != contents(tmp_path / "whole")
        add_layers(request, on_batch=lambda batch: seen.append(len(batch)))
        assert sum(seen) == 70  # no row twice
        assert contents(path) == contents(tmp_path / "whole")

    def test_several_processes_add_to_their_parts(self, model: str, tmp_path: Path) -> None:
        path = tmp_path / "acts"
        extract(ROWS, model, output=f"{path}/", layers=[1], batch_tokens=1).close()
        extract(ROWS, model, output=f"{tmp_path / 'whole'}/", layers=[1, 2], batch_tokens=1).close()
        job = prepare_adding(self.request(model, path, [2]))
        assert run_units(job, share=(1, 2)) is None
        with ActivationStore(path) as store:
            assert store.layers == [1]
        report = run_units(job, share=(0, 2))
        assert report is not None
        assert (report.rows, report.rows_forwarded) == (70, 40)
        assert contents(path) == contents(tmp_path / "whole")

    def test_other_layers_after_a_stop(
        self, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Part 0 has layer 2 already when layer 3 is added, and layer 2 then to the others."""
        path = tmp_path / "acts"
        extract(ROWS, model, output=f"{path}/", layers=[1], batch_tokens=1).close()
        extract(ROWS, model, output=f"{tmp_path / 'whole'}/", layers="1-3", batch_tokens=1).close()
        with monkeypatch.context() as patch:
            killed_in(units_module, "copy_rows", 2, patch)
            with pytest.raises(KeyboardInterrupt):
                add_layers(self.request(model, path, [2]))
        add_layers(self.request(model, path, [3]))
        with ActivationStore(path) as store:
            assert store.layers == [1, 3]
        assert add_layers(self.request(model, path, [2])).rows_forwarded == 50
        assert contents(path) == contents(tmp_path / "whole")

    def test_what_does_not_belong_is_refused(
        self, model: str, tmp_path: Path, tiny_model: Callable[..., Path]
    ) -> None:
        path, other = tmp_path / "acts", tmp_path / "other"
        with pytest.raises(StoreError, match="is not there to add layers to"):
            add_layers(self.request(model, f"{path}/", [2]))
        extract(ROWS, model, output=f"{path}/", layers=[1], batch_tokens=1).close()
        extract(ROWS, str(tiny_model("gpt2")), output=f"{other}/", layers=[1]).close()
        before = contents(path)
        for wrong, words in [
            (Request(ROWS[:69], model, path, [2]), "made from 70 rows, and there are 69 now"),
            (Request(ROWS[::-1], model, path, [2]), r"holds part-00000\.h5, which does not hold"),
            (Request(ROWS, model, path, [2], pool="mean"), "pooling is 'last' there"),
            (Request(ROWS, model, other, [2]), "weights is 'sha256:"),
        ]:
            with pytest.raises(StaleStoreError, match=f"{words}.*; --add-layers takes the rows"):
                add_layers(wrong)
        with pytest.raises(UsageError, match="give one"):
            add_layers(self.request(model, path, [2], overwrite=True))
        assert contents(path) == before
        (path / "part-00001.h5").write_bytes((other / "part-00001.h5").read_bytes())
        with pytest.raises(StaleStoreError, match=r"holds part-00001\.h5, which was made with an"):
            add_layers(self.request(model, path, [2]))
        (path / "part-00001.h5").unlink()
        with pytest.raises(IncompleteStoreError, match=r"the first is part-00001\.h5"):
            add_layers(self.request(model, path, [2]))


PAIRS = [
    {"id": f"p{i}", "text": ROWS[i % 9]["text"], "text_pair": ROWS[9 + i % 40]["text"]}
    for i in range(70)
]


@pytest.mark.usefixtures("small_units", "one_thread")
class TestDifferences:
    def test_they_are_those_of_a_file(self, model: str, tmp_path: Path) -> None:
        how: dict[str, Any] = {"layers": "1,3", "batch_tokens": 1, "store_dtype": "float16"}
        file = extract_differences(PAIRS, model, output=tmp_path / "d.h5", **how)
        store = extract_differences(PAIRS, model, output=f"{tmp_path / 'd'}/", **how)
        assert [p.name for p in sorted(store.path.iterdir())] == [
            *(f"part-0000{i}.h5" for i in range(4)),
            INDEX,
        ]
        assert store.differences
        assert store.fingerprint == file.fingerprint
        merge([store.path], tmp_path / "merged.h5")
        assert (tmp_path / "merged.h5").read_bytes() == (tmp_path / "d.h5").read_bytes()
        # The control: pairs the other way round have other differences.
        turned = [{**p, "text": p["text_pair"], "text_pair": p["text"]} for p in PAIRS]
        with extract_differences(turned, model, output=f"{tmp_path / 't'}/", **how) as other:
            np.testing.assert_array_equal(other.layer(3), -store.layer(3))
            assert np.abs(store.layer(3)).max() > 1e-2

    @pytest.mark.parametrize("where", ["texts", "differences", "rename"])
    def test_a_stop_costs_no_part_and_no_text_that_is_there(
        self, where: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one, path, seen = tmp_path / "one", tmp_path / "d", list[int]()
        extract_differences(PAIRS, model, output=f"{one}/", batch_tokens=1).close()
        request = Request(PAIRS, model, f"{path}/", batch_tokens=1, flush_rows=1)
        job = prepare(request, compare=True)
        texts = estimate(job)["texts"]

        def stop(batch: Any) -> None:
            seen.append(len(batch))
            if where == "texts" and len(seen) == texts // 2:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            if where == "differences":
                killed_in(units_module, "subtract", 2, patch)
            elif where == "rename":  # of each part its texts' and its own creation, and its own
                killed_in(units_module.os, "replace", 6, patch)
            with pytest.raises(KeyboardInterrupt) as stopped:
                run(job, on_batch=stop)
        done = {"texts": 40 if len(seen) > 55 else 20, "differences": 20, "rename": 20}[where]
        assert f"{done} of 70 rows are stored" in stopped.value.__notes__[0]
        report = run(job, on_batch=lambda batch: seen.append(len(batch)))
        assert (report.pairs, report.texts, sum(seen)) == (70, texts, texts)  # none twice
        assert contents(path) == contents(one)
        assert run(job).texts_forwarded == 0

    def test_any_number_of_processes_make_the_same_bytes(self, model: str, tmp_path: Path) -> None:
        extract_differences(PAIRS, model, output=f"{tmp_path / 'one'}/").close()
        job = prepare(Request(PAIRS, model, f"{tmp_path / 'three'}/"), compare=True)
        for rank in (2, 0):
            assert run_units(job, share=(rank, 3)) is None
        report = run_units(job, share=(1, 3))
        assert report is not None
        assert report.pairs == 70
        assert contents(tmp_path / "one") == contents(tmp_path / "three")

    def test_parts_of_states_are_refused(self, model: str, tmp_path: Path) -> None:
        path = tmp_path / "acts"
        extract(PAIRS, model, output=f"{path}/").close()
        with pytest.raises(StaleStoreError, match="pairs is not set there and 'second"):
            extract_differences(PAIRS, model, output=path)
        extract_differences(PAIRS, model, output=f"{tmp_path / 'd'}/").close()
        part = "part-00001.h5"
        (tmp_path / "d" / part).write_bytes((path / part).read_bytes())
        with pytest.raises(StaleStoreError, match=rf"{part}, which was .* spec \(kind, pairs"):
            extract_differences(PAIRS, model, output=tmp_path / "d")
        same = [{**pair, "text_pair": pair["text"]} for pair in PAIRS[:30]]
        job = prepare(Request(same, model, f"{tmp_path / 'same'}/"), compare=True)
        assert run(job).equal == 30
