"""``probekit audit``: some true labels, asked for in the terminal, settle what to do."""

from __future__ import annotations

import shlex
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_lowercase, digits
from typing import TYPE_CHECKING, Annotated, Any, Unpack

import click

from probekit.cli.diagnose import DiagnosedOptions, chosen_layers
from probekit.cli.labels import read_labels
from probekit.cli.options import (
    OUTPUT_FILE,
    AsJson,
    Rows,
    SectionedCommand,
    Seed,
    TextColumn,
    at_terminal,
    emit,
    option,
    options_of,
    say,
    source_of,
    typed_again,
)
from probekit.cli.outputs import claim
from probekit.errors import UsageError
from probekit.safe import printable

if TYPE_CHECKING:
    from probekit.activations.store import ActivationStore
    from probekit.cleaning.audit import Disputed, Finding
    from probekit.cleaning.review import AuditFile

__all__ = ["Screen", "class_keys", "command", "listed", "wrapped"]

LINES = 14
WIDEST = 100


class AuditOptions(DiagnosedOptions):
    """Options of ``probekit audit``."""

    many: Annotated[
        int,
        option(
            "Number of true labels to ask for, including those already given.",
            "-m",
            "--many",
            default=20,
            type=click.IntRange(min=1),
        ),
    ]
    output: Annotated[
        Path | None,
        option(
            "CSV that keeps rows and answers; resumed if it exists.  [default: "
            "LABELS.audit.csv here]",
            "-o",
            "--output",
            type=OUTPUT_FILE,
        ),
    ]
    no_ask: Annotated[
        bool, option("Write the CSV to be filled in, or read it back, instead of asking.")
    ]
    rows: Rows
    text_column: TextColumn
    seed: Seed
    as_json: AsJson


@click.command("audit", cls=SectionedCommand)
@options_of(AuditOptions)
def command(**options: Unpack[AuditOptions]) -> None:
    """Ask for a few true labels, and conclude what to do.

    One key per row; the screen does not show which label is whose. Every answer is saved at once:
    stop at any time, and the same command resumes.

    Example: probekit audit acts.h5 --labels weak.parquet -m 20
    """
    from probekit.activations.store import ActivationStore
    from probekit.cleaning.audit import find_disputed
    from probekit.cleaning.review import AuditFile, audit_path

    output = options["output"] or audit_path(options["labels"])
    _check(output, options)
    with ActivationStore(options["acts"]) as store:
        labels = read_labels(options, store.keys)
        disputed = find_disputed(
            store,
            labels,
            layers=chosen_layers(store, options["layers"]),
            seed=options["seed"],
            only_labelled=options["only_labelled"],
        )
        known = dict(zip(store.ids, store.hashes, strict=True))
        file = AuditFile(output, known, disputed.classes)
        if len(disputed):
            _run(file, store, disputed, options)
    finding = disputed.conclude(file.answers)
    foreign = len(set(file.answers) - set(disputed.ids))
    result = _as_json(finding, disputed, output, foreign)
    emit(result, _text(finding, disputed, file, options), as_json=options["as_json"])


def _check(output: Path, options: AuditOptions) -> None:
    claim({**options, "output": output}, "output", resumes=True)
    if not options["no_ask"] and not at_terminal():
        raise UsageError(
            f"There is no terminal to ask in; add --no-ask, fill in the column true_label of "
            f"{output}, and run the same command again."
        )


def _run(
    file: AuditFile, store: ActivationStore, disputed: Disputed, options: AuditOptions
) -> None:
    """List the rows to ask about, and ask."""
    from probekit.cleaning.review import plain_text
    from probekit.cleaning.source_rows import find_rows
    from probekit.joins import Keys, match

    n_asked = min(options["many"], len(disputed))
    wanted = disputed.ids[:n_asked]
    if any(name not in file.records for name in wanted) or not options["no_ask"]:
        purpose = "An audit shows the rows' texts"
        rows = find_rows(store, **source_of(options), purpose=purpose)
        place = match(Keys(wanted, id_column=store.keys.id_column), rows.keys).place
        contents = rows.select(place).contents()
        texts = dict(zip(wanted, map(plain_text, contents), strict=True))
        if file.add(wanted, disputed.hashes[:n_asked], list(texts.values())):
            file.write()
    if options["no_ask"]:
        return

    say(
        f"{len(disputed):,} of {disputed.rows:,} rows are disputed: probe and weak label differ.\n"
        f"What is the true label? You are asked about a stratified sample of {n_asked}; the screen "
        "does not show which label is whose."
    )
    Screen(file, texts, disputed).run(wanted)


def _as_json(finding: Finding, disputed: Disputed, output: Path, foreign: int) -> dict[str, Any]:
    from dataclasses import asdict

    result = asdict(finding)
    if finding.action is None:
        result["probability"] = None
    result |= {"rows": disputed.rows, "disputed": len(disputed), "output": str(output)}
    return {**result, "answers_not_disputed": foreign}


def _text(finding: Finding, disputed: Disputed, file: AuditFile, options: AuditOptions) -> str:
    from probekit.cleaning.audit import FILTER_WRONG

    if not len(disputed):
        return "Probe and weak labels agree on every row: nothing is disputed, leave them alone."
    counts = finding.tally
    again = typed_again(without=("many", "no_ask"))
    open_rows = [name for name in file.records if name not in file.answers]
    lines = []
    if open_rows:
        lines.append(
            f"{len(open_rows)} rows in {file.path} wait for an answer (column true_label: "
            f"{listed(disputed.classes)}, or ? if you cannot tell).\n"
        )
    foreign = len(set(file.answers) - set(disputed.ids))
    if foreign:
        lines.append(f"{foreign} answers are for rows that are not disputed; they do not count.\n")
    if finding.action is None:
        return "\n".join([*lines, f"No answer yet. Fill them in, then: {again} --no-ask"])
    score = f"the probe is right {counts.probe:g}, the weak label {counts.weak:g}"
    score += f", neither {counts.neither:g}" if counts.neither else ""
    score += f", cannot tell {counts.unsure:g}" if counts.unsure else ""
    lines += [
        f"{len(disputed):,} disputed rows of {disputed.rows:,}; of those asked about {score}.",
        "",
        f"  relabel  {_bar(finding.relabel)}  the probe is right on most disputed rows",
        f"  filter   {_bar(finding.filter)}  more than {FILTER_WRONG:.0%} of their weak labels are "
        "wrong",
        f"  leave    {_bar(1 - finding.filter)}  they are mostly right",
        "",
        f"Answer: {finding.action}. It is right with probability {finding.probability:.2f}.",
    ]
    if finding.settled:
        lines.append("The answers settle it.")
    else:
        total = int(counts.known + counts.unsure) + finding.more
        lines.append(
            f"{finding.more} more true labels would settle it, at the rate so far: "
            f"{again} -m {total}"
        )
    if finding.action != "leave":
        # Options that only the audit has; it needs the texts only to show them.
        then = typed_again(finding.action, without=("output", "rows", "text_column", "layers"))
        if options["output"] is not None:
            then += f" --audit {shlex.quote(str(options['output']))}"
        lines.append(f"Next: {then} -o verdicts.parquet")
    return "\n".join(lines)


def _bar(probability: float, width: int = 20) -> str:
    full = round(probability * width)
    return f"{'█' * full}{'░' * (width - full)} {probability:4.2f}"


def listed(classes: Sequence[str]) -> str:
    """The first ten classes."""
    shown = ", ".join(classes[:10])
    return shown if len(classes) <= 10 else f"{shown}, …"


# Keys that are not classes.
COMMANDS = {"?": "cannot tell", "u": "undo", "+": "whole text", "q": "stop"}


def class_keys(classes: Sequence[str]) -> dict[str, str]:
    """Key -> class: the class's name if it is one character, else its first free letter or digit.

    Raises
    ------
    UsageError
        If there are more classes than keys.
    """
    keys: dict[str, str] = {}
    used = set(COMMANDS)
    for name in classes:
        if len(name) == 1 and name.lower() not in used and name.isprintable():
            keys[name] = name.lower()
            used.add(keys[name])
    for name in classes:
        if name in keys:
            continue
        letters = [c for c in name.lower() if c in ascii_lowercase + digits]
        free = [c for c in [*letters, *digits[1:], *ascii_lowercase] if c not in used]
        if not free:
            raise UsageError(
                f"There are {len(classes)} classes and fewer keys; add --no-ask and fill in "
                "the CSV."
            )
        keys[name] = free[0]
        used.add(free[0])
    return {keys[name]: name for name in classes}


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most ``width`` characters; lines of the text stay lines."""
    lines: list[str] = []
    for line in printable(text).expandtabs(4).split("\n"):
        lines += textwrap.wrap(line, width, break_long_words=True) or [""]
    return lines


class Screen:
    """Asks about disputed rows, one key each, until all are answered or the reader stops.

    Parameters
    ----------
    file
        Where every answer is saved at once.
    texts
        Id -> text.
    """

    def __init__(self, file: AuditFile, texts: Mapping[str, str], disputed: Disputed) -> None:
        self.file, self.texts, self.disputed = file, texts, disputed
        self.keys = class_keys(disputed.classes)

    def settled(self) -> bool:
        """Whether the answers so far settle what to do."""
        return self.disputed.conclude(self.file.answers).settled

    def run(self, ids: Sequence[str]) -> None:
        """Ask about ``ids`` in their order, those already answered left out."""
        from probekit.cleaning.audit import UNSURE

        done = [name for name in self.file.answers if name in set(ids)]
        if done:
            click.echo(f"{len(done)} of {len(ids)} are answered already.", err=True)
        click.echo(self._help(), err=True)
        was_settled = self.settled()
        while True:
            waiting = [name for name in ids if name not in self.file.answers]
            if not waiting:
                return
            self._show(waiting[0], len(ids) - len(waiting) + 1, len(ids))
            key = self._key(waiting[0], can_undo=bool(done))
            if key == "q":
                click.echo(f"Stopped; {self.file.path} keeps your answers.", err=True)
                return
            if key == "u":
                last = done.pop()
                self.file.answer(last, None)
                click.echo("undone", err=True)
                continue
            answer = self.keys.get(key, UNSURE)
            self.file.answer(waiting[0], answer)
            done.append(waiting[0])
            click.echo("cannot tell" if answer == UNSURE else printable(answer), err=True)
            now = self.settled()
            if now and not was_settled and len(waiting) > 1:
                click.secho("These answers settle it; q stops here.", fg="green", err=True)
            was_settled = now

    def _help(self) -> str:
        classes = "   ".join(f"{key} = {printable(name)}" for key, name in self.keys.items())
        return f"Keys: {classes}   " + "   ".join(f"{k} {name}" for k, name in COMMANDS.items())

    def _show(self, name: str, number: int, total: int) -> None:
        width = min(shutil.get_terminal_size().columns, WIDEST) - 2
        title = f" {number} of {total} "
        click.echo(err=True)
        click.secho(f"──{title}{'─' * max(0, width - len(title))}", dim=True, err=True)
        lines = wrapped(self.texts[name], max(width - 2, 20))
        hidden = max(0, len(lines) - LINES)
        for line in lines[: len(lines) - hidden]:
            click.echo(f"  {line}".rstrip(), err=True)
        if hidden:
            click.secho(f"  … {hidden} more lines: +", dim=True, err=True)

    def _key(self, name: str, *, can_undo: bool) -> str:
        """Wait for a valid key."""
        while True:
            click.echo("> ", nl=False, err=True)
            try:
                key = click.getchar()
            except (KeyboardInterrupt, EOFError):
                key = ""
            if key in ("", "\x03", "\x04"):  # the end of input, Ctrl-C, Ctrl-D
                click.echo(err=True)
                return "q"
            key = key if key in self.keys else key.lower()
            if key == "+":
                click.echo(err=True)
                for line in wrapped(self.texts[name], WIDEST - 4):
                    click.echo(f"  {line}".rstrip(), err=True)
            elif key == "u" and not can_undo:
                click.echo("nothing to undo", err=True)
            elif key in self.keys or key in COMMANDS:
                return key
            else:
                click.echo(self._help(), err=True)
