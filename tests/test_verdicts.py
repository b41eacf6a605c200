"""Verdicts find their rows by id, refuse other texts, and survive the disk."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from probekit.data import Rows, text_hash
from probekit.errors import DataError
from probekit.verdicts import Verdicts

TEXTS = ["alpha", "beta", "gamma", "delta"]
IDS = ["a", "b", "c", "d"]


def verdicts(ids: list[str] | None = None, classes: tuple[str, ...] = ("0", "1")) -> Verdicts:
    label = np.array([[1, 0], [0.25, 0.75], [0.5, 0.5], [0, 1]], np.float32)
    return Verdicts(
        ids=IDS if ids is None else ids,
        hashes=[text_hash(text) for text in TEXTS],
        classes=classes,
        weak=label[::-1].copy(),
        probe=label,
        label=label,
        keep=np.array([True, True, False, True]),
        weight=np.array([1, 0.5, 1, 2], np.float32),
        disagreement=np.abs(label - label[::-1]).sum(1) / 2,
        fold=np.array([0, 1, -1, 2], np.int16),
        provenance={"probe": {"name": "KNNProbe", "parameters": {"k": 30}}},
    )


def records(ids: list[str] | None = None) -> list[dict[str, object]]:
    return [
        {"id": i, "text": t, "label": 0, "note": f"n-{t}"}
        for i, t in zip(IDS if ids is None else ids, TEXTS, strict=True)
    ]


@pytest.mark.parametrize("name", ["v.parquet", "v.jsonl"])
def test_what_is_saved_is_loaded(tmp_path: Path, name: str) -> None:
    saved = verdicts()
    saved.save(tmp_path / name)
    loaded = Verdicts.load(tmp_path / name)
    for field in dataclasses.fields(Verdicts):
        mine, theirs = getattr(saved, field.name), getattr(loaded, field.name)
        if isinstance(mine, np.ndarray):
            assert mine.dtype == theirs.dtype
            np.testing.assert_array_equal(mine, theirs)
        else:
            assert mine == theirs


def test_parquet_is_the_documented_one(tmp_path: Path) -> None:
    verdicts().save(tmp_path / "v.parquet")
    table = pq.read_table(tmp_path / "v.parquet")
    types = {field.name: str(field.type) for field in table.schema}
    assert types == {
        "id": "string",
        "text_hash": "string",
        "weak": "list<element: float>",
        "probe": "list<element: float>",
        "label": "list<element: float>",
        "keep": "bool",
        "weight": "float",
        "disagreement": "float",
        "fold": "int16",
    }
    assert table.column("fold").to_pylist() == [0, 1, None, 2]
    assert table.column("label").to_pylist()[1] == [0.25, 0.75]


def test_apply_gives_back_the_kind_it_was_given_in_the_data_order() -> None:
    order = [3, 1, 0, 2]
    shuffled = [records()[i] for i in order]
    expected = [("d", 1, 2.0), ("b", 1, 0.5), ("a", 0, 1.0)]

    as_list = verdicts().apply(shuffled)
    assert [(r["id"], r["label"], r["weight"]) for r in as_list] == expected
    assert as_list[1]["probs"] == [0.25, 0.75]
    assert as_list[0]["note"] == "n-delta"
    assert shuffled[0]["label"] == 0, "the data given stay as they are"

    frame = verdicts().apply(pd.DataFrame(shuffled))
    assert isinstance(frame, pd.DataFrame)
    assert list(zip(frame["id"], frame["label"], frame["weight"], strict=True)) == expected
    assert list(frame.index) == [0, 1, 2]

    dataset = verdicts().apply(datasets.Dataset.from_list(shuffled))
    assert isinstance(dataset, datasets.Dataset)
    assert [(r["id"], r["label"], r["weight"]) for r in dataset] == expected


def test_rows_without_ids_are_found_by_number_or_by_order() -> None:
    bare = [{"text": text} for text in TEXTS]
    assert [r["text"] for r in verdicts().apply(bare)] == ["alpha", "beta", "delta"]
    numbered = verdicts(ids=["1", "2", "3", "4"])
    longer = [{"text": "first"}, *bare, {"text": "last"}]
    assert [r["text"] for r in numbered.apply(longer)] == ["alpha", "beta", "delta"]


def test_class_names_that_are_words_stay_words() -> None:
    named = verdicts(classes=("bad", "good"))
    assert [r["label"] for r in named.apply(records())] == ["bad", "good", "good"]


def test_other_texts_are_refused() -> None:
    other = records()
    other[1]["text"] = "another"
    with pytest.raises(DataError, match=r"1 rows of the data set have another text .*'b'"):
        verdicts().apply(other)
    assert len(verdicts().apply([{**r, "text": t} for r, t in zip(other, TEXTS, strict=True)])) == 3


def test_rows_that_are_missing_are_named() -> None:
    with pytest.raises(DataError, match=r"1 of 4 rows .* \(ids 'c'\)"):
        verdicts().apply([r for r in records() if r["id"] != "c"])
    with pytest.raises(DataError, match="has an id twice"):
        verdicts().apply([*records(), records()[0]])


def test_written_data_keep_their_own_columns(tmp_path: Path) -> None:
    rows = Rows.from_any([*records(), {"id": "x", "text": "unlabelled", "note": "none"}])
    assert verdicts().write_data(rows, tmp_path / "clean.jsonl") == 3
    lines = [json.loads(line) for line in (tmp_path / "clean.jsonl").read_text().splitlines()]
    assert lines[1] == {
        "id": "b",
        "text": "beta",
        "label": 1,
        "note": "n-beta",
        "probs": [0.25, 0.75],
        "weight": 0.5,
    }
    assert [line["id"] for line in lines] == ["a", "b", "d"]


def test_what_is_no_verdicts_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"id": "a", "label": 1}\n')
    with pytest.raises(DataError, match="has no verdicts: the columns text_hash"):
        Verdicts.load(tmp_path / "x.jsonl")
    verdicts().save(tmp_path / "v.jsonl")
    (tmp_path / "v.jsonl.meta.json").unlink()
    with pytest.raises(DataError, match="metadata"):
        Verdicts.load(tmp_path / "v.jsonl")
    with pytest.raises(DataError, match="'keep' has the shape"):
        dataclasses.replace(verdicts(), keep=np.array([True]))
    with pytest.raises(DataError, match="not to int"):
        verdicts().apply(3)


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "v.parquet"
    verdicts().save(path)
    pq.write_table(pq.read_table(path).slice(0, 1), path)
    assert len(Verdicts.load(path)) == 1  # the control
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    with pytest.raises(DataError, match="is damaged: it has no rows"):
        Verdicts.load(path)


def test_a_file_that_was_tampered_with_is_reported(tmp_path: Path) -> None:
    verdicts().save(tmp_path / "v.jsonl")
    good = [json.loads(line) for line in (tmp_path / "v.jsonl").read_text().splitlines()]
    meta = tmp_path / "v.jsonl.meta.json"
    with (tmp_path / "v.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(DataError, match=r"is not the file that .* describes"):
        Verdicts.load(tmp_path / "v.jsonl")
    caught = json.loads(meta.read_text())
    del caught["data"]  # whoever changes the file on purpose may do so
    meta.write_text(json.dumps(caught))
    for change, sentence in [
        ({"keep": "no"}, "'keep' has other values"),
        ({"keep": None}, "'keep' has other values"),
        ({"label": [None, 1.0]}, r"'label' is missing or not finite in 1 rows \(ids 'b'\)"),
        ({"probe": [1.0]}, "damaged"),
        ({"weight": None}, "'weight' is missing"),
        ({"id": "a"}, r"1 ids more than once \('a'\)"),
        ({"fold": 1 << 40}, "damaged"),
    ]:
        rows = [good[0], {**good[1], **change}, *good[2:]]
        (tmp_path / "v.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        with pytest.raises(DataError, match=sentence):
            Verdicts.load(tmp_path / "v.jsonl")
    meta.write_text(meta.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(DataError, match="install a newer probekit"):
        Verdicts.load(tmp_path / "v.jsonl")


def test_unknown_texts_are_not_compared() -> None:
    unknown = dataclasses.replace(verdicts(), hashes=["", "", "", ""])
    assert len(unknown.apply([{**row, "text": "another"} for row in records()])) == 3


def test_an_id_column_that_is_not_there_is_reported() -> None:
    with pytest.raises(DataError, match="no column 'key'; it has id, text, label, note"):
        verdicts().apply(records(), id_column="key")
    renamed = [{"key": r["id"], "body": r["text"]} for r in records()]
    assert len(verdicts().apply(renamed, id_column="key", text_column="body")) == 3


def test_class_names_come_back_as_they_were() -> None:
    for names, expected in [
        (("0", "1"), [0, 1]),
        (("-1", "10"), [-1, 10]),
        (("01", "02"), ["01", "02"]),  # codes, not numbers
        (("1", "x"), ["1", "x"]),
    ]:
        assert verdicts(classes=names).class_values() == expected


def test_a_frame_keeps_its_index_and_its_columns() -> None:
    frame = pd.DataFrame(records(), index=[7, 5, 3, 1])
    frame["data"], frame["features"] = 1, 2  # names that a Dataset has as attributes
    kept = verdicts().apply(frame)
    assert list(kept.index) == [7, 5, 1]
    assert list(kept.columns) == ["id", "text", "label", "note", "data", "features", "probs",
                                  "weight"]  # fmt: skip
    assert list(frame["label"]) == [0, 0, 0, 0]


def test_text_that_is_no_unicode_is_escaped(tmp_path: Path) -> None:
    bad = "alpha\ud800"
    rows = Rows.from_any([{"id": "a", "text": bad, "note": "ü"}])
    one = verdicts()
    one = Verdicts(
        ids=["a"], hashes=[text_hash(bad)], classes=one.classes, weak=one.weak[:1],
        probe=one.probe[:1], label=one.label[:1], keep=one.keep[:1], weight=one.weight[:1],
        disagreement=one.disagreement[:1], fold=one.fold[:1],
    )  # fmt: skip
    assert one.write_data(rows, tmp_path / "x.jsonl") == 1
    assert json.loads((tmp_path / "x.jsonl").read_text())["text"] == bad


def test_a_dataset_keeps_its_columns_and_nothing_is_printed(
    capfd: pytest.CaptureFixture[str],
) -> None:
    dataset = datasets.Dataset.from_list(records()).select([3, 2, 1, 0])
    kept = verdicts().apply(dataset)
    assert kept.column_names == ["id", "text", "note", "label", "probs", "weight"]
    assert kept["id"][:] == ["d", "b", "a"]
    assert capfd.readouterr().err == ""
    assert datasets.utils.logging.is_progress_bar_enabled()
