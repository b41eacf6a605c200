"""Advice that knows the student: the same labels, another student, another action."""

from __future__ import annotations

from typing import Any

import pytest

from probekit.cleaning.advice import Signals, decide
from probekit.cleaning.audit import Finding
from probekit.cleaning.shares import Share
from probekit.cleaning.student import Learner, after_audit, after_diagnosis, learner
from probekit.errors import UsageError


def finding(wrong: float, kept: float, left: float, classes: int = 2, **other: Any) -> Finding:
    """An audit that found these shares wrong: as they are, after a filter, after a relabel."""
    shares = {"leave": wrong, "filter": kept, "relabel": left}
    return Finding(
        action=other.get("action", "filter"),
        probability=0.9,
        settled=False,
        more=10,
        shares={name: Share(value, 0.0, 1.0, 40, 1000) for name, value in shares.items()},
        by_class={str(c): Share(wrong, 0.0, 1.0, 20, 500) for c in range(classes)},
        answers=40,
        unsure=0,
        not_drawn=0,
        rows=1000,
    )


def advised(student: str, *shares: float, classes: int = 2) -> str:
    said = after_audit(Learner(student), finding(*shares, classes=classes))  # type: ignore[arg-type]
    assert said is not None
    return said.action


@pytest.mark.parametrize(
    ("shares", "linear", "memorising"),
    [
        ((0.28, 0.15, 0.17), "relabel", "relabel"),  # SST-2: a relabel corrects 11 points
        ((0.14, 0.06, 0.12), "leave", "relabel"),  # Twitter sentiment: it corrects 2
        ((0.19, 0.06, 0.10), "leave", "relabel"),  # it would correct 9, but few are wrong
        ((0.20, 0.06, 0.10), "relabel", "relabel"),  # as many as are enough
        ((0.34, 0.22, 0.34), "filter", "relabel"),  # keywords: it corrects none, a filter 12
        ((0.12, 0.05, 0.14), "leave", "relabel"),  # a relabel makes 2 points more wrong
        ((0.12, 0.02, 0.15), "leave", "leave"),  # it makes 3 more wrong, a filter saves 10
        ((0.04, 0.02, 0.03), "leave", "leave"),  # hardly any are wrong
        ((0.30, 0.28, 0.26), "relabel", "relabel"),  # 4 points, which floats put below
        ((0.50, 0.33, 0.42), "filter", "leave"),  # enough are right among the kept ones only
        ((0.50, 0.49, 0.44), "leave", "leave"),  # near chance, whatever is done
    ],
)
def test_the_student_decides(
    shares: tuple[float, float, float], linear: str, memorising: str
) -> None:
    assert advised("linear", *shares) == linear
    assert advised("memorising", *shares) == memorising
    assert advised("finetune", *shares) == linear  # which was measured, too


def test_labels_of_which_few_are_wrong_are_left_alone_with_the_reason() -> None:
    for known in (Learner("linear"), Learner("finetune", 3), Learner("finetune", 6)):
        said = after_audit(known, finding(0.15, 0.02, 0.05))
        assert said is not None
        assert said.action == "leave"
        assert said.why == "15 % of them are wrong; such a student gains by cleaning from 20 % on"
        assert said.hint == ""  # nor by training briefly


def test_who_trains_for_long_is_told_of_a_brief_training_unless_few_labels_are_wrong() -> None:
    long = Learner("finetune", 6)
    hopeless = after_audit(long, finding(0.50, 0.49, 0.44))
    assert hopeless is not None
    assert hopeless.action == "leave"
    assert "at most 3 epochs" in hopeless.hint
    assert "at most 3 epochs" in after_diagnosis(long, diagnosed(0.8, 0.80)).hint
    close = after_diagnosis(long, diagnosed(0.8, 0.95))
    assert (close.action, close.hint) == ("leave", "")


def test_chance_depends_on_the_number_of_classes() -> None:
    """Half of the labels wrong is hopeless with two classes, and much with twelve."""
    assert advised("linear", 0.60, 0.55, 0.45) == "leave"
    assert advised("linear", 0.60, 0.55, 0.45, classes=12) == "relabel"


def test_a_memorising_student_is_given_one_class_a_row() -> None:
    for student, hard in (("linear", False), ("memorising", True), ("finetune", False)):
        said = after_audit(Learner(student), finding(0.3, 0.2, 0.1))  # type: ignore[arg-type]
        assert said is not None
        assert said.hard is hard
        assert ("--hard" in said.line) is hard
        assert "20 points fewer" in said.line
        assert said.line.startswith(f"For a {Learner(student).name}: relabel")  # type: ignore[arg-type]


def test_a_memorising_student_gains_by_a_relabel_that_corrects_nothing() -> None:
    said = after_audit(Learner("memorising"), finding(0.20, 0.12, 0.21))
    assert said is not None
    assert said.action == "relabel"
    assert said.why == (
        "21 % of them are wrong after a relabel instead of 20 %, but alike for similar texts, so "
        "there is less to memorise"
    )
    left = after_audit(Learner("memorising"), finding(0.20, 0.02, 0.23))
    assert left is not None
    assert left.why == (
        "23 % of them would be wrong after a relabel instead of 20 %; such a student gains by one "
        "that makes at most 2 points more wrong"
    )


def test_what_cannot_help_is_not_named_as_a_way() -> None:
    """A memorising student is never filtered, and a brief training never relabelled."""
    for known, way in (
        (Learner("memorising"), "a relabel (42 % wrong), and"),
        (Learner("finetune", 3), "a filter (45 % wrong), and"),
        (Learner("linear"), "a relabel (42 % wrong) or a filter (45 % wrong), and"),
    ):
        said = after_audit(known, finding(0.50, 0.45, 0.42))
        assert said is not None
        assert said.action == "leave"
        assert said.why.startswith(f"most would be as good as guessed after {way} nothing can be")


def test_without_an_answer_there_is_no_advice() -> None:
    assert after_audit(Learner("linear"), finding(0.3, 0.2, 0.1, action=None)) is None


def diagnosed(pc: float, agreement: float) -> Any:
    return decide(Signals(2000, 2, pc, (pc - 0.01, pc + 0.01), agreement, 0.75, "confidences"))


def test_without_true_labels_a_linear_student_needs_disagreement() -> None:
    assert diagnosed(0.8, 0.80).action == diagnosed(0.8, 0.95).action == "relabel"
    assert after_diagnosis(Learner("linear"), diagnosed(0.8, 0.80)).action == "relabel"
    close = after_diagnosis(Learner("linear"), diagnosed(0.8, 0.95))
    assert close.action == "leave"
    assert "disagrees with 5 % of them" in close.why
    assert "14 % or more" in close.why
    assert after_diagnosis(Learner("memorising"), diagnosed(0.8, 0.95)).action == "relabel"
    # A filter is for others.
    filtered = diagnosed(0.6, 0.80)
    assert filtered.action == "filter"
    assert after_diagnosis(Learner("linear"), filtered).action == "filter"
    said = after_diagnosis(Learner("memorising"), filtered)
    assert (said.action, "random drop" in said.why) == ("leave", True)
    # Where the plain advice is to leave them, no student overrules it.
    for student in ("linear", "memorising"):
        said = after_diagnosis(Learner(student), diagnosed(0.5, 0.80))  # type: ignore[arg-type]
        assert said.action == "leave"
        assert not said.hard


def test_what_cannot_be_a_student_is_refused() -> None:
    allowed = "student is one of linear, memorising, finetune, got 'large'"
    with pytest.raises(UsageError, match=allowed):
        learner("large")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="epochs is of a student that is finetuned"):
        learner("linear", epochs=3)
    with pytest.raises(UsageError, match="lr is of a student that is finetuned"):
        learner(None, lr=1e-5)
    with pytest.raises(UsageError, match="epochs is a number above 0, got 0"):
        learner("finetune", epochs=0)
    assert learner(None) is None


@pytest.mark.parametrize(
    ("epochs", "lr", "kind"),
    [
        (None, None, "finetune"),
        (None, 1e-5, "finetune"),  # how long is not known
        (3, None, "brief"),
        (2, 1e-4, "brief"),
        (4, None, "long"),
        (3, 2e-4, "long"),
        (None, 5e-4, "long"),
    ],
)
def test_epochs_and_rate_tell_how_long_a_student_trains(
    epochs: float | None, lr: float | None, kind: str
) -> None:
    known = learner("finetune", epochs, lr)
    assert known is not None
    assert known.kind == kind
    assert known.options[:2] == ["--student", "finetune"]
    assert ("--epochs" in known.options, "--lr" in known.options) == (bool(epochs), bool(lr))


def test_a_brief_training_is_never_relabelled() -> None:
    """Where a long one is, and is told that a brief one would be worth as much."""
    brief, long = Learner("finetune", 3, 2e-5), Learner("finetune", 6)
    filtered, relabelled = (after_audit(each, finding(0.28, 0.15, 0.17)) for each in (brief, long))
    assert filtered is not None
    assert relabelled is not None
    assert filtered.line.startswith("For a briefly finetuned student: filter; 13 points fewer of")
    assert relabelled.line.startswith("For a student finetuned for long: relabel; 11 points fewer")
    assert "at most 3 epochs" in relabelled.hint
    assert filtered.hint == ""
    kept = after_audit(brief, finding(0.28, 0.20, 0.10))
    assert kept is not None
    assert kept.action == "leave"
    assert kept.why.startswith("8 points fewer of them are wrong after a filter; ")
    assert kept.why.endswith("gains by one from 10 points on")


def test_without_true_labels_a_brief_training_is_given_the_labels_as_they_are() -> None:
    brief, long = Learner("finetune", 3, 2e-5), Learner("finetune", 6)
    said = after_diagnosis(brief, diagnosed(0.8, 0.80))
    assert said.action == "leave"
    assert "only an audit" in said.why
    assert after_diagnosis(long, diagnosed(0.8, 0.80)).action == "relabel"


def test_json_says_what_was_said_of_the_student() -> None:
    said = after_diagnosis(Learner("finetune", 3, 2e-5), diagnosed(0.8, 0.8)).record
    assert (said["student"], said["epochs"], said["lr"]) == ("finetune", 3, 2e-5)
    assert (said["action"], said["hard"]) == ("leave", False)
