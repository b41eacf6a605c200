"""Whole extractions: numbers, order, dtypes, resuming."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from probekit.activations import forward
from probekit.activations.extraction import estimate, extract, prepare, run
from probekit.activations.forward import Feed
from probekit.activations.job import Request
from probekit.activations.store import ActivationStore
from probekit.data import Rows, text_hash
from probekit.errors import (
    StaleStoreError,
    UsageError,
)

pytestmark = pytest.mark.usefixtures("one_thread")

Folder = Callable[..., Path]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "acts.h5"


def plain(folder: Path, text: Any, layer: int) -> np.ndarray:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    pair = text if isinstance(text, tuple) else (text,)
    with torch.no_grad():
        found = model(**tokenizer(*pair, return_tensors="pt"), output_hidden_states=True)
    return found.hidden_states[layer][0].float().numpy()


def test_states_come_back_in_row_order_with_their_tokens(
    tiny_model: Folder, texts: list[str], out: Path
) -> None:
    folder = tiny_model("gpt2")
    store = extract(texts, str(folder), output=out, layers="all", batch_tokens=200)
    assert store.layers == [0, 1, 2, 3]
    assert store.complete
    assert store.ids == [str(i) for i in range(len(texts))]
    assert store.hashes == [text_hash(t) for t in texts]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert store.n_tokens.tolist() == [len(ids) for ids in tokenizer(texts)["input_ids"]]
    for layer in store.layers:
        for row in (0, 7, 38, 39):
            expected = plain(folder, texts[row], layer)[-1]
            np.testing.assert_allclose(
                store.read(layer, [row])[0], expected, atol=1e-5 * max(1, abs(expected).max())
            )


def test_pairs_are_read_as_pairs(tiny_model: Folder, out: Path) -> None:
    folder = tiny_model("bert")
    pairs = [("the heron", "waited"), ("a map", "of the harbour in the rain"), ("x", "y")]
    rows = [{"text": a, "text_pair": b} for a, b in pairs]
    states = extract(rows, folder, output=out, layers=2, pool="mean").layer()
    for found, pair in zip(states, pairs, strict=True):
        np.testing.assert_allclose(found, plain(folder, pair, 2).mean(0), atol=1e-5)
        joined = plain(folder, " ".join(pair), 2).mean(0)
        assert np.abs(found - joined).max() > 0.01  # control


def test_messages_are_read_through_the_chat_template(tiny_model: Folder, out: Path) -> None:
    folder = tiny_model("llama")
    rows = [{"messages": [{"role": "user", "content": "Is it far?"}]}]
    store = extract(rows, folder, output=out, layers="last")
    # plain() tokenises the rendered text, and the tokenizer adds the only BOS.
    expected = plain(folder, "[user] Is it far?\n", 3)[-1]
    np.testing.assert_allclose(store.layer()[0], expected, atol=1e-5)
    assert store.spec["template"] is not None
    assert store.spec["kind"] == "messages"


def test_batches_do_not_matter(tiny_model: Folder, texts: list[str], tmp_path: Path) -> None:
    made = [
        extract(texts, tiny_model("qwen2"), output=tmp_path / f"{i}.h5", batch_tokens=i).layer()
        for i in (1, 100, 10**6)
    ]
    for other in made[1:]:
        np.testing.assert_allclose(other, made[0], atol=1e-5 * abs(made[0]).max())


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("store_dtype", ["same", "float16", "float32", "bfloat16"])
def test_dtypes_of_model_and_file_are_apart(
    dtype: str, store_dtype: str, tiny_model: Folder, texts: list[str], out: Path
) -> None:
    folder = tiny_model("llama", dtype)
    # By name: auto is float32 on a processor without instructions for bfloat16.
    how = {"dtype": dtype, "store_dtype": store_dtype}
    store = extract(texts[:8], folder, output=out, layers=[1], **how)
    stored = dtype if store_dtype == "same" else store_dtype
    assert store.info(1).dtype == stored
    assert store.spec["dtype"] == dtype
    expected = plain(folder, texts[3], 1)[-1]
    # Eight bits of mantissa, as far as the pair of dtypes has them, and other sums on the way.
    precision = 1e-5 if (dtype, stored) == ("float32", "float32") else 2**-6
    found = store.read(1, [3])[0]
    np.testing.assert_allclose(found, expected, atol=precision * abs(expected).max())


def test_truncated_rows_are_marked(tiny_model: Folder, texts: list[str], out: Path) -> None:
    folder = tiny_model("bert")
    store = extract(texts, folder, output=out, layers=1, max_length=8)
    lengths = [len(ids) for ids in AutoTokenizer.from_pretrained(folder)(texts)["input_ids"]]
    assert store.truncated.tolist() == [n > 8 for n in lengths]
    assert 0 < store.truncated.sum() < len(texts)
    assert store.n_tokens.tolist() == [min(n, 8) for n in lengths]


@pytest.mark.parametrize("form", ["list", "dicts", "rows", "frame", "dataset", "file"])
def test_rows_come_in_any_form(
    form: str, tiny_model: Folder, texts: list[str], out: Path, write_jsonl: Callable[..., Path]
) -> None:
    import datasets
    import pandas as pd

    dicts = [{"text": t} for t in texts[:5]]
    rows = {
        "list": texts[:5],
        "dicts": dicts,
        "rows": Rows({"text": texts[:5]}),
        "frame": pd.DataFrame(dicts),
        "dataset": datasets.Dataset.from_list(dicts),
        "file": write_jsonl(dicts),
    }[form]
    store = extract(rows, tiny_model("bert"), output=out, layers=0)
    assert store.hashes == [text_hash(t) for t in texts[:5]]


def test_a_loaded_model_and_its_folder_give_the_same(
    tiny_model: Folder, texts: list[str], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    folder = tiny_model("gemma2")
    pair = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    a = extract(texts, pair, output=tmp_path / "a.h5", layers="1,3")
    b = extract(texts, folder, output=tmp_path / "b.h5", layers="1,3")
    for layer in (1, 3):
        assert np.array_equal(a.layer(layer), b.layer(layer))
    assert a.spec["weights"].startswith("loaded:")
    with pytest.raises(UsageError, match="leave out dtype, device"):
        extract(texts, pair, output=out_of(tmp_path), dtype="float32", device="cpu")


def out_of(folder: Path) -> Path:
    return folder / "other.h5"


def finished(path: Path) -> dict[str, np.ndarray]:
    with ActivationStore(path) as store:
        found = {f"layer {i}": store.layer(i, dtype=None).copy() for i in store.layers}
        return {**found, "n_tokens": store.n_tokens, "truncated": store.truncated}


def assert_equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert sorted(a) == sorted(b)
    for key in a:
        assert a[key].tobytes() == b[key].tobytes(), key


def test_a_stopped_run_resumes_and_gives_the_same_bytes(
    tiny_model: Folder, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_model("bert")
    options: dict[str, Any] = {"layers": "all", "batch_tokens": 50, "max_length": 20}
    extract(texts, folder, output=tmp_path / "whole.h5", **options)
    out = tmp_path / "parts.h5"
    request = Request(texts, folder, out, **options)
    true_states = Feed.states
    calls = 0

    def failing(self: Feed, *arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls % 4 == 0:
            raise KeyboardInterrupt
        return true_states(self, *arguments, **options)

    monkeypatch.setattr(Feed, "states", failing)
    forwarded, before = [], 0
    for _ in range(30):
        try:
            report = run(prepare(request), on_batch=lambda b: forwarded.append(len(b)))
        except KeyboardInterrupt as error:
            with ActivationStore(out, allow_incomplete=True) as store:
                # Nothing that was forwarded is lost.
                assert store.done.sum() == sum(forwarded) > before
            before = sum(forwarded)
            (note,) = error.__notes__
            assert note.startswith(f"{before} of 40 rows are stored in {out}; the same command")
        else:
            break
    assert calls > 8
    assert sum(forwarded) == len(texts)
    assert report.rows_forwarded == len(texts) - before
    assert_equal(finished(out), finished(tmp_path / "whole.h5"))
    monkeypatch.setattr(Feed, "states", true_states)
    again = run(prepare(request))
    assert (again.rows_forwarded, again.batches, again.tokens) == (0, 0, report.tokens)
    assert not {t.name for t in threading.enumerate()} & {"ahead", "behind"}


def test_a_complete_store_is_not_made_again_and_needs_no_weights(
    tiny_model: Folder, texts: list[str], out: Path, tmp_path: Path
) -> None:
    extract(texts, tiny_model("gpt2"), output=out, layers=1)
    before = out.read_bytes()
    job = prepare(Request(texts, tiny_model("gpt2"), out, layers=1))
    assert run(job).rows_forwarded == 0
    assert out.read_bytes() == before


def test_a_moved_and_renamed_folder_is_the_same_model(
    tiny_model: Folder, texts: list[str], out: Path, tmp_path: Path
) -> None:
    extract(texts, tiny_model("gpt2"), output=out, layers=1)
    moved = shutil.copytree(tiny_model("gpt2"), tmp_path / "elsewhere" / "renamed")
    assert run(prepare(Request(texts, moved, out, layers=1))).rows_forwarded == 0
    # Control: one other number in the weights is another model.
    weights = moved / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    with pytest.raises(StaleStoreError, match="weights is 'sha256:"):
        extract(texts, moved, output=out, layers=1)


def test_estimate_counts_what_the_run_finds(
    tiny_model: Folder, texts: list[str], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = prepare(Request(texts, tiny_model("opt-projected"), out, layers="0,3", max_length=20))
    with monkeypatch.context() as patched:
        patched.setattr("probekit.activations.loading._load", None)  # no weights are touched
        found = estimate(job)
    assert not out.exists()
    report = run(job)
    assert (found["rows"], found["tokens"]) == (report.rows, report.tokens)
    assert (found["truncated"], found["batches"]) == (report.truncated, report.batches)
    # 40 rows of float32; this OPT projects its last layer to 16.
    assert found["bytes_per_layer"] == {0: 40 * 32 * 4, 3: 40 * 16 * 4}
    # Room for names: 4 kB for each layer and each column that rows might be joined by.
    assert 0 <= found["bytes"] - out.stat().st_size < 64_000


def test_windows_after_windows_give_the_same_as_one(
    tiny_model: Folder, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_model("llama")
    whole = extract(texts, folder, output=tmp_path / "a.h5", layers=2).layer()
    monkeypatch.setattr("probekit.activations.batching.FIRST_ROWS", 3)
    monkeypatch.setattr("probekit.activations.batching.WINDOW_ROWS", 7)
    parts = extract(texts, folder, output=tmp_path / "b.h5", layers=2).layer()
    np.testing.assert_allclose(parts, whole, atol=1e-5 * abs(whole).max())


def test_done_windows_are_not_tokenised_again(
    tiny_model: Folder, texts: list[str], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("probekit.activations.batching.FIRST_ROWS", 10)
    monkeypatch.setattr("probekit.activations.batching.WINDOW_ROWS", 10)
    monkeypatch.setattr(forward, "FLUSH_SECONDS", 0.0)
    job = prepare(Request(texts, tiny_model("gpt2"), out, layers=1))
    seen: list[int] = []

    def stop(batch: Any) -> None:
        seen.append(len(batch))
        if sum(seen) == 20:  # two windows
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(job, on_batch=stop)
    asked: list[int] = []
    true_encode = type(job.encoder).encode

    def encode(self: Any, contents: Any, names: Any) -> Any:
        asked.append(len(contents))
        return true_encode(self, contents, names)

    monkeypatch.setattr(type(job.encoder), "encode", encode)
    assert run(job).rows_forwarded == 20
    assert asked == [10, 10]


@pytest.mark.parametrize("layers", ["1", "all"])
def test_a_loaded_model_replaces_the_store_that_it_made(
    tiny_model: Folder, texts: list[str], out: Path, layers: str
) -> None:
    folder = tiny_model("bert")
    pair = (AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder))
    first = extract(texts, pair, output=out, layers=layers).layer(1).copy()
    # Another pair, that nobody has asked for its widths yet.
    pair = (AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder))
    again = extract(texts, pair, output=out, layers=layers, overwrite=True).layer(1)
    np.testing.assert_array_equal(first, again)
