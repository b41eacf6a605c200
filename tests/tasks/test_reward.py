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
from probekit.tasks.reward import (
    preference_columns,
    preference_rows,
)


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
        assert texts[1 - label] == f"\n\nHuman: question {i}\n\nAssistant: a bad answer {i}"
    # 200 fair draws: 3.5 standard deviations are 25.
    assert 75 < sum(found["label"]) < 125


def test_order_says_nothing_of_the_preference() -> None:
    table = pairs()
    judge = {**table, "chosen": table["rejected"], "rejected": table["chosen"]}
    one, other = preference_columns(table), preference_columns(judge)
    assert (one["text"], one["text_pair"]) == (other["text"], other["text_pair"])
    assert [a + b for a, b in zip(one["label"], other["label"], strict=True)] == [1] * 200
    # So the verdict of another judge on the same pairs joins by id and text.
    assert preference_rows(table).hashes == preference_rows(judge).hashes


def test_seed_deals_and_content_decides() -> None:
    first, again, other = (preference_columns(pairs(), seed=s) for s in (0, 0, 1))
    assert first == again
    assert first["label"] != other["label"]
    table = pairs()
    turned = {name: values[::-1] for name, values in table.items()}
    assert preference_columns(turned)["label"] == first["label"][::-1]


def test_equal_texts_are_left_out_and_ids_stay() -> None:
    table = {"id": ["a", "b", "c"], "chosen": ["x", "y", "z"], "rejected": ["x", "v", "w"]}
    rows = preference_rows(table)
    assert rows.ids == ["b", "c"]
    assert rows.note.endswith("1 pairs of two equal texts are left out.")
    assert rows.select([1]).note == rows.note
    unnamed = preference_rows({name: table[name] for name in ("chosen", "rejected")})
    assert unnamed.ids == ["1", "2"]
    assert preference_rows(pairs()).note == ""
    with pytest.raises(DataError, match="no pair of two different texts"):
        preference_columns({"chosen": ["x"], "rejected": ["x"]})


BARE = {"chosen": ["Boil it."], "rejected": ["No idea."]}


@pytest.mark.parametrize(
    ("columns", "start", "note"),
    [
        (
            {"system": "Be brief.", "question": "Rice?"},
            "\n\nSystem: Be brief.\n\nHuman: Rice?",
            "The prompt of each pair is read from the columns system, question.",
        ),
        ({"question": "Rice?"}, "\n\nHuman: Rice?", "is read from the column question."),
        ({"Question": "Rice?"}, "\n\nHuman: Rice?", "is read from the column Question."),
        (
            {"input": "rice", "instruction": "How is it cooked?"},
            "\n\nHuman: How is it cooked?\n\nrice",
            "the columns instruction, input.",
        ),
        (
            {"context": "Rice is boiled.", "question": "How?"},
            "\n\nHuman: Rice is boiled.\n\nHow?",
            "the columns context, question.",
        ),
        ({"system": None, "question": "Rice?"}, "\n\nHuman: Rice?", "system, question."),
        ({"system": "Be brief.", "question": ""}, "\n\nSystem: Be brief.", "system, question."),
        ({"input": 5}, None, "Chosen and rejected are compared bare"),
        ({"source": "x"}, None, "Chosen and rejected are compared bare"),
        ({}, None, "there is no column prompt, nor question, instruction,"),
    ],
)
def test_prompts_stand_in_columns_of_other_names(
    columns: dict[str, Any], start: str | None, note: str
) -> None:
    rows = preference_rows({**BARE, **{name: [value] for name, value in columns.items()}})
    texts = {*rows.columns["text"], *rows.columns["text_pair"]}
    before = "" if start is None else f"{start}\n\nAssistant: "
    assert texts == {f"{before}Boil it.", f"{before}No idea."}
    assert note in rows.note


def test_a_prompt_is_read_alone_and_whole_dialogues_have_theirs() -> None:
    beside = preference_rows({**BARE, "prompt": ["Rice? "], "system": ["Be brief."]})
    assert {*beside.columns["text"], *beside.columns["text_pair"]} == {
        "Rice? Boil it.",
        "Rice? No idea.",
    }
    assert beside.note == "Beside prompt, nothing is read of the column system."
    asked = "\n\nHuman: Rice?\n\nAssistant: "
    whole = {"chosen": [f"{asked}Boil it."], "rejected": [f"{asked}No idea."]}
    assert preference_rows(whole).note == ""
    for columns in ({"question": ["Rice?"]}, {"question": ["Rice?"], "system": ["Be brief."]}):
        system = "\n\nSystem: Be brief." if "system" in columns else ""
        rows = preference_rows({**whole, **columns})
        found = {*rows.columns["text"], *rows.columns["text_pair"]}
        assert found == {f"{system}{asked}Boil it.", f"{system}{asked}No idea."}
    talk = [{"role": "user", "content": "Rice?"}]
    spoken = {
        "question": ["Rice?"],
        "chosen": [[*talk, says("Boil it.")]],
        "rejected": [[*talk, says("No idea.")]],
    }
    rows = preference_rows(spoken)
    assert {*rows.columns["text"], *rows.columns["text_pair"]} == {
        *whole["chosen"],
        *whole["rejected"],
    }


def test_messages_of_pairs_may_be_written_out_or_in_parts() -> None:
    def spoken(text: str) -> list[dict[str, Any]]:
        return [{"role": "user", "content": "Rice?"}, says(text)]

    plain = {"chosen": [spoken("Boil it.")], "rejected": [spoken("No idea.")]}
    parts = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in spoken("Boil it.")]
    for chosen in (json.dumps(spoken("Boil it.")), parts):
        found = preference_columns({**plain, "chosen": [chosen]})
        assert found == preference_columns(plain)
        asked = {"question": ["Rice?"], "chosen": [chosen], "rejected": plain["rejected"]}
        assert preference_columns(asked) == preference_columns(plain)


HI = {"role": "user", "content": "Hi"}


def says(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    ("prompt", "start"),
    [
        ([HI], []),  # prompt and completions as messages
        (None, [HI]),  # whole dialogues
        ("Hi", [HI]),  # whole dialogues beside their prompt, as in UltraFeedback
        ([HI], [HI]),
        ("Hi", []),
    ],
)
def test_messages_are_written_as_a_dialogue(prompt: Any, start: list[Any]) -> None:
    table = {"chosen": [[*start, says("Hello")]], "rejected": [[*start, says("No")]]}
    if prompt is not None:
        table["prompt"] = [prompt]
    rows = preference_rows(table)
    texts = {*rows.columns["text"], *rows.columns["text_pair"]}
    assert texts == {
        "\n\nHuman: Hi\n\nAssistant: Hello",
        "\n\nHuman: Hi\n\nAssistant: No",
    }


def test_prompt_that_the_texts_open_with_is_not_repeated() -> None:
    table = {"prompt": ["Q: why?"], "chosen": ["Q: why? So."], "rejected": [" No."]}
    rows = preference_rows(table)
    assert {*rows.columns["text"], *rows.columns["text_pair"]} == {"Q: why? So.", "Q: why? No."}


@pytest.mark.parametrize("bad", [None, 3, "", [{"role": "user"}], [says("a") | {"content": None}]])
def test_what_is_no_text_is_reported(bad: Any) -> None:
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
    assert truth.align(rows.keys).labels.probs.shape == (20, 2)


def test_other_columns_and_names_of_ids(write_jsonl: Callable[..., Path]) -> None:
    path = write_jsonl(
        [
            {"key": f"k{i}", "split": "train", "chosen": f"good {i}", "rejected": f"bad {i % 4}"}
            for i in range(20)
        ]
    )
    rows = load_rows(str(path), id_column="key")
    assert rows.ids == [f"k{i}" for i in range(20)]
    assert sorted(rows.columns) == ["id", "key", "label", "split", "text", "text_pair"]
    assert load_labels(path, id_column="key").ids == rows.ids
    with pytest.raises(DataError, match="no column 'name'"):
        load_rows(str(path), id_column="name")
    # A text column that is named is read as it is.
    assert load_rows(str(path), text_column="chosen").kind == "text"
    again = write_jsonl(
        [{"id": str(i), "chosen": f"a{i}", "rejected": "b", "mine": i % 2} for i in range(9)],
        "own.jsonl",
    )
    assert load_labels(again, label_column="mine").hard.tolist() == [i % 2 for i in range(9)]


def hub_copy(folder: Path, train: int = 60, test: int = 20) -> None:
    place = folder / "Anthropic" / "hh-rlhf"
    place.mkdir(parents=True)
    for split, n, start in (("train", train, 0), ("test", test, train - 2)):
        lines = [
            json.dumps(
                {
                    "chosen": f"\n\nHuman: q{i}\n\nAssistant: yes",
                    "rejected": f"\n\nHuman: q{i}\n\nAssistant: no",
                }
            )
            for i in range(start, start + n)
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
    assert task.rows("test", seed=1).ids != parts["test"].ids
    assert sorted(task.rows("test", seed=1).ids) == sorted(parts["test"].ids)
    assert len(parts["validation"]) > 0


def test_a_pair_of_the_test_set_is_no_training_pair_the_other_way_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_copy(tmp_path)
    train = tmp_path / "Anthropic" / "hh-rlhf" / "train.jsonl"
    lines = [json.loads(line) for line in train.read_text().splitlines()]
    turned = [{"chosen": r["rejected"], "rejected": r["chosen"]} for r in lines[-2:]]
    equal = {"chosen": "\n\nHuman: x", "rejected": "\n\nHuman: x"}
    train.write_text("\n".join(map(json.dumps, [*lines[:-2], *turned, equal])) + "\n")
    monkeypatch.setenv("PROBEKIT_DATASETS", str(tmp_path))
    task = get_task("anthropic-hh-pairs")
    parts = [task.rows(split) for split in ("train", "validation")]
    assert sum(map(len, parts)) == 58
    assert sorted(rows.note for rows in parts) == ["", "1 pairs of two equal texts are left out."]


def test_hub_copy_without_the_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "Anthropic" / "hh-rlhf"
    place.mkdir(parents=True)
    for split in ("train", "test"):
        (place / f"{split}.jsonl").write_text('{"chosen": "a", "other": "b"}\n')
    monkeypatch.setenv("PROBEKIT_DATASETS", str(tmp_path))
    with pytest.raises(DataError, match="no column 'rejected'; it has chosen, other"):
        get_task("anthropic-hh-pairs").rows("test")


@pytest.mark.realdata
def test_real_dialogues(realdata: Any) -> None:
    files = sorted((realdata.data / "hh_rlhf").rglob("*.jsonl*"))
    rows = load_rows(str(files[0]))
    assert len(rows) > 2000
    assert 0.45 < sum(rows.columns["label"]) / len(rows) < 0.55
    # Both texts open with the same turn.
    for first, second in rows.contents()[:50]:
        assert first.split("\n\nAssistant:")[0] == second.split("\n\nAssistant:")[0]
