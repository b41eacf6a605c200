from __future__ import annotations

import csv
import doctest

import numpy as np
import pytest
from scipy.stats import beta, betabinom

from probekit.cleaning import audit as module
from probekit.cleaning.audit import (
    FILTER_WRONG,
    SETTLED,
    UNSURE,
    Tally,
    conclude,
    find_disputed,
    stratified_order,
    tally,
)
from probekit.cleaning.review import AuditFile, plain_text
from probekit.cuts import prior_matched
from probekit.errors import DataError
from probekit.probes import EnsembleProbe


@pytest.fixture
def disputed(blobs, make_store, as_labels):
    data = blobs(n=300, noise=(0.2, 0.2))
    found = find_disputed(make_store(data.X), as_labels(data.weak))
    return found, data


def test_disputed_rows_are_those_where_the_matched_probe_differs(disputed):
    found, data = disputed
    P = EnsembleProbe().fit(data.X, data.weak).oof_proba_
    decided = prior_matched(P, np.bincount(data.weak) / 300)
    expected = {f"r{i}" for i in np.flatnonzero(decided != data.weak)}
    assert set(found.ids) == expected
    assert found.rows == 300
    for name, weak, probe in zip(found.ids, found.weak, found.probe, strict=True):
        row = int(name[1:])
        assert (weak, probe) == (str(data.weak[row]), str(decided[row]))


def test_every_beginning_of_the_order_is_a_stratified_sample():
    strata = np.repeat([0, 1, 5], [60, 30, 10])
    order = stratified_order(strata, 0)
    assert sorted(order) == list(range(100))
    for m in range(1, 101):
        counts = [(strata[order[:m]] == s).sum() for s in (0, 1, 5)]
        assert np.abs(counts - m * np.array([0.6, 0.3, 0.1])).max() <= 1
    assert np.array_equal(order, stratified_order(strata, 0))
    assert not np.array_equal(order, stratified_order(strata, 1))
    rows = [stratified_order(strata, seed)[:10] for seed in range(200)]
    # Rows of one stratum come first equally often: 20 of 200 draws, 4.3 is a standard error.
    first = np.bincount(np.concatenate(rows), minlength=100)
    assert first.min() > 3
    assert first.max() < 45


def test_a_text_that_stands_twice_is_asked_about_once(blobs, make_store, as_labels):
    data = blobs(n=200, noise=(0.2, 0.2))
    X, weak = np.vstack([data.X, data.X]), np.concatenate([data.weak, data.weak])
    hashes = [f"{i % 200:016x}" for i in range(400)]
    found = find_disputed(make_store(X, hashes=hashes), as_labels(weak))
    assert len(set(found.hashes)) == len(found) > 10


def test_answers_are_counted_by_who_was_right(disputed):
    found, _ = disputed
    answers = {
        found.ids[0]: found.probe[0],
        found.ids[1]: found.weak[1],
        found.ids[2]: "another class",
        found.ids[3]: UNSURE,
        "not disputed": "0",
    }
    assert tally(found, answers) == Tally(probe=1, weak=1, neither=1, unsure=1)


@pytest.mark.parametrize(("won", "lost"), [(14, 6), (3, 9), (1, 0), (10, 10)])
def test_with_many_rows_the_probabilities_are_those_of_the_beta_posterior(won, lost):
    found = conclude(Tally(won, lost), 200_000)
    # Among 200,000 rows the share is known to 0.001.
    assert found.relabel == pytest.approx(beta(1 + won, 1 + lost).sf(0.5), abs=2e-3)
    assert found.filter == pytest.approx(beta(1 + won, 1 + lost).sf(FILTER_WRONG), abs=2e-3)


def test_with_few_rows_they_are_those_of_the_rows_left():
    found = conclude(Tally(4, 2), 11)
    # 6 of 11 decide: 2 of the 5 left, each distributed as beta-binomial.
    assert found.relabel == pytest.approx(betabinom(5, 5, 3).sf(1))
    # A share above 0.45 of 11 is 5 rows: 1 of the 5 left.
    assert found.filter == pytest.approx(betabinom(5, 5, 3).sf(0))


def test_the_limit_of_many_rows_meets_the_exact_figure():
    few, many = conclude(Tally(12, 8), 5019), conclude(Tally(12, 8), 5022)
    assert few.relabel == pytest.approx(many.relabel, abs=1e-3)
    assert few.filter == pytest.approx(many.filter, abs=1e-3)


def test_simulated_posteriors_are_calibrated():
    rng = np.random.default_rng(0)
    hits, said = [], []
    for _ in range(3000):
        n = 60
        wins = rng.binomial(n, rng.random())
        seen = rng.hypergeometric(wins, n - wins, 8)
        found = conclude(Tally(int(seen), 8 - int(seen)), n)
        hits.append((wins > n / 2) + 0.5 * (wins == n / 2))
        said.append(found.relabel)
    said, hits = np.array(said), np.array(hits)
    for low, high in ((0, 0.2), (0.2, 0.8), (0.8, 1)):
        part = (said >= low) & (said < high)
        # 300 and more draws in each: three standard errors are 0.08.
        assert hits[part].mean() == pytest.approx(said[part].mean(), abs=0.08)


@pytest.mark.parametrize(
    ("counts", "rows", "action"),
    [
        (Tally(14, 6), 400, "relabel"),
        (Tally(10, 10), 400, "filter"),  # an even score is no majority
        (Tally(10, 10), 20, "filter"),
        (Tally(6, 14), 400, "leave"),
        (Tally(5, 5, neither=10), 400, "filter"),
        (Tally(2, 1, unsure=17), 400, "relabel"),
        (Tally(unsure=3), 400, None),
        (Tally(), 0, None),
    ],
)
def test_answers(counts, rows, action):
    found = conclude(counts, rows)
    assert found.action == action
    if action is not None:
        right = {"relabel": found.relabel, "filter": found.filter, "leave": 1 - found.filter}
        assert found.probability == right[action] > 0.5
        assert found.settled == (found.probability >= SETTLED)
        assert (found.more == 0) == found.settled


def test_all_rows_asked_about_leave_no_doubt():
    assert conclude(Tally(11, 9), 20).relabel == 1
    assert conclude(Tally(9, 11), 20).relabel == 0
    assert conclude(Tally(11, 9), 21).relabel == pytest.approx(1)
    assert conclude(Tally(11, 9), 22).relabel < 1


@pytest.mark.parametrize("counts", [Tally(13, 7), Tally(8, 12), Tally(2, 1), Tally(6, 4, 2)])
def test_so_many_more_settle_it_if_they_go_on_alike(counts):
    found = conclude(counts, 500)
    assert not found.settled
    weight = np.array([counts.probe + 1, counts.weak + 1, counts.neither + (counts.neither > 0)])

    def later(more):
        extra = more * weight / weight.sum()
        more_counts = Tally(
            counts.probe + extra[0], counts.weak + extra[1], counts.neither + extra[2]
        )
        return conclude(more_counts, 500).probability

    assert later(found.more) >= SETTLED
    if found.more <= 100:
        assert later(found.more - 1) < SETTLED


def test_more_answers_than_rows_are_refused():
    with pytest.raises(DataError, match="6 answers do not fit 5 disputed rows"):
        conclude(Tally(4, 2), 5)


@pytest.fixture
def audit(tmp_path):
    hashes = {f"r{i}": f"{i:016x}" for i in range(5)}

    def open_file(name="audit.csv", classes=("no", "Yes")):
        return AuditFile(tmp_path / name, hashes, classes)

    return open_file


def fill(path, changes, **columns):
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row.update(columns)
        row.update(changes.get(row["id"], {}))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def listed(file, many=3):
    ids = [f"r{i}" for i in range(many)]
    texts = ['He said "no",\nthen left', "=1+1", "naïve 日本 "][:many]
    assert file.add(ids, [f"{i:016x}" for i in range(many)], texts) == many
    file.write()
    return file


def test_answers_survive_the_file(audit):
    file = listed(audit())
    file.answer("r1", "Yes")
    file.answer("r0", UNSURE)
    again = audit()
    assert again.answers == {"r0": UNSURE, "r1": "Yes"}
    assert again.records["r0"]["text"] == 'He said "no",\nthen left'
    assert again.records["r1"]["text"] == "=1+1"
    assert b"'=1+1" in file.path.read_bytes()  # no formula for a spreadsheet
    assert again.records["r2"]["text"] == "naïve 日本 "
    again.answer("r1", None)
    assert audit().answers == {"r0": UNSURE}


def test_rows_are_added_and_own_columns_kept(audit):
    file = listed(audit(), 2)
    fill(file.path, {"r0": {"true_label": "no"}}, note="mine")
    again = audit()
    assert again.add(["r1", "r2"], ["", ""], ["old", "new"]) == 1
    again.write()
    third = audit()
    assert third.answers == {"r0": "no"}
    assert [r["note"] for r in third.records.values()] == ["mine", "mine", ""]


@pytest.mark.parametrize(
    ("cell", "meant"),
    [(" yes ", "Yes"), ("NO", "no"), ("", None), ("  ", None), ("?", UNSURE)],
)
def test_cells_are_read_as_people_write_them(audit, cell, meant):
    fill(listed(audit()).path, {"r0": {"true_label": cell}})
    assert audit().answers.get("r0") == meant


def test_spreadsheets_write_whole_numbers_with_a_point(audit):
    fill(listed(audit()).path, {"r0": {"true_label": "1.0"}})
    assert audit(classes=("0", "1")).answers == {"r0": "1"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"true_label": "maybe"}, "answer 'maybe' for the id 'r0'; allowed are 'no', 'Yes', '?'"),
        ({"id": "other"}, "1 ids that are not in the store .*'other'.*another file with -o"),
        ({"id": "r1"}, "has the id 'r1' twice"),
        ({"text_hash": "f" * 16}, "has another text than the store in 1 rows .*'r0'"),
    ],
)
def test_what_is_no_audit_of_these_rows_is_refused(audit, change, words):
    fill(listed(audit()).path, {"r0": change})
    with pytest.raises(DataError, match=words):
        audit()


def test_other_files_are_refused(audit, tmp_path):
    (tmp_path / "audit.csv").write_text("id,label\nr0,1\n", encoding="utf-8")
    with pytest.raises(DataError, match="has no column 'true_label', so it is not an audit"):
        audit()
    with pytest.raises(DataError, match=r"must end in \.csv"):
        audit("audit.jsonl")


def test_any_content_is_a_text():
    assert plain_text(("one", "two")) == "one\n\ntwo"
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    assert plain_text(messages) == "[user] Hi\n\n[assistant] Yes?"


def test_audit_concludes_from_the_answers_to_disputed_rows(blobs, make_store, as_labels):
    data = blobs(n=300, noise=(0.2, 0.2))
    store, labels = make_store(data.X), as_labels(data.weak)
    disputed = find_disputed(store, labels)
    answers = dict(zip(disputed.ids[:9], disputed.probe[:9], strict=True))
    finding = module.audit(store, labels, {**answers, "nothing": "0"})
    assert finding == conclude(Tally(probe=9), len(disputed))
    assert module.audit(store, labels, {}).action is None


def test_the_example_prints_what_it_says():
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
