"""Tasks that ask for a completion of each text: a language-model loss, greedy text, exact match.

Burns et al. 2023, https://arxiv.org/abs/2312.09390, for chess: the weak labels are the supervisor's
moves. Probes clean them without ground truth by a question with two answers: does this completion
belong to this text? Each row stands twice, beside its own completion ("right") and beside that of
another row ("wrong"), so every completion is equally often both, and its own frequency says
nothing. The supervisor's mistakes are among the first; a filter drops those of them that, out of
fold, look most like the second.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from probekit.cuts import by_id
from probekit.data import Rows
from probekit.errors import DataError, UsageError
from probekit.experiments.config import FINETUNE
from probekit.experiments.task_kinds.base import VERDICTS, Codes, Evidence, TaskKind, filters
from probekit.labels import WeakLabels
from probekit.students.completion import (
    Completions,
    completion_rows,
    load_completions,
    prompts_of,
)
from probekit.verdicts import Verdicts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from probekit.activations.store import ActivationStore
    from probekit.experiments.config import RunConfig
    from probekit.students.config import FinetuneConfig

__all__ = ["CANDIDATES", "CompletionTask", "Targets", "candidates"]

CANDIDATES = ("wrong", "right")
WRONG, RIGHT = range(2)
# The completions that verdicts are about, beside them.
COMPLETIONS = "completions.parquet"
TRAININGS = ("finetune", "weak_finetune", "strong_finetune")


@dataclass(frozen=True, eq=False)
class Targets:
    """Completions of n rows, and which of the rows to train on."""

    completions: Completions
    keep: NDArray[np.bool_]
    """(n,)."""


class CompletionTask(TaskKind):
    """Prompts; labels are :class:`Completions`, or :class:`Targets` after a filter."""

    name: ClassVar[str] = "completion"
    objective: ClassVar[str] = "completion"
    texts_per_row: ClassVar[int] = 2
    states_of_labels: ClassVar[bool] = True
    probes_predict: ClassVar[bool] = False
    stops_early: ClassVar[bool] = False

    def check(self, config: RunConfig, task: str) -> None:
        """Raise UsageError for what needs class probabilities."""
        asks = f"{task} asks for completions"
        if config.command != "run":
            raise UsageError(
                f"{asks}, and `probekit {config.command}` compares probes that give classes; take "
                "a task with classes or preferences, or `probekit run`."
            )
        if list(config.student) != [FINETUNE]:
            raise UsageError(
                f"{asks}, which only finetuned models write; leave student out or set it to "
                f"{FINETUNE}."
            )
        if list(config.losses) != ["xent"]:
            raise UsageError(
                f"{asks}, which are learned by cross-entropy on their tokens; leave losses out or "
                "set it to xent."
            )
        if config.actions and not filters(config.actions):
            raise UsageError(
                f"{asks}, which a probe can filter but not write; set actions to filter, or to "
                "none."
            )
        if config.weak_labels is not None:
            raise UsageError(
                f"{asks}, and weak_labels is a file of classes; name a decoder as weak instead."
            )
        needs_classes = {
            "trusted_rows": config.trusted_rows is not None,
            "curves": config.curves,
            "validation_rows": config.validation_rows is not None,
            **{f"{n}.early_stop": getattr(config, n).get("early_stop") for n in TRAININGS},
        }
        for name, given in needs_classes.items():
            if given:
                raise UsageError(f"{asks}, and {name} needs class probabilities; leave it out.")

    def check_model(self, label: str, task: str, *, writes: bool) -> None:
        """Only a decoder writes."""
        if not writes:
            raise UsageError(
                f"{task} asks for completions, which {label} cannot write, as it reads both ways; "
                "take a decoder."
            )

    def check_bag_of_words(self, task: str) -> None:
        """A bag of words writes nothing."""
        raise UsageError(
            f"A bag of words cannot write the completions of {task}; name a decoder as the weak "
            "supervisor."
        )

    def actions(self, asked: Sequence[str]) -> tuple[str, ...]:
        """A probe cannot write a completion, so it only filters."""
        return filters(asked)

    def note(self, config: RunConfig, task: str) -> str:
        """Name the actions that are left out."""
        left_out = [action for action in config.actions if action not in filters(config.actions)]
        if not left_out:
            return ""
        return (
            f"{task} asks for completions, which a probe can filter but not write; "
            f"{', '.join(left_out)} is left out."
        )

    def truth(
        self,
        rows: Rows,
        classes: tuple[str, ...],  # noqa: ARG002
        source: str,
    ) -> Completions:
        """Return the column ``completion``."""
        return Completions(
            ids=list(rows.ids),
            hashes=list(rows.hashes),
            texts=completion_rows(rows).completions,
            logprob=np.full(len(rows), np.nan),
            source=source,
        )

    def read(self, path: Path, rows: Rows, name: str) -> Completions | Targets:  # noqa: ARG002
        """Read a model's completions, or those that verdicts are about."""
        if path.name != VERDICTS:
            return _aligned(load_completions(path), rows)
        completions = _aligned(load_completions(path.parent / COMPLETIONS), rows)
        verdicts = Verdicts.load(path)
        kept = dict(zip(verdicts.ids, verdicts.keep.tolist(), strict=True))
        return Targets(completions, np.array([kept[each] for each in rows.ids], dtype=bool))

    def train(
        self,
        config: FinetuneConfig,
        rows: Rows,
        labels: Completions | Targets,
        folder: Path,
        *,
        held_out: tuple[Rows, Any] | None,  # noqa: ARG002
        predict: Mapping[str, Rows],
        curves: bool,  # noqa: ARG002
    ) -> None:
        """Finetune a decoder on the completions that are kept."""
        from probekit.students.generative import finetune_completion

        if isinstance(labels, Targets):
            chosen = np.flatnonzero(labels.keep).tolist()
            if not chosen:
                raise DataError(
                    f"No row of {rows.source} is left to train on: all were dropped; filter less."
                )
            rows, labels = rows.select(chosen), labels.completions
        finetune_completion(config, completion_rows(rows, labels), folder, predict=predict)

    @property
    def states_key(self) -> Mapping[str, Any]:
        """States are of each text with two completions."""
        return {**super().states_key, "candidates": True}

    def extract(self, rows: Rows, labels: Completions, model: str, **options: Any) -> None:
        """Store the states of each text with its own completion and with another row's."""
        from probekit.activations.extraction import extract

        with extract(candidates(rows, labels)[0], model, **options) as store:
            cut = int(np.sum(store.truncated))
            if cut:
                raise DataError(
                    f"{cut} of {len(store)} prompts with a completion are longer than "
                    f"{store.spec.get('max_length')} tokens, so that their states would not show "
                    "the completion; raise finetune.max_length or extract.max_length."
                )

    def clean(
        self,
        act: Callable[..., Verdicts],
        store: ActivationStore,
        rows: Rows,
        labels: Completions,
        **how: Any,
    ) -> Verdicts:
        """Return the verdicts of the rows with their own completions."""
        verdicts = act(store, candidates(rows, labels)[1], **how)
        place = {name: i for i, name in enumerate(verdicts.ids)}
        order = np.array([place[name] for name in rows.ids])
        parts = ("weak", "probe", "label", "keep", "weight", "disagreement", "fold")
        taken = {name: getattr(verdicts, name)[order] for name in parts}
        return replace(verdicts, ids=list(rows.ids), hashes=list(rows.hashes), **taken)

    def save_verdicts(self, folder: Path, verdicts: Verdicts, labels: Completions) -> None:
        """Write verdicts and the completions that they are about."""
        super().save_verdicts(folder, verdicts, labels)
        labels.save(folder / COMPLETIONS)

    def as_classes(self, labels: Completions) -> WeakLabels:
        """Return all rows as one class: the supervisor means each completion to be right."""
        return WeakLabels(
            ids=list(labels.ids),
            hashes=list(labels.hashes),
            probs=np.eye(2)[np.full(len(labels), RIGHT)],
            classes=CANDIDATES,
            source=labels.source,
        )

    def codes(self, labels: Completions | Targets, truth: Completions) -> Codes:
        """Return numbers of the distinct completions."""
        keep = labels.keep if isinstance(labels, Targets) else np.ones(len(truth), dtype=bool)
        written = labels.completions if isinstance(labels, Targets) else labels
        (hard, true), classes = _numbered([written.texts, truth.texts])
        return Codes(hard[keep], true[keep], classes)

    def grade(
        self, predicted: Sequence[Sequence[Completions]], truth: Completions
    ) -> tuple[list[list[NDArray[Any]]], NDArray[np.int64], tuple[str, ...]]:
        """Return the number of each completion (t,) among all distinct ones: exact match."""
        columns = [each.texts for draws in predicted for each in draws]
        numbers, classes = _numbered([truth.texts, *columns])
        rest = iter(numbers[1:])
        graded: list[list[NDArray[Any]]] = [[next(rest) for _ in draws] for draws in predicted]
        return graded, numbers[0], classes

    def evidence(
        self, verdicts: Verdicts, rows: Rows, truth: Completions, folder: Path
    ) -> Evidence:
        """Return texts with the supervisor's completions, and whether these are right."""
        written = _aligned(load_completions(folder / COMPLETIONS), rows)
        right = dict(zip(rows.ids, _same(written, truth).tolist(), strict=True))
        shown = dict(zip(rows.ids, _joined(rows, written), strict=True))
        codes = np.array([right[name] for name in verdicts.ids], dtype=np.int64)
        return Evidence([shown[name] for name in verdicts.ids], codes)


def candidates(rows: Rows, completions: Completions) -> tuple[Rows, WeakLabels]:
    """Return every row with its own completion, then with another row's, and which is which.

    Parameters
    ----------
    rows
        n prompts; both texts of a prompt form a group.
    completions
        Their completions.

    Returns
    -------
    2n rows and their labels, ``right`` for the rows' own completions. The second completions are
    the first ones in another order, none beside a prompt whose own completion is the same text;
    where more than half are the same text, the rows left over stand once.

    Raises
    ------
    DataError
        If all completions are the same text.
    """
    texts = completions.of(rows)
    other = _others(texts, by_id(rows.hashes))
    second = np.flatnonzero(other >= 0).tolist()
    if not second:
        raise DataError(
            f"The completions of all {len(rows)} rows are {texts[0]!r}, so no probe can tell them "
            "apart; train the weak supervisor longer, or leave the actions out."
        )
    prompts = prompts_of(rows)
    columns = {
        "id": [*rows.ids, *(f"{rows.ids[i]} (completion of another row)" for i in second)],
        "text": [
            *_joined(rows, completions),
            *(f"{prompts[i]} {texts[other[i]]}".rstrip() for i in second),
        ],
    }
    both = Rows(columns, source=rows.source)
    both.groups = [*rows.ids, *(rows.ids[i] for i in second)]
    codes = np.repeat([RIGHT, WRONG], [len(rows), len(second)])
    labels = WeakLabels(
        ids=list(both.ids),
        hashes=list(both.hashes),
        probs=np.eye(2)[codes],
        classes=CANDIDATES,
        source=completions.source,
    )
    return both, labels


def _others(texts: Sequence[str], order: NDArray[Any]) -> NDArray[np.int64]:
    """Return for each row the number (n,) of one with another text, each used once; -1: none left.

    Rows sorted by text form runs of equal texts; a shift by the longest run leaves every run.
    ``order`` (n,) decides between equal texts.
    """
    codes = np.unique(np.array(texts, dtype=object), return_inverse=True)[1].ravel()
    ranked = np.lexsort((order, codes))
    longest = int(np.bincount(codes).max())
    other = np.full(len(codes), -1, dtype=np.int64)
    other[ranked] = np.roll(ranked, -longest)
    other[codes[other] == codes] = -1
    return other


def _joined(rows: Rows, completions: Completions) -> list[str]:
    """Return prompts with their completions, one space between them, as in training."""
    pairs = zip(prompts_of(rows), completions.of(rows), strict=True)
    return [f"{prompt} {text}".rstrip() for prompt, text in pairs]


def _aligned(completions: Completions, rows: Rows) -> Completions:
    """Return completions in the order of the rows."""
    place = {name: i for i, name in enumerate(completions.ids)}
    texts = completions.of(rows)  # raises where one is missing or of another text
    return replace(
        completions,
        ids=list(rows.ids),
        hashes=list(rows.hashes),
        texts=texts,
        logprob=completions.logprob[[place[name] for name in rows.ids]],
    )


def _same(written: Completions, truth: Completions) -> NDArray[np.bool_]:
    """Return whether completions of the same rows are equal (n,), white space at the ends aside."""
    pairs = zip(written.texts, truth.texts, strict=True)
    return np.array([one.strip() == other.strip() for one, other in pairs], dtype=bool)


def _numbered(
    columns: Sequence[Sequence[str]],
) -> tuple[list[NDArray[np.int64]], tuple[str, ...]]:
    """Return texts as numbers, and the distinct texts; white space at the ends does not count."""
    stripped = [[text.strip() for text in column] for column in columns]
    classes = sorted({text for column in stripped for text in column})
    number = {text: i for i, text in enumerate(classes)}
    codes = [np.array([number[text] for text in column], dtype=np.int64) for column in stripped]
    return codes, tuple(classes)
