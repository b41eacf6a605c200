"""The weak-to-strong grid: rows that belong together, gains with intervals, goals, resuming."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from weak_to_strong import main, read_results
from weak_to_strong_rows import overlapping
from weak_to_strong_students import answers
from weak_to_strong_summary import (
    CLEANED,
    STUDENTS,
    advice_rows,
    draw,
    draw_every_arm,
    goals,
    groups,
)

ROWS = 80


def bits(right: np.ndarray[Any, Any]) -> str:
    return np.packbits(right.astype(bool)).tobytes().hex()


def cell(
    seed: int, rights: dict[str, np.ndarray[Any, Any]], student: str = "regularised"
) -> list[dict[str, Any]]:
    """Lines of one cell; the supervisor is right in half of the rows."""
    place = {"pair": "a:b", "task": "t", "seed": seed, "test_rows": ROWS}
    floor = bits(np.arange(ROWS) % 2 == 0)
    advice = {"diagnose": "filter", "audit 20": "leave", "audit 40": "relabel"}
    lines = [
        {**place, "student": "supervisor", "arm": "supervisor", "right": floor, "advice": advice}
    ]
    return lines + [
        {**place, "student": student, "arm": arm, "labels": 0.8, "right": bits(right)}
        for arm, right in rights.items()
    ]


def rights(seed: int, **shares: float) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    wanted = {"plain": 0.6, "ceiling": 0.95, **dict.fromkeys(CLEANED, 0.6), **shares}
    return {arm: rng.random(ROWS) < share for arm, share in wanted.items()}


def test_phrases_of_one_sentence_belong_together() -> None:
    sentence = "one two three four five six seven eight nine ten"
    phrase = "two three four five six seven eight nine"
    short = "two three four five six seven eight"  # seven words in a row may be chance
    others = [f"the words of row number {i} are its own and nobody else's" for i in range(300)]
    names = overlapping([sentence, phrase, short, *others])
    assert names[0] == names[1] != names[2]
    assert len(set(names)) == len(names) - 1  # what all other rows share is the prompt's


def test_a_gain_is_paired_over_rows_and_seeds() -> None:
    own = {seed: rights(seed, filter=0.8) for seed in range(3)}
    (group,) = groups(
        [line for seed, each in own.items() for line in cell(seed, each)], "regularised"
    )
    more = np.stack([each["filter"].astype(float) - each["plain"] for each in own.values()])
    gain = group.gain("filter")
    assert gain.points == pytest.approx(100 * more.mean())
    # Var of a mean over rows of the rows' means, and of a mean over seeds of the seeds' means.
    variance = np.var(more.mean(0), ddof=1) / ROWS + np.var(more.mean(1), ddof=1) / 3
    assert gain.error == pytest.approx(100 * np.sqrt(variance))
    assert group.gain("plain").error == 0
    unpaired = np.var(more) / more.size
    assert gain.error != pytest.approx(100 * np.sqrt(unpaired))  # the control
    assert group.recovered("ceiling") == pytest.approx(1)
    assert group.recovered("supervisor") == pytest.approx(0)


def test_goals_count_pairs_with_a_gap_only() -> None:
    helped = goals(cell(0, rights(0, filter=0.95, **{"relabel, soft": 0.1})), "regularised")
    assert helped.pairs == 1
    assert helped.by_arm["filter"] == (1, 0)
    assert helped.by_arm["relabel, soft"] == (0, 1)
    assert (helped.above, helped.below, helped.met) == (1, 1, None)
    assert replace(helped, pairs=20, above=10).met
    assert not replace(helped, pairs=20, above=9).met
    assert not replace(helped, pairs=20, above=10, below=2).met
    assert not replace(helped, pairs=20, above=10, recovered=(0.1,)).met
    level = rights(0)
    level["ceiling"] = level["plain"]
    assert goals(cell(0, level), "regularised").pairs == 0


def test_advice_is_followed_seed_by_seed() -> None:
    own = rights(0, filter=0.9)
    named = {row[0]: row for row in advice_rows(cell(0, own), "regularised")}
    gain = 100 * (own["filter"].mean() - own["plain"].mean())
    assert named["`diagnose`"][1:4] == ["0", "1", "0"]
    assert float(named["`diagnose`"][-2]) == pytest.approx(gain, abs=0.01)
    assert named["audit of 20"][-2] == "+0.00"  # it leaves the labels as they are


def test_figures_are_drawn_of_cells_that_lack_arms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gains stand in the figure of all arms, those without one are left blank."""
    from matplotlib.axes import Axes

    written: list[str] = []
    text = Axes.text

    def noted(axes: Axes, x: float, y: float, s: str, **options: Any) -> Any:
        written.append(s)
        return text(axes, x, y, s, **options)

    monkeypatch.setattr(Axes, "text", noted)
    own = rights(0, filter=0.9)
    lines = [line for student in STUDENTS for line in cell(0, own, student)]
    draw(lines, tmp_path / "gains.png")
    draw_every_arm(lines, tmp_path / "arms.png")
    assert (tmp_path / "gains.png").read_bytes() != (tmp_path / "arms.png").read_bytes()
    gain = 100 * (own["filter"].mean() - own["plain"].mean())
    assert written.count(f"{gain:+.1f}") == len(STUDENTS)
    assert len(written) == len(STUDENTS) * len([*CLEANED, "ceiling"])  # no arm has true labels


def test_answers_keep_which_rows_are_right() -> None:
    truth = np.arange(ROWS) % 2
    P = np.eye(2)[truth]
    P[:7] = P[:7, ::-1]
    kept = np.unpackbits(np.frombuffer(bytes.fromhex(answers(P, truth)["right"]), np.uint8))
    assert np.flatnonzero(kept[:ROWS] == 0).tolist() == list(range(7))
    assert answers(P, truth)["acc"] == pytest.approx(1 - 7 / ROWS, abs=1e-5)


def test_a_line_that_a_kill_cut_off_is_done_again(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    assert read_results(path) == []
    path.write_text('{"arm": "plain"}\n{"arm": "fil', encoding="utf-8")
    assert read_results(path) == [{"arm": "plain"}]
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"arm": "filter"}) + "\n")
    assert [line["arm"] for line in read_results(path)] == ["plain", "filter"]


def test_other_numbers_of_rows_go_to_another_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line does not say its number, so two of them in one file would be one arm."""
    monkeypatch.setattr("sys.argv", ["weak_to_strong.py", "--rows", "50"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "--rows: name an --output" in capsys.readouterr().err
