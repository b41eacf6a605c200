"""Bootstrapping: each model labels fresh rows for the next stronger one.

Burns et al. 2023, section 4.3.1, https://arxiv.org/abs/2312.09390.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from probekit.experiments.context import Context, Labels, predictions_file
from probekit.experiments.engine import Step
from probekit.experiments.finetune_steps import finetune_step
from probekit.experiments.weak_to_strong import CEILING, PlannedArm

__all__ = ["Chain"]


@dataclass(frozen=True, eq=False)
class Chain:
    """Models M0 < M1 < … < Mn on one task and seed; part i of the rows is for Mi."""

    context: Context
    """Its splits are those of :func:`probekit.experiments.splits.chain_splits`."""
    models: tuple[str, ...]

    def _train(
        self, number: int, name: str, labels: Labels, *, part: int, predict: tuple[str, ...]
    ) -> Step:
        config = self.context.config
        first = number == 0
        return finetune_step(
            self.context,
            f"{self.context.look(self.models[number]).label}, {name}",
            self.models[number],
            settings=config.weak_finetune if first else config.strong_finetune,
            labels=labels,
            part=f"part{part}",
            loss="xent" if labels.step is None else config.losses[0],
            predict=predict,
        )

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """One step per model: the first on ground truth, each other on its forerunner's labels."""
        last = len(self.models) - 1
        first = self._train(
            0,
            "start of the chain",
            Labels(),
            part=0,
            # The strongest also learns from the weakest directly, on the same rows.
            predict=tuple(dict.fromkeys(("part1", f"part{last}", "test"))),
        )
        steps = [first]
        for number in range(1, len(self.models)):
            labels = Labels(steps[-1], predictions_file(f"part{number}"))
            onward = (f"part{number + 1}",) if number < last else ()
            steps.append(
                self._train(
                    number, f"link {number}", labels, part=number, predict=(*onward, "test")
                )
            )
        return tuple(steps)

    def arms(self) -> list[PlannedArm]:
        """Floor, every intermediate model, the strongest one, naive weak → strongest, ceiling.

        All are judged between the first model and the strongest one on ground truth.
        """
        last = len(self.models) - 1
        names = [self.context.look(model).label for model in self.models]
        arms = [PlannedArm(f"{names[0]}, ground truth", "floor", (self.steps[0],))]
        for number, (before, step) in enumerate(pairwise(self.steps), 1):
            labels = Labels(before, predictions_file(f"part{number}"))
            name = " → ".join(names[: number + 1])
            arms.append(PlannedArm(name, "chain", (step,), labels, f"part{number}"))
        part = f"part{last}"
        if last > 1:  # with two models the chain is the naive one
            labels = Labels(self.steps[0], predictions_file(part))
            naive = self._train(last, "naive", labels, part=last, predict=("test",))
            name = f"{names[0]} → {names[-1]} (naive)"
            arms.append(PlannedArm(name, "naive", (naive,), labels, part))
        ceiling = self._train(last, "ceiling", Labels(), part=last, predict=("test",))
        arms.append(PlannedArm(f"{names[-1]}, {CEILING}", "ceiling", (ceiling,), Labels(), part))
        return arms
