"""Kinds of tasks: how the rows of each are trained on, predicted, cleaned and graded."""

from __future__ import annotations

from probekit.experiments.task_kinds.base import Codes, TaskKind
from probekit.experiments.task_kinds.classes import ClassTask
from probekit.experiments.task_kinds.completions import CompletionTask
from probekit.experiments.task_kinds.preferences import PreferenceTask

__all__ = ["Codes", "TaskKind", "task_kind"]

_KINDS: dict[str, TaskKind] = {
    kind.name: kind for kind in (ClassTask(), PreferenceTask(), CompletionTask())
}


def task_kind(name: str) -> TaskKind:
    """Return a kind by its name, as :class:`probekit.tasks.Task` has it."""
    return _KINDS[name]
