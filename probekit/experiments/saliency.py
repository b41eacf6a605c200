"""``probekit saliency``: how salient a concept is in a model, before and after finetuning.

Linear probes against finetuning on the same rows, Burns et al. 2023, section 5.2.3,
https://arxiv.org/abs/2312.09390. Steps are those of ``probekit run`` wherever it has them; linear
probes are fitted on every layer, penalty and best layer chosen on validation rows.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from probekit.errors import DataError, OutputExistsError, UsageError
from probekit.experiments.cache import Step
from probekit.experiments.config import FINETUNE, RunConfig
from probekit.experiments.folder import CONFIG, open_folder
from probekit.experiments.run import Experiment, Run
from probekit.experiments.saliency_scores import (
    AFTER_TRUTH,
    BARS,
    CHOSEN,
    COLUMNS,
    PROBES,
    Judged,
    summarize_pairs,
)
from probekit.experiments.scores import plain_numbers
from probekit.experiments.steps import STORE, Context, Labels, predictions_file, states_step
from probekit.experiments.weak_to_strong import Pair
from probekit.files import atomic_write
from probekit.kinds import Flag, Kind, Layers
from probekit.labels import WeakLabels, load_labels
from probekit.metrics import auroc, cross_entropy
from probekit.safe import read_json
from probekit.settings import configuration, read_settings

if TYPE_CHECKING:
    from probekit.activations.store import ActivationStore

__all__ = [
    "Bars",
    "Saliency",
    "SaliencyConfig",
    "layer_file",
    "open_saliency_folder",
    "read_probes",
]

TRUTH = Labels()
PARTS = ("student", "validation", "test")
# Choice of a step of linear probes.
CHOICE = "choice.json"
PROBE_SETTINGS = ("l2", "penalties", "standardize")


@configuration
class SaliencyConfig(RunConfig):
    """Fields of a run; those about cleaning labels are not used."""

    command: ClassVar[str] = "saliency"

    layers: Annotated[str, Layers()] = "all"
    """Layers that the probes read, as for ``extract --layers``; the last is always read."""

    after_truth: Annotated[bool, Flag()] = False
    """Also probe the layers of the model finetuned on ground truth, which is kept on disk."""

    def __post_init__(self) -> None:
        """Raise UsageError if the fields do not fit together; nothing is read."""
        super().__post_init__()
        if self.chain:
            raise UsageError("saliency compares a weak and a strong model; leave chain out.")
        if self.student != (FINETUNE,) or self.weak_labels is not None:
            raise UsageError(
                "saliency compares finetuned students of a weak supervisor; leave student and "
                "weak_labels out."
            )
        if not self.validation_share and self.validation_rows is None:
            raise UsageError(
                "saliency chooses penalties and layers on validation rows; give a "
                "validation_share above 0."
            )

    @staticmethod
    def probe_kinds(name: str) -> Mapping[str, Kind]:
        """Return what ``probe_options`` may hold; for the logistic probe, settings of its path."""
        kinds = RunConfig.probe_kinds(name)
        return {key: kinds[key] for key in PROBE_SETTINGS} if name == "logreg" else kinds

    @property
    def extracted(self) -> str:
        """Return the layers to extract, the last one included."""
        return self.layers if self.layers in ("all", "last") else f"{self.layers},last"

    @property
    def probe(self) -> dict[str, Any]:
        """Return settings of the linear probes: penalties to choose from, standardize."""
        from probekit.probes.logistic import PENALTIES

        given: Mapping[str, Any] = self.probe_options.get("logreg", {})
        penalties: Sequence[float] | None = given.get("penalties")
        if given.get("l2", "auto") != "auto":
            penalties = [given["l2"]]
        numbers = [float(value) for value in (PENALTIES if penalties is None else penalties)]
        return {"penalties": numbers, "standardize": given.get("standardize", True)}


def open_saliency_folder(folder: Path, config: SaliencyConfig, *, make: bool = True) -> None:
    """Make the folder of a comparison, or resume one of the same configuration.

    ``make=False`` only checks.

    Raises
    ------
    OutputExistsError
        If the folder holds a run, another comparison or other files.
    """
    if (folder / CONFIG).is_file() and "layers" not in read_settings(folder / CONFIG):
        raise OutputExistsError(
            f"{folder} holds a `probekit run`; name another folder beside it with -o, where the "
            "steps that both share are not done again."
        )
    open_folder(folder, config, make=make)


@dataclass(frozen=True, eq=False)
class Bars:
    """Steps behind the five bars of one task, pair and seed."""

    pair: Pair

    @property
    def context(self) -> Context:
        """Rows and seed."""
        return self.pair.context

    @property
    def config(self) -> SaliencyConfig:
        """Return the configuration."""
        config = self.context.config
        assert isinstance(config, SaliencyConfig)
        return config

    @cached_property
    def before(self) -> dict[str, Step]:
        """States of the strong model without finetuning, by part."""
        return self._states(self.pair.base)

    @cached_property
    def after(self) -> dict[str, Step]:
        """States of the student that was finetuned on weak labels, by part."""
        return self._states(self.pair.kept)

    @cached_property
    def after_truth(self) -> dict[str, Step]:
        """States of the model that was finetuned on ground truth, by part."""
        return self._states(self.pair.kept_ceiling)

    def _states(self, base: Step | None) -> dict[str, Step]:
        strong, layers = self.pair.strong, self.config.extracted
        return {
            part: states_step(self.context, strong, part, base, layers=layers) for part in PARTS
        }

    @cached_property
    def probes(self) -> dict[str, Step]:
        """Bars 1, 2 and 4, and with ``after_truth`` one more: each a probe per layer."""
        weak, held_out = self.pair.weak_labels, self.pair.held_out(self.pair.floor)
        assert held_out is not None  # the configuration has validation rows
        asked = {
            "probe_weak": (self.before, weak, held_out),
            "probe_truth": (self.before, TRUTH, TRUTH),
            "finetune_weak_probe_truth": (self.after, TRUTH, TRUTH),
        }
        names = dict(BARS)
        if self.config.after_truth:
            asked[AFTER_TRUTH] = (self.after_truth, TRUTH, TRUTH)
            names[AFTER_TRUTH] = "finetune, ground truth, then linear probe, ground truth"
        return {
            key: linear_step(
                self.context,
                f"{names[key]}, {self.context.describe(self.pair.strong).label}",
                states=states,
                labels=labels,
                held_out=chosen_on,
                settings=self.config.probe,
            )
            for key, (states, labels, chosen_on) in asked.items()
        }

    @cached_property
    def finetuned(self) -> dict[str, Step]:
        """Bars 3 and 5; bar 3 is the model whose states bar 4 reads."""
        ceiling = self.pair.kept_ceiling if self.config.after_truth else self.pair.ceiling
        return {"finetune_weak": self.pair.kept, "finetune_truth": ceiling}

    @property
    def steps(self) -> list[Step]:
        """Return the weak supervisor and all bars, in the order of the figure."""
        bars = self.probes | self.finetuned
        more = [step for key, step in bars.items() if key not in BARS]
        return [self.pair.floor, *(bars[key] for key in BARS), *more]


class Saliency(Run):
    """The comparisons of a configuration: every task, pair and seed; arguments as of ``Run``."""

    config: SaliencyConfig

    @cached_property
    def bars(self) -> list[Bars]:
        """One Bars per experiment, in their order."""
        pairs = [each.source for each in self.experiments]
        return [Bars(pair) for pair in pairs if isinstance(pair, Pair)]

    def all_steps(self, *, planned: bool = False) -> list[Step]:  # noqa: ARG002 (nothing depends on it)
        """Return every step that the figures need."""
        return [step for bars in self.bars for step in bars.steps]

    def first_steps(self) -> list[Step]:
        """Return no steps: none decides which steps follow."""
        return []

    def _scored(self, folder: Path) -> dict[str, Any]:
        """Return pairs of models, results of each seed and failures; write predictions."""
        scored, failures = [], self.left_out
        for experiment, bars in zip(self.experiments, self.bars, strict=True):
            failed = self._failed(bars)
            failures += failed
            if not failed:
                scored.append(self._compare(experiment, bars, folder))
        return {
            "pairs": list(summarize_pairs(scored)),
            "results": [result for result, _ in scored],
            "failures": [*failures, *(each for result, _ in scored for each in result["alarms"])],
        }

    def _failed(self, bars: Bars) -> list[str]:
        """Return why a task, pair and seed cannot be compared: all five bars are needed."""
        reasons = {step.name: self.cache.failure(step) for step in bars.steps}
        return [f"{name}: failed: {reason}" for name, reason in reasons.items() if reason]

    def _compare(
        self, experiment: Experiment, bars: Bars, folder: Path
    ) -> tuple[dict[str, Any], Judged]:
        """Return the record of one task, pair and seed, and which test rows each bar gets right."""
        context = bars.context
        truth, rows = context.splits.truth["test"], context.splits.rows
        probes = {key: read_probes(self.cache.path(step)) for key, step in bars.probes.items()}
        files = self._copy(bars, probes, self._predictions_folder(experiment, folder))
        predicted = {key: self._predicted(bars, path) for key, path in files.items()}
        right = {key: (each.hard == truth.hard).astype(float) for key, each in predicted.items()}
        constant = {key: np.unique(each.hard) for key, each in predicted.items() if key in BARS}
        task, weak, strong = experiment.group
        record = {
            "task": task,
            "weak": weak,
            "strong": strong,
            "seed": context.seed,
            "classes": list(context.splits.classes),
            "rows": {name: len(each) for name, each in rows.items()},
            "chance": float(np.bincount(truth.hard).max() / len(truth)),
            "weak_accuracy": self._accuracy(bars, self._test(bars.pair.floor)),
            "label_accuracy": self._label_accuracy(bars),
            "accuracy": {key: float(values.mean()) for key, values in right.items()},
            "auroc": {key: auroc(truth.hard, each.probs) for key, each in predicted.items()},
            "probes": {key: _probe_record(each) for key, each in probes.items()},
            "layers": {
                key: [
                    self._accuracy(bars, self._layer_file(bars, key, each["layer"]))
                    for each in chosen.layers
                ]
                for key, chosen in probes.items()
            },
            "alarms": [
                f"{context.title(BARS[key])}: collapsed: every test row gets the class "
                f"{context.splits.classes[int(codes[0])]!r}"
                for key, codes in constant.items()
                if len(codes) == 1 and len(np.unique(truth.hard)) > 1
            ],
            "seconds": {step.name: self.cache.seconds(step) for step in bars.steps},
        }
        columns = np.column_stack([right[name] for name in COLUMNS])
        return plain_numbers(record), Judged(columns, rows["test"].fingerprint)

    def _copy(
        self, bars: Bars, probes: Mapping[str, LinearProbes], folder: Path
    ) -> dict[str, Path]:
        """Copy every bar's test predictions into the folder of the comparison."""
        files = {key: self._test(step) for key, step in bars.finetuned.items()}
        for key in PROBES:
            files[key] = self._layer_file(bars, key, probes[key].last)
            files[key + CHOSEN] = self._layer_file(bars, key, probes[key].chosen)
        for key, path in files.items():
            shutil.copyfile(path, folder / f"{key}.parquet")
        return files

    def _test(self, step: Step) -> Path:
        return self.cache.path(step) / predictions_file("test")

    def _layer_file(self, bars: Bars, key: str, layer: int) -> Path:
        return self.cache.path(bars.probes[key]) / layer_file(layer)

    def _predicted(self, bars: Bars, path: Path) -> WeakLabels:
        """Read a file's predictions of the test rows, in their order."""
        rows = bars.context.splits.rows["test"]
        predicted = load_labels(path, one_class=True)
        return predicted.align(rows.keys, rows_name="the test rows").labels

    def _accuracy(self, bars: Bars, path: Path) -> float:
        truth = bars.context.splits.truth["test"]
        return float(np.mean(self._predicted(bars, path).hard == truth.hard))

    def _label_accuracy(self, bars: Bars) -> float:
        labels = bars.pair.weak_labels
        assert labels.step is not None
        weak = bars.context.read(labels, "student", self.cache.path(labels.step))
        return float(np.mean(weak.hard == bars.context.splits.truth["student"].hard))


def _probe_record(probes: LinearProbes) -> dict[str, Any]:
    """Return a bar's probes as a record has them."""
    return {
        "rows": probes.rows,
        "rows_fingerprint": probes.rows_fingerprint,
        "last": {"layer": probes.last, "l2": probes.at(probes.last)["l2"]},
        "chosen": {"layer": probes.chosen, "l2": probes.at(probes.chosen)["l2"]},
        "layers": [dict(each) for each in probes.layers],
    }


@dataclass(frozen=True)
class LinearProbes:
    """The choice of one step, made without the test rows."""

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
        """Return the entry of one layer's probe."""
        return next(each for each in self.layers if each["layer"] == layer)


def layer_file(layer: int) -> str:
    """Return the path of a layer's predictions in its step's folder."""
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

        train, validation = (
            context.splits.truth[part]
            if each.step is None
            else context.read(each, part, places[f"{part} labels"])
            for part, each in given.items()
        )
        train_states, validation_states, test_states = (
            ActivationStore(places[f"{part} states"] / STORE) for part in PARTS
        )
        with train_states, validation_states, test_states:
            stores = (train_states, validation_states, test_states)
            fits = list(_fits(stores, train, validation, {**settings, "fit_intercept": intercept}))
            for fit in fits:
                _save(fit.test, test_states, train.classes, folder / layer_file(fit.layer))
            best = min(fits, key=lambda fit: (fit.loss, -fit.l2, fit.layer))
            chosen = LinearProbes(
                rows=len(train_states),
                rows_fingerprint=train_states.rows_fingerprint,
                last=max(train_states.layers),
                chosen=best.layer,
                layers=[fit.to_json() for fit in fits],
            )
        with atomic_write(folder / CHOICE, "w") as file:
            file.write(json.dumps(asdict(chosen), indent=1) + "\n")

    return Step(context.title(name), "linear", params, make, inputs=steps)


def read_probes(folder: Path) -> LinearProbes:
    """Read the choice of a step."""
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
    held_out: WeakLabels,
    settings: Mapping[str, Any],
) -> Iterator[_Fit]:
    from probekit.probes.logistic_path import logistic_path, logits_to_proba

    options = dict(settings)
    penalties = options.pop("penalties")
    train_states, validation_states, test_states = stores
    for layer in train_states.layers:
        path = logistic_path(train_states.layer(layer), train.probs, penalties, **options)
        validation = np.asarray(validation_states.layer(layer), np.float64)
        # Every penalty's probabilities (P, v, C).
        proba = logits_to_proba(validation @ path.coef_.mT + path.intercept_[:, None])
        losses = cross_entropy(held_out.probs, proba).mean(axis=1).tolist()
        best = min(range(len(losses)), key=lambda p: (losses[p], -path.penalties[p]))
        test = np.asarray(test_states.layer(layer), np.float64)
        yield _Fit(
            layer=int(layer),
            l2=float(path.penalties[best]),
            loss=losses[best],
            accuracy=float(np.mean(proba[best].argmax(axis=1) == held_out.hard)),
            losses=losses,
            test=logits_to_proba(test @ path.coef_[best].T + path.intercept_[best]),
        )


def _save(
    probs: NDArray[np.float64], test: ActivationStore, classes: Sequence[str], path: Path
) -> None:
    predicted = WeakLabels(
        ids=list(test.ids), hashes=list(test.hashes), probs=probs, classes=tuple(classes)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    predicted.save(path)
