from __future__ import annotations

import json
from decimal import Decimal

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from probekit.data import text_hash
from probekit.errors import DataError, LabelsError, UsageError
from probekit.joins import Keys
from probekit.labels import WeakLabels, load_labels


@pytest.fixture
def write(tmp_path):
    def make(name, content):
        path = tmp_path / name
        if isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        elif name.endswith(".parquet"):
            pd.DataFrame(content).to_parquet(path)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
        return path

    return make


def rows(**columns):
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values())]  # noqa: B905


# --- forms of a label ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "classes", "hard"),
    [
        ([1, 0, 1], ("0", "1"), [1, 0, 1]),
        ([10, 9, 8], ("8", "9", "10"), [2, 1, 0]),  # by number, not as text
        ([1, -1, 1], ("-1", "1"), [1, 0, 1]),  # two signs
        ([1, -2, -1], ("-2", "-1", "1"), [2, 0, 1]),  # a scale
        ([True, False, True], ("0", "1"), [1, 0, 1]),
        ([1.0, 0.0, 2.0], ("0", "1", "2"), [1, 0, 2]),
        (["pos", "neg", "pos"], ("neg", "pos"), [1, 0, 1]),
        (["10", "9", "9"], ("9", "10"), [1, 0, 0]),
        (["1.0", "0.0", "1.0"], ("0", "1"), [1, 0, 1]),  # as pandas writes whole floats
        (["01", "b", "01"], ("01", "b"), [0, 1, 0]),
        (["10", "b", "9"], ("10", "9", "b"), [0, 2, 1]),
    ],
)
def test_hard_labels(write, values, classes, hard):
    labels = load_labels(write("l.jsonl", rows(id=["a", "b", "c"], label=values)))
    assert labels.classes == classes
    assert labels.hard.tolist() == hard
    assert labels.probs.tolist() == np.eye(len(classes))[hard].tolist()


@pytest.mark.parametrize("name", ["l.jsonl", "l.parquet"])
def test_probabilities_before_prob_before_label(write, name):
    columns = {"id": ["a", "b"], "label": [0, 1], "prob": [0.9, 0.2], "probs": [[0.5, 0.5], [0, 1]]}
    columns["prob"] = [0.2, 0.9]
    labels = load_labels(write(name, rows(**columns)))
    assert labels.probs.tolist() == [[0.5, 0.5], [0, 1]]
    assert labels.hard.tolist() == [0, 1]  # 0.5 is class 0
    del columns["probs"]
    assert load_labels(write(name, rows(**columns))).probs[:, 1].tolist() == [0.2, 0.9]
    chosen = load_labels(write(name, rows(**columns)), label_column="label")
    assert chosen.hard.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("field", "probs"),
    [
        ("0.25", [0.75, 0.25]),
        ('"[0.25, 0.75]"', [0.25, 0.75]),
    ],
)
def test_columns_of_other_names_are_read_by_what_they_hold(write, field, probs):
    path = write("l.csv", f"key,p\nx,{field}\ny,{field}\n")
    labels = load_labels(path, id_column="key", label_column="p")
    assert labels.ids == ["x", "y"]
    assert labels.probs[0].tolist() == probs
    words = write("w.tsv", "key\tp\nx\tyes\ny\tno\n")
    assert load_labels(words, id_column="key", label_column="p").classes == ("no", "yes")


def test_float16_probabilities_are_scaled_to_sum_to_one(write):
    raw = np.random.default_rng(0).dirichlet(np.ones(12), 5).astype(np.float16).astype(float)
    path = write("l.jsonl", rows(id=list("abcde"), probs=raw.tolist()))
    assert np.abs(load_labels(path).probs.sum(axis=1) - 1).max() < 1e-12


def test_without_ids_rows_are_numbered_and_texts_hashed(write):
    path = write("l.jsonl", rows(text=["one", "two"], label=[0, 1]))
    labels = load_labels(path)
    assert labels.ids == ["0", "1"]
    assert labels.hashes == [text_hash("one"), text_hash("two")]


def test_texts_of_every_kind_are_hashed(write):
    pair = load_labels(write("p.jsonl", rows(text=["a", "b"], text_pair=["c", "d"], label=[0, 1])))
    assert pair.hashes == [text_hash(("a", "c")), text_hash(("b", "d"))]
    chat = [{"role": "user", "content": "hi"}]
    talk = load_labels(write("m.jsonl", rows(messages=[chat, chat], label=[0, 1])))
    assert talk.hashes == [text_hash(chat)] * 2
    named = load_labels(
        write("n.csv", "body,label\none,0\n,1\n"), text_column="body"
    )  # an empty text is joined by id alone
    assert named.hashes == [text_hash("one"), ""]
    assert load_labels(write("i.csv", "id,label\n1,0\n2,1\n")).hashes is None


def test_null_is_no_label(write):
    labels = load_labels(write("l.jsonl", rows(id=["a", "b", "c"], label=[0, None, 1])))
    assert labels.ids == ["a", "c"]
    assert load_labels(write("l.csv", "id,label\na,0\nb,\nc,1\n")).ids == ["a", "c"]


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        (
            {"prob": [0.5, 1.5, -1, 2]},
            r"3 rows whose 'prob' is not a prob.*first 1.5.*'b', 'c', 'd'",
        ),
        ({"prob": [0.5, float("inf"), 0, 1]}, r"1 rows whose 'prob' is not a probability.*'b'"),
        ({"prob": ["high", "low", "0.1", "0.2"]}, "2 rows whose 'prob' is not a probability"),
        ({"probs": [[0.5, 0.5], [0.5, 0.6], [1, 0], [0, 1]]}, r"not class probabilities.*'b'"),
        ({"probs": [[0.5, 0.5], [1.2, -0.2], [1, 0], [0, 1]]}, r"not class probabilities.*'b'"),
        ({"probs": [[0.5, 0.5], [0.2, 0.3, 0.5], [1, 0], [0, 1]]}, "has 3 numbers where the first"),
        ({"probs": [[1.0], [1.0], [1.0], [1.0]]}, "4 rows whose 'probs' has 1 numbers"),
        ({"probs": ["x", [1, 0], [1, 0], [1, 0]]}, "is not a list of numbers, the first 'x'"),
        ({"label": [0, 1, 0.3, 1]}, r"1 rows whose 'label' is not a class, the first 0.3.*'prob'"),
        ({"label": [0, float("inf"), 0, 1]}, "is not a class, the first inf"),
        ({"label": [0, {"a": 1}, 0, 1]}, "is not a class"),
        ({"label": [1, 1, 1, 1]}, r"one class only \('1' in all 4 rows\)"),
        ({"label": ["a", "a", "a", "a"]}, r"one class only \('a'"),
        ({"label": [None, None, None, None]}, "no label in any of its 4 rows"),
        ({"score": [1, 2, 3, 4]}, "no column 'probs', 'prob' or 'label'; it has id, score"),
    ],
)
def test_labels_that_are_none(write, columns, sentence):
    path = write("l.jsonl", rows(id=list("abcd"), **columns))
    with pytest.raises(LabelsError, match=sentence) as caught:
        load_labels(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).count("\n") == 0


def test_a_header_alone_holds_no_labels(write):
    with pytest.raises(LabelsError, match="has columns and no row; give one label a row"):
        load_labels(write("l.csv", "id,label\n"))


def test_columns_that_are_not_there(write):
    path = write("l.csv", "id,label\n1,0\n2,1\n")
    with pytest.raises(LabelsError, match=r"no column 'y'; it has id, label.*--label-column"):
        load_labels(path, label_column="y")
    with pytest.raises(LabelsError, match=r"no column 'key'.*--id-column"):
        load_labels(path, id_column="key")
    with pytest.raises(LabelsError, match="2 rows without an id"):
        load_labels(write("n.jsonl", rows(id=[None, "", "c"], label=[0, 1, 1])))


def test_files_that_cannot_be_read(write, tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        load_labels(tmp_path / "none.parquet")
    with pytest.raises(DataError, match="is empty"):
        load_labels(write("e.jsonl", ""))
    with pytest.raises(DataError, match="damaged or not a Parquet"):
        load_labels(write("d.parquet.", "x").rename(tmp_path / "d.parquet"))


def test_an_id_twice(write):
    path = write("l.jsonl", rows(id=["a", "b", "a", "b", "c"], label=[0, 1, 0, 1, 1]))
    with pytest.raises(LabelsError, match=r"2 ids more than once \(ids 'a', 'b'\)"):
        load_labels(path)


def test_one_class_is_a_truth(write):
    path = write("l.jsonl", rows(id=["a", "b"], label=[1, 1]))
    assert load_labels(path, one_class=True).hard.tolist() == [0, 0]
    soft = write("s.jsonl", rows(id=["a", "b"], prob=[0.9, 0.8]))  # both classes have mass
    assert load_labels(soft).hard.tolist() == [1, 1]


# --- joining ------------------------------------------------------------------------------------


@pytest.fixture
def labels():
    return WeakLabels(
        ids=["c", "a", "b"],
        hashes=["hc", "ha", ""],
        probs=np.array([[0, 1], [1, 0], [0.5, 0.5]]),
        classes=("0", "1"),
        source="weak.csv",
    )


def test_labels_come_in_the_order_of_the_rows(labels):
    rows_, mine = labels.align(["a", "b", "c"], ["ha", "hb", "hc"])
    assert rows_.tolist() == [0, 1, 2]
    assert mine.ids == ["a", "b", "c"]
    assert mine.probs.tolist() == [[1, 0], [0.5, 0.5], [0, 1]]


def test_rows_without_a_label(labels):
    ids = ["a", "x", "b", "y", "c", "z", "v"]
    with pytest.raises(
        LabelsError, match=r"no label for 4 of 7 rows.*'x', 'y', 'z', …\).*--only-labelled"
    ):
        labels.align(ids)
    rows_, mine = labels.align(ids, only_labelled=True)
    assert rows_.tolist() == [0, 2, 4]
    assert mine.ids == ["a", "b", "c"]


def test_labels_of_unknown_rows_are_left_out_and_reported(labels):
    mine = labels.align(["a"], rows_name="acts.h5").labels
    assert mine.ids == ["a"]
    assert mine.notes == (
        "weak.csv has 2 labels for ids that are not in acts.h5 (ids 'c', 'b'); they are left out.",
    )
    assert labels.align(["a", "b", "c"]).labels.notes == ()


def test_labels_of_unknown_rows_are_named_by_what_joins_them():
    """Not by the numbers of their lines, which mean nothing to the user."""
    rows = Keys(["0", "1"], id_column=None, columns={"key": ["k0", "k1"]}, name="acts.h5")
    labels = WeakLabels.from_columns({"key": ["k9", "k1", "k0"], "label": ["x", "y", "x"]})
    mine = labels.align(rows).labels
    assert mine.hard.tolist() == [0, 1]
    assert mine.notes == (
        "labels has 1 label for an id that is not in acts.h5 (id 'k9'); it is left out.",
    )


def test_no_row_in_common_is_reported_with_both_sides(labels):
    with pytest.raises(LabelsError, match=r"no label for any row.*'c', 'a', 'b', the rows' '0'"):
        labels.align(["0", "1"], only_labelled=True)


def test_texts_that_differ(labels):
    with pytest.raises(LabelsError, match=r"another text than the rows in 1 of 3 rows \(ids 'c'"):
        labels.align(["a", "b", "c"], ["ha", "hb", "other"])
    assert len(labels.align(["a", "b", "c"], ["ha", "whatever", "hc"]).labels) == 3


def test_classes_are_translated_by_name(labels):
    assert labels.codes(("x", "1", "0")).tolist() == [1, 2, 2]
    with pytest.raises(LabelsError, match="classes '0', '1', the labels have 'neg', 'pos'"):
        labels.codes(("neg", "pos"))
    assert labels.align(["a"]).labels.codes(("0",)).tolist() == [0]


def test_shapes_are_checked():
    with pytest.raises(LabelsError, match="do not fit"):
        WeakLabels(["a"], None, np.zeros((1, 3)), ("0", "1"))
    with pytest.raises(LabelsError, match="do not fit"):
        WeakLabels(["a"], ["h", "h"], np.zeros((1, 2)), ("0", "1"))


# --- on disk ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["w.parquet", "w.jsonl"])
@pytest.mark.parametrize("classes", [("0", "1"), ("neg", "pos"), ("a", "b", "c")])
def test_what_is_saved_comes_back(tmp_path, name, classes):
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(len(classes)), 20)
    ids = [f"r{i}" for i in range(20)]
    labels = WeakLabels(ids, ids, probs, classes, provenance={"seed": 3})
    labels.save(tmp_path / name)
    back = load_labels(tmp_path / name)
    assert back.classes == classes
    assert back.ids == ids
    assert back.hashes == ids
    assert back.provenance == {"seed": 3}
    assert np.abs(back.probs - probs).max() < 1e-15
    hard = load_labels(tmp_path / name, label_column="label")
    assert [hard.classes[c] for c in hard.hard] == [classes[c] for c in labels.hard]


def test_saved_labels_have_the_documented_columns(tmp_path):
    WeakLabels(["a"], None, np.array([[0.25, 0.75]]), ("0", "1")).save(tmp_path / "w.parquet")
    frame = pd.read_parquet(tmp_path / "w.parquet")
    assert frame.to_dict("records") == [{"id": "a", "prob": 0.75, "label": 1}]


def test_fingerprint_sees_every_part(labels):
    import dataclasses

    def with_(**changes):
        return dataclasses.replace(labels, **changes).fingerprint

    others = {
        with_(probs=labels.probs[::-1].copy()),
        with_(ids=["c", "a", "x"]),
        with_(classes=("0", "2")),
    }
    assert len(others | {labels.fingerprint}) == 4
    assert with_(source="elsewhere") == labels.fingerprint


@pytest.fixture
def toy(monkeypatch):
    """A task called toy, with one split."""
    from probekit.data import Rows
    from probekit.tasks import registry

    rows_ = Rows({"id": ["a", "b"], "text": ["one", "two"], "label": [0, 1]}, source="toy")
    task = registry.Task(
        name="toy", description="", source="", licence="", classes=("0", "1"), splits=("only",),
        load=lambda *_: rows_,
    )  # fmt: skip
    monkeypatch.setitem(registry._registered, "toy", task)


def test_a_tasks_own_labels(toy):
    labels = load_labels("toy@only")
    assert labels.ids == ["a", "b"]
    assert labels.hashes == [text_hash("one"), text_hash("two")]
    assert labels.hard.tolist() == [0, 1]
    with pytest.raises(UsageError, match="neither a file here nor a task"):
        load_labels("tou")


@pytest.mark.parametrize("column", ["probs", "p"])
def test_lists_that_are_none(write, column):
    path = write("l.csv", f'id,{column}\n1,"[0.5, 0.5]"\n2,"[0.5, ["\n3,"[0.1, null]"\n')
    with pytest.raises(LabelsError, match=r"2 rows whose .* is not a list of numbers.*'2', '3'"):
        load_labels(path, label_column=column)


def test_metadata_of_another_width_is_reported(write):
    WeakLabels(["a"], None, np.array([[0.2, 0.3, 0.5]]), ("x", "y", "z")).save(write("w.jsonl", []))
    path = write("w.jsonl", [{"id": "a", "probs": [0.5, 0.5]}])
    with pytest.raises(DataError, match=r"not the file that .*w\.jsonl\.meta\.json describes"):
        load_labels(path)
    note = path.with_name("w.jsonl.meta.json")
    caught = json.loads(note.read_text())
    del caught["data"]  # as 0.1.0 wrote it
    note.write_text(json.dumps(caught))
    with pytest.raises(LabelsError, match="names 3 classes but 'probs' has 2"):
        load_labels(path)


# --- no label -----------------------------------------------------------------------------------

NONE = [None, "", " ", "nan", "NaN", "NA", "N/A", "#N/A", "<NA>", "None", "null", "NULL"]


@pytest.mark.parametrize("word", NONE)
def test_words_for_no_label_are_none(write, word):
    path = write("l.jsonl", rows(id=list("abcd"), label=["x", word, "y", "x"]))
    labels = load_labels(path)
    assert labels.classes == ("x", "y")
    assert labels.ids == ["a", "c", "d"]
    ids = list("abcd")
    with pytest.raises(LabelsError, match=r"no label for 1 of 4 rows.*'b'.*--only-labelled"):
        labels.align(ids)
    assert labels.align(ids, only_labelled=True).rows.tolist() == [0, 2, 3]
    if word and word.strip():  # named by the user it is a class
        named = load_labels(path, classes=["x", "y", word])
        assert named.hard.tolist() == [0, 2, 1, 0]
        with pytest.raises(LabelsError, match=rf"where '{word}' means no label.*--classes"):
            labels.align(ids)


def test_a_missing_number_is_none_in_every_form(write, tmp_path):
    values = [1.0, float("nan"), 0.0]
    texts = "".join(f'{{"id": {i}, "label": {v}}}\n' for i, v in enumerate(["1", "NaN", "0"]))
    pa_table = pa.table({"id": [0, 1, 2], "label": values})  # as polars writes it: NaN, not null
    pq.write_table(pa_table, tmp_path / "polars.parquet")
    for path in (
        write("pandas.parquet", {"id": [0, 1, 2], "label": values}),
        tmp_path / "polars.parquet",
        write("n.jsonl", texts),
        write("n.csv", "id,label\n0,1.0\n1,\n2,0.0\n"),
    ):
        labels = load_labels(path)
        assert (labels.ids, labels.classes) == (["0", "2"], ("0", "1")), path
        assert list(labels.missing) == ["1"]


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        ([-1, 0, 1, 0], ("0", "1")),  # a labelling function that abstains
        (["-1", "0", "1", "2"], ("0", "1", "2")),
        ([-1.0, 0.0, 1.0, 0.0], ("0", "1")),
        ([-1, 1, 1, -1], ("-1", "1")),  # two signs
        ([-2, -1, 0, 1], ("-2", "-1", "0", "1")),  # a scale
        (["-1", "no", "yes", "no"], ("-1", "no", "yes")),  # words: -1 is one
    ],
)
def test_minus_one_abstains_beside_whole_numbers(write, values, classes):
    path = write("l.jsonl", rows(id=list("abcd"), label=values))
    assert load_labels(path).classes == classes
    if len(classes) == 2 and -1 in values and 0 in values:
        kept = load_labels(path, classes=["-1", "0", "1"])
        assert kept.hard.tolist() == [0, 1, 2, 1]


def test_a_class_label_has_its_names_and_no_minus_one(tmp_path):
    features = datasets.Features({"label": datasets.ClassLabel(names=["space", "cooking"])})
    saved = datasets.Dataset.from_dict({"label": [0, 1, -1, 1]}, features=features)
    saved.save_to_disk(tmp_path / "saved")
    saved.to_parquet(tmp_path / "l.parquet")
    for name in ("saved", "l.parquet"):
        labels = load_labels(tmp_path / name)
        assert labels.classes == ("space", "cooking")
        assert labels.hard.tolist() == [0, 1, 1]
        assert labels.missing == {"2": "-1"}


def test_classes_that_look_alike_are_reported(write):
    for twins in (["pos", "pos "], ["pos", "Pos"], ["caf\u00e9", "cafe\u0301"], ["a\u200b", "a"]):
        labels = load_labels(write("l.jsonl", rows(id=["a", "b"], label=twins)))
        assert len(labels.classes) == 2
        assert len(labels.notes) == 1
        assert "look alike" in labels.notes[0]
        assert labels.notes[0].isascii()
    assert load_labels(write("l.jsonl", rows(id=["a", "b"], label=["pos", "neg"]))).notes == ()


def test_classes_named_by_the_user(write):
    path = write("l.csv", "id,label\na,low\nb,high\n")
    assert load_labels(path, classes=["low", "mid", "high"]).probs.tolist() == [
        [1, 0, 0],
        [0, 0, 1],
    ]
    with pytest.raises(LabelsError, match=r"none of the classes, the first 'low' \(ids 'a'\)"):
        load_labels(path, classes=["mid", "high"])
    with pytest.raises(LabelsError, match="at least two different names"):
        load_labels(path, classes=["low"])
    soft = write("p.csv", "id,prob\na,0.2\nb,0.9\n")
    assert load_labels(soft, classes=["no", "yes"]).classes == ("no", "yes")
    with pytest.raises(LabelsError, match="names 3 classes but 'prob'"):
        load_labels(soft, classes=["a", "b", "c"])


# --- a label beside a probability ---------------------------------------------------------------


@pytest.mark.parametrize("words", [False, True])
def test_a_confidence_in_prob_is_refused_and_read_as_one_when_named(write, words):
    names = ["neg", "pos"] if words else [0, 1]
    path = write(
        "l.jsonl",
        rows(id=list("abcd"), label=[names[i] for i in (0, 1, 0, 0)], prob=[0.9, 0.8, 0.7, 0.6]),
    )
    with pytest.raises(LabelsError) as caught:
        load_labels(path)
    for part in ("3 rows", "'a', 'c', 'd'", "--label-column label", "--confidence-column prob"):
        assert part in str(caught.value)
    hard = load_labels(path, label_column="label")
    assert hard.hard.tolist() == [0, 1, 0, 0]
    soft = load_labels(path, confidence_column="prob")
    assert soft.classes == tuple(map(str, names))
    assert soft.probs == pytest.approx(np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.6, 0.4]]))


def test_a_label_that_bears_the_probabilities_out_names_them(write):
    path = write("l.csv", "id,label,prob\na,no,0.1\nb,yes,0.9\nc,no,0.5\n")
    labels = load_labels(path)
    assert labels.classes == ("no", "yes")
    assert labels.probs[:, 1].tolist() == [0.1, 0.9, 0.5]
    assert labels.column == "column 'prob'"
    many = write(
        "m.jsonl", rows(id=["a", "b", "c"], label=["x", "y", "z"], probs=np.eye(3).tolist())
    )
    assert load_labels(many).classes == ("x", "y", "z")


def test_a_confidence_of_many_classes_is_shared_by_the_others(write):
    path = write("l.csv", "id,label,score\na,x,0.7\nb,y,0.4\nc,z,1.0\n")
    soft = load_labels(path, confidence_column="score")
    assert soft.probs == pytest.approx(
        np.array([[0.7, 0.15, 0.15], [0.3, 0.4, 0.3], [0.0, 0.0, 1.0]])
    )
    hard = load_labels(path)
    assert hard.probs.tolist() == np.eye(3).tolist()
    assert "--confidence-column score" in hard.notes[0]
    with pytest.raises(LabelsError, match="no column 'conf'"):
        load_labels(path, confidence_column="conf")


# --- numbers as programs print them -------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "[0.3 0.7]",
        "[0.3, 0.7]",
        "[0.3  0.7 ]",
        "(0.3, 0.7)",
        "[np.float64(0.3), np.float64(0.7)]",
        "array([0.3, 0.7], dtype=float32)",
        "tensor([0.3000, 0.7000])",
        "[3.e-01 7.e-01]",
        "[0.3\n 0.7]",
    ],
)
def test_probabilities_as_they_are_printed(write, text):
    path = write("l.csv", f'id,probs\na,"{text}"\nb,"[1, 0]"\n')
    assert load_labels(path).probs[0] == pytest.approx([0.3, 0.7])


@pytest.mark.parametrize("text", ["[0.3 ... 0.7]", "0.3 0.7", "[0.3; 0.7]", "[]", "[[0.3, 0.7]]"])
def test_what_is_no_list_of_probabilities(write, text):
    path = write("l.csv", f'id,probs\na,"{text}"\nb,"[1, 0]"\n')
    with pytest.raises(LabelsError, match=r"'probs' (is not a list|has)"):
        load_labels(path)


def test_rounding_at_the_ends_is_taken_and_more_is_not(write):
    path = write("l.jsonl", rows(id=["a", "b", "c"], prob=[1.0000001, -1e-7, 0.5]))
    assert load_labels(path).probs[:, 1].tolist() == [1, 0, 0.5]
    with pytest.raises(LabelsError, match=r"not a probability, the first 1\.01"):
        load_labels(write("l.jsonl", rows(id=["a", "b"], prob=[1.01, 0.5])))


def test_numbers_of_databases_and_other_countries(write, tmp_path):
    table = pa.table(
        {
            "id": ["a", "b"],
            "label": pa.array([Decimal("1"), Decimal("0")], pa.decimal128(3, 0)),
        }
    )
    pq.write_table(table, tmp_path / "d.parquet")
    assert load_labels(tmp_path / "d.parquet").hard.tolist() == [1, 0]
    pq.write_table(pa.table({"id": ["a", "b"], "label": [b"1", b"0"]}), tmp_path / "b.parquet")
    assert load_labels(tmp_path / "b.parquet").hard.tolist() == [1, 0]
    comma = write("c.csv", "id;prob\na;0,25\nb;0,75\n")
    assert load_labels(comma).probs[:, 1].tolist() == [0.25, 0.75]


def test_class_names_of_thousands_of_digits_are_words(write):
    path = write("l.csv", f"id,label\na,{'9' * 5000}\nb,1\n")
    assert len(load_labels(path).classes) == 2


def test_labels_of_a_newer_format_are_refused(tmp_path):
    labels = WeakLabels(["a", "b"], None, np.eye(2), ("0", "1"))
    labels.save(tmp_path / "weak.jsonl")
    assert load_labels(tmp_path / "weak.jsonl").classes == ("0", "1")
    beside = tmp_path / "weak.jsonl.meta.json"
    beside.write_text(beside.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(DataError, match=r"version 2 of the labels format .* newer probekit"):
        load_labels(tmp_path / "weak.jsonl")
