from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from probekit.cuts import prior_matched
from probekit.experiments.students import TrainingSet, judge_students, random_drops
from probekit.metrics import auroc, paired_bootstrap
from probekit.probes import LogisticProbe

N, TEST, WIDTH = 400, 600, 8


class Problem:
    """Two Gaussian classes; weak labels that are wrong for a fifth of the rows."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.truth, self.truth_test = rng.integers(0, 2, N), rng.integers(0, 2, TEST)
        direction = np.linspace(-1, 1, WIDTH)
        self.X = rng.normal(size=(N, WIDTH)) + np.outer(self.truth - 0.5, direction)
        self.X_test = rng.normal(size=(TEST, WIDTH)) + np.outer(self.truth_test - 0.5, direction)
        wrong = rng.random(N) < 0.2
        self.weak = np.eye(2)[np.where(wrong, 1 - self.truth, self.truth)]
        score = np.where(rng.random(TEST) < 0.35, 1 - self.truth_test, self.truth_test)
        self.weak_test = np.column_stack([1 - score, score]) * 0.8 + 0.1
        self.sets = [
            TrainingSet("weak labels", "plain", np.arange(N), self.weak),
            *random_drops(self.weak, [30, 20], name="random", draws=3),
            TrainingSet("half", "filter", np.arange(0, N, 2), self.weak[::2]),
        ]

    def judge(self, **changes: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        return judge_students(
            self.X,
            self.X_test,
            changes.get("sets", self.sets),
            weak_test=changes.get("weak_test", self.weak_test),
            truth=changes.get("truth", self.truth),
            truth_test=self.truth_test,
        )


@pytest.fixture(scope="module")
def problem(one_thread: None) -> Problem:
    return Problem()


@pytest.fixture(scope="module")
def judged(problem: Problem) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    return problem.judge()


def arm_of(results: dict[str, Any], name: str) -> dict[str, Any]:
    return next(arm for arm in results["arms"] if arm["name"] == name)


def test_random_drops_take_so_many_of_each_weak_class_and_are_of_the_seed() -> None:
    weak = np.eye(2)[np.arange(100) % 5 // 4]  # 80 of class 0, 20 of class 1
    one, two = random_drops(weak, [30, 5], name="r", draws=2, seed=1)
    for drop in (one, two):
        assert np.bincount(drop.Y.argmax(axis=1)).tolist() == [50, 15]
        assert np.array_equal(drop.Y, weak[drop.rows])
        assert (np.diff(drop.rows) > 0).all()
    assert not np.array_equal(one.rows, two.rows)
    again = random_drops(weak, [30, 5], name="r", draws=1, seed=1)[0]
    assert np.array_equal(one.rows, again.rows)
    assert not np.array_equal(
        one.rows, random_drops(weak, [30, 5], name="r", draws=1, seed=2)[0].rows
    )
    assert len(random_drops(weak, [0, 0], name="r", draws=1)[0].rows) == 100


def test_arms_stand_between_floor_and_ceiling_and_go_into_json(judged: Any) -> None:
    results, predictions = judged
    names = ["weak supervisor", "weak labels", "random", "half", "ground truth"]
    assert [arm["name"] for arm in results["arms"]] == names == list(predictions)
    kinds = ["floor", "plain", "random", "filter", "ceiling"]
    assert [arm["kind"] for arm in results["arms"]] == kinds
    assert results["random_draws"] == arm_of(results, "random")["draws"] == 3
    assert json.loads(json.dumps(results, allow_nan=False)) == results


def test_a_student_is_a_logistic_probe_on_its_own_rows(problem: Problem, judged: Any) -> None:
    results, predictions = judged
    probe = LogisticProbe(random_state=0).fit(problem.X[::2], problem.weak[::2])
    proba = probe.predict_proba(problem.X_test)
    # The same computation on the same numbers.
    assert np.array_equal(predictions["half"], proba)
    arm = arm_of(results, "half")
    assert arm["notes"]["l2"] == probe.l2_
    assert arm["rows"] == N // 2
    right = (problem.weak[::2].argmax(axis=1) == problem.truth[::2]).mean()
    assert arm["label_accuracy"] == pytest.approx(right)
    assert arm["accuracy"] == (proba.argmax(axis=1) == problem.truth_test).mean()
    share = problem.weak.mean(axis=0)
    matched = prior_matched(proba, share)
    assert arm["accuracy_prior_matched"] == (matched == problem.truth_test).mean()
    assert matched.sum() == np.floor(TEST * share[1] + 0.5)
    assert arm["auroc"] == auroc(problem.truth_test, proba)


def test_pgr_and_gain_are_differences_of_the_accuracies_shown(judged: Any) -> None:
    results, _ = judged
    for suffix in ("", "_prior_matched"):
        accuracy = {arm["name"]: arm[f"accuracy{suffix}"] for arm in results["arms"]}
        floor, top = accuracy["weak supervisor"], accuracy["ground truth"]
        assert floor < accuracy["weak labels"] < top
        for name in ("weak labels", "random", "half"):
            pgr = arm_of(results, name)[f"pgr{suffix}"]
            assert pgr["pgr"] == pytest.approx((accuracy[name] - floor) / (top - floor))
            assert pgr["pgr_low"] < pgr["pgr"] < pgr["pgr_high"]
        for name in ("random", "half", "ground truth"):
            gain = arm_of(results, name)[f"gain{suffix}"]
            assert gain["gain"] == pytest.approx(accuracy[name] - accuracy["weak labels"])
            assert gain["gain_low"] <= gain["gain"] <= gain["gain_high"]
    for name, key in (("weak supervisor", "pgr"), ("ground truth", "pgr"), ("weak labels", "gain")):
        assert arm_of(results, name)[key] is None


def test_intervals_are_those_of_the_paired_bootstrap(problem: Problem, judged: Any) -> None:
    results, predictions = judged
    right = {
        name: proba.argmax(axis=1) == problem.truth_test for name, proba in predictions.items()
    }
    found = paired_bootstrap(right["weak supervisor"], right["half"], right["ground truth"])
    pgr = arm_of(results, "half")["pgr"]
    assert (pgr["pgr_low"], pgr["pgr_high"]) == (found.pgr_low, found.pgr_high)
    found = paired_bootstrap(right["weak labels"], right["half"], right["ground truth"])
    gain = arm_of(results, "half")["gain"]
    assert (gain["gain_low"], gain["gain_high"]) == (found.gain_low, found.gain_high)


def test_draws_of_one_name_are_averaged(problem: Problem, judged: Any) -> None:
    results, _ = judged
    single = []
    for drop in problem.sets[1:4]:
        proba = LogisticProbe().fit(problem.X[drop.rows], drop.Y).predict_proba(problem.X_test)
        single.append((proba.argmax(axis=1) == problem.truth_test).mean())
    assert len(set(single)) > 1
    assert arm_of(results, "random")["accuracy"] == pytest.approx(np.mean(single))


def test_no_student_but_the_ceiling_sees_the_truth(problem: Problem, judged: Any) -> None:
    _, before = judged
    _, after = problem.judge(truth=1 - problem.truth)
    for name in ("weak labels", "random", "half"):
        assert np.array_equal(before[name], after[name])
    assert not np.allclose(before["ground truth"], after["ground truth"])


def test_without_a_gap_the_results_say_so(problem: Problem) -> None:
    perfect = np.eye(2)[problem.truth_test]
    results, _ = problem.judge(weak_test=perfect, sets=problem.sets[:1])
    pgr = arm_of(results, "weak labels")["pgr"]
    assert pgr["pgr"] is None
    assert pgr["unbounded"]
    assert "is not above the weak supervisor" in pgr["reason"]
    assert pgr["gain"] < 0
