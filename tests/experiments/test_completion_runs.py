"""Whole experiments on completions and on preference pairs, at small size."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probekit.activations.store import ActivationStore
from probekit.data import Rows
from probekit.errors import DataError, UsageError
from probekit.experiments.cache import Step, in_order
from probekit.experiments.config import RunConfig, write_config
from probekit.experiments.folder import open_folder
from probekit.experiments.run import Run
from probekit.experiments.saliency import Saliency, SaliencyConfig
from probekit.experiments.splits import Splits
from probekit.experiments.steps import STORE
from probekit.experiments.task_kinds import task_kind
from probekit.experiments.task_kinds.base import VERDICTS
from probekit.experiments.task_kinds.completions import Targets, candidates
from probekit.metrics import paired_bootstrap
from probekit.reports.run import report_run, run_table
from probekit.students.completion import Completions, load_completions
from probekit.verdicts import Verdicts

pytestmark = pytest.mark.usefixtures("one_thread")

Files = Callable[..., Path]
COLOURS = ("red", "green", "blue")
TINY = {"batch_size": 8, "device": "cpu"}


def colour_lines(n: int) -> list[dict[str, Any]]:
    return [
        {
            "id": f"c{i}",
            "text": f"Row {i} has the colour {COLOURS[i % 3][0]} which is",
            "completion": COLOURS[i % 3],
            "split": "test" if i % 3 == i % 4 else "train",
        }
        for i in range(n)
    ]


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., Path]) -> Any:
    path = tmp_path_factory.mktemp("colours") / "colours.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in colour_lines(72)))
    model = str(tiny_model("llama"))
    return {
        "task": str(path),
        "weak": f"{model}@layers=1",
        "strong": model,
        "actions": ["filter"],
        "probes": ["knn"],
        "probe_options": {"knn": {"k": 5}},
        "layer": "last",
        "finetune": TINY,
        "weak_finetune": {"epochs": 6.0, "lr": 3e-3},
        "strong_finetune": {"epochs": 20.0, "lr": 4e-3},
    }


class Done:
    """A run that was carried out, its results and what it reported."""

    def __init__(self, fields: Any, folder: Path) -> None:
        self.lines: list[str] = []
        self.folder = folder
        self.run = Run(RunConfig.from_mapping(fields), folder.parent / "steps", self.lines.append)
        open_folder(folder, self.run.config)
        self.results = self.run.carry_out(folder)
        report_run(self.run, self.results, folder, self.lines.append)
        (self.experiment,) = self.run.experiments
        (self.result,) = self.results["results"]
        self.arms = {arm["name"]: arm for arm in self.result["arms"]}

    @property
    def splits(self) -> Splits:
        return self.experiment.context.splits

    def step(self, kind: str, words: str) -> Step:
        steps = in_order(self.run.all_steps())
        (found,) = [step for step in steps if step.kind == kind and words in step.name]
        return found

    def written(self, words: str, part: str) -> list[str]:
        folder = self.run.cache.path(self.step("finetune", words))
        completions = load_completions(folder / f"model/predictions/{part}.parquet")
        return completions.of(self.splits.rows[part])


@pytest.fixture(scope="module")
def done(fields: Any, tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Done:
    return Done(fields, tmp_path_factory.mktemp("run") / "run")


class TestCompletions:
    def test_every_arm_is_graded_by_exact_match(self, done: Done) -> None:
        truth = done.splits.truth["test"].texts
        weak = done.written("weak supervisor", "test")
        student = done.written("weak labels, xent", "test")
        ceiling = done.written("ground truth", "test")
        right = [
            np.array([a == b for a, b in zip(each, truth, strict=True)], dtype=float)
            for each in (weak, student, ceiling)
        ]
        shown = [done.arms[n] for n in ("weak supervisor", "weak labels, xent", "ground truth")]
        assert [arm["accuracy"] for arm in shown] == [pytest.approx(r.mean()) for r in right]
        # The control: the models differ, so that no two columns can be exchanged.
        assert right[2].mean() > right[0].mean() > 0
        assert weak != student != ceiling
        expected = paired_bootstrap(*right, seed=0)
        assert shown[1]["pgr"]["gain"] == pytest.approx(expected.gain)
        wrong = right[0] == 0
        same = np.array([a == b for a, b in zip(weak, student, strict=True)])
        assert shown[1]["agreement"]["wrong"] == pytest.approx(same[wrong].mean())
        for arm in shown:
            assert arm["auroc"] is arm["log_loss"] is arm["accuracy_prior_matched"] is None
        header = run_table(done.results["groups"][0]).header
        assert "AUROC" not in header
        assert "PGR" in header

    def test_a_student_learns_the_supervisors_completions(self, done: Done) -> None:
        truth = done.splits.truth["student"].texts
        weak = done.written("weak supervisor", "student")
        right = np.mean([a == b for a, b in zip(weak, truth, strict=True)])
        assert done.arms["weak labels, xent"]["label_accuracy"] == pytest.approx(right)
        assert done.arms["ground truth"]["label_accuracy"] == 1
        # Only supervisor and ceiling depend on the truth.
        steps = {s.name: s for s in in_order(done.run.all_steps()) if s.kind == "finetune"}
        with_truth = [name for name, step in steps.items() if step.params["truth"]]
        assert ["weak supervisor" in n or "ground truth" in n for n in with_truth] == [True, True]
        assert "validation" not in done.splits.rows  # nothing would choose a checkpoint by it

    def test_a_filter_drops_rows_that_look_like_another_rows_completion(self, done: Done) -> None:
        step = done.step("verdicts", "filter with knn")
        folder = done.run.cache.path(step)
        rows = done.splits.rows["student"]
        verdicts = Verdicts.load(folder / VERDICTS)
        assert list(verdicts.ids) == list(rows.ids)
        assert int((~verdicts.keep).sum()) == int(0.2 * len(rows))
        labels = task_kind("completion").read(folder / VERDICTS, rows, "student")
        assert isinstance(labels, Targets)
        kept = [
            text for text, keep in zip(labels.completions.texts, labels.keep, strict=True) if keep
        ]
        assert done.arms["filter kNN"]["rows"] == len(kept)
        # A second computation, in which a row knows neither of its own two copies.
        both, answers = candidates(rows, labels.completions)
        with ActivationStore(done.run.cache.path(step.inputs["states"]) / STORE) as store:
            assert list(store.ids) == list(both.ids)
            X = np.asarray(store.layer(store.layers[0]), dtype=np.float64)
        X = X - X.mean(axis=0)
        X /= np.linalg.norm(X, axis=1, keepdims=True)
        similar = X @ X.T
        groups = np.array(both.groups)
        similar[groups[:, None] == groups[None]] = -np.inf
        for i, text in enumerate(both.hashes):  # equal texts are left out together
            similar[i, [j for j, other in enumerate(both.hashes) if other == text]] = -np.inf
        near = np.argsort(-similar[: len(rows)], axis=1)[:, :5]
        votes = answers.probs[near].mean(axis=1)
        # In all but near-ties of float32.
        close = np.abs(votes - verdicts.probe).max(axis=1) < 1e-6
        assert close.mean() > 0.9

    def test_the_report_shows_texts_with_completions(self, done: Done) -> None:
        page = (done.folder / "report.html").read_text(encoding="utf-8")
        assert "Rows: filter kNN" in page
        weak = done.written("weak supervisor", "student")
        first = done.splits.rows["student"].contents()[0]
        assert f"{first} {weak[0]}" in page
        assert "completed exactly" in page

    def test_again_nothing_is_done(self, done: Done, fields: Any) -> None:
        again = Done(fields, done.folder)
        steps = [line for line in again.lines if line.startswith("[")]
        assert steps
        assert all("done before" in line for line in steps)
        assert again.result == done.result

    def test_nothing_is_computed_twice(self, done: Done) -> None:
        """Floor, ceiling and states are made once, whatever the number of arms that read them."""
        started = Counter(line.split(": ", 1)[1] for line in done.lines if line.endswith("started"))
        assert max(started.values()) == 1
        folders = [path.name.split("-")[0] for path in done.run.cache.folder.iterdir()]
        counts = Counter(folders)
        assert counts["states"] == 1
        # Supervisor, plain student, random drop, filter, ceiling.
        assert counts["finetune"] == 5

    @pytest.mark.slow
    def test_a_killed_run_resumes(self, done: Done, fields: Any, tmp_path: Path) -> None:
        write_config(RunConfig.from_mapping(fields), tmp_path / "config.yaml")
        command = [sys.executable, "-m", "probekit", "run", "--config", "config.yaml"]
        command += ["-o", "cut/run", "--json"]
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        while not list((tmp_path / "cut" / "steps").glob("states-*/done.json")):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        resumed = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=False, env=os.environ
        )
        assert resumed.returncode == bool(done.results["failures"]), resumed.stderr
        assert "done before" in resumed.stderr
        assert json.loads(resumed.stdout)["results"][0]["arms"] == done.result["arms"]


class TestCandidates:
    def rows(self, texts: list[str]) -> tuple[Rows, Completions]:
        rows = Rows({"text": [f"q{i}" for i in range(len(texts))]})
        hidden = np.zeros(len(texts))
        return rows, Completions(rows.ids, rows.hashes, texts, hidden)

    @pytest.mark.parametrize("texts", ["abcd", "aabb", "aaabbc", "abcabcabca", "ba"])
    def test_each_completion_is_once_right_and_once_wrong(self, texts: str) -> None:
        rows, completions = self.rows(list(texts))
        both, labels = candidates(rows, completions)
        n = len(rows)
        assert labels.hard.tolist() == [1] * n + [0] * n
        contents = [str(text) for text in both.contents()]
        own, other = (sorted(t.split()[1] for t in part) for part in (contents[:n], contents[n:]))
        assert own == other
        assert not set(contents[:n]) & set(contents[n:])
        assert both.groups == [*rows.ids, *rows.ids]

    def test_rows_left_over_stand_once(self) -> None:
        both, labels = candidates(*self.rows(list("aaab")))
        assert np.bincount(labels.hard).tolist() == [2, 4]
        assert sorted(str(t).split()[1] for t in both.contents()[4:]) == ["a", "b"]

    def test_one_completion_cannot_be_filtered(self) -> None:
        with pytest.raises(
            DataError, match="of all 3 rows are 'a', so no probe can tell them apart"
        ):
            candidates(*self.rows(["a"] * 3))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"student": "linear"}, "only finetuned models write; leave student out"),
        ({"losses": ["xent", "logconf"]}, "leave losses out or set it to xent"),
        ({"actions": ["relabel"]}, "can filter but not write; set actions to filter"),
        ({"curves": True}, "curves needs class probabilities; leave it out"),
        ({"trusted_rows": 8}, "trusted_rows needs class probabilities"),
        ({"finetune": {"early_stop": "auroc"}}, "finetune.early_stop needs class probabilities"),
        ({"weak": "bag-of-words"}, "cannot write the completions of .*; name a decoder"),
        ({"strong": "BERT"}, "cannot write, as it reads both ways; take a decoder"),
    ],
)
def test_what_does_not_fit_says_what_would(
    change: dict[str, Any],
    sentence: str,
    fields: Any,
    tiny_model: Callable[..., Path],
    tmp_path: Path,
) -> None:
    if "strong" in change:
        change = {"strong": str(tiny_model("bert"))}
    config = RunConfig.from_mapping({**fields, **change})
    with pytest.raises(UsageError, match=sentence):
        Run(config, tmp_path, lambda _: None).check()
    Run(RunConfig.from_mapping(fields), tmp_path, lambda _: None).check()  # the control


@pytest.mark.parametrize(
    ("task", "change", "sentence"),
    [
        ("chess-move", {"student": "linear"}, "only finetuned models write"),
        ("chess-move", {"weak": "bag-of-words"}, "name a decoder"),
        ("anthropic-hh-pairs", {"weak": "bag-of-words"}, "bag of words"),
    ],
)
def test_what_does_not_fit_a_known_task_is_said_before_its_rows_are_read(
    task: str,
    change: dict[str, Any],
    sentence: str,
    fields: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its data may be a download away."""

    def read(*_: Any) -> None:
        raise DataError("rows are read")

    monkeypatch.setattr("probekit.experiments.splits._open", read)
    known = {**fields, "task": task}
    with pytest.raises(UsageError, match=sentence):
        Run(RunConfig.from_mapping({**known, **change}), tmp_path, lambda _: None).check()
    with pytest.raises(DataError, match="rows are read"):  # the control
        Run(RunConfig.from_mapping(known), tmp_path, lambda _: None).check()


def test_saliency_is_of_classes(fields: Any, tmp_path: Path) -> None:
    config = SaliencyConfig.from_mapping(fields)
    with pytest.raises(UsageError, match="or `probekit run`"):
        Saliency(config, tmp_path, lambda _: None).check()


def test_relabel_is_left_out_with_a_note(fields: Any, tmp_path: Path) -> None:
    config = RunConfig.from_mapping({**fields, "actions": ["filter", "relabel"]})
    run = Run(config, tmp_path, lambda _: None)
    (experiment,) = run.experiments
    assert [each.kind for each in run.arms(experiment, planned=True)] == [
        *("floor", "plain", "random", "filter", "ceiling"),
    ]
    assert ["relabel is left out" in note for note in run._notes] == [True]


@pytest.mark.slow
def test_chains_rounds_and_language_models_are_of_completions_too(
    fields: Any, tmp_path: Path
) -> None:
    model = fields["strong"]
    more = {
        "chain": [fields["weak"], f"{model}@layers=2", model],
        "rounds": 2,
        "lm_first": True,
        "lm_finetune": {"max_steps": 2},
        "probes": [],
        "finetune": {**TINY, "max_steps": 2},
    }
    run = Run(RunConfig.from_mapping({**fields, **more}), tmp_path / "steps", lambda _: None)
    (tmp_path / "run").mkdir()
    results = run.carry_out(tmp_path / "run")
    kinds = [[arm["kind"] for arm in each["arms"]] for each in results["results"]]
    assert kinds == [
        ["floor", "plain", "round", "ceiling"],
        ["floor", "chain", "chain", "naive", "ceiling"],
    ]
    assert results["results"][0]["language_model"]["perplexity_after"] is None  # 5 % of few rows
    assert not any("failed" in each for each in results["failures"])


def pair_lines(n: int) -> list[dict[str, Any]]:
    """As in Anthropic's data: whole dialogues, the better one about hammers."""
    asked = "\n\nHuman: what is in box {}?\n\nAssistant: "
    return [
        {
            "id": f"p{i}",
            "chosen": f"{asked.format(i)}a hammer {i % 17}",
            "rejected": f"{asked.format(i)}a cat {i % 7}",
        }
        for i in range(n)
    ]


class TestPreferences:
    @pytest.mark.slow
    def test_pairs_end_to_end_after_a_language_model(
        self, fields: Any, write_jsonl: Files, tmp_path: Path
    ) -> None:
        path = write_jsonl(pair_lines(160), "pairs.jsonl")
        train = {"finetune": {**TINY, "epochs": 3.0, "lr": 3e-3}, "weak_finetune": {"max_steps": 4}}
        more = {"lm_first": True, "lm_finetune": {"max_steps": 2}, "strong_finetune": {}}
        done = Done({**fields, **train, **more, "task": str(path)}, tmp_path / "run")
        assert done.splits.kind == "reward"
        kinds = [arm["kind"] for arm in done.result["arms"]]
        assert kinds == ["floor", "plain", "random", "filter", "probe", "ceiling"]
        assert done.arms["ground truth"]["accuracy"] > 0.9
        assert done.result["language_model"]["perplexity_after"] is not None
        states = done.step("states", "states of the student rows")
        with ActivationStore(done.run.cache.path(states) / STORE) as store:
            assert store.differences
        assert states.inputs["base"].kind == "lm"

    def test_a_language_model_reads_each_text_alone(self) -> None:
        pairs = Rows({"id": ["p", "q"], "text": ["a b", "c"], "text_pair": ["d", "a b"]})
        texts = task_kind("reward").texts(pairs)
        assert texts.kind == "text"
        assert texts.contents() == ["a b", "d", "c"]
        assert texts.groups == ["p", "p", "q"]
        plain = Rows({"text": ["a"]})
        assert task_kind("classify").texts(plain) is plain
