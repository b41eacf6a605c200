from __future__ import annotations

import csv
import doctest

import numpy as np
import pytest

from probekit.cleaning import audit as module
from probekit.cleaning.answers import UNSURE
from probekit.cleaning.audit import TOLERANCE, draw_rows
from probekit.cleaning.review import AuditFile, plain_text
from probekit.cuts import prior_matched
from probekit.errors import DataError
from probekit.probes import EnsembleProbe


@pytest.fixture
def drawn(blobs, make_store, as_labels):
    data = blobs(n=300, noise=(0.2, 0.2))
    return draw_rows(make_store(data.X), as_labels(data.weak)), data


def answers_of(draw, truth, m):
    return {name: str(truth[int(name[1:])]) for name in draw.ids[:m]}


def test_the_draw_holds_every_row_with_the_classes_of_weak_label_and_probe(drawn):
    draw, data = drawn
    P = EnsembleProbe().fit(data.X, data.weak).oof_proba_
    decided = prior_matched(P, np.bincount(data.weak) / 300)
    rows = [int(name[1:]) for name in draw.ids]
    assert sorted(rows) == list(range(300))
    assert np.array_equal(draw.weak, data.weak[rows])
    assert np.array_equal(draw.probe, decided[rows])
    assert np.allclose(draw.suspicion, 1 - P[rows, data.weak[rows]])
    # The default filter drops a fifth of each class, the most suspicious rows.
    for c in (0, 1):
        mine = draw.weak == c
        assert (~draw.keep[mine]).sum() == mine.sum() // 5
        assert draw.suspicion[mine & ~draw.keep].min() >= draw.suspicion[mine & draw.keep].max()
    assert np.array_equal(np.sort(draw.key), draw.key)


def test_suspicious_rows_come_earlier_and_another_seed_draws_others(blobs, make_store, as_labels):
    data = blobs(n=300, noise=(0.2, 0.2))
    store, labels = make_store(data.X), as_labels(data.weak)
    draws = [draw_rows(store, labels, seed=seed) for seed in range(20)]
    first = np.concatenate([draw.suspicion[:30] for draw in draws])
    assert first.mean() > draws[0].suspicion.mean() + 0.05
    assert draws[0].ids == draw_rows(store, labels).ids
    assert draws[0].ids != draws[1].ids


def test_a_text_that_stands_twice_is_asked_about_once(blobs, make_store, as_labels):
    data = blobs(n=200, noise=(0.2, 0.2))
    X, weak = np.vstack([data.X, data.X]), np.concatenate([data.weak, data.weak])
    hashes = [f"{i % 200:016x}" for i in range(400)]
    draw = draw_rows(make_store(X, hashes=hashes), as_labels(weak))
    assert len({int(name[1:]) % 200 for name in draw.ids}) == len(draw) == 200


def test_a_suspicion_of_ones_own_decides_who_is_asked(blobs, make_store, as_labels):
    data = blobs(n=300, noise=(0.2, 0.2))
    wrong = (data.weak != data.truth).astype(float)
    draw = draw_rows(make_store(data.X), as_labels(data.weak), suspicion=wrong)
    place = {name: i for i, name in enumerate(draw.ids)}
    asked = [place[f"r{i}"] for i in np.flatnonzero(wrong)]
    assert np.mean(asked) < 120
    assert sorted(draw.suspicion.tolist()) == sorted(wrong.tolist())


def test_the_shares_are_those_of_the_truth_if_all_is_answered(drawn):
    draw, data = drawn
    found = draw.conclude(answers_of(draw, data.truth, 300))
    rows = [int(name[1:]) for name in draw.ids]
    truth = data.truth[rows]
    wrong = draw.weak != truth
    assert found.shares["leave"].value == pytest.approx(wrong.mean())
    assert found.shares["filter"].value == pytest.approx(wrong[draw.keep].mean())
    assert found.shares["relabel"].value == pytest.approx((draw.probe != truth).mean())
    for c in (0, 1):
        assert found.by_class[str(c)].value == pytest.approx(wrong[draw.weak == c].mean())
    for share in (*found.shares.values(), *found.by_class.values()):
        assert share.low == share.value == share.high
    assert (found.answers, found.unsure, found.not_drawn, found.rows) == (300, 0, 0, 300)


def test_only_the_beginning_of_the_order_counts(drawn):
    draw, data = drawn
    answers = answers_of(draw, data.truth, 60)
    del answers[draw.ids[40]]
    found = draw.conclude(answers)
    assert (found.answers, found.not_drawn) == (40, 19)
    assert found.shares == draw.conclude(answers_of(draw, data.truth, 40)).shares
    # Answers of an earlier version's audit, to rows that are not first in the order.
    old = dict.fromkeys(draw.ids[5:30], "0")
    assert draw.conclude(old).action is None
    assert draw.conclude(old).not_drawn == 25
    assert np.isnan(draw.conclude({}).shares["leave"].value)


def test_rows_that_cannot_be_told_are_left_out(drawn):
    draw, data = drawn
    answers = answers_of(draw, data.truth, 60) | dict.fromkeys(draw.ids[:10], UNSURE)
    found = draw.conclude(answers)
    assert (found.answers, found.unsure) == (50, 10)
    assert found.shares["leave"].answers == 50


@pytest.mark.parametrize(
    ("noise", "distance", "action"),
    [
        ((0.25, 0.25), 4.0, "relabel"),  # the probe is right where it differs
        ((0.0, 0.0), 0.5, "leave"),  # right labels, and a probe that knows little
        ((0.3, 0.3), 1.4, "filter"),  # it finds wrong labels, and has errors of its own
    ],
)
def test_what_leaves_the_fewest_wrong_labels_is_advised(
    blobs, make_store, as_labels, noise, distance, action
):
    data = blobs(n=1500, noise=noise, distance=distance)
    draw = draw_rows(make_store(data.X), as_labels(data.weak))
    everything = draw.conclude(answers_of(draw, data.truth, 1500))
    assert everything.action == action
    assert everything.settled
    assert draw.conclude(answers_of(draw, data.truth, 100)).action == action


def test_a_third_class_is_wrong_for_both(blobs, make_store, as_labels):
    data = blobs(n=600, noise=(0.3, 0.3, 0.3))
    draw = draw_rows(make_store(data.X), as_labels(data.weak))
    found = draw.conclude(answers_of(draw, data.truth, 120))
    assert found.action == "relabel"
    assert set(found.by_class) == {"0", "1", "2"}
    # A class that no weak label has.
    other = draw.conclude(dict.fromkeys(draw.ids[:30], "none of them"))
    assert other.shares["leave"].high == other.shares["relabel"].high == 1


def test_so_many_more_settle_it_if_they_go_on_alike(drawn):
    draw, data = drawn
    early = draw.conclude(answers_of(draw, data.truth, 8))
    assert not early.settled
    assert early.more > 0
    late = draw.conclude(answers_of(draw, data.truth, 200))
    assert late.settled
    assert late.more == 0


def test_the_probability_is_calibrated(blobs, make_store, as_labels):
    """Over draws: of conclusions with a probability p, p are right to within a point."""
    data = blobs(n=800, noise=(0.3, 0.3), distance=1.7)
    store, labels = make_store(data.X), as_labels(data.weak)
    first = draw_rows(store, labels)
    best = {
        k: s.value for k, s in first.conclude(answers_of(first, data.truth, 800)).shares.items()
    }
    right, said = [], []
    for seed in range(40):
        draw = draw_rows(store, labels, seed=seed)
        found = draw.conclude(answers_of(draw, data.truth, 30), more=False)
        right.append(best[found.action] <= min(best.values()) + TOLERANCE)
        said.append(found.probability)
    # 40 draws have a standard error below 0.08; a probability that is too low does no harm.
    assert np.mean(right) > np.mean(said) - 0.15


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
    assert file.add(ids, texts) == many
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
    assert again.add(["r1", "r2"], ["old", "new"]) == 1
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


def test_audit_concludes_from_the_answers(blobs, make_store, as_labels):
    data = blobs(n=300, noise=(0.2, 0.2))
    store, labels = make_store(data.X), as_labels(data.weak)
    draw = draw_rows(store, labels)
    answers = answers_of(draw, data.truth, 20)
    finding = module.audit(store, labels, {**answers, "nothing": "0"})
    assert finding.shares == draw.conclude(answers).shares
    assert module.audit(store, labels, {}).action is None


def test_the_example_prints_what_it_says():
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
