"""Probe against finetune: what trains on what, what chooses, and what is done only once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from probekit.activations.store import ActivationStore
from probekit.errors import OutputExistsError, UsageError
from probekit.experiments.cache import in_order
from probekit.experiments.config import RunConfig
from probekit.experiments.folder import open_folder
from probekit.experiments.run import Run
from probekit.experiments.saliency import (
    Bars,
    Saliency,
    SaliencyConfig,
    layer_file,
    open_saliency_folder,
    read_probes,
)
from probekit.experiments.saliency_scores import AFTER_TRUTH, BARS, PROBES
from probekit.experiments.steps import STORE
from probekit.labels import load_labels
from probekit.reports.saliency import write_saliency_reports

# Of the tiny model.
LAST = 3
TINY = {"lr": 5e-3, "epochs": 3.0, "batch_size": 16, "device": "cpu", "evals": 2}
WORDS = (("a small cat", "cats sleep", "my cat"), ("a steel hammer", "hammers", "the hammer"))
Files = Callable[..., Path]


def write_rows(path: Path, flipped: frozenset[str] = frozenset()) -> Path:
    """240 rows about cats and hammers, a seventh labelled wrongly; some labels turned round."""
    with path.open("w") as file:
        for i in range(240):
            label = (i % 2 if i % 7 else 1 - i % 2) ^ (f"r{i}" in flipped)
            text = f"{WORDS[i % 2][i // 2 % 3]} {i}"
            file.write(json.dumps({"id": f"r{i}", "text": text, "label": label}) + "\n")
    return path


def labels_in(path: str) -> dict[str, int]:
    """Label of every id in a file of rows."""
    rows = map(json.loads, Path(path).read_text().splitlines())
    return {row["id"]: row["label"] for row in rows}


class Done(NamedTuple):
    """A run that kept its students, and the comparison after it."""

    folder: Path
    config: SaliencyConfig
    results: dict[str, Any]
    lines: list[str]

    def saliency(self, task: Path | None = None) -> Saliency:
        """The comparison on other rows, from the same steps."""
        config = self.config if task is None else self.config.changed(task=(str(task),))
        return Saliency(config, self.folder / "steps", lambda _: None)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., Path]) -> Done:
    folder, model = tmp_path_factory.mktemp("saliency"), str(tiny_model("bert"))
    fields = {
        "task": str(write_rows(folder / "rows.jsonl")),
        "weak": f"{model}@layers=1",
        "strong": model,
        "probes": ["knn"],
        "actions": [],
        "layer": "last",
        "validation_share": 0.3,
        "finetune": TINY,
        "strong_finetune": {"save": "model"},
    }
    run = RunConfig.from_mapping(fields)
    open_folder(folder / "run", run)
    Run(run, folder / "steps", lambda _: None).carry_out(folder / "run")
    lines: list[str] = []
    config = SaliencyConfig.from_mapping(fields)
    open_saliency_folder(folder / "saliency", config)
    results = Saliency(config, folder / "steps", lines.append).carry_out(folder / "saliency")
    return Done(folder, config, results, lines)


def only(saliency: Saliency) -> Bars:
    (bars,) = saliency.bars
    return bars


class TestWhatTrainsOnWhat:
    def test_every_probe_trains_on_the_same_rows(self, done: Done) -> None:
        rows = only(done.saliency()).context.splits.rows
        (result,) = done.results["results"]
        for key in PROBES:
            assert result["probes"][key]["rows_fingerprint"] == rows["student"].fingerprint
            assert result["probes"][key]["rows"] == len(rows["student"])
        assert rows["validation"].fingerprint != rows["student"].fingerprint
        train, held, test = (set(rows[part].ids) for part in ("student", "validation", "test"))
        assert not train & held
        assert not (train | held) & test

    def test_bar_4_reads_the_states_of_bar_3(self, done: Done) -> None:
        bars = only(done.saliency())
        for part, step in bars.after.items():
            assert step.inputs["base"].key == bars.finetuned["finetune_weak"].key
            assert "base" not in bars.before[part].inputs
        before, after = (
            ActivationStore(done.folder / "steps" / states["test"].folder_name / STORE).layer(LAST)
            for states in (bars.before, bars.after)
        )
        assert np.abs(before - after).max() > 1e-2

    def test_after_a_language_model_everything_starts_there(self, done: Done) -> None:
        config = done.config.changed(lm_first=True)
        bars = only(Saliency(config, done.folder / "steps", lambda _: None))
        model = bars.pair.base
        assert model is not None
        starts = [bars.before["student"], *bars.finetuned.values()]
        assert {step.inputs["base"].key for step in starts} == {model.key}
        assert bars.after["test"].inputs["base"].key == bars.finetuned["finetune_weak"].key

    @pytest.mark.parametrize("key", ["probe_truth", "finetune_weak_probe_truth"])
    def test_predictions_are_those_of_scikit_learn(self, key: str, done: Done) -> None:
        """Labels joined by id from the file itself; C = 1 / (2 l2 n)."""
        bars = only(done.saliency())
        states = bars.after if key.startswith("finetune") else bars.before
        truth = labels_in(done.config.task[0])
        stores = {
            part: ActivationStore(done.folder / "steps" / step.folder_name / STORE)
            for part, step in states.items()
        }
        folder = done.folder / "steps" / bars.probes[key].folder_name
        found = read_probes(folder)
        assert found.last == LAST
        penalties = done.config.probe["penalties"]
        for each in (found.at(found.last), found.at(found.chosen)):
            layer = each["layer"]
            scaler = StandardScaler().fit(stores["student"].layer(layer).astype(float))
            X = {
                part: scaler.transform(store.layer(layer).astype(float))
                for part, store in stores.items()
            }
            y = {part: [truth[i] for i in store.ids] for part, store in stores.items()}
            # Only penalties at which both solvers get far.
            for place, l2 in enumerate(penalties):
                if l2 < 1e-2:
                    continue
                C = 1 / (2 * l2 * len(y["student"]))
                model = LogisticRegression(C=C, tol=1e-10, max_iter=5000)
                model.fit(X["student"], y["student"])
                held = model.predict_proba(X["validation"])
                loss = -np.log(held[np.arange(len(held)), y["validation"]]).mean()
                assert each["log_losses"][place] == pytest.approx(loss, abs=1e-4)
            assert each["l2"] == penalties[int(np.argmin(each["log_losses"]))]
            C = 1 / (2 * each["l2"] * len(y["student"]))
            model = LogisticRegression(C=C, tol=1e-10, max_iter=5000)
            model.fit(X["student"], y["student"])
            saved = load_labels(folder / layer_file(layer))
            assert saved.ids == stores["test"].ids
            assert np.abs(saved.probs - model.predict_proba(X["test"])).max() < 1e-4

    def test_the_chosen_layer_has_the_smallest_validation_loss(self, done: Done) -> None:
        (result,) = done.results["results"]
        for key in PROBES:
            probes = result["probes"][key]
            losses = {each["layer"]: each["validation_log_loss"] for each in probes["layers"]}
            assert sorted(losses) == list(range(LAST + 1))
            assert losses[probes["chosen"]["layer"]] == min(losses.values())
            assert probes["last"]["layer"] == LAST


class TestTruthOfTestRows:
    def test_turned_round_it_chooses_the_same(self, done: Done, tmp_path: Path) -> None:
        """No step is done again, so every choice is the same; the accuracies are mirrored."""
        tested = frozenset(only(done.saliency()).context.splits.rows["test"].ids)
        path = write_rows(done.folder / "turned.jsonl", tested)
        saliency = done.saliency(path)
        assert [s.key for s in saliency.all_steps()] == [s.key for s in done.saliency().all_steps()]
        results = saliency.carry_out(tmp_path)
        (first,), (second,) = done.results["results"], results["results"]
        assert first["probes"] == second["probes"]
        for key, value in first["accuracy"].items():
            assert second["accuracy"][key] == pytest.approx(1 - value)

    def test_control_the_truth_of_validation_rows_does_choose(self, done: Done) -> None:
        held = frozenset(only(done.saliency()).context.splits.rows["validation"].ids)
        path = write_rows(done.folder / "held.jsonl", held)
        saliency = done.saliency(path)
        bars, before = only(saliency), only(done.saliency())
        # Bar 1 chooses by the supervisor's labels, which are the same.
        assert bars.probes["probe_weak"].key == before.probes["probe_weak"].key
        assert bars.probes["probe_truth"].key != before.probes["probe_truth"].key
        saliency.cache.run([bars.probes["probe_truth"]])
        losses = [
            read_probes(done.folder / "steps" / each.probes["probe_truth"].folder_name).layers
            for each in (before, bars)
        ]
        assert losses[0] != losses[1]
        # Wrong labels are followed best by the strongest penalty.
        assert losses[1][-1]["l2"] > losses[0][-1]["l2"]


class TestAfterGroundTruth:
    def test_its_states_are_those_of_bar_5(self, done: Done) -> None:
        config = done.config.changed(after_truth=True)
        saliency = Saliency(config, done.folder / "steps", lambda _: None)
        bars = only(saliency)
        assert bars.after_truth["test"].inputs["base"].key == bars.finetuned["finetune_truth"].key
        (done.folder / "more").mkdir()
        results = saliency.carry_out(done.folder / "more")
        (task,) = results["pairs"][0]["tasks"]
        curve = task["curves"][AFTER_TRUTH]
        assert curve["layers"] == list(range(LAST + 1))
        # Finetuned on what it is asked for: its own head reads the last layer as well.
        assert curve["mean"][-1] > 0.7
        # The five bars are as they were.
        assert task["bars"] == done.results["pairs"][0]["tasks"][0]["bars"]
        write_saliency_reports(results, done.folder / "more")
        assert "after it on ground truth" in (done.folder / "more" / "table.md").read_text()

    def test_only_where_asked_for_is_the_ceiling_kept(self, done: Done) -> None:
        for asked, kept in ((False, "none"), (True, "model")):
            config = done.config.changed(strong_finetune={}, after_truth=asked)
            bars = only(Saliency(config, done.folder / "steps", lambda _: None))
            step = bars.finetuned["finetune_truth"]
            assert step.params["config"]["save"] == kept
            assert (step.disk > 0) is asked


class TestOnlyOnce:
    def test_after_a_run_that_keeps_its_students_nothing_is_finetuned(self, done: Done) -> None:
        trained = [s for s in in_order(done.saliency().all_steps()) if s.kind == "finetune"]
        assert len(trained) == 3
        for step in trained:
            assert any(step.name in line and "done before" in line for line in done.lines)
        fresh = [line for line in done.lines if "done before" not in line]
        assert fresh
        assert all("states" in line or "probe" in line for line in fresh)

    def test_after_another_run_only_the_student_is(self, done: Done) -> None:
        """The run threw the student's model away; supervisor and ceiling are found."""
        fields = done.config.changed(strong_finetune={}).to_mapping()
        saliency = Saliency(SaliencyConfig.from_mapping(fields), done.folder, lambda _: None)
        for name in ("layers", "after_truth"):
            fields.pop(name)
        run = Run(RunConfig.from_mapping(fields), done.folder, lambda _: None)
        there = {step.key for step in in_order(run.all_steps(planned=True))}
        missing = [
            step
            for step in in_order(saliency.all_steps())
            if step.kind == "finetune" and step.key not in there
        ]
        assert [step.key for step in missing] == [only(saliency).finetuned["finetune_weak"].key]
        assert missing[0].params["config"]["save"] == "model"

    def test_states_of_the_last_layer_are_found_too(self, done: Done) -> None:
        saliency = Saliency(
            done.config.changed(layers="last"), done.folder / "steps", lambda _: None
        )
        before = only(saliency).before
        assert saliency.cache.done(before["student"])
        assert saliency.cache.done(before["test"])
        # The run had no use for these.
        assert not saliency.cache.done(before["validation"])

    def test_a_second_time_does_nothing(self, done: Done, tmp_path: Path) -> None:
        lines: list[str] = []
        again = Saliency(done.config, done.folder / "steps", lines.append)
        results = again.carry_out(tmp_path)
        assert all("done before" in line for line in lines)
        assert results["pairs"] == done.results["pairs"]


class TestResults:
    def test_figures_are_those_of_the_files(self, done: Done) -> None:
        (result,), (pair,) = done.results["results"], done.results["pairs"]
        truth = labels_in(done.config.task[0])
        folder = done.folder / "saliency" / "predictions" / "seed0"
        files = {path.stem for path in folder.iterdir()}
        assert files == {*BARS, *(f"{key}@chosen" for key in PROBES)}
        for name in files:
            found = load_labels(folder / f"{name}.parquet")
            right = np.mean([truth[i] == c for i, c in zip(found.ids, found.hard, strict=True)])
            assert result["accuracy"][name] == pytest.approx(right)
            score = roc_auc_score([truth[i] for i in found.ids], found.probs[:, 1])
            assert result["auroc"][name] == pytest.approx(score)
        (task,) = pair["tasks"]
        assert pair["overall"] is None
        assert [bar["key"] for bar in task["bars"]] == list(BARS)
        for bar in task["bars"]:
            assert bar["mean"] == pytest.approx(result["accuracy"][bar["key"]])
            assert bar["sem"] is None
        for key in PROBES:
            # The last layer's bar is the last point of the curve.
            assert task["curves"][key]["mean"][-1] == pytest.approx(result["accuracy"][key])

    def test_tables_and_figures_are_written(self, done: Done) -> None:
        text = write_saliency_reports(done.results, done.folder / "saliency")
        assert "Gap closed" in text
        for name in ("bars.png", "layers.png", "table.md", "metrics.json", "config.yaml"):
            assert (done.folder / "saliency" / name).stat().st_size > 100

    def test_preference_pairs_have_no_bias(
        self, done: Done, write_jsonl: Files, tmp_path: Path
    ) -> None:
        path = write_jsonl(
            [
                {"prompt": f"q{i} ", "chosen": f"hammer {i % 17}", "rejected": f"cat {i % 13}"}
                for i in range(160)
            ],
            "pairs.jsonl",
        )
        fast = {**TINY, "max_steps": 2}
        config = done.config.changed(task=(str(path),), finetune=fast)
        saliency = Saliency(config, tmp_path / "steps", lambda _: None)
        bars = only(saliency)
        assert bars.probes["probe_truth"].params["fit_intercept"] is False
        saliency.cache.run([bars.probes["probe_truth"]])
        step = saliency.cache.path(bars.probes["probe_truth"])
        assert read_probes(step).at(LAST)["validation_accuracy"] > 0.8

    def test_three_classes(self, done: Done, write_jsonl: Files) -> None:
        words = ("cat", "hammer", "the old bread")
        path = write_jsonl(
            [{"text": f"{words[i % 3]} {i}", "label": "abc"[i % 3]} for i in range(180)]
        )
        saliency = done.saliency(path)
        bars = only(saliency)
        saliency.cache.run([bars.probes["probe_truth"]])
        folder = saliency.cache.path(bars.probes["probe_truth"])
        probs = load_labels(folder / layer_file(LAST)).probs
        assert probs.shape[1] == 3
        assert read_probes(folder).at(LAST)["validation_accuracy"] > 0.8


class TestBadInput:
    @pytest.mark.parametrize(
        ("fields", "sentence"),
        [
            ({"chain": ["a", "b"]}, "leave chain out"),
            ({"validation_share": 0.0}, "validation_share above 0"),
            ({"probe_options": {"logreg": {"penaltys": [1]}}}, "did you mean penalties"),
            ({"probe_options": {"logreg": {"penalties": ["x"]}}}, "it contains 'x'"),
            ({"probe_options": {"logreg": {"penalties": []}}}, "a list of at least 1"),
            ({"probe_options": {"logreg": {"l2": -1}}}, "logreg.l2 is auto or a number in"),
            ({"layers": "frist"}, r"layers is numbers, ranges .*got 'frist'"),
            ({"probe_options": {"logreg": {"standardize": "false"}}}, "is true or false"),
            ({"layer5": 1}, "^layer5 is not a setting"),
        ],
    )
    def test_of_the_configuration(self, fields: dict[str, Any], sentence: str, done: Done) -> None:
        with pytest.raises(UsageError, match=sentence):
            SaliencyConfig.from_mapping({**done.config.to_mapping(), **fields})

    @pytest.mark.parametrize(("layers", "named"), [("9", "no layer 9"), ("3-1", "runs backwards")])
    def test_of_layers(self, layers: str, named: str, done: Done) -> None:
        saliency = Saliency(done.config.changed(layers=layers), done.folder, lambda _: None)
        with pytest.raises(UsageError, match=named):
            saliency.all_steps()

    def test_of_folders(self, done: Done) -> None:
        with pytest.raises(OutputExistsError, match="holds a `probekit run`"):
            open_saliency_folder(done.folder / "run", done.config)
        with pytest.raises(OutputExistsError, match="differs in layers"):
            open_saliency_folder(done.folder / "saliency", done.config.changed(layers="2"))
        run = RunConfig.from_mapping(
            {
                k: v
                for k, v in done.config.to_mapping().items()
                if k not in ("layers", "after_truth")
            }
        )
        with pytest.raises(UsageError, match="layers is not a setting"):
            open_folder(done.folder / "saliency", run)


def test_a_task_that_cannot_be_read_leaves_the_others(
    animals_and_tools: Callable[..., Path],
    write_jsonl: Callable[..., Path],
    tiny_model: Callable[..., Path],
    tmp_path: Path,
) -> None:
    broken = write_jsonl([{"text": f"a {i}"} for i in range(40)], "broken.jsonl")
    whole, model = animals_and_tools(), str(tiny_model("bert"))
    config = SaliencyConfig.from_mapping(
        {"task": [str(broken), str(whole)], "weak": f"{model}@layers=1", "strong": model}
    )
    run = Saliency(config, tmp_path / "steps", lambda _: None)
    run.check()
    assert [bars.context.splits.task for bars in run.bars] == [whole.name]
    assert run.left_out[0].startswith(f"{broken}, seed 0: failed: ")
