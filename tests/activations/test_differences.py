"""Stores of differences between two texts' states."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from probekit.activations import differences as module
from probekit.activations import extraction
from probekit.activations.differences import texts_of_pairs
from probekit.activations.extraction import estimate, extract, extract_differences, prepare, run
from probekit.activations.job import Request
from probekit.activations.store import ActivationStore
from probekit.cli.main import cli
from probekit.data import Rows
from probekit.errors import StaleStoreError, UsageError
from probekit.sources import load_rows


def make_pairs(n: int = 30) -> Rows:
    """Some texts stand in several pairs."""
    return Rows(
        {
            "id": [f"p{i}" for i in range(n)],
            "text": [f"the first text {i % 7}" for i in range(n)],
            "text_pair": [f"another one, longer, {i % 11}" for i in range(n)],
        }
    )


def one_by_one(rows: Rows, model: str, layer: int, **options: Any) -> np.ndarray:
    """States of every text of n pairs, each forwarded in a batch of its own: (2, n, width)."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    frozen = AutoModel.from_pretrained(model, dtype="float32").eval()
    sides: list[list[np.ndarray]] = [[], []]
    for pair in rows.contents():
        for side, text in zip(sides, pair, strict=True):
            tokens = tokenizer(text, return_tensors="pt", return_token_type_ids=False, **options)
            with torch.inference_mode():
                found = frozen(**tokens, output_hidden_states=True).hidden_states[layer][0]
            side.append(found.numpy())
    causal = "llama" in type(frozen).__name__.lower()
    return np.array([[s[-1] if causal else s.mean(0) for s in side] for side in sides])


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_differences_are_those_of_states_computed_one_by_one(
    name: str, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    rows, model = make_pairs(), str(tiny_model(name))
    with extract_differences(rows, model, output=tmp_path / "d.h5", layers="all") as store:
        assert store.differences
        assert store.complete
        assert store.ids == rows.ids
        assert store.hashes == rows.hashes
        for layer in store.layers:
            first, second = one_by_one(rows, model, layer)
            # Other batches: the last bits of float32, of states of up to 20.
            np.testing.assert_allclose(store.layer(layer), second - first, atol=1e-4)
            assert np.abs(second - first).max() > 1e-2
    assert [p.name for p in tmp_path.iterdir()] == ["d.h5"]


def test_rows_of_the_store_tell_of_both_texts(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    rows, model = make_pairs(), str(tiny_model("bert"))
    given = {"max_length": 6}
    with extract_differences(rows, model, output=tmp_path / "d.h5", **given) as store:
        first, second = (
            extract(list(rows.columns[c]), model, output=tmp_path / c, **given)
            for c in ("text", "text_pair")
        )
        with first, second:
            np.testing.assert_array_equal(store.n_tokens, first.n_tokens + second.n_tokens)
            np.testing.assert_array_equal(store.truncated, first.truncated | second.truncated)
            assert store.truncated.any()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_states_are_subtracted_before_they_are_rounded(
    dtype: str, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    rows, model = make_pairs(), str(tiny_model("bert"))
    with extract_differences(rows, model, output=tmp_path / "whole.h5") as store:
        exact = store.layer()
    with extract_differences(
        rows, model, output=tmp_path / "d.h5", store_dtype=dtype, compression="gzip"
    ) as store:
        assert store.info().dtype == dtype
        wanted = torch.from_numpy(np.array(exact)).to(getattr(torch, dtype)).float().numpy()
        np.testing.assert_array_equal(store.layer(), wanted)


def test_differences_too_large_for_the_file_are_counted(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, model = make_pairs(), str(tiny_model("bert"))
    read = ActivationStore.read
    monkeypatch.setattr(ActivationStore, "read", lambda *args: read(*args) * 1e6)
    request = Request(rows, model, tmp_path / "d.h5", 2, store_dtype="float16")
    report = run(prepare(request, compare=True))
    assert list(report.nonfinite) == [2]
    assert 0 < report.nonfinite[2] <= 30


def test_pairs_that_were_cut_before_they_part_are_counted(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    long = "the same words again and again and again"
    rows = Rows({"text": [f"{long} a", "a"], "text_pair": [f"{long} b", "b c d"]})
    model = str(tiny_model("bert"))
    work = prepare(Request(rows, model, tmp_path / "d.h5", max_length=6), compare=True)
    assert run(work).equal == 1
    work = prepare(Request(rows, model, tmp_path / "e.h5"), compare=True)
    assert run(work).equal == 0


def test_each_text_is_forwarded_once(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    texts, places = texts_of_pairs(make_pairs())
    assert len(texts) == 18
    contents = texts.contents()
    for pair, (first, second) in zip(make_pairs().contents(), places, strict=True):
        assert (contents[first], contents[second]) == pair
    seen: list[int] = []
    work = prepare(Request(make_pairs(), str(tiny_model("bert")), tmp_path / "d.h5"), compare=True)
    report = run(work, on_batch=lambda batch: seen.extend(batch.rows.tolist()))
    assert sorted(seen) == list(range(18))
    assert (report.pairs, report.texts, report.texts_forwarded) == (30, 18, 18)
    again = run(work)
    assert (again.texts_forwarded, again.tokens_forwarded) == (0, 0)


def killed(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_killed_among_the_texts(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    rows, model, seen = make_pairs(), str(tiny_model("bert")), []

    def count(batch: Any) -> None:
        seen.extend(batch.rows.tolist())

    def first_batch(batch: Any) -> None:
        count(batch)
        raise KeyboardInterrupt

    work = prepare(Request(rows, model, tmp_path / "d.h5", batch_tokens=64), compare=True)
    with pytest.raises(KeyboardInterrupt):
        run(work, on_batch=first_batch)
    assert (tmp_path / ".d.h5.texts").is_file()
    with ActivationStore(tmp_path / "d.h5", allow_incomplete=True) as store:
        assert not store.done.any()
    before = len(seen)
    report = run(work, on_batch=count)
    assert 0 < before < 18
    assert report.texts_forwarded == 18 - before
    assert sorted(seen) == list(range(18))  # none twice
    whole = Request(rows, model, tmp_path / "whole.h5", batch_tokens=64)
    run(prepare(whole, compare=True))
    # Batches are the same, so is every bit.
    assert (tmp_path / "d.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
    assert not (tmp_path / ".d.h5.texts").exists()


def test_killed_among_the_differences(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, model = make_pairs(), str(tiny_model("bert"))
    work = prepare(Request(rows, model, tmp_path / "d.h5"), compare=True)
    monkeypatch.setattr(module, "CHUNK_BYTES", 4 * work.widths[1] * 7)  # of 7 pairs
    written: list[int] = []
    write = module.StoreWriter.write

    def third_is_the_last(self: Any, rows: Any, *args: Any) -> None:
        write(self, rows, *args)
        if self.path.name == "d.h5":
            written.extend(rows.tolist())
            if len(written) == 21:
                raise KeyboardInterrupt

    monkeypatch.setattr(module.StoreWriter, "write", third_is_the_last)
    with pytest.raises(KeyboardInterrupt):
        run(work)
    report = run(work)
    assert report.texts_forwarded == 0
    # What was written is marked done on the way out.
    assert written == list(range(30))
    with extract_differences(rows, model, output=tmp_path / "whole.h5"):
        assert (tmp_path / "d.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_texts_that_another_run_left_are_not_taken(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, output = str(tiny_model("bert")), tmp_path / "d.h5"
    with monkeypatch.context() as patch:
        patch.setattr(extraction, "subtract", killed)
        with pytest.raises(KeyboardInterrupt):
            extract_differences(make_pairs(12), model, output=output)
    output.unlink()
    with extract_differences(make_pairs(), model, output=output) as store:
        assert len(store) == 30
    (tmp_path / ".e.h5.texts").write_text("not a store")
    with extract_differences(make_pairs(), model, output=tmp_path / "e.h5") as store:
        assert len(store) == 30


def test_a_store_is_replaced_when_the_new_one_is_there(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, output = str(tiny_model("bert")), tmp_path / "d.h5"
    extract_differences(make_pairs(), model, output=output).close()
    before = output.read_bytes()
    with pytest.raises(StaleStoreError, match="other rows"):
        extract_differences(make_pairs(29), model, output=output)
    with pytest.raises(StaleStoreError, match="layers is"):
        extract_differences(make_pairs(), model, output=output, layers="last")
    with monkeypatch.context() as patch:
        patch.setattr(extraction, "_run_states", killed)
        with pytest.raises(KeyboardInterrupt):
            extract_differences(make_pairs(29), model, output=output, overwrite=True)
    assert output.read_bytes() == before
    with extract_differences(make_pairs(29), model, output=output, overwrite=True) as store:
        assert len(store) == 29


def test_a_renamed_model_folder_changes_nothing(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    import shutil

    first = Path(shutil.copytree(tiny_model("bert"), tmp_path / "one"))
    output = tmp_path / "d.h5"
    extract_differences(make_pairs(), str(first), output=output).close()
    other = first.rename(tmp_path / "two")
    request = Request(make_pairs(), str(other), output)
    assert run(prepare(request, compare=True)).texts_forwarded == 0


def test_plain_states_and_differences_are_not_confused(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    rows, model = make_pairs(), str(tiny_model("bert"))
    extract_differences(rows, model, output=tmp_path / "d.h5").close()
    with pytest.raises(StaleStoreError, match=r"pairs is 'second minus first' in the file"):
        extract(rows, model, output=tmp_path / "d.h5")
    with extract(rows, model, output=tmp_path / "plain.h5") as plain:
        assert not plain.differences
    with pytest.raises(UsageError, match="--compare needs two texts"):
        extract_differences(["one", "two"], model, output=tmp_path / "e.h5")


def test_estimate(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    request = Request(
        make_pairs(), str(tiny_model("bert")), tmp_path / "d.h5", 2, store_dtype="float16", limit=20
    )
    found = estimate(work := prepare(request, compare=True))
    assert (found["pairs"], found["rows"], found["texts"]) == (20, 20, 18)
    width = work.widths[2]
    assert found["bytes_per_layer"] == {2: 20 * width * 2}
    run(work)
    assert found["bytes"] >= (tmp_path / "d.h5").stat().st_size >= 20 * width * 2
    assert found["temporary_bytes"] >= 18 * width * 4


def preferences(n: int = 60) -> list[dict[str, Any]]:
    return [
        {"prompt": f"question {i}: ", "chosen": f"good {i % 9}", "rejected": f"bad {i % 8}"}
        for i in range(n)
    ]


def test_shell(
    tiny_model: Callable[..., Path], write_jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    rows = [*preferences(), {"prompt": "", "chosen": "same", "rejected": "same"}]
    path, output = write_jsonl(rows), str(tmp_path / "d.h5")
    given = ["extract", str(path), "--compare", "-m", str(tiny_model("bert")), "-o", output]
    run = CliRunner().invoke
    result = run(cli, [*given, "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "60 pairs of 120 texts" in result.stdout
    assert "1 pairs of two equal texts are left out" in result.stderr
    assert not Path(output).exists()
    result = run(cli, [*given, "--json"])
    assert result.exit_code == 0, result.output
    assert "60 pairs of 120 texts, second minus first" in result.stderr
    assert json.loads(result.stdout)["pairs"] == 60
    result = run(cli, given)
    assert "120 texts were done before" in result.stderr
    result = run(cli, ["info", output])
    assert "pairs: second minus first" in result.stdout
    result = run(cli, [*given[:2], *given[3:]])
    assert result.exit_code == 1
    assert "another spec" in result.stderr


def test_several_processes_are_refused(
    tiny_model: Callable[..., Path],
    write_jsonl: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "29500")
    path, model = str(write_jsonl(preferences())), str(tiny_model("bert"))
    given = ["extract", path, "--compare", "-m", model, "-o", str(tmp_path / "d.h5")]
    result = CliRunner().invoke(cli, given)
    assert result.exit_code == 2
    assert "would have several writers" in result.stderr


@pytest.mark.realdata
def test_real_dialogues_on_a_real_model(realdata: Any, tmp_path: Path) -> None:
    path = realdata.data / "hh_rlhf" / "harmless-base.test.jsonl.gz"
    model = str(realdata.models / "stories260K")
    rows = load_rows(path).select(range(12))
    with extract_differences(rows, model, output=tmp_path / "d.h5", layers=3) as store:
        length = store.spec["max_length"]
        first, second = one_by_one(rows, model, 3, truncation=length is not None, max_length=length)
        np.testing.assert_allclose(store.layer(), second - first, atol=1e-4)
        assert np.abs(second - first).mean() > 1e-2
