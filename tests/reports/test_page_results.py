"""Pages of runs, saliency comparisons and the demo, from results as their files hold them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from probekit.experiments.judge import Arm, judge_arms
from probekit.experiments.saliency_judge import COLUMNS, PROBES, Judged
from probekit.experiments.saliency_summary import summarize_pairs
from probekit.experiments.seeds import combine_seeds
from probekit.reports.page import render_page
from probekit.reports.page_results import demo_page, saliency_page
from probekit.reports.page_run import run_page
from probekit.reports.run_tables import run_table
from probekit.reports.tables import demo_table

TRUTH = np.random.default_rng(0).integers(0, 2, 200)


def judged(seed: int = 0) -> list[dict[str, Any]]:
    def probs(strength: float) -> Any:
        noise = np.random.default_rng(seed).normal(size=len(TRUTH))
        p = 1 / (1 + np.exp(-(2 * TRUTH - 1) * strength - noise))
        return np.column_stack([1 - p, p])

    arms = [
        Arm("weak supervisor", "floor", [probs(0.5)]),
        Arm("weak labels, <xent>", "plain", [probs(0.8)], 0.7, 90),
        Arm("ground truth", "ceiling", [probs(2)], 1.0, 90),
    ]
    return judge_arms(arms, truth=TRUTH, weak_prior=[0.5, 0.5], draws=200)


def run_results(strong: tuple[str, ...] = ("large",)) -> dict[str, Any]:
    groups = [
        {
            "task": "t",
            "weak": "small",
            "strong": name,
            "parameters": {"weak": 10**6, "strong": 10 ** (7 + i)},
            "seeds": [0],
            "arms": combine_seeds([judged()]),
        }
        for i, name in enumerate(strong)
    ]
    results = [
        {
            "task": "t",
            "weak": "small",
            "strong": name,
            "seed": 0,
            "rows": {"test": 200},
            "arms": judged(),
            "alarms": ["Mind that."],
            "seconds": {"step of all": 60.0, f"step of {name}": 30.0},
        }
        for name in strong
    ]
    return {
        "groups": groups,
        "results": results,
        "versions": {"probekit": "0.1.0"},
        "config": {"task": ["t"], "finetune": {"epochs": 2}, "chain": []},
    }


def test_every_cell_of_a_runs_table_is_on_its_page():
    results = run_results()
    html = render_page(run_page(results, folder=Path("runs/first <run>")))
    for row in run_table(results["groups"][0]).rows:
        for cell in row[1:]:
            assert f"<td>{cell}</td>" in html
    assert "weak labels, &lt;xent&gt;" in html
    assert "first &lt;run&gt;" in html
    assert "probekit run --config &#39;runs/first &lt;run&gt;/config.yaml&#39; -o again" in html
    assert "Mind that." in html
    assert "config.finetune.epochs" in html
    assert html.count("data:image/png") == 1


def test_several_pairs_have_a_figure_each_and_one_for_all():
    page = run_page(run_results(("large", "larger")), folder=Path("r"))
    assert [figure.caption.partition(":")[0] for figure in page.figures] == [
        "Test accuracy of every student",
        "Test accuracy of every student",
        "Students by size on t",
    ]
    facts = dict(page.facts)
    assert facts["Strong models"] == "large, larger"
    assert facts["Computed in"] == "2 min"  # 60 + 30 + 30: what is shared counts once


def test_the_page_of_a_saliency_comparison():
    right = np.random.default_rng(0).random((200, len(COLUMNS))) < 0.7
    record = {
        "task": "t",
        "weak": "small",
        "strong": "large",
        "seed": 0,
        "rows": {"student": 90, "test": 200},
        "chance": 0.5,
        "weak_accuracy": 0.65,
        "label_accuracy": 0.66,
        "accuracy": dict(zip(COLUMNS, right.mean(axis=0).tolist(), strict=True)),
        "auroc": dict.fromkeys(COLUMNS, 0.75),
        "probes": {
            key: {"chosen": {"layer": 1, "l2": 0.1}, "layers": [{"layer": 0}, {"layer": 1}]}
            for key in PROBES
        },
        "layers": {key: [0.5, 0.7] for key in PROBES},
    }
    pairs = list(summarize_pairs([(record, Judged(right.astype(float), "0" * 16))]))
    page = saliency_page({"pairs": pairs}, folder=Path("/any/s"))
    html = render_page(page)
    assert page.tables[0].table.rows[0][0].startswith("1.")
    assert html.count("data:image/png") == 2
    assert "probekit saliency --config s/config.yaml -o again --steps again-steps" in html


def test_the_page_of_the_demo():
    none = {"gain": None, "pgr": None, "pgr_prior_matched": None}
    arms = [
        {
            "name": name,
            "kind": kind,
            "rows": 9,
            "label_accuracy": 0.9,
            "accuracy": value,
            "accuracy_prior_matched": value,
            "auroc": 0.9,
            **none,
        }
        for name, kind, value in (
            ("weak supervisor", "floor", 0.7),
            ("weak labels", "plain", 0.8),
            ("ground truth", "ceiling", 0.9),
        )
    ]
    results = {
        "task": "docstrings",
        "model": "model",
        "layer": 6,
        "student_rows": 2000,
        "test_rows": 1000,
        "weak_prior": [0.5, 0.5],
        "random_draws": 1,
        "arms": arms,
    }
    html = render_page(demo_page(results, title="demo"))
    for row in demo_table(results).rows:
        assert f">{row[0]}</th>" in html
    assert "probekit demo --student-rows 2000 --test-rows 1000 -o again" in html
    assert "commands.sh" not in html  # a script in a folder that may be anybody's
    assert html.count("data:image/png") == 1
