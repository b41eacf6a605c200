"""The cached steps of a run, and what all steps of one task and seed share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from probekit.activations.spec import parse_layers
from probekit.cuts import by_key, largest
from probekit.errors import DataError, UsageError
from probekit.experiments.cache import Step
from probekit.experiments.config import ACTIONS, RunConfig
from probekit.experiments.splits import Splits
from probekit.experiments.task_kinds import TaskKind, task_kind
from probekit.experiments.task_kinds.base import VERDICTS
from probekit.labels import WeakLabels
from probekit.probes.registry import make_probe, probe_spec
from probekit.safe import read_json
from probekit.students.config import FinetuneConfig
from probekit.students.folder import plain_settings
from probekit.verdicts import NO_FOLD, Verdicts

__all__ = [
    "STORE",
    "VERDICTS",
    "Context",
    "Labels",
    "Model",
    "bag_of_words_step",
    "describe_model",
    "finetune_step",
    "given_labels_step",
    "language_model_step",
    "linear_student_step",
    "predictions_file",
    "random_step",
    "random_verdicts",
    "states_step",
    "verdicts_step",
]

# File of a step's folder.
STORE = "acts.h5"
# Parameters of probes that are a number of neighbours.
NEIGHBORS = ("k", "k_cc", "k_zeta")


class Model(NamedTuple):
    """Properties of a model, known before its weights are loaded."""

    label: str
    """Name without its folder or organisation."""
    weights: str
    """Fingerprint, the same in every folder."""
    parameters: int
    """Number of parameters, without a head."""
    depth: int
    width: int
    longest: int | None = None
    """Maximum number of tokens of a row; None: any number."""
    writes: bool = True
    """Whether it writes text from left to right."""


@cache
def describe_model(name: str, revision: str | None = None) -> Model:
    """Describe a model from its configuration and tokenizer, opened once per process."""
    from probekit.activations.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(name, revision=revision)
    parameters = sum(parameter.numel() for parameter in checkpoint.skeleton.parameters())
    width = max(checkpoint.widths.values())
    longest = checkpoint.position_limit
    try:
        writes = checkpoint.causal
    except UsageError:  # a family that is not known to be either
        writes = False
    label, weights, depth = checkpoint.label, checkpoint.weights, checkpoint.depth
    return Model(label, weights, parameters, depth, width, longest, writes)


def predictions_file(part: str) -> str:
    """Return the path of a student's predictions of a part in its step's folder."""
    return f"model/predictions/{part}.parquet"


@dataclass(frozen=True, eq=False)
class Labels:
    """Source of labels: a file of another step, or the ground truth."""

    step: Step | None = None
    """None: ground truth."""
    file: str = ""
    """Path in the step's folder."""

    @property
    def name(self) -> str:
        """Return the name that a step's parameters have."""
        return self.file if self.step is not None else "ground truth"


@dataclass(frozen=True, eq=False)
class Context:
    """One task, one seed."""

    config: RunConfig
    splits: Splits
    seed: int
    describe: Callable[..., Model] = describe_model
    """Describes a model by its name and revision."""

    @property
    def kind(self) -> TaskKind:
        """How rows of the task are trained on, predicted, cleaned and graded."""
        return task_kind(self.splits.kind)

    def title(self, text: str) -> str:
        """Return a step's name with task and seed."""
        return f"{self.splits.task}, seed {self.seed}: {text}"

    def read(self, labels: Labels, part: str, folder: Path | None) -> Any:
        """Read labels of a part, in the order of its rows; verdicts as they are."""
        if labels.step is None:
            return self.splits.truth[part]
        assert folder is not None
        return self.kind.read(folder / labels.file, self.splits.rows[part], part)


def bag_of_words_step(context: Context, predict: Sequence[str]) -> Step:
    """Train logistic regression on the word counts of the supervisor's texts, with ground truth.

    It predicts the parts of ``predict``. scikit-learn's CountVectorizer and LogisticRegression, at
    their defaults.
    """
    splits = context.splits
    context.kind.check_bag_of_words(splits.task)

    def make(folder: Path, given: Mapping[str, Path]) -> None:  # noqa: ARG001 (it reads no step)
        from sklearn.feature_extraction.text import CountVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        from probekit.cleaning.review import plain_text

        texts = {
            part: [plain_text(content) for content in splits.rows[part].contents()]
            for part in ("supervisor", *predict)
        }
        regression = LogisticRegression(max_iter=1000, random_state=context.seed)
        model = make_pipeline(CountVectorizer(), regression)
        model.fit(texts["supervisor"], splits.truth["supervisor"].hard)
        for part in predict:
            # A class that the supervisor's rows lack has probability 0.
            probs = np.zeros((len(texts[part]), len(splits.classes)))
            probs[:, model.classes_] = model.predict_proba(texts[part])
            _save_predictions(folder, part, replace(splits.truth[part], probs=probs))

    return Step(
        context.title("weak supervisor bag of words"),
        "bag-of-words",
        {
            "predict": list(predict),
            "rows": {each: splits.rows[each].fingerprint for each in ("supervisor", *predict)},
            "truth": splits.truth["supervisor"].fingerprint,
            "seed": context.seed,
        },
        make,
    )


def given_labels_step(context: Context, labels: Mapping[str, WeakLabels]) -> Step:
    """Keep weak labels that a file gave, by part, as a supervisor's predictions are kept."""

    def make(folder: Path, given: Mapping[str, Path]) -> None:  # noqa: ARG001 (it reads no step)
        for part, weak in labels.items():
            _save_predictions(folder, part, weak)

    return Step(
        context.title("weak labels of a file"),
        "labels",
        {part: weak.fingerprint for part, weak in labels.items()},
        make,
    )


def _save_predictions(folder: Path, part: str, labels: WeakLabels) -> None:
    target = folder / predictions_file(part)
    target.parent.mkdir(parents=True, exist_ok=True)
    labels.save(target)


def finetune_step(
    context: Context,
    name: str,
    model: str,
    *,
    settings: Mapping[str, Any],
    labels: Labels,
    part: str = "student",
    loss: str = "xent",
    held_out: Labels | None = None,
    predict: Sequence[str] = ("test",),
    base: Step | None = None,
) -> Step:
    """Train a fresh copy of ``model`` on the rows of ``part`` and predict the parts of ``predict``.

    Parameters
    ----------
    settings
        Fields of FinetuneConfig, over those of the configuration's ``finetune``.
    labels
        Labels of the rows that it trains on.
    held_out
        Labels of the validation rows, for early stopping and curves.
    base
        Step whose folder has the model to start from instead of ``model``.
    """
    splits, curves = context.splits, context.config.curves and held_out is not None
    config = _config(context, model, settings, loss)
    _check_length(context, config)
    truth = {}
    if labels.step is None:
        truth[part] = splits.truth[part].fingerprint
    if held_out is not None and held_out.step is None:
        truth["validation"] = splits.truth["validation"].fingerprint
    used = {part, *predict, *(["validation"] if held_out is not None else [])}
    params = {
        "config": plain_settings(config),
        "weights": None if base is not None else context.describe(model, config.revision).weights,
        "part": part,
        "labels": labels.name,
        "held_out": None if held_out is None else held_out.name,
        "predict": list(predict),
        "curves": curves,
        "rows": {each: splits.rows[each].fingerprint for each in sorted(used)},
        "truth": truth,
    }
    inputs = {"labels": labels.step, "base": base}
    inputs["held_out"] = None if held_out is None else held_out.step

    def make(folder: Path, given: Mapping[str, Path]) -> None:
        start = str(given["base"] / "model" / "model") if base is not None else model
        validation = None
        if held_out is not None:
            weak = context.read(held_out, "validation", given.get("held_out"))
            validation = splits.rows["validation"], weak
        context.kind.train(
            _config(context, start, settings, loss),
            splits.rows[part],
            context.read(labels, part, given.get("labels")),
            folder / "model",
            held_out=validation,
            predict={each: splits.rows[each] for each in predict},
            curves=curves,
        )

    return Step(
        context.title(name),
        "finetune",
        params,
        make,
        inputs={key: step for key, step in inputs.items() if step is not None},
        rows=len(splits.rows[part]),
        # Backward costs about two forwards.
        passes=3 * float(config.epochs),
        model=model,
        task=context.splits.task,
        disk=4 * context.describe(model, config.revision).parameters * (config.save == "model"),
        remark=_truncated_in_training,
    )


def _truncated_in_training(folder: Path) -> str:
    """Report the number of rows that were truncated."""
    metrics = read_json(folder / "model" / "metrics.json")
    cut = metrics.get("truncated") or {}
    named = cut if isinstance(cut, dict) else {"rows": cut}
    parts = [f"{n_rows:,} {name}" for name, n_rows in named.items() if n_rows]
    return f"truncated at {metrics['max_length']:,} tokens: {', '.join(parts)}" if parts else ""


def language_model_step(context: Context, model: str, part: str) -> Step:
    """Train on the texts of a part without labels; the step's folder has the new base model."""
    config = context.config
    settings = {**config.strong_finetune, **config.lm_finetune, "objective": "lm", "save": "model"}
    trained = _config(context, model, settings, "xent")
    _check_length(context, trained)
    rows = context.kind.texts(context.splits.rows[part])
    params = {
        "config": plain_settings(trained),
        "weights": context.describe(model, trained.revision).weights,
        "rows": rows.fingerprint,
    }

    def make(folder: Path, given: Mapping[str, Path]) -> None:  # noqa: ARG001 (it reads no step)
        from probekit.students.generative import finetune_lm

        finetune_lm(trained, rows, folder / "model")

    return Step(
        context.title(f"language model {context.describe(model, trained.revision).label}"),
        "lm",
        params,
        make,
        rows=len(rows),
        passes=3 * float(trained.epochs),
        model=model,
        task=context.splits.task,
        remark=_truncated_in_training,
    )


def _config(context: Context, model: str, settings: Mapping[str, Any], loss: str) -> FinetuneConfig:
    config = context.config
    fields = {
        "loss": loss,
        "loss_options": dict(config.loss_options.get(loss, {})),
        "objective": context.kind.objective,
        "seed": context.seed,
        "save": "none",
        **config.finetune,
        **settings,
    }
    return FinetuneConfig.from_mapping({"model": model, **fields})


def _check_length(context: Context, config: FinetuneConfig) -> None:
    """Raise UsageError if the model cannot read as many tokens as asked for."""
    known = context.describe(config.model, config.revision)
    if config.max_length is not None and config.max_length > (known.longest or config.max_length):
        raise UsageError(
            f"finetune.max_length is {config.max_length}, but {known.label} reads at most "
            f"{known.longest} tokens."
        )


def states_step(
    context: Context,
    model: str,
    part: str,
    base: Step | None = None,
    *,
    layers: str | int | None = None,
    labels: Labels | None = None,
) -> Step:
    """Extract a part's hidden states at ``layers``, by default the configuration's layer.

    For preference pairs: the difference between the two completions' states. ``base`` is a step
    whose folder has the model; ``labels`` are the weak labels of rows that are read with them.
    """
    options, rows, kind = _extraction(context), context.splits.rows[part], context.kind
    layers = context.config.layer if layers is None else layers
    described = context.describe(model, options.get("revision"))
    # A plan does not know the depth of a model that it cannot reach.
    n_layers = len(parse_layers(layers, described.depth)) if described.depth else 1
    params = {
        "weights": None if base is not None else described.weights,
        "layer": layers,
        "options": options,
        "rows": rows.fingerprint,
        **kind.states_key,
        **({} if labels is None else {"labels": labels.name}),
    }

    def make(folder: Path, given: Mapping[str, Path]) -> None:
        source = model if base is None else str(given["base"] / "model" / "model")
        known = None if labels is None else context.read(labels, part, given.get("labels"))
        kind.extract(rows, known, source, output=folder / STORE, layers=layers, **options)

    return Step(
        context.title(f"states of the {part} rows, {described.label}{', trained' if base else ''}"),
        "states",
        params,
        make,
        inputs=_inputs(base=base, labels=None if labels is None else labels.step),
        rows=len(rows) * kind.texts_per_row,
        model=model,
        task=context.splits.task,
        disk=len(rows) * (1 + kind.states_of_labels) * described.width * 4 * n_layers,
        remark=_truncated_in_states,
    )


def _truncated_in_states(folder: Path) -> str:
    """Report the number of rows that were truncated."""
    from probekit.activations.store import ActivationStore

    with ActivationStore(folder / STORE) as store:
        cut, length = int(store.truncated.sum()), store.spec.get("max_length")
    return f"{cut:,} rows truncated at {length:,} tokens" if cut else ""


def _extraction(context: Context) -> dict[str, Any]:
    """Return settings of the extraction; probes read as many tokens of a row as students."""
    config = context.config
    length = {**config.finetune, **config.strong_finetune}.get("max_length")
    return {**({} if length is None else {"max_length": length}), **config.extract}


def verdicts_step(
    context: Context, probe: str, action: str, *, states: Step, labels: Labels
) -> Step:
    """Filter or relabel the student's rows with a probe on their states."""
    command, fixed = ACTIONS[action]
    params, how = _probe_params(context, probe)
    asked = "k" in context.config.probe_options.get(probe, {})
    options = {**fixed, **how, **context.config.action_options.get(action, {})}
    if command == "filter" and getattr(make_probe(probe, **params), "decides_itself", False):
        options.pop("contamination", None)
        options.pop("per_class", None)
    trusted, kind = context.splits.trusted_labels(), context.kind

    def make(folder: Path, given: Mapping[str, Path]) -> None:
        from probekit.activations.store import ActivationStore
        from probekit.cleaning.predict import filter_labels, relabel

        act = filter_labels if command == "filter" else relabel
        weak = context.read(labels, "student", given["labels"])
        how = {**options, "trusted": trusted, "seed": context.seed}
        how["probe"] = make_probe(probe, seed=context.seed, **params)
        with ActivationStore(given["states"] / STORE) as store:
            verdicts = kind.clean(act, store, context.splits.rows["student"], weak, **how)
        kind.save_verdicts(folder, verdicts, weak)

    return Step(
        context.title(f"{action} with {probe}"),
        "verdicts",
        {
            "probe": probe,
            "params": params,
            "command": command,
            "options": options,
            "labels": labels.name,
            "seed": context.seed,
            **({} if trusted is None else {"trusted": trusted.fingerprint}),
        },
        make,
        inputs=_inputs(states=states, labels=labels.step),
        remark=partial(_noted, smaller=params["k"] if "k" in params and not asked else None),
    )


def _noted(folder: Path, *, smaller: int | None) -> str:
    """Report what a probe notes, such as a neighbourhood that few rows make smaller."""
    notes = list(Verdicts.load(folder / VERDICTS).provenance.get("notes", ()))
    if smaller is not None:
        notes.append(f"k is {smaller}, as there are too few rows for the default")
    return "; ".join(str(note).rstrip(".") for note in notes)


def random_step(context: Context, dropped: Sequence[int], draw: int, labels: Labels) -> Step:
    """Drop ``dropped[c]`` rows of weak class c at random: the control of a filter's size."""

    def make(folder: Path, given: Mapping[str, Path]) -> None:
        weak = context.read(labels, "student", given["labels"])
        classes = context.kind.as_classes(weak)
        verdicts = random_verdicts(classes, dropped, seed=context.seed, draw=draw)
        context.kind.save_verdicts(folder, verdicts, weak)

    return Step(
        context.title(f"random drop of {sum(dropped)} rows, draw {draw + 1}"),
        "random",
        {
            "dropped": list(dropped),
            "draw": draw,
            "seed": context.seed,
            "labels": labels.name,
            "rows": context.splits.rows["student"].fingerprint,
        },
        make,
        inputs=_inputs(labels=labels.step),
    )


def linear_student_step(
    context: Context,
    probe: str,
    *,
    states: Step,
    test_states: Step,
    labels: Labels,
    name: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Step:
    """Fit a probe on the labels of the student's rows; its predictions are the student's.

    Parameters
    ----------
    labels
        Weak labels, verdicts (their ``keep``, ``label`` and ``weight`` are used) or ground truth.
    name
        Name of the step, for people.
    options
        Parameters of the probe; None: the configuration's.
    """
    params, _ = _probe_params(context, probe, options)
    truth = (
        {} if labels.step is not None else {"truth": context.splits.truth["student"].fingerprint}
    )

    def make(folder: Path, given: Mapping[str, Path]) -> None:
        from probekit.activations.store import ActivationStore
        from probekit.cleaning.predict import read_states, with_layers
        from probekit.probes.pairs import PairProbe

        used = context.read(labels, "student", given.get("labels"))
        student = make_probe(probe, seed=context.seed, **params)
        with ActivationStore(given["states"] / STORE) as store:
            student, layers = with_layers(store, student)
            student = PairProbe(student) if store.differences else student
            _fit(student, read_states(store, layers), used, store.copies())
        with ActivationStore(given["test"] / STORE) as test:
            probs = np.zeros((len(test), len(used.classes)))
            columns = np.asarray(student.classes_, dtype=np.int64)
            probs[:, columns] = student.predict_proba(read_states(test, layers))
            predicted = WeakLabels(
                ids=list(test.ids), hashes=list(test.hashes), probs=probs, classes=used.classes
            )
        _save_predictions(folder, "test", predicted)

    return Step(
        context.title(name or f"probe {probe} as student"),
        "probe",
        {"probe": probe, "params": params, "labels": labels.name, "seed": context.seed, **truth},
        make,
        inputs=_inputs(states=states, test=test_states, labels=labels.step),
    )


def _fit(probe: Any, X: Any, labels: WeakLabels | Verdicts, groups: Any) -> None:
    """Fit a probe on the rows that the labels keep; states, labels and groups in one order."""
    from sklearn.utils.validation import has_fit_parameter

    from probekit.probes.base import BaseProbe

    keep: Any = slice(None)
    if isinstance(labels, WeakLabels):
        Y, weight = labels.probs, None
    else:
        keep = np.flatnonzero(labels.keep)
        if not len(keep):
            raise DataError("No row is left to train on: all were dropped; filter less.")
        Y, weight = labels.label[keep].astype(np.float64), labels.weight[keep].astype(np.float64)
        Y /= Y.sum(axis=1, keepdims=True)  # float32 on disk
    if isinstance(probe, BaseProbe):
        probe.fit(X[keep], Y, sample_weight=weight, groups=np.asarray(groups)[keep])
        return
    # A classifier of another package takes classes.
    weighted = weight is not None and has_fit_parameter(probe, "sample_weight")
    probe.fit(X[keep], Y.argmax(axis=1), **({"sample_weight": weight} if weighted else {}))


def random_verdicts(
    weak: WeakLabels, dropped: Sequence[int], *, seed: int, draw: int = 0
) -> Verdicts:
    """Keep all but ``dropped[c]`` rows of weak class c, chosen at random."""
    order = by_key(weak.keys, seed=[seed, draw])  # all are equal, so that a hash alone decides
    keep = ~largest(np.zeros(len(weak)), list(dropped), weak.hard, ties=order).selected
    probs = weak.probs.astype(np.float32)
    return Verdicts(
        ids=list(weak.ids),
        hashes=list(weak.hashes or [""] * len(weak)),
        classes=weak.classes,
        weak=probs,
        probe=probs,
        label=probs,
        keep=keep,
        weight=np.ones(len(weak), dtype=np.float32),
        disagreement=np.zeros(len(weak), dtype=np.float32),
        fold=np.full(len(weak), NO_FOLD, dtype=np.int16),
        provenance={"action": "random drop", "dropped": list(dropped), "seed": seed, "draw": draw},
    )


def _probe_params(
    context: Context, probe: str, options: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a probe's parameters, by default the configuration's, and arguments of actions."""
    params = dict(context.config.probe_options.get(probe, {}) if options is None else options)
    how = {name: params.pop(name) for name in ("in_sample",) if name in params}
    params = {**context.kind.probe_settings(probe), **params}
    others = len(context.splits.rows["student"]) - 1
    if "k" not in params and not probe_spec(probe).several_layers:  # an ensemble takes fewer itself
        default = make_probe(probe).get_params().get("k")
        if isinstance(default, int) and default > others:
            params["k"] = max(1, others // 3)  # as TopoFilter's default
    _check_sizes(context, probe, params, others)
    return params, how


def _check_sizes(context: Context, probe: str, params: Mapping[str, Any], others: int) -> None:
    """Raise UsageError if a probe needs more neighbours than a student's row has ``others``."""
    for name in NEIGHBORS:
        if isinstance(params.get(name), int) and params[name] > others:
            raise UsageError(
                f"probe_options.{probe}.{name} is {params[name]}, but each of the student's rows "
                f"of {context.splits.task} has {others} others; take fewer neighbours or more rows."
            )


def _inputs(**steps: Step | None) -> dict[str, Step]:
    return {name: step for name, step in steps.items() if step is not None}
