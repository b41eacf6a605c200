"""Rows with weak labels and a probe's probabilities for them: what filter and relabel act on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from probekit.cleaning.filter import check_amount, rows_to_drop
from probekit.cleaning.relabel import check_form, new_labels
from probekit.cleaning.trust import UNKNOWN
from probekit.cuts import disagreement_of
from probekit.errors import UsageError
from probekit.probes.neighbors import nearest_others
from probekit.verdicts import Verdicts

if TYPE_CHECKING:
    from probekit.cleaning.trust import TrustModel
    from probekit.cuts import Cut
    from probekit.labels import WeakLabels

__all__ = ["OWN_RULE", "Scored"]

OWN_RULE = (
    "TopoFilter drops rows by its own rule; set a contamination in (0, 1) with variant 'eleuther' "
    "or rank, or use another probe."
)


@dataclass(frozen=True, eq=False)
class Scored:
    """Rows with weak labels, and a probe's probabilities for them."""

    X: NDArray[Any]
    """States (n, d)."""
    groups: NDArray[np.int64]
    """Rows of one number are exact duplicates (n,)."""
    labels: WeakLabels
    """Weak labels in the order of the rows."""
    hashes: Sequence[str]
    """n text hashes, "" where unknown."""
    proba: NDArray[np.float64]
    """P (n, C), out of fold unless asked otherwise."""
    fold: NDArray[np.int16]
    """Fold whose fit predicted the row (n,), -1 if only the row itself was left out."""
    probe: Any
    """The fitted probe."""
    ties: NDArray[Any]
    """Order of equal rows (n,), smaller first: see :mod:`probekit.cuts`."""
    cut: Cut | None = None
    """The rows that the probe itself drops, if it is a filter."""
    form: str = "label"
    """Form of the disagreement."""
    truth: NDArray[np.int64] | None = None
    """Class numbers of the trusted rows (n,), -1 of all others; None without trusted labels."""
    trust: TrustModel | None = None
    """What corrected ``proba``; None without enough trusted labels."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Settings and fingerprints that the verdicts record."""

    @property
    def disagreement(self) -> NDArray[np.float64]:
        """Disagreement of probe and weak label (n,): :mod:`probekit.cuts`."""
        return disagreement_of(self.proba, self.labels.probs, self.form)

    def filter(
        self,
        *,
        contamination: float | Literal["auto", "confident"] | None = None,
        per_class: bool = True,
        threshold: float | None = None,
    ) -> Verdicts:
        """Keep the rows whose weak label agrees with the probe.

        Arguments as :func:`probekit.filter_labels`. A probe that drops rows itself
        (TopoFilter) did so when it was fitted.
        """
        check_amount(contamination, threshold, per_class=per_class)
        action: dict[str, Any] = {"action": "filter"}
        if self.cut is not None:
            if threshold is not None or contamination not in (
                None,
                getattr(self.probe, "contamination", None),
            ):
                raise UsageError(OWN_RULE)
            keep = ~self.cut.selected
            action["ties"] = self.cut.tie_counts()
        elif threshold is not None:
            keep = self.disagreement <= threshold
            action["threshold"] = threshold
        else:
            cut, amount = rows_to_drop(
                self.disagreement,
                self.proba,
                self.labels,
                contamination,
                per_class=per_class,
                ties=self.ties,
                near=lambda: nearest_others(self.X, 2, groups=self.groups).index,
                right=None if self.trust is None else self.trust.right_,
            )
            keep = ~cut.selected
            action |= amount | {"ties": cut.tie_counts()}
        return self._verdicts(self.labels.probs, keep, action)

    def relabel(
        self,
        *,
        blend: float | None = None,
        hard: bool = False,
        threshold: float | None = None,
        only_above: float | None = None,
        prior: Sequence[float] | None = None,
        flip: float | None = None,
    ) -> Verdicts:
        """Give every row a new label; arguments as :func:`probekit.relabel`."""
        check_form(blend, threshold, only_above, prior, flip, hard=hard)
        label, form = new_labels(
            self.proba,
            self.labels,
            blend=blend,
            hard=hard,
            threshold=threshold,
            ties=self.ties,
            disagreement=self.disagreement,
            prior=prior,
            flip=flip,
            calibrated=self.trust is not None,
        )
        action = {"action": "relabel", **form}
        if only_above is not None:
            above = self.disagreement > only_above
            label = np.where(above[:, None], label, self.labels.probs)
            action["only_above"] = only_above
        return self._verdicts(label, np.ones(len(label), dtype=bool), action)

    def _verdicts(
        self, label: NDArray[np.float64], keep: NDArray[np.bool_], action: dict[str, Any]
    ) -> Verdicts:
        if self.truth is not None:  # people have seen these rows
            known = self.truth != UNKNOWN
            keep = keep | known
            label = np.where(known[:, None], np.eye(label.shape[1])[self.truth], label)
        return Verdicts(
            ids=self.labels.ids,
            hashes=self.hashes,
            classes=self.labels.classes,
            weak=self.labels.probs.astype(np.float32),
            probe=self.proba.astype(np.float32),
            label=label.astype(np.float32),
            keep=keep,
            weight=np.ones(len(keep), dtype=np.float32),
            disagreement=self.disagreement.astype(np.float32),
            fold=self.fold.astype(np.int16),
            provenance={**self.provenance, **action},
        )
