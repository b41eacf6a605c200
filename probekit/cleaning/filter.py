"""Filter: leave out the rows whose weak label the probe disagrees with most."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from probekit.cleaning.noise import confident_shares, hoc, prune_by_noise_rate
from probekit.cleaning.scoring import Scored, score_rows
from probekit.cuts import Cut, count_of, largest
from probekit.errors import UsageError
from probekit.kinds import ACTION_KINDS, check, checked
from probekit.probes.registry import make_probe, probe_class

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray

    from probekit.activations.store import ActivationStore
    from probekit.labels import WeakLabels
    from probekit.verdicts import Verdicts

__all__ = ["filter_labels"]

PER_CLASS_SHARE = 0.2
GLOBAL_SHARE = 0.1
ESTIMATED = ("auto", "confident")


def filter_labels(
    states: ActivationStore | ArrayLike,
    labels: WeakLabels | ArrayLike | str | Path,
    *,
    probe: Any = None,
    layer: int | None = None,
    contamination: float | Literal["auto", "confident"] | None = None,
    per_class: bool = True,
    threshold: float | None = None,
    in_sample: bool = False,
    n_folds: int = 5,
    seed: int = 0,
    only_labelled: bool = False,
    disagreement: Literal["label", "distance"] | None = None,
    ties: Literal["hash", "index"] = "hash",
) -> Verdicts:
    """Keep the rows whose weak label agrees with a probe that has not seen it.

    Parameters
    ----------
    states, labels, probe, layer, in_sample, n_folds, seed, only_labelled, ties
        As :func:`probekit.cleaning.scoring.score_rows`.
    disagreement
        As there; by default ``"label"``. A TopoFilter probe is told, if it is given here.
    contamination
        Share to drop, in (0, 1): the ⌊c · n⌋ most disagreeing rows; by default 0.2 of each weak
        class, or 0.1 of all rows (there ``int(c * n)`` in floats, as EleutherAI). ``"auto"``: for
        each class the smaller of two estimates of how much cannot be told from other classes.
        ``"confident"``: confident learning's count for each pair of classes, by margin. A
        TopoFilter probe takes a share as its own.
    per_class
        Drop within each weak class rather than over all rows (EleutherAI).
    threshold
        Instead of a share: drop where the disagreement exceeds it.

    Returns
    -------
    Verdicts whose ``label`` is the weak label; ``provenance`` says what was done.
    """
    check(contamination=contamination, per_class=per_class)
    _check_amount(contamination, threshold)
    probe = _with_amount(
        probe, contamination, threshold, per_class=per_class, disagreement=disagreement
    )
    scored = score_rows(
        states,
        labels,
        probe,
        layer=layer,
        in_sample=in_sample,
        n_folds=n_folds,
        seed=seed,
        only_labelled=only_labelled,
        disagreement=disagreement or "label",
        ties=ties,
    )
    action: dict[str, Any] = {"action": "filter"}
    if scored.cut is not None:
        keep = ~scored.cut.taken
        action["ties"] = scored.cut.told()
    elif threshold is not None:
        keep = scored.disagreement <= threshold
        action["threshold"] = threshold
    else:
        choose = _confident if contamination == "confident" else _by_share
        cut, amount = choose(scored, contamination, per_class=per_class)
        keep = ~cut.taken
        action |= amount | {"ties": cut.told()}
    return scored.verdicts(label=scored.labels.probs, keep=keep, action=action)


def _by_share(
    scored: Scored, contamination: float | str | None, *, per_class: bool
) -> tuple[Cut, dict[str, Any]]:
    hard, n_classes = scored.labels.hard, len(scored.labels.classes)
    size = np.bincount(hard, minlength=n_classes)
    told: dict[str, Any] = {"per_class": per_class, "contamination": contamination}
    if contamination == "auto":
        estimates = _estimates(scored)
        told["estimates"] = {name: share.tolist() for name, share in estimates.items()}
        shares = np.minimum(estimates["hoc"], estimates["confident_joint"])
    else:
        share = PER_CLASS_SHARE if per_class else GLOBAL_SHARE
        told["contamination"] = share if contamination is None else contamination
        shares = np.full(n_classes, told["contamination"])
    if per_class:
        counts = [count_of(share, n) for share, n in zip(shares, size, strict=True)]
        return largest(scored.disagreement, counts, hard, ties=scored.ties), told
    # The published filter counts int(c * n) in floats: 28 of 100 rows for 0.29.
    estimated = contamination == "auto"
    count = count_of(float(shares @ size), 1) if estimated else int(float(shares[0]) * len(hard))
    return largest(scored.disagreement, count, ties=scored.ties), told


def _confident(
    scored: Scored, contamination: float | str | None, *, per_class: bool
) -> tuple[Cut, dict[str, Any]]:
    if not per_class:
        raise UsageError(
            "Confident learning counts within each weak class; leave --global (per_class=False) "
            "out."
        )
    held, number = np.unique(scored.labels.hard, return_inverse=True)
    cut = prune_by_noise_rate(number.ravel(), scored.proba[:, held], ties=scored.ties)
    return cut, {"per_class": True, "contamination": contamination}


def _estimates(scored: Scored) -> dict[str, NDArray[np.float64]]:
    """Two estimates of the share of each weak class that cannot be told from another class."""
    from probekit.probes.neighbors import nearest_others

    hard, n_classes = scored.labels.hard, len(scored.labels.classes)
    size = np.bincount(hard, minlength=n_classes)
    held = np.flatnonzero(size)  # classes may have lost all their rows to the join
    number = np.searchsorted(held, hard)
    near = nearest_others(scored.X, 2, groups=scored.groups).index
    found = {
        "hoc": hoc(number, near, len(held)).shares,
        "confident_joint": confident_shares(number, scored.proba[:, held]),
    }
    shares = {name: np.zeros(n_classes) for name in found}
    for name, share in found.items():
        shares[name][held] = share
    return shares


def _check_amount(contamination: float | str | None, threshold: float | None) -> None:
    if contamination is not None and threshold is not None:
        raise UsageError("Give a contamination or a threshold, not both.")
    checked(("threshold",), ACTION_KINDS["filter"]["threshold"], threshold)


def _with_amount(
    probe: Any,
    contamination: float | str | None,
    threshold: float | None,
    *,
    per_class: bool,
    disagreement: str | None,
) -> Any:
    """Hand the amount to a TopoFilter probe, which decides itself; leave others as they are."""
    found = probe_class(probe) if isinstance(probe, str) else type(probe)
    if not hasattr(found, "keep_"):
        return probe
    from sklearn.base import clone

    probe = make_probe(probe) if isinstance(probe, str) else clone(probe)
    if contamination in ESTIMATED or threshold is not None:
        raise UsageError(
            "TopoFilter drops rows by its own rule; give it a contamination in (0, 1) with "
            "variant 'eleuther' or rank, or use another probe."
        )
    if contamination is not None:
        probe.set_params(contamination=contamination)
    if disagreement is not None:
        probe.set_params(disagreement=disagreement)
    if probe.decides_itself and (contamination is not None or not per_class):
        what = "share to drop" if contamination is not None else "choice of all rows or each class"
        raise UsageError(
            f"TopoFilter's variant 'paper' has no {what}; add --rank (rank=True), or use "
            "--variant eleuther."
        )
    return probe
