"""Options that filter and relabel share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from probekit.cli.labels import LABELS_HELP, labels_options
from probekit.cli.options import json_option, output_option, overwrite_option, seed_option
from probekit.probes.registry import REGISTRY

F = TypeVar("F", bound=Callable[..., Any])

__all__ = ["label_options", "penalty_type", "probe_options", "result_options", "share_type"]

FILE = click.Path(path_type=Path)


class WordOrNumber(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic since 8.4
    """A number, or one of some words."""

    def __init__(self, *words: str) -> None:
        self.words = words
        self.name = "|".join((*words, "number"))

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | str:
        """Read one or the other."""
        if value in self.words:
            return str(value)
        try:
            return float(value)
        except ValueError:
            words = " or ".join(map(repr, self.words))
            self.fail(f"{value!r} is neither {words} nor a number.", param, ctx)


penalty_type = WordOrNumber("auto")
share_type = WordOrNumber("auto", "confident")


def _all(*options: Callable[[F], F]) -> Callable[[F], F]:
    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


label_options = _all(
    click.argument("acts", type=FILE),
    click.option(
        "--labels",
        required=True,
        help=LABELS_HELP,
    ),
    labels_options,
    click.option(
        "--layer",
        type=int,
        help="Which layer; where several are stored, needed but by the ensemble.",
    ),
    click.option(
        "--truth",
        help="Ground truth (id and label) to judge the verdicts; opened once these are written.",
    ),
    click.option("--truth-column", help="Column of the truth, if not label."),
    click.option(
        "--audit",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Answers of `probekit audit`, which overrule advice.  [default: LABELS.audit.csv "
        "here, where it is]",
    ),
)

probe_options = _all(
    click.option(
        "--probe",
        metavar=f"[{'|'.join(REGISTRY)}|package.module:Class]",
        help="What predicts each row without having seen its label: one of these, a probe of an "
        "installed package, or any scikit-learn classifier as package.module:Class.  [default: "
        "ensemble where several layers are stored and none is chosen, else knn]",
    ),
    click.option("--k", type=click.IntRange(min=1), help="knn, ensemble: neighbours (30)."),
    click.option(
        "--weights", type=click.Choice(["uniform", "cosine"]), help="knn: votes (uniform)."
    ),
    click.option(
        "--metric",
        type=click.Choice(["cosine", "euclidean"]),
        help="knn, topofilter: distance (cosine, of centred rows).",
    ),
    click.option("--l2", type=penalty_type, help="logreg: penalty (auto)."),
    click.option(
        "--intercept/--no-intercept",
        "fit_intercept",
        default=None,
        help="logreg: with a bias or without (with; without for differences of pairs).",
    ),
    click.option("--folds", type=click.IntRange(min=2), help="logreg: folds (5)."),
    click.option(
        "--variant",
        type=click.Choice(["paper", "eleuther"]),
        help="topofilter: which of the two published ones (paper).",
    ),
    click.option("--k-cc", type=click.IntRange(min=1), help="topofilter: neighbours of the graph."),
    click.option("--k-zeta", type=click.IntRange(min=1), help="topofilter: neighbours that vote."),
    click.option(
        "--disagreement",
        type=click.Choice(["label", "distance"]),
        help="What rows are judged by: 1 - P(the weak label's class), or half the absolute "
        "difference of P and weak label, as published; the same for hard labels (label; with "
        "--preset distance).",
    ),
    click.option(
        "--in-sample",
        is_flag=True,
        help="Predict rows that were fitted on, as EleutherAI did: hides wrong labels.",
    ),
    click.option(
        "--preset",
        type=click.Choice(["eleuther"]),
        help="EleutherAI's settings: euclidean, in-sample, k 50, l2 0.01 not standardised; "
        "filter: 10 % of all rows; relabel: to what the probe says.",
    ),
)

result_options = _all(
    output_option("Verdicts to write: .parquet or .jsonl."),
    click.option(
        "--write-data",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Also write the training set as JSONL: the rows' own columns, label, probs, weight.",
    ),
    click.option(
        "--rows", help="The rows that were extracted, for --write-data, if not to be found."
    ),
    click.option("--text-column", help="Column of the text in rows and labels, if not text."),
    overwrite_option,
    seed_option,
    json_option,
)
