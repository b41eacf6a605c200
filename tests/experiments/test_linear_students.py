"""Linear students and supervisors without a pretrained model: from what each arm is made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probekit.activations.store import ActivationStore
from probekit.cleaning.predict import relabel
from probekit.errors import DataError, LabelsError, UsageError
from probekit.experiments.cache import Step, in_order
from probekit.experiments.config import STUDENTS, RunConfig
from probekit.experiments.folder import open_folder
from probekit.experiments.plan import plan
from probekit.experiments.presets import read_preset
from probekit.experiments.run import Run, Sources
from probekit.experiments.steps import STORE, VERDICTS, Model, _fit, random_verdicts
from probekit.labels import WeakLabels, load_labels
from probekit.metrics import paired_bootstrap
from probekit.probes import KNNProbe, LogisticProbe
from probekit.reports.run import run_table, write_run_reports
from probekit.verdicts import Verdicts

pytestmark = pytest.mark.usefixtures("one_thread")

Files = Callable[..., Path]


class Done:
    """A run that is carried out: its results, its steps by name, and what it printed."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        self.folder, self.lines = folder, list[str]()
        open_folder(folder, config)
        self.run = Run(config, folder.parent / "steps", self.lines.append)
        self.results = self.run.carry_out(folder)
        self.text = write_run_reports(self.results, folder)
        (self.experiment, *_) = self.run.experiments
        self.planned = {arm.name: arm for arm in self.run.arms(self.experiment)}

    @property
    def arms(self) -> dict[str, dict[str, Any]]:
        return {arm["name"]: arm for arm in self.results["results"][0]["arms"]}

    @property
    def kinds(self) -> set[str]:
        return {step.kind for step in in_order(self.run.all_steps())}

    def predicted(self, name: str, draw: int = 0) -> np.ndarray:
        path = (
            self.run.cache.path(self.planned[name].steps[draw]) / "model/predictions/test.parquet"
        )
        rows = self.experiment.context.splits.rows["test"]
        return load_labels(path, one_class=True).align(rows.keys).labels.probs

    def states(self, part: str) -> tuple[np.ndarray, np.ndarray]:
        """States of a part's rows, and which rows are copies."""
        (step,) = {
            step.key: step
            for step in in_order(self.run.all_steps())
            if step.kind == "states" and f"{part} rows" in step.name
        }.values()
        with ActivationStore(self.run.cache.path(step) / STORE) as store:
            return np.array(store.layer(store.layers[-1])), np.asarray(store.copies())


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., Path]) -> Any:
    words = (["cat", "a small cat", "cats sleep"], ["hammer", "a steel hammer", "hammers"])
    rows = [
        {"id": f"r{i}", "text": f"{words[i % 2][i // 2 % 3]} {i}", "label": i % 2 if i % 5 else 0}
        for i in range(480)
    ]
    path = tmp_path_factory.mktemp("task") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "task": str(path),
        "weak": "bag-of-words",
        "strong": str(tiny_model("bert")),
        "student": ["linear", "memorising"],
        "supervisor_rows": 40,
        "validation_share": 0.0,
        "layer": "last",
        "probes": ["knn"],
        "probe_options": {"knn": {"k": 5}},
        "random_drops": 3,
    }


@pytest.fixture(scope="module")
def done(fields: Any, tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Done:
    folder = tmp_path_factory.mktemp("linear") / "run"
    return Done(RunConfig.from_mapping(fields), folder)


def test_nothing_is_finetuned_and_each_student_has_a_table(done: Done, fields: Any) -> None:
    assert done.kinds == {"bag-of-words", "states", "verdicts", "random", "probe"}
    names = ["weak supervisor", "weak labels", "random as kNN", "filter kNN", "relabel kNN"]
    for result, student in zip(done.results["results"], STUDENTS, strict=True):
        # "probe logistic" would be the linear student itself.
        assert [arm["name"] for arm in result["arms"]] == [*names, "probe kNN", "ground truth"]
        assert result["student"] == student
        assert result["strong"].endswith(f" ({student})")
        assert result["parameters"]["weak"] == 0 < result["parameters"]["strong"]
    assert done.results["failures"] == []
    assert "(memorising), 1 seed" in done.text
    assert {"bag-of-words", "probe"} <= plan(RunConfig.from_mapping(fields), done.folder)[
        "steps"
    ].keys()


def test_trusted_rows_have_their_true_label_after_cleaning(fields: Any, tmp_path: Path) -> None:
    some = {"student": ["linear"], "random_drops": 0, "trusted_rows": 15}
    found = Done(RunConfig.from_mapping({**fields, **some}), tmp_path / "run")
    assert found.results["failures"] == []
    splits = found.experiment.context.splits
    assert len(splits.trusted) == 15
    truth = splits.truth["student"]
    for name in ("filter kNN", "relabel kNN"):
        step = found.planned[name].labels.step
        verdicts = Verdicts.load(found.run.cache.path(step) / VERDICTS)
        assert verdicts.provenance["trusted"]["rows"] == 15
        known = np.isin(verdicts.ids, list(splits.trusted))
        assert list(verdicts.ids) == list(truth.ids)
        assert np.array_equal(verdicts.hard[known], truth.hard[known])
        assert verdicts.keep[known].all()


@pytest.mark.parametrize("number", [0, 1], ids=list(STUDENTS))
def test_students_are_logistic_probes_on_the_states_of_what_is_kept(
    done: Done, number: int
) -> None:
    done.planned = {a.name: a for a in done.run.arms(done.run.experiments[number])}
    (X, copies), (X_test, _) = done.states("student"), done.states("test")
    context = done.experiment.context
    truth = context.splits.truth["student"]
    path = done.run.cache.path(done.planned["relabel kNN"].labels.step) / VERDICTS
    relabelled = Verdicts.load(path)
    path = done.run.cache.path(done.planned["filter kNN"].labels.step) / VERDICTS
    kept = Verdicts.load(path)
    keep = np.flatnonzero(kept.keep)
    assert 0 < len(keep) < len(X)
    sets = {
        "weak labels": (np.arange(len(X)), kept.weak),
        "filter kNN": (keep, kept.weak[keep]),
        "relabel kNN": (np.arange(len(X)), relabelled.label),
        "ground truth": (np.arange(len(X)), truth.probs),
    }
    options = list(STUDENTS.values())[number]
    for name, (rows, Y) in sets.items():
        probe = LogisticProbe(**options).fit(X[rows], Y.astype(float), groups=copies[rows])
        # Labels are float32 in verdicts and float64 in a supervisor's predictions.
        assert done.predicted(name) == pytest.approx(probe.predict_proba(X_test), abs=1e-4), name
        arm = {a["name"]: a for a in done.results["results"][number]["arms"]}[name]
        assert arm["rows"] == len(rows)
        right = (Y.argmax(axis=1) == truth.hard[rows]).mean()
        assert arm["label_accuracy"] == pytest.approx(right)
        test = context.splits.truth["test"].hard
        assert arm["accuracy"] == (done.predicted(name).argmax(axis=1) == test).mean()


def test_random_drops_are_of_the_filters_size_and_averaged(done: Done) -> None:
    done.planned = {a.name: a for a in done.run.arms(done.experiment)}
    arm = done.arms["random as kNN"]
    assert arm["draws"] == 3
    assert arm["rows"] == done.arms["filter kNN"]["rows"]
    test = done.experiment.context.splits.truth["test"].hard
    single = [
        (done.predicted("random as kNN", draw).argmax(axis=1) == test).mean() for draw in range(3)
    ]
    assert arm["accuracy"] == pytest.approx(np.mean(single))


def test_random_drops_are_of_each_weak_class_and_of_the_seed() -> None:
    Y = np.eye(2)[np.arange(100) % 5 // 4]  # 80 of class 0, 20 of class 1
    ids = [f"r{i}" for i in range(100)]
    weak = WeakLabels(ids=ids, hashes=None, probs=Y, classes=("a", "b"))
    one, two = (random_verdicts(weak, [30, 5], seed=1, draw=draw) for draw in range(2))
    for drop in (one, two):
        assert np.bincount(weak.hard[drop.keep]).tolist() == [50, 15]
        assert np.array_equal(drop.label, Y)
    assert not np.array_equal(one.keep, two.keep)
    assert np.array_equal(one.keep, random_verdicts(weak, [30, 5], seed=1).keep)
    assert not np.array_equal(one.keep, random_verdicts(weak, [30, 5], seed=2).keep)
    assert random_verdicts(weak, [0, 0], seed=0).keep.all()


def test_intervals_are_those_of_the_paired_bootstrap(
    fields: Any, write_jsonl: Files, tmp_path: Path
) -> None:
    """Of labels that a keyword gives 30 % are wrong in the file, so that there is a gap."""
    rows = [json.loads(line) for line in Path(fields["task"]).read_text().splitlines()]
    rows = [{**row, "label": int("hammer" in row["text"])} for row in rows]
    wrong = np.random.default_rng(0).random(len(rows)) < 0.3
    lines = [
        {"id": row["id"], "label": 1 - row["label"] if bad else row["label"]}
        for row, bad in zip(rows, wrong, strict=True)
    ]
    changed = {
        "task": str(write_jsonl(rows, "task.jsonl")),
        "weak": [],
        "weak_labels": str(write_jsonl(lines, "weak.jsonl")),
    }
    found = Done(RunConfig.from_mapping({**fields, **changed}), tmp_path / "run")
    test, arms = found.experiment.context.splits.truth["test"].hard, found.arms
    right = {name: found.predicted(name).argmax(axis=1) == test for name in arms}
    floor, top = arms["weak supervisor"]["accuracy"], arms["ground truth"]["accuracy"]
    for name in ("weak labels", "filter kNN", "relabel kNN"):
        expected = paired_bootstrap(right["weak supervisor"], right[name], right["ground truth"])
        pgr = arms[name]["pgr"]
        assert pgr["pgr"] == pytest.approx((arms[name]["accuracy"] - floor) / (top - floor))
        assert (pgr["pgr_low"], pgr["pgr_high"]) == (expected.pgr_low, expected.pgr_high)
        assert pgr["pgr_low"] < pgr["pgr"] < pgr["pgr_high"]
    for name in ("filter kNN", "relabel kNN", "ground truth"):
        expected = paired_bootstrap(right["weak labels"], right[name], right["ground truth"])
        gain = arms[name]["gain"]
        assert gain["gain"] == pytest.approx(
            arms[name]["accuracy"] - arms["weak labels"]["accuracy"]
        )
        assert (gain["gain_low"], gain["gain_high"]) == (expected.gain_low, expected.gain_high)
    for name, key in (("weak supervisor", "pgr"), ("ground truth", "pgr"), ("weak labels", "gain")):
        assert arms[name][key] is None


def test_the_supervisor_counts_words_of_its_own_rows(done: Done) -> None:
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    done.planned = {a.name: a for a in done.run.arms(done.experiment)}
    splits = done.experiment.context.splits
    texts = {part: rows.contents() for part, rows in splits.rows.items()}
    assert len(texts["supervisor"]) == 40
    words = CountVectorizer()
    model = LogisticRegression(max_iter=1000).fit(
        words.fit_transform(texts["supervisor"]), splits.truth["supervisor"].hard
    )
    expected = model.predict_proba(words.transform(texts["test"]))
    assert done.predicted("weak supervisor") == pytest.approx(expected)


def test_only_supervisor_and_ceiling_depend_on_the_truth(done: Done) -> None:
    seeing = {
        arm.kind
        for experiment in done.run.experiments
        for arm in done.run.arms(experiment)
        for step in arm.steps
        if "truth" in step.params
    }
    assert seeing == {"floor", "ceiling"}


def test_changed_truth_of_the_students_rows_changes_no_student(
    done: Done, fields: Any, write_jsonl: Files, tmp_path: Path
) -> None:
    """The truth of the student's half is turned round: same students, another ceiling."""
    student = set(done.experiment.context.splits.rows["student"].ids)
    rows = [json.loads(line) for line in Path(fields["task"]).read_text().splitlines()]
    for row in rows:
        if row["id"] in student:
            row["label"] = 1 - row["label"]
    path = write_jsonl(rows, "turned.jsonl")
    turned = Done(RunConfig.from_mapping({**fields, "task": str(path)}), tmp_path / "run")
    before, after = (
        {name: arm["log_loss"] for name, arm in each.arms.items()} for each in (done, turned)
    )
    for name in ("weak supervisor", "weak labels", "random as kNN", "filter kNN", "relabel kNN"):
        assert before[name] == after[name]
    assert before["ground truth"] != after["ground truth"]


def test_again_nothing_is_done_and_everything_is_the_same(done: Done, fields: Any) -> None:
    again = Done(RunConfig.from_mapping(fields), done.folder)
    steps = [line for line in again.lines if line.startswith("[")]
    assert steps
    assert all("done before" in line for line in steps)
    assert again.results["results"] == done.results["results"]


def test_finetuned_students_of_a_bag_of_words(fields: Any, tmp_path: Path) -> None:
    train = {"lr": 5e-3, "epochs": 1.0, "batch_size": 16, "device": "cpu"}
    changed = {"student": ["finetune", "linear"], "finetune": train, "random_drops": 0}
    found = Done(RunConfig.from_mapping({**fields, **changed}), tmp_path / "run")
    finetuned, linear = found.results["results"]
    assert [arm["name"] for arm in finetuned["arms"]][:2] == [
        "weak supervisor",
        "weak labels, xent",
    ]
    assert finetuned["arms"][0] == linear["arms"][0]
    trained = [step for step in in_order(found.run.all_steps()) if step.kind == "finetune"]
    assert len(trained) == 4, "plain, filter, relabel, ceiling"


def test_linear_students_of_a_finetuned_supervisor(fields: Any, tmp_path: Path) -> None:
    train = {"lr": 5e-3, "epochs": 1.0, "batch_size": 16, "device": "cpu"}
    changed = {"weak": f"{fields['strong']}@layers=1", "finetune": train, "student": "linear"}
    run = Run(RunConfig.from_mapping({**fields, **changed}), tmp_path, lambda _: None)
    trained = [s for s in in_order(run.all_steps(planned=True)) if s.kind == "finetune"]
    assert ["weak supervisor" in step.name for step in trained] == [True]


def test_preference_pairs(fields: Any, write_jsonl: Files, tmp_path: Path) -> None:
    rows = [
        {
            "id": f"p{i}",
            "prompt": f"q{i} ",
            "chosen": f"hammer {i % 17}",
            "rejected": f"cat {i % 7}",
        }
        for i in range(200)
    ]
    path = write_jsonl(rows, "pairs.jsonl")
    config = RunConfig.from_mapping({**fields, "task": str(path), "student": "linear"})
    with pytest.raises(UsageError, match=r"cannot compare the two completions of pairs\.jsonl"):
        Run(config, tmp_path, lambda _: None).check()
    # Labels of a file: every sixth is wrong; which completion stands first is drawn by row.
    splits = Run(config, tmp_path, lambda _: None).experiments[0].context.splits
    lines = [
        {"id": name, "label": int(truth if i % 6 else 1 - truth)}
        for part in ("student", "test")
        for i, (name, truth) in enumerate(
            zip(splits.truth[part].ids, splits.truth[part].hard, strict=True)
        )
    ]
    labels = write_jsonl(lines, "weak.jsonl")
    config = config.changed(weak=(), weak_labels=str(labels))
    arms = Done(config, tmp_path / "run").arms
    assert arms["weak supervisor"]["accuracy"] < arms["ground truth"]["accuracy"]
    assert arms["weak labels"]["accuracy"] > 0.7


@pytest.mark.slow
def test_cleaning_mends_real_labels_and_their_student(minilm: str, tmp_path: Path) -> None:
    """The demo's claim on its own model and task, at half its size.

    A bag of words is right in about 80 % of 1,000 rows. Kept by kNN are about 92 %; relabelling by
    kNN mends about 70 more labels than it spoils, whose difference has a standard deviation of 12.
    """
    fields = {**read_preset("demo"), "strong": [minilm], "student": "linear", "probes": ["knn"]}
    sizes = {"student_rows": 1000, "test_rows": 1000, "random_drops": 1}
    config = RunConfig.from_mapping({**fields, **sizes, "actions": ["filter", "relabel-hard"]})
    found = Done(config, tmp_path / "run")
    arms = found.arms
    before = arms["weak labels"]["label_accuracy"]
    assert 0.7 < before < 0.9
    assert arms["filter kNN"]["label_accuracy"] > before + 0.05
    assert abs(arms["random as kNN"]["label_accuracy"] - before) < 0.03
    after = arms["relabel-hard kNN"]["label_accuracy"]
    assert after > before
    floor, top = (arms[name]["accuracy"] for name in ("weak supervisor", "ground truth"))
    for name in ("weak labels", "filter kNN", "relabel-hard kNN"):
        assert floor < arms[name]["accuracy"] < top, name
    # The control: states that belong to other rows cannot mend anything.
    (X, _), truth = found.states("student"), found.experiment.context.splits.truth["student"].hard
    path = found.run.cache.path(found.planned["filter kNN"].labels.step) / VERDICTS
    weak = Verdicts.load(path).weak
    shuffled = X[np.random.default_rng(0).permutation(len(X))]
    control = relabel(shuffled, weak, probe=KNNProbe(k=30), hard=True)
    assert (control.hard == truth).mean() < 0.65


class TestLabelsOfAFile:
    @pytest.fixture
    def config(self, fields: Any) -> RunConfig:
        changed = {"weak": [], "weak_labels": "x", "student": "linear", "random_drops": 0}
        return RunConfig.from_mapping({**fields, **changed})

    @pytest.fixture
    def rows(self, fields: Any) -> list[dict[str, Any]]:
        """Every row; the keyword hammer decides."""
        lines = Path(fields["task"]).read_text().splitlines()
        return [
            {"id": row["id"], "label": int("hammer" in row["text"])}
            for row in map(json.loads, lines)
        ]

    def test_floor_and_students_are_of_the_file(
        self, config: RunConfig, rows: list[Any], write_jsonl: Files, tmp_path: Path
    ) -> None:
        path = write_jsonl(rows, "words.jsonl")
        found = Done(config.changed(weak_labels=str(path)), tmp_path / "run")
        assert found.kinds == {"labels", "states", "verdicts", "probe"}
        splits = found.experiment.context.splits
        given = {row["id"]: row["label"] for row in rows}
        right = [
            given[name] == truth
            for name, truth in zip(splits.truth["test"].ids, splits.truth["test"].hard, strict=True)
        ]
        assert found.arms["weak supervisor"]["accuracy"] == np.mean(right)
        assert found.results["results"][0]["weak"] == "words.jsonl"
        assert found.arms["weak labels"]["pgr"] is not None
        assert not any(line.startswith("Note") for line in found.lines)

    def test_probabilities_and_names_of_classes(
        self, config: RunConfig, rows: list[Any], write_jsonl: Files, tmp_path: Path
    ) -> None:
        soft = [{"id": row["id"], "prob": 0.2 + 0.6 * row["label"]} for row in rows]
        path = write_jsonl(soft, "soft.jsonl")
        run = Run(config.changed(weak_labels=str(path)), tmp_path, lambda _: None)
        (experiment,) = run.experiments
        assert set(experiment.source.given["student"].probs[:, 1]) == {0.2, 0.8}
        named = [{"id": row["id"], "label": ("cat", "dog")[row["label"]]} for row in rows]
        path = write_jsonl(named, "named.jsonl")
        with pytest.raises(LabelsError, match=r"has the classes 'cat', 'dog', rows.jsonl has '0'"):
            Run(config.changed(weak_labels=str(path)), tmp_path, lambda _: None).check()

    def test_rows_without_a_label_are_left_out_and_there_may_be_no_floor(
        self, config: RunConfig, rows: list[Any], write_jsonl: Files, tmp_path: Path
    ) -> None:
        splits = (
            Run(config.changed(weak=("bag-of-words",), weak_labels=None), tmp_path, lambda _: None)
            .experiments[0]
            .context.splits
        )
        wanted = splits.rows["student"].ids[10:]
        path = write_jsonl([row for row in rows if row["id"] in set(wanted)], "some.jsonl")
        found = Done(config.changed(weak_labels=str(path)), tmp_path / "run")
        assert sum(line.startswith("Note: ") for line in found.lines) == 2
        assert found.experiment.context.splits.rows["student"].ids == wanted
        arms = found.arms
        assert arms["weak labels"]["rows"] == len(wanted) == arms["ground truth"]["rows"]
        assert set(arms["weak supervisor"]["alarms"]) == {"missing"}
        assert arms["weak supervisor"]["accuracy"] is None
        assert arms["filter kNN"]["accuracy"] > 0.5
        for key in ("pgr", "pgr_prior_matched", "pgr_auroc"):
            assert arms["filter kNN"][key]["pgr"] is None
            assert "no weak labels for the test rows" in arms["filter kNN"][key]["reason"]
        assert arms["filter kNN"]["gain"]["gain_low"] is not None
        assert found.results["failures"] == []
        (group,) = found.results["groups"]
        table = run_table(group)
        assert table.rows[0][0] == "weak supervisor (missing)"
        assert not any(note.startswith("pt:") for note in table.notes)
        assert "Warning: rows.jsonl, seed 0: weak supervisor: missing: the file has" in found.text
        files = {path.stem for path in (tmp_path / "run/predictions/seed0").iterdir()}
        assert "weak-supervisor" not in files
        assert "filter-kNN" in files

    def test_labels_of_other_rows(
        self, config: RunConfig, rows: list[Any], write_jsonl: Files, tmp_path: Path
    ) -> None:
        path = write_jsonl([{**row, "id": f"x{row['id']}"} for row in rows], "other.jsonl")
        run = Run(config.changed(weak_labels=str(path)), tmp_path, lambda _: None)
        with pytest.raises(LabelsError, match=r"labels for 0 of the .* student rows .* 'xr0'"):
            run.check()
        with pytest.raises(DataError, match="does not exist"):
            Run(config.changed(weak_labels="no/such.csv"), tmp_path, lambda _: None).check()
        texts = [{**row, "text": f"other {row['id']}"} for row in rows]
        path = write_jsonl(texts, "texts.jsonl")
        with pytest.raises(LabelsError, match="has another text than the student rows"):
            Run(config.changed(weak_labels=str(path)), tmp_path, lambda _: None).check()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"student": "finetuned"}, "student is a list, each one of finetune, linear, memorising"),
        ({"weak_labels": "w.csv"}, "weak and weak_labels both give the weak labels"),
        ({"weak": []}, "needs weak"),
        ({"rounds": 2}, "rounds is for finetuned students"),
        ({"losses": ["xent", "kl"]}, "losses is for finetuned students"),
        ({"curves": True}, "curves is for finetuned students"),
        ({"chain": ["a", "b"]}, "chain is for finetuned students"),
    ],
)
def test_what_is_wrong_is_one_sentence(change: dict[str, Any], sentence: str) -> None:
    base = {"task": "docstrings", "weak": "bag-of-words", "strong": "b", "student": "linear"}
    RunConfig.from_mapping(base)  # the control
    with pytest.raises(UsageError, match=sentence):
        RunConfig.from_mapping({**base, **change})
    if "student" not in change and change not in ({"weak": []}, {"weak_labels": "w.csv"}):
        RunConfig.from_mapping({**base, **change, "student": ["finetune", "linear"]})


class Known(Sources):
    """Models that are described and never opened."""

    def describe(self, model: str, revision: str | None = None) -> Model:  # noqa: ARG002
        return Model(model, f"weights of {model}", 100, 3, 32)


def test_steps_of_finetuned_runs_keep_their_folders(write_jsonl: Files, tmp_path: Path) -> None:
    """What older versions did is found again: the folders' names as they were before this test."""
    words = ("cat", "hammer")
    rows = [{"id": f"r{i}", "text": f"{words[i % 2]} {i}", "label": i % 2} for i in range(240)]
    path = write_jsonl(rows, "rows.jsonl")
    config = RunConfig.from_mapping(
        {
            "task": str(path),
            "weak": "a",
            "strong": "b",
            "losses": ["xent", "logconf"],
            "actions": ["filter", "relabel", "relabel-hard"],
            "probes": ["knn", "logreg", "topofilter", "ensemble"],
            "probe_options": {"logreg": {"l2": 0.1}},
            "rounds": 2,
            "curves": True,
            "lm_first": True,
            "chain": ["a", "b"],
            "finetune": {"early_stop": "auroc"},
        }
    )
    steps = Run(config, tmp_path, lambda _: None, Known()).all_steps(planned=True)
    # The two trainings without the language-model step were not part of a run then.
    older = [step for step in in_order(steps) if "without --lm-first" not in step.name]
    assert len(in_order(steps)) - len(older) == 2
    names = [step.folder_name for step in older]
    assert len(names) == 49
    assert hashlib.sha256("\n".join(names).encode()).hexdigest()[:16] == "fd5f5d00fdf97ee9"
    # The control: another number of rows is another experiment.
    fewer = config.changed(student_rows=50)
    other: list[Step] = Run(fewer, tmp_path, lambda _: None, Known()).all_steps(planned=True)
    assert not {step.folder_name for step in other if step.kind == "verdicts"} & set(names)


def test_a_classifier_of_another_package_is_fitted_on_classes() -> None:
    """One with weights and one without, on the rows that verdicts keep."""
    from sklearn.naive_bayes import GaussianNB
    from sklearn.neighbors import KNeighborsClassifier

    rng = np.random.default_rng(0)
    X, groups = rng.normal(size=(60, 3)), np.arange(60)
    share = rng.uniform(size=60)
    probs = np.stack([1 - share, share], axis=1)
    ids = [str(i) for i in range(60)]
    weak = WeakLabels(ids=ids, hashes=None, probs=probs, classes=("a", "b"))
    verdicts = random_verdicts(weak, [5, 7], seed=0)
    weighted = replace(verdicts, weight=np.linspace(0.1, 2, 60, dtype=np.float32))
    hard, keep = probs.argmax(axis=1), verdicts.keep
    for labels, rows, more in (
        (weak, slice(None), {}),
        (weighted, keep, {"sample_weight": weighted.weight[keep]}),
    ):
        for cls, known in ((GaussianNB, more), (KNeighborsClassifier, {})):
            probe = cls()
            _fit(probe, X, labels, groups)
            expected = cls().fit(X[rows], hard[rows], **known)
            np.testing.assert_allclose(probe.predict_proba(X), expected.predict_proba(X))
