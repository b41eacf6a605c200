"""Votes of several annotators become one soft label a row, and their agreement is reported."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from probekit.annotators import alpha_krippendorff, combine
from probekit.errors import LabelsError, ProbekitError, UsageError
from probekit.labels import WeakLabels, load_labels
from probekit.tables import Table

# Krippendorff (2011), part C: four observers, twelve units, values missing; alpha is 0.743.
KRIPPENDORFF = """
1 2 3 3 2 1 4 1 2 . . .
1 2 3 3 2 2 4 1 2 5 . 3
. 3 3 3 2 3 4 2 2 5 1 .
1 2 3 3 2 4 4 1 2 5 1 .
"""


def observers() -> dict[str, list[str]]:
    lines = KRIPPENDORFF.strip().splitlines()
    votes = [[word.replace(".", "") for word in line.split()] for line in lines]
    return {f"label_{i}": values for i, values in enumerate(votes, 1)}


def planted(n: int = 600, *, seed: int = 0, missing: float = 0.3) -> tuple[Any, Any]:
    """Truth (n,) of three classes and votes (n, 5), -1 where missing, of one good annotator,
    three poor ones and one who takes class 0 for class 1."""
    rng = np.random.default_rng(seed)
    y = rng.choice(3, n, p=[0.5, 0.3, 0.2])
    right = np.array([0.9, 0.6, 0.55, 0.55, 0.85])
    V = np.where(rng.random((n, 5)) < right, y[:, None], rng.integers(0, 3, (n, 5)))
    V[y == 0, 4] = 1
    V[rng.random((n, 5)) < missing] = -1
    return y, V


def wide(V: Any) -> Table:
    names = ("a", "b", "c")
    columns = {
        f"label_{i}": [names[v] if v >= 0 else None for v in V[:, i].tolist()] for i in range(5)
    }
    return Table(columns)


def long(table: Table) -> Table:
    """The same votes, one a line, in another order."""
    votes = [
        (f"r{r}", name, value)
        for name, values in table.columns.items()
        for r, value in enumerate(values)
    ]
    order = np.random.default_rng(1).permutation(len(votes))
    ids, names, values = zip(*(votes[i] for i in order), strict=True)
    return Table({"id": ids, "annotator": names, "label": values})


def em(V: Any, C: int, steps: int = 3000) -> Any:
    """Dawid and Skene's EM in dense arrays, from the share of votes, to its end: T (n, C)."""
    votes = np.eye(C)[V] * (V >= 0)[..., None]  # (n, A, C)
    seen = votes.any(axis=(1, 2))
    T = votes.sum(axis=1)
    T[seen] /= T[seen].sum(axis=1, keepdims=True)
    for _ in range(steps):
        p = T[seen].mean(axis=0)
        pi = np.einsum("nj,nak->ajk", T, votes)  # (annotator, true class, vote)
        pi /= np.maximum(pi.sum(axis=2, keepdims=True), 1e-300)
        log = np.log(np.maximum(p, 1e-300)) + np.einsum(
            "nak,ajk->nj", votes, np.log(np.maximum(pi, 1e-300))
        )
        T = np.exp(log - log.max(axis=1, keepdims=True))
        T /= T.sum(axis=1, keepdims=True)
    return T, seen


# --- forms --------------------------------------------------------------------------------------


def test_the_share_of_votes_becomes_a_soft_label_and_no_vote_is_no_label() -> None:
    columns = {
        "id": ["a", "b", "c", "d"],
        "label_1": ["good", "good", "bad", None],
        "label_2": ["bad", "", "bad", "nan"],
        "label_10": ["good", "good", None, " "],
    }
    labels = load_labels(Table(columns, "votes.csv"))
    assert labels.classes == ("bad", "good")
    np.testing.assert_allclose(labels.probs, [[1 / 3, 2 / 3], [0, 1], [1, 0]])
    assert list(labels.ids) == ["a", "b", "c"]
    assert list(labels.missing) == ["d"]
    assert labels.column == "the votes in label_1, label_2, label_10"
    assert labels.provenance["annotators"] == {
        "method": "votes",
        "columns": ["label_1", "label_2", "label_10"],
        "annotators": 3,
        "rows": 3,
        "labels_per_row": 2.3333,
        "rows_with_several": 3,
        "all_agree": 0.6667,
        "krippendorff_alpha": 0.5,
    }
    assert labels.notes == (
        "votes.csv: 3 annotators, 3 rows, 2.3 labels a row; all agree in 66.7 % of the 3 rows with "
        "two or more, Krippendorff's alpha 0.50; combined by share of votes.",
    )


@pytest.mark.parametrize("method", ["votes", "dawid-skene"])
def test_one_vote_a_line_gives_what_a_column_for_each_annotator_gives(method: Any) -> None:
    pytest.importorskip("crowdkit")
    _, V = planted(200)
    table = wide(V)
    columns, lines = (
        load_labels(table, annotators=method),
        load_labels(long(table), annotators=method),
    )
    order = {f"r{name}": i for i, name in enumerate(columns.ids)}
    np.testing.assert_allclose(
        lines.probs, columns.probs[[order[name] for name in lines.ids]], atol=1e-9
    )
    about, other = (each.provenance["annotators"] for each in (columns, lines))
    for name in ("annotators", "rows", "labels_per_row", "all_agree", "krippendorff_alpha"):
        assert about[name] == other[name]


@pytest.mark.parametrize(
    ("votes", "classes"),
    [
        ([[1, 0, 1], [1, 1, None]], ("0", "1")),
        ([["1", "0", "1.0"], ["01", "1", ""]], ("0", "1")),  # as pandas writes them beside gaps
        ([[1.0, 0.0, 1.0], [1.0, 1.0, float("nan")]], ("0", "1")),
        ([[True, False, True], [True, True, None]], ("0", "1")),
        ([["yes", "no", "yes"], ["yes", "yes", "NA"]], ("no", "yes")),
        ([[3, 2, 3], [3, 3, -1]], ("2", "3")),  # -1: a labelling function that abstains
    ],
)
def test_votes_are_words_numbers_and_booleans_as_labels_are(
    votes: list[list[Any]], classes: tuple[str, ...]
) -> None:
    labels = load_labels(Table({"label_1": votes[0], "label_2": votes[1]}))
    assert labels.classes == classes
    assert labels.probs.tolist() == [[0, 1], [0.5, 0.5], [0, 1]]


def test_numbers_of_a_class_label_become_its_names() -> None:
    names = {"label_1": ("neg", "pos"), "label_2": ("neg", "pos")}
    table = Table({"label_1": [0, 1], "label_2": [1, 1]}, class_names=names)
    labels = load_labels(table)
    assert labels.classes == ("neg", "pos")
    assert labels.probs.tolist() == [[0.5, 0.5], [0, 1]]


def test_a_line_for_each_row_keeps_the_columns_that_its_votes_agree_on() -> None:
    lines = {
        "id": [7, 8, 7],
        "text": ["x", "y", "x"],
        "worker": ["ann", "ann", "bob"],
        "label": ["good", "bad", "bad"],
        "seconds": [1.0, 2.0, 3.0],
        "score": [float("nan"), [1], float("nan")],
    }
    combined = combine(Table(lines))
    assert combined is not None
    assert list(map(str, combined.columns["score"])) == ["nan", "[1]"]
    assert {k: v for k, v in combined.columns.items() if k != "score"} == {
        "id": [7, 8],
        "text": ["x", "y"],
        "probs": [[0.5, 0.5], [1, 0]],
    }
    assert combined.note.endswith(
        "Columns that differ between a row's votes are dropped: 'seconds'."
    )


def test_the_same_vote_twice_counts_once() -> None:
    lines = {"id": ["a"] * 3 + ["b"] * 2, "annotator": [*"xxy", *"xy"], "label": [0, 0, 1, 0, 0]}
    assert load_labels(Table(lines)).probs.tolist() == [[0.5, 0.5], [1, 0]]


def test_what_had_one_label_a_row_is_read_as_before() -> None:
    probs = {"probs": [[0.2, 0.8], [1, 0]], "label_1": [0, 1], "label_2": [1, 1]}
    assert load_labels(Table(probs)).probs.tolist() == probs["probs"]
    by_name = load_labels(Table({**probs, "label": [0, 1]}), label_column="label_2", one_class=True)
    assert by_name.hard.tolist() == [0, 0]
    # Each row by one of several people: one label a row.
    single = {"id": ["a", "b"], "annotator": ["x", "y"], "label": [0, 1]}
    assert load_labels(Table(single)).probs.tolist() == [[1, 0], [0, 1]]
    assert combine(Table(single)) is None


# --- what is refused ----------------------------------------------------------------------------

TWICE = {"id": ["a", "a", "b"], "annotator": ["x", "x", "y"]}


@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        (
            {"label": [0, 1], "label_1": [0, 1], "label_2": [0, 1]},
            {},
            "has a column 'label' beside 'label_1', 'label_2'",
        ),
        (
            {**TWICE, "label": ["p", "q", "p"]},
            {},
            r"1 votes that contradict another .* \(ids 'a'; the first is 'x' with 'p' and 'q'\)",
        ),
        ({**TWICE, "annotator": ["x"] * 3, "label": [0, 0, 1]}, {}, "of one annotator only .'x'"),
        ({"label_1": [0, 1]}, {}, "of one annotator only .'label_1'"),
        ({"label_1": [0, 1], "label_2": [None, ""]}, {}, "of one annotator only .'label_1'"),
        (
            {"label_1": [0, 1], "label_2": [0.7, 1]},
            {},
            r"1 votes .* not classes \(ids '0'\).*'0.7'",
        ),
        (
            {"label_1": [0, 1], "label_2": ["0.7", 1]},
            {},
            "1 votes .* the first '0.7'; a vote is one",
        ),
        ({"label_1": [0, 1], "label_2": [[0.7, 0.3], 1]}, {}, "1 votes .* are not classes"),
        (
            {"label_1": ["a", "b"], "label_2": ["a", "c"]},
            {"classes": ["a", "b"]},
            "is none of the classes, the first 'c'",
        ),
        (
            {**TWICE, "annotator": ["x", None, "y"], "label": [0, 1, 1]},
            {},
            "1 votes without an ann",
        ),
        ({**TWICE, "vote": [0, 1, 1]}, {}, "has no column 'label' of votes; it has id, annotator"),
        (
            {**TWICE, "annotator": ["x", "y", "y"], "label": [0, 1, 1], "text": ["s", "t", "u"]},
            {},
            r"1 ids with more than one 'text' \(ids 'a'\); give each text its own id",
        ),
        ({"label_1": [None], "label_2": [None]}, {}, "has no label in any"),
    ],
)
def test_bad_votes_are_one_sentence(
    columns: dict[str, list[Any]], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(LabelsError, match=message) as refused:
        load_labels(Table(columns, "votes.csv"), **settings)
    assert str(refused.value).startswith("votes.csv has ")


def test_a_method_without_votes_is_refused() -> None:
    with pytest.raises(UsageError, match="has one label a row: several annotators need columns"):
        load_labels(Table({"label": [0, 1]}), annotators="votes")
    with pytest.raises(UsageError, match="annotators is one of votes, dawid-skene, got 'mace'"):
        combine(Table(observers()), "mace")  # type: ignore[arg-type]


def test_without_crowd_kit_only_dawid_skene_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probekit.extras.find_spec", lambda _: None)
    assert len(load_labels(Table(observers()))) == 12
    with pytest.raises(ProbekitError, match=r"`pip install 'probekit-w2s\[annotators\]'`"):
        load_labels(Table(observers()), annotators="dawid-skene")


# --- agreement ----------------------------------------------------------------------------------


def test_alpha_is_that_of_krippendorffs_example() -> None:
    labels = load_labels(Table(observers()))
    assert labels.provenance["annotators"]["krippendorff_alpha"] == pytest.approx(0.743, abs=5e-4)
    assert labels.provenance["annotators"]["rows_with_several"] == 11


def test_alpha_agrees_with_crowd_kit() -> None:
    data = pytest.importorskip("crowdkit.metrics.data")
    _, V = planted(150)
    V = V[(V >= 0).sum(axis=1) > 1]
    row, annotator = np.nonzero(V >= 0)
    answers = pd.DataFrame({"task": row, "worker": annotator, "label": V[row, annotator]})
    counts = np.stack([(c == V).sum(axis=1) for c in range(3)], axis=1)
    assert alpha_krippendorff(counts) == pytest.approx(data.alpha_krippendorff(answers), abs=1e-12)


def test_alpha_of_votes_that_cannot_disagree_is_unknown() -> None:
    assert np.isnan(alpha_krippendorff(np.array([[1, 0], [0, 1]])))
    assert np.isnan(alpha_krippendorff(np.array([[2, 0], [3, 0]])))
    lines = {"id": [*"aab"], "annotator": [*"xxy"], "label": [0, 0, 1]}
    labels = load_labels(Table(lines))
    assert labels.provenance["annotators"]["all_agree"] is None
    assert "no row has two, so agreement is unknown; combined" in labels.notes[0]


# --- Dawid-Skene --------------------------------------------------------------------------------


def test_dawid_skene_agrees_with_a_second_computation() -> None:
    """Within 1e-3: crowd-kit stops when the bound per vote grows by less than 1e-7."""
    pytest.importorskip("crowdkit")
    y, V = planted()
    labels = load_labels(wide(V), annotators="dawid-skene")
    T, seen = em(V, 3)
    assert list(labels.ids) == [str(i) for i in np.flatnonzero(seen)]
    np.testing.assert_allclose(labels.probs, T[seen], atol=1e-3)
    # The control: shares of votes are far from it.
    assert np.abs(load_labels(wide(V)).probs - T[seen]).max() > 0.5
    about = labels.provenance["annotators"]
    known = [(V[V[:, a] >= 0, a] == y[V[:, a] >= 0]).mean() for a in range(5)]
    np.testing.assert_allclose([*about["accuracy"].values()], known, atol=0.08)


def right(labels: WeakLabels, y: Any) -> float:
    return float((labels.hard == y[[int(i) for i in labels.ids]]).mean())


def test_on_planted_noise_dawid_skene_beats_votes_and_votes_beat_one_annotator() -> None:
    pytest.importorskip("crowdkit")
    y, V = planted(1500, seed=2, missing=0)
    single = (y[:, None] == V).mean()
    votes, weighed = (
        right(load_labels(wide(V), annotators=m), y) for m in ("votes", "dawid-skene")
    )
    assert weighed > votes + 0.02 > single + 0.2


def test_two_annotators_are_too_few_for_dawid_skene() -> None:
    pytest.importorskip("crowdkit")
    _, V = planted(100)
    table = wide(V)
    pair = Table({name: table.columns[name] for name in ("label_0", "label_1")})
    labels = load_labels(pair, annotators="dawid-skene")
    assert labels.notes[0].endswith("From two annotators alone it cannot tell which one errs.")
