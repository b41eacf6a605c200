"""The benchmark of the audit: its figures, its control, and the tables made of them."""

import json

import audit_intervals
import numpy as np
import pytest
from audit_cases import Case, read_cases
from audit_disputed import conclude
from scipy.stats import beta

from probekit.cuts import prior_matched


@pytest.fixture
def case():
    """Weak labels of which a quarter is wrong, and a probe that finds most of them."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 600)
    weak = np.where(rng.random(600) < 0.25, 1 - truth, truth)
    p = 1 / (1 + np.exp(-2 * (2 * truth - 1) - rng.normal(size=600)))
    proba = np.column_stack([1 - p, p])
    decided = prior_matched(proba, np.bincount(weak) / 600)
    doubt = 1 - proba[np.arange(600), weak]
    keep = np.ones(600, bool)
    for c in (0, 1):
        mine = np.flatnonzero(weak == c)
        keep[mine[np.argsort(-doubt[mine])[: len(mine) // 5]]] = False
    return Case("minilm", "made-up", "symmetric", 0, proba, weak, truth, decided, keep)


def test_intervals_hold_are_narrower_than_chances_and_the_control_is_caught(case, monkeypatch):
    monkeypatch.setattr(audit_intervals, "SIZES", (50, 100))
    shares = audit_intervals.measure_shares(case, 600)
    # 600 draws: a standard error of a coverage of 0.95 is 0.009.
    for name in ("weak labels", "after filter", "after relabel"):
        assert shares[f"{name} 100"]["covered"] > 0.93
        assert shares[f"{name} 100 by chance"]["covered"] > 0.93
    ours, chance = shares["weak labels 100"], shares["weak labels 100 by chance"]
    assert ours["width"] < 0.8 * chance["width"]
    assert abs(ours["bias"]) < 0.01
    assert shares["control 100"]["covered"] < shares["weak labels 100"]["covered"] - 0.025


def test_advice_of_the_audit_and_of_its_predecessor(case, monkeypatch):
    monkeypatch.setattr(audit_intervals, "DECISIONS", 10)
    advice = audit_intervals.measure_advice(case)
    assert advice["left"]["relabel"] < advice["left"]["filter"] < advice["left"]["leave"]
    assert advice["always relabel"]["lost"] == 0
    assert advice["always filter"]["right"] == 1
    assert advice["audit 40"]["right"] == advice["disputed 40"]["right"] == 1


def test_lines_are_read_back_into_tables(case, monkeypatch, tmp_path):
    monkeypatch.setattr(audit_intervals, "DECISIONS", 2)
    (tmp_path / "audit-cases").mkdir()
    arrays = {name: getattr(case, name) for name in ("proba", "weak", "truth", "decided", "keep")}
    np.savez(tmp_path / "audit-cases" / "minilm~made-up~symmetric~0.npz", **arrays)
    (read,) = read_cases(tmp_path)
    assert read.name == case.name
    assert np.array_equal(read.weak, case.weak)
    output = tmp_path / "out.jsonl"
    arguments = ["--cache", str(tmp_path), "--output", str(output), "--draws", "20"]
    for _ in range(2):  # the second time nothing is left to do
        monkeypatch.setattr("sys.argv", ["audit_intervals.py", *arguments])
        audit_intervals.main()
    (line,) = map(json.loads, output.read_text(encoding="utf-8").splitlines())
    rows = audit_intervals.interval_rows([line])
    assert [row[0] for row in rows[:3]] == ["weak labels"] * 3
    assert {row[0] for row in audit_intervals.advice_rows([line])} == set(audit_intervals.POLICIES)


@pytest.mark.parametrize(("won", "lost"), [(14, 6), (3, 9), (10, 10)])
def test_the_earlier_rule_is_that_of_the_beta_posterior(won, lost):
    relabel = beta(1 + won, 1 + lost).sf(0.5) > 0.5
    drop = beta(1 + won, 1 + lost).sf(0.45) > 0.5
    expected = "relabel" if relabel else "filter" if drop else "leave"
    assert conclude(won, lost, 0, 200_000) == expected
