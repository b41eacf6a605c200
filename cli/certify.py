"""``probekit certify``: have people label what a bound on the wrong labels left over needs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Unpack

import click
from click.core import ParameterSource

from probekit.cli.audit import Screen, listed, texts_of
from probekit.cli.labels import LabelledStoreOptions, TrustedRows, read_labels, read_trusted
from probekit.cli.options import (
    OUTPUT_FILE,
    AsJson,
    Overwrite,
    Rows,
    SectionedCommand,
    Seed,
    TextColumn,
    at_terminal,
    emit,
    option,
    options_of,
    say,
    typed_again,
)
from probekit.cli.outputs import check_suffix, claim
from probekit.errors import DataError, UsageError
from probekit.files import atomic_write
from probekit.output_tables import check_format
from probekit.safe import open_regular, read_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from probekit.activations.store import ActivationStore
    from probekit.cleaning.certify import Certification, Certifier
    from probekit.cleaning.review import AuditFile
    from probekit.labels import WeakLabels
    from probekit.verdicts import Verdicts

__all__ = ["command"]

FORMAT, VERSION = "probekit-certify", 1
TRUSTED = "trusted_labels"
# What may not change once a sample is drawn -> the option that sets it.
FIXED = {
    "max_error": "--max-error",
    "confidence": "--confidence",
    "sample": "--sample",
    "sitting": "--sitting",
    "seed": "--seed",
}


class CertifyOptions(LabelledStoreOptions, TrustedRows):
    """Options of ``probekit certify``."""

    max_error: Annotated[
        float | None,
        option("Share of wrong labels that may be left, in (0, 1).  [default: 0.05]"),
    ]
    confidence: Annotated[
        float | None, option("Probability with which that holds, in [0.5, 1).  [default: 0.95]")
    ]
    sample: Annotated[
        int | None,
        option(
            "Rows drawn at random.  [default: what should need the fewest labels in all]",
            type=click.IntRange(min=1),
        ),
    ]
    sitting: Annotated[
        int | None,
        option(
            "Rows to label before the order of the others is chosen again.  [default: 3 % of "
            "the rows]",
            type=click.IntRange(min=1),
        ),
    ]
    audit: Annotated[
        Path | None,
        option(
            "Answers of `probekit audit`, which are trusted without --trusted.  [default: "
            "LABELS.audit.csv here, if it exists]",
            type=OUTPUT_FILE,
        ),
    ]
    answers: Annotated[
        Path | None,
        option(
            "CSV that keeps rows and answers; resumed if it exists.  [default: "
            "LABELS.certify.csv here]",
            type=OUTPUT_FILE,
        ),
    ]
    output: Annotated[
        Path | None,
        option(
            "Verdicts: .parquet or .jsonl.  [default: LABELS.certified.parquet here]",
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
    overwrite: Overwrite
    seed: Seed
    as_json: AsJson


@click.command("certify", cls=SectionedCommand)
@options_of(CertifyOptions)
def command(**options: Unpack[CertifyOptions]) -> None:
    """Bound the wrong labels left, with few true labels.

    People label as few rows as needed for at most a share of all labels to be wrong: first a random
    sample, then the most doubtful rows, in sittings. Stop at any time, and the same command
    resumes. LABELS are weak labels, or verdicts, whose kept rows and new labels are certified. At
    the end the verdicts have people's labels and the certificate.

    Example: probekit certify acts.h5 --labels weak.csv --max-error 0.05 --confidence 0.95
    """
    from probekit.activations.store import ActivationStore
    from probekit.cleaning.certify import Certifier
    from probekit.cleaning.review import AuditFile

    stem = Path(options["labels"]).stem
    answers = options["answers"] or Path(f"{stem}.certify.csv")
    output = options["output"] or Path(f"{stem}.certified.parquet")
    _check(answers, output, options)
    plan_file = answers.with_suffix(".json")
    plan = _read_plan(plan_file, answers)
    source = click.get_current_context().get_parameter_source
    typed = {
        name: value
        for name, value in options.items()
        if name in FIXED and source(name) is ParameterSource.COMMANDLINE
    }
    _check_plan(plan, typed, answers)
    with ActivationStore(options["acts"]) as store:
        labels = _labels(options, store)
        certifier = Certifier(
            store,
            labels,
            **{name: plan[name] for name in FIXED if name in plan} | typed,
            only_labelled=options["only_labelled"],
            trusted=_trusted(options, store, labels.classes, plan),
        )
        for note in certifier.notes:
            say(f"Note: {note}")
        _check_plan(plan, certifier.settings, answers)
        if not plan:
            _write_plan(plan_file, {**certifier.settings, TRUSTED: certifier.trusted})
        hashes = dict(zip(certifier.ids, certifier.hashes, strict=True))
        file = AuditFile(
            answers, hashes, certifier.base.classes, what="a certificate", flag="--answers"
        )
        now = _label(file, store, certifier, options)
    if now.verdicts is not None:
        _save(now.verdicts, output, answers)
    result = {**_summary(now), "answers": str(answers)}
    result["output"] = None if now.verdicts is None else str(output)
    emit(result, _text(now, certifier, answers, output), as_json=options["as_json"])


def _check(answers: Path, output: Path, options: CertifyOptions) -> None:
    check_suffix(output, ".parquet", ".jsonl")
    named = {**options, "answers": answers, "output": output}
    claim(named, "output")
    claim(named, "answers", resumes=True)
    if not options["no_ask"] and not at_terminal():
        raise UsageError(
            f"There is no terminal to ask in; add --no-ask, fill in the column true_label of "
            f"{answers}, and run the same command again."
        )


def _labels(options: CertifyOptions, store: ActivationStore) -> WeakLabels | Verdicts:
    """Weak labels, or verdicts if the file holds those."""
    from probekit.sources import read_table
    from probekit.verdicts import FORMAT as VERDICTS
    from probekit.verdicts import Verdicts

    if Path(options["labels"]).suffix.lower() in (".parquet", ".jsonl"):
        table = read_table(options["labels"])
        if table.metadata.get("format") == VERDICTS:
            verdicts = Verdicts.load(table)
            say(f"{options['labels']}: verdicts; the labels of {verdicts.keep.sum():,} kept rows.")
            return verdicts
    return read_labels(options, store.keys)


def _trusted(
    options: CertifyOptions, store: ActivationStore, classes: Sequence[str], plan: Mapping[str, Any]
) -> WeakLabels | dict[str, str] | None:
    """The true labels that were known when the sample was drawn: later ones may depend on it."""
    from probekit.cleaning.review import audit_path

    if plan and options["trusted"] is None and options["audit"] is None:
        return plan.get(TRUSTED) or None
    audit = options["audit"] or audit_path(options["labels"])
    return read_trusted(options, store, classes, audit)


def _read_plan(path: Path, answers: Path) -> dict[str, Any]:
    """What was chosen before the first answer; empty before that.

    Raises
    ------
    DataError
        If there are answers, and nothing says how their rows were drawn.
    """
    if path.exists():
        plan = read_json(path)
        if not isinstance(plan, dict) or not isinstance(plan.get(TRUSTED, {}), dict):
            raise DataError(f"{path} is not the plan of a certificate; name other --answers.")
        check_format(plan, path, FORMAT, VERSION, repair="`probekit certify`")
        return plan
    if answers.exists():
        raise DataError(
            f"{answers} exists without {path}, which says how its rows were drawn; put that back, "
            "or name other --answers."
        )
    return {}


def _write_plan(path: Path, settings: Mapping[str, Any]) -> None:
    with atomic_write(path, "w") as file:
        file.write(json.dumps({"format": FORMAT, "version": VERSION, **settings}) + "\n")


def _check_plan(plan: Mapping[str, Any], settings: Mapping[str, Any], answers: Path) -> None:
    """Raise UsageError for a setting that is not what it was when the sample was drawn."""
    for name, value in settings.items() if plan else ():
        if plan.get(name) != value:
            then = f"{FIXED[name]} {plan.get(name)}" if name in FIXED else f"other {name}"
            then += " labels" if name == "trusted" else ""
            raise UsageError(
                f"{answers} was begun with {then}, and a sample holds for one certificate only; "
                "run the command as it was, or name other --answers for a new sample."
            )


def _label(
    file: AuditFile, store: ActivationStore, certifier: Certifier, options: CertifyOptions
) -> Certification:
    """List the rows to label, and ask; until the reader stops, or nothing is left to ask."""
    said = None
    while True:
        now = certifier.status(file.answers, source=str(file.path))
        if not now.ask:
            return now
        texts = _texts(file, store, now.ask, options)
        if options["no_ask"]:
            return now
        if said != now.stage:
            say(_what_for(now))
            said = now.stage
        Screen(file, texts, certifier.base.classes).run(now.ask)
        if any(name not in file.answers for name in now.ask):
            return certifier.status(file.answers, source=str(file.path))


def _texts(
    file: AuditFile,
    store: ActivationStore,
    ask: Sequence[str],
    options: CertifyOptions,
) -> dict[str, str]:
    """Texts of these rows, which the file lists from now on."""
    new = [name for name in ask if name not in file.records]
    if new:
        texts = texts_of(new, store, options, purpose="People label the rows' texts")
        file.add(new, list(texts.values()))
        file.write()
    return {name: file.records[name].get("text", "") for name in ask}


def _save(verdicts: Verdicts, output: Path, answers: Path) -> None:
    """Save the verdicts; the certificate names the file of the answers by its content."""
    with open_regular(answers) as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    certificate = {
        **verdicts.provenance["certificate"],
        "answers": {"source": answers.name, "sha256": digest},
    }
    provenance = {**verdicts.provenance, "certificate": certificate}
    replace(verdicts, provenance=provenance).save(output)
    say(f"{len(verdicts):,} verdicts written to {output}")


def _summary(now: Certification) -> dict[str, Any]:
    return {
        "stage": now.stage,
        "rows": now.rows,
        "max_wrong": now.max_wrong,
        "sample": now.plan.sample,
        "labelled": now.labelled,
        "waiting": len(now.ask),
        "more": now.more,
        "expected": now.plan.expected,
        "low": now.plan.low,
        "high": now.plan.high,
        "by_chance": now.plan.by_chance,
        "certificate": None if now.certificate is None else dict(now.certificate),
    }


def _what_for(now: Certification) -> str:
    if now.stage == "sample":
        return (
            f"About {now.plan.expected:,} of {now.rows:,} rows to label, probably "
            f"{now.plan.low:,} to {now.plan.high:,}, of which {now.plan.sample:,} drawn at random "
            f"come first; by chance alone {now.plan.by_chance:,}. These are estimates: what the "
            "sample shows makes them better."
        )
    return (
        f"{now.labelled:,} rows are labelled; about {now.more:,} more (an estimate), the most "
        "doubtful first."
    )


def _text(now: Certification, certifier: Certifier, answers: Path, output: Path) -> str:
    share = f"{now.max_wrong:,} of {now.rows:,} labels"
    sure = f"{certifier.confidence:.4g}"
    if now.certificate is not None:
        found = now.certificate
        trusted = f", {found['trusted']:,} trusted ones among them" if found["trusted"] else ""
        left_out = f", {found['cannot_tell']:,} cannot be told and are left out"
        return (
            f"Certified: at most {share} are wrong ({certifier.max_error:.4g}), with confidence "
            f"{sure}, if people are right.\nPeople labelled {found['labelled']:,} rows{trusted}: "
            f"{found['corrected']:,} labels corrected{left_out if found['cannot_tell'] else ''}; "
            f"{found['unreviewed']:,} labels stay unreviewed.\nNext: probekit report {output} -o "
            "report.html"
        )
    again = typed_again(without=("no_ask",))
    return (
        f"To certify: at most {share} are wrong ({certifier.max_error:.4g}), with confidence "
        f"{sure}.\n{_what_for(now)}\n\n{len(now.ask)} rows in {answers} wait for an answer (column "
        f"true_label: {listed(certifier.base.classes)}, or ? if you cannot tell). Then: {again} "
        "--no-ask"
    )
