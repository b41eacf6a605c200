"""``probekit demo``: the preset ``demo`` of ``run``, offline, with what is installed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypedDict, Unpack

import click

from probekit.cli.options import (
    AsJson,
    Overwrite,
    SectionedCommand,
    Seed,
    emit,
    option,
    options_of,
    say,
)
from probekit.cli.outputs import claim_folder
from probekit.cli.run import raise_failures

PROBE = "kNN"
OWN_FILE = """On your own file of texts and labels, in one command:
  probekit clean rows.csv -o cleaned
or in two steps, of which the first takes the time:
  probekit extract rows.csv -m MODEL -o acts.h5
  probekit filter acts.h5 --labels rows.csv -o verdicts.parquet --write-data clean.jsonl"""


class DemoOptions(TypedDict):
    """Options of ``probekit demo``."""

    output: Annotated[
        Path,
        option(
            "Folder for both runs, their steps and reports; the same command resumes it.",
            "-o",
            "--output",
            default="probekit-demo",
        ),
    ]
    model: Annotated[
        str | None,
        option(
            "Strong model instead of the all-MiniLM-L6-v2 in its wheel.",
            "-m",
            "--model",
            "--strong",
        ),
    ]
    student_rows: Annotated[
        int, option("Rows with weak labels.", type=click.IntRange(min=100), default=2000)
    ]
    test_rows: Annotated[
        int, option("Rows to test on.", type=click.IntRange(min=100), default=2000)
    ]
    overwrite: Overwrite
    seed: Seed
    as_json: AsJson


@click.command("demo", cls=SectionedCommand)
@options_of(DemoOptions)
def command(**options: Unpack[DemoOptions]) -> None:
    """Show on real text, in two minutes, what cleaning is worth.

    Offline. A bag of words that saw 500 true labels, then ten keywords, label docstrings; probes on
    a pretrained model's states filter and relabel them, and linear students train on the results.
    A second table shows what `diagnose` and `audit` name, and whether that was the better action.
    commands.sh in the folder repeats it.

    Example: probekit demo -o probekit-demo
    """
    from probekit.activations.checkpoint import open_checkpoint
    from probekit.experiments.folder import open_folder
    from probekit.experiments.presets.demo import (
        check_demo_folder,
        demo_advice,
        demo_configs,
        demo_model,
        prepare_demo,
    )
    from probekit.experiments.run import Run
    from probekit.reports.run import brief_table, report_run

    began, steps = time.perf_counter(), Path("steps")
    output, model = options["output"], options["model"]
    check_demo_folder(output)
    configs = demo_configs(
        demo_model(model),
        student_rows=options["student_rows"],
        test_rows=options["test_rows"],
        seeds=[options["seed"]],
    )
    first, *_ = configs.values()
    open_checkpoint(first.strong[0])  # fails in a second where the check reads the rows first
    Run(first, steps, lambda _: None).check()  # before anything is written
    claim_folder(output)
    commands = prepare_demo(output, configs, in_wheel=model is None, overwrite=options["overwrite"])
    say("Two runs, under two minutes in all on two quiet cores; the same command resumes them.")
    results, advice = {}, {}
    with contextlib.chdir(output):
        for shown, (name, config) in zip(commands, configs.items(), strict=True):
            say(f"$ {shown}")
            run = Run(config, steps, lambda _: None)
            open_folder(Path(name), config)
            results[name] = run.carry_out(Path(name))
            report_run(run, results[name], Path(name), say)
            advice[name] = demo_advice(run, results[name], PROBE)
    seconds = round(time.perf_counter() - began, 1)
    groups = {
        name.replace("-", " "): result["groups"][0]  # of the regularised student
        for name, result in results.items()
    }
    table = brief_table(groups, PROBE)
    reports = [output / name / "report.html" for name in configs]
    after = (
        f"{table.text()}\n\n{_advice_text(advice)}\n\n"
        f"Every probe, a memorising student and the rows:\n  {reports[0]}\n  {reports[1]}\n"
        f"{OWN_FILE}"
    )
    say(f"{seconds:.0f} s; commands.sh in {output} repeats it.\n")
    emit({"seconds": seconds, "runs": results, "advice": advice}, after, as_json=options["as_json"])
    for name in configs:
        raise_failures(results[name], output / name)


def _advice_text(advice: Mapping[str, Mapping[str, Any]]) -> str:
    """What the advice names for each supervisor's labels, and which action was better."""
    from probekit.experiments.presets.demo import AUDITED
    from probekit.reports.tables import MISSING, Table

    rows, notes = [], []
    for name, each in advice.items():
        sure = "" if each["audit"] is None else f" ({each['probability']:.2f})"
        audit = (each["audit"] or MISSING) + sure
        shown = name.replace("-", " ")
        rows.append((shown, each["diagnose"] or MISSING, audit, *_outcome(each)))
        if each["error"] is not None:
            notes.append(f"{shown}: no advice: {each['error']}")
    notes += [
        "diagnose reads no true label. The audit is simulated: it gets the true labels of the",
        f"{AUDITED} training rows that it asks for; in brackets how probable it holds its answer.",
        "Neither reads a test row. better: by the gain above, however wide its interval is.",
    ]
    header = ("advice on labels of", "diagnose", f"audit of {AUDITED}", "better", "named by")
    return Table(header, tuple(rows), tuple(notes)).text()


def _outcome(each: Mapping[str, Any]) -> tuple[str, str]:
    """Which action was better by the students' gains, and whose advice that was."""
    from probekit.reports.tables import MISSING

    gains, best = each["gains"], each["best"]
    if best is None:
        return MISSING, MISSING
    right = [source for source in ("diagnose", "audit") if each[source] == best]
    who = {0: "neither", 1: " ".join(right), 2: "both"}[len(right)]
    others = [gain for action, gain in gains.items() if action != best]
    by = f", by {gains[best] - max(others):.1f} points" if best in gains and others else ""
    return f"{best}{by}", who
