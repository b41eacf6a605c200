"""``probekit saliency``: how salient a concept is in a model, before and after finetuning.

Linear probes against finetuning on the same rows, Burns et al. 2023, section 5.2.3,
https://arxiv.org/abs/2312.09390. Steps are those of ``probekit run`` wherever it has them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from probekit.experiments.context import Context, Labels, predictions_file
from probekit.experiments.engine import Step
from probekit.experiments.judge import plain_numbers
from probekit.experiments.probe_steps import states_step
from probekit.experiments.run import METRICS, Experiment, Run, Sources, provenance
from probekit.experiments.saliency_config import SaliencyConfig
from probekit.experiments.saliency_judge import (
    AFTER_TRUTH,
    BARS,
    CHOSEN,
    COLUMNS,
    PROBES,
    Judged,
)
from probekit.experiments.saliency_steps import LinearProbes, layer_file, linear_step, read_probes
from probekit.experiments.saliency_summary import summarize_pairs
from probekit.experiments.weak_to_strong import Pair
from probekit.files import atomic_write
from probekit.metrics import auroc

if TYPE_CHECKING:
    from probekit.labels import WeakLabels

__all__ = ["Bars", "Saliency"]

TRUTH = Labels()
PARTS = ("student", "validation", "test")


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
        """What is asked for."""
        config = self.context.config
        assert isinstance(config, SaliencyConfig)
        return config

    @cached_property
    def before(self) -> dict[str, Step]:
        """States of the strong model as it is, by part."""
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
        """Bars 1, 2 and 4, and what else is asked for by layer: each a probe per layer."""
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
                f"{names[key]}, {self.context.look(self.pair.strong).label}",
                states=states,
                labels=labels,
                held_out=judge,
                settings=self.config.probe,
            )
            for key, (states, labels, judge) in asked.items()
        }

    @cached_property
    def finetuned(self) -> dict[str, Step]:
        """Bars 3 and 5; bar 3 is the model whose states bar 4 reads."""
        ceiling = self.pair.kept_ceiling if self.config.after_truth else self.pair.ceiling
        return {"finetune_weak": self.pair.kept, "finetune_truth": ceiling}

    @property
    def steps(self) -> list[Step]:
        """All bars in the order of the figure, the weak supervisor before them."""
        made = self.probes | self.finetuned
        more = [step for key, step in made.items() if key not in BARS]
        return [self.pair.floor, *(made[key] for key in BARS), *more]


class Saliency(Run):
    """The comparisons of a configuration: every task, pair and seed; arguments as of ``Run``."""

    config: SaliencyConfig

    def __init__(
        self,
        config: SaliencyConfig,
        steps: Path,
        tell: Callable[[str], None],
        sources: Sources | None = None,
    ) -> None:
        super().__init__(config, steps, tell, sources)

    @cached_property
    def bars(self) -> list[Bars]:
        """One per experiment, in their order."""
        pairs = [each.source for each in self.experiments]
        return [Bars(pair) for pair in pairs if isinstance(pair, Pair)]

    def all_steps(self, *, planned: bool = False) -> list[Step]:  # noqa: ARG002 (nothing depends on it)
        """Every step that the figures need."""
        return [step for bars in self.bars for step in bars.steps]

    def carry_out(self, folder: Path) -> dict[str, Any]:
        """Do what is not done, judge it, and write predictions and metrics."""
        self.check()
        for each in self.left_out:
            self._tell(f"Warning: {each}; the others go on.")
        self.engine.run(self.all_steps())
        judged, failures = [], self.left_out
        for experiment, bars in zip(self.experiments, self.bars, strict=True):
            failed = self._failed(bars)
            failures += failed
            if not failed:
                judged.append(self._compare(experiment, bars, folder))
        summary = {
            "config": self.config.to_mapping(),
            "pairs": list(summarize_pairs(judged)),
            "results": [result for result, _ in judged],
            "failures": [*failures, *(each for result, _ in judged for each in result["alarms"])],
            **provenance(),
        }
        with atomic_write(folder / METRICS, "w") as file:
            file.write(json.dumps(summary, ensure_ascii=False, indent=1) + "\n")
        return summary

    def _failed(self, bars: Bars) -> list[str]:
        """Why a task, pair and seed cannot be compared: all five bars are needed."""
        reasons = {step.name: self.engine.failure(step) for step in bars.steps}
        return [f"{name}: failed: {reason}" for name, reason in reasons.items() if reason]

    def _compare(
        self, experiment: Experiment, bars: Bars, folder: Path
    ) -> tuple[dict[str, Any], Judged]:
        """One task, pair and seed: its record, and which test rows each bar gets right."""
        context = bars.context
        truth, rows = context.splits.truth["test"], context.splits.rows
        probes = {key: read_probes(self.engine.path(step)) for key, step in bars.probes.items()}
        files = self._copy(bars, probes, self._predictions_folder(experiment, folder))
        found = {key: self._predicted(bars, path) for key, path in files.items()}
        right = {key: (each.hard == truth.hard).astype(float) for key, each in found.items()}
        constant = {key: np.unique(each.hard) for key, each in found.items() if key in BARS}
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
            "auroc": {key: auroc(truth.hard, each.probs) for key, each in found.items()},
            "probes": {key: _told(found) for key, found in probes.items()},
            "layers": {
                key: [
                    self._accuracy(bars, self._layer_file(bars, key, each["layer"]))
                    for each in made.layers
                ]
                for key, made in probes.items()
            },
            "alarms": [
                f"{context.title(BARS[key])}: collapsed: every test row gets the class "
                f"{context.splits.classes[int(held[0])]!r}"
                for key, held in constant.items()
                if len(held) == 1 and len(np.unique(truth.hard)) > 1
            ],
            "seconds": {step.name: self.engine.seconds(step) for step in bars.steps},
        }
        columns = np.column_stack([right[name] for name in COLUMNS])
        return plain_numbers(record), Judged(columns, rows["test"].fingerprint)

    def _copy(
        self, bars: Bars, probes: Mapping[str, LinearProbes], folder: Path
    ) -> dict[str, Path]:
        """Put every bar's test predictions where people look for them."""
        found = {key: self._test(step) for key, step in bars.finetuned.items()}
        for key in PROBES:
            found[key] = self._layer_file(bars, key, probes[key].last)
            found[key + CHOSEN] = self._layer_file(bars, key, probes[key].chosen)
        for key, path in found.items():
            shutil.copyfile(path, folder / f"{key}.parquet")
        return found

    def _test(self, step: Step) -> Path:
        return self.engine.path(step) / predictions_file("test")

    def _layer_file(self, bars: Bars, key: str, layer: int) -> Path:
        return self.engine.path(bars.probes[key]) / layer_file(layer)

    def _predicted(self, bars: Bars, path: Path) -> WeakLabels:
        """A file's predictions of the test rows, in their order."""
        from probekit.labels import load_labels

        rows = bars.context.splits.rows["test"]
        found = load_labels(path, one_class=True)
        return found.align(rows.keys, rows_name="the test rows").labels

    def _accuracy(self, bars: Bars, path: Path) -> float:
        truth = bars.context.splits.truth["test"]
        return float(np.mean(self._predicted(bars, path).hard == truth.hard))

    def _label_accuracy(self, bars: Bars) -> float:
        labels = bars.pair.weak_labels
        assert labels.step is not None
        weak = bars.context.read_weak(labels, "student", self.engine.path(labels.step))
        return float(np.mean(weak.hard == bars.context.splits.truth["student"].hard))


def _told(found: LinearProbes) -> dict[str, Any]:
    """What a record says of a bar's probes."""
    return {
        "rows": found.rows,
        "rows_fingerprint": found.rows_fingerprint,
        "last": {"layer": found.last, "l2": found.at(found.last)["l2"]},
        "chosen": {"layer": found.chosen, "l2": found.at(found.chosen)["l2"]},
        "layers": [dict(each) for each in found.layers],
    }
