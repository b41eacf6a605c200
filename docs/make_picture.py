"""Draw docs/rows.png, the README's picture, from the folder of a demo.

Example: probekit demo && python docs/make_picture.py probekit-demo
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from probekit.activations.store import ActivationStore
from probekit.cleaning.predict import score_rows
from probekit.experiments.config import RunConfig
from probekit.experiments.folder import CONFIG
from probekit.experiments.run import Run
from probekit.experiments.steps import STORE
from probekit.labels import WeakLabels
from probekit.reports.figures import COLORS, FAINT, GRID, INK, blank, soft_axes, write, write_figure
from probekit.settings import read_settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from probekit.verdicts import Verdicts

TARGET = Path(__file__).parent / "rows.png"
# As the task's two classes are: scikit-learn and SciPy, or Python's standard library.
NAMES = ("stdlib", "science")
SHOWN, TEXT_WIDTH = 9, 44
# Left edge of each column, as a share of the width.
COLUMNS = {"the most doubtful rows": 0.0, "label": 0.55, "probe says": 0.68, "truth": 0.83}
WRONG, RIGHT = "#a61b1b", "#2f7d4f"


def read(folder: Path) -> tuple[Verdicts, list[str], NDArray[np.int64]]:
    """Verdicts of the bag of words' labels, the rows' texts and their true classes."""
    with contextlib.chdir(folder):
        config = RunConfig.from_mapping(read_settings(Path("bag-of-words") / CONFIG))
        run = Run(config, Path("steps"), lambda _: None)
        pair: Any = run.experiments[0].source
        context, weak = pair.context, pair.weak_labels
        labels: WeakLabels = context.read(weak, "student", run.cache.path(weak.step))
        states = run.cache.path(pair.states("knn", "student")) / STORE
        with ActivationStore(states) as store:
            verdicts = score_rows(store, labels, seed=context.seed).filter()
        rows, truth = context.splits.rows["student"], context.splits.truth["student"]
        place = {row_id: i for i, row_id in enumerate(rows.ids)}
        order = [place[row_id] for row_id in verdicts.ids]
        texts = [str(rows.columns["text"][i]) for i in order]
        return verdicts, texts, truth.hard[order]


def draw_rows(axes: Axes, verdicts: Verdicts, texts: list[str], truth: NDArray[np.int64]) -> None:
    """The first rows of the report, one line each."""
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(SHOWN + 0.1, -0.6)
    for name, x in COLUMNS.items():
        write(axes, name, (x, -0.25), color=FAINT, size=13, va="center")
    weak, probe = verdicts.weak.argmax(axis=1), verdicts.probe.argmax(axis=1)
    for line, row in enumerate(verdicts.ranking[:SHOWN].tolist(), 1):
        axes.axhline(line - 0.62, color=GRID, linewidth=1)
        right = weak[row] == truth[row]
        cells = (
            _short(texts[row]),
            NAMES[weak[row]],
            NAMES[probe[row]],
            "label right" if right else "label wrong",
        )
        for x, cell in zip(COLUMNS.values(), cells, strict=True):
            color = (RIGHT if right else WRONG) if x == COLUMNS["truth"] else INK
            write(axes, cell, (x, line - 0.18), color=color, size=13, va="center")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= TEXT_WIDTH else line[: TEXT_WIDTH - 1].rstrip() + "…"


def draw_found(axes: Axes, verdicts: Verdicts, truth: NDArray[np.int64]) -> None:
    """Share of all wrong labels among the rows looked at, the most doubtful first."""
    soft_axes(axes, size=12.5)
    wrong = (verdicts.weak.argmax(axis=1) != truth)[verdicts.ranking]
    looked = 100 * np.arange(len(wrong) + 1) / len(wrong)
    found = 100 * np.r_[0, np.cumsum(wrong)] / wrong.sum()
    axes.plot(looked, found, color=COLORS["filter"], linewidth=2.5)
    axes.plot([0, 100], [0, 100], color=FAINT, linestyle=":", linewidth=1.5)
    axes.set_xlabel("rows looked at, %", fontsize=13, color=INK)
    axes.set_title("wrong labels found, %", fontsize=13, color=INK, loc="left")
    fifth = len(wrong) // 5
    axes.plot(looked[fifth], found[fifth], "o", color=COLORS["filter"], markersize=8)
    share = f"{found[fifth]:.0f} % of the wrong labels"
    caption = f"dot: in a fifth of the rows\n{share}\ndotted: in any order"
    write(axes, caption, (98, 6), size=12.5, ha="right", va="bottom", linespacing=1.35)
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 101)


def main(folder: Path) -> None:
    """Write the picture."""
    verdicts, texts, truth = read(folder)
    figure = blank(12.4, 4.3)
    left, right = figure.subplots(
        1, 2, gridspec_kw={"width_ratios": [2.35, 1], "wspace": 0.08, "left": 0.01, "right": 0.99}
    )
    draw_rows(left, verdicts, texts, truth)
    draw_found(right, verdicts, truth)
    write_figure(figure, TARGET)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "probekit-demo"))
