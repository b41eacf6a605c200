"""Students between floor and ceiling: every figure a second way, and where there is none."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from probekit.cuts import prior_matched
from probekit.errors import DataError
from probekit.experiments.scores import Arm, combine_seeds, score_arms, score_curve

ROWS = 400


def binary(strength: float, seed: int) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    logit = (2 * TRUTH - 1) * strength + rng.normal(size=ROWS)
    p = 1 / (1 + np.exp(-logit))
    return np.column_stack([1 - p, p])


TRUTH = np.random.default_rng(9).integers(0, 2, ROWS)
PRIOR = np.array([0.55, 0.45])
FLOOR = Arm("weak supervisor", "floor", [binary(0.6, 0)])
PLAIN = Arm("weak labels", "plain", [binary(0.8, 1)], label_accuracy=0.7, rows=100)
CEILING = Arm("ground truth", "ceiling", [binary(1.6, 2)], label_accuracy=1.0, rows=100)


def judged(*more: Arm, floor: Arm = FLOOR, ceiling: Arm = CEILING, **options: Any) -> Any:
    options = {"truth": TRUTH, "weak_prior": PRIOR, "draws": 2000, **options}
    rows = score_arms([floor, PLAIN, *more, ceiling], **options)
    json.dumps(rows, allow_nan=False)  # what is not defined is None
    return {row["name"]: row for row in rows}


def test_figures_are_those_of_scikit_learn() -> None:
    row = judged()["weak labels"]
    probs = PLAIN.probs[0]
    assert row["accuracy"] == pytest.approx((probs.argmax(axis=1) == TRUTH).mean())
    matched = prior_matched(probs, PRIOR) == TRUTH
    assert row["accuracy_prior_matched"] == pytest.approx(matched.mean())
    assert row["auroc"] == pytest.approx(roc_auc_score(TRUTH, probs[:, 1]))
    assert row["log_loss"] == pytest.approx(log_loss(TRUTH, probs))
    assert row["brier"] == pytest.approx(brier_score_loss(TRUTH, probs[:, 1]))
    assert row["rows"] == 100
    assert row["label_accuracy"] == 0.7


def test_pgr_is_the_share_of_the_gap() -> None:
    rows = judged()
    for key, metric in (
        ("pgr", "accuracy"),
        ("pgr_prior_matched", "accuracy_prior_matched"),
        ("pgr_auroc", "auroc"),
    ):
        weak, student, top = (
            rows[name][metric] for name in ("weak supervisor", "weak labels", "ground truth")
        )
        found = rows["weak labels"][key]
        assert found["pgr"] == pytest.approx((student - weak) / (top - weak))
        assert found["gain"] == pytest.approx(student - weak)
        assert found["pgr_low"] < found["pgr"] < found["pgr_high"]
    assert rows["weak supervisor"]["pgr"] is None
    assert rows["ground truth"]["pgr"] is None


def test_auroc_interval_is_that_of_rows_drawn_one_by_one() -> None:
    found = judged()["weak labels"]["pgr_auroc"]
    rng = np.random.default_rng(5)
    scores = [arm.probs[0][:, 1] for arm in (FLOOR, PLAIN, CEILING)]
    drawn = []
    for _ in range(600):
        rows = rng.integers(ROWS, size=ROWS)
        weak, student, top = (roc_auc_score(TRUTH[rows], s[rows]) for s in scores)
        drawn.append((student - weak) / (top - weak))
    low, high = np.quantile(drawn, [0.025, 0.975])
    # 600 draws place a 2.5 % quantile within about a tenth of the interval's width.
    width = high - low
    assert found["pgr_low"] == pytest.approx(low, abs=0.15 * width)
    assert found["pgr_high"] == pytest.approx(high, abs=0.15 * width)


def test_identities_of_agreement() -> None:
    rows = judged()
    weak, row = rows["weak supervisor"]["accuracy"], rows["weak labels"]
    a = row["agreement"]
    assert a["overall"] == pytest.approx(weak * a["right"] + (1 - weak) * a["wrong"])
    assert row["accuracy"] == pytest.approx(weak * a["right"] + (1 - weak) * (1 - a["wrong"]))


def test_a_supervisor_that_is_always_right_has_no_wrong_rows() -> None:
    right = Arm("weak supervisor", "floor", [np.eye(2)[TRUTH]])
    row = judged(floor=right)["weak labels"]
    assert row["agreement"]["wrong"] is None
    assert row["pgr"]["pgr"] is None
    assert "is not above the weak supervisor" in row["pgr"]["reason"]
    assert row["pgr"]["pgr_low"] is None


def test_a_gap_that_may_be_none_has_no_interval() -> None:
    close = Arm("ground truth", "ceiling", [binary(0.62, 7)])
    rows = judged(ceiling=close)
    found = rows["weak labels"]["pgr"]
    assert rows["ground truth"]["accuracy"] > rows["weak supervisor"]["accuracy"]
    assert found["pgr"] is not None
    assert found["unbounded"]
    assert found["pgr_low"] is None
    assert found["gain_low"] < found["gain"] < found["gain_high"]
    assert "of the draws have no gap" in found["reason"]


def test_a_constant_student_orders_nothing() -> None:
    constant = Arm("constant", "loss", [np.tile([0.6, 0.4], (ROWS, 1))])
    row = judged(constant)["constant"]
    assert row["auroc"] == 0.5
    assert row["accuracy"] == pytest.approx((TRUTH == 0).mean())
    assert row["recall_at_1pct_fpr"] == 0
    # It agrees with its supervisor just where that says class 0.
    weak = FLOOR.probs[0].argmax(axis=1)
    assert row["agreement"]["overall"] == pytest.approx((weak == 0).mean())
    assert row["agreement"]["wrong"] == pytest.approx((weak == 0)[weak != TRUTH].mean())


def test_the_supervisor_itself_recovers_nothing_and_the_ceiling_all() -> None:
    rows = judged(Arm("a", "loss", FLOOR.probs), Arm("b", "loss", CEILING.probs))
    for key in ("pgr", "pgr_prior_matched", "pgr_auroc"):
        for name, value in (("a", 0), ("b", 1)):
            found = rows[name][key]
            assert [found[k] for k in ("pgr", "pgr_low", "pgr_high")] == [value] * 3
    assert [rows["a"]["agreement"][key] for key in ("overall", "right", "wrong")] == [1, 1, 1]


def test_draws_are_averaged() -> None:
    draws = [binary(0.7, seed) for seed in (3, 4, 5)]
    row = judged(Arm("random", "random", draws))["random"]
    each = [(probs.argmax(axis=1) == TRUTH).mean() for probs in draws]
    assert row["accuracy"] == pytest.approx(np.mean(each))
    assert row["auroc"] == pytest.approx(np.mean([roc_auc_score(TRUTH, p[:, 1]) for p in draws]))
    assert row["draws"] == 3


def test_gain_is_over_the_plain_student() -> None:
    other = Arm("filter", "filter", [binary(1.2, 8)])
    rows = judged(other)
    gain = rows["filter"]["accuracy"] - rows["weak labels"]["accuracy"]
    assert rows["filter"]["gain"]["gain"] == pytest.approx(gain)
    assert rows["weak labels"]["gain"] is None
    assert rows["filter"]["gain"]["gain_low"] < gain < rows["filter"]["gain"]["gain_high"]


def test_three_classes() -> None:
    truth = np.random.default_rng(0).integers(0, 3, 300)

    def arm(name: str, kind: str, strength: float, seed: int) -> Arm:
        logits = np.eye(3)[truth] * strength
        logits += np.random.default_rng(seed).normal(size=(300, 3))
        probs = np.exp(logits)
        return Arm(name, kind, [probs / probs.sum(axis=1, keepdims=True)])

    rows = score_arms(
        [arm("f", "floor", 0.5, 1), arm("p", "plain", 1, 2), arm("c", "ceiling", 3, 3)],
        truth=truth,
        weak_prior=np.ones(3) / 3,
        draws=500,
    )
    plain = rows[1]
    assert plain["pgr"]["pgr"] is not None
    assert plain["pgr_auroc"]["reason"] == "the bootstrap of AUROC is for two classes"
    assert plain["recall_at_1pct_fpr"] is None


def test_both_ends_are_needed() -> None:
    with pytest.raises(DataError, match="one of them is missing"):
        score_arms([FLOOR, PLAIN], truth=TRUTH, weak_prior=PRIOR)


CONSTANT = np.tile([0.0, 1.0], (ROWS, 1))  # saturated, too


class TestAlarms:
    def test_a_collapsed_student(self) -> None:
        rows = judged(Arm("stuck", "loss", [CONSTANT]), classes=("no", "yes"))
        row = rows["stuck"]
        assert row["alarms"] == {"collapsed": "every test row gets the class 'yes'"}
        assert row["accuracy"] == pytest.approx((TRUTH == 1).mean())
        assert row["auroc"] == 0.5
        assert np.isfinite(row["log_loss"])
        assert row["pgr"]["pgr"] is None
        assert row["pgr"]["reason"] == "the student gives every test row the class 'yes'"
        # What it is worth in points is still said, and so is the PGR at the matched threshold.
        weak = rows["weak supervisor"]["accuracy"]
        assert row["pgr"]["gain"] == pytest.approx(row["accuracy"] - weak)
        assert row["pgr_prior_matched"]["pgr"] is not None
        # The control: no other arm is touched.
        assert rows["weak labels"]["alarms"] == {}
        assert rows["weak labels"]["pgr"] == judged()["weak labels"]["pgr"]

    @pytest.mark.parametrize(
        ("end", "name"), [("floor", "weak supervisor"), ("ceiling", "ceiling")]
    )
    def test_a_collapsed_end_leaves_no_gap(self, end: str, name: str) -> None:
        known = {"floor": FLOOR, "ceiling": CEILING}
        rows = judged(**{end: Arm(known[end].name, end, [CONSTANT])})
        found = rows["weak labels"]["pgr"]
        assert found["pgr"] is None
        assert found["reason"] == f"the {name} gives every test row the class '1'"

    def test_where_the_truth_has_one_class_nothing_collapsed(self) -> None:
        rows = judged(Arm("right", "loss", [CONSTANT]), truth=np.ones(ROWS, int))
        assert rows["right"]["alarms"] == {}

    def test_a_failed_student_has_a_reason_and_no_figure(self) -> None:
        failed = Arm("broken", "loss", [], alarms={"failed": "the loss is nan"})
        rows = judged(failed)
        row = rows["broken"]
        assert set(row) == set(rows["weak labels"])
        assert row["accuracy"] is row["auroc"] is row["agreement"] is row["gain"] is None
        assert row["pgr"]["reason"] == "the student failed: the loss is nan"
        assert rows["weak labels"] == judged()["weak labels"]

    @pytest.mark.parametrize(
        ("end", "name"), [("floor", "weak supervisor"), ("ceiling", "ceiling")]
    )
    def test_a_failed_end(self, end: str, name: str) -> None:
        known = {"floor": FLOOR, "ceiling": CEILING}
        failed = Arm(known[end].name, end, [], alarms={"failed": "no memory"})
        rows = judged(Arm("b", "loss", CEILING.probs), **{end: failed})
        for key in ("pgr", "pgr_prior_matched", "pgr_auroc"):
            assert rows["weak labels"][key]["pgr"] is None
            assert rows["weak labels"][key]["reason"] == f"the {name} failed"
        # Gains over the plain student need neither end.
        assert rows["b"]["gain"] == pytest.approx(
            judged(Arm("b", "loss", CEILING.probs))["b"]["gain"]
        )

    def test_without_weak_labels_nothing_is_prior_matched(self) -> None:
        failed = Arm("weak supervisor", "floor", [], alarms={"failed": "x"})
        gone = Arm("weak labels", "plain", [], alarms={"failed": "its step 'x' failed"})
        rows = score_arms([failed, gone, CEILING], truth=TRUTH, weak_prior=None, draws=100)
        json.dumps(rows, allow_nan=False)
        assert rows[2]["accuracy_prior_matched"] is None
        assert rows[2]["accuracy"] > 0.8

    def test_where_all_failed(self) -> None:
        ends = [Arm(kind, kind, [], alarms={"failed": "x"}) for kind in ("floor", "ceiling")]
        assert [r["accuracy"] for r in score_arms(ends, truth=TRUTH, weak_prior=None)] == [None] * 2

    def test_seeds_count_them(self) -> None:
        good = list(judged(Arm("a", "loss", CEILING.probs)).values())
        stuck = list(judged(Arm("a", "loss", [CONSTANT])).values())
        failed = list(judged(Arm("a", "loss", [], alarms={"failed": "x"})).values())
        arm = combine_seeds([failed, good, stuck])[2]
        assert arm["alarms"] == {"failed": 1, "collapsed": 1}
        assert arm["figures"]["accuracy"]["values"][0] is None
        assert arm["pgr"]["undefined"] == 2
        assert arm["pgr"]["median"] == good[2]["pgr"]["pgr"]
        assert arm["agreement"]["overall"]["values"][1] == good[2]["agreement"]["overall"]


@pytest.mark.parametrize("probs", [[], [binary(1, 1)[1:]], [np.full((ROWS, 3), 1 / 3)]])
def test_predictions_of_other_rows_or_classes(probs: list[np.ndarray[Any, Any]]) -> None:
    with pytest.raises(DataError, match=r"The predictions of 'x' must be of 400 test rows and 2"):
        judged(Arm("x", "loss", probs))


class TestSeeds:
    def test_median_mean_and_standard_error(self) -> None:
        seeds = [list(judged(truth=np.roll(TRUTH, shift)).values()) for shift in (0, 0, 1)]
        seeds[1][1]["accuracy"] = 0.9
        combined = combine_seeds(seeds)
        assert [arm["name"] for arm in combined] == [
            "weak supervisor",
            "weak labels",
            "ground truth",
        ]
        values = [seed[1]["accuracy"] for seed in seeds]
        found = combined[1]["figures"]["accuracy"]
        assert found["values"] == values
        assert found["median"] == pytest.approx(np.median(values))
        assert found["mean"] == pytest.approx(np.mean(values))
        assert found["sem"] == pytest.approx(np.std(values, ddof=1) / np.sqrt(3))

    def test_undefined_pgr_is_counted_with_its_reason(self) -> None:
        good = list(judged().values())
        bad = list(judged(ceiling=Arm("ground truth", "ceiling", FLOOR.probs)).values())
        found = combine_seeds([good, bad])[1]["pgr"]
        assert found["undefined"] == 1
        assert found["median"] == pytest.approx(good[1]["pgr"]["pgr"])
        assert any("not above" in reason for reason in found["reasons"])

    def test_one_seed_keeps_its_interval(self) -> None:
        rows = list(judged().values())
        found = combine_seeds([rows])[1]["pgr"]
        assert (found["low"], found["high"]) == (
            rows[1]["pgr"]["pgr_low"],
            rows[1]["pgr"]["pgr_high"],
        )
        assert found["sem"] is None


class TestCurve:
    def test_three_stops(self) -> None:
        truth, weak = np.array([0, 1, 1, 0]), np.eye(2)[[0, 1, 1, 0, 1]]

        def decided(*rows: str) -> np.ndarray[Any, Any]:
            return np.array([np.eye(2)[[int(c) for c in row]] * 0.8 + 0.1 for row in rows])

        # Accuracies 1/2, 1, 3/4; agreement 3/5, 4/5, 1.
        test = decided("0000", "0110", "0100")
        held_out = decided("00001", "01001", "01101")
        found = score_curve([5, 10, 15], test, truth, held_out, weak, floor=0.5, ceiling=1.0)
        assert found["accuracy"] == [0.5, 1.0, 0.75]
        assert found["weak_agreement"] == pytest.approx([0.6, 0.8, 1.0])
        stops = found["stops"]
        assert stops["last"] == {"step": 15, "accuracy": 0.75, "pgr": 0.5}
        assert stops["weak_early_stop"]["step"] == 15
        assert stops["oracle"] == {"step": 10, "accuracy": 1.0, "pgr": 1.0}
        # −log 0.9 where it agrees, −log 0.1 where not.
        expected = -(3 * np.log(0.9) + 2 * np.log(0.1)) / 5
        assert found["weak_log_loss"][0] == pytest.approx(expected)

    def test_of_equal_evaluations_the_earlier(self) -> None:
        probs = np.tile(np.eye(2)[[0, 1]], (3, 1, 1))
        found = score_curve([1, 2, 3], probs, [0, 1], probs, np.eye(2), floor=0.5, ceiling=0.5)
        assert found["stops"]["weak_early_stop"]["step"] == 1
        assert found["stops"]["oracle"]["step"] == 1
        assert found["stops"]["last"]["pgr"] is None
        assert "not above" in found["reason"]


def test_figures_do_not_depend_on_the_order_of_the_test_rows():
    """Votes of few neighbours are equal in many rows, and the class shares cut among them."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 200)
    votes = np.clip(truth + rng.integers(-2, 3, (3, 200)), 0, 3) / 3
    ties, order = rng.permutation(200), rng.permutation(200)

    def figures(rows, ties):
        arms = [
            Arm(kind, kind, [np.column_stack([1 - p, p])[rows]])
            for kind, p in zip(("floor", "plain", "ceiling"), votes, strict=True)
        ]
        prior = {"weak_prior": [0.4, 0.6], "ties": ties, "draws": 10}
        found = score_arms(arms, truth=truth[rows], **prior)
        return [row["accuracy_prior_matched"] for row in found]

    everything = np.arange(200)
    assert figures(order, ties[order]) == figures(everything, ties)
    assert figures(order, None) != figures(everything, None)  # the control: by row number
