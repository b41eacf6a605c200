"""Linear probes on every layer, their penalty and the best layer chosen on validation rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from probekit.errors import DataError
from probekit.experiments.context import Context, Labels, predictions_file
from probekit.experiments.engine import Step
from probekit.experiments.probe_steps import STORE
from probekit.files import atomic_write
from probekit.safe import read_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from probekit.activations.store import ActivationStore
    from probekit.labels import WeakLabels

__all__ = ["LinearProbes", "layer_file", "linear_step", "read_probes"]

CHOICE = "choice.json"
PARTS = ("student", "validation", "test")


@dataclass(frozen=True)
class LinearProbes:
    """What one step chose; test rows had no say in it."""

    rows: int
    """Rows that every probe was trained on."""
    rows_fingerprint: str
    """16 hex digits over their ids and text hashes."""
    last: int
    """The last layer."""
    chosen: int
    """The layer of the smallest validation log-loss."""
    layers: Sequence[Mapping[str, Any]]
    """By layer: layer, l2, validation_log_loss, validation_accuracy, and log_losses by penalty."""

    def at(self, layer: int) -> Mapping[str, Any]:
        """What is known of one layer's probe."""
        return next(each for each in self.layers if each["layer"] == layer)


def layer_file(layer: int) -> str:
    """Where the predictions of a layer's probe lie in its step's folder."""
    return predictions_file(f"test-layer{layer}")


def linear_step(
    context: Context,
    name: str,
    *,
    states: Mapping[str, Step],
    labels: Labels,
    held_out: Labels,
    settings: Mapping[str, Any],
) -> Step:
    """Fit logistic probes on the student's rows, one per stored layer and penalty.

    Parameters
    ----------
    states
        Steps by part: ``student``, ``validation``, ``test``.
    labels, held_out
        Labels of the student's rows, and of the validation rows, on which the smallest log-loss
        chooses each layer's penalty and then the layer.
    settings
        ``penalties`` and ``standardize``.
    """
    truth = context.splits.truth
    given = {"student": labels, "validation": held_out}
    # A difference of two texts' states has no bias: exchanged texts, exchanged probabilities.
    intercept = context.splits.kind != "reward"
    params = {
        **settings,
        "fit_intercept": intercept,
        "labels": {part: each.name for part, each in given.items()},
        "truth": {p: truth[p].fingerprint for p, each in given.items() if each.step is None},
    }
    steps = {f"{part} states": states[part] for part in PARTS}
    for part, each in given.items():
        if each.step is not None:
            steps[f"{part} labels"] = each.step

    def make(folder: Path, places: Mapping[str, Path]) -> None:
        from probekit.activations.store import ActivationStore

        train, judge = (
            context.splits.truth[part]
            if each.step is None
            else context.read_weak(each, part, places[f"{part} labels"])
            for part, each in given.items()
        )
        train_states, validation_states, test_states = (
            ActivationStore(places[f"{part} states"] / STORE) for part in PARTS
        )
        with train_states, validation_states, test_states:
            stores = (train_states, validation_states, test_states)
            found = list(_fits(stores, train, judge, {**settings, "fit_intercept": intercept}))
            for fit in found:
                _save(fit.test, test_states, train.classes, folder / layer_file(fit.layer))
            best = min(found, key=lambda fit: (fit.loss, -fit.l2, fit.layer))
            chosen = LinearProbes(
                rows=len(train_states),
                rows_fingerprint=train_states.rows_fingerprint,
                last=max(train_states.layers),
                chosen=best.layer,
                layers=[fit.to_json() for fit in found],
            )
        with atomic_write(folder / CHOICE, "w") as file:
            file.write(json.dumps(asdict(chosen), indent=1) + "\n")

    return Step(context.title(name), "linear", params, make, inputs=steps)


def read_probes(folder: Path) -> LinearProbes:
    """Read what a step chose."""
    try:
        return LinearProbes(**read_json(folder / CHOICE))
    except (ValueError, TypeError):
        raise DataError(f"{folder / CHOICE} is damaged; remove the folder and run again.") from None


@dataclass(frozen=True, eq=False)
class _Fit:
    """One layer's probe at the penalty that validation chose."""

    layer: int
    l2: float
    loss: float
    accuracy: float
    losses: list[float]
    test: NDArray[np.float64]
    """Class probabilities (t, C) of the test rows."""

    def to_json(self) -> dict[str, Any]:
        return {
            "layer": self.layer,
            "l2": self.l2,
            "validation_log_loss": self.loss,
            "validation_accuracy": self.accuracy,
            "log_losses": self.losses,
        }


def _fits(
    stores: Sequence[ActivationStore],
    train: WeakLabels,
    judge: WeakLabels,
    settings: Mapping[str, Any],
) -> Iterator[_Fit]:
    from probekit.probes.logistic import logistic_path, logits_to_proba

    options = dict(settings)
    penalties = options.pop("penalties")
    train_states, validation_states, test_states = stores
    for layer in train_states.layers:
        path = logistic_path(train_states.layer(layer), train.probs, penalties, **options)
        validation = np.asarray(validation_states.layer(layer), np.float64)
        # Every penalty's probabilities (P, v, C).
        held = logits_to_proba(validation @ path.coef_.mT + path.intercept_[:, None])
        losses = [_cross_entropy(judge.probs, probs) for probs in held]
        best = min(range(len(losses)), key=lambda p: (losses[p], -path.penalties[p]))
        test = np.asarray(test_states.layer(layer), np.float64)
        yield _Fit(
            layer=int(layer),
            l2=float(path.penalties[best]),
            loss=losses[best],
            accuracy=float(np.mean(held[best].argmax(axis=1) == judge.hard)),
            losses=losses,
            test=logits_to_proba(test @ path.coef_[best].T + path.intercept_[best]),
        )


def _cross_entropy(labels: NDArray[np.float64], probs: NDArray[np.float64]) -> float:
    """Mean −Σ label · log P over rows; labels may be soft."""
    log_p = np.log(np.clip(probs, np.finfo(np.float64).eps, 1))
    return float(-(labels * log_p).sum(axis=1).mean())


def _save(
    probs: NDArray[np.float64], test: ActivationStore, classes: Sequence[str], path: Path
) -> None:
    from probekit.labels import WeakLabels

    found = WeakLabels(
        ids=list(test.ids), hashes=list(test.hashes), probs=probs, classes=tuple(classes)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    found.save(path)
