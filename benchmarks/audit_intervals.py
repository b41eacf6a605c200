"""Whether the intervals of ``probekit audit`` hold, how narrow they are, and what it decides.

``python benchmarks/audit_intervals.py --cache FOLDER`` reads the cases of :mod:`audit_cases` and
appends a line for each to results/audit_intervals.jsonl; finished cases are not repeated. 10,000
draws a case for the intervals, beside simple random samples of the same size with Wilson's
interval, and a control: a draw where wrong labels come up twice as often as their chances say. 60
draws for the advice, beside the audit of disputed rows.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from _harness import RESULTS, append_line, read_lines, table
from audit_cases import Case, read_cases
from audit_disputed import conclude as conclude_disputed
from label_states import CACHE

from probekit.cleaning.audit import Draw, make_draw
from probekit.cleaning.shares import Shares, asking_rates, chances, estimate_shares

Array = np.ndarray[Any, Any]

SIZES = (20, 50, 100)
AUDITS = (20, 40)
DRAWS, DECISIONS, CHUNK = 10_000, 60, 500
Z = 1.96
HARM = 0.01
FILE = RESULTS / "audit_intervals.jsonl"


def main() -> None:
    """Measure the cases that the file lacks, then print the summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--output", type=Path, default=FILE)
    parser.add_argument("--models", nargs="*", help="by default all that have cases")
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--summary", action="store_true", help="print the results, run nothing")
    options = parser.parse_args()
    done = {line["case"] for line in read_lines(options.output)}
    for case in () if options.summary else read_cases(options.cache):
        if case.name in done or (options.models and case.model not in options.models):
            continue
        began = time.perf_counter()
        line = {
            "case": case.name,
            "model": case.model,
            "task": case.task,
            "kind": case.kind,
            "seed": case.seed,
            "classes": case.proba.shape[1],
            "rows": len(case.weak),
            "draws": options.draws,
            "shares": measure_shares(case, options.draws),
            "advice": measure_advice(case),
        }
        line["seconds"] = round(time.perf_counter() - began, 1)
        append_line(options.output, line)
    print(summary(read_lines(options.output)))


def suspicion_of(case: Case, classes: Array) -> Array:
    """1 − P of these classes (n,)."""
    return 1 - case.proba[np.arange(len(classes)), classes]


def shares_of(case: Case) -> Iterator[tuple[str, Array, Array, Array | None]]:
    """Name, errors (n,), suspicion (n,) and rows of every share that is estimated."""
    wrong, q = case.weak != case.truth, suspicion_of(case, case.weak)
    yield "weak labels", wrong, q, None
    yield "after filter", wrong, q, case.keep
    yield "after relabel", case.decided != case.truth, suspicion_of(case, case.decided), None
    size = np.bincount(case.weak)
    smallest = int(np.where(size > 0, size, len(q)).argmin())
    yield "smallest class", wrong, q, case.weak == smallest


def measure_shares(case: Case, draws: int) -> dict[str, Any]:
    """Coverage and mean width of every share's interval, by number of answers."""
    rates = asking_rates(np.round(suspicion_of(case, case.weak), 12))
    strata = case.weak * 2 + (case.weak != case.decided)
    rng = np.random.default_rng(0)
    found: dict[str, list[Array]] = {}
    for start in range(0, draws, CHUNK):
        keys = rng.random((min(CHUNK, draws - start), len(rates)), np.float32) / rates.astype(
            np.float32
        )
        first, key = first_rows(keys)
        # The control: wrong labels come up twice as often as their chances say.
        control, control_key = first_rows(keys / (1 + (case.weak != case.truth)))
        for m in SIZES:
            asked, (_, wrong, q, _) = control[:, :m], next(shares_of(case))
            chance = chances(rates[asked], control_key[:, m])
            drawn = estimate_shares(wrong[asked], asked, chance, q, strata=strata)
            _add(found, f"control {m}", drawn, wrong.mean())
            asked = first[:, :m]
            chance = chances(rates[asked], key[:, m])
            for name, wrong, q, within in shares_of(case):
                true = wrong.mean() if within is None else wrong[within].mean()
                drawn = estimate_shares(wrong[asked], asked, chance, q, within, strata=strata)
                _add(found, f"{name} {m}", drawn, true)
                _add(
                    found, f"{name} {m} by chance", by_chance(wrong, within, m, rng, len(key)), true
                )
    return {
        name: dict(
            zip(
                ("covered", "width", "bias", "answers"),
                np.round(np.concatenate(parts, axis=1).mean(axis=1), 5).tolist(),
                strict=True,
            )
        )
        for name, parts in found.items()
    }


def first_rows(keys: Array) -> tuple[Array, Array]:
    """Numbers and keys of the rows with the smallest keys (draws, n), one more than needed."""
    first = np.argpartition(keys, max(SIZES), axis=1)[:, : max(SIZES) + 1]
    key = np.take_along_axis(keys, first, 1)
    order = np.argsort(key, axis=1)
    return np.take_along_axis(first, order, 1), np.take_along_axis(key, order, 1)


def _add(found: dict[str, list[Array]], name: str, drawn: Shares, true: float) -> None:
    inside = (drawn.low <= true) & (true <= drawn.high)
    off = np.nan_to_num(drawn.value - true)
    row = np.stack([inside, drawn.high - drawn.low, off, drawn.answers]).astype(np.float64)
    found.setdefault(name, []).append(row)


def by_chance(
    wrong: Array, within: Array | None, m: int, rng: np.random.Generator, draws: int
) -> Shares:
    """Simple random samples of m rows: Wilson's interval, with the finite population's size."""
    n = len(wrong)
    size = n if within is None else int(within.sum())
    n_wrong = int(wrong.sum() if within is None else wrong[within].sum())
    answers = np.full(draws, m) if within is None else rng.hypergeometric(size, n - size, m, draws)
    hits = rng.hypergeometric(n_wrong, size - n_wrong, answers)
    some = np.maximum(answers, 1)
    share, n_eff = hits / some, some / np.maximum(1 - answers / size, 1e-9)
    centre = (share + Z**2 / (2 * n_eff)) / (1 + Z**2 / n_eff)
    half = Z / (1 + Z**2 / n_eff) * np.sqrt(share * (1 - share) / n_eff + (Z / (2 * n_eff)) ** 2)
    none = answers == 0
    low, high = np.where(none, 0, centre - half), np.where(none, 1, centre + half)
    return Shares(np.where(none, np.nan, share), low, high, answers)


def measure_advice(case: Case) -> dict[str, Any]:
    """What is advised: shares of draws that are right and do harm, and the points lost."""
    wrong = case.weak != case.truth
    left = {
        "leave": wrong.mean(),
        "filter": wrong[case.keep].mean(),
        "relabel": (case.decided != case.truth).mean(),
    }
    disputed = np.flatnonzero(case.decided != case.weak)
    rng = np.random.default_rng(1)
    classes = tuple(str(c) for c in range(case.proba.shape[1]))
    ids = [str(i) for i in range(len(wrong))]
    truth = {name: classes[c] for name, c in zip(ids, case.truth, strict=True)}
    advised: dict[str, list[str]] = {}
    settled: dict[str, list[bool]] = {}
    for _ in range(DECISIONS):
        ties = rng.integers(0, 2**63, len(wrong), dtype=np.uint64) * 2
        draw: Draw = make_draw(ids, classes, case.weak, case.proba, case.keep, ties)
        for m in AUDITS:
            finding = draw.conclude({name: truth[name] for name in draw.ids[:m]}, more=False)
            advised.setdefault(f"audit {m}", []).append(finding.action or "leave")
            settled.setdefault(f"audit {m}", []).append(finding.settled)
            asked = rng.permutation(disputed)[:m]
            won = int((case.decided[asked] == case.truth[asked]).sum())
            lost = int((case.weak[asked] == case.truth[asked]).sum())
            old = conclude_disputed(won, lost, len(asked) - won - lost, len(disputed))
            advised.setdefault(f"disputed {m}", []).append(old)
    advised["always filter"], advised["always relabel"] = ["filter"], ["relabel"]
    result: dict[str, Any] = {"left": {k: round(float(v), 5) for k, v in left.items()}}
    best = min(left.values())
    for policy, actions in advised.items():
        gain = np.array([left["leave"] - left[action] for action in actions])
        lost = np.array([left[action] - best for action in actions])
        could = left["leave"] - min(left["filter"], left["relabel"])
        right = (gain > 0) | ((gain == 0) & (could <= 0))
        result[policy] = {
            "right": float(right.mean()),
            "within a point": float((lost <= HARM).mean()),
            "harm": float((gain < -HARM).mean()),
            "lost": round(float(lost.mean()), 5),
        }
        if policy in settled:
            sure = np.array(settled[policy])
            result[policy]["settled"] = float(sure.mean())
            result[policy]["settled right"] = float((sure & (lost <= HARM)).mean())
    return result


HEADER = ("share", "answers", "covered: mean", "worst case", "worst case, 50+ answers in it")
HEADER += ("width to chance's",)


def interval_rows(lines: list[dict[str, Any]]) -> list[list[str]]:
    """One row per share and number of answers: coverage, and width beside chance's."""
    rows = []
    for name in ("weak labels", "after filter", "after relabel", "smallest class"):
        for m in SIZES:
            each = [line["shares"][f"{name} {m}"] for line in lines]
            chance = [line["shares"][f"{name} {m} by chance"] for line in lines]
            many = [one["covered"] for one in each if one["answers"] >= 50]
            ratio = sum(one["width"] for one in each) / sum(one["width"] for one in chance)
            rows.append(
                [
                    name,
                    str(m),
                    f"{100 * np.mean([one['covered'] for one in each]):.1f} %",
                    f"{100 * min(one['covered'] for one in each):.1f} %",
                    f"{100 * min(many):.1f} %" if many else "-",
                    f"{ratio:.2f}",
                ]
            )
    return rows


def control_rows(lines: list[dict[str, Any]]) -> list[list[str]]:
    """Coverage where wrong labels come up twice as often as their chances say."""
    each = {m: [line["shares"][f"control {m}"] for line in lines] for m in SIZES}
    return [
        [str(m), f"{100 * np.mean([one['covered'] for one in some]):.1f} %"]
        for m, some in each.items()
    ]


ADVICE_HEADER = (
    "advice",
    "right",
    "within a point of the best",
    "harm > 1 point",
    "points lost to the best",
)
KEYS = ("right", "within a point", "harm", "lost")
POLICIES = ("audit 20", "audit 40", "disputed 20", "disputed 40", "always filter")
POLICIES += ("always relabel",)


def advice_rows(lines: list[dict[str, Any]]) -> list[list[str]]:
    """One row per policy: means over the cases."""
    rows = []
    for policy in POLICIES:
        each = [line["advice"][policy] for line in lines]
        mean = {key: np.mean([one[key] for one in each]) for key in KEYS}
        rows.append(
            [
                policy,
                f"{100 * mean['right']:.1f} %",
                f"{100 * mean['within a point']:.1f} %",
                f"{100 * mean['harm']:.1f} %",
                f"{100 * mean['lost']:.2f}",
            ]
        )
    return rows


def summary(lines: list[dict[str, Any]]) -> str:
    """All tables as text."""
    parts = []
    for model in sorted({line["model"] for line in lines}):
        for some, what in ((True, "two classes"), (False, "more classes")):
            mine = [x for x in lines if x["model"] == model and (x["classes"] == 2) == some]
            if mine:
                parts.append(f"{model}, {what}: {len(mine)} cases")
                parts.append(table(HEADER, interval_rows(mine)))
                parts.append(table(ADVICE_HEADER, advice_rows(mine)))
                parts.append(table(("answers", "control covers"), control_rows(mine)))
    for key in ("task", "kind"):
        for name in sorted({line[key] for line in lines}):
            mine = [line for line in lines if line[key] == name]
            ratio = interval_rows(mine)[2][-1]
            parts.append(f"{key} {name}: width of weak labels at 100 answers {ratio}")
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
