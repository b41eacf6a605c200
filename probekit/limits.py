"""The range of every setting that has one name in several places: one table for all of them.

The command line (``probekit.cli.options``), run files (``probekit.experiments.config``) and public
functions (``check``) read it, so that a seed is the same thing in all three.
"""

from __future__ import annotations

from typing import Any

from probekit.kinds import (
    Choice,
    Flag,
    Kind,
    Like,
    Listed,
    Maybe,
    Number,
    Whole,
    Words,
    checked,
)

__all__ = [
    "ACTION_KINDS",
    "COUNT",
    "FLAG",
    "FOLDS",
    "KINDS",
    "RANDOM_STATE",
    "SEED",
    "check",
]

SEED = Whole(0, 2**32 - 1)  # numpy's, and so scikit-learn's and the Trainer's
COUNT, FLAG, FOLDS = Whole(1), Flag(), Whole(2, 1000)
SHARE = Number(0, 1, above=True, below=True)
PENALTY = Number(0, 1e12)
METRIC, BACKEND = Choice("cosine", "euclidean"), Choice("auto", "faiss", "torch")


class Randomness(Kind):
    """What scikit-learn takes for ``random_state``."""

    words = f"None, {SEED.words}, or numpy's RandomState or Generator"

    def read(self, value: Any) -> Any:
        """Take one of these."""
        if value is None or hasattr(value, "standard_normal"):
            return value
        try:
            return SEED.read(value)
        except ValueError:
            raise ValueError(self.words) from None


RANDOM_STATE = Randomness()

# Name of an argument -> what it may be, wherever it has this name.
KINDS: dict[str, Kind] = {
    "seed": SEED,
    "layer": Maybe(Whole(-9999, 9999)),
    "n_folds": FOLDS,
    "permutations": Whole(1, 10**6),
    "train_share": Maybe(Number(0, 1, above=True)),
    "train_rows": Maybe(Whole(2)),
    "l2": Words("auto", other=PENALTY),
    "fit_intercept": Maybe(FLAG),
    "contamination": Maybe(Words("auto", "confident", other=SHARE)),
    "blend": Maybe(Number(0, 1, above=True)),
    "only_above": Maybe(Number(0, 1, below=True)),
    "trusted_accuracy": Maybe(Number(0, 1, above=True)),
    "confidence": Number(0.5, 1),
    "max_length": Maybe(COUNT),
    "batch_tokens": Maybe(COUNT),
    "limit": Maybe(COUNT),
    "many": COUNT,
    "store": Like("an ActivationStore", "ids", "hashes", "layers", "layer", "read"),
    "labels": Like("WeakLabels, as load_labels reads them", "align", "probs", "classes"),
    "truth": Like("WeakLabels, as load_labels reads them", "align", "probs", "classes"),
    "verdicts": Like("Verdicts, as filter_labels makes them", "keep", "label", "provenance"),
    "layers": Maybe(Listed(Whole(-9999, 9999), least=1, each_once=False)),
    "rows": Whole(2),
    "total_steps": COUNT,
    "resume": FLAG,
    **dict.fromkeys(
        ("per_class", "in_sample", "hard", "only_labelled", "cautious", "curves", "resume"), FLAG
    ),
}

DISAGREEMENT, TIES = Choice("label", "distance"), Choice("hash", "index")

# Name of an action -> arguments of its function that a run file may set.
ACTION_KINDS: dict[str, dict[str, Kind]] = {
    "filter": {
        "contamination": KINDS["contamination"],
        "per_class": FLAG,
        "threshold": Maybe(Number(0, 1)),
        "in_sample": FLAG,
        "n_folds": FOLDS,
        "disagreement": Maybe(DISAGREEMENT),
        "ties": TIES,
    },
    "relabel": {
        "blend": KINDS["blend"],
        "hard": FLAG,
        "threshold": Maybe(Number(0, 1, above=True, below=True)),
        "only_above": KINDS["only_above"],
        "in_sample": FLAG,
        "n_folds": FOLDS,
        "disagreement": DISAGREEMENT,
        "ties": TIES,
    },
}
ACTION_KINDS["relabel-hard"] = ACTION_KINDS["relabel"]


def check(**arguments: Any) -> None:
    """Check a function's arguments, each by the entry of ``KINDS`` of its name.

    Raises
    ------
    UsageError
        For the first that is of another type or outside its range.
    """
    for name, value in arguments.items():
        checked((name,), KINDS[name], value)
