"""The number type that a device computes in, and batches of few shapes for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from probekit.activations import precision
from probekit.activations.batching import Batch, Buckets, Evenness
from probekit.activations.extraction import extract, prepare
from probekit.activations.job import Request
from probekit.activations.precision import extraction_precision, training_precision
from probekit.probes import LogisticProbe

pytestmark = pytest.mark.usefixtures("one_thread")

Folder = Callable[..., Path]
ANIMALS = ("a cat", "my old cat sat", "two cats and a dog", "the cat of the house ran")
TOOLS = ("a nail", "my old hammer fell", "two nails and a saw", "the hammer of the house broke")


@pytest.fixture
def cpu_flags(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def pretend(flags: str) -> None:
        monkeypatch.setattr(precision, "_cpu_flags", lambda: frozenset(flags.split()))

    return pretend


class TestChoice:
    @pytest.mark.parametrize("flags", ["fma avx512_bf16", "amx_bf16 amx_tile", "asimd bf16"])
    def test_training_takes_bfloat16_where_the_cpu_has_it(
        self, flags: str, cpu_flags: Callable[[str], None]
    ) -> None:
        cpu_flags(flags)
        chosen = training_precision("auto", "cpu")
        assert chosen.dtype == "bfloat16"
        assert "this CPU has bfloat16 instructions" in str(chosen)

    def test_else_float32_with_the_reason(self, cpu_flags: Callable[[str], None]) -> None:
        cpu_flags("fma avx2 avx512f")
        assert str(training_precision("auto", "cpu")) == (
            "Computing in float32: this CPU has no bfloat16 instructions (avx512_bf16, amx_bf16)."
        )
        asked = training_precision("bfloat16", "cpu")
        assert asked == ("bfloat16", "as asked")

    @pytest.mark.parametrize(
        ("flags", "own", "taken"),
        [
            ("", torch.float32, "float32"),
            ("amx_bf16", torch.float32, "float32"),  # never less exact than the checkpoint
            ("", torch.bfloat16, "float32"),
            ("amx_bf16", torch.bfloat16, "bfloat16"),
            ("amx_bf16", torch.float16, "float32"),
        ],
    )
    def test_extraction_is_as_exact_as_the_checkpoint(
        self, flags: str, own: torch.dtype, taken: str, cpu_flags: Callable[[str], None]
    ) -> None:
        cpu_flags(flags)
        chosen = extraction_precision("cpu", own)
        assert chosen.dtype == taken
        assert str(own).removeprefix("torch.") in chosen.reason

    def test_flags_are_read_of_this_machine(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        info = tmp_path / "cpuinfo"
        info.write_text("processor\t: 0\nflags\t\t: fpu amx_bf16\nbugs\t\t: bf16\n")
        monkeypatch.setattr(precision, "CPU_INFO", info)
        flags = precision._cpu_flags.__wrapped__()
        assert flags == {"fpu", "amx_bf16"}
        monkeypatch.setattr(precision, "CPU_INFO", tmp_path / "none")
        assert precision._cpu_flags.__wrapped__() == frozenset()

    def test_a_store_is_finished_in_the_dtype_that_it_was_begun_in(
        self, tiny_model: Folder, tmp_path: Path, cpu_flags: Callable[[str], None]
    ) -> None:
        cpu_flags("")
        folder, path = tiny_model("gpt2", "bfloat16"), tmp_path / "a.h5"
        extract(["a b"], folder, output=path, layers="last", dtype="bfloat16").close()
        job = prepare(Request(["a b"], str(folder), path, layers="last"))
        assert (job.spec.dtype, job.precision) == (
            "bfloat16",
            "Computing in bfloat16, as the store was begun.",
        )
        fresh = prepare(Request(["a b"], str(folder), tmp_path / "b.h5", layers="last"))
        assert fresh.spec.dtype == "float32"


class TestBuckets:
    def test_lengths_are_powers_of_two_and_halfway_points(self) -> None:
        wide = [Buckets().width(n) for n in range(1, 513)]
        assert sorted(set(wide)) == [8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512]
        assert all(n <= b <= max(8, 2 * n - 2, n) for n, b in enumerate(wide, 1))
        # The model's limit, and a row that is longer than it all the same.
        assert [Buckets(40).width(n) for n in (20, 33, 40, 41)] == [24, 40, 40, 41]

    @pytest.mark.parametrize("budget", [1, 48, 700, 4096])
    def test_every_row_is_in_one_batch_of_few_shapes(self, budget: int) -> None:
        lengths = np.random.default_rng(0).integers(1, 60, 500)
        batches = Buckets().cut(lengths, budget)
        assert sorted(np.concatenate(batches).tolist()) == list(range(500))
        shapes = set()
        for batch in batches:
            widths = {Buckets().width(int(n)) for n in lengths[batch]}
            assert len(widths) == 1
            assert len(batch) * min(widths) <= budget or len(batch) == 1
            shapes.add((len(batch), *widths))
        # Six widths; of each one size within the budget, and smaller powers of two for the rest.
        assert all(size & (size - 1) == 0 for size, _ in shapes)
        assert len(shapes) <= 6 * 10

    def test_only_bfloat16_on_a_cpu_has_them(self) -> None:
        cpu, gpu = torch.device("cpu"), torch.device("cuda")
        assert Buckets.of(cpu, torch.bfloat16, 64) == Buckets(64)
        assert Buckets.of(cpu, torch.float32, 64) is Buckets.of(gpu, torch.bfloat16, 64) is None

    def test_a_row_that_only_a_bucket_pads_is_tested_too(self) -> None:
        batch = Batch(np.arange(2), np.arange(2), np.array([5, 5]))

        def exact(part: Batch) -> dict[int, torch.Tensor]:
            return {0: torch.ones(len(part), 4)}

        def padded(part: Batch) -> dict[int, torch.Tensor]:
            return {0: torch.zeros(len(part), 4)}

        even = Evenness(torch.bfloat16)
        assert not even.due(batch)
        assert even.due(batch, width=8)
        assert even.test(batch, exact, padded)


def labelled_texts() -> tuple[list[str], np.ndarray]:
    pairs = list(zip(ANIMALS, TOOLS, strict=True))
    texts = [f"{text} {i}" for i in range(15) for pair in pairs for text in pair]
    return texts, np.arange(len(texts)) % 2


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_states_differ_by_rounding_and_probes_do_not(
    name: str, tiny_model: Folder, tmp_path: Path
) -> None:
    """Emulated on a CPU without the instructions: the numbers are those of one that has them."""
    texts, y = labelled_texts()
    X = {}
    for dtype in ("float32", "bfloat16"):
        how = {"layers": [2], "dtype": dtype, "store_dtype": "float32", "pool": "mean"}
        with extract(texts, tiny_model(name), output=tmp_path / f"{dtype}.h5", **how) as store:
            X[dtype] = np.asarray(store.layer(2), dtype=np.float64)
    scale = np.linalg.norm(X["float32"], axis=1)
    apart = np.linalg.norm(X["bfloat16"] - X["float32"], axis=1) / scale
    # Eight bits of mantissa round by 2^-9 at most; two blocks of about ten sums each add to it.
    assert 0 < apart.max() < 2**-5
    # The control: states of another row are far outside.
    other = np.linalg.norm(X["bfloat16"] - np.roll(X["float32"], 1, axis=0), axis=1) / scale
    assert np.median(other) > 2**-5
    scores = {
        dtype: (LogisticProbe(l2=0.01).fit(states[:60], y[:60]).predict(states[60:]) == y[60:])
        for dtype, states in X.items()
    }
    right = {dtype: float(np.mean(values)) for dtype, values in scores.items()}
    assert abs(right["bfloat16"] - right["float32"]) <= 0.04  # of 60 rows, two
