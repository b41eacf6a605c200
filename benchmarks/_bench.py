"""One benchmark of run_all: its flags, a quiet machine, and claims that become a table."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from _harness import BUSY_SHARE, RESULTS, BusyError, Others, Times, interleaved, record, table

from probekit.activations.quiet import quiet

HEADER = ("what", "ours", "peer", "ratio", "target", "agreement")


@dataclasses.dataclass(frozen=True)
class Claim:
    """One line of the table: a ratio that was measured, and what was aimed at."""

    what: str
    ours: str
    peer: str
    ratio: float | None
    """None: not measured."""
    target: str
    """``>= 0.95``, ``<= 1.05`` or empty."""
    agreement: str
    agrees: bool = True
    """Whether the answers are the same within what the claim allows."""

    @property
    def met(self) -> bool | None:
        """Whether the ratio is what was aimed at; None where nothing was."""
        if not self.target or self.ratio is None:
            return None
        sign, limit = self.target.split()
        return self.ratio >= float(limit) if sign == ">=" else self.ratio <= float(limit)

    def cells(self) -> list[str]:
        """The claim as HEADER names them."""
        ratio = "not measured" if self.ratio is None else f"{self.ratio:.3g}"
        if self.met is False:
            ratio += " (missed)"
        agreement = self.agreement if self.agrees else f"{self.agreement} (DIFFERS)"
        target = self.target.replace(">=", "≥").replace("<=", "≤")
        return [self.what, self.ours, self.peer, ratio, target, agreement]


class Bench:
    """A script's run: ``times`` on a quiet machine, ``claim`` what came out.

    Every script takes ``--quick`` (small sizes, for a test of the script itself), ``--runs``,
    ``--busy-ok`` (measure beside other processes) and ``--results``; figures of the first and third
    are marked as not valid.
    """

    def __init__(
        self, name: str, *, runs: int, quick: bool, busy_ok: bool, results: Path = RESULTS
    ) -> None:
        self.name, self.runs, self.quick, self.busy_ok = name, runs, quick, busy_ok
        self.results = results
        self.claims: list[Claim] = []
        self._figures: list[dict[str, Any]] = []
        self.begun = time.perf_counter()

    @property
    def valid(self) -> bool:
        """Whether the figures may be quoted."""
        return not (self.quick or self.busy_ok)

    def times(self, fns: Mapping[str, Callable[[], Any]], *, warmup: int = 1) -> Times:
        """Median seconds of ``runs`` interleaved runs; BusyError beside other busy processes."""
        return interleaved(fns, self.runs, warmup=warmup, busy_ok=self.busy_ok)

    def claim(self, claim: Claim, **figures: Any) -> None:
        """Keep a claim and whatever else was measured."""
        self.claims.append(claim)
        self._figures.append(figures)

    def write(self) -> None:
        """Write what was kept, one line each."""
        for claim, figures in zip(self.claims, self._figures, strict=True):
            row = {**dataclasses.asdict(claim), "met": claim.met, "valid": self.valid}
            record(self.name, {**row, "runs": self.runs, **figures}, folder=self.results)

    def check_quiet(self, seconds: float = 1.0) -> None:
        """Raise BusyError if other processes use the cores, unless that is allowed."""
        others = Others()
        time.sleep(seconds)
        if not self.busy_ok and (share := others.share()) > BUSY_SHARE:
            raise BusyError(
                f"Other processes take {share:.0%} of the cores; end them, or add --busy-ok for "
                "figures that are marked as not valid."
            )


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Flags that every script has."""
    flags = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--runs", type=int, default=3, help="interleaved runs of each way")
    flags.add_argument("--quick", action="store_true", help="small sizes; figures are not valid")
    flags.add_argument("--busy-ok", action="store_true", help="measure beside others; not valid")
    flags.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON lines")
    return flags


def run(name: str, options: argparse.Namespace, measure: Callable[[Bench], None]) -> int:
    """Measure, print the table, and return the exit code: 1 answers differ, 3 the machine is busy.

    A ratio that misses its target is marked in the table and does not change the code.
    """
    bench = Bench(
        name,
        runs=1 if options.quick else options.runs,
        quick=options.quick,
        busy_ok=options.busy_ok,
        results=options.results,
    )
    try:
        bench.check_quiet()
        others = Others()
        with quiet(python_warnings=False):
            measure(bench)
        if not bench.busy_ok and (share := others.share()) > BUSY_SHARE:
            raise BusyError(
                f"Other processes took {share:.0%} of the cores while {name} was measured, so "
                "nothing is recorded; end them, or add --busy-ok."
            )
    except BusyError as error:
        print(error, file=sys.stderr)
        return 3
    bench.write()
    print(table(HEADER, [claim.cells() for claim in bench.claims]))
    if not bench.valid:
        print("(not valid: small sizes, or measured beside others)")
    print(f"{name}: {time.perf_counter() - bench.begun:.0f} s")
    return int(not all(claim.agrees for claim in bench.claims))


def read_claims(lines: Iterable[str]) -> list[tuple[Claim, bool]]:
    """Claims of a result file's lines, and whether each is valid; other lines are skipped."""
    names = [field.name for field in dataclasses.fields(Claim)]
    rows = [json.loads(line) for line in lines if line.strip()]
    return [
        (Claim(**{name: row[name] for name in names}), bool(row["valid"]))
        for row in rows
        if set(names) <= set(row)
    ]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay a table out in markdown: the first column to the left, figures to the right."""
    rule = ["---" if i in (0, len(header) - 1) else "---:" for i in range(len(header))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, rule, *rows])
