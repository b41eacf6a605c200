"""The gain of a confidence loss by the sizes of supervisor and student (Burns et al., figure 5).

``python benchmarks/weak_to_strong_sizes.py`` prints the table of docs/reproduce.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from _harness import RESULTS, read_lines, table
from weak_to_strong_curves import STOP, readings
from weak_to_strong_students import FINETUNED
from weak_to_strong_summary import CEILING, GAP, PLAIN, SUPERVISOR, Line, groups

__all__ = ["confidence_rows"]

CONFIDENCE = "log-confidence"
READ = ("epoch 2", STOP)  # the paper trains for two epochs


def confidence_rows(lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Header, and one row per task, supervisor and student: what the loss gains, and PGR."""
    header = ["supervisor → student, task", "supervisor"]
    header += [f"{name}: {what}" for name in READ for what in (PLAIN, "gain", CEILING, "PGR")]
    rows = []
    for each in groups(lines, FINETUNED, (PLAIN, CONFIDENCE, CEILING)):
        cells = [each.name, f"{each.accuracy(SUPERVISOR):.1f}"]
        for name in READ:
            at = readings()[name]
            gap = each.accuracy(CEILING, at) - each.accuracy(SUPERVISOR)
            recovered = [each.recovered(arm, at) for arm in (PLAIN, CONFIDENCE)]
            cells += [
                f"{each.accuracy(PLAIN, at):.1f}",
                str(each.gain(CONFIDENCE, at)),
                f"{each.accuracy(CEILING, at):.1f}",
                " → ".join(f"{value:.2f}" for value in recovered) if gap >= GAP else "-",
            ]
        rows.append(cells)
    return header, rows


if __name__ == "__main__":
    print(table(*confidence_rows(read_lines(RESULTS / "weak_to_strong_finetuned.jsonl"))))
