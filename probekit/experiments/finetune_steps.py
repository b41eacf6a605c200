"""Steps that train a model: supervisors, students, ceilings, and language models before them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from probekit.errors import UsageError
from probekit.experiments.context import Context, Labels
from probekit.experiments.engine import Step

__all__ = ["finetune_step", "language_model_step"]


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
        What it trains on.
    held_out
        Labels of the validation rows, for early stopping and curves.
    base
        A step whose folder holds the model to start from instead of ``model``.
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
        "config": _key_of(config),
        "weights": None if base is not None else context.look(model, config.revision).weights,
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
        from probekit.students.finetune import finetune, training_rows

        start = str(given["base"] / "model" / "model") if base is not None else model
        validation = None
        if held_out is not None:
            weak = context.read(held_out, "validation", given.get("held_out"))
            validation = training_rows(splits.rows["validation"], weak)
        finetune(
            _config(context, start, settings, loss),
            training_rows(splits.rows[part], context.read(labels, part, given.get("labels"))),
            folder / "model",
            validation=validation,
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
        disk=4 * context.look(model, config.revision).parameters * (config.save == "model"),
        remark=_truncation,
    )


def _truncation(folder: Path) -> str:
    """How many rows had more tokens than the model was given."""
    from probekit.safe import read_json

    metrics = read_json(folder / "model" / "metrics.json")
    cut = metrics.get("truncated") or {}
    named = cut if isinstance(cut, dict) else {"rows": cut}
    parts = [f"{many:,} {name}" for name, many in named.items() if many]
    return f"truncated at {metrics['max_length']:,} tokens: {', '.join(parts)}" if parts else ""


def language_model_step(context: Context, model: str, part: str) -> Step:
    """Train on the texts of a part without labels; its folder then holds the new base model."""
    config = context.config
    settings = {**config.strong_finetune, **config.lm_finetune, "objective": "lm", "save": "model"}
    made = _config(context, model, settings, "xent")
    _check_length(context, made)
    rows = context.splits.rows[part]
    params = {
        "config": _key_of(made),
        "weights": context.look(model, made.revision).weights,
        "rows": rows.fingerprint,
    }

    def make(folder: Path, given: Mapping[str, Path]) -> None:  # noqa: ARG001 (it reads no step)
        from probekit.students.generative import finetune_lm

        finetune_lm(made, rows, folder / "model")

    return Step(
        context.title(f"language model {context.look(model, made.revision).label}"),
        "lm",
        params,
        make,
        rows=len(rows),
        passes=3 * float(made.epochs),
        model=model,
        task=context.splits.task,
        remark=_truncation,
    )


def _config(context: Context, model: str, settings: Mapping[str, Any], loss: str) -> Any:
    from probekit.students.config import FinetuneConfig

    config = context.config
    fields = {
        "loss": loss,
        "loss_options": dict(config.loss_options.get(loss, {})),
        "objective": "reward" if context.splits.kind == "reward" else "classify",
        "seed": context.seed,
        "save": "none",
        **config.finetune,
        **settings,
    }
    return FinetuneConfig.from_mapping({"model": model, **fields})


def _check_length(context: Context, config: Any) -> None:
    """Refuse more tokens than the model reads, before anything is trained."""
    known = context.look(config.model, config.revision)
    if config.max_length is not None and config.max_length > (known.longest or config.max_length):
        raise UsageError(
            f"finetune.max_length is {config.max_length}, but {known.label} reads at most "
            f"{known.longest} tokens."
        )


def _key_of(config: Any) -> dict[str, Any]:
    """What of a configuration decides the result; the model is known by its weights."""
    content = dict(config.to_json())
    for name in ("model", "report_to", "device", "save_seconds"):
        content.pop(name, None)
    return content
