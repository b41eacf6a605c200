"""``probekit run``: every task, pair and seed of a configuration, scored, in one folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probekit.cleaning.evaluate import summarize
from probekit.cuts import by_key
from probekit.errors import ProbekitError, UsageError
from probekit.experiments.cache import Cache, Step
from probekit.experiments.config import BAG_OF_WORDS, FINETUNE, RunConfig
from probekit.experiments.folder import METRICS, provenance
from probekit.experiments.scores import (
    PERPLEXITY,
    STARTS,
    Arm,
    combine_seeds,
    plain_numbers,
    score_arms,
    score_curve,
    spread,
)
from probekit.experiments.splits import (
    Splits,
    chain_splits,
    known_kind,
    labelled,
    run_splits,
)
from probekit.experiments.steps import Context, Model, describe_model, predictions_file
from probekit.experiments.task_kinds import Codes, task_kind
from probekit.experiments.task_kinds.base import VERDICTS
from probekit.experiments.weak_to_strong import Chain, Pair, PlannedArm
from probekit.files import atomic_write
from probekit.labels import load_labels
from probekit.metrics import pgr, pgr_undefined
from probekit.safe import read_json
from probekit.verdicts import Verdicts

__all__ = ["Experiment", "Run", "Sources"]


@dataclass(frozen=True, eq=False)
class Experiment:
    """One task, one pair of models (or one chain), one seed."""

    source: Pair | Chain
    weak: str
    strong: str
    student: str = FINETUNE

    @property
    def context(self) -> Context:
        """Return its rows and seed."""
        return self.source.context

    @property
    def group(self) -> tuple[str, str, str]:
        """Return its task and models, which all its seeds share."""
        return self.context.splits.task, self.weak, self.strong


class Sources:
    """Looks up rows and models; a plan has stand-ins for those that cannot be reached."""

    def splits(self, task: str, config: RunConfig, seed: int) -> Splits:
        """Return the rows of supervisor, student, validation and test."""
        return run_splits(task, config, seed)

    def chain_splits(self, task: str, config: RunConfig, seed: int) -> Splits:
        """Return the rows of a chain's models, and test rows."""
        return chain_splits(task, config, seed)

    def describe(self, model: str, revision: str | None = None) -> Model:
        """Describe a model."""
        return describe_model(model, revision)


class Run:
    """All experiments of a configuration.

    Parameters
    ----------
    steps
        Folder of the steps, which runs may share.
    report
        Receives a line per step.
    sources
        Looks up rows and models; by default :class:`Sources`.
    """

    def __init__(
        self,
        config: RunConfig,
        steps: Path,
        report: Callable[[str], None],
        sources: Sources | None = None,
    ) -> None:
        self.config = config
        self.cache = Cache(steps, report)
        self._report = report
        self._sources = sources or Sources()
        self._errors: dict[str, ProbekitError] = {}
        self._notes: list[str] = []

    @cached_property
    def experiments(self) -> list[Experiment]:
        """Return all that can be opened, by task, seed and pair; ``left_out`` lists the others.

        Raises
        ------
        ProbekitError
            If none can be opened, or if an option is wrong for one.
        """
        experiments = self._experiments()
        if not experiments:
            raise next(iter(self._errors.values()))
        return experiments

    @property
    def left_out(self) -> list[str]:
        """Return the tasks, seeds and models that could not be opened, and why."""
        return [f"{name}: failed: {str(error).rstrip('.')}" for name, error in self._errors.items()]

    def raise_left_out(self) -> None:
        """Raise the first error of ``left_out``."""
        if self.experiments and self._errors:
            raise next(iter(self._errors.values()))

    def _experiments(self) -> list[Experiment]:
        config, describe = self.config, self._sources.describe
        self._check_options()
        experiments: list[Experiment] = []
        for task, seed in product(config.task, config.seeds):
            where = f"{task}, seed {seed}"
            if config.strong and (config.weak or config.weak_labels):
                with self._open(where):
                    experiments += self._pairs(task, seed)
            if config.chain:
                with self._open(f"{where}, chain"):
                    splits = self._sources.chain_splits(task, config, seed)
                    context = Context(config, splits, seed, describe)
                    self._check_task(context, config.chain)
                    chain = Chain(context, tuple(config.chain))
                    first, last = (describe(chain.models[i]).label for i in (0, -1))
                    experiments.append(Experiment(chain, first, f"{last} (chain)"))
        return experiments

    def _pairs(self, task: str, seed: int) -> list[Experiment]:
        """Pair every weak supervisor with every student's model, on one task and seed."""
        config = self.config
        splits, given, weak_names = self._sources.splits(task, config, seed), None, config.weak
        self._check_task(Context(config, splits, seed, self._sources.describe), ())
        if config.weak_labels is not None:
            labels = load_labels(config.weak_labels, one_class=True)
            splits, given, notes = labelled(splits, labels)
            self._notes += notes
            weak_names = (Path(config.weak_labels).name,)
        context = Context(config, splits, seed, self._sources.describe)
        experiments = []
        for weak, strong, student in product(weak_names, config.strong, config.student):
            with self._open(f"{task}, seed {seed}, {weak} → {strong}"):
                models = [strong] if weak == BAG_OF_WORDS or given else [weak, strong]
                self._check_task(context, models)
                pair = Pair(context, weak, strong, student, given)
                experiments.append(Experiment(pair, *pair.names, student))
        return experiments

    def _check_options(self) -> None:
        """Raise UsageError for what no task of a known kind takes, before any rows are read."""
        for task in self.config.task:
            if (name := known_kind(task)) is None:
                continue
            kind = task_kind(name)
            kind.check(self.config, task)
            if BAG_OF_WORDS in self.config.weak:
                kind.check_bag_of_words(task)

    def _check_task(self, context: Context, models: Sequence[str]) -> None:
        """Raise UsageError if configuration or models do not fit a task; note what is left out."""
        config, task, kind = context.config, context.splits.task, context.kind
        kind.check(config, task)
        for model in models:
            described = context.describe(model)
            kind.check_model(described.label, task, writes=described.writes)
        note = kind.note(config, task)
        if note and note not in self._notes:
            self._notes.append(note)

    @contextmanager
    def _open(self, where: str) -> Iterator[None]:
        """Keep the error of what cannot be opened and continue; raise a wrong option at once."""
        try:
            yield
        except UsageError:
            raise
        except ProbekitError as error:
            self._errors[where] = error

    def first_steps(self) -> list[Step]:
        """Return the steps whose results decide which steps follow."""
        pairs = [each.source for each in self.experiments if isinstance(each.source, Pair)]
        return [step for pair in pairs for step in pair.first_steps()]

    def arms(self, experiment: Experiment, *, planned: bool = False) -> list[PlannedArm]:
        """Return the rows of an experiment's table; ``planned`` before anything is done."""
        if isinstance(experiment.source, Chain):
            return experiment.source.arms()
        return experiment.source.arms(None if planned else self.cache)

    def all_steps(self, *, planned: bool = False) -> list[Step]:
        """Return every step that the tables need."""
        return [
            step
            for experiment in self.experiments
            for arm in [*self.arms(experiment, planned=planned), *_both_starts(experiment)]
            for step in arm.steps
        ]

    def check(self) -> None:
        """Raise all errors that can be known before anything is done or written.

        Raises
        ------
        ProbekitError
            If a setting is wrong for a model or its rows, or nothing can be opened.
        """
        self.all_steps(planned=True)

    def carry_out(self, folder: Path) -> dict[str, Any]:
        """Do the steps that are not done, score them, and write predictions and metrics.

        What fails is left out and listed under ``failures``; everything else is done.
        """
        self.check()
        for each in self.left_out:
            self._report(f"Warning: {each}; all others run.")
        for note in self._notes:
            self._report(f"Note: {note}")
        self.cache.run(self.first_steps())
        self.cache.run(self.all_steps())
        summary = {"config": self.config.to_mapping(), **self._scored(folder), **provenance()}
        with atomic_write(folder / METRICS, "w") as file:
            file.write(json.dumps(summary, ensure_ascii=False, indent=1) + "\n")
        return summary

    def _scored(self, folder: Path) -> dict[str, Any]:
        """Return groups of seeds, results of each seed and failures; write predictions."""
        results = [self._score(each, folder) for each in self.experiments]
        groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
        for result in results:
            groups.setdefault((result["task"], result["weak"], result["strong"]), []).append(result)
        return {
            "groups": [
                {
                    "task": task,
                    "weak": weak,
                    "strong": strong,
                    "kind": seeds[0]["kind"],
                    "student": seeds[0]["student"],
                    "parameters": seeds[0]["parameters"],
                    "seeds": [result["seed"] for result in seeds],
                    "arms": combine_seeds([result["arms"] for result in seeds]),
                    **_language_models(seeds),
                }
                for (task, weak, strong), seeds in groups.items()
            ],
            "results": results,
            "failures": [
                *self.left_out,
                *(each for result in results for each in result["failures"]),
            ],
        }

    def _score(self, experiment: Experiment, folder: Path) -> dict[str, Any]:
        context, arms = experiment.context, self.arms(experiment)
        directly = _both_starts(experiment)
        every = [*arms, *directly]
        weak = self._weak_labels(experiment, arms)
        shares = None if weak is None else context.kind.prior(weak)
        predicted, truth, classes = context.kind.grade(
            [self._tests(context, arm) for arm in every], context.splits.truth["test"]
        )
        graded = [
            self._arm(context, arm, weak, draws)
            for arm, draws in zip(every, predicted, strict=True)
        ]
        score = partial(
            score_arms,
            truth=truth,
            weak_prior=shares,
            classes=classes,
            ties=by_key(context.splits.rows["test"].keys, seed=context.seed),
            seed=context.seed,
        )
        scored = score(graded[: len(arms)])
        starts, direct_scores = _under_both_ceilings(
            graded[: len(arms)], graded[len(arms) :], score
        )
        self._copy_predictions(experiment, every, folder)
        task, weak_name, strong = experiment.group
        steps = [step for arm in every for step in arm.steps if self.cache.done(step)]
        result = {
            "task": task,
            "kind": context.splits.kind,
            "weak": weak_name,
            "strong": strong,
            "student": experiment.student,
            "seed": context.seed,
            "classes": list(context.splits.classes),
            "rows": {name: len(rows) for name, rows in context.splits.rows.items()},
            "weak_prior": None if shares is None else shares.tolist(),
            "parameters": self._parameters(experiment),
            "alarms": [*self._alarms(context, every), *_raised(context, scored, missing=True)],
            "failures": _raised(context, [*scored, *direct_scores], missing=False),
            "arms": scored,
            "seconds": {step.name: self.cache.seconds(step) for step in steps},
        }
        if isinstance(experiment.source, Pair) and experiment.source.base is not None:
            result["language_model"] = self._language_model(experiment.source.base)
            result["starts"] = starts
        if self.config.rounds > 1 and isinstance(experiment.source, Pair):
            result["rounds"] = self._training_set_pgr(experiment.source, arms)
        if self.config.curves:
            result["curves"] = self._curves(experiment, arms, scored)
        return result

    def _language_model(self, step: Step) -> dict[str, Any]:
        """Return the perplexity of held-out texts before and after the language-model step."""
        if self.cache.failure(step):
            return dict.fromkeys(PERPLEXITY)
        metrics = read_json(self.cache.path(step) / "model" / METRICS)
        return {name: metrics[name] for name in PERPLEXITY}

    def _tests(self, context: Context, arm: PlannedArm) -> list[Any]:
        """Return an arm's predictions of the test rows, one per draw that has them."""
        rows = context.splits.rows["test"]
        return [
            context.kind.read(self._file(step, "test"), rows, "the test rows")
            for step in arm.steps
            if self.cache.failure(step) is None and self._tested(step)
        ]

    def _arm(
        self,
        context: Context,
        arm: PlannedArm,
        weak: Codes | None,
        predicted: Sequence[NDArray[Any]],
    ) -> Arm:
        """Return an arm with its predictions of the test rows and its alarms."""
        alarms = {}
        reasons = [reason for step in arm.steps if (reason := self.cache.failure(step))]
        if reasons:
            alarms["failed"] = reasons[0]
        if any(self.cache.failure(s) is None and not self._tested(s) for s in arm.steps):
            alarms["missing"] = "the file has no labels for the test rows"
        labels = self._training_labels(context, arm)
        right = n_rows = None
        if labels is not None and len(labels.hard):
            right, n_rows = float(np.mean(labels.hard == labels.truth)), len(labels.hard)
        codes = weak if arm.kind == "floor" else labels
        if codes is not None and len(np.unique(codes.hard)) == 1:
            one = codes.classes[int(codes.hard[0])]
            which = "that it gives the student" if arm.kind == "floor" else "to train on"
            alarms["degenerate"] = f"all {len(codes.hard)} labels {which} are {one!r}"
        return Arm(
            name=arm.name,
            kind=arm.kind,
            probs=predicted,
            label_accuracy=right,
            rows=n_rows,
            notes={},
            alarms=alarms,
        )

    def _tested(self, step: Step) -> bool:
        """Return whether a step predicts the test rows; labels of a file may not."""
        return step.kind != "labels" or "test" in step.params

    def _file(self, step: Step, part: str) -> Path:
        return self.cache.path(step) / predictions_file(part)

    def _training_labels(self, context: Context, arm: PlannedArm) -> Codes | None:
        """Return the class that each row trains on, and its true class; None if unknown."""
        if arm.labels is None:
            return None
        step, truth = arm.labels.step, context.splits.truth[arm.part]
        if step is not None and not self.cache.done(step):
            return None
        folder = None if step is None else self.cache.path(step)
        return context.kind.codes(context.read(arm.labels, arm.part, folder), truth)

    def _weak_labels(self, experiment: Experiment, arms: list[PlannedArm]) -> Codes | None:
        """Return the classes of the plain student's labels; None if its supervisor failed."""
        plain = next(arm for arm in arms if arm.kind in ("plain", "naive", "chain"))
        return self._training_labels(experiment.context, plain)

    def _parameters(self, experiment: Experiment) -> dict[str, int]:
        source, describe = experiment.source, self._sources.describe
        if isinstance(source, Chain):
            weak, strong = (describe(source.models[end]) for end in (0, -1))
        else:
            weak, strong = source.supervisor, describe(source.strong)
        return {"weak": weak.parameters, "strong": strong.parameters}

    def _alarms(self, context: Context, arms: list[PlannedArm]) -> list[str]:
        listed: list[str] = []
        for arm in arms:
            for step in arm.steps:
                if step.kind == "finetune" and self.cache.done(step):
                    notes = read_json(self.cache.path(step) / "model" / METRICS).get("notes", [])
                    listed += [f"{context.title(arm.name)}: {note}" for note in notes]
            if arm.kind in ("filter", "relabel") and arm.labels is not None:
                assert arm.labels.step is not None
                if not self.cache.done(arm.labels.step):
                    continue
                verdicts = Verdicts.load(self.cache.path(arm.labels.step) / VERDICTS)
                alarms = summarize(verdicts).alarms
                listed += [f"{context.title(arm.name)}: {alarm}" for alarm in alarms]
        return listed

    def _training_set_pgr(self, pair: Pair, arms: list[PlannedArm]) -> list[dict[str, Any]]:
        """Return the accuracy of each round's labels, between weak labels and ceiling."""
        context = pair.context
        truth, rows = context.splits.truth["student"], context.splits.rows["student"]

        def right(step: Step) -> float:
            if self.cache.failure(step) is not None:
                return float("nan")
            predicted = context.kind.read(self._file(step, "student"), rows, "the student's rows")
            codes = context.kind.codes(predicted, truth)
            return float(np.mean(codes.hard == codes.truth))

        weak, ceiling = right(pair.floor), right(pair.ceiling)
        steps = [pair.plain, *(arm.steps[0] for arm in arms if arm.kind == "round")]
        reported = []
        for number, step in enumerate(steps[:-1], 2):
            student = right(step)
            value = pgr(weak, student, ceiling)
            figures = {"weak": weak, "student": student, "ceiling": ceiling, "pgr": value}
            reason = pgr_undefined(weak, ceiling)
            reported.append({"before_round": number, **plain_numbers(figures), "reason": reason})
        return reported

    def _curves(
        self, experiment: Experiment, arms: list[PlannedArm], scored: list[dict[str, Any]]
    ) -> dict[str, Any]:
        from probekit.students.predict import read_curve

        context, curves = experiment.context, dict[str, Any]()
        rows = context.splits.rows
        # NaN for one that failed: then no PGR is defined.
        floor, ceiling = (
            next((each["accuracy"] for each in scored if each["kind"] == kind), None)
            for kind in ("floor", "ceiling")
        )
        for arm in arms:
            source = experiment.source
            if arm.kind in ("floor", "ceiling", "probe") or isinstance(source, Chain):
                continue
            if experiment.student != FINETUNE:
                continue
            if self.cache.failure(arm.steps[0]) is not None:
                continue
            folder = self.cache.path(arm.steps[0]) / "model"
            steps, test = read_curve(folder, "test")
            _, held_out = read_curve(folder, "validation")
            path = self._file(source.floor, "validation")
            weak = context.kind.read(path, rows["validation"], "the validation rows")
            curves[arm.name] = score_curve(
                steps,
                test,
                context.splits.truth["test"].hard,
                held_out,
                weak.probs,
                floor=np.nan if floor is None else floor,
                ceiling=np.nan if ceiling is None else ceiling,
            )
        return curves

    def _predictions_folder(self, experiment: Experiment, folder: Path) -> Path:
        """Make the folder of an experiment's predictions in that of the run."""
        target = folder / "predictions"
        if len({each.group for each in self.experiments}) > 1:
            target /= "--".join(_slug(part) for part in experiment.group)
        target /= f"seed{experiment.context.seed}"
        target.mkdir(parents=True, exist_ok=True)
        return target

    def _copy_predictions(
        self, experiment: Experiment, arms: list[PlannedArm], folder: Path
    ) -> None:
        """Copy every arm's test predictions into the run's folder."""
        target = self._predictions_folder(experiment, folder)
        for arm in arms:
            for number, step in enumerate(arm.steps, 1):
                if self.cache.failure(step) is not None or not self._tested(step):
                    continue
                name = arm.name if len(arm.steps) == 1 else f"{arm.name} {number}"
                source = self.cache.path(step) / predictions_file("test")
                shutil.copyfile(source, target / f"{_slug(name)}.parquet")


def _both_starts(experiment: Experiment) -> list[PlannedArm]:
    """Return plain student and ceiling without a run's language-model step, if it has one."""
    return experiment.source.both_starts() if isinstance(experiment.source, Pair) else []


def _under_both_ceilings(
    arms: Sequence[Arm],
    directly: Sequence[Arm],
    score: Callable[[Sequence[Arm]], list[dict[str, Any]]],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Compare plain students with and without the language-model step under either ceiling.

    ``arms`` begin with floor and plain student and end with the ceiling; ``directly`` are plain
    student and ceiling without the step. The gain is measured from the student without it. Also
    returns the scores of ``directly``. Empty without the step.
    """
    if not directly:
        return [], []
    floor, after, high = arms[0], arms[1], arms[-1]
    before, low = directly
    under = {
        start: score([floor, before, after, ceiling])
        for start, ceiling in zip(STARTS, (low, high), strict=True)
    }
    rows = under[STARTS[0]]
    starts = [
        {
            "start": start,
            "student": rows[place]["accuracy"],
            "ceiling": under[start][-1]["accuracy"],
            "gain": rows[place]["gain"],
            "pgr": {ceiling: scored[place]["pgr"] for ceiling, scored in under.items()},
        }
        for place, start in enumerate(STARTS, 1)
    ]
    return starts, [rows[1], rows[-1]]


def _raised(context: Context, scored: list[dict[str, Any]], *, missing: bool) -> list[str]:
    """Return the arms' alarms as sentences; a ``missing`` floor is not a failure."""
    return [
        f"{context.title(row['name'])}: {name}: {reason}"
        for row in scored
        for name, reason in row["alarms"].items()
        if (name == "missing") is missing
    ]


def _language_models(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the perplexities of the language-model steps over seeds, if there are any."""
    known = [each["language_model"] for each in results if "language_model" in each]
    if not known:
        return {}
    return {"language_model": {key: spread([each[key] for each in known]) for key in PERPLEXITY}}


def _slug(name: str) -> str:
    """Return a file name of letters, digits, dots and dashes."""
    kept = "".join(c if c.isalnum() or c in ".@=" else "-" for c in name)
    return "-".join(part for part in kept.split("-") if part).strip(".") or "-"
