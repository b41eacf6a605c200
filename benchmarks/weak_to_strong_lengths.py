"""The same labels trained on for long at a constant rate, and briefly with a falling one.

``python benchmarks/weak_to_strong_lengths.py`` prints the table of docs/results.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from _harness import RESULTS, read_lines, table
from weak_to_strong_curves import last
from weak_to_strong_students import FINETUNED, GENTLE
from weak_to_strong_summary import CEILING, CLEANED, PLAIN, Line, groups, paired

__all__ = ["length_rows"]


def length_rows(lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Header, and one row per pair and task that was trained both ways, on the seeds of both.

    Accuracies at the last epoch; gains in points, paired over test rows and seeds.
    """
    header = ["supervisor → strong, task", "labels right", "long: plain", "best cleaned"]
    header += ["brief: plain", "brief − long, plain"]
    header += [f"brief: {arm}" for arm in CLEANED] + ["brief: ceiling"]
    long = {(each.pair, each.task): each for each in groups(lines, FINETUNED)}
    rows = []
    for brief in groups(lines, GENTLE):
        if (other := long.get((brief.pair, brief.task))) is None:
            continue
        both = [seed for seed in brief.seeds if seed in other.seeds]
        if not both:
            continue
        brief = replace(brief, seeds={seed: brief.seeds[seed] for seed in both})
        other = replace(other, seeds={seed: other.seeds[seed] for seed in both})
        rows.append(
            [
                brief.name,
                f"{brief.labels(PLAIN):.1f}",
                f"{other.accuracy(PLAIN, last):.1f}",
                f"{max(other.accuracy(arm, last) for arm in CLEANED):.1f}",
                f"{brief.accuracy(PLAIN, last):.1f}",
                str(paired(brief.right(PLAIN, last), other.right(PLAIN, last))),
                *(str(brief.gain(arm, last)) for arm in CLEANED),
                f"{brief.accuracy(CEILING, last):.1f}",
            ]
        )
    return header, rows


if __name__ == "__main__":
    print(table(*length_rows(read_lines(RESULTS / "weak_to_strong_finetuned.jsonl"))))
