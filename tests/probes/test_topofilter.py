from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse.csgraph import connected_components
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

from probekit.errors import ProbeError
from probekit.probes import KNNProbe, TopoFilterProbe
from probekit.probes.topofilter import drop_ranked, drop_to_share
from probekit.probes.topofilter_components import Note, largest_components, with_outcome


def topofilter(X, y, *, previous=None, groups=None, ties=None, **params):
    probe = TopoFilterProbe(**params)
    return probe.fit(X, y, groups=groups, previous=previous, ties=ties).result_


def expected_failures(probe):
    return {
        "check_sample_weight_equivalence_on_dense_data": "A row of weight 0 has no vote but keeps "
        "its place in the graph, and one of weight 2 takes one place, not two."
    }


@parametrize_with_checks(
    [TopoFilterProbe(k_cc=3, k_zeta=3), TopoFilterProbe("eleuther", k_cc=3, k_zeta=3)],
    expected_failed_checks=expected_failures,
)
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("name", ["A", "B", "C"])
def test_golden_eleuther(golden, name):
    data = golden(f"eleuther_topo_{name}")
    X, y = data["X"], data["y"]
    for k_cc, k_zeta in data["kcc_kzeta"].tolist():
        lists = f"kcc{k_cc}_kz{k_zeta}"
        for share in data["contamination"].tolist():
            probe = TopoFilterProbe(
                "eleuther", k_cc=k_cc, k_zeta=k_zeta, contamination=share, metric="euclidean"
            ).fit(X, y)
            assert np.array_equal(probe.component_, data[f"cc_k{k_cc}"])
            score, keep = data[f"aux_score_{lists}"], data[f"keep_{lists}_c{share}"]
            inside = ~np.isnan(score)
            # The reference averages in float32.
            assert np.allclose(probe.result_.disagreement[inside], score[inside], atol=1e-6)
            assert probe.keep_.sum() == keep.sum()
            removed = probe.component_ & ~probe.keep_
            if data[f"aux_tie_{lists}_c{share}"]:
                assert score[probe.keep_].max() <= score[removed].min() + 1e-6
            else:
                assert np.array_equal(probe.keep_, keep)
        label = probe.predict_proba(data["Xq"])[:, 1]
        assert np.allclose(label, data[f"topolabel_q_{lists}"], atol=1e-6)
        own = clone(probe).set_params(self_neighbor=True).fit(X, y).oof_proba_[:, 1]
        assert np.allclose(own, data[f"topolabel_self_{lists}"], atol=1e-6)
        if name != "A":  # A's labels are hard and its components pure: nothing to tell apart
            assert not np.allclose(own, probe.oof_proba_[:, 1], atol=1e-3)


def test_golden_paper_two_rounds(golden):
    data = golden("topofilter_orig3")
    for k_cc in data["kccs"].tolist():
        for i, (k_zeta, zeta) in enumerate(data["filters"].tolist()):
            how = {"k_cc": k_cc, "k_zeta": int(k_zeta), "zeta": zeta, "metric": "euclidean"}
            first = topofilter(data["X"], data["y"], **how)
            assert np.array_equal(first.component, data[f"lcc_k{k_cc}"])
            assert np.array_equal(first.keep, data[f"keep_k{k_cc}_f{i}"])
            second = topofilter(data["X2"], data["y"], previous=first.keep, **how)
            assert np.array_equal(second.component, data[f"lcc2_k{k_cc}"])
            assert np.array_equal(second.keep, data[f"keep2_k{k_cc}_f{i}"])


def test_the_variants_are_different_filters(golden):
    data = golden("eleuther_topo_C")
    kept = [
        topofilter(
            data["X"], data["y"], variant=v, k_cc=5, k_zeta=5, metric="euclidean"
        ).component.sum()
        for v in ("paper", "eleuther")
    ]
    assert kept == [1388, 780]  # as published with the definitions


@pytest.fixture
def noisy():
    """Two overlapping blobs of 200 rows, one label in five flipped."""
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1], 200)
    X = rng.standard_normal((400, 6)) + truth[:, None] * 1.5
    y = np.where(rng.random(400) < 0.2, 1 - truth, truth)
    return X, y, truth


@pytest.mark.parametrize("connection", ["weak", "strong"])
def test_components_are_those_of_the_dense_graph(noisy, by_the_book, connection):
    X, y, _ = noisy
    index = by_the_book(X, 4, "euclidean")[0]
    dense = np.zeros((400, 400), dtype=bool)
    np.put_along_axis(dense, index, True, axis=1)
    keep, notes = largest_components(index, y, connection=connection)
    assert notes == []
    for c in (0, 1):
        rows = np.flatnonzero(y == c)
        part = connected_components(dense[np.ix_(rows, rows)], connection=connection)[1]
        assert np.array_equal(keep[rows], part == np.bincount(part).argmax())


@pytest.mark.parametrize("k_cc", [3, 4, 8])  # L holds 82, 233 and 298 of 400 rows
def test_the_published_score_is_by_neighbours_in_the_component(noisy, by_the_book, k_cc):
    X, y, _ = noisy
    soft = np.where(y == 1, 0.9, 0.2)
    probe = TopoFilterProbe("eleuther", k_cc=k_cc, k_zeta=9, metric="euclidean").fit(X, soft)
    assert not probe.component_.all()
    near = by_the_book(X, 9, "euclidean", among=probe.component_)[0]
    away = np.abs(soft - soft[near].mean(axis=1))
    assert np.allclose(probe.result_.disagreement, away, atol=1e-12)


def test_with_all_rows_in_the_component_it_is_the_knn_probe(noisy):
    X, _, truth = noisy
    X = X + 100 * truth[:, None]
    topo = TopoFilterProbe("paper", k_cc=30, k_zeta=7).fit(X, truth)
    assert topo.component_.all()
    knn = KNNProbe(k=7).fit(X, truth)
    assert np.array_equal(topo.oof_proba_, knn.oof_proba_)
    assert np.array_equal(topo.predict_proba(X[:9] + 0.1), knn.predict_proba(X[:9] + 0.1))


def test_it_finds_flipped_labels(noisy):
    X, y, truth = noisy
    for variant in ("paper", "eleuther"):
        result = topofilter(X, y, variant=variant, k_cc=8, k_zeta=16)
        clean = (y == truth)[result.keep].mean()
        assert clean > (y == truth).mean() + 0.05, variant


def test_a_class_without_a_cycle_keeps_a_row_of_its_own():
    """The reference keeps row 0 here, whatever its class."""
    X = np.concatenate([np.arange(12.0), [100, 110, 130]])[:, None]
    y = np.array([0] * 12 + [1, 1, 1])
    result = topofilter(
        X, y, variant="eleuther", k_cc=1, k_zeta=1, contamination=0.01, metric="euclidean"
    )
    index = np.array([[1], [0], [1], [2]])
    keep, notes = largest_components(index, np.array([0, 0, 1, 1]), connection="strong")
    assert keep.tolist() == [True, True, True, False]
    assert [note.sentence(["a", "b"]) for note in notes] == [
        "Class b has 2 components of 1 rows and none larger; "
        "the component step keeps the one with row 2"
    ]
    assert result.component[y == 1].any()
    assert result.component[y == 0].any()


@pytest.mark.parametrize("variant", ["paper", "eleuther"])
@pytest.mark.parametrize("near", [True, False])
def test_notes_say_what_became_of_a_class_of_one_row(variant, near):
    rng = np.random.default_rng(1)
    X, y = rng.standard_normal((20, 3)), np.array(["many"] * 19 + ["one"])
    if not near:
        X[-1] = 1000
    more = {"contamination": 0.05} if variant == "eleuther" else {"zeta": 0.1 if near else 0.9}
    result = topofilter(X, y, variant=variant, k_cc=5, k_zeta=3, metric="euclidean", **more)
    assert result.component[-1]
    end = "keeps" if result.keep[-1] else "drops"
    assert (
        f"Class one has one row (19), which the component step keeps, and the last step {end}."
        in result.notes
    )
    assert result.dropped["zeta"]["one"] == int(end == "drops")


def test_notes_say_what_became_of_a_component():
    component, hard = np.ones(6, dtype=bool), np.zeros(6, dtype=int)
    note = Note("Class {name} and row {row}", 0, 4)
    for keep, end in (
        (np.ones(6, bool), "the last step keeps all."),
        (np.zeros(6, bool), "the last step drops it."),
        (np.arange(6) < 4, "the last step drops 2 of its rows."),
    ):
        (finished,) = with_outcome([note], component, keep, hard)
        assert finished.sentence(["a {b}"], list("uvwxyz")) == f"Class a {{b}} and row y, and {end}"


def test_an_overshoot_within_a_class_names_it():
    component, score, hard = np.arange(8) < 5, np.linspace(0, 1, 8), np.arange(8) // 4
    _, notes = drop_to_share(component, score, hard, share=0.25, per_class=True, cap=False)
    (sentence,) = [note.sentence(["zero", "one"]) for note in notes]
    assert "dropped 3 of 4 rows of class one where 1 were asked for" in sentence


def test_equal_components_go_to_the_smallest_row_number():
    index = np.array([[3], [2], [1], [0], [5], [4]])
    keep, notes = largest_components(index, np.zeros(6, dtype=int), connection="weak")
    assert keep.tolist() == [True, False, False, True, False, False]
    assert "3 components of 2 rows" in notes[0].sentence(["a"])
    assert "with row 0" in notes[0].sentence(["a"])


def test_overshoot_is_reported_and_cap_takes_the_least_disagreeing_back(golden):
    data = golden("eleuther_topo_C")
    how = {"variant": "eleuther", "k_cc": 5, "k_zeta": 5, "metric": "euclidean"}
    plain = topofilter(data["X"], data["y"], contamination=0.1, **how)
    assert (~plain.keep).sum() == 720
    assert "alone dropped 720 of 1500 rows where 150 were asked for" in plain.notes[0]
    assert sum(plain.dropped["component"].values()) == 720
    capped = topofilter(data["X"], data["y"], contamination=0.1, cap=True, **how)
    assert (~capped.keep).sum() == 150
    assert "taken back" in capped.notes[0]
    back = capped.keep & ~plain.component
    assert capped.disagreement[back].max() <= capped.disagreement[~capped.keep].min()
    loose = topofilter(data["X"], data["y"], contamination=0.6, cap=True, **how)
    assert (~loose.keep).sum() == 900  # nothing to take back: the share is reached from inside
    assert loose.notes == ()


def test_shares_can_hold_within_each_class():
    score = np.array([0.9, 0.8, 0.7, 0.1, 0.2, 0.3, 0.6, 0.5])
    hard = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    whole = np.ones(8, dtype=bool)
    how = {"share": 0.25, "cap": False}
    overall, _ = drop_to_share(whole, score, hard, per_class=False, **how)
    assert np.flatnonzero(overall.selected).tolist() == [0, 1]
    each, _ = drop_to_share(whole, score, hard, per_class=True, **how)
    assert np.flatnonzero(each.selected).tolist() == [0, 6]
    ranked = drop_ranked(score != 0.1, score, hard, share=0.25, per_class=True)
    assert np.flatnonzero(ranked.selected).tolist() == [3, 6]  # the rejected row goes first


def test_equal_scores_go_by_ties_and_without_them_by_row_number():
    hard, whole = np.zeros(5, dtype=int), np.ones(5, dtype=bool)
    score = np.array([0.3, 0.1 + 0.2, 0.3, 0.3, 0.1])  # 0.1 + 0.2 > 0.3 in floating point
    dropped, _ = drop_to_share(whole, score, hard, share=0.2, per_class=False, cap=False)
    assert np.flatnonzero(dropped.selected).tolist() == [0]
    assert np.flatnonzero(dropped.tied).tolist() == [0, 1, 2, 3]
    ranked = drop_ranked(whole, score, hard, share=0.4, per_class=False)
    assert np.flatnonzero(ranked.selected).tolist() == [0, 1]
    how = {"per_class": False, "ties": np.array([3, 0, 4, 1, 2])}
    dropped, _ = drop_to_share(whole, score, hard, share=0.2, cap=False, **how)
    assert np.flatnonzero(dropped.selected).tolist() == [1]
    ranked = drop_ranked(whole, score, hard, share=0.4, **how)
    assert np.flatnonzero(ranked.selected).tolist() == [1, 3]
    # Of the four equal rows that the component step dropped, two come back: the first by ties.
    component = np.array([False, False, False, False, True])
    capped, _ = drop_to_share(component, score, hard, share=0.4, cap=True, **how)
    assert np.flatnonzero(~capped.selected).tolist() == [1, 3, 4]
    assert capped.tie_counts() == {"rows": 4, "taken": 2}


def test_rank_and_cap_do_not_depend_on_the_order_of_the_rows(noisy):
    X, y, _ = noisy
    order = np.random.default_rng(7).permutation(len(X))
    for how in (
        {"rank": True, "contamination": 0.3, "k_cc": 8, "k_zeta": 16},
        {"variant": "eleuther", "k_cc": 10, "k_zeta": 10, "contamination": 0.3},
        {"variant": "eleuther", "k_cc": 3, "k_zeta": 5, "contamination": 0.1, "cap": True},
    ):
        as_given, shuffled = topofilter(X, y, **how), topofilter(X[order], y[order], **how)
        assert as_given.tied.any(), "the test needs a tie"
        assert np.array_equal(shuffled.keep, as_given.keep[order])
        by_row = topofilter(X, y, **how, ties=np.arange(len(X)))
        moved = topofilter(X[order], y[order], **how, ties=np.arange(len(X)))
        assert not np.array_equal(moved.keep, by_row.keep[order])  # what row numbers do


def test_a_decimal_share_drops_the_number_it_means():
    score = np.linspace(0, 1, 100)
    cut = drop_ranked(np.ones(100, bool), score, np.zeros(100, int), share=0.29, per_class=False)
    assert cut.selected.sum() == 29  # 0.29 * 100 < 29 in floating point


def test_rank_drops_the_share_and_rejected_rows_first(noisy):
    X, y, _ = noisy
    plain = topofilter(X, y, k_cc=8, k_zeta=16)
    rejected = int((~plain.keep).sum())
    for share in (0.1, 0.4):
        ranked = topofilter(X, y, k_cc=8, k_zeta=16, rank=True, contamination=share)
        removed = int((~ranked.keep).sum())
        assert removed == int(400 * share)
        assert (ranked.keep | ~plain.keep).all() == (removed <= rejected)
        assert (ranked.keep & ~plain.keep).any() == (removed < rejected)
    assert (~topofilter(X, y, k_cc=8, k_zeta=16, rank=True).keep).sum() == 80  # 20 %


def test_majority_ties_go_to_the_smallest_label():
    # Three rows far from each other's classes: each sees one vote for either class.
    X = np.array([[0.0], [1.0], [2.5], [100.0], [101.0], [103.0]])
    y = np.array([0, 0, 0, 1, 1, 1])
    kept = topofilter(X, y, k_cc=2, k_zeta=1, zeta=2, metric="euclidean").keep
    assert kept.all()
    y = np.array([0, 1, 0, 1, 0, 1])
    result = topofilter(X, y, k_cc=5, k_zeta=1, zeta=2, metric="euclidean")
    assert result.component.all()
    # 1-nearest others are 1, 0, 1, 4, 3, 4: votes of every row tie, so class 0 wins.
    assert result.keep.tolist() == (y == 0).tolist()


def test_copies_have_no_part_in_judging_each_other(noisy):
    X, y, _ = noisy
    flipped = 7
    copies = np.vstack([X, np.repeat(X[flipped : flipped + 1], 12, axis=0)])
    labels = np.concatenate([y, np.full(12, y[flipped])])
    how = {"k_cc": 20, "k_zeta": 8}
    alone = topofilter(copies, labels, **how)
    blind = topofilter(copies, labels, groups=np.arange(412), **how)
    assert np.allclose(alone.proba[400:], alone.proba[flipped])
    assert blind.proba[flipped, y[flipped]] == 1
    assert alone.proba[flipped, y[flipped]] < 1


def test_more_than_two_soft_classes(noisy):
    X, y, _ = noisy
    three = np.where(np.arange(400) % 7 == 0, 2, y)
    hard = topofilter(X, three, k_cc=8, k_zeta=8)
    soft = topofilter(X, np.eye(3)[three] * 0.7 + 0.1, k_cc=8, k_zeta=8)
    assert np.array_equal(hard.keep, soft.keep)
    assert np.allclose(soft.proba, hard.proba * 0.7 + 0.1, atol=1e-12)


def test_published_numbers_count_copies_as_neighbours(by_the_book):
    """EleutherAI's code knows no copies: its filter comes out as by the book, which knows none."""
    rng = np.random.default_rng(3)
    X = rng.standard_normal((160, 4)).astype(np.float32)
    X[:30] = X[30:60]
    y = (X[:, 0] + rng.standard_normal(160) > 0).astype(int)
    how = {"k_cc": 8, "k_zeta": 6, "metric": "euclidean"}
    probe = TopoFilterProbe("eleuther", **how).fit(X, y)
    lists = by_the_book(X, 8, "euclidean")[0]
    component, _ = largest_components(lists, y, connection="strong")
    assert np.array_equal(probe.component_, component)
    near = by_the_book(X, 6, "euclidean", among=component)[0]
    score = np.abs(y - y[near].mean(axis=1))
    assert np.allclose(probe.result_.disagreement, score, atol=1e-12)
    control = topofilter(X, y, variant="paper", **how)  # in which copies are not neighbours
    assert not np.allclose(control.disagreement, score, atol=1e-3)
    own = TopoFilterProbe("eleuther", self_neighbor=True, **how).fit(X, y)
    assert np.array_equal(own.oof_proba_, own.predict_proba(X))


def test_all_rows_can_vote_where_each_votes_for_itself(noisy):
    X, y, _ = noisy
    how = {"k_cc": 399, "k_zeta": 400}
    probe = TopoFilterProbe("eleuther", self_neighbor=True, **how).fit(X, y)
    assert probe.component_.all()
    assert np.allclose(probe.oof_proba_, np.eye(2)[y].mean(axis=0))
    with pytest.raises(ProbeError, match="allowed are 1 to 399"):
        TopoFilterProbe("eleuther", **how).fit(X, y)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"variant": "wu"}, "paper, eleuther, got 'wu'"),
        ({"contamination": 0.1}, "'paper' has no contamination; add rank=True"),
        ({"cap": True, "per_class": False}, "has no per_class, cap"),
        ({"variant": "eleuther", "zeta": 0.5}, "'eleuther' has no zeta; use variant='paper'"),
        ({"variant": "eleuther", "rank": True}, "has no rank"),
        ({"variant": "eleuther", "previous": np.ones(400, bool)}, "has no previous"),
        ({"variant": "eleuther", "contamination": 0.0}, r"in \(0, 1\), got 0.0"),
        ({"rank": True, "contamination": 1.0}, r"in \(0, 1\), got 1.0"),
        ({"zeta": -1}, r"zeta is a number in \[0,"),
        ({"k_cc": 400}, "k = 400 is too large"),
        ({"k_zeta": 399, "k_cc": 2}, r"k_zeta = 399 is too large: .*left \d+ of 400 rows"),
        ({"previous": np.ones(3, bool)}, "mask of 400 booleans"),
        ({"previous": np.ones(400)}, "mask of 400 booleans, got float64"),
    ],
)
def test_what_a_variant_does_not_have_is_refused(noisy, params, words):
    with pytest.raises(ProbeError, match=words):
        topofilter(noisy[0], noisy[1], **params)


def test_memory_does_not_grow_with_the_square(noisy):
    import tracemalloc

    rng = np.random.default_rng(2)
    n = 6000
    X, y = rng.standard_normal((n, 4)).astype(np.float32), np.arange(n) % 2
    topofilter(noisy[0], noisy[1], k_cc=8, k_zeta=8)  # imports
    tracemalloc.start()
    topofilter(X, y, k_cc=8, k_zeta=8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < n * n  # a dense matrix of booleans


@pytest.mark.parametrize("variant", ["paper", "eleuther"])
def test_a_default_neighbourhood_is_a_third_of_few_rows(variant):
    """What it does, it does with that number given too; a number that is given stays."""
    rng = np.random.default_rng(3)
    y = np.arange(30) % 2
    X = rng.normal(size=(30, 4)) + 2 * y[:, None]
    given = {"variant": variant, "k_cc": 6}
    probe = TopoFilterProbe(**given).fit(X, y)
    kept = int(probe.result_.component.sum())
    third = (kept - 1) // 3
    sentence = f"k_zeta is {third}, as the component step left only {kept} rows."
    assert sentence in probe.notes_for([0, 1])
    same = TopoFilterProbe(**given, k_zeta=third).fit(X, y)
    np.testing.assert_array_equal(probe.oof_proba_, same.oof_proba_)
    np.testing.assert_array_equal(probe.keep_, same.keep_)
    np.testing.assert_array_equal(probe.predict_proba(X[:5]), same.predict_proba(X[:5]))
    assert not any("k_zeta is" in note for note in same.notes_for([0, 1]))
    # The control: the default itself is refused if it is asked for.
    default = 32 if variant == "paper" else 50
    with pytest.raises(ProbeError, match=f"k_zeta = {default} is too large"):
        TopoFilterProbe(**given, k_zeta=default).fit(X, y)
