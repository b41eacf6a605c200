"""Preference pairs: dealt to first and second, and read alike everywhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from probekit.errors import DataError
from probekit.labels import load_labels
from probekit.sources import load_rows
from probekit.tasks.registry import get_task
from probekit.tasks.reward import preference_columns, preference_rows


def pairs(n: int = 200) -> dict[str, list[Any]]:
    return {
        "prompt": [f"\n\nHuman: question {i}\n\nAssistant:" for i in range(n)],
        "chosen": [f" a good answer {i}" for i in range(n)],
        "rejected": [f" a bad answer {i}" for i in range(n)],
    }


def test_label_says_where_the_chosen_one_stands() -> None:
    found = preference_columns(pairs())
    for i, label in enumerate(found["label"]):
        texts = found["text"][i], found["text_pair"][i]
        assert texts[label] == f"\n\nHuman: question {i}\n\nAssistant: a good answer {i}"
        assert "bad" in texts[1 - label]
    # 200 fair draws: 3.5 standard deviations are 25.
    assert 75 < sum(found["label"]) < 125


def test_seed_deals_and_content_decides() -> None:
    first, again, other = (preference_columns(pairs(), seed=s) for s in (0, 0, 1))
    assert first == again
    assert first["label"] != other["label"]
    table = pairs()
    turned = {name: values[::-1] for name, values in table.items()}
    assert preference_columns(turned)["label"] == first["label"][::-1]


def test_equal_texts_are_left_out_and_ids_stay() -> None:
    table = {"id": ["a", "b", "c"], "chosen": ["x", "y", "z"], "rejected": ["x", "v", "w"]}
    found = preference_columns(table)
    assert found["id"] == ["b", "c"]
    with pytest.raises(DataError, match="no pair of two different texts"):
        preference_columns({"chosen": ["x"], "rejected": ["x"]})


def test_messages_are_written_as_a_dialogue() -> None:
    table = {
        "prompt": [[{"role": "user", "content": "Hi"}]],
        "chosen": [[{"role": "assistant", "content": "Hello"}]],
        "rejected": [[{"role": "assistant", "content": "No"}]],
    }
    rows = preference_rows(table)
    texts = {*rows.columns["text"], *rows.columns["text_pair"]}
    assert texts == {
        "\n\nHuman: Hi\n\nAssistant: Hello",
        "\n\nHuman: Hi\n\nAssistant: No",
    }


@pytest.mark.parametrize("bad", [None, 3, "", [{"role": "user"}]])
def test_what_is_no_text_is_told(bad: Any) -> None:
    with pytest.raises(DataError, match=r"1 pairs without two texts \(ids '1'\)"):
        preference_columns({"chosen": ["x", bad], "rejected": ["y", "z"]})


def test_file_is_rows_and_truth_at_once(write_jsonl: Callable[..., Path]) -> None:
    table = pairs(20)
    path = write_jsonl(
        [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    )
    rows, truth = load_rows(str(path)), load_labels(str(path))
    assert rows.kind == "pair"
    assert truth.ids == rows.ids
    assert truth.hashes == rows.hashes
    assert [int(truth.classes[c]) for c in truth.hard] == rows.columns["label"]
    assert truth.align(rows.ids, rows.hashes).labels.probs.shape == (20, 2)


def hub_copy(folder: Path, train: int = 60, test: int = 20) -> None:
    place = folder / "Anthropic" / "hh-rlhf"
    place.mkdir(parents=True)
    for split, many, start in (("train", train, 0), ("test", test, train - 2)):
        lines = [
            json.dumps(
                {
                    "chosen": f"\n\nHuman: q{i}\n\nAssistant: yes",
                    "rejected": f"\n\nHuman: q{i}\n\nAssistant: no",
                }
            )
            for i in range(start, start + many)
        ]
        (place / f"{split}.jsonl").write_text("\n".join(lines) + "\n")


def test_anthropic_pairs_from_the_hubs_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_copy(tmp_path)
    monkeypatch.setenv("PROBEKIT_DATASETS", str(tmp_path))
    task = get_task("anthropic-hh-pairs")
    assert task.kind == "reward"
    parts = {split: task.rows(split, seed=0) for split in task.splits}
    # Two of the training pairs stand in the test set too.
    assert len(parts["test"]) == 20
    assert len(parts["train"]) + len(parts["validation"]) == 58
    hashes = [set(rows.hashes) for rows in parts.values()]
    assert not hashes[0] & hashes[1]
    assert not (hashes[0] | hashes[1]) & hashes[2]
    assert all(rows.kind == "pair" for rows in parts.values())
    assert task.rows("test", seed=0).ids == parts["test"].ids


@pytest.mark.realdata
def test_real_dialogues(realdata: Any) -> None:
    files = sorted((realdata.data / "hh_rlhf").rglob("*.jsonl*"))
    rows = load_rows(str(files[0]))
    assert len(rows) > 2000
    assert 0.45 < sum(rows.columns["label"]) / len(rows) < 0.55
    # Both texts open with the same turn.
    for first, second in rows.contents()[:50]:
        assert first.split("\n\nAssistant:")[0] == second.split("\n\nAssistant:")[0]
