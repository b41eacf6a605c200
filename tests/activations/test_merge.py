"""Several stores into one file, and the processes of torchrun."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from probekit.activations.extraction import extract
from probekit.activations.merge import merge
from probekit.activations.store import ActivationStore
from probekit.cli.ranks import Ranks, local_device, ranks_from_environment
from probekit.errors import StaleStoreError, StoreError, UsageError


class TestMerge:
    @pytest.fixture
    def model(self, tiny_model: Callable[..., Path]) -> str:
        return str(tiny_model("bert"))

    def test_rows_come_one_behind_the_other(self, model: str, tmp_path: Path) -> None:
        texts = {"a": "one text", "b": "another", "c": "a third text"}
        listed = [{"id": k, "text": v} for k, v in texts.items()]
        parts = [tmp_path / "x.h5", tmp_path / "y.h5"]
        extract(listed[:2], model, output=parts[0]).close()
        extract(listed[2:], model, output=parts[1]).close()
        assert merge(parts, tmp_path / "all.h5") == 3
        whole = extract(listed, model, output=tmp_path / "whole.h5")
        with whole, ActivationStore(tmp_path / "all.h5") as merged:
            assert merged.ids == ["a", "b", "c"]
            # Other batches: float32 sums differ in their last bits.
            np.testing.assert_allclose(merged.layer(), whole.layer(), atol=1e-5)

    def test_what_cannot_be_merged_is_reported(
        self, model: str, tiny_model: Callable[..., Path], tmp_path: Path
    ) -> None:
        paths = {name: tmp_path / f"{name}.h5" for name in ("a", "b", "other")}
        extract(["x", "y"], model, output=paths["a"]).close()
        extract(["z"], model, output=paths["b"]).close()
        extract(["z"], str(tiny_model("gpt2")), output=paths["other"]).close()
        output = tmp_path / "out.h5"
        with pytest.raises(StaleStoreError, match=r"other\.h5 differs from .*a\.h5 in .*model"):
            merge([paths["a"], paths["other"]], output)
        with pytest.raises(StoreError, match="have numbers and no ids"):
            merge([paths["a"], paths["b"]], output)
        named = [tmp_path / f"named{i}.h5" for i in range(2)]
        for path, text in zip(named, ("x", "y"), strict=True):
            extract([{"id": "r0", "text": text}], model, output=path).close()
        with pytest.raises(StoreError, match=r"1 ids are in two of the stores \(ids 'r0'\)"):
            merge(named, output)
        with pytest.raises(UsageError, match="a folder of parts, or two stores"):
            merge([paths["a"]], output)
        with pytest.raises(UsageError, match="given twice"):
            merge([paths["a"], paths["a"]], output)
        with pytest.raises(UsageError, match="is read here"):
            merge([paths["a"], paths["b"]], paths["a"])
        assert not output.exists()


class TestRanks:
    def test_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        assert ranks_from_environment() is None
        monkeypatch.setenv("WORLD_SIZE", "1")
        assert ranks_from_environment() is None

    def test_among_others(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in (("WORLD_SIZE", "4"), ("RANK", "3"), ("LOCAL_RANK", "1")):
            monkeypatch.setenv(name, value)
        assert ranks_from_environment() == Ranks(3, 4, 1)
        monkeypatch.delenv("RANK")
        with pytest.raises(UsageError, match="start with torchrun or accelerate launch"):
            ranks_from_environment()

    def test_one_model_over_all_cards_is_one_process(self) -> None:
        with pytest.raises(UsageError, match="--device map"):
            local_device("map", Ranks(0, 2, 0))
        assert local_device("cpu", Ranks(0, 2, 0)) == "cpu"
