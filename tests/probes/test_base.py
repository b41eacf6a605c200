from __future__ import annotations

import numpy as np
import pytest

from probekit.errors import ProbeError
from probekit.probes import KNNProbe
from probekit.probes.base import hard_labels, label_matrix
from probekit.states import row_chunks


@pytest.mark.parametrize(
    ("y", "classes"),
    [
        ([0, 1, 1], [0, 1]),
        ([0.0, 1.0, 1.0], [0, 1]),  # hard and soft alike
        ([2.0, 3.0, 3.0], [2.0, 3.0]),  # whole floats outside [0, 1] are labels
        ([-1, 4, 4], [-1, 4]),
        (["no", "yes", "yes"], ["no", "yes"]),
        (np.array(["no", "yes", "yes"], dtype=object), ["no", "yes"]),
        ([False, True, True], [False, True]),
        ([[1, 0], [0, 1], [0, 1]], [0, 1]),
    ],
)
def test_every_form_of_hard_labels_gives_the_same_matrix(y, classes):
    result, Y = label_matrix(y)
    assert result.tolist() == classes
    assert Y.dtype == np.float64
    assert Y.tolist() == [[1, 0], [0, 1], [0, 1]]


def test_binary_probabilities_and_two_columns_are_the_same_labels():
    p = np.array([0.1, 0.5, 0.7, 1.0])
    classes, Y = label_matrix(p)
    assert classes.tolist() == [0, 1]
    assert np.array_equal(Y[:, 1], p)
    assert np.array_equal(Y, label_matrix(np.column_stack([1 - p, p]))[1])


def test_soft_rows_are_scaled_to_sum_to_one():
    Y = label_matrix(np.array([[0.2, 0.3, 0.5005], [1, 0, 0]]))[1]
    assert np.allclose(Y.sum(axis=1), 1, atol=1e-15)
    assert Y[0, 1] == pytest.approx(0.3 / 1.0005)


def test_given_classes_order_the_columns():
    names, Y = label_matrix(["b", "a", "b"], classes=["b", "a", "c"])
    assert names.tolist() == ["b", "a", "c"]
    assert Y.tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 0]]
    assert label_matrix([0.2, 0.9], classes=["no", "yes"])[0].tolist() == ["no", "yes"]


@pytest.mark.parametrize(
    ("y", "words"),
    [
        ([0.2, 1.5, 0.1], r"Unknown label type: continuous.*1\.5 in row 1"),
        ([-0.25, 0.5], r"continuous.*-0\.25 in row 0"),
        ([0.5, 2.0], "continuous.*2 in row 1"),
        ([0.5, np.nan], r"NaN.*1 rows \(first: '1'\)"),
        ([np.inf, 1.0], "infinity"),
        ([1, 1, 1], "one class only"),
        ([0.0, 0.0], "one class only"),
        ([[0, 1.0], [0, 1.0]], "one class only"),
        ([[0.5, 0.6], [1, 0]], r"not class probabilities \(first: '0'\)"),
        ([[1.5, -0.5], [1, 0]], "not class probabilities"),
        ([["a", "b"], ["b", "a"]], "strings"),
        (["a", 1], "mixes strings"),
        ([None, 1], "type object"),
        ([], "1d array"),
        ([[[1]]], "1d array"),
        ([[1, 2], [3]], "rectangular"),
        (None, "requires y"),
        ([1 + 2j, 1], "complex"),
    ],
)
def test_what_are_no_labels_is_reported_in_one_sentence(y, words):
    with pytest.raises(ProbeError, match=words) as error:
        label_matrix(y)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("y", "classes", "words"),
    [
        (["a", "x"], ["a", "b"], "'x', which is none of the classes 'a', 'b'"),
        ([0.5, 0.2], ["a", "b", "c"], "2 classes but 3"),
        (["a", "b"], ["a", "a"], "different"),
    ],
)
def test_labels_that_do_not_fit_their_classes_are_refused(y, classes, words):
    with pytest.raises(ProbeError, match=words):
        label_matrix(y, classes=classes)


def test_a_tie_goes_to_the_smaller_class():
    assert hard_labels(np.array([[0.5, 0.5], [0.4, 0.6], [0.6, 0.4]])).tolist() == [0, 1, 0]
    half = np.nextafter([0.5, 0.5], [0, 1])
    assert hard_labels(label_matrix(half)[1]).tolist() == [0, 1]


def test_row_chunks_cover_every_row_once():
    rows = np.concatenate([np.arange(10)[part] for part in row_chunks(10, 100, budget=350)])
    assert rows.tolist() == list(range(10))
    assert list(row_chunks(0, 8)) == []
    assert list(row_chunks(2, 10**12)) == [slice(0, 1), slice(1, 2)]


def test_states_that_are_not_finite_are_named():
    X = np.random.default_rng(0).standard_normal((9, 3))
    y = np.arange(9) % 2
    probe = KNNProbe(k=2).fit(X, y)
    X[4, 1], X[7, 0] = np.nan, np.inf
    for call in (lambda: KNNProbe(k=2).fit(X, y), lambda: probe.predict(X)):
        with pytest.raises(ProbeError, match=r"2 of 9 rows \(first: '4', '7'\)"):
            call()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sample_weight": [1.0] * 5}, r"shape \(6,\)"),
        ({"sample_weight": [1, 1, 1, 1, 1, -1]}, "at least 0"),
        ({"sample_weight": [0] * 6}, "zero in every row"),
        ({"sample_weight": [1, 0, 1, 0, 1, 0]}, "one class only"),
        ({"groups": [0, 1]}, r"shape \(6,\)"),
    ],
)
def test_weights_and_groups_are_checked(arguments, words):
    X = np.random.default_rng(0).standard_normal((6, 2))
    with pytest.raises(ProbeError, match=words):
        KNNProbe(k=2).fit(X, [0, 1] * 3, **arguments)


def test_rows_and_labels_must_be_equally_many():
    with pytest.raises(ProbeError, match="4 rows but y has 3"):
        KNNProbe(k=1).fit(np.eye(4), [0, 1, 1])


def test_half_precision_states_are_searched_in_float32():
    X = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float16)
    y = np.arange(40) % 2
    half, single = KNNProbe(k=3).fit(X, y), KNNProbe(k=3).fit(X.astype(np.float32), y)
    assert np.array_equal(half.oof_proba_, single.oof_proba_)
    assert np.array_equal(half.predict_proba(X), single.predict_proba(X.astype(np.float32)))
