"""What an experiment needs to know of a kind of task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from probekit.experiments.config import ACTIONS
from probekit.verdicts import Verdicts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from probekit.activations.store import ActivationStore
    from probekit.data import Rows
    from probekit.experiments.config import RunConfig
    from probekit.labels import WeakLabels
    from probekit.students.config import FinetuneConfig

__all__ = ["VERDICTS", "Codes", "Evidence", "TaskKind"]

VERDICTS = "verdicts.parquet"
"""File of a step that cleans labels."""


class Codes(NamedTuple):
    """What m rows are trained on or predicted, and their truth, as numbers of classes."""

    hard: NDArray[np.int64]
    """(m,)."""
    truth: NDArray[np.int64]
    """(m,)."""
    classes: tuple[str, ...]


class Evidence(NamedTuple):
    """What people see of rows with verdicts, in their order."""

    texts: list[str]
    truth: NDArray[np.int64]
    """True class numbers (n,), as in the verdicts' classes."""


class TaskKind(ABC):
    """How the rows of a kind of task are trained on, predicted, cleaned and graded.

    Labels are those of the kind: class probabilities, or completions. Ground truth has the same
    form.
    """

    name: ClassVar[str]
    """As :class:`probekit.tasks.Task` has it."""
    objective: ClassVar[str]
    """As :class:`probekit.students.config.FinetuneConfig` has it."""
    texts_per_row: ClassVar[int] = 1
    """Number of texts that a model reads for the states of a row."""
    pairs: ClassVar[bool] = False
    """Whether a row has two texts, whose states are subtracted."""
    states_of_labels: ClassVar[bool] = False
    """Whether the states that clean a row are of the row with its weak label."""
    probes_predict: ClassVar[bool] = True
    """Whether a probe on states can be a student."""
    stops_early: ClassVar[bool] = True
    """Whether held-out weak labels can choose a checkpoint."""

    def check(self, config: RunConfig, task: str) -> None:  # noqa: B027 (most fit everything)
        """Raise UsageError, saying what would work, if a configuration does not fit the task."""

    def check_model(self, label: str, task: str, *, writes: bool) -> None:  # noqa: B027
        """Raise UsageError if a model cannot do the task.

        ``writes``: whether it writes text from left to right.
        """

    def check_bag_of_words(self, task: str) -> None:  # noqa: B027
        """Raise UsageError if a bag of words cannot be the weak supervisor."""

    def actions(self, asked: Sequence[str]) -> tuple[str, ...]:
        """Return those of the actions ``asked`` for that the kind has."""
        return tuple(asked)

    def note(self, config: RunConfig, task: str) -> str:  # noqa: ARG002
        """Return a sentence about what the kind leaves out of a configuration, or an empty text."""
        return ""

    @abstractmethod
    def truth(self, rows: Rows, classes: tuple[str, ...], source: str) -> Any:
        """Return the ground truth of rows with it."""

    @abstractmethod
    def read(self, path: Path, rows: Rows, name: str) -> Any:
        """Read labels of ``rows``, a step's predictions or verdicts, in the order of the rows."""

    def texts(self, rows: Rows) -> Rows:
        """Return the texts that a language model reads of rows."""
        return rows

    @abstractmethod
    def train(
        self,
        config: FinetuneConfig,
        rows: Rows,
        labels: Any,
        folder: Path,
        *,
        held_out: tuple[Rows, Any] | None,
        predict: Mapping[str, Rows],
        curves: bool,
    ) -> None:
        """Train a model on rows and their labels, and predict the rows of ``predict``.

        Parameters
        ----------
        folder
            Folder of the training; predictions of NAME are ``predictions/NAME.parquet`` in it.
        held_out
            Rows with labels for early stopping.
        curves
            Whether to keep the predictions of every evaluation.
        """

    @property
    def states_key(self) -> Mapping[str, Any]:
        """How states are made, as parameters of a step."""
        return {"pairs": self.pairs}

    @abstractmethod
    def extract(self, rows: Rows, labels: Any, model: str, **options: Any) -> None:
        """Store the states of rows that probes read; ``labels`` only with ``states_of_labels``."""

    def probe_settings(self, probe: str) -> Mapping[str, Any]:  # noqa: ARG002
        """Return parameters of a probe that the kind needs."""
        return {}

    def clean(
        self,
        act: Callable[..., Verdicts],
        store: ActivationStore,
        rows: Rows,  # noqa: ARG002
        labels: Any,
        **how: Any,
    ) -> Verdicts:
        """Filter or relabel with ``act``, a function of :mod:`probekit.cleaning.predict`."""
        return act(store, labels, **how)

    def save_verdicts(self, folder: Path, verdicts: Verdicts, labels: Any) -> None:  # noqa: ARG002
        """Write verdicts of ``labels`` into a step's folder."""
        verdicts.save(folder / VERDICTS)

    def as_classes(self, labels: Any) -> WeakLabels:
        """Return labels as classes, within which a random drop draws."""
        weak: WeakLabels = labels
        return weak

    @abstractmethod
    def codes(self, labels: Any, truth: Any) -> Codes:
        """Return the class of each row to train on, and its true class; without dropped rows."""

    def prior(self, codes: Codes) -> NDArray[np.float64] | None:  # noqa: ARG002
        """Return the class shares (C,) of weak labels, for the prior-matched threshold."""
        return None

    @abstractmethod
    def grade(
        self, predicted: Sequence[Sequence[Any]], truth: Any
    ) -> tuple[list[list[NDArray[Any]]], NDArray[np.int64], tuple[str, ...]]:
        """Return predictions as :func:`probekit.experiments.scores.score_arms` reads them.

        Parameters
        ----------
        predicted
            For each arm, labels of the test rows by draw.

        Returns
        -------
        For each arm an array by draw; true class numbers (t,); names of the classes.
        """

    @abstractmethod
    def evidence(self, verdicts: Verdicts, rows: Rows, truth: Any, folder: Path) -> Evidence:
        """Return what people see of verdicts of ``rows`` in ``folder``."""


def filters(asked: Sequence[str]) -> tuple[str, ...]:
    """Return the actions that drop rows."""
    return tuple(action for action in asked if ACTIONS[action][0] == "filter")
