"""Weak-to-strong: a weak supervisor, students on its labels, a ceiling, and the rows of a table.

Burns et al. 2023, https://arxiv.org/abs/2312.09390, bootstrapping by a chain of models its section
4.3.1; strong-to-strong rounds and probes as in EleutherAI's w2s repository. Only supervisor and
ceiling train on ground truth.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np

from probekit.experiments.cache import Cache, Step
from probekit.experiments.config import ACTIONS, BAG_OF_WORDS, FINETUNE, STUDENTS
from probekit.experiments.steps import (
    VERDICTS,
    Context,
    Labels,
    Model,
    bag_of_words_step,
    finetune_step,
    given_labels_step,
    language_model_step,
    linear_student_step,
    predictions_file,
    random_step,
    states_step,
    verdicts_step,
)
from probekit.labels import WeakLabels
from probekit.probes.registry import probe_spec

__all__ = ["CEILING", "FLOOR", "Chain", "Pair", "PlannedArm"]

FLOOR, CEILING = "weak supervisor", "ground truth"
# Added to the names of students that leave out the language-model step of the others.
DIRECTLY = ", without --lm-first"
TRUTH = Labels()


@dataclass(frozen=True, eq=False)
class PlannedArm:
    """One row of the table: steps whose predictions are scored together."""

    name: str
    kind: str
    """As :class:`probekit.experiments.scores.Arm` has it."""
    steps: tuple[Step, ...]
    """One per draw."""
    labels: Labels | None = None
    """Labels that it trained on; None for the supervisor."""
    part: str = "student"
    """Rows that it trained on."""


@dataclass(frozen=True, eq=False)
class Pair:
    """One weak supervisor and one student's model on one task and seed."""

    context: Context
    weak: str
    """A model, ``bag-of-words``, or the name of ``given``."""
    strong: str
    student: str = FINETUNE
    """As :class:`probekit.experiments.config.RunConfig` has it."""
    given: Mapping[str, WeakLabels] | None = None
    """Weak labels of a file by part; without those of the test rows there is no floor."""
    from_language_model: bool = True
    """Whether students start from the language-model step, if the configuration has one."""

    @cached_property
    def supervisor(self) -> Model:
        """Describe the weak supervisor; one that is not a model has 0 parameters."""
        if self.given is not None or self.weak == BAG_OF_WORDS:
            return Model(self.weak, "", 0, 0, 0)
        return self.context.describe(self.weak)

    @property
    def names(self) -> tuple[str, str]:
        """Return the names of weak supervisor and student in tables."""
        strong = self.context.describe(self.strong).label
        return self.supervisor.label, strong + ("" if self._finetuned else f" ({self.student})")

    @property
    def _finetuned(self) -> bool:
        return self.student == FINETUNE

    @cached_property
    def floor(self) -> Step:
        """The weak supervisor, trained on ground truth; it labels the student's rows.

        With early stopping, the ground truth of the validation rows chooses the checkpoint.
        """
        if self.given is not None:
            return given_labels_step(self.context, self.given)
        parts = ["student", *(["validation"] if self._has_validation else []), "test"]
        if self.weak == BAG_OF_WORDS:
            return bag_of_words_step(self.context, parts)
        config = self.context.config
        stops = {**config.finetune, **config.weak_finetune}.get("early_stop") is not None
        return finetune_step(
            self.context,
            f"weak supervisor {self.supervisor.label}",
            self.weak,
            settings=self.context.config.weak_finetune,
            labels=TRUTH,
            part="supervisor",
            held_out=TRUTH if stops and self._has_validation else None,
            predict=parts,
        )

    @property
    def _has_validation(self) -> bool:
        return "validation" in self.context.splits.rows

    @property
    def weak_labels(self) -> Labels:
        """Return the weak labels of the student's rows."""
        return Labels(self.floor, predictions_file("student"))

    def held_out(self, step: Step) -> Labels | None:
        """Return a step's predictions of the validation rows, if there are any."""
        return Labels(step, predictions_file("validation")) if self._has_validation else None

    @cached_property
    def base(self) -> Step | None:
        """The student's model after a language-model loss on the texts, with ``lm_first``."""
        if not (self.context.config.lm_first and self.from_language_model):
            return None
        return language_model_step(self.context, self.strong, "student")

    @cached_property
    def direct(self) -> Pair | None:
        """The pair whose students start from the pretrained model; None if these do so already."""
        return None if self.base is None else replace(self, from_language_model=False)

    def _student(
        self,
        name: str,
        labels: Labels,
        *,
        held_out: Labels | None,
        loss: str | None = None,
        predict: tuple[str, ...] = ("test",),
        keep: bool = False,
    ) -> Step:
        name += "" if self.from_language_model else DIRECTLY
        if not self._finetuned:
            return self._probe("logreg", labels, f"{self.student} student, {name}", self.student)
        settings = {**self.context.config.strong_finetune, **({"save": "model"} if keep else {})}
        return finetune_step(
            self.context,
            f"{self.context.describe(self.strong).label}, {name}",
            self.strong,
            settings=settings,
            labels=labels,
            loss=loss or self.context.config.losses[0],
            held_out=held_out,
            predict=predict,
            base=self.base,
        )

    def _probe(
        self, probe: str, labels: Labels, name: str | None = None, student: str | None = None
    ) -> Step:
        """A probe on the strong model's states as student; of a linear one with its parameters."""
        return linear_student_step(
            self.context,
            probe,
            states=self.states(probe, "student"),
            test_states=self.states(probe, "test"),
            labels=labels,
            name=name,
            options=None if student is None else STUDENTS[student],
        )

    @property
    def _all_parts(self) -> tuple[str, ...]:
        """Return the parts that a next round needs predictions of."""
        held_out = ("validation",) if self._has_validation else ()
        return ("student", *held_out, "test")

    @cached_property
    def plain(self) -> Step:
        """The student on the weak labels as they are."""
        return self._plain(keep=False)

    @cached_property
    def kept(self) -> Step:
        """The plain student with its model on disk; ``plain`` itself if settings keep models."""
        return self._plain(keep=True)

    @property
    def _plain_name(self) -> str:
        return f"weak labels, {self.context.config.losses[0]}" if self._finetuned else "weak labels"

    def _plain(self, *, keep: bool) -> Step:
        return self._student(
            self._plain_name,
            self.weak_labels,
            held_out=self.held_out(self.floor),
            predict=self._all_parts,
            keep=keep,
        )

    @cached_property
    def ceiling(self) -> Step:
        """The student's model on the same rows with ground truth."""
        return self._ceiling(keep=False)

    @cached_property
    def kept_ceiling(self) -> Step:
        """The ceiling with its model on disk; ``ceiling`` itself if settings keep models."""
        return self._ceiling(keep=True)

    def _ceiling(self, *, keep: bool) -> Step:
        return self._student(
            "ground truth",
            TRUTH,
            held_out=TRUTH if self._has_validation else None,
            loss="xent",
            predict=self._all_parts,
            keep=keep,
        )

    def states(self, probe: str, part: str) -> Step:
        """Return the frozen states of a part that a probe reads; the ensemble reads all layers.

        Where a row is read with its weak label, only the student's rows are read.
        """
        layers = "all" if probe_spec(probe).several_layers else None
        labels = self.weak_labels if self.context.kind.states_of_labels else None
        return states_step(self.context, self.strong, part, self.base, layers=layers, labels=labels)

    @cached_property
    def verdicts(self) -> dict[tuple[str, str], Step]:
        """Map (action, probe) to the step that cleans the weak labels with it."""
        return {
            (action, probe): verdicts_step(
                self.context,
                probe,
                action,
                states=self.states(probe, "student"),
                labels=self.weak_labels,
            )
            for action in self.context.kind.actions(self.context.config.actions)
            for probe in self.context.config.probes
        }

    def first_steps(self) -> list[Step]:
        """Return the steps that decide the sizes of the random drops."""
        return [self.floor, *self.verdicts.values()]

    def arms(self, cache: Cache | None) -> list[PlannedArm]:
        """Return all rows of the table, floor first, ceiling last.

        ``cache`` has done :meth:`first_steps`, or failed to. Without one, for a plan, every filter
        is assumed to need random drops of its own.
        """
        config, held_out = self.context.config, self.held_out(self.floor)
        arms = [
            PlannedArm(FLOOR, "floor", (self.floor,)),
            PlannedArm(self._plain_name, "plain", (self.plain,), self.weak_labels),
        ]
        for loss in config.losses[1:] if self._finetuned else ():
            name = f"weak labels, {loss}"
            step = self._student(name, self.weak_labels, held_out=held_out, loss=loss)
            arms.append(PlannedArm(name, "loss", (step,), self.weak_labels))
        arms += self._random_arms(cache)
        for (action, probe), step in self.verdicts.items():
            name, labels = f"{action} {probe_spec(probe).label}", Labels(step, VERDICTS)
            student = self._student(name, labels, held_out=held_out)
            arms.append(PlannedArm(name, ACTIONS[action][0], (student,), labels))
        arms += self._linear_arms()
        arms += self._rounds()
        return [*arms, PlannedArm(CEILING, "ceiling", (self.ceiling,), TRUTH)]

    def both_starts(self) -> list[PlannedArm]:
        """Return plain student and ceiling without the language-model step; none if it has none.

        A student after that step has a higher ceiling, too: its gain over a student without it
        is to be read under either ceiling (Burns et al. 2023, section 5.2.2).
        """
        if self.direct is None:
            return []
        plain, ceiling = self.direct.plain, self.direct.ceiling
        return [
            PlannedArm(f"{self._plain_name}{DIRECTLY}", "plain", (plain,), self.weak_labels),
            PlannedArm(f"{CEILING}{DIRECTLY}", "ceiling", (ceiling,), TRUTH),
        ]

    def _random_arms(self, cache: Cache | None) -> Iterator[PlannedArm]:
        config, sizes = self.context.config, dict[tuple[int, ...], list[str]]()
        filters = {probe: s for (a, probe), s in self.verdicts.items() if ACTIONS[a][0] == "filter"}
        for number, (probe, step) in enumerate(filters.items()):
            if cache is not None and cache.failure(step) is not None:
                continue
            # A plan needs sizes that differ, whatever they are.
            size = (number,) if cache is None else dropped(cache, step)
            sizes.setdefault(size, []).append(probe_spec(probe).label)
        for size, names in sizes.items():
            name = f"random as {', '.join(names)}"
            steps, drops = [], []
            for draw in range(config.random_drops):
                drop = random_step(self.context, size, draw, self.weak_labels)
                drops.append(Labels(drop, VERDICTS))
                held_out = self.held_out(self.floor)
                steps.append(self._student(f"{name}, {draw + 1}", drops[-1], held_out=held_out))
            if steps:
                yield PlannedArm(name, "random", tuple(steps), drops[0])

    def _linear_arms(self) -> Iterator[PlannedArm]:
        if not (self.context.config.linear_students and self.context.kind.probes_predict):
            return
        for probe in self.context.config.probes:
            step = self._probe(probe, self.weak_labels)
            if step.key == self.plain.key:  # the linear student itself
                continue
            yield PlannedArm(f"probe {probe_spec(probe).label}", "probe", (step,), self.weak_labels)

    def _rounds(self) -> Iterator[PlannedArm]:
        """Strong-to-strong: a fresh copy on the labels that the copy before it gives its rows."""
        before = self.plain
        for number in range(2, self.context.config.rounds + 1) if self._finetuned else ():
            labels = Labels(before, predictions_file("student"))
            step = self._student(
                f"round {number}",
                labels,
                held_out=self.held_out(before),
                predict=self._all_parts,
            )
            yield PlannedArm(f"strong-to-strong, round {number}", "round", (step,), labels)
            before = step


def dropped(cache: Cache, step: Step) -> tuple[int, ...]:
    """Return the number of rows that a filter drops from each weak class."""
    from probekit.verdicts import Verdicts

    verdicts = Verdicts.load(cache.path(step) / VERDICTS)
    classes = verdicts.weak.argmax(axis=1)[~verdicts.keep]
    return tuple(np.bincount(classes, minlength=len(verdicts.classes)).tolist())


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
            f"{self.context.describe(self.models[number]).label}, {name}",
            self.models[number],
            settings=config.weak_finetune if first else config.strong_finetune,
            labels=labels,
            part=f"part{part}",
            loss="xent" if labels.step is None else config.losses[0],
            predict=predict,
        )

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """One step per model: the first on ground truth, each other on the labels before it."""
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
        """Return floor, every intermediate model, the strongest, naive weak → strongest, ceiling.

        All are scored between the first model and the strongest one on ground truth.
        """
        last = len(self.models) - 1
        names = [self.context.describe(model).label for model in self.models]
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
