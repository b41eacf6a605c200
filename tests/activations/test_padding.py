"""States of a row are those of the row alone, whatever it is padded beside, for any family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from probekit.activations import batching
from probekit.activations.batching import Batch, Evenness, by_length
from probekit.activations.extraction import extract

pytestmark = pytest.mark.usefixtures("one_thread")

MIXERS = ("fnet", "convbert", "nystromformer", "yoso")
OTHERS = ("bert", "rwkv", "gpt2")
TEXTS = [" ".join(["the heron stood in the reeds"] * (1 + i % 5)) + str(i) for i in range(20)]


def alone(folder: Path) -> np.ndarray:
    """Mean states of the last layer, each text by itself."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    found = []
    for text in TEXTS:
        with torch.no_grad():
            states = model(input_ids=torch.tensor([tokenizer(text)["input_ids"]]))
        found.append(states.last_hidden_state[0].mean(0).numpy())
    return np.stack(found)


@pytest.mark.parametrize("name", [*MIXERS, *OTHERS])
@pytest.mark.parametrize("known", [True, False])
def test_states_are_those_of_each_row_alone(
    name: str,
    known: bool,
    tiny_model: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mixes = name in MIXERS
    if not known:
        monkeypatch.setattr(batching, "MIXERS", ())
    folder = tiny_model(name)
    wanted = alone(folder)
    with extract(TEXTS, folder, output=tmp_path / "a.h5", layers="last", pool="mean") as store:
        found = np.array(store.layer(store.layers[-1]))
        assert store.spec.get("batches") == ("equal lengths" if mixes and known else None)
    # Sums of float32 in another order: some units in the last place.
    assert np.abs(found - wanted).max() < 1e-5 * max(1, np.abs(wanted).max())
    reported = "depend on padding" in capsys.readouterr().err
    assert reported == (mixes and not known)
    # Control: padded, such a family gives other states.
    monkeypatch.setattr(Evenness, "due", lambda *_, **__: False)
    monkeypatch.setattr(batching, "MIXERS", ())
    with extract(TEXTS, folder, output=tmp_path / "b.h5", layers="last", pool="mean") as store:
        padded = np.array(store.layer(store.layers[-1]))
    assert (np.abs(padded - wanted).max() > 1e-2) == mixes


def test_batches_are_parted_by_length() -> None:
    lengths = np.array([9, 9, 7, 3, 3, 3])
    batch = Batch(np.arange(10, 16), np.arange(6), lengths)
    parts = batch.split(by_length(lengths))
    assert [p.lengths.tolist() for p in parts] == [[9, 9], [7], [3, 3, 3]]
    assert [p.rows.tolist() for p in parts] == [[10, 11], [12], [13, 14, 15]]


def test_the_model_is_asked_again_when_rows_get_twice_as_long() -> None:
    asked = []

    def run(part: Batch) -> dict[int, torch.Tensor]:
        asked.append(part.lengths.tolist())
        # From 100 tokens on, a row's state depends on what stands beside it.
        far = 1.0 if part.lengths.max() > 100 and len(part) > 1 else 0.0
        return {0: torch.ones(len(part), 4) + far}

    def batch(*lengths: int) -> Batch:
        return Batch(np.arange(len(lengths)), np.arange(len(lengths)), np.array(lengths))

    even = Evenness(torch.float32)
    assert not even.due(batch(5, 5))  # nothing is padded
    for lengths in ((20, 5), (40, 30, 2), (41, 9), (90, 1)):
        if even.due(batch(*lengths)):
            assert not even.test(batch(*lengths), run)
    assert asked == [[5], [20, 5], [9], [41, 9], [1], [90, 1]]
    assert even.due(batch(200, 3))
    assert even.test(batch(200, 3), run)
    assert even.needed
    # No memory for the question: it is asked again with the next batch.
    unsure = Evenness(torch.float32)
    assert not unsure.test(batch(20, 5), lambda _: None)
    assert unsure.due(batch(20, 5))


@pytest.mark.parametrize(
    ("dtype", "off", "mixes"),
    [
        (torch.float32, 1e-4, False),
        (torch.float32, 1e-2, True),
        (torch.bfloat16, 1e-2, False),
        (torch.bfloat16, 0.2, True),
        (torch.float32, float("nan"), False),
    ],
)
def test_tolerance_is_that_of_the_numbers(dtype: torch.dtype, off: float, mixes: bool) -> None:
    def run(part: Batch) -> dict[int, torch.Tensor]:
        return {0: torch.ones(len(part), 4) * (1 + off * (len(part) > 1))}

    batch = Batch(np.arange(2), np.arange(2), np.array([9, 3]))
    assert Evenness(dtype).test(batch, run) == mixes
