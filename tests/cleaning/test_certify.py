from __future__ import annotations

import doctest

import numpy as np
import pytest
from scipy.special import logit

from probekit.activations.spec import DIFFERENCE
from probekit.cleaning import certify as module
from probekit.cleaning.bound import plan_sample
from probekit.cleaning.certify import Certifier, certify, corrected, sharpened
from probekit.cleaning.predict import relabel
from probekit.errors import DataError, UsageError
from probekit.labels import WeakLabels


@pytest.fixture
def case(blobs, make_store, as_labels):
    """A store, weak labels, and id -> true class."""

    def make(n=300, noise=(0.3, 0.1), **more):
        data = blobs(n=n, noise=noise, **more)
        true = {f"r{i}": str(c) for i, c in enumerate(data.truth.tolist())}
        return make_store(data.X), as_labels(data.weak), true

    return make


def answered(certifier, true, start=()):
    """Answer everything that is asked; the result and the answers."""
    answers = dict(start)
    while (now := certifier.status(answers)).verdicts is None:
        assert len(now.ask) <= now.more
        answers |= {name: true[name] for name in now.ask}
    return now, answers


@pytest.mark.parametrize("noise", [(0.3, 0.1), (0.25, 0.2, 0.3)])
def test_people_are_asked_until_the_bound_holds(case, noise):
    store, labels, true = case(noise=noise)
    certifier = Certifier(store, labels, max_error=0.05)
    first = certifier.status({})
    assert first.stage == "sample"
    assert len(first.ask) == certifier.plan.sample
    now, answers = answered(certifier, true)
    verdicts, certificate = now.verdicts, now.certificate
    assert len(answers) < 260
    assert now.max_wrong == certificate["max_wrong"] == 15
    for name, label, weak in zip(
        verdicts.ids, verdicts.hard.tolist(), labels.hard.tolist(), strict=True
    ):
        assert str(label) == answers.get(name, str(weak))
    assert certificate["failure"] <= 0.05
    assert certificate["left_in_sample"] <= certificate["allowed_in_sample"]
    assert certificate["labelled"] == len(answers) == 300 - certificate["unreviewed"]
    drawn = [str(labels.hard[int(name[1:])]) != true[name] for name in first.ask]
    assert certificate["wrong_in_sample"] == sum(drawn)
    assert verdicts.provenance["certificate"] == certificate
    assert verdicts.provenance["reviewed"]["answers"] == len(answers)


def test_it_resumes_after_every_sitting_whatever_the_order_of_rows_and_answers(
    case, make_store, as_labels, blobs
):
    store, labels, true = case()
    now, answers = answered(Certifier(store, labels), true)
    data = blobs(n=300)
    turn = np.random.default_rng(3).permutation(300)
    turned = make_store(
        data.X[turn],
        name="turned.h5",
        ids=[f"r{i}" for i in turn],
        hashes=[f"{i:016x}" for i in turn],
    )
    other = as_labels(data.weak[turn], ids=[f"r{i}" for i in turn])
    given = list(answers.items())
    for count in (0, 10, len(given) // 2, len(given) - 1, len(given)):
        some = dict(given[:count])
        states = [
            certify(store, labels, some),
            certify(store, labels, dict(reversed(some.items()))),
            certify(turned, other, some),
        ]
        assert len({frozenset(state.ask) for state in states}) == 1
        assert len({state.stage for state in states}) == 1
    assert states[0].stage == now.stage == "done"
    assert states[0].certificate == now.certificate


def test_a_row_that_nobody_can_tell_counts_as_wrong_and_is_left_out(case):
    store, labels, true = case()
    certifier = Certifier(store, labels)
    name = certifier.status({}).ask[0]
    told, _ = answered(certifier, true)
    now, _ = answered(certifier, true, start={name: "?"})
    right = str(labels.hard[int(name[1:])]) == true[name]
    assert now.certificate["wrong_in_sample"] == told.certificate["wrong_in_sample"] + right
    assert now.certificate["cannot_tell"] == 1
    assert [i for i, kept in zip(now.verdicts.ids, now.verdicts.keep, strict=True) if not kept] == [
        name
    ]


def test_labels_without_errors_cost_the_sample_alone(case):
    store, labels, true = case(noise=(0.0, 0.0))
    certifier = Certifier(store, labels, max_error=0.1)
    now, answers = answered(certifier, true)
    assert len(answers) == certifier.plan.sample
    assert now.certificate["corrected"] == 0


def test_relabelled_and_kept_rows_are_certified(case):
    store, labels, true = case()
    verdicts = relabel(store, labels, hard=True, probe="knn")
    dropped = np.arange(300) % 10 == 0
    verdicts.keep[dropped] = False
    now, answers = answered(Certifier(store, verdicts), true)
    assert now.rows == 270
    assert not set(answers) & {f"r{i}" for i in np.flatnonzero(dropped)}
    assert np.array_equal(now.verdicts.keep, ~dropped)
    assert now.verdicts.provenance["action"] == "relabel"
    unreviewed = [i for i in range(300) if f"r{i}" not in answers]
    assert np.array_equal(now.verdicts.label[unreviewed], verdicts.label[unreviewed])


def test_differences_of_pairs_are_certified(blobs, make_store, as_labels):
    data = blobs(n=120, noise=(0.2, 0.2))
    X = data.X * np.where(data.truth == 1, 1, -1)[:, None].astype(np.float32)
    store = make_store(X, spec=DIFFERENCE)
    true = {f"r{i}": str(c) for i, c in enumerate(data.truth.tolist())}
    now, _ = answered(Certifier(store, as_labels(data.weak), max_error=0.1, sitting=30), true)
    assert now.verdicts.provenance["pairs"]


def test_violations_are_as_rare_as_the_confidence_says(case):
    store, labels, true = case(n=200, noise=(0.4, 0.3), distance=1.5)
    certifier = Certifier(store, labels, sitting=40)
    left, bold = [], []
    for seed in range(60):
        certifier.draw(0.1, 0.8, None, seed)
        now, _ = answered(certifier, true)
        hard = now.verdicts.hard
        wrong = [str(k) != true[name] for name, k in zip(now.verdicts.ids, hard, strict=True)]
        left.append(sum(wrong))
        # The control: stopping as soon as the sample alone is labelled.
        weak = [str(k) for k in labels.hard]
        drawn = set(certifier.status({}).ask)
        bold.append(sum(k != true[f"r{i}"] for i, k in enumerate(weak) if f"r{i}" not in drawn))
    # 12 of 60 expected at most; three standard errors are 9.
    assert sum(count > now.max_wrong for count in left) <= 21
    assert sum(count > now.max_wrong for count in bold) > 21


def test_what_is_trusted_beforehand_is_not_asked_again_and_orders_the_rest(case):
    store, labels, true = case()
    trusted = {f"r{i}": true[f"r{i}"] for i in range(0, 300, 5)}
    certifier = Certifier(store, labels, trusted=trusted)
    assert certifier.trusted == trusted
    now, answers = answered(certifier, true)
    assert not answers.keys() & trusted.keys()
    assert now.certificate["trusted"] == 60
    assert now.certificate["labelled"] == len(answers) + 60
    plain = Certifier(store, labels)
    assert not np.array_equal(certifier.doubt, plain.doubt)
    assert certifier.settings["trusted"] != plain.settings["trusted"]
    for name, label in zip(now.verdicts.ids, now.verdicts.hard.tolist(), strict=True):
        if name in trusted:
            assert str(label) == trusted[name]


@pytest.mark.slow
def test_trusted_labels_leave_the_bound_as_it_is_unless_they_are_of_the_sample(case):
    store, labels, true = case(n=200, noise=(0.4, 0.3), distance=1.5)
    rng = np.random.default_rng(0)

    def violated(seed, trusted):
        certifier = Certifier(
            *(store, labels), max_error=0.1, confidence=0.8, seed=seed, sitting=40, trusted=trusted
        )
        now, _ = answered(certifier, true)
        pairs = zip(now.verdicts.ids, now.verdicts.hard, strict=True)
        return sum(str(k) != true[name] for name, k in pairs) > now.max_wrong

    beforehand, of_sample = [], []
    for seed in range(60):
        some = [f"r{i}" for i in rng.permutation(200)[:40]]
        beforehand.append(violated(seed, {name: true[name] for name in some}))
        # The control: answers to the sample itself, taken for labels known beforehand.
        drawn = certify(store, labels, {}, max_error=0.1, confidence=0.8, seed=seed).ask
        of_sample.append(violated(seed, {name: true[name] for name in drawn}))
    # 12 of 60 expected at most; three standard errors are 9.
    assert sum(beforehand) <= 21
    assert sum(of_sample) > 40


def test_the_cost_is_within_the_range_whoever_made_the_errors(blobs, make_store, as_labels):
    """Errors at random, and those of a model, with which a probe agrees."""
    data = blobs(n=400, noise=(0.25, 0.25), width=100, distance=2.0)
    tilted = (data.X[:, 1] + 2 * data.X[:, 2] > data.X[:, 0]).astype(int)
    store = make_store(data.X)
    true = {f"r{i}": str(c) for i, c in enumerate(data.truth.tolist())}
    alone = []
    for weak in (data.weak, tilted):
        assert 0.15 < (weak != data.truth).mean() < 0.3
        certifier = Certifier(store, as_labels(weak), sitting=33)
        costs, after = [], []
        for seed in range(4):
            certifier.draw(0.05, 0.95, None, seed)
            sample = {name: true[name] for name in certifier.status({}).ask}
            then = certifier.status(sample)
            after.append(then.labelled + then.more)
            costs.append(len(answered(certifier, true)[1]))
        plan, cost = certifier.plan, np.mean(costs)
        assert plan.low < cost < plan.high
        # The sample tells how many are wrong: half as much again or less, in the mean.
        assert 2 / 3 < np.mean(after) / cost < 3 / 2
        # Controls: P(wrong) as it is, and as it would be if all errors were random.
        doubt = np.sort(certifier.doubt)
        guesses = (doubt, sharpened(doubt, 8, 0.6 * doubt.mean()))
        each = (plan_sample([q], certifier.max_wrong, 0.05, plan.sample) for q in guesses)
        alone.append([(one.low > cost, one.high < cost) for one in each])
    assert alone[0][0] == (True, False)  # errors at random: too many
    assert alone[1][1] == (False, True)  # a model's errors: too few


def test_trusted_labels_narrow_the_range(case):
    store, labels, true = case(n=400)
    plain = Certifier(store, labels).plan
    trusted = {f"r{i}": true[f"r{i}"] for i in range(0, 400, 8)}
    told = Certifier(store, labels, trusted=trusted).plan
    assert told.high - told.low < 0.8 * (plain.high - plain.low)
    few = dict(list(trusted.items())[:20])
    assert Certifier(store, labels, trusted=few).plan.high > told.high


def test_log_odds_are_multiplied_and_shifted_to_a_mean():
    doubt = np.sort(np.random.default_rng(0).beta(0.5, 2, 300))
    for growth, mean in ((1, 0.4), (8, 0.1), (2, 0.0)):
        q = sharpened(doubt, growth, mean)
        assert q.mean() == pytest.approx(max(mean, 1e-6))
        assert np.all(np.diff(q) >= 0)
        steps = np.diff(logit(q))[100:200] / np.diff(logit(doubt))[100:200]
        # Far out in the tail float64 leaves fewer digits.
        assert steps == pytest.approx(np.full(100, growth), rel=1e-3)


def test_true_labels_correct_what_the_probe_misses():
    rng = np.random.default_rng(0)
    P = np.full((400, 2), 0.5)
    side = rng.normal(size=(400, 1))
    truth = (side[:, 0] > 0).astype(int)
    rows = np.arange(100)
    Y = np.eye(2)[truth]
    learned = corrected(P, side, Y, rows)
    assert (learned.argmax(axis=1) == truth)[100:].mean() > 0.95
    assert corrected(P, side, Y, rows[:0]) == pytest.approx(P)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_error": 0.001}, "of 300 rows is less than one label; the smallest .* 0.003334"),
        ({"max_error": 0}, r"max_error.*\(0, 1\)"),
        ({"max_error": 5}, r"max_error.*\(5 % is 0.05\)"),
        ({"confidence": 1}, r"confidence.*\[0.5, 1\)"),
        ({"confidence": 0.3}, r"confidence.*\[0.5, 1\)"),
        ({"sample": 301}, "A sample of 301 of 300 rows is not possible"),
        ({"sample": 10}, "sample of 10 of 300 rows cannot certify .* smallest possible is 0.2"),
        ({"sitting": 0}, "sitting.*whole number from 1"),
    ],
)
def test_what_cannot_be_certified_is_refused(case, settings, words):
    store, labels, _ = case()
    with pytest.raises(UsageError, match=words):
        certify(store, labels, {}, **settings)


def test_the_smallest_error_that_is_named_can_be_certified(case):
    store, labels, _ = case()
    for settings in ({"max_error": 0.001}, {"sample": 40}):
        with pytest.raises(UsageError) as caught:
            certify(store, labels, {}, **settings)
        least = float(str(caught.value).split("possible is ")[1].split(",")[0])
        assert certify(store, labels, {}, **settings | {"max_error": least}).ask
        with pytest.raises(UsageError):
            certify(store, labels, {}, **settings | {"max_error": least - 1e-3})


def test_few_rows_and_foreign_answers_are_refused(case):
    store, labels, _ = case()
    few = WeakLabels(labels.ids[:99], None, labels.probs[:99], ("0", "1"))
    with pytest.raises(DataError, match="There are 99 rows to certify, and at least 100 are"):
        certify(store, few, {}, only_labelled=True)
    with pytest.raises(DataError, match=r"1 answers are for ids without a label .*'nobody'"):
        certify(store, labels, {"nobody": "1"})
    with pytest.raises(DataError, match=r"'r1' is 'maybe'; allowed are '0', '1', or '\?'"):
        certify(store, labels, {"r1": "maybe"})


def test_labels_of_other_rows_are_refused(case):
    store, labels, _ = case()
    with pytest.raises(DataError, match="no label for any row"):
        certify(
            store, WeakLabels([f"x{i}" for i in range(300)], None, labels.probs, ("0", "1")), {}
        )


def test_the_example_prints_what_it_says():
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
