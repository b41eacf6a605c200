"""Stores of differences between two texts' states."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from probekit.activations.extract import extract
from probekit.activations.pairs import extract_differences, is_difference, texts_of_pairs
from probekit.activations.store import ActivationStore
from probekit.cli.main import cli
from probekit.data import Rows
from probekit.errors import StaleStoreError, UsageError


def make_pairs(n: int = 30) -> Rows:
    """Some texts stand in several pairs."""
    return Rows(
        {
            "id": [f"p{i}" for i in range(n)],
            "text": [f"the first text {i % 7}" for i in range(n)],
            "text_pair": [f"another one, longer, {i % 11}" for i in range(n)],
        }
    )


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_differences_are_those_of_states_computed_one_by_one(
    name: str, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    rows, model = make_pairs(), str(tiny_model(name))
    with extract_differences(rows, model, output=tmp_path / "d.h5", layers="all") as store:
        assert is_difference(store)
        assert store.ids == rows.ids
        assert store.hashes == rows.hashes
        first, second = (
            extract(list(rows.columns[c]), model, output=tmp_path / c, layers="all")
            for c in ("text", "text_pair")
        )
        with first, second:
            for layer in store.layers:
                # Other batches: the last bits of float32, of states up to 15.
                np.testing.assert_allclose(
                    store.layer(layer),
                    second.layer(layer) - first.layer(layer),
                    rtol=1e-5,
                    atol=5e-5,
                )
            np.testing.assert_array_equal(store.n_tokens, first.n_tokens + second.n_tokens)
    assert np.abs(ActivationStore(tmp_path / "d.h5").layer(1)).max() > 0.1
    assert not list(tmp_path.glob(".*texts*"))


def test_each_text_is_forwarded_once() -> None:
    texts, places = texts_of_pairs(make_pairs())
    assert len(texts) == 18
    contents = texts.contents()
    for pair, (first, second) in zip(make_pairs().contents(), places, strict=True):
        assert (contents[first], contents[second]) == pair


def test_what_was_begun_is_gone_on_with(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, model = make_pairs(), str(tiny_model("bert"))
    whole = extract_differences(rows, model, output=tmp_path / "whole.h5")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("probekit.activations.pairs._subtract", stop)
        with pytest.raises(KeyboardInterrupt):
            extract_differences(rows, model, output=tmp_path / "d.h5")
    assert (tmp_path / ".d.h5.texts").is_file()
    with whole, extract_differences(rows, model, output=tmp_path / "d.h5") as store:
        np.testing.assert_array_equal(store.layer(), whole.layer())
    with pytest.raises(StaleStoreError, match="other rows"):
        extract_differences(make_pairs(29), model, output=tmp_path / "d.h5")


def test_plain_states_and_differences_are_not_confused(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    rows, model = make_pairs(), str(tiny_model("bert"))
    extract_differences(rows, model, output=tmp_path / "d.h5").close()
    with pytest.raises(StaleStoreError, match="another spec"):
        extract(rows, model, output=tmp_path / "d.h5")
    with pytest.raises(UsageError, match="they need two texts"):
        extract_differences(["one", "two"], model, output=tmp_path / "e.h5")


def test_from_the_shell_to_a_filter(
    tiny_model: Callable[..., Path], write_jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_jsonl(
        [
            {"prompt": f"question {i}: ", "chosen": f"good {i % 9}", "rejected": f"bad {i % 8}"}
            for i in range(60)
        ]
    )
    run = CliRunner().invoke
    model, acts = str(tiny_model("bert")), str(tmp_path / "d.h5")
    told = run(cli, ["extract", str(path), "--compare", "-m", model, "--layers", "2", "-o", acts])
    assert told.exit_code == 0, told.output
    assert "60 pairs, second minus first" in told.stderr
    verdicts = str(tmp_path / "verdicts.parquet")
    arguments = [acts, "--labels", str(path), "--probe", "logreg", "--truth", str(path)]
    told = run(cli, ["filter", *arguments, "-o", verdicts])
    assert told.exit_code == 0, told.output
    assert "fitted without a bias" in told.stderr
    # The same truth as weak labels: the probe is asked about pairs it has not seen.
    assert "label accuracy" in told.stdout or "right" in told.stdout
