"""Tasks that ask which of two completions is better: scores of single texts, differences of states.

P(second) = σ(M₂ − M₁), Burns et al. 2023, https://arxiv.org/abs/2312.09390.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from probekit.data import Rows
from probekit.errors import UsageError
from probekit.experiments.task_kinds.classes import ClassTask
from probekit.probes.registry import pair_settings

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["PreferenceTask"]


class PreferenceTask(ClassTask):
    """Preference pairs; the two classes are the first and the second completion."""

    name: ClassVar[str] = "reward"
    objective: ClassVar[str] = "reward"
    texts_per_row: ClassVar[int] = 2
    pairs: ClassVar[bool] = True

    def check_bag_of_words(self, task: str) -> None:
        """A bag of words has no score of one text."""
        raise UsageError(
            f"A bag of words cannot compare the two completions of {task}; name a model as the "
            "weak supervisor."
        )

    def texts(self, rows: Rows) -> Rows:
        """Return every distinct text once: as in training, a model never reads two beside another.

        Rows of one pair form a group, so that held-out texts are of other pairs.
        """
        pair_of: dict[str, str] = {}
        for name, content in zip(rows.ids, rows.contents(), strict=True):
            for text in content:
                pair_of.setdefault(str(text), name)
        texts = Rows({"text": list(pair_of)}, source=rows.source)
        texts.groups = list(pair_of.values())
        return texts

    def extract(self, rows: Rows, labels: Any, model: str, **options: Any) -> None:  # noqa: ARG002
        """Store the differences of the two texts' states."""
        from probekit.activations.extraction import extract_differences

        extract_differences(rows, model, **options).close()

    def probe_settings(self, probe: str) -> Mapping[str, Any]:
        """A difference of two texts' states has no bias."""
        return pair_settings(probe)
