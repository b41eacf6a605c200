"""``probekit audit``: some true labels, asked for in the terminal: how many are wrong."""

from __future__ import annotations

import shlex
import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from string import ascii_lowercase, digits
from typing import TYPE_CHECKING, Annotated, Any, Unpack

import click

from probekit.cli.diagnose import DiagnosedOptions, chosen_layers
from probekit.cli.engine import EngineOptions, engine_of
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
from probekit.cli.student import StudentOptions, learner_of
from probekit.errors import UsageError
from probekit.safe import printable

if TYPE_CHECKING:
    from probekit.activations.store import ActivationStore
    from probekit.cleaning.audit import Draw, Finding
    from probekit.cleaning.review import AuditFile
    from probekit.cleaning.shares import Share
    from probekit.cleaning.student import StudentAdvice

__all__ = ["Screen", "class_keys", "command", "listed", "texts_of", "wrapped"]

LINES = 14
WIDEST = 100
# The estimate is shown after this number of answers each.
SHOW_EVERY = 5


class AuditOptions(DiagnosedOptions, StudentOptions, EngineOptions):
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
    """Ask for a few true labels: how many are wrong, and what to do.

    Rows are drawn at random, suspicious ones more often. Estimates with 95 % intervals: the share
    of wrong labels as they are, after a filter, after a relabel, and of each class. One key per
    row; the screen shows neither the weak label nor the probe's. Every answer is saved at once:
    stop at any time, and the same command resumes.

    Example: probekit audit acts.h5 --labels weak.parquet -m 50
    """
    from probekit.activations.store import ActivationStore
    from probekit.cleaning.audit import draw_rows
    from probekit.cleaning.predict import default_probe
    from probekit.cleaning.review import AuditFile, audit_path
    from probekit.cleaning.student import after_audit
    from probekit.reports.tables import finite

    output = options["output"] or audit_path(options["labels"])
    _check(output, options)
    with ActivationStore(options["acts"]) as store:
        labels = read_labels(options, store.keys)
        with engine_of(options):
            draw = draw_rows(
                store,
                labels,
                layers=chosen_layers(store, options["layers"]),
                seed=options["seed"],
                only_labelled=options["only_labelled"],
            )
        file = AuditFile(output, dict(zip(store.ids, store.hashes, strict=True)), draw.classes)
        _run(file, store, draw, options)
        probe = default_probe(store)
    finding = draw.conclude(file.answers)
    learner = learner_of(options)
    advised = None if learner is None else after_audit(learner, finding)
    result = {**finite(asdict(finding)), "output": str(output)}
    result["student"] = None if advised is None else advised.record
    text = _text(finding, advised, draw, file, probe, options)
    emit(result, text, as_json=options["as_json"])


def _check(output: Path, options: AuditOptions) -> None:
    claim({**options, "output": output}, "output", resumes=True)
    if not options["no_ask"] and not at_terminal():
        raise UsageError(
            f"There is no terminal to ask in; add --no-ask, fill in the column true_label of "
            f"{output}, and run the same command again."
        )


def _run(file: AuditFile, store: ActivationStore, draw: Draw, options: AuditOptions) -> None:
    """List the rows to ask about, and ask."""
    n_asked = min(options["many"], len(draw))
    wanted = draw.ids[:n_asked]
    if any(name not in file.records for name in wanted) or not options["no_ask"]:
        texts = texts_of(wanted, store, options, purpose="An audit shows the rows' texts")
        if file.add(wanted, list(texts.values())):
            file.write()
    if options["no_ask"]:
        return

    say(
        f"What is the true label? You are asked about {n_asked} of {len(draw):,} texts, drawn at "
        "random, suspicious ones more often.\nThe screen shows neither the weak label nor the "
        "probe's."
    )
    Screen(file, texts, draw.classes, progress=_Progress(file, draw)).run(wanted)


def texts_of(
    ids: Sequence[str], store: ActivationStore, options: Mapping[str, Any], *, purpose: str
) -> dict[str, str]:
    """Texts of these rows, read from where the store's rows came from or ``--rows`` says."""
    from probekit.cleaning.review import plain_text
    from probekit.cleaning.source_rows import find_rows
    from probekit.joins import match
    from probekit.strings import places

    rows = find_rows(store, **source_of(options), purpose=purpose)
    place = match(store.keys.take(places(ids, store.ids)), rows.keys).place
    return dict(zip(ids, map(plain_text, rows.select(place.tolist()).contents()), strict=True))


def _text(
    finding: Finding,
    advised: StudentAdvice | None,
    draw: Draw,
    file: AuditFile,
    probe: str,
    options: AuditOptions,
) -> str:
    """What was found, and the command that acts on it; ``probe`` is that command's default."""
    again = typed_again(without=("many", "no_ask"))
    lines = _open_questions(finding, draw, file)
    if finding.action is None:
        return "\n".join([*lines, f"No answer yet. Fill them in, then: {again} --no-ask"])
    lines += _found(finding, again)
    if advised is not None:
        lines.append(advised.line + advised.hint)
    action = finding.action if advised is None else advised.action
    if action != "leave":
        then = _next(action, advised is not None and advised.hard, probe, options["output"])
        lines.append(f"Next: {then} -o verdicts.parquet")
    return "\n".join(lines)


def _open_questions(finding: Finding, draw: Draw, file: AuditFile) -> list[str]:
    """Rows that wait for an answer, and answers that do not count yet."""
    lines = []
    waiting = [name for name in file.records if name not in file.answers]
    if waiting:
        lines.append(
            f"{len(waiting)} rows in {file.path} wait for an answer (column true_label: "
            f"{listed(draw.classes)}, or ? if you cannot tell).\n"
        )
    if finding.not_drawn:
        lines.append(
            f"{finding.not_drawn} answers come after the first row without one "
            f"({draw.ids[finding.answers + finding.unsure]!r}) and do not count yet: the order of "
            "the draw decides, and an audit by an earlier version asked about other rows.\n"
        )
    return lines


def _found(finding: Finding, again: str) -> list[str]:
    """The estimates, what they say is best, and whether more answers are needed."""
    from probekit.cleaning.filter import PER_CLASS_SHARE

    told = f", {finding.unsure} more that cannot be told" if finding.unsure else ""
    total = finding.answers + finding.unsure + finding.more
    return [
        f"{finding.rows:,} texts with a weak label; true labels of {finding.answers}{told}.",
        "",
        *_table(finding),
        "",
        # The rows that it would keep were chosen by the answers that would have to judge them.
        "Filter and relabel above are by the ensemble alone; the filter drops "
        f"{100 * PER_CLASS_SHARE:g} % of each weak class. `filter`, `relabel` and `clean` also "
        "learn from these answers, which cannot show what is left wrong then.",
        "",
        f"Answer: {finding.action}. With probability {finding.probability:.2f} nothing else leaves "
        "fewer wrong labels (by more than a point).",
        "The answers settle it."
        if finding.settled
        else f"{finding.more} more true labels would settle it, at the rate so far: "
        f"{again} -m {total}",
    ]


def _next(action: str, hard: bool, probe: str, audit: Path | None) -> str:
    """The command of an action, without the options that only the audit has.

    It needs the texts only to show them.
    """
    then = typed_again(action, without=("output", "rows", "text_column", "layers"))
    if hard:
        then += " --hard"
    if audit is not None:
        then += f" --audit {shlex.quote(str(audit))}"
    if probe != "ensemble":  # whose filter and relabel the figures are of
        then += " --probe ensemble"
    return then


SHARES = {"leave": "as they are", "filter": "after filter", "relabel": "after relabel --hard"}


def _table(finding: Finding) -> list[str]:
    """A line for every estimated share of wrong labels."""
    shares = {SHARES[name]: share for name, share in finding.shares.items()}
    shares |= {f"weak class {printable(name)}": s for name, s in finding.by_class.items()}
    width = max(map(len, shares))
    return [
        f"{'wrong labels':<{width}}  share and 95 % interval",
        *(f"{name:<{width}}  {_bar(share)}" for name, share in shares.items()),
    ]


def _bar(share: Share, width: int = 40) -> str:
    """The interval from 0 to 100 %, and its figures."""
    low, high = (round(bound * (width - 1)) for bound in (share.low, share.high))
    cells = ["─" if low <= i <= high else "·" for i in range(width)]
    if share.answers:
        cells[round(share.value * (width - 1))] = "●"
    return f"{''.join(cells)}  {share}"


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


class _Progress:
    """Shows the estimate so far, and once that the answers settle what to do."""

    def __init__(self, file: AuditFile, draw: Draw) -> None:
        self.file, self.draw = file, draw
        self.settled = draw.conclude(file.answers, more=False).settled

    def __call__(self) -> None:
        finding = self.draw.conclude(self.file.answers, more=False)
        click.secho(f"\nwrong labels so far  {_bar(finding.shares['leave'])}", dim=True, err=True)
        if finding.settled and not self.settled:
            click.secho("These answers settle what to do; q stops here.", fg="green", err=True)
        self.settled = finding.settled


class Screen:
    """Asks about drawn rows, one key each, until all are answered or the reader stops.

    Parameters
    ----------
    file
        Where every answer is saved at once.
    texts
        Id -> text.
    progress
        Called after every five answers, while others wait.
    """

    def __init__(
        self,
        file: AuditFile,
        texts: Mapping[str, str],
        classes: Sequence[str],
        *,
        progress: Callable[[], None] | None = None,
    ) -> None:
        self.file, self.texts, self.progress = file, texts, progress
        self.keys = class_keys(classes)

    def run(self, ids: Sequence[str]) -> None:
        """Ask about ``ids`` in their order, those already answered left out."""
        from probekit.cleaning.answers import UNSURE

        done = [name for name in self.file.answers if name in set(ids)]
        if done:
            click.echo(f"{len(done)} of {len(ids)} are answered already.", err=True)
        click.echo(self._help(), err=True)
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
            # Not after every row, where it would tell whether the weak label was wrong.
            if self.progress and len(done) % SHOW_EVERY == 0 and len(waiting) > 1:
                self.progress()

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
