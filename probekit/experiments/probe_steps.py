"""Steps that read a frozen model: states, verdicts, and probes as students."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from probekit.activations.spec import parse_layers
from probekit.cuts import by_key, largest
from probekit.errors import UsageError
from probekit.experiments.config import ACTIONS
from probekit.experiments.context import VERDICTS, Context, Labels, predictions_file
from probekit.experiments.engine import Step
from probekit.probes.registry import make_probe, pair_settings

if TYPE_CHECKING:
    from probekit.labels import WeakLabels
    from probekit.verdicts import Verdicts

__all__ = [
    "STORE",
    "linear_student_step",
    "random_step",
    "random_verdicts",
    "states_step",
    "verdicts_step",
]

NEIGHBORS = ("k", "k_cc", "k_zeta")
# Of a states step's folder.
STORE = "acts.h5"


def states_step(
    context: Context,
    model: str,
    part: str,
    base: Step | None = None,
    *,
    layers: str | int | None = None,
) -> Step:
    """Extract a part's hidden states at ``layers``, by default the configuration's layer.

    Of preference pairs the difference between the two completions' states. With ``base`` those of
    the model in that step's folder.
    """
    options, rows = _extraction(context), context.splits.rows[part]
    layers = context.config.layer if layers is None else layers
    pairs = context.splits.kind == "reward"
    found = context.look(model, options.get("revision"))
    # The depth of a model that a plan cannot reach is not known.
    many = len(parse_layers(layers, found.depth)) if found.depth else 1
    params = {
        "weights": None if base is not None else found.weights,
        "layer": layers,
        "options": options,
        "rows": rows.fingerprint,
        "pairs": pairs,
    }

    def make(folder: Path, given: Mapping[str, Path]) -> None:
        take = _extract_differences if pairs else _extract
        source = model if base is None else str(given["base"] / "model" / "model")
        take(rows, source, output=folder / STORE, layers=layers, **options).close()

    return Step(
        context.title(f"states of the {part} rows, {found.label}{', trained' if base else ''}"),
        "states",
        params,
        make,
        inputs={} if base is None else {"base": base},
        rows=len(rows) * (1 + pairs),
        model=model,
        task=context.splits.task,
        disk=len(rows) * found.width * 4 * many,
        remark=_truncation,
    )


def _truncation(folder: Path) -> str:
    """How many rows had more tokens than the model was given."""
    from probekit.activations.store import ActivationStore

    with ActivationStore(folder / STORE) as store:
        cut, length = int(store.truncated.sum()), store.spec.get("max_length")
    return f"{cut:,} rows truncated at {length:,} tokens" if cut else ""


def _extraction(context: Context) -> dict[str, Any]:
    """Settings of the extraction; probes read as much of a row as the students do."""
    config = context.config
    length = {**config.finetune, **config.strong_finetune}.get("max_length")
    return {**({} if length is None else {"max_length": length}), **config.extract}


def verdicts_step(
    context: Context, probe: str, action: str, *, states: Step, labels: Labels
) -> Step:
    """Filter or relabel the student's rows with a probe on their states."""
    command, told = ACTIONS[action]
    params, how = _probe_params(context, probe)
    options = {**told, **how, **context.config.action_options.get(action, {})}
    if command == "filter" and getattr(make_probe(probe, **params), "decides_itself", False):
        options.pop("contamination", None)
        options.pop("per_class", None)

    def make(folder: Path, given: Mapping[str, Path]) -> None:
        from probekit.activations.store import ActivationStore
        from probekit.cleaning.filter import filter_labels
        from probekit.cleaning.relabel import relabel

        act = filter_labels if command == "filter" else relabel
        weak = context.read_weak(labels, "student", given["labels"])
        made = make_probe(probe, seed=context.seed, **params)
        with ActivationStore(given["states"] / STORE) as store:
            act(store, weak, probe=made, seed=context.seed, **options).save(folder / VERDICTS)

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
        },
        make,
        inputs=_inputs(states=states, labels=labels.step),
    )


def random_step(context: Context, dropped: Sequence[int], draw: int, labels: Labels) -> Step:
    """Drop ``dropped[c]`` rows of weak class c at random: the control of a filter's size."""

    def make(folder: Path, given: Mapping[str, Path]) -> None:
        weak = context.read_weak(labels, "student", given["labels"])
        random_verdicts(weak, dropped, seed=context.seed, draw=draw).save(folder / VERDICTS)

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
    context: Context, probe: str, *, states: Step, test_states: Step, labels: Labels
) -> Step:
    """Fit a probe on the weak labels; its predictions are the student's."""
    params, _ = _probe_params(context, probe)

    def make(folder: Path, given: Mapping[str, Path]) -> None:
        from probekit.activations.store import ActivationStore
        from probekit.cleaning.scoring import read_states, with_layers
        from probekit.labels import WeakLabels
        from probekit.probes.pairs import PairProbe

        weak = context.read_weak(labels, "student", given["labels"])
        made = make_probe(probe, seed=context.seed, **params)
        with ActivationStore(given["states"] / STORE) as store:
            made, layers = with_layers(store, made)
            made = PairProbe(made) if store.differences else made
            made.fit(read_states(store, layers), weak.probs, groups=store.copies())
        with ActivationStore(given["test"] / STORE) as test:
            found = WeakLabels(
                ids=list(test.ids),
                hashes=list(test.hashes),
                probs=np.asarray(made.predict_proba(read_states(test, layers)), dtype=np.float64),
                classes=weak.classes,
            )
        target = folder / predictions_file("test")
        target.parent.mkdir(parents=True, exist_ok=True)
        found.save(target)

    return Step(
        context.title(f"probe {probe} as student"),
        "probe",
        {"probe": probe, "params": params, "labels": labels.name, "seed": context.seed},
        make,
        inputs=_inputs(states=states, test=test_states, labels=labels.step),
    )


def random_verdicts(
    weak: WeakLabels, dropped: Sequence[int], *, seed: int, draw: int = 0
) -> Verdicts:
    """Keep all but ``dropped[c]`` rows of weak class c, chosen at random."""
    from probekit.verdicts import NO_FOLD, Verdicts

    order = by_key(weak.keys, seed=[seed, draw])  # all are equal, so that a hash alone decides
    keep = ~largest(np.zeros(len(weak)), list(dropped), weak.hard, ties=order).taken
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


def _extract(*args: Any, **options: Any) -> Any:
    from probekit.activations.extraction import extract

    return extract(*args, **options)


def _extract_differences(*args: Any, **options: Any) -> Any:
    from probekit.activations.differences import extract_differences

    return extract_differences(*args, **options)


def _probe_params(context: Context, probe: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters of a probe, and how filter and relabel are to use it."""
    params = dict(context.config.probe_options.get(probe, {}))
    how = {name: params.pop(name) for name in ("in_sample",) if name in params}
    if context.splits.kind == "reward":
        params = {**pair_settings(probe), **params}
    _check_sizes(context, probe, params)
    return params, how


def _check_sizes(context: Context, probe: str, params: Mapping[str, Any]) -> None:
    """Refuse more neighbours than the student has other rows, before anything is trained."""
    others = len(context.splits.rows["student"]) - 1
    for name in NEIGHBORS:
        if isinstance(params.get(name), int) and params[name] > others:
            raise UsageError(
                f"probe_options.{probe}.{name} is {params[name]}, but each of the student's rows "
                f"of {context.splits.task} has {others} others; take fewer neighbours or more rows."
            )


def _inputs(**steps: Step | None) -> dict[str, Step]:
    return {name: step for name, step in steps.items() if step is not None}
