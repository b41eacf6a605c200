"""Whole experiments at small size: what is done, in which order, from what, and only once."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from probekit.errors import DataError, OutputExistsError
from probekit.experiments.cache import Cache, in_order
from probekit.experiments.config import RunConfig, write_config
from probekit.experiments.folder import open_folder
from probekit.experiments.plan import plan
from probekit.experiments.presets import preset_names, read_preset
from probekit.experiments.run import Run
from probekit.labels import load_labels
from probekit.metrics import pgr
from probekit.reports.run import run_table, starts_table, write_run_reports

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = {"lr": 5e-3, "epochs": 4.0, "batch_size": 16, "device": "cpu", "evals": 2}
Files = Callable[..., Path]


def carry_out(config: RunConfig, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Results, and the lines that were told."""
    lines: list[str] = []
    open_folder(folder, config)
    results = Run(config, folder.parent / "steps", lines.append).carry_out(folder)
    assert write_run_reports(results, folder)
    return results, lines


def test_probes_read_as_much_of_a_row_as_the_students(base: dict[str, Any], tmp_path: Path) -> None:
    def options(**fields: Any) -> list[dict[str, Any]]:
        run = Run(RunConfig.from_mapping({**base, **fields}), tmp_path / "steps", lambda _: None)
        steps = in_order(run.all_steps(planned=True))
        found = [step.params["options"] for step in steps if step.kind == "states"]
        assert found
        return found

    assert all(o == {} for o in options())  # the key of a step is then what it was
    short = {**TINY, "max_length": 12}
    assert all(o == {"max_length": 12} for o in options(finetune=short))
    strong = {"finetune": short, "strong_finetune": {"max_length": 20}}
    assert all(o == {"max_length": 20} for o in options(**strong))
    told = {**strong, "extract": {"max_length": 7}}
    assert all(o == {"max_length": 7} for o in options(**told))


def test_a_run_tells_where_rows_were_truncated(base: dict[str, Any], tmp_path: Path) -> None:
    few = {"probes": ["knn"], "actions": ["filter"], "linear_students": False, "random_drops": 0}
    short = {**TINY, "max_steps": 1, "max_length": 5}
    _, lines = carry_out(
        RunConfig.from_mapping({**base, **few, "finetune": short}), tmp_path / "run"
    )
    cut = [line for line in lines if "truncated at 5 tokens:" in line]  # of trainings, not states
    assert any("weak supervisor" in line for line in cut)
    assert any("student" in line or "weak labels" in line for line in cut)
    assert all("training rows" in line and " test" in line for line in cut)


def names_of(results: dict[str, Any]) -> list[str]:
    return [arm["name"] for arm in results["results"][0]["arms"]]


@pytest.fixture
def base(animals_and_tools: Files, tiny_model: Callable[..., Path]) -> dict[str, Any]:
    model = str(tiny_model("bert"))
    return {
        "task": str(animals_and_tools()),
        "weak": f"{model}@layers=1",
        "strong": model,
        "probe_options": {"knn": {"k": 5}, "topofilter": {"k_zeta": 8}},
        "finetune": TINY,
        "layer": "last",
    }


class TestWeakToStrong:
    def test_every_arm_is_judged_between_floor_and_ceiling(
        self, base: dict[str, Any], tmp_path: Path
    ) -> None:
        config = RunConfig.from_mapping(
            {**base, "losses": ["xent", "logconf"], "rounds": 2, "curves": True}
        )
        results, _ = carry_out(config, tmp_path / "run")
        names = names_of(results)
        assert names[0] == "weak supervisor"
        assert names[-1] == "ground truth"
        for name in (
            "weak labels, xent",
            "weak labels, logconf",
            "filter kNN",
            "filter logistic",
            "filter TopoFilter",
            "relabel kNN",
            "probe kNN",
            "strong-to-strong, round 2",
        ):
            assert name in names
        (result,) = results["results"]
        arms = {arm["name"]: arm for arm in result["arms"]}
        # A random drop for every size of filter, of the same size.
        sizes = {arms[name]["rows"] for name in names if name.startswith("filter")}
        assert {arms[name]["rows"] for name in names if name.startswith("random")} == sizes
        assert arms["ground truth"]["label_accuracy"] == 1
        assert arms["ground truth"]["rows"] == arms["weak labels, xent"]["rows"]
        files = list((tmp_path / "run" / "predictions" / "seed0").iterdir())
        assert len(files) == len(names)
        # A figure a second way: from the file that lies in the folder.
        found = load_labels(tmp_path / "run/predictions/seed0/filter-kNN.parquet")
        lines = Path(base["task"]).read_text().splitlines()
        truth = {row["id"]: row["label"] for row in map(json.loads, lines)}
        right = [truth[i] == c for i, c in zip(found.ids, found.hard, strict=True)]
        assert arms["filter kNN"]["accuracy"] == pytest.approx(np.mean(right))
        for key in ("overall", "right", "wrong"):
            assert 0 <= arms["weak labels, xent"]["agreement"][key] <= 1
        assert [each["before_round"] for each in result["rounds"]] == [2]
        curve = result["curves"]["weak labels, xent"]
        assert len(curve["steps"]) == len(curve["accuracy"]) == len(curve["weak_agreement"]) >= 2
        assert curve["accuracy"][-1] == pytest.approx(arms["weak labels, xent"]["accuracy"])
        assert {"last", "weak_early_stop", "oracle"} == set(curve["stops"])
        assert curve["stops"]["oracle"]["accuracy"] == max(curve["accuracy"])
        for name in ("table.md", "arms.png", "curves.png", "metrics.json", "config.yaml"):
            assert (tmp_path / "run" / name).stat().st_size > 100

    @pytest.mark.slow
    def test_the_ensemble_reads_all_layers_and_others_one(
        self, base: dict[str, Any], tmp_path: Path
    ) -> None:
        changed = {"probes": ["ensemble", "mass-mean"], "random_drops": 0}
        config = RunConfig.from_mapping({**base, **changed})
        results, _ = carry_out(config, tmp_path / "run")
        names = names_of(results)
        assert {"filter ensemble", "relabel mass-mean", "probe ensemble"} <= set(names)
        read = [
            json.loads(path.read_text())["params"]["layer"]
            for path in (tmp_path / "steps").glob("states-*/step.json")
        ]
        assert sorted(read) == ["all", "all", "last", "last"]
        arms = {arm["name"]: arm for arm in results["results"][0]["arms"]}
        assert arms["probe ensemble"]["accuracy"] > 0.7, "the weak labels are right in 6 of 7"

    def test_no_student_step_depends_on_the_truth(
        self, base: dict[str, Any], tmp_path: Path
    ) -> None:
        """Only supervisor and ceiling have a fingerprint of ground truth among their parameters."""
        config = RunConfig.from_mapping({**base, "losses": ["xent", "entropy"], "rounds": 2})
        run = Run(config, tmp_path, lambda _: None)
        (experiment,) = run.experiments
        seeing = set()
        for arm in run.arms(experiment, planned=True):
            for step in arm.steps:
                if step.params.get("truth"):
                    seeing.add(arm.kind)
        assert seeing == {"floor", "ceiling"}

    def test_changed_truth_of_the_students_rows_changes_no_student(
        self, base: dict[str, Any], animals_and_tools: Files, tmp_path: Path
    ) -> None:
        """The truth of the student's half is turned round: same students, another ceiling."""
        config = RunConfig.from_mapping({**base, "probes": ["knn"], "actions": ["relabel"]})
        first, _ = carry_out(config, tmp_path / "a")
        run = Run(config, tmp_path / "steps", lambda _: None)
        student = set(run.experiments[0].context.splits.rows["student"].ids)
        path = animals_and_tools(name="turned.jsonl")
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            if row["id"] in student:
                row["label"] = 1 - row["label"]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        second, _ = carry_out(config.changed(task=(str(path),)), tmp_path / "b")
        losses = [
            {arm["name"]: arm["log_loss"] for arm in each["results"][0]["arms"]}
            for each in (first, second)
        ]
        for name in ("weak labels, xent", "relabel kNN", "probe kNN", "weak supervisor"):
            assert losses[0][name] == losses[1][name]
        assert losses[0]["ground truth"] != losses[1]["ground truth"]

    @pytest.mark.slow
    def test_seeds_are_combined(self, base: dict[str, Any], tmp_path: Path) -> None:
        config = RunConfig.from_mapping({**base, "seeds": [0, 1], "probes": [], "actions": []})
        results, _ = carry_out(config, tmp_path / "run")
        (group,) = results["groups"]
        values = [each["arms"][1]["accuracy"] for each in results["results"]]
        found = group["arms"][1]["figures"]["accuracy"]
        assert found["values"] == values
        assert found["median"] == pytest.approx(np.median(values))
        assert found["sem"] == pytest.approx(np.std(values, ddof=1) / math.sqrt(2))
        assert values[0] != values[1]

    def test_supervisors_own_rows(self, base: dict[str, Any], tmp_path: Path) -> None:
        config = RunConfig.from_mapping({**base, "weak_on": "train", "probes": [], "actions": []})
        run = Run(config, tmp_path, lambda _: None)
        splits = run.experiments[0].context.splits
        assert splits.rows["student"].ids == splits.rows["supervisor"].ids

    @pytest.mark.slow
    def test_preference_pairs(
        self, base: dict[str, Any], write_jsonl: Files, tmp_path: Path
    ) -> None:
        path = write_jsonl(
            [
                {"prompt": f"q{i} ", "chosen": f"hammer {i % 17}", "rejected": f"cat {i % 13}"}
                for i in range(240)
            ],
            "pairs.jsonl",
        )
        config = RunConfig.from_mapping({**base, "task": str(path), "probes": ["logreg"]})
        results, _ = carry_out(config, tmp_path / "run")
        arms = {arm["name"]: arm["accuracy"] for arm in results["results"][0]["arms"]}
        assert results["results"][0]["classes"] == ["0", "1"]
        assert arms["ground truth"] > 0.8
        assert arms["probe logistic"] > 0.5

    @pytest.mark.slow
    def test_grid_of_models(self, base: dict[str, Any], tmp_path: Path) -> None:
        strong = base["strong"]
        config = RunConfig.from_mapping(
            {
                **base,
                "weak": [f"{strong}@layers=1", f"{strong}@layers=2"],
                "strong": [f"{strong}@layers=2", strong],
                "probes": [],
                "actions": [],
            }
        )
        run = Run(config, tmp_path / "steps", lambda _: None)
        trained = [s for s in in_order(run.all_steps(planned=True)) if s.kind == "finetune"]
        # 2 floors, 4 students, and each strong model's ceiling once: they share the rows.
        assert len(trained) == 8
        results, _ = carry_out(config, tmp_path / "run")
        assert len(results["groups"]) == 4
        sizes = {group["parameters"]["strong"] for group in results["groups"]}
        assert len(sizes) == 2
        assert (tmp_path / "run" / "grid-rows.jsonl.png").is_file()


class TestOnlyOnce:
    def test_a_second_run_does_nothing(self, base: dict[str, Any], tmp_path: Path) -> None:
        config = RunConfig.from_mapping({**base, "probes": ["knn"], "actions": ["filter"]})
        first, lines = carry_out(config, tmp_path / "run")
        assert not any("done before" in line for line in lines)
        again, lines = carry_out(config, tmp_path / "run")
        assert all("done before" in line for line in lines)
        assert first["results"] == again["results"]

    def test_runs_share_floors_ceilings_and_states(
        self, base: dict[str, Any], tmp_path: Path
    ) -> None:
        one = RunConfig.from_mapping({**base, "probes": ["knn"], "actions": ["filter"]})
        carry_out(one, tmp_path / "one")
        two = RunConfig.from_mapping({**base, "probes": ["logreg"], "actions": ["relabel"]})
        _, lines = carry_out(two, tmp_path / "two")
        shared = {line.split("seed 0: ")[1].split(":")[0] for line in lines if "before" in line}
        assert any("weak supervisor" in name for name in shared)
        assert any("ground truth" in name for name in shared)
        assert any("states of the student rows" in name for name in shared)
        assert any("weak labels, xent" in name for name in shared)
        assert not any("logreg" in name for name in shared)

    def test_another_configuration_is_refused(self, base: dict[str, Any], tmp_path: Path) -> None:
        config = RunConfig.from_mapping(base)
        open_folder(tmp_path / "run", config)
        open_folder(tmp_path / "run", config.changed(layer=0))  # nothing was done there yet
        open_folder(tmp_path / "run", config)
        (tmp_path / "run" / "metrics.json").write_text("{}")
        with pytest.raises(OutputExistsError, match="which differs in layer;"):
            open_folder(tmp_path / "run", config.changed(layer=1))
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "thesis.tex").write_text("x")
        with pytest.raises(OutputExistsError, match=r"holds other files \('thesis\.tex'\)"):
            open_folder(tmp_path / "other", config)

    @pytest.mark.slow
    def test_a_killed_run_goes_on(self, base: dict[str, Any], tmp_path: Path) -> None:
        config = RunConfig.from_mapping({**base, "probes": ["knn"], "actions": ["filter"]})
        whole, _ = carry_out(config, tmp_path / "whole")
        write_config(config, tmp_path / "config.yaml")
        command = [sys.executable, "-m", "probekit", "run", "--config", "config.yaml"]
        command += ["-o", "cut/run", "--json"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        deadline = time.monotonic() + 120
        while len(list((tmp_path / "cut" / "steps").glob("finetune-*/done.json"))) < 2:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not (tmp_path / "cut" / "run" / "metrics.json").exists()
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )
        # So little training leaves students that give one class, which is reported at the end.
        assert done.returncode == bool(whole["failures"]), done.stderr
        assert "done before" in done.stderr
        arms = [each["results"][0]["arms"] for each in (whole, json.loads(done.stdout))]
        assert arms[0] == arms[1]


class TestFailures:
    """One weak part does not stop the whole."""

    @pytest.fixture
    def config(self, base: dict[str, Any]) -> RunConfig:
        return RunConfig.from_mapping({**base, "probes": ["knn"], "actions": ["filter"]})

    def arms(self, results: dict[str, Any]) -> dict[str, Any]:
        (result,) = results["results"]
        return {arm["name"]: arm for arm in result["arms"]}

    def test_an_arm_without_rows(
        self, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from probekit.experiments import steps

        def nothing(*args: Any, **kwargs: Any) -> Any:
            verdicts = real(*args, **kwargs)
            return replace(verdicts, keep=np.zeros_like(verdicts.keep))

        real = steps.random_verdicts
        monkeypatch.setattr(steps, "random_verdicts", nothing)
        results, lines = carry_out(config, tmp_path / "run")
        arms = self.arms(results)
        assert "all were dropped; filter less" in arms["random as kNN"]["alarms"]["failed"]
        assert arms["random as kNN"]["accuracy"] is None
        assert any("random as kNN, 1: failed" in line for line in lines)
        # All others are there, in files too.
        assert all(arm["accuracy"] is not None for n, arm in arms.items() if n != "random as kNN")
        assert arms["filter kNN"]["pgr"] is not None
        found = {path.stem for path in (tmp_path / "run/predictions/seed0").iterdir()}
        assert "random-as-kNN" not in found
        assert "filter-kNN" in found
        (told,) = [each for each in results["failures"] if ": failed: " in each]
        assert told.startswith("rows.jsonl, seed 0: random as kNN: failed: No row")

    def test_a_student_that_diverges(
        self, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import torch

        from probekit.students import losses

        config = config.changed(losses=("xent", "kl"), probes=(), actions=())
        real = losses.make_loss

        def broken(name: str, **options: Any) -> Any:
            made = real(name, **options)
            if name != "kl":
                return made
            call = type(made).__call__
            monkeypatch.setattr(
                type(made),
                "__call__",
                lambda s, *a, **k: call(s, *a, **k) * (torch.nan if s.name == "kl" else 1),
            )
            return made

        monkeypatch.setattr("probekit.students.finetune.make_loss", broken)
        results, _ = carry_out(config, tmp_path / "run")
        arms = self.arms(results)
        assert "The loss of step 1 is nan" in arms["weak labels, kl"]["alarms"]["failed"]
        assert arms["weak labels, xent"]["accuracy"] is not None
        assert arms["ground truth"]["accuracy"] is not None

    def test_a_supervisor_that_gives_one_class(
        self, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Saturated, so that its labels hold nothing: probes and students fail, the ceiling not."""
        from probekit.students import finetune as module

        def saturated(self: Any, rows: Any) -> Any:
            found = real(self, rows)
            return np.tile([0.0, 1.0], (len(found), 1)) if len(floors) < 1 else found

        def trained(*args: Any, **kwargs: Any) -> Any:
            done = real_finetune(*args, **kwargs)
            floors.append(done)
            return done

        floors: list[Any] = []
        real, real_finetune = module.ClassTrainer.probabilities, module.finetune
        monkeypatch.setattr(module.ClassTrainer, "probabilities", saturated)
        monkeypatch.setattr(module, "finetune", trained)
        results, _ = carry_out(config, tmp_path / "run")
        arms = self.arms(results)
        floor = arms["weak supervisor"]
        assert set(floor["alarms"]) == {"degenerate", "collapsed"}
        assert floor["accuracy"] is not None
        assert "of the class '1'" in arms["weak labels, xent"]["alarms"]["failed"]
        assert "filter with knn' failed" in arms["filter kNN"]["alarms"]["failed"]
        assert arms["weak labels, xent"]["pgr"]["pgr"] is None
        assert arms["ground truth"]["accuracy"] is not None
        assert (tmp_path / "run" / "report.html").is_file()

    def test_a_task_that_cannot_be_read(self, config: RunConfig, tmp_path: Path) -> None:
        broken = tmp_path / "broken.jsonl"
        broken.write_text('{"text": "a"}\n' * 50)
        config = config.changed(task=(str(broken), *config.task), probes=(), actions=())
        results, lines = carry_out(config, tmp_path / "run")
        assert [result["task"] for result in results["results"]] == ["rows.jsonl"]
        assert "no column 'label'" in results["failures"][0]
        assert results["failures"][0].startswith(f"{broken}, seed 0: failed: ")
        assert lines[0].startswith("Warning: ")
        # The control: where nothing else is left, it is refused before anything is written.
        alone = config.changed(task=(str(broken),))
        with pytest.raises(DataError, match="no column 'label'"):
            Run(alone, tmp_path / "nowhere", lines.append).check()
        assert not (tmp_path / "nowhere").exists()

    def test_a_model_that_cannot_be_opened(self, config: RunConfig, tmp_path: Path) -> None:
        config = config.changed(strong=("no/such/folder", *config.strong), probes=(), actions=())
        run = Run(config, tmp_path, lambda _: None)
        assert len(run.experiments) == 1
        assert "no/such/folder" in run.left_out[0]


class TestChain:
    def test_each_labels_fresh_rows_for_the_next(
        self, base: dict[str, Any], tmp_path: Path
    ) -> None:
        strong = base["strong"]
        chain = [f"{strong}@layers=1", f"{strong}@layers=2", strong]
        config = RunConfig.from_mapping({"task": base["task"], "chain": chain, "finetune": TINY})
        results, _ = carry_out(config, tmp_path / "run")
        (result,) = results["results"]
        kinds = [arm["kind"] for arm in result["arms"]]
        assert kinds == ["floor", "chain", "chain", "naive", "ceiling"]
        assert {"part0", "part1", "part2", "test"} == set(result["rows"])
        last, naive, ceiling = result["arms"][2:]
        assert last["rows"] == naive["rows"] == ceiling["rows"] == result["rows"]["part2"]
        assert last["name"].count("→") == 2
        assert naive["gain"] is None  # gains are measured from it
        assert last["gain"] is not None


class TestLanguageModelFirst:
    def test_students_ceiling_and_probes_start_from_it(
        self, base: dict[str, Any], tiny_model: Callable[..., Path], tmp_path: Path
    ) -> None:
        model = str(tiny_model("llama"))
        config = RunConfig.from_mapping(
            {
                **base,
                "weak": f"{model}@layers=1",
                "strong": model,
                "probes": ["knn"],
                "actions": ["relabel"],
                "lm_first": True,
                "lm_finetune": {"max_steps": 3},
            }
        )
        run = Run(config, tmp_path / "steps", lambda _: None)
        (experiment,) = run.experiments
        starts = {
            arm.kind: [s.inputs["base"].kind for s in in_order(arm.steps) if "base" in s.inputs]
            for arm in run.arms(experiment, planned=True)
        }
        assert starts["floor"] == []
        for kind in ("plain", "relabel", "probe", "ceiling"):
            assert set(starts[kind]) == {"lm"}
        results, _ = carry_out(config, tmp_path / "run")
        assert results["results"][0]["arms"][-1]["accuracy"] > 0.4
        told = results["results"][0]["language_model"]
        assert 0 < told["perplexity_after"] != told["perplexity_before"] > 1
        (group,) = results["groups"]
        assert group["language_model"]["perplexity_after"]["median"] == told["perplexity_after"]
        shown = run_table(group).notes
        assert f"perplexity of held-out texts {told['perplexity_before']:.2f} before" in str(shown)

    def test_students_stand_under_the_ceilings_with_and_without_it(
        self, base: dict[str, Any], tiny_model: Callable[..., Path], tmp_path: Path
    ) -> None:
        """Against a run without the step: the same students, ceilings, gains and PGR."""
        model = str(tiny_model("llama"))
        fields = {**base, "weak": f"{model}@layers=1", "strong": model, "probes": [], "actions": []}
        without, _ = carry_out(RunConfig.from_mapping(fields), tmp_path / "without")
        fields |= {"lm_first": True, "lm_finetune": {"max_steps": 30, "lr": 1e-2}}
        run, _ = carry_out(RunConfig.from_mapping(fields), tmp_path / "with")
        (result,), (other,) = run["results"], without["results"]
        assert "starts" not in other
        first, second = result["starts"]
        floor, plain, ceiling = (
            {arm["kind"]: arm["accuracy"] for arm in result["arms"]}[kind]
            for kind in ("floor", "plain", "ceiling")
        )
        low_plain, low_ceiling = (
            {arm["kind"]: arm["accuracy"] for arm in other["arms"]}[kind]
            for kind in ("plain", "ceiling")
        )
        assert (first["student"], first["ceiling"]) == (low_plain, low_ceiling)
        assert (second["student"], second["ceiling"]) == (plain, ceiling)
        assert (low_plain, low_ceiling) != (plain, ceiling)  # the control: the step did something
        assert first["gain"] is None
        assert second["gain"]["gain"] == pytest.approx(plain - low_plain)
        for row in result["starts"]:
            for start, top in (("pretrained", low_ceiling), ("language model", ceiling)):
                value, expected = row["pgr"][start]["pgr"], pgr(floor, row["student"], top)
                assert np.isnan(expected) if value is None else value == pytest.approx(expected)
        table = starts_table(result)
        assert [row[0] for row in table.rows] == ["without --lm-first", "with --lm-first"]
        assert "with and without --lm-first" in (tmp_path / "with" / "table.md").read_text().lower()
        names = {path.stem for path in (tmp_path / "with" / "predictions").rglob("*.parquet")}
        assert {"ground-truth", "ground-truth-without-lm-first"} <= names

    def test_a_ceiling_that_fails_without_it_is_reported(
        self,
        base: dict[str, Any],
        tiny_model: Callable[..., Path],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        model = str(tiny_model("llama"))
        fields = {**base, "weak": f"{model}@layers=1", "strong": model, "probes": [], "actions": []}
        fields |= {"lm_first": True, "lm_finetune": {"max_steps": 1}}
        failure = Cache.failure
        monkeypatch.setattr(
            Cache,
            "failure",
            lambda self, step: (
                "out of patience"
                if "ground truth, without --lm-first" in step.name
                else failure(self, step)
            ),
        )
        results, _ = carry_out(RunConfig.from_mapping(fields), tmp_path / "run")
        assert any("out of patience" in each for each in results["failures"])
        first, second = results["results"][0]["starts"]
        assert first["ceiling"] is first["pgr"]["pretrained"]["pgr"] is None
        assert second["ceiling"] is not None
        assert "-" in starts_table(results["results"][0]).rows[0]


# What a preset is made of beside these fields must be as committed.
REPLACED = ("task", "weak", "strong", "supervisor_rows", "student_rows", "test_rows")


class TestPresets:
    @pytest.mark.parametrize("name", ["burns", "eleuther"])
    def test_all_other_fields_are_as_committed(self, name: str) -> None:
        committed = yaml.safe_load((Path(__file__).parent / f"{name}.yaml").read_text())
        found = read_preset(name)
        assert {k: v for k, v in found.items() if k not in REPLACED} == committed
        config = RunConfig.from_mapping(found)
        assert len(config.task) == {"burns": 22, "eleuther": 25}[name]

    def test_tasks_exist(self) -> None:
        from probekit.tasks.registry import task_names

        for name in preset_names():
            assert set(read_preset(name)["task"]) <= set(task_names())

    @pytest.mark.parametrize("name", ["burns", "eleuther"])
    @pytest.mark.slow
    def test_whole_with_other_models_data_and_rows(
        self,
        name: str,
        animals_and_tools: Files,
        tiny_model: Callable[..., Path],
        tmp_path: Path,
    ) -> None:
        model = str(tiny_model("qwen2"))
        fields = read_preset(name)
        fields |= {
            "task": [str(animals_and_tools(400))],
            "weak": [f"{model}@layers=1"],
            "strong": [model],
            "supervisor_rows": 120,
            "student_rows": 130,
            "test_rows": 60,
        }
        if "validation_rows" in fields:
            fields["validation_rows"] = 40
        # Other models, other lengths; and a row at a time is a matter of minutes.
        smaller = {"burns": {"max_length": 64}, "eleuther": {"batch_size": 32, "grad_accum": 1}}
        fields["finetune"] = {**fields["finetune"], **smaller[name]}
        results, _ = carry_out(RunConfig.from_mapping(fields), tmp_path / "run")
        names = names_of(results)
        assert len(names) >= {"burns": 5, "eleuther": 15}[name]
        assert all(f"weak labels, {loss}" in names for loss in fields["losses"])
        rows = results["results"][0]["rows"]
        if name == "eleuther":
            assert names.count("strong-to-strong, round 3") == 1
            assert rows["validation"] == 40
            assert rows["student"] == rows["supervisor"] == 120
            # The supervisor's best checkpoint by the validation rows' truth, every 25 steps.
            steps = (tmp_path / "steps").glob("finetune-*/step.json")
            params = [json.loads(path.read_text())["params"] for path in steps]
            (floor,) = [each for each in params if each["part"] == "supervisor"]
            assert floor["held_out"] == "ground truth"
            assert floor["config"]["eval_steps"] == 25
            # Cleaned labels train with the log-confidence loss, the ceiling never.
            losses = {each["labels"]: each["config"]["loss"] for each in params}
            assert losses["verdicts.parquet"] == "logconf_eleuther"
            assert losses["ground truth"] == "xent"

    @pytest.mark.parametrize("name", ["burns", "eleuther"])
    def test_plan_without_the_hub(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PROBEKIT_DATASETS", str(tmp_path))
        fields = read_preset(name)
        found = plan(RunConfig.from_mapping(fields), tmp_path)
        assert found["done"] == 0
        assert found["experiments"] == len(fields["task"]) * len(fields["weak"]) * len(
            fields["strong"]
        )
        assert set(found["not_reached"]) >= {*fields["weak"], *fields["strong"], "boolq"}
        assert found["rows_of_unknown_length"] == found["row_passes"] > 0


def test_plan_counts_what_the_run_does(base: dict[str, Any], tmp_path: Path) -> None:
    config = RunConfig.from_mapping({**base, "probes": ["knn"], "actions": ["filter"]})
    found = plan(config, tmp_path / "steps")
    assert not (tmp_path / "steps").exists()
    assert found["tokens"] > found["row_passes"] > found["rows_through_models"] > 0
    assert not found["not_reached"]
    carry_out(config, tmp_path / "run")
    after = plan(config, tmp_path / "steps")
    kinds = [path.name.split("-")[0] for path in (tmp_path / "steps").iterdir()]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == found["steps"]
    # The random drop's size is known only now, so its own two steps are other ones than planned.
    assert after["done"] == len(kinds) - 2


@pytest.mark.realdata
@pytest.mark.slow
def test_chain_and_rounds_on_real_text(realdata: Any, minilm: str, tmp_path: Path) -> None:
    """Bootstrapping 1 → 2 → 3 → 6 layers and two strong-to-strong rounds on SST-2."""
    rows = []
    with (realdata.data / "sst2" / "train.tsv").open(encoding="utf-8") as file:
        next(file)
        for number, line in enumerate(file):
            text, label = line.rstrip("\n").split("\t")
            rows.append({"id": f"sst{number}", "text": text, "label": int(label)})
            if len(rows) == 600:
                break
    path = tmp_path / "sst2.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    chain = [f"{minilm}@layers={k}" for k in (1, 2, 3)] + [minilm]
    config = RunConfig.from_mapping(
        {
            "task": str(path),
            "weak": f"{minilm}@layers=1",
            "strong": f"{minilm}@layers=2",
            "chain": chain,
            "rounds": 2,
            "supervisor_rows": 60,
            "student_rows": 60,
            "test_rows": 60,
            "probes": [],
            "actions": [],
            "finetune": {"epochs": 1.0, "lr": 2e-4, "device": "cpu"},
        }
    )
    results, _ = carry_out(config, tmp_path / "run")
    pair, bootstrapped = results["results"]
    assert [arm["kind"] for arm in pair["arms"]] == ["floor", "plain", "round", "ceiling"]
    assert pair["rounds"][0]["weak"] > 0.3
    kinds = [arm["kind"] for arm in bootstrapped["arms"]]
    assert kinds == ["floor", "chain", "chain", "chain", "naive", "ceiling"]
