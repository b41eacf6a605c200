"""The same labels trained on for long at a constant rate, and briefly; on few rows, and on more.

``python benchmarks/weak_to_strong_lengths.py`` prints the tables of docs/results.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from _harness import RESULTS, read_lines, table
from weak_to_strong_curves import at_stop, last, of_epoch
from weak_to_strong_students import BRIEF, FINETUNED
from weak_to_strong_summary import CEILING, CLEANED, PLAIN, Group, Line, groups, paired

from probekit.cleaning.student import NEEDED

__all__ = ["choice_rows", "length_rows", "more_rows"]


def length_rows(lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Header, and one row per pair and task that was trained briefly.

    If it was also trained for long, on the seeds of both. Accuracies at the last epoch; gains in
    points, paired over test rows and seeds.
    """
    header = ["supervisor → strong, task", "labels right", "long: plain", "best cleaned"]
    header += ["brief: plain", "brief − long, plain"]
    header += [f"brief: {arm}" for arm in CLEANED] + ["brief: ceiling"]
    rows = []
    for brief, long in _of_both(lines):
        against, more = ["-", "-"], "-"
        if long is not None:
            best = max(long.accuracy(arm, last) for arm in CLEANED)
            against = [f"{long.accuracy(PLAIN, last):.1f}", f"{best:.1f}"]
            more = str(paired(brief.right(PLAIN, last), long.right(PLAIN, last)))
        rows.append(
            [
                brief.name,
                f"{brief.labels(PLAIN):.1f}",
                *against,
                f"{brief.accuracy(PLAIN, last):.1f}",
                more,
                *(str(brief.gain(arm, last)) for arm in CLEANED),
                f"{brief.accuracy(CEILING, last):.1f}",
            ]
        )
    return header, rows


def more_rows(few: Sequence[Line], many: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Header, and two rows per pair and task: trained for long on few rows, and on more of them.

    On the seeds of both. ``many`` is of another number of rows, with an arm ``plain`` and both
    cleanings that are compared.
    """
    arms = ("filter", "relabel, soft")
    epochs = (2, 4, 6)
    header = ["supervisor → strong, task", "rows", "labels right"]
    header += [f"epoch {epoch}: {name}" for epoch in epochs for name in (PLAIN, *arms)]
    trained = {(each.pair, each.task): each for each in groups(few, FINETUNED, (PLAIN, *arms))}
    rows = []
    for more in groups(many, FINETUNED, (PLAIN, *arms)):
        less = trained[more.pair, more.task]
        less = replace(less, seeds={seed: less.seeds[seed] for seed in more.seeds})
        for each in (less, more):
            n = next(iter(each.seeds.values()))[PLAIN]["rows"]
            cells = [each.name, f"{n:,}", f"{each.labels(PLAIN):.1f}"]
            for at in map(of_epoch, epochs):
                gains = (str(each.gain(arm, at)) for arm in arms)
                cells += [f"{each.accuracy(PLAIN, at):.1f}", *gains]
            rows.append(cells)
    return header, rows


def choice_rows(lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Header, and one row per way to train: what it is worth over a long training on plain labels.

    Over all cells (pair, task, seed) that were trained both ways, apart by whether as many labels
    are wrong as the advice for a long training acts on.
    """
    ways: dict[tuple[str, str], list[float]] = {}
    least = NEEDED["long"].wrong
    names = [f"{100 * least:.0f} % or more", "fewer"]
    for brief, long in _of_both(lines):
        for seed, arms in long.seeds.items() if long is not None else ():
            plain = arms[PLAIN]
            reached = {f"long, {arm}": last(arms[arm])["acc"] for arm in CLEANED}
            reached |= {
                f"brief, {arm}": last(brief.seeds[seed][arm])["acc"] for arm in (PLAIN, *CLEANED)
            }
            reached[f"long, {PLAIN}, early stop"] = at_stop(plain)["acc"]
            wrong = names[0] if 1 - plain["labels"] >= least else names[1]
            for name, accuracy in reached.items():
                # A point is eight of 800 test rows: no more than one, whatever the floats say.
                gain = round(100 * (accuracy - last(plain)["acc"]), 6)
                ways.setdefault((wrong, name), []).append(gain)
    header = ["labels wrong", "over a long training on plain labels", "cells", *MEASURED]
    return header, [
        [*key, str(len(own)), *_worth(own)]
        for key, own in sorted(ways.items(), key=lambda way: names.index(way[0][0]))
    ]


def _of_both(lines: Sequence[Line]) -> Iterator[tuple[Group, Group | None]]:
    """Brief trainings and the long ones of the same seeds; None: never trained for long."""
    long = {(each.pair, each.task): each for each in groups(lines, FINETUNED)}
    for brief in groups(lines, BRIEF):
        other = long.get((brief.pair, brief.task))
        if other is None:
            yield brief, None
        elif both := [seed for seed in brief.seeds if seed in other.seeds]:
            first, second = (
                replace(each, seeds={seed: each.seeds[seed] for seed in both})
                for each in (brief, other)
            )
            yield first, second


MEASURED = ("mean gain", "gain > 1 point", "harm > 1 point", "least")


def _worth(gains: Sequence[float]) -> list[str]:
    shares = [100 * np.mean([gain > 1 for gain in gains]), 100 * np.mean([g < -1 for g in gains])]
    return [f"{np.mean(gains):+.1f}", *(f"{share:.0f} %" for share in shares), f"{min(gains):+.1f}"]


if __name__ == "__main__":
    FOUND = read_lines(RESULTS / "weak_to_strong_finetuned.jsonl")
    for ROWS in (length_rows, choice_rows):
        print(table(*ROWS(FOUND)))
    print(table(*more_rows(FOUND, read_lines(RESULTS / "weak_to_strong_more_rows.jsonl"))))
