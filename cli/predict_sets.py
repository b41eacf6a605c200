"""The rows of ``--predict``: how each set is called, and whether one truth can judge them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probekit.cli.options import say
from probekit.errors import DataError, UsageError, first_few

if TYPE_CHECKING:
    from probekit.data import Rows
    from probekit.labels import WeakLabels

__all__ = ["check_one_truth", "judge_sets", "predict_sets"]


def predict_sets(given: Sequence[str]) -> dict[str, str]:
    """Name to source of ``[NAME=]ROWS``, in order; sources of one name get their folder's before.

    Raises
    ------
    UsageError
        Where a name is given twice, or one source is.
    """
    named: list[tuple[str | None, str]] = []
    for each in given:
        name, equals, source = each.partition("=")
        is_named = bool(equals) and "/" not in name and not Path(each).exists()
        named.append((name, source) if is_named else (None, each))
    taken = [name for name, _ in named if name is not None]
    if twice := [name for name in taken if taken.count(name) > 1]:
        raise UsageError(f"Two sets to predict are called {twice[0]!r}; give each its own NAME=.")
    unnamed = [source for name, source in named if name is None]
    if twice := [source for source in unnamed if unnamed.count(source) > 1]:
        raise UsageError(f"{twice[0]} is to be predicted twice; name it once.")
    own = iter(_own_names(unnamed, taken))
    return {next(own) if name is None else name: source for name, source in named}


def _own_names(sources: Sequence[str], taken: Sequence[str]) -> list[str]:
    """Name each after its file or split; of equal names each gets what tells it apart before it."""
    parts = [_parts(source) for source in sources]
    longest = max(map(len, parts), default=0)
    names = [part[-1] for part in parts]
    for many in range(2, longest + 1):
        alike = {name for name in names if names.count(name) > 1 or name in taken}
        names = [
            "-".join(part[-many:]) if name in alike else name
            for part, name in zip(parts, names, strict=True)
        ]
    if clash := [name for name in names if names.count(name) > 1 or name in taken]:
        raise UsageError(
            f"Two sets to predict would be called {clash[0]!r}; give each its own name as in "
            f"--predict NAME={sources[names.index(clash[0])]}."
        )
    return names


def _parts(source: str) -> list[str]:
    """What a source's name is made of, the most telling last."""
    task, at, split = source.rpartition("@")
    if at and task and not Path(source).exists():
        return [*task.removeprefix("hf:").replace(":", "/").split("/"), split]
    path = Path(source)
    folders = [part for part in path.parts[:-1] if part not in ("/", ".", "..", "~")]
    return [*folders, path.stem]


def check_one_truth(predict: Mapping[str, Rows]) -> None:
    """Refuse, before the training, sets that no one file of truth can tell apart.

    Raises
    ------
    UsageError
        Where two sets have rows of one id and different texts.
    """
    for (one, rows), (other, more) in combinations(predict.items(), 2):
        known = dict(zip(rows.ids, rows.hashes, strict=True))
        pairs = zip(more.ids, more.hashes, strict=True)
        shared = [name for name, digest in pairs if known.get(name, digest) != digest]
        if shared:
            raise UsageError(
                f"--truth is joined by id, and {len(shared):,} ids of {one} are those of other "
                f"texts in {other} (ids {first_few(shared)}); give all rows ids of their own and "
                "one file with the truth of all of them, or judge each set later with `probekit "
                "predict … --truth`."
            )


def judge_sets(predictions: Mapping[str, WeakLabels], truth: WeakLabels) -> dict[str, Any]:
    """Metrics by set; a set whose truth is not there is told.

    Raises
    ------
    DataError
        Where no set can be judged.
    """
    from probekit.students.predict import evaluate_predictions

    found: dict[str, Any] = {}
    failed: list[tuple[str, DataError]] = []
    for name, predicted in predictions.items():
        try:
            found[name] = evaluate_predictions(predicted, truth)
        except DataError as error:
            failed.append((name, error))
    if failed and not found:
        raise failed[0][1]
    for name, reason in failed:
        say(f"{name} is not judged: {reason} One --truth holds the labels of all --predict sets.")
    return found
