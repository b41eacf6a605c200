"""``probekit run``: every task, pair and seed of a configuration, judged, in one folder."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probekit.cleaning.evaluate import summarize
from probekit.cuts import by_key
from probekit.errors import DataError, OutputExistsError, ProbekitError, UsageError, first_few
from probekit.experiments.cache import Cache, Step, versions
from probekit.experiments.config import FINETUNE, RunConfig, write_config
from probekit.experiments.scores import (
    PERPLEXITY,
    Arm,
    combine_seeds,
    plain_numbers,
    score_arms,
    score_curve,
    spread,
)
from probekit.experiments.splits import Splits, chain_splits, labelled, run_splits
from probekit.experiments.steps import VERDICTS, Context, Model, describe_model, predictions_file
from probekit.experiments.weak_to_strong import Chain, Pair, PlannedArm
from probekit.files import TEMPORARY, atomic_write
from probekit.labels import WeakLabels, load_labels
from probekit.metrics import pgr, pgr_undefined
from probekit.safe import read_json
from probekit.settings import read_settings
from probekit.verdicts import Verdicts

__all__ = ["Experiment", "Run", "Sources", "open_folder", "provenance"]

CONFIG, METRICS = "config.yaml", "metrics.json"


@dataclass(frozen=True, eq=False)
class Experiment:
    """One task, one pair of models (or one chain), one seed."""

    source: Pair | Chain
    weak: str
    strong: str
    student: str = FINETUNE

    @property
    def context(self) -> Context:
        """Its rows and seed."""
        return self.source.context

    @property
    def group(self) -> tuple[str, str, str]:
        """What it has in common with its other seeds."""
        return self.context.splits.task, self.weak, self.strong


class Sources:
    """Rows and models; a plan has stand-ins for those that cannot be reached."""

    def splits(self, task: str, config: RunConfig, seed: int) -> Splits:
        """Rows of supervisor, student, validation and test."""
        return run_splits(task, config, seed)

    def chain_splits(self, task: str, config: RunConfig, seed: int) -> Splits:
        """Rows of a chain's models, and test rows."""
        return chain_splits(task, config, seed)

    def describe(self, model: str, revision: str | None = None) -> Model:
        """What is known of a model."""
        return describe_model(model, revision)


class Run:
    """All experiments of a configuration.

    Parameters
    ----------
    steps
        Folder of the steps, which runs may share.
    tell
        Is shown a line per step.
    sources
        Where rows and models are looked up.
    """

    def __init__(
        self,
        config: RunConfig,
        steps: Path,
        tell: Callable[[str], None],
        sources: Sources | None = None,
    ) -> None:
        self.config = config
        self.cache = Cache(steps, tell)
        self._tell = tell
        self._sources = sources or Sources()
        self._refused: dict[str, ProbekitError] = {}
        self._notes: list[str] = []

    @cached_property
    def experiments(self) -> list[Experiment]:
        """Task by task, seed by seed, pair by pair; what cannot be opened is in ``left_out``.

        Raises
        ------
        ProbekitError
            Where none of them can be opened, or one was asked for in a wrong way.
        """
        found = self._experiments()
        if not found:
            raise next(iter(self._refused.values()))
        return found

    @property
    def left_out(self) -> list[str]:
        """Tasks, seeds and models that could not be opened, and why."""
        return [
            f"{name}: failed: {str(error).rstrip('.')}" for name, error in self._refused.items()
        ]

    def refuse_left_out(self) -> None:
        """Raise the first error that ``left_out`` tells of."""
        if self.experiments and self._refused:
            raise next(iter(self._refused.values()))

    def _experiments(self) -> list[Experiment]:
        config, describe = self.config, self._sources.describe
        found: list[Experiment] = []
        for task, seed in product(config.task, config.seeds):
            where = f"{task}, seed {seed}"
            if config.strong and (config.weak or config.weak_labels):
                with self._open(where):
                    found += self._pairs(task, seed)
            if config.chain:
                with self._open(f"{where}, chain"):
                    splits = self._sources.chain_splits(task, config, seed)
                    chain = Chain(Context(config, splits, seed, describe), tuple(config.chain))
                    first, last = (describe(chain.models[i]).label for i in (0, -1))
                    found.append(Experiment(chain, first, f"{last} (chain)"))
        return found

    def _pairs(self, task: str, seed: int) -> list[Experiment]:
        """Every weak supervisor with every student's model, on one task and seed."""
        config = self.config
        splits, given, weak_names = self._sources.splits(task, config, seed), None, config.weak
        if config.weak_labels is not None:
            labels = load_labels(config.weak_labels, one_class=True)
            splits, given, notes = labelled(splits, labels)
            self._notes += notes
            weak_names = (Path(config.weak_labels).name,)
        context = Context(config, splits, seed, self._sources.describe)
        found = []
        for weak, strong, student in product(weak_names, config.strong, config.student):
            with self._open(f"{task}, seed {seed}, {weak} → {strong}"):
                pair = Pair(context, weak, strong, student, given)
                found.append(Experiment(pair, *pair.names, student))
        return found

    @contextmanager
    def _open(self, where: str) -> Iterator[None]:
        """Note what cannot be opened and go on; what was asked for in a wrong way is refused."""
        try:
            yield
        except UsageError:
            raise
        except ProbekitError as error:
            self._refused[where] = error

    def first_steps(self) -> list[Step]:
        """What decides which steps follow."""
        pairs = [each.source for each in self.experiments if isinstance(each.source, Pair)]
        return [step for pair in pairs for step in pair.first_steps()]

    def arms(self, experiment: Experiment, *, planned: bool = False) -> list[PlannedArm]:
        """The rows of an experiment's table; ``planned`` before anything is done."""
        if isinstance(experiment.source, Chain):
            return experiment.source.arms()
        return experiment.source.arms(None if planned else self.cache)

    def all_steps(self, *, planned: bool = False) -> list[Step]:
        """Every step that the tables need."""
        return [
            step
            for experiment in self.experiments
            for arm in self.arms(experiment, planned=planned)
            for step in arm.steps
        ]

    def check(self) -> None:
        """Refuse what can be told to be wrong before anything is done or written.

        Raises
        ------
        ProbekitError
            Where a setting is wrong for a model or its rows, or nothing can be opened at all.
        """
        self.all_steps(planned=True)

    def carry_out(self, folder: Path) -> dict[str, Any]:
        """Do what is not done, score it, and write predictions and metrics.

        What fails is left out and listed under ``failures``; everything else goes on.
        """
        self.check()
        for each in self.left_out:
            self._tell(f"Warning: {each}; the others go on.")
        for note in self._notes:
            self._tell(f"Note: {note}")
        self.cache.run(self.first_steps())
        self.cache.run(self.all_steps())
        summary = {"config": self.config.to_mapping(), **self._scored(folder), **provenance()}
        with atomic_write(folder / METRICS, "w") as file:
            file.write(json.dumps(summary, ensure_ascii=False, indent=1) + "\n")
        return summary

    def _scored(self, folder: Path) -> dict[str, Any]:
        """Groups of seeds, results of each seed, and what failed; writes predictions."""
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
        truth, weak = context.splits.truth, self._weak_labels(experiment, arms)
        prior = None if weak is None else np.bincount(weak, minlength=len(truth["test"].classes))
        shares = None if prior is None else prior / prior.sum()
        judged = score_arms(
            [self._arm(context, arm, weak) for arm in arms],
            truth=truth["test"].hard,
            weak_prior=shares,
            classes=context.splits.classes,
            ties=by_key(context.splits.rows["test"].keys, seed=context.seed),
            seed=context.seed,
        )
        self._copy_predictions(experiment, arms, folder)
        task, weak_name, strong = experiment.group
        steps = [step for arm in arms for step in arm.steps if self.cache.done(step)]
        result = {
            "task": task,
            "weak": weak_name,
            "strong": strong,
            "student": experiment.student,
            "seed": context.seed,
            "classes": list(context.splits.classes),
            "rows": {name: len(rows) for name, rows in context.splits.rows.items()},
            "weak_prior": None if shares is None else shares.tolist(),
            "parameters": self._parameters(experiment),
            "alarms": [*self._alarms(context, arms), *_raised(context, judged, missing=True)],
            "failures": _raised(context, judged, missing=False),
            "arms": judged,
            "seconds": {step.name: self.cache.seconds(step) for step in steps},
        }
        if isinstance(experiment.source, Pair) and experiment.source.base is not None:
            result["language_model"] = self._language_model(experiment.source.base)
        if self.config.rounds > 1 and isinstance(experiment.source, Pair):
            result["rounds"] = self._training_set_pgr(experiment.source, arms)
        if self.config.curves:
            result["curves"] = self._curves(experiment, arms, judged)
        return result

    def _language_model(self, step: Step) -> dict[str, Any]:
        """How well the model predicts held-out texts before and after the language-model step."""
        if self.cache.failure(step):
            return dict.fromkeys(PERPLEXITY)
        metrics = read_json(self.cache.path(step) / "model" / METRICS)
        return {name: metrics[name] for name in PERPLEXITY}

    def _arm(self, context: Context, arm: PlannedArm, weak: NDArray[np.int64] | None) -> Any:
        """An arm's predictions of the test rows, and what is wrong with it."""
        rows, alarms = context.splits.rows["test"], {}
        reasons = [reason for step in arm.steps if (reason := self.cache.failure(step))]
        if reasons:
            alarms["failed"] = reasons[0]
        probs = []
        for step in arm.steps:
            if self.cache.failure(step) is None and not self._tested(step):
                alarms["missing"] = "the file has no labels for the test rows"
            elif self.cache.failure(step) is None:
                found = self._predictions(step, "test")
                aligned = found.align(rows.keys, rows_name="the test rows")
                probs.append(aligned.labels.probs)
        labels = self._training_labels(context, arm)
        right = many = None
        if labels is not None and len(labels):
            hard, truth = labels.T
            right, many = float(np.mean(hard == truth)), len(hard)
        given = weak if arm.kind == "floor" else None if labels is None else labels[:, 0]
        if given is not None and len(np.unique(given)) == 1:
            one = context.splits.classes[int(given[0])]
            which = "that it gives the student" if arm.kind == "floor" else "to train on"
            alarms["degenerate"] = f"all {len(given)} labels {which} are {one!r}"
        return Arm(
            name=arm.name,
            kind=arm.kind,
            probs=probs,
            label_accuracy=right,
            rows=many,
            notes={},
            alarms=alarms,
        )

    def _tested(self, step: Step) -> bool:
        """Whether a step has predictions of the test rows; labels of a file may have none."""
        return step.kind != "labels" or "test" in step.params

    def _predictions(self, step: Step, part: str) -> WeakLabels:
        return load_labels(self.cache.path(step) / predictions_file(part), one_class=True)

    def _training_labels(self, context: Context, arm: PlannedArm) -> NDArray[np.int64] | None:
        """Class that each row trains on and its true class (m, 2); None where nothing is known."""
        if arm.labels is None:
            return None
        step, truth = arm.labels.step, context.splits.truth[arm.part].hard
        if step is not None and not self.cache.done(step):
            return None
        folder = None if step is None else self.cache.path(step)
        found = context.read(arm.labels, arm.part, folder)
        keep = getattr(found, "keep", np.ones(len(truth), dtype=bool))
        return np.column_stack([found.hard, truth])[keep]

    def _weak_labels(
        self, experiment: Experiment, arms: list[PlannedArm]
    ) -> NDArray[np.int64] | None:
        """Classes (n,) that the plain student trains on; None where its supervisor failed."""
        plain = next(arm for arm in arms if arm.kind in ("plain", "naive", "chain"))
        found = self._training_labels(experiment.context, plain)
        return None if found is None else found[:, 0]

    def _parameters(self, experiment: Experiment) -> dict[str, int]:
        source, describe = experiment.source, self._sources.describe
        if isinstance(source, Chain):
            weak, strong = (describe(source.models[end]) for end in (0, -1))
        else:
            weak, strong = source.supervisor, describe(source.strong)
        return {"weak": weak.parameters, "strong": strong.parameters}

    def _alarms(self, context: Context, arms: list[PlannedArm]) -> list[str]:
        found = []
        for arm in arms:
            for step in arm.steps:
                if step.kind == "finetune" and self.cache.done(step):
                    notes = read_json(self.cache.path(step) / "model" / METRICS).get("notes", [])
                    found += [f"{context.title(arm.name)}: {note}" for note in notes]
            if arm.kind in ("filter", "relabel") and arm.labels is not None:
                assert arm.labels.step is not None
                if not self.cache.done(arm.labels.step):
                    continue
                verdicts = Verdicts.load(self.cache.path(arm.labels.step) / VERDICTS)
                alarms = summarize(verdicts).alarms
                found += [f"{context.title(arm.name)}: {alarm}" for alarm in alarms]
        return found

    def _training_set_pgr(self, pair: Pair, arms: list[PlannedArm]) -> list[dict[str, Any]]:
        """How right the labels of each round are, between weak labels and ceiling."""
        context = pair.context
        truth = context.splits.truth["student"].hard
        rows = context.splits.rows["student"]

        def right(step: Step) -> float:
            if self.cache.failure(step) is not None:
                return float("nan")
            found = self._predictions(step, "student").align(rows.keys)
            return float(np.mean(found.labels.hard == truth))

        weak, ceiling = right(pair.floor), right(pair.ceiling)
        steps = [pair.plain, *(arm.steps[0] for arm in arms if arm.kind == "round")]
        reported = []
        for number, step in enumerate(steps[:-1], 2):
            student = right(step)
            value = pgr(weak, student, ceiling)
            found = {"weak": weak, "student": student, "ceiling": ceiling, "pgr": value}
            reason = pgr_undefined(weak, ceiling)
            reported.append({"before_round": number, **plain_numbers(found), "reason": reason})
        return reported

    def _curves(
        self, experiment: Experiment, arms: list[PlannedArm], judged: list[dict[str, Any]]
    ) -> dict[str, Any]:
        from probekit.students.predict import read_curve

        context, found = experiment.context, {}
        rows = context.splits.rows
        # Of one that failed NaN, between which and anything no PGR is defined.
        floor, ceiling = (
            next((each["accuracy"] for each in judged if each["kind"] == kind), None)
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
            weak = self._predictions(source.floor, "validation").align(rows["validation"].keys)
            found[arm.name] = score_curve(
                steps,
                test,
                context.splits.truth["test"].hard,
                held_out,
                weak.labels.probs,
                floor=np.nan if floor is None else floor,
                ceiling=np.nan if ceiling is None else ceiling,
            )
        return found

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
        """Put every arm's test predictions where people look for them."""
        target = self._predictions_folder(experiment, folder)
        for arm in arms:
            for number, step in enumerate(arm.steps, 1):
                if self.cache.failure(step) is not None or not self._tested(step):
                    continue
                name = arm.name if len(arm.steps) == 1 else f"{arm.name} {number}"
                source = self.cache.path(step) / predictions_file("test")
                shutil.copyfile(source, target / f"{_slug(name)}.parquet")


def _raised(context: Context, judged: list[dict[str, Any]], *, missing: bool) -> list[str]:
    """What is wrong with the arms; a floor that nobody gave is ``missing``, and no failure."""
    return [
        f"{context.title(row['name'])}: {name}: {reason}"
        for row in judged
        for name, reason in row["alarms"].items()
        if (name == "missing") is missing
    ]


def open_folder(folder: Path, config: RunConfig, *, make: bool = True) -> None:
    """Make a run's folder, or go on in one of the same configuration; ``make=False`` only checks.

    Raises
    ------
    OutputExistsError
        Where the folder holds another run or something else.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputExistsError(f"{folder} is a file; name a folder with -o.")
    if (folder / CONFIG).is_file():
        there = type(config).from_mapping(read_settings(folder / CONFIG), folder / CONFIG)
        differing = config.differences(there)
        if differing and not (folder / METRICS).exists() and not _foreign(folder):
            write_config(config, folder / CONFIG)  # a run that left nothing but its name here
        elif differing:
            raise OutputExistsError(
                f"{folder} holds a run of another configuration, which differs in "
                f"{', '.join(differing)}; "
                "name another folder with -o, where steps that both share are not done again."
            )
        return
    if folder.exists() and (names := _foreign(folder)):
        listed = first_few(sorted(names))
        raise OutputExistsError(f"{folder} holds other files ({listed}); name another folder.")
    if not make:
        return
    if not folder.absolute().parent.is_dir():
        raise DataError(f"The folder {folder.parent} of the output {folder.name} does not exist.")
    folder.mkdir(exist_ok=True)
    write_config(config, folder / CONFIG)


def _foreign(folder: Path) -> list[str]:
    """What lies in a folder beside a run's configuration, whole or half written."""
    names = [path.name for path in folder.iterdir()]
    return [name for name in names if name != CONFIG and not name.endswith(TEMPORARY)]


def _language_models(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Perplexities of the language-model steps over seeds, where there were such steps."""
    found = [each["language_model"] for each in results if "language_model" in each]
    if not found:
        return {}
    return {"language_model": {key: spread([each[key] for each in found]) for key in PERPLEXITY}}


def provenance() -> dict[str, Any]:
    """Versions and hardware that results were made with."""
    return {
        "versions": versions(),
        "hardware": {"machine": platform.machine(), "cpus": os.cpu_count(), "gpu": _gpu()},
    }


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _slug(name: str) -> str:
    """A file's name: letters, digits, dots and dashes."""
    kept = "".join(c if c.isalnum() or c in ".@=" else "-" for c in name)
    return "-".join(part for part in kept.split("-") if part).strip(".") or "-"
