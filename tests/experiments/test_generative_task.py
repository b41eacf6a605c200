from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probekit.data import Rows
from probekit.errors import DataError
from probekit.experiments.generative_task import generative_weak_to_strong, score_completions
from probekit.students.completion import Completions, load_completions
from probekit.students.config import FinetuneConfig

pytestmark = pytest.mark.usefixtures("one_thread")

COLOURS = ("red", "green", "blue")


def config(model: Any, **settings: Any) -> FinetuneConfig:
    chosen = {"batch_size": 8, "device": "cpu", "dtype": "float32", **settings}
    return FinetuneConfig(model=str(model), **chosen)


def colour_rows(start: int, count: int) -> Rows:
    numbers = range(start, start + count)
    return Rows(
        {
            "id": [f"c{i}" for i in numbers],
            "text": [f"Row {i} has the colour {COLOURS[i % 3][0]} which is" for i in numbers],
            "completion": [COLOURS[i % 3] for i in numbers],
        },
        source="colours",
    )


def written(rows: Rows, texts: list[str]) -> Completions:
    return Completions(rows.ids, rows.hashes, texts, np.zeros(len(rows)))


def test_completions_are_judged_by_exact_match() -> None:
    test = colour_rows(0, 8)  # red green blue red green blue red green
    truth = list(test.columns["completion"])
    weak = written(test, [*truth[:2], *["pink"] * 6])
    student = written(test, [*truth[:4], "pink", "pink", "Red", "x"])
    ceiling = written(test, [*truth[:6], "x", "x"])
    found = score_completions(weak, student, ceiling, test)
    assert found["accuracy"] == {"weak": 0.25, "student": 0.5, "ceiling": 0.75}
    assert found["pgr"]["pgr"] == pytest.approx(0.5)
    assert found["pgr"]["gain"] == pytest.approx(0.25)
    # Right: both of 2; wrong: pink in 2 of 6.
    assert found["agreement"] == {
        "overall": 0.5,
        "right": 1.0,
        "wrong": pytest.approx(1 / 3),
        "weak": 0.25,
    }
    assert np.isnan(score_completions(ceiling, student, weak, test)["pgr"]["pgr"])


def test_a_student_learns_its_supervisors_moves_and_a_ceiling_the_true_ones(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    weak = config(f"{tiny_model('llama')}@layers=1", epochs=2.0, lr=3e-3)
    strong = config(tiny_model("llama"), epochs=25.0, lr=4e-3)
    parts = {"supervisor": colour_rows(0, 24), "student": colour_rows(24, 24)}
    test = colour_rows(48, 24)
    results = generative_weak_to_strong(weak, strong, **parts, test=test, output=tmp_path / "run")
    # The supervisor saw six steps: it is wrong nearly always, which its student must inherit.
    assert results["weak_targets_right"] <= 0.4
    assert results["accuracy"]["student"] <= 0.4
    assert results["accuracy"]["ceiling"] >= 0.6
    targets = load_completions(tmp_path / "run" / "supervisor" / "predictions" / "student.parquet")
    assert targets.ids == parts["student"].ids
    saved = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    assert saved["accuracy"] == results["accuracy"]
    again = generative_weak_to_strong(weak, strong, **parts, test=test, output=tmp_path / "run")
    assert again["accuracy"] == results["accuracy"]


def test_rows_of_two_parts_are_refused(tmp_path: Path) -> None:
    nowhere = config("nowhere")
    with pytest.raises(DataError, match=r"4 texts are both in the student rows and in the test"):
        generative_weak_to_strong(
            nowhere,
            nowhere,
            supervisor=colour_rows(0, 8),
            student=colour_rows(8, 8),
            test=colour_rows(12, 8),
            output=tmp_path / "run",
        )
