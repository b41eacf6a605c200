"""Trusted labels: true labels of some rows, joined to weakly labelled ones, and put to use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import clone

from probekit.cleaning.trust import FEWEST, UNKNOWN, TrustModel
from probekit.cuts import count_of, disagreement_of, largest
from probekit.errors import LabelsError, StatesError, first_few
from probekit.joins import match, other_texts
from probekit.labels import WeakLabels, load_labels
from probekit.probes.ensemble import EnsembleProbe, plan_for, stack_layers
from probekit.states import as_states, check_finite
from probekit.strings import taken

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from probekit.activations.store import ActivationStore
    from probekit.cleaning.scored import Scored
    from probekit.joins import Keys

    Trusted = WeakLabels | Mapping[str, str] | str | Path

__all__ = ["join_trusted", "other_probes", "with_trust"]

# Depths, and the share of each weak class that a second round leaves out.
SHALLOWER = (0.5, 0.75)
DOUBTED = 0.3
NEXT_TO_NOTHING = 1e-6  # the weight of a row that is left out but still predicted


def with_trust(
    scored: Scored,
    trusted: Trusted,
    states: ActivationStore | ArrayLike,
    supervisor_states: ActivationStore | ArrayLike | None = None,
) -> Scored:
    """Return scored rows whose P the trusted labels have corrected; arguments as ``score_rows``.

    Of several copies of a text one is learned from.
    """
    rows = states.keys if hasattr(states, "keys") else scored.labels.keys
    truth, notes = join_trusted(trusted, rows, scored.labels, scored.groups)
    known = np.flatnonzero(truth != UNKNOWN)
    used: dict[str, Any] = {"rows": len(known)}
    used["wrong"] = int((truth[known] != scored.labels.hard[known]).sum())
    trust, proba = None, scored.proba
    first = known[np.unique(scored.groups[known], return_index=True)[1]]
    if len(first) < FEWEST:
        notes = (*notes, _too_few(len(first)))
    else:
        learned = np.full(len(truth), UNKNOWN)
        learned[first] = truth[first]
        theirs = None if supervisor_states is None else _states_of(supervisor_states, scored)
        others = other_probes(scored, states)
        trust = TrustModel().fit(proba, scored.labels.probs, learned, scored.X, theirs, others)
        proba = trust.proba_
        # None: infinite, the probe is left as it is; JSON has no number for that.
        penalties = (trust.penalty_, trust.components_penalty_)
        used["penalties"] = [None if np.isinf(penalty) else penalty for penalty in penalties]
    provenance = {**scored.provenance, "trusted": used}
    if notes:
        provenance["notes"] = [*provenance.get("notes", ()), *notes]
    return replace(scored, truth=truth, trust=trust, proba=proba, provenance=provenance)


def other_probes(scored: Scored, states: Any) -> list[NDArray[np.float64]]:
    """P (n, C) of ensembles that may know better than the scored one; few labels tell.

    They read the layers up to half and to three quarters of the depth, where some concepts are
    clearer than at the end, or are fitted again without the 30 % of each weak class that the first
    one doubts most, which helps where much is wrong and harms where the layers do not hold the
    concept. None but for an ensemble that predicts out of fold.
    """
    if not isinstance(scored.probe, EnsembleProbe) or scored.provenance["in_sample"]:
        return []
    if scored.provenance.get("pairs"):
        return []
    Y, groups = scored.labels.probs, scored.groups
    probas = []
    if hasattr(states, "layers"):
        place = {name: i for i, name in enumerate(states.ids)}
        rows = np.array([place[name] for name in scored.labels.ids])
        read = [plan_for(states).layers]
        chosen = list(read[0]) != scored.provenance["layers"]  # a layer: then no others
        for share in () if chosen else SHALLOWER:
            layers = [i for i in states.layers if i <= share * max(states.layers)]
            if layers and (planned := plan_for(states, layers).layers) not in read:
                read.append(planned)
                probe = scored.probe.for_layers(states, layers)
                X = stack_layers(states, planned, rows)
                probas.append(probe.fit(X, Y, groups=groups).oof_proba_)
    hard = scored.labels.hard
    counts = [count_of(DOUBTED, n) for n in np.bincount(hard, minlength=Y.shape[1])]
    doubted = largest(disagreement_of(scored.proba, Y), counts, hard, ties=scored.ties).selected
    weight = np.where(doubted, NEXT_TO_NOTHING, 1.0)
    again = clone(scored.probe).fit(scored.X, np.eye(Y.shape[1])[hard], weight, groups)
    return [*probas, again.oof_proba_]


def join_trusted(
    trusted: Trusted, rows: Keys, labels: WeakLabels, groups: NDArray[np.int64]
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """True class numbers (n,) of weakly labelled rows, -1 where not known, and notes.

    Parameters
    ----------
    trusted
        True labels, or a file of them, or id -> class.
    rows
        What all rows are joined by; those without a weak label among them are left out.
    labels, groups
        Weak labels, and numbers of rows (n,), equal for copies of one text.

    Raises
    ------
    LabelsError
        If no trusted row is known here, one has another text or another class than the weak
        labels can have, copies of one text have different true labels, or all rows are trusted
        with the weak labels they have.
    """
    if isinstance(trusted, Mapping):
        trusted = _of_mapping(trusted)
    elif not isinstance(trusted, WeakLabels):
        trusted = load_labels(trusted, one_class=True)
    aligned = trusted.align(rows, only_labelled=True).labels
    place = {name: i for i, name in enumerate(labels.ids)}
    truth = np.full(len(labels), UNKNOWN, np.int64)
    without = []
    for name, code in zip(aligned.ids, aligned.codes(labels.classes).tolist(), strict=True):
        if name in place:
            truth[place[name]] = code
        else:
            without.append(name)
    known = np.flatnonzero(truth != UNKNOWN)
    pairs = np.unique(np.stack([groups[known], truth[known]], axis=1), axis=0)
    twice = pairs[:-1][pairs[1:, 0] == pairs[:-1, 0], 0]
    if len(twice):
        names = [labels.ids[i] for i in known[groups[known] == twice[0]].tolist()]
        raise LabelsError(
            f"{trusted.source} gives copies of one text different true labels (ids "
            f"{first_few(names)}; {len(twice)} such texts); correct them, or leave them out."
        )
    notes = list(aligned.notes)
    if (truth[known] == labels.hard[known]).all():
        if len(known) == len(truth):
            raise LabelsError(
                f"{trusted.source} has the weak label of each of the {len(truth):,} rows; name a "
                "file of true labels, or leave the trusted labels out."
            )
        if len(known) >= FEWEST:
            notes.append(
                f"All {len(known):,} labels of {trusted.source} are the weak ones; unless people "
                "gave them, leave them out, since they teach that no label is wrong."
            )
    if without:
        notes.append(
            f"{trusted.source} has {len(without)} rows without a weak label (ids "
            f"{first_few(without)}); they are left out."
        )
    return truth, tuple(notes)


def _too_few(n: int) -> str:
    return (
        f"{n} trusted texts are too few to correct the probe ({FEWEST} are needed); their rows get "
        "their true labels, and nothing else changes."
    )


def _of_mapping(answers: Mapping[str, str]) -> WeakLabels:
    """Labels of id -> class."""
    if not answers:
        raise LabelsError("There are no trusted labels; give at least one, or leave them out.")
    classes = tuple(dict.fromkeys(map(str, answers.values())))
    codes = [classes.index(str(name)) for name in answers.values()]
    ids = list(map(str, answers))
    return WeakLabels(ids, None, np.eye(len(classes))[codes], classes, "the trusted labels")


def _states_of(source: Any, scored: Scored) -> NDArray[Any]:
    """States (n, d) of the scored rows: the last layer of a store, or an array."""
    if not hasattr(source, "layer"):
        X: NDArray[Any] = as_states(source)
        if X.ndim != 2 or len(X) != len(scored.X):
            raise StatesError(
                f"supervisor_states of shape {X.shape} are not of the {len(scored.X)} rows that "
                "have a weak label."
            )
        check_finite(X, scored.labels.ids, name="supervisor_states")
        return X
    rows, layer = scored.labels.keys, source.layers[-1]
    place = match(rows, source.keys).place
    without = taken(rows.ids, np.flatnonzero(place < 0))
    if len(without):
        raise StatesError(
            f"{source.path} lacks {len(without)} of {len(rows)} rows (ids {first_few(without)}); "
            "extract the supervisor's states of the same rows."
        )
    if other := other_texts(rows, source.keys, place):
        raise StatesError(
            f"{source.path} has another text in {len(other)} rows (ids {first_few(other)}); "
            "extract the supervisor's states of the same rows."
        )
    X = source.read(layer, place)
    check_finite(X, rows.ids, name=f"Layer {layer} of {source.path}")
    return X
