"""Columns are guessed where only one can be meant, and never where two can."""

from __future__ import annotations

from typing import Any

import pytest

from probekit.columns import AmbiguousColumnError, Columns, guess_columns
from probekit.errors import UsageError

TEXTS = [f"This is the sentence number {i}." for i in range(12)]
STARS = ["one", "two"] * 6
IDS = [f"r-{i}" for i in range(12)]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"text": TEXTS, "label": STARS}, ("text", "label")),
        ({"id": IDS, "review_body": TEXTS, "stars_class": STARS}, ("review_body", "stars_class")),
        ({"reviewBody": TEXTS, "Category": STARS}, ("reviewBody", "Category")),
        # probekit's own names win over others that fit.
        ({"text": TEXTS, "comment": TEXTS, "label": STARS, "topic": STARS}, ("text", "label")),
        # What a column holds decides where its name does not.
        ({"col1": TEXTS, "target": [0, 1] * 6, "n": list(range(12))}, ("col1", "target")),
        # A title is a text, but the body is meant.
        (
            {"review_title": TEXTS, "review_body": TEXTS, "rating": [1, 5] * 6},
            ("review_body", "rating"),
        ),
        # An exact name wins over one that holds another word as well.
        ({"sentence": TEXTS, "class": STARS, "class_before": STARS}, ("sentence", "class")),
        ({"text": TEXTS, "probs": [[0.2, 0.8]] * 12, "label": STARS}, ("text", "probs")),
        ({"tweet": TEXTS, "sentiment": [True, False] * 6}, ("tweet", "sentiment")),
    ],
)
def test_one_column_that_can_be_meant_is_taken(
    columns: dict[str, list[Any]], expected: tuple[str, str]
) -> None:
    assert guess_columns(columns) == Columns(*expected)


def test_several_that_can_be_meant_are_named_with_what_they_hold() -> None:
    columns = {"comment": TEXTS, "answer": TEXTS, "label": STARS}
    with pytest.raises(AmbiguousColumnError) as refused:
        guess_columns(columns, source="reviews.csv")
    assert refused.value.role == "text"
    assert refused.value.candidates == ["comment", "answer"]
    assert "reviews.csv has several columns that could be the text" in str(refused.value)
    assert "comment ('This is the sentence number 0.', " in str(refused.value)
    assert guess_columns(columns, text="answer").text == "answer"


def test_labels_without_a_telling_name_are_asked_for() -> None:
    columns = {"text": TEXTS, "source": STARS, "editor": STARS}
    with pytest.raises(AmbiguousColumnError) as refused:
        guess_columns(columns)
    assert (refused.value.role, refused.value.candidates) == ("label", ["source", "editor"])


def test_a_single_column_that_repeats_is_not_taken_for_labels_by_content_alone() -> None:
    """A language or a split repeats as labels do; only a name says that it is one."""
    with pytest.raises(AmbiguousColumnError, match="no column whose name suggests a label"):
        guess_columns({"text": TEXTS, "language": ["en", "de"] * 6})


def test_numbers_that_never_repeat_are_no_labels() -> None:
    with pytest.raises(AmbiguousColumnError):
        guess_columns({"text": TEXTS, "target": list(range(12))})


def test_a_misspelt_column_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"no column 'Einschatzung' \(did you mean Einschätzung"):
        guess_columns({"text": TEXTS, "Einschätzung": STARS}, label="Einschatzung")


def test_columns_named_are_checked() -> None:
    columns = {"body": TEXTS, "label": STARS}
    with pytest.raises(UsageError, match="has no column 'txt'; it has body, label"):
        guess_columns(columns, text="txt")
    with pytest.raises(UsageError, match="name two columns"):
        guess_columns(columns, text="body", label="body")
