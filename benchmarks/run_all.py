"""Run the speed benchmarks in turn, each in a process of its own, and print one table.

    python benchmarks/run_all.py                 all of them: under 20 minutes on 2 cores
    python benchmarks/run_all.py neighbors store only these
    python benchmarks/run_all.py --table         the newest figures of results/ as markdown
    python benchmarks/run_all.py --quick         small sizes: do the scripts work?

A script refuses to measure beside another busy process (exit code 3) and is then tried once more;
with --busy-ok it measures and marks its figures as not valid. The exit code is 1 if answers differ,
or a script failed or refused; a missed target is marked in the table and does not change it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from _bench import HEADER, Claim, markdown, parser, read_claims
from _harness import hardware, table

HERE = Path(__file__).parent
SCRIPTS = (
    "startup",
    "extraction",
    "store",
    "scaling",
    "logistic_path",
    "neighbors",
    "topofilter",
    "cleaning",
    "finetune",
)
# Not part of `make bench`.
APART = ("gpu", "many_classes", "precision")
REFUSED, WAIT_SECONDS = 3, 30


def run_script(name: str, flags: list[str]) -> int:
    """Run one script; on a busy machine try again once."""
    command = [sys.executable, str(HERE / f"{name}.py"), *flags]
    code = subprocess.run(command, check=False).returncode
    if code == REFUSED:
        print(f"{name}: trying again in {WAIT_SECONDS} s", flush=True)
        time.sleep(WAIT_SECONDS)
        code = subprocess.run(command, check=False).returncode
    return code


def lines_of(results: Path, name: str) -> list[str]:
    """Lines of a script's result file so far."""
    path = results / f"{name}.jsonl"
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def run_scripts(names: list[str], flags: list[str], results: Path) -> int:
    """Run scripts, then print all of their claims."""
    begun = time.perf_counter()
    claims: list[Claim] = []
    failed, valid = [], True
    for name in names:
        print(f"\n== {name}", flush=True)
        before = len(lines_of(results, name))
        if run_script(name, flags):
            failed.append(name)
        for claim, is_valid in read_claims(lines_of(results, name)[before:]):
            claims.append(claim)
            valid &= is_valid
    print(f"\n{describe(hardware())}\n")
    print(table(HEADER, [claim.cells() for claim in claims]))
    missed = sum(claim.met is False for claim in claims)
    print(
        f"\n{len(claims)} claims, {missed} missed; {(time.perf_counter() - begun) / 60:.1f} minutes"
    )
    if not valid:
        print("(not valid: small sizes, or measured beside others)")
    if failed:
        print(f"failed, refused or with answers that differ: {', '.join(failed)}")
    return int(bool(failed))


def describe(machine: dict[str, object]) -> str:
    """Machine and versions in one line."""
    named = {key: value for key, value in machine.items() if key not in ("gpu", "system")}
    gpu = machine.get("gpu") or "none"
    return f"{machine['system']}, gpu {gpu}, " + ", ".join(f"{k} {v}" for k, v in named.items())


def readme_table(results: Path, names: list[str]) -> str:
    """The last valid claim of each kind as a markdown table, and the machine."""
    newest, machine = newest_claims(results, names)
    if not newest:
        return "(no valid results; run `make bench` on a quiet machine)"
    rows = [claim.cells() for claim in newest.values()]
    return f"{markdown(HEADER, rows)}\n\n{describe(machine)}"


def newest_claims(results: Path, names: list[str]) -> tuple[dict[str, Claim], dict[str, object]]:
    """The last valid claim of each kind, and the machine of the last."""
    newest: dict[str, Claim] = {}
    machine: dict[str, object] = {}
    for name in names:
        lines = lines_of(results, name)
        valid = [line for line in lines if line.strip() and json.loads(line).get("valid")]
        for claim, _ in read_claims(valid):
            newest[claim.what] = claim
        if valid:
            machine = json.loads(valid[-1])["hardware"]
    return newest, machine


def main() -> int:
    """Run what was asked for."""
    flags = parser(__doc__)
    flags.add_argument("scripts", nargs="*", metavar="SCRIPT", help=", ".join((*SCRIPTS, *APART)))
    flags.add_argument(
        "--table", action="store_true", help="print results/ as markdown, run nothing"
    )
    asked = flags.parse_args()
    if wrong := [name for name in asked.scripts if name not in (*SCRIPTS, *APART)]:
        flags.error(f"there is no benchmark {', '.join(wrong)}; there are {', '.join(SCRIPTS)}")
    names = list(asked.scripts or SCRIPTS)
    if asked.table:
        print(readme_table(asked.results, [*names, *(() if asked.scripts else APART)]))
        return 0
    return run_scripts(names, passed_on(asked), asked.results)


def passed_on(asked: argparse.Namespace) -> list[str]:
    """Flags for the scripts."""
    flags = ["--runs", str(asked.runs), "--results", str(asked.results)]
    return flags + ["--quick"] * asked.quick + ["--busy-ok"] * asked.busy_ok


if __name__ == "__main__":
    sys.exit(main())
