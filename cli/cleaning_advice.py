"""What an audit found, or else diagnose advises, about what is being done to the labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probekit.errors import DataError, LabelsError

if TYPE_CHECKING:
    from probekit.activations.store import ActivationStore
    from probekit.labels import WeakLabels

__all__ = ["audit_file", "told_of"]


def audit_file(labels: str) -> Path:
    """Where an audit of these labels is kept unless another file is named."""
    return Path(f"{Path(labels).stem}.audit.csv")


def told_of(
    action: str, store: ActivationStore, labels: WeakLabels, options: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Say what is best here, who says so, and a warning where it is something else.

    None of differences of pairs, and of too few rows to say anything.
    """
    path = options["audit"] or audit_file(options["labels"])
    if options["audit"] is not None or path.is_file():
        found = _audited(path, action, store, labels, options)
        if found is not None:
            return found
    return None if store.differences else _advised(action, store, labels, options)


def _audited(
    path: Path,
    action: str,
    store: ActivationStore,
    labels: WeakLabels,
    options: Mapping[str, Any],
) -> dict[str, Any] | None:
    """The finding of an audit; None where it has no answer yet, or another store's rows."""
    from probekit.cleaning.audit import conclude, find_disputed, tally
    from probekit.cleaning.audit_file import AuditFile

    try:
        given = {k: options[k] for k in ("seed", "only_labelled")}
        disputed = find_disputed(store, labels, **given)
        known = dict(zip(store.ids, store.hashes, strict=True))
        answers = AuditFile(path, known, disputed.classes).answers
        finding = conclude(tally(disputed, answers), len(disputed))
    except DataError:
        if options["audit"] is not None:
            raise
        return None
    if finding.action is None:
        return None
    warning = None
    if finding.action != action:
        warning = (
            f"{action} is not what the audit found: {finding.action} is right with probability "
            f"{finding.probability:.2f}, by {finding.tally.known:g} true labels in {path}."
        )
    return {"action": finding.action, "by": str(path), "warning": warning}


def _advised(
    action: str, store: ActivationStore, labels: WeakLabels, options: Mapping[str, Any]
) -> dict[str, Any] | None:
    from probekit.cleaning.advice import advise

    try:
        advice = advise(store, labels, seed=options["seed"], only_labelled=options["only_labelled"])
    except (DataError, LabelsError):
        return None
    what: Any = action
    return {"action": advice.action, "by": "diagnose", "warning": advice.warning(what)}
