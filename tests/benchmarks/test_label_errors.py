"""The benchmark of wrong labels: its figures, its pieces, and what its page says."""

import json
import sys
from itertools import permutations
from types import SimpleNamespace

import label_errors
import label_methods
import label_summary
import numpy as np
import pytest
from label_methods import Case, Family, Found
from label_noise import KINDS
from sklearn.metrics import roc_auc_score


def test_figures_are_scikit_learns_within_and_over_the_classes():
    rng = np.random.default_rng(0)
    hard = rng.integers(0, 3, 400)
    wrong = rng.random(400) < 0.3
    score = wrong + rng.normal(size=400) + 2 * hard  # classes differ, which only "all" sees
    found = label_errors.figures(score, hard, wrong)
    each = [roc_auc_score(wrong[hard == c], score[hard == c]) for c in range(3)]
    expected = np.average(each, weights=np.bincount(hard))
    assert found["within"] == pytest.approx(expected, abs=5e-5)  # written with four decimals
    assert found["all"] == pytest.approx(roc_auc_score(wrong, score), abs=5e-5)
    assert found["within"] > found["all"] + 0.05
    top = np.argsort(-score)[: wrong.sum()]
    assert found["precision"] == pytest.approx(wrong[top].mean(), abs=5e-5)


def test_a_class_without_errors_counts_nothing():
    hard, wrong = np.array([0, 0, 0, 0, 1, 1]), np.array([1, 0, 0, 0, 0, 0], bool)
    found = label_errors.figures(np.array([3.0, 2, 1, 0, 9, 9]), hard, wrong)
    assert found["within"] == 1
    assert found["all"] < 1


def test_precision_of_equal_scores_is_the_mean_over_their_orders():
    score, wrong = np.array([2.0, 1, 1, 1, 0]), np.array([1, 1, 0, 1, 0], bool)
    orders = [[0, *order] for order in permutations([1, 2, 3])]
    expected = np.mean([wrong[order[:3]].mean() for order in orders])
    found = label_errors.figures(score, np.zeros(5, int), wrong)
    assert found["precision"] == pytest.approx(expected, abs=5e-5)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run the benchmark on a task and methods that are made up; return the methods' calls."""
    calls = []
    truth = np.arange(40) % 2
    noisy = SimpleNamespace(rows=np.arange(40), weak=np.eye(2)[truth])
    noisy.hard = np.where(np.arange(40) < 8, 1 - truth, truth)
    task = SimpleNamespace(texts=[], truth=truth)
    monkeypatch.setattr(label_errors, "case_states", lambda *_: (task, None, None))
    monkeypatch.setattr(label_errors, "weak_labels", lambda *_: noisy)

    def family(name):
        def find(case):
            calls.append(name)
            return {name: Found(np.arange(40.0), np.arange(40) < 10)}

        return Family((name,), find)

    monkeypatch.setattr(label_errors, "FAMILIES", {name: family(name) for name in "ab"})
    file = tmp_path / "label_errors.jsonl"

    def start(*more):
        calls.clear()
        argv = ["label_errors.py", "--tasks", "t", "--models", "minilm=x", "--output", str(file)]
        monkeypatch.setattr(sys, "argv", [*argv, *more])
        label_errors.main()
        return calls, [json.loads(line) for line in file.read_text().splitlines()]

    return start


def test_finished_lines_are_not_repeated(run):
    calls, lines = run("--methods", "a", "--kinds", "model")
    assert calls == ["a", "a"]  # two seeds
    assert lines[0]["wrong"] == 8
    assert (lines[0]["flagged"], lines[0]["flagged wrong"]) == (10, 8)
    calls, lines = run("--kinds", "model", "rule")
    assert calls == ["b", "a", "b", "b", "a", "b"]
    assert len(lines) == 8
    assert not run("--kinds", "model", "rule")[0]


def test_methods_see_no_truth():
    assert set(Case.__dataclass_fields__) == {"store", "rows", "weak", "seed"}


def test_simifeat_votes_without_the_row_itself():
    rng = np.random.default_rng(0)
    truth = np.arange(200) % 2
    X = (rng.normal(size=(200, 5)) + 4 * truth[:, None]).astype(np.float32)
    hard = np.where(np.arange(200) < 20, 1 - truth, truth)
    store = SimpleNamespace(layers=(1,), read=lambda _, rows: X[rows])
    found = label_methods.simifeat(Case(store, np.arange(200), np.eye(2)[hard], 0))["SimiFeat"]
    assert found.flagged[:20].all()
    assert found.flagged.sum() < 30
    assert found.score[:20].min() > 0.5


def test_cleanlabs_recipe_finds_planted_errors():
    pytest.importorskip("cleanlab")
    rng = np.random.default_rng(0)
    truth = np.arange(200) % 2
    X = (rng.normal(size=(200, 5)) + 2 * truth[:, None]).astype(np.float32)
    wrong = np.arange(200) < 20
    store = SimpleNamespace(layers=(1,), read=lambda _, rows: X[rows])
    weak = np.eye(2)[np.where(wrong, 1 - truth, truth)]
    case = Case(store, np.arange(200), weak, 0)
    found = label_methods.cleanlab(case) | label_methods.datalab(case)
    assert set(found) == {"cleanlab", "cleanlab, margin", "Datalab"}
    for one in found.values():
        assert roc_auc_score(wrong, one.score) > 0.9


def lines_of(margin):
    """Lines of one task in which the ensemble is ``margin`` (kind -> points) over cleanlab."""
    for kind in KINDS:
        for method in label_summary.METHODS:
            within = 0.80 + 0.01 * margin[kind] * (method == label_summary.OURS)
            figures = dict.fromkeys(("within", "all", "ap", "precision"), within)
            case = {"model": "minilm", "task": "sst2", "kind": kind, "seed": 0, "method": method}
            yield {**case, **figures}


def test_the_page_says_where_the_goal_is_missed():
    margin = dict(zip(KINDS, (7, 7, 7, 7, 6, -4), strict=True))
    lines = list(lines_of(margin))
    header, rows, text = label_summary.summarize(lines)
    assert len(rows) == 5
    assert rows[-1][header.index("by a rule")] == "76.0"
    assert rows[-1][header.index("mean")] == "85.0"
    assert "+5.0 points in the mean of all cases" in text
    assert "on 1 of 6 pairs of a task and a kind, at worst -4.0 (sst2, by a rule)" in text
    unfinished = [line for line in lines if line["kind"] != "rule" or line["method"] != "SimiFeat"]
    assert "+6.8 points in" in label_summary.summarize(unfinished)[2]  # the whole case is left out


def test_a_decoder_has_a_table_of_its_own():
    lines = list(lines_of(dict.fromkeys(KINDS, 7)))
    methods = label_summary.DECODED
    figures = dict.fromkeys(("within", "all", "ap", "precision"), 0.5)
    decoded = [
        {"model": "smollm2", "task": "sst2", "kind": kind, "seed": 0, "method": method, **figures}
        for kind in KINDS
        for method in methods
    ]
    header, rows, text = label_summary.decoder(lines + decoded)
    assert [row[header.index("mean")] for row in rows] == ["50.0"] * len(methods)
    assert text == "6 cases: SmolLM2-135M on sst2; six kinds, one seed."
    assert label_summary.summarize(lines + decoded) == label_summary.summarize(lines)
