from __future__ import annotations

import numpy as np
import pytest

from probekit.cleaning.filter import filter_labels
from probekit.cleaning.readmit import readmit
from probekit.errors import LabelsError, UsageError
from probekit.labels import WeakLabels


@pytest.fixture
def filtered(blobs):
    data = blobs(n=200)
    return filter_labels(data.X, data.weak)


def predicted(verdicts, second, *, classes=("0", "1"), rows=None):
    rows = range(len(verdicts)) if rows is None else rows
    probs = np.column_stack([1 - second, second])[list(rows)]
    return WeakLabels([verdicts.ids[i] for i in rows], None, probs, classes)


def test_sure_rows_come_back_with_the_students_label(filtered):
    rng = np.random.default_rng(0)
    second = rng.random(len(filtered))
    found = readmit(filtered, predicted(filtered, second), confidence=0.8)
    dropped = ~filtered.keep
    sure = np.maximum(second, 1 - second) >= 0.8
    assert np.array_equal(found.keep, filtered.keep | (dropped & sure))
    back = found.keep & dropped
    assert 0 < back.sum() < dropped.sum()
    assert np.allclose(found.label[back, 1], second[back])
    assert np.array_equal(found.label[~back], filtered.label[~back])
    assert np.array_equal(found.weak, filtered.weak)
    assert found.provenance["readmitted"]["rows"] == back.sum()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_least_confidence_is_enough_in_any_float_type(filtered, dtype):
    at, below = (np.full(len(filtered), p, dtype=dtype).astype(np.float64) for p in (0.9, 0.8999))
    assert readmit(filtered, predicted(filtered, at), confidence=0.9).keep.all()
    found = readmit(filtered, predicted(filtered, below), confidence=0.9)
    assert np.array_equal(found.keep, filtered.keep)


def test_several_students_must_agree(filtered):
    n = len(filtered)
    one, two = np.full(n, 0.99), np.full(n, 0.99)
    two[: n // 2] = 0.4
    students = [predicted(filtered, one), predicted(filtered, two)]
    found = readmit(filtered, students, confidence=0.5)
    back = found.keep & ~filtered.keep
    expected = ~filtered.keep & (np.arange(n) >= n // 2)
    assert np.array_equal(back, expected)
    # Alone the first would have brought them all back.
    assert readmit(filtered, students[0], confidence=0.5).keep.all()


def test_classes_are_joined_by_name(filtered):
    second = np.random.default_rng(1).random(len(filtered))
    swapped = predicted(filtered, 1 - second, classes=("1", "0"))
    plain = predicted(filtered, second)
    assert np.allclose(readmit(filtered, swapped).label, readmit(filtered, plain).label)


def test_what_is_refused(filtered):
    second = np.full(len(filtered), 0.95)
    with pytest.raises(UsageError, match=r"a number in \[0.5, 1\], got 0.4"):
        readmit(filtered, predicted(filtered, second), confidence=0.4)
    with pytest.raises(LabelsError, match="no label for any row of the dropped rows"):
        readmit(filtered, predicted(filtered, second, rows=np.flatnonzero(filtered.keep)))
    with pytest.raises(LabelsError, match="classes 'a', 'b'"):
        readmit(filtered, predicted(filtered, second, classes=("a", "b")))
    all_back = readmit(filtered, predicted(filtered, second), confidence=0.5)
    with pytest.raises(UsageError, match="drop no row"):
        readmit(all_back, predicted(filtered, second))
