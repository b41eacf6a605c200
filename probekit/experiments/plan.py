"""The plan of a run: its steps, rows, tokens and disk space, before anything is done."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from probekit.data import Rows
from probekit.errors import ModelError, human_bytes
from probekit.experiments.cache import Step, in_order
from probekit.experiments.config import RunConfig
from probekit.experiments.run import Run, Sources
from probekit.experiments.splits import Splits, chain_splits, run_splits
from probekit.experiments.steps import Model, describe_model
from probekit.experiments.task_kinds import task_kind
from probekit.tasks.hub import UnreachedError
from probekit.tasks.registry import get_task

__all__ = ["plan", "plan_text"]

SAMPLE = 256
# For a task that cannot be read, if the configuration sets no limit.
UNKNOWN_ROWS = 1000
# Weights, gradients and Adam's two moments, in float32.
TRAINING_COPIES = 4


# ``name`` or ``org/name``, perhaps with layers; anything else can only be a folder.
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(@layers=\d+)?")


class _Reachable(Sources):
    """Real rows and models that can be reached, otherwise stand-ins; ``missing`` has the reasons.

    Only rows and models of the hub may be out of reach; errors of files, folders and names are
    raised, as by the run.
    """

    def __init__(self) -> None:
        self.missing: dict[str, str] = {}
        self._lengths: dict[tuple[str, str], float] = {}
        self.real_tasks: dict[str, Splits] = {}

    def splits(self, task: str, config: RunConfig, seed: int) -> Splits:
        try:
            splits = run_splits(task, config, seed)
        except UnreachedError as error:
            self.missing.setdefault(task, str(error))
            student = config.student_rows or UNKNOWN_ROWS
            share = round(student * config.validation_share)
            held_out = share if config.validation_rows is None else config.validation_rows
            moved = config.trusted_rows or 0
            sizes = {
                "supervisor": (config.supervisor_rows or UNKNOWN_ROWS) - moved,
                "student": student - (share if config.validation_rows is None else 0) + moved,
                **({"validation": held_out} if held_out else {}),
                "test": config.test_rows or UNKNOWN_ROWS,
            }
            return _stand_in(task, sizes, seed)
        self.real_tasks[splits.task] = splits
        return splits

    def chain_splits(self, task: str, config: RunConfig, seed: int) -> Splits:
        try:
            splits = chain_splits(task, config, seed)
        except UnreachedError as error:
            self.missing.setdefault(task, str(error))
            sizes = {
                f"part{i}": (config.student_rows if i else config.supervisor_rows) or UNKNOWN_ROWS
                for i in range(len(config.chain))
            }
            return _stand_in(task, {**sizes, "test": config.test_rows or UNKNOWN_ROWS}, seed)
        self.real_tasks[splits.task] = splits
        return splits

    def describe(self, model: str, revision: str | None = None) -> Model:
        try:
            return describe_model(model, revision)
        except ModelError as error:
            if not _HUB_NAME.fullmatch(model) or Path(model.partition("@layers=")[0]).exists():
                raise
            self.missing.setdefault(model, str(error))
            return Model(model, f"unknown:{model}", 0, 0, 0)

    def tokens_per_row(self, task: str, model: str) -> float | None:
        """Return the mean tokens of a sample of rows; None if task or model cannot be read."""
        if task not in self.real_tasks or model in self.missing:
            return None
        if (task, model) not in self._lengths:
            from probekit.activations.checkpoint import open_checkpoint
            from probekit.activations.encoding import Encoder

            checkpoint = open_checkpoint(model)
            rows = next(iter(self.real_tasks[task].rows.values()))
            encoder = Encoder(
                checkpoint.tokenizer, kind=rows.kind, max_length=checkpoint.length(None)
            )
            encoded = encoder.encode(rows.contents(0, SAMPLE), rows.ids[:SAMPLE])
            self._lengths[task, model] = float(encoded.lengths.mean())
        return self._lengths[task, model]


def plan(config: RunConfig, steps: Path, *, experiment: type[Run] = Run) -> dict[str, Any]:
    """Count the steps of a run, the rows and tokens that go through models, and the disk it needs.

    Rows and models that cannot be reached are named and counted at the configuration's limits;
    their tokens are not known.

    Raises
    ------
    ProbekitError
        If the run would raise it, or leave something out that can be reached and is wrong.
    """
    sources = _Reachable()
    run = experiment(config, steps, lambda _: None, sources)
    run.raise_left_out()
    ordered = in_order(run.all_steps(planned=True))
    open_ = [step for step in ordered if not run.cache.done(step)]
    models = sorted({step.model for step in ordered if step.model is not None})
    tokens, unknown = _tokens(open_, sources)
    largest = max((sources.describe(model).parameters for model in models), default=0)
    return {
        "experiments": len(run.experiments),
        "tasks": list(config.task),
        "seeds": list(config.seeds),
        "models": {model: sources.describe(model).parameters or None for model in models},
        "steps": dict(Counter(step.kind for step in ordered)),
        "done": len(ordered) - len(open_),
        "rows_through_models": sum(step.rows for step in open_),
        "row_passes": round(sum(step.rows * step.passes for step in open_)),
        "tokens": tokens,
        "rows_of_unknown_length": unknown,
        "disk_bytes": sum(step.disk for step in open_),
        "checkpoint_bytes": largest * 4 * (TRAINING_COPIES - 1),
        "not_reached": sources.missing,
    }


def _tokens(steps: list[Step], sources: _Reachable) -> tuple[int, int]:
    """Return tokens through models (backward counts for two) and passes of unknown length."""
    known, unknown = 0.0, 0.0
    for step in steps:
        if step.model is None or step.task is None:
            continue
        length = sources.tokens_per_row(step.task, step.model)
        if length is None:
            unknown += step.rows * step.passes
        else:
            known += step.rows * step.passes * length
    return round(known), round(unknown)


def _stand_in(task: str, sizes: dict[str, int], seed: int) -> Splits:
    """Return rows of the right number without content."""
    kind = task_kind(get_task(task).kind)
    splits = Splits(task, kind.name, ("0", "1") if kind.probes_predict else ())
    for name, n_rows in sizes.items():
        if name == "validation" and not kind.stops_early:
            continue
        texts = [f"{task} {name} {i} {seed}" for i in range(n_rows)]
        columns: dict[str, list[Any]] = {
            "text": texts,
            "label": [i % 2 for i in range(n_rows)],
            "completion": texts,
        }
        if kind.pairs:
            columns["text_pair"] = [f"{text} second" for text in texts]
        rows = Rows(columns, source=task)
        splits.rows[name] = rows
        splits.truth[name] = kind.truth(rows, splits.classes, task)
    return splits


def plan_text(planned: dict[str, Any]) -> str:
    """Return a plan as text."""
    total = sum(planned["steps"].values())
    kinds = ", ".join(f"{count} {kind}" for kind, count in planned["steps"].items())
    lines = [
        f"{planned['experiments']} experiments: {len(planned['tasks'])} tasks, "
        f"{len(planned['seeds'])} seeds",
        f"{total} steps ({kinds}), {planned['done']} of them done",
        f"{planned['rows_through_models']:,} rows through models, {planned['row_passes']:,} passes "
        "(a backward pass counts for two)",
        f"about {planned['tokens']:,} tokens"
        + (
            f", and {planned['rows_of_unknown_length']:,} passes of rows of unknown length"
            if planned["rows_of_unknown_length"]
            else ""
        ),
        f"{human_bytes(planned['disk_bytes'])} of hidden states and kept models; up to "
        f"{human_bytes(planned['checkpoint_bytes'])} of checkpoints while a model trains"
        + (" (of the models that can be reached)" if None in planned["models"].values() else ""),
    ]
    for model, size in planned["models"].items():
        lines.append(f"  {model}: {'size not known' if size is None else f'{size:,} parameters'}")
    if planned["not_reached"]:
        lines.append("Not reached, and counted at the configuration's limits:")
        lines += [f"  {name}: {reason}" for name, reason in planned["not_reached"].items()]
    return "\n".join(lines)
