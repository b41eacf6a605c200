"""Joins of labels and rows: the right row or a refusal, never a guess."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probekit.data import Rows
from probekit.errors import DataError
from probekit.joins import Keys, match, other_texts, unknown_ids
from probekit.labels import WeakLabels

N = 12
ORDER = np.random.default_rng(0).permutation(N)
NAMES = [f"k{i}" for i in range(N)]


def rows(**columns):
    return Rows({"text": [f"text {i}" for i in range(N)], **columns}, source="rows.csv")


def labels(**columns):
    """Labels in another order; that of row i is i % 3."""
    result = {name: [values[i] for i in ORDER] for name, values in columns.items()}
    return WeakLabels.from_columns(
        {**result, "label": [f"c{i % 3}" for i in ORDER]}, source="labels.csv"
    )


def hard(found, left):
    """Class of each row, by the join."""
    return [int(found.classes[c][1:]) for c in found.align(left.keys).labels.hard]


RIGHT = [i % 3 for i in range(N)]


@pytest.mark.parametrize("ours", ["id", "ID", "Id"])
@pytest.mark.parametrize("theirs", ["id", "ID", "iD"])
def test_ids_join_in_any_case(ours, theirs):
    result = labels(**{theirs: NAMES})
    assert hard(result, rows(**{ours: NAMES})) == RIGHT
    # The control: by position it would be wrong.
    assert [int(result.classes[c][1:]) for c in result.hard] != RIGHT


@pytest.mark.parametrize("name", ["uid", "review_id", "PuzzleId", "url", "key"])
def test_the_one_shared_column_joins(name):
    left, result = rows(**{name: NAMES}), labels(**{name.upper(): NAMES})
    assert hard(result, left) == RIGHT
    assert f"by the column {name!r}" in result.joined(left.keys).how


def test_numbers_join_numbers_however_they_are_written():
    left = rows(uid=list(range(100, 100 + N)))
    assert hard(labels(uid=[f"{100 + i}" for i in range(N)]), left) == RIGHT
    assert hard(labels(uid=[100.0 + i for i in range(N)]), left) == RIGHT


def test_several_columns_are_a_question():
    left, result = rows(uid=NAMES, key=NAMES), labels(uid=NAMES, key=NAMES)
    with pytest.raises(DataError, match=r"2 columns that could .* \(uid, key\).*--id-column"):
        result.align(left.keys)


def test_a_column_that_is_no_key_joins_nothing():
    repeated = ["a", "b"] * (N // 2)
    left = rows(uid=NAMES, user=repeated, score=[i / 7 for i in range(N)], flag=[True] * N)
    result = labels(uid=NAMES, user=repeated, score=[i / 7 for i in range(N)], flag=[True] * N)
    assert hard(result, left) == RIGHT
    assert "'uid'" in result.joined(left.keys).how
    # Counters of pandas are not keys either, nor are labels and probabilities.
    counted = [str(i) for i in range(N)]
    for name in ("", "Unnamed: 0", "index", "__index_level_0__"):
        assert Keys(counted, columns={name: counted}).candidates() == {}


def test_ids_and_none_are_refused_with_the_repair():
    bare = labels()
    with pytest.raises(DataError, match=r"no column 'id'.*--id-column, or pass --by-position"):
        bare.align(rows(id=NAMES).keys)
    # Numbers as ids are ids: label k is not of the row whose id is "k".
    shuffled = [str(i) for i in np.random.default_rng(1).permutation(N)]
    with pytest.raises(DataError, match="--by-position"):
        bare.align(rows(id=shuffled).keys)


def test_neither_has_ids_joins_by_position_if_there_are_as_many():
    plain = WeakLabels.from_columns({"label": [f"c{i % 3}" for i in range(N)]})
    assert hard(plain, rows()) == RIGHT
    assert "by position" in plain.joined(rows().keys).how
    with pytest.raises(DataError, match="cannot be joined by position"):
        plain.align(Rows({"text": ["a", "b"]}).keys)


def test_by_position_when_asked():
    given = WeakLabels.from_columns({"label": [f"c{i % 3}" for i in range(N)]}, by_position=True)
    assert hard(given, rows(id=NAMES)) == RIGHT
    with pytest.raises(DataError, match="12 rows and rows 2"):
        given.align(Rows({"text": ["a", "b"], "id": ["x", "y"]}).keys)


def test_rows_without_a_label_keep_their_position():
    values = ["c0", None, "c2", "nan", *[f"c{i % 3}" for i in range(4, N)]]
    given = WeakLabels.from_columns({"label": values})
    result = given.align(rows().keys, only_labelled=True)
    assert result.rows.tolist() == [0, 2, *range(4, N)]
    assert [int(result.labels.classes[c][1:]) for c in result.labels.hard] == [
        i % 3 for i in result.rows.tolist()
    ]


def test_row_numbers_join_rows_without_ids():
    assert hard(labels(id=[str(i) for i in range(N)]), rows()) == RIGHT
    first = rows().select(range(4))  # --limit
    assert hard(labels(id=list(range(N))), first) == RIGHT[:4]
    with pytest.raises(DataError, match=r"rows\.csv has no column 'id'"):
        labels(id=NAMES).align(rows().keys)


def part_of(places):
    """Some rows, which are called by their numbers in the whole table."""
    texts = [f"text {i}" for i in places]
    return Rows({"id": [str(i) for i in places], "review": texts}, text_column="review")


def whole(texts, values=None):
    """A table without ids, whose text has the name that these rows' has."""
    values = [f"c{i % 3}" for i in range(len(texts))] if values is None else values
    return WeakLabels.from_columns({"review": texts, "label": values}, source="labels.csv")


def test_a_part_joins_the_whole_by_row_number_where_the_texts_are_the_same():
    places = [1, 2, 5, 9]
    texts = [f"text {i}" for i in range(N)]
    # Either all rows have a label, or those only that are a part of them.
    some = [f"c{i % 3}" if i in places else None for i in range(N)]
    for table in (whole(texts), whole(texts, some)):
        assert hard(table, part_of(places)) == [i % 3 for i in places]
        assert "by row number" in table.joined(part_of(places).keys).how
    # The controls: one text differs, or the whole has lost a row before them.
    other = [*texts[:5], "another", *texts[6:]]
    for wrong in (whole(other), whole(texts[1:]), whole(other, some)):
        with pytest.raises(DataError):
            wrong.align(part_of(places).keys)


def test_texts_join_in_order_where_they_are_the_same_and_are_compared():
    texts = [f"text {i}" for i in range(N)]
    same = WeakLabels.from_columns({"text": texts, "label": [f"c{i % 3}" for i in range(N)]})
    assert hard(same, rows(id=NAMES)) == RIGHT
    moved = WeakLabels.from_columns(
        {"id": NAMES, "text": [texts[-1], *texts[:-1]], "label": ["c0", "c1"] * 6}
    )
    with pytest.raises(DataError, match=r"another text than rows.csv in 12 of 12 rows"):
        moved.align(rows(id=NAMES).keys)


def test_a_column_named_as_the_rows_text_is_compared():
    left = Rows({"id": NAMES, "review": [f"text {i}" for i in range(N)]}, text_column="review")
    wrong = WeakLabels.from_columns({"id": NAMES, "review": ["other"] * N, "label": ["a", "b"] * 6})
    with pytest.raises(DataError, match="another text"):
        wrong.align(left.keys)


def test_the_column_named_by_the_user_joins_whatever_else_there_is():
    left = rows(id=[f"x{i}" for i in range(N)], uid=NAMES, key=NAMES)
    result = WeakLabels.from_columns(
        {"uid": [NAMES[i] for i in ORDER], "label": [f"c{i % 3}" for i in ORDER]}, id_column="UID"
    )
    assert hard(result, left) == RIGHT


def test_what_is_left_over_is_named():
    left = Keys(["a", "b"], ["ha", "hb"])
    right = Keys(["b", "x", "y"], ["other", "", ""])
    result = match(left, right)
    assert result.place.tolist() == [-1, 0]
    assert unknown_ids(result, right) == ["x", "y"]
    assert other_texts(left, right, result.place) == ["b"]


@given(
    keys=st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=20, unique=True),
    seed=st.integers(0, 99),
    name=st.sampled_from(["id", "ID", "uid"]),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_join_finds_its_own_row_or_is_refused(keys, seed, name):
    order = np.random.default_rng(seed).permutation(len(keys))
    try:
        left = Rows({"text": [f"t{i}" for i in range(len(keys))], name: keys})
        right = WeakLabels.from_columns(
            {name: [keys[i] for i in order], "label": [f"c{i}" for i in order]}
        )
        result = right.align(left.keys).labels
    except DataError:
        return
    assert [result.classes[c] for c in result.hard] == [f"c{i}" for i in range(len(keys))]
