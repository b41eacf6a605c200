"""The report of a run: tables, figures, table.md and report.html, from metrics.json."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probekit.errors import ProbekitError
from probekit.experiments.scores import ALARMS, PERPLEXITY, STARTS
from probekit.files import atomic_write
from probekit.reports.figures import (
    COLORS,
    FAINT,
    INK,
    WIDTH_INCHES,
    above,
    below,
    blank,
    plain_axes,
    png,
    soft_axes,
    write,
)
from probekit.reports.page import (
    Figure,
    Page,
    PageTable,
    RowsSection,
    folder_command,
    settings,
    write_page,
)
from probekit.reports.tables import MISSING, Table, difference, interval, percent

if TYPE_CHECKING:
    import matplotlib.figure
    from matplotlib.axes import Axes

    from probekit.experiments.run import Run

__all__ = [
    "REPORT",
    "brief_table",
    "curve_table",
    "draw_arms",
    "draw_curves",
    "draw_grid",
    "report_run",
    "rounds_table",
    "run_page",
    "run_table",
    "write_run_reports",
]

REPORT = "report.html"
ARM_COLORS = COLORS | {
    "loss": "#6b4ea0",
    "probe": "#2f7d4f",
    "round": "#8a1c4a",
    "chain": "#0b69a3",
    "naive": "#52606d",
}
LINES = ("#0b69a3", "#b4540a", "#2f7d4f", "#6b4ea0", "#8a1c4a", "#52606d")
CURVES = (
    ("accuracy", LINES[0], "test accuracy (ground truth)"),
    ("weak_agreement", LINES[1], "agreement with held-out weak labels"),
)
STOPS = (
    ("weak_early_stop", "v", "stop at the best agreement"),
    ("oracle", "*", "best accuracy (oracle)"),
)
GRID_PANELS = (
    ("accuracy", "test rows right, %"),
    ("pgr", "PGR"),
    ("wrong", "supervisor's errors repeated, %"),
)
ENDS = {"floor": "weak supervisor", "ceiling": "ground truth"}
# Columns of figures that need class probabilities.
OF_PROBABILITIES = ("acc*", "PGR*", "AUROC")
MEANINGS = {
    "classes": (
        "labels: training labels that are right, %. acc: test rows right at 0.5, %; acc*, PGR*:",
        "with the class shares of the weak labels. PGR: recovered share of the gap between weak",
        "supervisor and ceiling. gain: points over the student on plain weak labels. A_w: of the",
        "rows where the supervisor is wrong, those where the student repeats it, %.",
    ),
    "completion": (
        "labels: completions to learn that are right, %. acc: test rows completed exactly as the",
        "truth, %. PGR: recovered share of the gap between weak supervisor and ceiling. gain:",
        "points over the student on all of the supervisor's completions. A_w: of the rows where",
        "the supervisor is wrong, those where the student repeats it, %.",
    ),
}
NEAR = 0.15  # of the axis: ticks of sizes nearer than this would run into each other


def report_run(
    run: Run, results: Mapping[str, Any], folder: Path, say: Callable[[str], None]
) -> str:
    """Write the reports of a run that was carried out, with the rows that it cleaned."""
    from probekit.reports.rows import run_rows

    try:
        rows = run_rows(run)
    except ProbekitError as error:  # the results of hours are written without them
        say(f"Note: report.html has no rows: {error}")
        rows = None
    return write_run_reports(results, folder, rows=rows)


def write_run_reports(
    results: Mapping[str, Any], folder: Path, *, rows: RowsSection | None = None
) -> str:
    """Write table.md, the figures and report.html of a run; returns its tables as text.

    ``results`` is the content of metrics.json; the page shows ``rows``.
    """
    figures = list(run_figures(results))
    for name, figure in figures:
        with atomic_write(folder / name) as file:
            file.write(figure.png)
    pictures = [f"![{figure.caption}]({name})" for name, figure in figures]
    text: list[str] = []
    markdown: list[str] = []
    for group in results["groups"]:
        title, table = run_title(group), run_table(group)
        text += [title, "", table.text(), ""]
        markdown += [f"## {title}", "", table.markdown(), "", pictures.pop(0), ""]
    for name, where, table in _more_tables(results):
        text += [f"{name}, {where}", "", table.text(), ""]
        markdown += [f"## {name.capitalize()}: {where}", "", table.markdown(), ""]
    for alarm in run_alarms(results):
        text.append(f"Warning: {alarm}")
        markdown += [f"**Warning**: {alarm}", ""]
    for picture in pictures:
        markdown += [picture, ""]
    with atomic_write(folder / "table.md", "w") as file:
        file.write("\n".join(markdown))
    page = _page(results, folder, rows, [figure for _, figure in figures])
    write_page(page, folder / REPORT)
    return "\n".join(text).rstrip()


def run_page(results: Mapping[str, Any], *, folder: Path, rows: RowsSection | None = None) -> Page:
    """Describe a run as a page; ``results`` is the content of metrics.json in its ``folder``."""
    return _page(results, folder, rows, [figure for _, figure in run_figures(results)])


def _page(
    results: Mapping[str, Any], folder: Path, rows: RowsSection | None, figures: Sequence[Figure]
) -> Page:
    tables = [PageTable(run_title(group), run_table(group)) for group in results["groups"]]
    tables += [
        PageTable(f"{name.capitalize()}: {where}", table)
        for name, where, table in _more_tables(results)
    ]
    return Page(
        title=folder.absolute().name,
        kind="run",
        facts=tuple(_facts(results)),
        alarms=tuple(run_alarms(results)),
        tables=tuple(tables),
        figures=tuple(figures),
        rows=rows,
        commands=(folder_command("run", folder),),
        provenance=settings(results, "versions", "hardware", "config"),
    )


def run_alarms(results: Mapping[str, Any]) -> list[str]:
    """List what failed, collapsed or is suspicious."""
    suspicious = (alarm for result in results["results"] for alarm in result["alarms"])
    return [*results.get("failures", ()), *suspicious]


def run_figures(results: Mapping[str, Any]) -> Iterator[tuple[str, Figure]]:
    """Yield file name and figure of all figures of a run."""
    several = len(results["groups"]) > 1
    for number, group in enumerate(results["groups"], 1):
        name = f"arms-{number}.png" if several else "arms.png"
        where = f": {run_title(group)}" if several else ""
        yield name, Figure(f"Test accuracy of every student{where}", png(draw_arms(group)))
    curved = next((result for result in results["results"] if result.get("curves")), None)
    if curved is not None:
        yield "curves.png", Figure("Overfitting curves", png(draw_curves(curved)))
    grids: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for group in results["groups"]:
        if any(arm["kind"] == "plain" for arm in group["arms"]):
            # Older files have no key student.
            student = group.get("student", "finetune")
            grids.setdefault((group["task"], student), []).append(group)
    if any(len({group["strong"] for group in grid}) > 1 for grid in grids.values()):
        for (task, student), grid in sorted(grids.items()):
            of = "" if student == "finetune" else f"-{student}"
            yield (
                f"grid-{task.replace('/', '-')}{of}.png",
                Figure(f"Students by size on {task}", png(draw_grid(grid))),
            )


def _more_tables(results: Mapping[str, Any]) -> Iterator[tuple[str, str, Table]]:
    """Yield further tables of each pair of models: kind, pair, table."""
    for result in results["results"]:
        where = f"{result['task']}, {result['weak']} → {result['strong']}, seed {result['seed']}"
        for key, name, table in (
            ("starts", "with and without --lm-first", starts_table),
            ("rounds", "rounds", rounds_table),
            ("curves", "curves", curve_table),
        ):
            if result.get(key):
                yield name, where, table(result)


def _facts(results: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    groups, each = results["groups"], results["results"]
    for name, key in (("Task", "task"), ("Weak model", "weak"), ("Strong model", "strong")):
        values = list(dict.fromkeys(group[key] for group in groups))
        yield name if len(values) == 1 else f"{name}s", ", ".join(values)
    yield "Seeds", f"{len(groups[0]['seeds'])}"
    if test := each[0].get("rows", {}).get("test"):
        yield "Test rows", f"{test:,}"
    # A step that several arms share is listed by each of them.
    seconds = {name: took for r in each for name, took in r.get("seconds", {}).items()}
    if seconds:
        yield "Computed in", _duration(sum(seconds.values()))


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def run_title(group: Mapping[str, Any]) -> str:
    """Return the title of a table: task and models."""
    seeds = len(group["seeds"])
    return f"{group['task']}: {group['weak']} → {group['strong']}, {seeds} seed{'s'[: seeds != 1]}"


def run_table(group: Mapping[str, Any]) -> Table:
    """Return a table of one row per arm, floor first, ceiling last; medians of several seeds.

    ``group`` is an entry of ``groups`` in metrics.json.
    """
    header = ("trained on", "rows", "labels", "acc", "PGR", "gain", "acc*", "PGR*", "AUROC", "A_w")
    rows = [_row(arm) for arm in group["arms"]]
    kept = [name not in OF_PROBABILITIES or not _written(group) for name in header]
    rows = [tuple(compress(row, kept)) for row in rows]
    return Table(tuple(compress(header, kept)), tuple(rows), tuple(_notes(group)))


def _written(group: Mapping[str, Any]) -> bool:
    """Return whether models write completions, which are right or wrong and have no probability."""
    return bool(group.get("kind") == "completion")  # older files have no such key


def brief_table(groups: Mapping[str, Mapping[str, Any]], probe: str) -> Table:
    """Return a few rows for each weak supervisor: its labels as they are, filtered and relabelled.

    Parameters
    ----------
    groups
        Name of the weak supervisor -> entry of ``groups`` in metrics.json; the first also has rows
        for a random drop and for the ceiling.
    probe
        Name in tables of the probe that filters and relabels.
    """
    header = ("what", "labels right", "student right", "PGR [95 %]", "gain")
    rows, floors = [], []
    for number, (name, group) in enumerate(groups.items()):
        arms = [_arm_of(group, "plain")]
        shown = [f"{name}, as they are"]
        if number == 0:
            drop = next(a for a in group["arms"] if a["kind"] == "random" and probe in a["name"])
            arms.append(drop)
            shown.append(f"{name}, a random drop")
        cleaned = {arm["name"]: arm for arm in group["arms"]}
        for action, words in (("filter", "filtered"), ("relabel", "relabelled")):
            arms.append(cleaned[f"{action} {probe}"])
            shown.append(f"{name}, {words} by {probe}")
        rows += [_brief(each, arm) for each, arm in zip(shown, arms, strict=True)]
        floors.append(f"{name} {_accuracy_of(group, 'floor'):.1f} %")
    first = next(iter(groups.values()))
    rows.append(_brief(ENDS["ceiling"], _arm_of(first, "ceiling")))
    notes = (
        "labels right: of the training rows, %. student right: of the test rows, %; their weak",
        f"supervisors: {', '.join(floors)}. PGR: recovered share of the gap between weak",
        "supervisor and student of ground truth. gain: points over the labels as they are.",
        "[95 % interval]: paired bootstrap over test rows; another seed moves it too.",
    )
    return Table(header, tuple(rows), notes)


def _brief(name: str, arm: Mapping[str, Any]) -> tuple[str, ...]:
    figures = arm["figures"]
    return (
        name,
        percent(figures["label_accuracy"]["median"]),
        percent(figures["accuracy"]["median"]),
        _recovered(arm["pgr"]),
        _gain(arm["gain"]),
    )


def _row(arm: Mapping[str, Any]) -> tuple[str, ...]:
    figures = arm["figures"]
    rows = figures["rows"]["median"]
    return (
        arm["name"] + _alarmed(arm),
        MISSING if rows is None else f"{rows:,.0f}",
        percent(figures["label_accuracy"]["median"]),
        _spread(figures["accuracy"], 100, 1),
        _recovered(arm["pgr"]),
        _gain(arm["gain"]),
        percent(figures["accuracy_prior_matched"]["median"]),
        _short(arm["pgr_prior_matched"]),
        percent(figures["auroc"]["median"]),
        MISSING if arm["agreement"] is None else percent(arm["agreement"]["wrong"]["median"]),
    )


def _alarmed(arm: Mapping[str, Any]) -> str:
    """Return the alarms of an arm, and the number of seeds that have each."""
    raised, seeds = arm.get("alarms", {}), arm["seeds"]
    shown = [name if seeds == 1 else f"{name} {n}/{seeds}" for name, n in raised.items()]
    return f" ({', '.join(shown)})" if shown else ""


def _spread(figure: Mapping[str, Any], scale: float, digits: int) -> str:
    if figure["median"] is None:
        return MISSING
    text = f"{scale * figure['median']:.{digits}f}"
    return text if figure["sem"] is None else f"{text} ± {scale * figure['sem']:.{digits}f}"


def shown_pgr(pgr: Mapping[str, Any] | None) -> float | None:
    """Return the PGR that tables and figures show; None without a sure gap."""
    if pgr is None or pgr["median"] is None or ("low" in pgr and pgr["unbounded"]):
        return None
    return float(pgr["median"])


def _recovered(pgr: Mapping[str, Any] | None) -> str:
    """Return PGR with its interval or standard error; without PGR, student − weak in points."""
    if pgr is None:
        return MISSING
    if shown_pgr(pgr) is None:
        gained = _spread(pgr["over_weak"], 100, 1)
        return gained if gained == MISSING else f"pt {gained}"
    if pgr.get("low") is not None:
        return interval(pgr["median"], pgr["low"], pgr["high"])
    return _spread(pgr, 1, 2) + ("†" if pgr["undefined"] else "")


def _short(pgr: Mapping[str, Any] | None) -> str:
    value = shown_pgr(pgr)
    return MISSING if value is None else f"{value:.2f}"


def _gain(gain: Mapping[str, Any] | None) -> str:
    if gain is None or gain["median"] is None:
        return MISSING
    if "low" in gain:
        return difference(gain["median"], gain["low"], gain["high"])
    text = f"{100 * gain['median']:+.1f}"
    return text if gain["sem"] is None else f"{text} ± {100 * gain['sem']:.1f}"


def _notes(group: Mapping[str, Any]) -> Iterator[str]:
    several = len(group["seeds"]) > 1
    yield from MEANINGS["completion" if _written(group) else "classes"]
    if several:
        yield f"Medians of {len(group['seeds'])} seeds ± standard error of the mean."
    else:
        yield "[95 % interval]: paired bootstrap over test rows; another seed moves it too."
    recoveries = [arm[key] for arm in group["arms"] for key in ("pgr", "pgr_prior_matched")]
    if any(pgr and pgr["reasons"] and pgr["over_weak"]["median"] is not None for pgr in recoveries):
        yield "pt: student − weak supervisor in points, where the gap is too small for a PGR."
    if (language := group.get("language_model")) is not None:
        before, after = (_spread(language[key], 1, 2) for key in PERPLEXITY)
        yield f"Language-model step: perplexity of held-out texts {before} before, {after} after."
    alarms = {name for arm in group["arms"] for name in arm.get("alarms", {})}
    for name in (name for name in ALARMS if name in alarms):
        yield f"{name}: {ALARMS[name]}; there is no PGR; the reason is below."
    if any(pgr is not None and pgr["undefined"] for pgr in recoveries) and several:
        yield "†: the median of the seeds that have a gap."


def starts_table(result: Mapping[str, Any]) -> Table:
    """Return a table of plain students with and without the language-model step.

    ``result`` has ``starts``; PGR stands under the ceiling of either start.
    """
    names = dict(zip(STARTS, ("without --lm-first", "with --lm-first"), strict=True))
    rows = tuple(
        (
            names[each["start"]],
            percent(each["student"]),
            _paired(each["gain"]),
            percent(each["ceiling"]),
            *(_under(each["pgr"][ceiling]) for ceiling in STARTS),
        )
        for each in result["starts"]
    )
    header = ("weak labels", "acc", "gain", "own ceiling", "PGR, ceiling without", "ceiling with")
    notes = (
        "The language-model step may raise the ceiling, too, so each student's PGR stands under",
        "either ceiling; under its own it is the share of its own gap. gain: points over the",
        "student without the step. [95 % interval]: paired bootstrap over test rows.",
    )
    return Table(header, rows, notes)


def _paired(gain: Mapping[str, Any] | None) -> str:
    """Return one seed's gain with its interval."""
    if gain is None or gain["gain"] is None:
        return MISSING
    return difference(gain["gain"], gain["gain_low"], gain["gain_high"])


def _under(pgr: Mapping[str, Any] | None) -> str:
    """Return one seed's PGR with its interval, if the gap is sure."""
    if pgr is None or pgr["pgr"] is None or pgr["unbounded"]:
        return MISSING
    return interval(pgr["pgr"], pgr["pgr_low"], pgr["pgr_high"])


def rounds_table(result: Mapping[str, Any]) -> Table:
    """Return a table of the labels of each strong-to-strong round; ``result`` has ``rounds``."""
    rows = tuple(
        (
            f"before round {each['before_round']}",
            percent(each["weak"]),
            percent(each["student"]),
            percent(each["ceiling"]),
            MISSING if each["pgr"] is None else f"{each['pgr']:.2f}",
        )
        for each in result["rounds"]
    )
    header = ("training set", "weak labels", "student's", "ceiling's", "PGR")
    return Table(header, rows, ("Labels of the training rows that are right, %.",))


def curve_table(result: Mapping[str, Any]) -> Table:
    """Return accuracy and PGR at the last step, at the weak early stop and at the oracle."""

    def cell(stop: Mapping[str, Any]) -> str:
        recovered = MISSING if stop["pgr"] is None else f"{stop['pgr']:.2f}"
        return f"{percent(stop['accuracy'])} ({recovered}) @{stop['step']}"

    names = ("last", "weak_early_stop", "oracle")
    rows = tuple(
        (name, *(cell(curve["stops"][stop]) for stop in names))
        for name, curve in result["curves"].items()
    )
    notes = ("Accuracy, % (PGR) @step. The oracle uses ground truth.",)
    return Table(("student", "last", "weak early stop", "oracle"), rows, notes)


def draw_arms(group: Mapping[str, Any]) -> matplotlib.figure.Figure:
    """Test accuracy of every student between weak floor and ceiling; seeds as small marks.

    ``group`` is an entry of ``groups`` in metrics.json.
    """
    arms = [a for a in group["arms"] if a["kind"] in ARM_COLORS and _accuracy(a) is not None]
    figure = blank(WIDTH_INCHES, 1.6 + 0.36 * len(arms))
    axes = figure.subplots()
    plain_axes(axes, len(arms))
    axes.set_yticks(range(len(arms)), [arm["name"] for arm in arms])
    axes.set_xlabel("test rows right, %", fontsize=11, color=INK, labelpad=6)
    for tick, arm in zip(axes.get_yticklabels(), arms, strict=True):
        tick.set_color(ARM_COLORS[arm["kind"]])
    seen = []
    for row, arm in enumerate(arms):
        color, figures = ARM_COLORS[arm["kind"]], arm["figures"]["accuracy"]
        value = 100 * figures["median"]
        each = [100 * v for v in figures["values"] if v is not None]
        bar = _bar(arm, value)
        axes.plot(bar, [row, row], color=color, linewidth=2.5, alpha=0.4)
        if len(each) > 1:
            axes.plot(each, [row] * len(each), "|", markersize=8, color=color)
        axes.plot(value, row, "o", markersize=7, color=color)
        seen += [value, *bar, *each]
    plain = next((_accuracy(arm) for arm in arms if arm["kind"] in ("plain", "naive")), None)
    if plain is not None:
        axes.axvline(plain, color=FAINT, linewidth=1, linestyle=":")
    seen += _ends(axes, group)
    seen = seen or [0, 100]
    span = max(max(seen) - min(seen), 1)
    axes.set_xlim(min(seen) - 0.06 * span, max(seen) + 0.06 * span)
    bars = (
        "Dots: medians; marks: seeds; bars: ± standard error of the mean."
        if len(group["seeds"]) > 1
        else "Bars: 95 % interval of the difference from the dotted line, paired over test rows."
    )
    below(axes, f"{run_title(group)}.\n{bars}", points=48)
    return figure


def _ends(axes: Axes, group: Mapping[str, Any]) -> list[float]:
    """Draw weak supervisor and ceiling as vertical lines, unless they failed."""
    ends = {kind: value for kind in ENDS if (value := _accuracy_of(group, kind)) is not None}
    for kind, value in ends.items():
        other = next((ends[each] for each in ends if each != kind), value)
        axes.axvline(value, color=INK, linewidth=1.2, zorder=1)
        # On opposite sides: the two lines may be close.
        align = "center" if value == other else "right" if value < other else "left"
        above(axes, f"{ENDS[kind]}\n{value:.1f}", value, align=align)
    return list(ends.values())


def _bar(arm: Mapping[str, Any], value: float) -> tuple[float, float]:
    """Return the ends of a bar: ± standard error of seeds, or one seed's interval of the gain."""
    sem = arm["figures"]["accuracy"]["sem"]
    if sem is not None:
        return value - 100 * sem, value + 100 * sem
    gain = arm["gain"]
    if gain is None or "low" not in gain:
        return value, value
    low, high = (value + 100 * (gain[key] - gain["median"]) for key in ("low", "high"))
    return low, high


def draw_curves(result: Mapping[str, Any]) -> matplotlib.figure.Figure:
    """Accuracy against ground truth and agreement with held-out weak labels over the training.

    ``result`` is an entry of ``results`` in metrics.json that has ``curves``.
    """
    curves = result["curves"]
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    figure = blank(3.6 * columns + 0.6, 2.9 * rows + 0.6)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True, sharex=True)
    ends = {
        ENDS[arm["kind"]]: arm["accuracy"]
        for arm in result["arms"]
        if arm["kind"] in ENDS and arm["accuracy"] is not None
    }
    for axes, (name, curve) in zip(panels.flat, curves.items(), strict=False):
        soft_axes(axes)
        axes.set_title(name, fontsize=11, color=INK, loc="left")
        for end in ends.values():
            axes.axhline(100 * end, color=INK, linewidth=1)
        for key, color, label in CURVES:
            values = [100 * value for value in curve[key]]
            axes.plot(curve["steps"], values, "-o", color=color, markersize=4, label=label)
        for stop, mark, label in STOPS:
            at = curve["stops"][stop]
            size = 13 if mark == "*" else 9
            axes.plot(
                at["step"], 100 * at["accuracy"], mark, color=INK, markersize=size, label=label
            )
    first, last = panels[0, 0], panels.flat[len(curves) - 1]
    for axes in panels.flat[len(curves) :]:
        axes.set_visible(False)
    for place, axes in enumerate(panels.flat[: len(curves)]):
        if place + columns >= len(curves):
            axes.set_xlabel("step", fontsize=11, color=INK)
            axes.tick_params(labelbottom=True)
    for axes in panels[:, 0]:
        axes.set_ylabel("%", fontsize=11, color=INK)
    for name, end in ends.items():
        # On opposite sides: the two lines may be close.
        side = "bottom" if end == max(ends.values()) else "top"
        at, coords = (1, 100 * end), ("axes fraction", "data")
        write(last, name, at, (6, 0), coords=coords, size=10, va=side, annotation_clip=False)
    handles, labels = first.get_legend_handles_labels()
    _legend(figure, handles, labels, columns=1 if columns == 1 else 2, inches=0.55)
    return figure


def draw_grid(groups: Sequence[Mapping[str, Any]]) -> matplotlib.figure.Figure:
    """Score, PGR and inherited errors of the plain student against its size, by supervisor.

    The third panel asks for inverse scaling: whether larger students repeat more of the
    supervisor's errors (Burns et al. 2023, section 5.1.3). ``groups`` are those of one task.
    """
    figure = blank(12.5, 3.9)
    panels = figure.subplots(1, 3, gridspec_kw={"wspace": 0.22})
    weak = sorted({(group["parameters"]["weak"], group["weak"]) for group in groups})
    for axes, (panel, label) in zip(panels, GRID_PANELS, strict=True):
        soft_axes(axes)
        _size_axis(axes, sorted({group["parameters"]["strong"] for group in groups}))
        axes.set_title(label, fontsize=11, color=INK, loc="left")
        for (_, name), color in zip(weak, LINES * len(weak), strict=False):
            mine = [group for group in groups if group["weak"] == name]
            points = [(g["parameters"]["strong"], _plain_value(g, panel)) for g in mine]
            known = sorted((x, y) for x, y in points if y is not None)
            axes.plot(*_columns(known), "-o", color=color, label=f"from {name}")
            floor = _accuracy_of(mine[0], "floor")
            if panel == "accuracy" and floor is not None:
                axes.axhline(floor, color=color, linestyle=":", linewidth=1)
        if panel == "accuracy":
            tops = {(g["parameters"]["strong"], _accuracy_of(g, "ceiling")) for g in groups}
            drawn = sorted((size, top) for size, top in tops if top is not None)
            axes.plot(*_columns(drawn), "-", color=INK, label="ground truth")
        if panel == "pgr":
            axes.axhline(0, color=FAINT, linewidth=1)
    handles, labels = panels[0].get_legend_handles_labels()
    text = f"{groups[0]['task']}, plain students on weak labels. Dotted: the weak supervisors."
    below(panels[0], text, points=46)
    _legend(figure, handles, labels, columns=min(4, len(labels)), inches=0.85)
    return figure


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _size_axis(axes: Axes, sizes: Sequence[int]) -> None:
    """Make a logarithmic axis with ticks at the models' sizes."""
    axes.set_xscale("log")
    apart = (sizes[-1] / sizes[0]) ** NEAR
    ticks = [sizes[0]]
    for size in sizes[1:]:
        if size >= apart * ticks[-1]:
            ticks.append(size)
    axes.set_xticks(ticks, [_size(size) for size in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("student's parameters", fontsize=11, color=INK)


def _size(parameters: int) -> str:
    for unit, name in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if parameters >= unit:
            return f"{parameters / unit:.3g}{name}"
    return str(parameters)


def _accuracy(arm: Mapping[str, Any]) -> float | None:
    """Return the test rows right, %; None if every seed failed."""
    median = arm["figures"]["accuracy"]["median"]
    return None if median is None else 100 * float(median)


def _arm_of(group: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """Return the first arm of a kind; LookupError if a damaged file has none."""
    arms: list[Mapping[str, Any]] = [arm for arm in group["arms"] if arm["kind"] == kind]
    return arms[0]


def _accuracy_of(group: Mapping[str, Any], kind: str) -> float | None:
    return _accuracy(_arm_of(group, kind))


def _plain_value(group: Mapping[str, Any], panel: str) -> float | None:
    arm = _arm_of(group, "plain")
    if panel == "accuracy" or _accuracy(arm) is None:
        return _accuracy(arm)
    if panel == "pgr":
        return shown_pgr(arm["pgr"])  # as in the tables
    wrong = None if arm["agreement"] is None else arm["agreement"]["wrong"]["median"]
    return None if wrong is None else 100 * float(wrong)


def _legend(
    figure: matplotlib.figure.Figure,
    handles: Sequence[Any],
    labels: Sequence[str],
    *,
    columns: int,
    inches: float,
) -> None:
    """Place a legend ``inches`` below the axes."""
    figure.legend(
        handles,
        labels,
        loc="upper center",
        ncol=columns,
        frameon=False,
        labelcolor=INK,
        bbox_to_anchor=(0.5, figure.subplotpars.bottom - inches / figure.get_figheight()),
    )
