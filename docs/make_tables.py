"""Write the measured figures of the pages, from benchmarks/results, between their markers.

A block begins with ``<!-- benchmarks: NAME -->`` and ends with ``<!-- end -->``; NAME is a key of
``BLOCKS``. Each block stands in one page, so that a number has one home.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from math import exp, log
from pathlib import Path
from statistics import fmean, median
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import advice_classes as classes_bench  # noqa: E402
import audit_intervals as audit_bench  # noqa: E402
import cluster  # noqa: E402
import label_relabels  # noqa: E402
import label_summary  # noqa: E402
import million  # noqa: E402
import paper_finetuned  # noqa: E402
import paper_summary  # noqa: E402
import regularisation  # noqa: E402
import weak_to_strong_lengths as lengths  # noqa: E402
import weak_to_strong_sizes as sizes  # noqa: E402
import weak_to_strong_summary as linear_cells  # noqa: E402
import weak_to_strong_tables as tables  # noqa: E402
from _harness import RESULTS, read_lines, seconds  # noqa: E402
from label_states import MULTICLASS  # noqa: E402
from run_all import APART, SCRIPTS, newest_claims, readme_table  # noqa: E402

from probekit.reports.tables import Table  # noqa: E402

# Header and rows of a table, of the lines of a results file.
RowsOf = Callable[..., tuple[Sequence[str], Sequence[Sequence[str]]]]
BLOCK = re.compile(r"(<!-- benchmarks: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
ANNOTATORS = {
    "mixed": "right in 90, 80, 65, 60 and 55 %",
    "alike": "all right in 75 %",
    "biased": "all right in 85 %; three give one class to 40 % of rows unread",
    "models": "five models of words, 200 true labels each",
}
# Start of a claim's name -> what README calls it, and whether its ratio is one of speeds.
IN_SHORT = {
    "extract all layers beside sentence-transformers": (
        "hidden states of all layers, beside sentence-transformers",
        True,
    ),
    "neighbours of 20,000 × 1,024, k = 50, time beside the faster": (
        "50 nearest of 20,000 × 1,024",
        False,
    ),
    "logistic path, 10,000 × 1,024, hard: speed beside nine scikit": (
        "nine penalties, 10,000 × 1,024, beside scikit-learn",
        True,
    ),
    "TopoFilter (paper) of 10,000 × 512": ("TopoFilter, 10,000 × 512, beside dense", True),
    "256 random rows": ("256 random rows of a store, beside chunked HDF5", True),
}
LINEAR, FINETUNED, AUDITS = (f"weak_to_strong{of}" for of in ("", "_finetuned", "_audits"))
MORE_ROWS = "weak_to_strong_more_rows"
STRONG = {"minilm": "all-MiniLM", "mpnet": "MPNet", "smollm2": "SmolLM2"}


def rows_of(name: str) -> list[dict[str, Any]]:
    """The lines of a results file."""
    return read_lines(RESULTS / f"{name}.jsonl")


def by_classes(name: str, *, many: bool) -> list[dict[str, Any]]:
    """The lines of a results file about tasks with two classes, or with more."""
    return [line for line in rows_of(name) if (line["task"] in MULTICLASS) == many]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A pipe table; the first column is text, the others are numbers."""
    return Table(tuple(header), tuple(map(tuple, rows))).markdown()


def of_lines(rows: RowsOf, *names: str) -> Callable[[], str]:
    """A table whose header and rows its benchmark's script makes of the lines of these results."""
    return lambda: markdown(*rows(*map(rows_of, names)))


def speed() -> str:
    """The last valid claim of every speed benchmark."""
    return readme_table(RESULTS, [*SCRIPTS, *APART])


def speed_in_short() -> str:
    """Five claims for newcomers: ours, what one would use instead, and the ratio of times."""
    claims, _ = newest_claims(RESULTS, [*SCRIPTS, *APART])
    rows = []
    for start, (what, faster) in IN_SHORT.items():
        (name,) = [name for name in claims if name.startswith(start)]
        _, ours, peer, ratio, *_ = claims[name].cells()
        value = float(ratio.split()[0])
        rows.append([what, ours, peer, f"{value if faster else 1 / value:.1f} ×"])
    return markdown(["what", "probekit", "instead", "as fast"], rows)


def large_store() -> str:
    """Processor time and memory of each step on large stores, and how they grow."""
    return markdown(*million.page_rows(rows_of("million")))


def cluster_speed() -> str:
    """Rows per second of Ray's workers beside a plain process and torchrun."""
    return markdown(*cluster.speed_rows(rows_of("cluster")))


def cluster_kills() -> str:
    """Kills of a node and of the driver, by the command that they hit."""
    return markdown(*cluster.kill_rows(rows_of("cluster")))


def audit_intervals() -> str:
    """Coverage and width of the audit's intervals, by strong model and number of classes."""
    lines = rows_of("audit_intervals")
    shares = {"weak labels": "as they are", "after relabel": "after relabel"}
    shares |= {"after filter": "after filter"}
    header = ["strong model, classes", "cases", "answers"]
    for name in shares.values():
        header += [f"{name}: covered", "width"]
    rows = []
    for name, some in _groups(lines).items():
        by_share = {share: _of_share(some, share) for share in shares}
        for m in audit_bench.SIZES:
            cells = [name, str(len(some)), str(m)]
            for share in shares:
                _, _, mean, worst, _, width = by_share[share][m]
                cells += [f"{mean[:-2]}, worst {worst}", width]
            rows.append(cells)
    every = [_of_share(lines, share) for share in shares]
    worst = min(float(of[m][4][:-2]) for of in every for m in (50, 100) if of[m][4] != "-")
    control = dict(audit_bench.control_rows(lines))
    width = _of_share(lines, "weak labels")[100][-1]
    by_task = {
        task: _of_share([x for x in lines if x["task"] == task], "weak labels")[100][-1]
        for task in sorted({x["task"] for x in lines})
    }
    return (
        f"{markdown(header, rows)}\n\n"
        f"The worst case of any share with at least 50 answers covers {worst:.1f} % (aim: 94). At "
        f"100 answers the interval of the weak labels has {width} of chance's width over all cases "
        f"(aim: 0.70): {', '.join(f'{task} {ratio}' for task, ratio in by_task.items())}. A draw "
        "where wrong labels come up twice as often as their probabilities say is caught: its "
        f"intervals cover {control['50']} at 50 answers and {control['100']} at 100."
    )


def _groups(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Cases by strong model, and by two classes or more."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for line in sorted(lines, key=lambda line: (line["classes"] > 2, line["model"])):
        classes = "two" if line["classes"] == 2 else "more"
        groups.setdefault(f"{STRONG[line['model']]}, {classes}", []).append(line)
    return groups


def _of_share(lines: Sequence[Mapping[str, Any]], share: str) -> dict[int, list[str]]:
    """Number of answers -> the row of the benchmark's table."""
    rows = audit_bench.interval_rows(list(lines))
    return {int(row[1]): row for row in rows if row[0] == share}


def audit_advice() -> str:
    """Advice of 20 and 40 answers, beside the earlier audit's."""
    names = {f"audit {m}": f"audit, {m} answers" for m in audit_bench.AUDITS}
    names |= {f"disputed {m}": f"disputed rows, {m} answers" for m in audit_bench.AUDITS}
    rows = []
    for group, some in _groups(rows_of("audit_intervals")).items():
        for policy, *cells in audit_bench.advice_rows(list(some)):
            rows.append([group, names.get(policy, policy), *cells])
    header = [
        "strong model, classes",
        "advice",
        "right",
        "within a point of the best",
        "harm",
        "lost",
    ]
    return markdown(header, rows)


def advice_classes() -> str:
    """The rule of diagnose on two classes and on more."""
    return markdown(classes_bench.HEADER, classes_bench.rows_of(RESULTS / "advice_classes.jsonl"))


def strengths() -> str:
    """How far a sweep's choice without ground truth is behind the best."""
    lines = list({line["task"]: line for line in rows_of("regularisation")}.values())
    rows = []
    for probe, (chosen, usual) in regularisation.losses_by_strength(lines).items():
        name, value = regularisation.FIXED[probe]
        rows.append([probe, f"{fmean(chosen):.3f}", f"{fmean(usual):.3f} ({name} = {value:g})"])
    regrets = [line["regret"]["auroc"] for line in lines]
    return (
        f"{markdown(['probe', 'chosen strength', 'fixed strength'], rows)}\n\n"
        f"Regret of the whole choice, layer and probe included, on {len(lines)} tasks: median "
        f"{median(regrets):.3f}, largest {max(regrets):.3f}."
    )


# Kind of wrong labels -> what the page calls it.
NOISE = {
    "model": "a weaker model's",
    "words": "a bag of words'",
    "symmetric": "planted, 25 % of every class",
    "class": "planted, 10 and 35 % of the classes",
    "unsure": "planted where a weaker model is unsure",
    "rule": "planted by a rule",
}
# What learned from true labels -> the column's name.
TRUSTED = {
    "trust 50": "50",
    "trust 100": "100",
    "trust 400": "400",
    "trust 50, one probe": "50, one probe",
    "no offset 50": "50, no offset",
    "no offset 400": "400, no offset",
    "perceptron 400": "400, perceptron",
}


def _mean_of_arm(lines: Sequence[Mapping[str, Any]], arm: str, figure: str) -> float:
    return 100 * fmean(line[arm][figure] for line in lines if arm in line)


def trust() -> str:
    """What trusted labels add to the ensemble, by kind of wrong labels, and two aims."""
    tables, gains = _trusted(by_classes("trust", many=False))
    worst = min(gains, key=gains.__getitem__)
    return (
        f"{tables}\n\n"
        "Aims: with 50 labels no kind more than 0.5 below the ensemble in the mean (measured: "
        f"{gains[worst]:+.2f} for those {NOISE[worst]}), and at least +7 for errors by "
        f"class (measured: {gains['class']:+.1f})."
    )


def trust_classes() -> str:
    """The same with more than two classes."""
    return _trusted(by_classes("trust", many=True))[0]


def _trusted(lines: Sequence[Mapping[str, Any]]) -> tuple[str, dict[str, float]]:
    """Three tables by kind of wrong labels, and what 50 labels add to the AUROC of each."""
    gains: dict[str, float] = {}
    found, within, right = [], [], []
    mean = _mean_of_arm
    for kind, name in NOISE.items():
        mine = [line for line in lines if line["kind"] == kind]
        if not mine:
            continue
        for figure, rows in (("all", found), ("within", within)):
            before = mean(mine, "ensemble", figure)
            change = {arm: mean(mine, arm, figure) - before for arm in TRUSTED}
            if figure == "all":
                gains[kind] = change["trust 50"]
            cells = [name, str(len(mine)), f"{before:.1f}"]
            rows.append([*cells, *(f"{value:+.1f}" for value in change.values())])
        weak = 100 * fmean(line["weak right"] for line in mine)
        hard = [mean(mine, f"trust {m}", "likeliest") for m in (50, 100, 400)]
        figures = [weak, mean(mine, "ensemble", "matched"), *hard]
        right.append([name, *(f"{value:.1f}" for value in figures)])
    tasks = ", ".join(f"`{task}`" for task in sorted({line["task"] for line in lines}))
    draws = " or ".join(map(str, sorted({line.get("draws", 20) for line in lines})))
    models = " and ".join(sorted({line["model"] for line in lines}))
    header = ["wrong labels", "cases", "ensemble", *TRUSTED.values()]
    return (
        f"AUROC of finding wrong labels over all rows (%), and what true labels of 50, 100 or 400 "
        f"random rows add (means of {draws} draws; {len(lines)} cases of {tasks}, states of "
        f"{models}, 1,700 rows each):\n\n{markdown(header, found)}\n\n"
        f"Within the weak classes, where the class alone adds nothing:\n\n"
        f"{markdown(header, within)}\n\n"
        "Labels right (%): the weak ones; after `relabel --hard` by the ensemble alone, and with "
        "50, 100 and 400 trusted labels:\n\n"
        f"{markdown(['wrong labels', 'weak', '0', '50', '100', '400'], right)}"
    ), gains


def grid(make: Callable[..., str], *names: str) -> Callable[[], str]:
    """Tables of the weak-to-strong grid, made of the lines of these results."""
    return lambda: make(*map(rows_of, names), markdown)


def store() -> str:
    """Times of the activation store beside other ways to keep an array."""
    newest: dict[str, dict[str, str]] = {}
    for row in rows_of("store"):
        if "way" in row and row["valid"]:
            newest.setdefault(row["title"], {})[row["way"]] = seconds(row["seconds"])
    rows = []
    for title, ways in newest.items():
        ours, others = [], []
        for way, time in ways.items():
            (ours if way.startswith("probekit") else others).append(f"{way} {time}")
        named = (text.removeprefix("probekit").lstrip(", ") for text in ours)
        rows.append([title, "; ".join(named), "; ".join(others)])
    return markdown(["", "store", "instead"], rows).replace("---:", "---")


def label_errors() -> str:
    """Who finds wrong labels, by kind of error, and where the ensemble does not."""
    header, rows, conclusion = label_summary.summarize(rows_of("label_errors"))
    return f"{markdown(header, rows)}\n\n{conclusion}"


def annotators() -> str:
    """One vote, the share of votes and Dawid-Skene against the truth, before and after cleaning."""
    lines = rows_of("annotators")
    ways = ("single", "votes", "dawid-skene")
    of_labels = ("accuracy", "filtered", "relabelled", "log_loss")
    rows, at_least = [], Counter[str]()
    for kind, name in ANNOTATORS.items():
        of = {way: [x for x in lines if (x["kind"], x["method"]) == (kind, way)] for way in ways}
        means = {key: [fmean(x[key] for x in of[way]) for way in ways] for key in of_labels}
        log_loss = means.pop("log_loss")
        shares = [" / ".join(f"{100 * x:.1f}" for x in values) for values in means.values()]
        rows.append([name, *shares, " / ".join(f"{x:.2f}" for x in log_loss)])
        if kind != "models":
            sets = zip(*([x["accuracy"] for x in of[way]] for way in ways), strict=True)
            for single, votes, weighed in sets:
                at_least.update(sets=1, votes=votes >= single, weighed=weighed >= votes)
    header = ["annotators", "labels right, %", "kept by a filter", "relabelled", "log loss"]
    return (
        f"{markdown(header, rows)}\n\n"
        f"Of the {at_least['sets']} planted sets of votes, their share is right at least as often "
        f"as one vote in {at_least['votes']}, and Dawid–Skene at least as often as the share in "
        f"{at_least['weighed']}."
    )


def label_candidates() -> str:
    """Changes of the ensemble that were tried for finding wrong labels."""
    header, rows, cases = label_summary.candidates(rows_of("label_errors"))
    return f"{markdown(header, rows)}\n\n{cases}"


def label_classes() -> str:
    """Who finds wrong labels among twelve classes."""
    return markdown(*label_summary.many_classes(rows_of("label_errors")))


def label_decoder() -> str:
    """Who finds wrong labels from a decoder's states."""
    header, rows, cases = label_summary.decoder(rows_of("label_errors"))
    return f"{markdown(header, rows)}\n\n{cases}"


def label_shrunk() -> str:
    """The ensemble with a strong penalty and votes of the last layer only."""
    header, rows, cases = label_summary.shrunk(rows_of("label_errors"))
    return f"{markdown(header, rows)}\n\n{cases}"


def relabels() -> str:
    """How many labels are right after each form of a relabel."""
    lines = rows_of("label_relabels")
    pairs = list(dict.fromkeys(f"{line['task']} ({line['model']})" for line in lines))
    table = markdown(label_relabels.HEADER, label_relabels.rows_of(lines))
    return f"{table}\n\n{len(lines)} cases: {', '.join(pairs)}; six kinds, two seeds."


def certified() -> str:
    """Rows that people label for a certificate, in several orders under one bound."""
    return _certified(by_classes("certify", many=False))


def certified_classes() -> str:
    """The same with more than two classes, and how far its estimates of the cost are off."""
    cases = by_classes("certify", many=True)
    errors = cases[0]["errors"]
    groups = {f"ε = {100 * float(e):g} %": [c["errors"][e] for c in cases] for e in errors}
    return f"{_certified(cases)}\n\nThe cost as it was estimated:\n\n{_estimates(groups)}"


def _certified(cases: Sequence[Mapping[str, Any]]) -> str:
    """Tables by ε and by kind of error, and what they are of."""
    orders = {"random": "random order", "cleanlab": "cleanlab's order", "ensemble": "ensemble's"}
    header = ["ε", *orders.values(), "`certify`", "of cleanlab's order", "sample"]
    rows = []
    for error in cases[0]["errors"]:
        of_error = [case["errors"][error] for case in cases]
        means = [fmean(figures[name] for figures in of_error) for name in (*orders, "certify")]
        ratio = fmean(figures["certify"] / figures["cleanlab"] for figures in of_error)
        sample = fmean(figures["sample"] for figures in of_error)
        cells = [f"{100 * float(error):g} %", *(f"{mean:,.0f}" for mean in means)]
        rows.append([*cells, f"{ratio:.0%}", f"{sample:.0f}"])
    kinds = list(dict.fromkeys(case["kind"] for case in cases))
    of_kind = [
        fmean(
            case["errors"]["0.05"]["certify"] / case["errors"]["0.05"]["cleanlab"]
            for case in cases
            if case["kind"] == kind
        )
        for kind in kinds
    ]
    by_kind = markdown(["", *kinds], [["of cleanlab's order", *(f"{x:.0%}" for x in of_kind)]])
    figures = [figures for case in cases for figures in case["errors"].values()]
    broken = sum(left > f["max_wrong"] for f in figures for left in f["left"])
    files = sum(len(f["left"]) for f in figures)
    pairs = list(dict.fromkeys(f"{case['task']} ({case['model']})" for case in cases))
    return (
        f"{markdown(header, rows)}\n\nAt ε = 5 % by kind of error:\n\n{by_kind}\n\n"
        f"{len(cases)} cases, {', '.join(pairs)}, of {fmean(case['rows'] for case in cases):,.0f} "
        f"rows in the mean, {fmean(case['wrong'] / case['rows'] for case in cases):.0%} of their "
        f"labels wrong. More errors than promised were left in {broken} of {files} files "
        f"({broken / files:.1%}; at most 5 % are promised)."
    )


def certify_estimates() -> str:
    """How far certify's estimates of its cost are off, before and after the sample."""
    cases = by_classes("certify", many=False)
    groups: dict[str, list[dict[str, Any]]] = {}
    for case in cases:
        for error, figures in case["errors"].items():
            groups.setdefault(f"ε = {100 * float(error):g} %", []).append(figures)
    for case in cases:
        groups.setdefault(f"ε = 5 %, {case['kind']}", []).append(case["errors"]["0.05"])
    return _estimates(groups)


def _estimates(groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Estimates beside the cost, of each group of cases."""
    rows = []
    for name, group in groups.items():
        each = [
            (figures, labelled, later)
            for figures in group
            for labelled, later in zip(figures["labelled"], figures["after_sample"], strict=True)
        ]
        cells = [name, str(len(each))]
        for guess in (
            [figures["expected"] / labelled for figures, labelled, _ in each],
            [later / labelled for _, labelled, later in each],
        ):
            off = exp(fmean(abs(log(ratio)) for ratio in guess))
            cells += [f"{fmean(guess):.2f}", f"{off:.2f}"]
        inside = fmean(f["low"] <= labelled <= f["high"] for f, labelled, _ in each)
        above = fmean(labelled > f["high"] for f, labelled, _ in each)
        rows.append([*cells, f"{inside:.0%}", f"{above:.0%}"])
    header = ["", "files", "estimate / cost", "off by a factor of", "after the sample"]
    return markdown([*header, "off by a factor of", "within the range", "above it"], rows)


def goals() -> str:
    """What finding, counting and certifying wrong labels was to reach, and what it reaches."""
    rows = []

    def goal(name: str, aim: str, measured: str, met: bool, tried: str) -> None:
        rows.append([name, aim, measured, "yes" if met else "no", tried])

    log_at = "[log](LOG.md#{})".format
    cases = label_summary.read(rows_of("label_errors"))
    for peer, name in ((label_summary.PEER, "as they are"), (label_summary.UNIT, "of unit length")):
        gain = 100 * fmean(
            f[label_summary.OURS]["within"] - f[peer]["within"] for f in cases.values()
        )
        worst = min(label_summary.margins(cases, peer=peer).values())
        name = f"ranking: points over cleanlab's recipe, states {name}"
        met, text = gain >= 7 and worst >= -1, f"{gain:+.1f}, worst {worst:+.1f}"
        goal(name, "mean +7, no pair below -1", text, met, log_at("finding-wrong-labels"))
    lines = by_classes("trust", many=False)
    gains = {
        kind: _mean_of_arm(mine, "trust 50", "all") - _mean_of_arm(mine, "ensemble", "all")
        for kind in NOISE
        if (mine := [line for line in lines if line["kind"] == kind])
    }
    name, tried = "50 trusted labels: AUROC", log_at("trusted-labels")
    goal(f"{name}, errors by class", "+7", f"{gains['class']:+.1f}", gains["class"] >= 7, tried)
    worst = min(gains.values())
    goal(f"{name}, worst kind", "-0.5", f"{worst:+.2f}", worst >= -0.5, tried)
    lines, tried = rows_of("audit_intervals"), log_at("diagnose-and-audit")
    every = [_of_share(lines, share) for share in ("weak labels", "after relabel", "after filter")]
    worst = min(float(of[m][4][:-2]) for of in every for m in (50, 100) if of[m][4] != "-")
    goal("audit: coverage, worst case", "94 %", f"{worst:.1f} %", worst >= 94, tried)
    width = float(every[0][100][-1])
    goal("audit: width beside chance's, 100 answers", "0.70", f"{width:.2f}", width <= 0.7, tried)
    some = _groups(lines)["MPNet, two"]
    advice = {policy: cells for policy, *cells in audit_bench.advice_rows(list(some))}["audit 40"]
    right, _, harm, _ = (float(cell.rstrip(" %")) for cell in advice)
    text = f"{right} %, {harm} %"
    met = right >= 90 and harm <= 2
    goal("audit: advice of 40 answers, MPNet", "right 90 %, harm 2 %", text, met, tried)
    certified, tried = by_classes("certify", many=False), log_at("certified-labels")
    five = [case["errors"]["0.05"] for case in certified]
    part = fmean(figures["certify"] / figures["cleanlab"] for figures in five)
    goal(
        "certify: rows beside cleanlab's order, ε = 5 %", "60 %", f"{part:.0%}", part <= 0.6, tried
    )
    return markdown(["goal", "aim", "measured", "met", "tried"], rows)


BLOCKS: dict[str, Callable[[], str]] = {
    "advice-classes": advice_classes,
    "cluster-kills": cluster_kills,
    "cluster-speed": cluster_speed,
    "million": large_store,
    "audit-advice": audit_advice,
    "audit-intervals": audit_intervals,
    "annotators": annotators,
    "certified": certified,
    "certified-classes": certified_classes,
    "certify-estimates": certify_estimates,
    "goals": goals,
    "label-candidates": label_candidates,
    "label-classes": label_classes,
    "label-decoder": label_decoder,
    "label-errors": label_errors,
    "label-shrunk": label_shrunk,
    "paper-chess": of_lines(paper_finetuned.chess_rows, "paper_finetuned"),
    "paper-chain": of_lines(paper_summary.chain_rows, "paper"),
    "paper-lm-first": of_lines(paper_finetuned.language_rows, "paper_finetuned"),
    "paper-rounds": of_lines(paper_summary.round_rows, "paper"),
    "paper-saliency": of_lines(paper_finetuned.saliency_rows, "paper_finetuned"),
    "paper-size": of_lines(paper_summary.size_rows, "paper"),
    "relabels": relabels,
    "speed": speed,
    "speed-in-short": speed_in_short,
    "store": store,
    "strengths": strengths,
    "trust": trust,
    "trust-classes": trust_classes,
    "weak-to-strong": grid(tables.linear, LINEAR),
    "weak-to-strong-advice": grid(tables.followed, LINEAR),
    "weak-to-strong-choices": of_lines(lengths.choice_rows, FINETUNED),
    "weak-to-strong-finetuned": grid(tables.finetuned, FINETUNED),
    "weak-to-strong-finetuned-advice": grid(tables.finetuned_advised, FINETUNED, AUDITS),
    "weak-to-strong-lengths": of_lines(lengths.length_rows, FINETUNED),
    "weak-to-strong-more-rows": of_lines(lengths.more_rows, FINETUNED, MORE_ROWS),
    "weak-to-strong-sizes": of_lines(sizes.confidence_rows, FINETUNED),
    "weak-to-strong-student": grid(tables.known, LINEAR, AUDITS),
    "weak-to-strong-taught": of_lines(linear_cells.taught_rows, LINEAR),
}


def pages() -> list[Path]:
    """Pages that may hold blocks."""
    return sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def names_in(text: str) -> list[str]:
    """Names of the blocks of a page."""
    return [match[2] for match in BLOCK.finditer(text)]


def render(text: str) -> str:
    """The page with every block as the results have it now."""
    return BLOCK.sub(lambda match: f"{match[1]}{BLOCKS[match[2]]()}\n{match[3]}", text)


if __name__ == "__main__":
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if names_in(text):
            page.write_text(render(text), encoding="utf-8")
