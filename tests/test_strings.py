from __future__ import annotations

import json
import pickle

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probekit.arrow_columns import ArrowColumn
from probekit.groups import joined
from probekit.joins import Keys, find_ids, match, other_texts, unknown_ids
from probekit.strings import (
    Strings,
    any_twice,
    arrow_column,
    first_places,
    joined_strings,
    places,
    sorted_rows,
    taken,
)

names = st.lists(st.text("ab\u00e9\U0001f600 ", max_size=11).filter(lambda s: s[-1:] != "\0"))


def encoded(values):
    return Strings(np.array([value.encode() for value in values] or np.zeros(0, "S1")))


@given(values=names, others=names)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_all_is_as_of_a_list(values, others):
    one, other = encoded(values), encoded(others)
    assert one == values
    assert list(one) == values
    assert [one[i] for i in range(len(one))] == values
    assert one[1:3] == values[1:3]
    assert one.known().tolist() == [bool(value) for value in values]
    assert any_twice(one) == any_twice(values)
    assert places(one, other).tolist() == places(values, others).tolist()
    assert places(one, one).tolist() == places(values, values).tolist()
    assert first_places(one).tolist() == first_places(values).tolist()
    rows = np.arange(len(values))[::-1]
    assert sorted_rows(one, rows).tolist() == sorted_rows(values, rows).tolist()
    assert taken(one, rows) == taken(values, rows)
    assert arrow_column(one).equals(arrow_column(values))
    assert joined_strings([one, other]) == values + others
    assert joined(one).tolist() == joined(values).tolist()


@given(values=names)
@settings(max_examples=50, deadline=None, derandomize=True)
def test_strings_whose_digests_are_equal_are_told_apart(values):
    one = encoded(values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Strings, "digests", lambda self, _: np.zeros(len(self), np.uint64))
        assert any_twice(one) == any_twice(values)
        assert places(one, one).tolist() == places(values, values).tolist()
        assert first_places(one).tolist() == first_places(values).tolist()


def test_no_two_of_a_million_names_have_one_digest():
    numbers = np.char.add(b"row-", np.arange(1_000_000).astype("S7"))
    assert len(np.unique(Strings(numbers).digests(11))) == 1_000_000
    # Control: of the first four bytes they are all the same.
    assert len(np.unique(Strings(numbers.astype("S4")).digests(4))) == 1


def test_what_a_list_can_do():
    one = encoded(["b", "", "\u00e9"])
    assert one != ["b", ""]
    assert one != "b"
    assert pickle.loads(pickle.dumps(one)) == one
    assert repr(encoded(list("abcd"))) == "Strings(['a', 'b', 'c'], …, n=4)"
    assert json.dumps(list(one)) == '["b", "", "\\u00e9"]'
    assert taken(one, np.arange(3)) is one


def test_ids_of_an_arrow_column_are_not_objects():
    ids = [f"row-{i}" for i in range(20_000)]
    column = ArrowColumn(pa.chunked_array([ids[:7], ids[7:]]))
    keys = find_ids({"id": column}, source="file")
    assert isinstance(keys.ids, Strings)
    assert keys.ids == ids
    for values in ([*ids[:-1], None], [*ids[:-1], " "], [*ids[:-1], "x\0"], [*ids[:-1], "x" * 999]):
        column = ArrowColumn(pa.array(values))
        assert column.strings() is None or values[-1] == " "
    assert ArrowColumn(pa.array([1, 2])).strings() is None


def test_a_join_of_arrays_is_that_of_lists():
    rng = np.random.default_rng(0)
    ids = [f"r{i}" for i in range(500)]
    hashes = [f"{i:016x}" if i % 7 else "" for i in range(500)]
    order = rng.permutation(600)[:450]
    theirs = [f"r{i}" for i in order]
    texts = [f"{i:016x}" if i % 5 else "other" for i in order]
    plain = Keys(ids, hashes), Keys(theirs, texts)
    compact = Keys(encoded(ids), encoded(hashes)), Keys(encoded(theirs), encoded(texts))
    one, other = match(*plain), match(*compact)
    assert np.array_equal(one.place, other.place)
    assert 0 < (one.place < 0).sum() < 500
    assert unknown_ids(one, plain[1]) == unknown_ids(other, compact[1])
    differ = other_texts(*plain, one.place)
    assert differ == other_texts(*compact, other.place)
    assert len(differ) > 50
