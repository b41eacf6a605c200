"""Extractions that cannot run as asked: little memory, full disks, bad input, stale stores."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from probekit.activations.extraction import extract, prepare, run
from probekit.activations.forward import Feed
from probekit.activations.job import Request
from probekit.activations.store import ActivationStore
from probekit.activations.writer import StoreWriter
from probekit.errors import (
    DataError,
    ModelError,
    OutputExistsError,
    StaleStoreError,
    StoreError,
    UsageError,
)

pytestmark = pytest.mark.usefixtures("one_thread")

Folder = Callable[..., Path]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "acts.h5"


def finished(path: Path) -> dict[str, np.ndarray]:
    with ActivationStore(path) as store:
        found = {f"layer {i}": store.layer(i, dtype=None).copy() for i in store.layers}
        return {**found, "n_tokens": store.n_tokens, "truncated": store.truncated}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"layers": 2}, "layers is [1] in the file and [2] now"),
        ({"pool": "first"}, "pooling is 'last' in the file and 'first' now"),
        ({"max_length": 9}, "max_length is 128 in the file and 9 now"),
        ({"store_dtype": "float16"}, "store_dtype is 'float32' in the file and 'float16' now"),
        ({"dtype": "bfloat16"}, "dtype is 'float32' in the file and 'bfloat16' now"),
        ({"rows": ["other"] * 40}, "40 of 40 rows have another text"),
        ({"limit": 39}, "it has 40 rows and there are 39 now"),
    ],
)
def test_a_store_of_another_extraction_is_refused_with_the_reason(
    changes: dict[str, Any], reason: str, tiny_model: Folder, texts: list[str], out: Path
) -> None:
    options: dict[str, Any] = {"rows": texts, "model": tiny_model("gpt2"), "output": out}
    run(prepare(Request(**{**options, "layers": 1})))
    before = out.read_bytes()
    with pytest.raises(StaleStoreError) as caught:
        run(prepare(Request(**{**options, "layers": 1, **changes})))
    assert reason in str(caught.value)
    assert out.read_bytes() == before
    run(prepare(Request(**{**options, "layers": 1, **changes, "overwrite": True})))
    assert out.read_bytes() != before


def test_a_model_that_fails_to_load_leaves_the_old_store(
    tiny_model: Folder, texts: list[str], out: Path, tmp_path: Path
) -> None:
    extract(texts, tiny_model("gpt2"), output=out, layers=1)
    before = out.read_bytes()
    broken = shutil.copytree(tiny_model("bert"), tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(ModelError):
        extract(texts, broken, output=out, layers=1, overwrite=True)
    assert out.read_bytes() == before
    with pytest.raises(ModelError):
        extract(texts, broken, output=tmp_path / "new.h5", layers=1)
    assert not (tmp_path / "new.h5").exists()


class Scarce:
    """A device whose memory holds this number of padded tokens."""

    def __init__(self, tokens: int, error: Exception) -> None:
        self.tokens, self.error = tokens, error
        self.true_states = Feed.states
        self.sizes: list[int] = []

    def __call__(self, feed: Feed, window: Any, batch: Any, *, exact: bool = False) -> Any:
        if batch.padded_tokens > self.tokens:
            raise self.error
        self.sizes.append(batch.padded_tokens)
        return self.true_states(feed, window, batch, exact=exact)


OUT_OF_MEMORY = [
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory"),
    torch.cuda.OutOfMemoryError("CUDA out of memory."),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda e: type(e).__name__)
def test_the_budget_halves_itself_and_says_so(
    error: Exception,
    tiny_model: Folder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tiny_model("qwen2")
    texts = [f"{i % 10} herons" for i in range(40)]
    (size,) = {len(ids) for ids in AutoTokenizer.from_pretrained(folder)(texts)["input_ids"]}
    extract(texts, folder, output=tmp_path / "whole.h5", layers=2, batch_tokens=size)
    scarce = Scarce(10 * size, error)
    monkeypatch.setattr(Feed, "states", lambda *a, **options: scarce(*a, **options))
    job = prepare(Request(texts, folder, tmp_path / "a.h5", layers=2, batch_tokens=1000))
    report = run(job)
    assert report.rows_forwarded == 40
    # 40 rows do not fit, 20 neither, 10 do; and nobody tries 20 again.
    assert report.batch_tokens == 10 * size
    assert scarce.sizes == [10 * size] * 4
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(";")[0] for line in said] == [
        f"Out of memory at 40 rows of {size} tokens",
        f"Out of memory at 20 rows of {size} tokens",
    ]
    assert said[-1].endswith(f"(--batch-tokens {10 * size} starts with that).")
    whole, found = finished(tmp_path / "whole.h5"), finished(tmp_path / "a.h5")
    np.testing.assert_allclose(found["layer 2"], whole["layer 2"], atol=1e-4)


def test_a_row_that_never_fits_is_named_and_the_others_stay(
    tiny_model: Folder, texts: list[str], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scarce = Scarce(20, OUT_OF_MEMORY[0])
    monkeypatch.setattr(Feed, "states", lambda *a, **options: scarce(*a, **options))
    with pytest.raises(ModelError, match=r"row with id '\d+' \(\d+ tokens\) does not fit"):
        extract(texts, tiny_model("gpt2"), output=out, layers=1)


def test_another_failure_of_the_model_is_one_sentence(
    tiny_model: Folder, texts: list[str], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scarce = Scarce(0, RuntimeError("mat1 and mat2\nshapes cannot be multiplied"))
    monkeypatch.setattr(Feed, "states", lambda *a, **options: scarce(*a, **options))
    with pytest.raises(ModelError, match=r"cannot run \d+ rows of .* mat2 shapes cannot") as caught:
        extract(texts, tiny_model("gpt2"), output=out, layers=1)
    assert caught.value.__notes__ == [
        f"0 of 40 rows are stored in {out}; the same command resumes from there."
    ]


def test_a_full_disk_behind_stops_the_run_and_keeps_what_was_flushed(
    tiny_model: Folder, texts: list[str], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_write = StoreWriter.write
    written = 0

    def failing(self: StoreWriter, rows: Any, *arguments: Any) -> None:
        nonlocal written
        if written >= 12:
            raise StoreError("disk full")
        written += len(rows)
        true_write(self, rows, *arguments)

    monkeypatch.setattr(StoreWriter, "write", failing)
    with pytest.raises(StoreError, match="disk full"):
        extract(texts, tiny_model("bert"), output=out, layers=1, batch_tokens=100)
    with ActivationStore(out, allow_incomplete=True) as store:
        assert store.done.sum() == written
    monkeypatch.setattr(StoreWriter, "write", true_write)
    job = prepare(Request(texts, tiny_model("bert"), out, layers=1, batch_tokens=100))
    assert run(job).rows_forwarded == len(texts) - written


def test_rows_without_tokens_stop_the_run_in_one_sentence(tiny_model: Folder, out: Path) -> None:
    rows = [{"id": "ok", "text": "fine"}, {"id": "none", "text": "x"}]
    template = out.with_name("t.jinja")
    template.write_text("{% if text == 'fine' %}{{ text }}{% endif %}")
    with pytest.raises(DataError, match=r"no token.*'none'"):
        extract(rows, tiny_model("gpt2"), output=out, layers=1, template=template)


def test_ids_beyond_the_embeddings_are_refused(
    tiny_model: Folder, texts: list[str], out: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_model("gpt2"), tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["heron"])
    tokenizer.save_pretrained(folder)
    assert run(prepare(Request(["a boat"], folder, out, layers=0))).rows == 1
    with pytest.raises(ModelError, match=r"returns ids up to .* do not belong together"):
        extract(["the heron"], folder, output=out.with_name("b.h5"), layers=0)


def test_states_too_large_for_the_file_are_counted(
    tiny_model: Folder, texts: list[str], out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = AutoModel.from_pretrained(tiny_model("gpt2"))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model("gpt2"))
    with torch.no_grad():
        model.wte.weight[tokenizer(" boat")["input_ids"][-1]] = 1e6
    rows = ["my boat", "the heron", "a boat"]
    pair = (model, tokenizer)
    request = Request(rows, pair, out, layers="0", store_dtype="float16")
    report = run(prepare(request))
    assert report.nonfinite == {0: 2}
    assert "2 rows have inf or NaN in layer 0" in capsys.readouterr().err
    fine = run(prepare(Request(rows, pair, out.with_name("b.h5"), layers="0")))
    assert fine.nonfinite == {}
    # bfloat16 holds 1e6, and inf and NaN as bits.
    request = Request(rows, pair, out.with_name("c.h5"), layers="0", store_dtype="bfloat16")
    assert run(prepare(request)).nonfinite == {}
    for bad in (float("inf"), float("-inf"), float("nan")):
        with torch.no_grad():
            model.wte.weight[tokenizer(" boat")["input_ids"][-1], 0] = bad
        report = run(prepare(replace(request, output=out.with_name(f"{bad}.h5"))))
        assert report.nonfinite == {0: 2}


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"layers": "9"}, UsageError, "There is no layer 9; this model has the layers 0"),
        ({"pool": "cls"}, UsageError, "pool is one of"),
        ({"batch_tokens": 0}, UsageError, "batch_tokens is a whole number from 1 to"),
        ({"max_length": 999}, UsageError, "reads at most 128 tokens, not 999"),
        ({"device": "tpu"}, UsageError, "There is no device 'tpu'"),
        ({"compression": "zip"}, UsageError, "compression is one of gzip, lzf"),
        ({"text_column": "body"}, DataError, "has no column 'body'"),
        ({"rows": []}, DataError, "has no rows"),
        ({"rows": ["a", " "]}, DataError, "1 rows with an empty text"),
        ({"model": ("a", "b", "c")}, UsageError, "is a pair"),
        ({"model": ("a", "b")}, UsageError, "is a pair"),
        ({"quantization": {"load_in_4bit": True}}, UsageError, "needs the package bitsandbytes"),
        ({"template": "no-such-file"}, UsageError, "cannot be read"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    changes: dict[str, Any],
    error: type[Exception],
    sentence: str,
    tiny_model: Folder,
    texts: list[str],
    out: Path,
) -> None:
    given: dict[str, Any] = {"rows": texts, "model": tiny_model("gpt2"), "output": out}
    with pytest.raises(error, match=sentence) as caught:
        run(prepare(Request(**{**given, **changes})))
    assert "\n" not in str(caught.value)
    assert not out.exists()


def test_outputs_that_are_no_stores_are_left_alone(
    tiny_model: Folder, texts: list[str], tmp_path: Path
) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    for path, error in (
        (notes, OutputExistsError),
        (tmp_path, OutputExistsError),
        (tmp_path / "none" / "a.h5", DataError),
    ):
        with pytest.raises(error):
            extract(texts, tiny_model("gpt2"), output=path)
    assert notes.read_text() == "mine"
