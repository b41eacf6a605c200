"""Weak-to-strong in the generative form: a supervisor's completions train the student."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from probekit.data import Rows
from probekit.errors import DataError, first_few
from probekit.files import atomic_write
from probekit.metrics import agreement, paired_bootstrap
from probekit.students.completion import Completions, completion_rows, exact_match
from probekit.students.config import FinetuneConfig
from probekit.students.generative import finetune_completion

__all__ = ["generative_weak_to_strong", "score_completions"]


def generative_weak_to_strong(
    weak: FinetuneConfig,
    strong: FinetuneConfig,
    *,
    supervisor: Rows,
    student: Rows,
    test: Rows,
    output: str | Path,
    seed: int = 0,
) -> dict[str, Any]:
    """Finetune supervisor, student and ceiling on completions and score them by exact match.

    The supervisor learns the true completions of its rows and completes the student's prompts
    greedily; the student learns these completions, and the ceiling the true ones of the same rows
    (Burns et al. 2023, https://arxiv.org/abs/2312.09390, for chess).

    Parameters
    ----------
    weak, strong
        Settings of the supervisor, and of student and ceiling.
    supervisor, student, test
        Rows with the columns text and completion; no text in two of them.
    output
        Folder of the three models; finished ones are not trained again.
    seed
        Seed of the bootstrap.

    Returns
    -------
    The result of :func:`score_completions`, and the supervisor's accuracy on the student's rows;
    also written to ``results.json``.

    Raises
    ------
    DataError
        If a text is in two of the parts.
    """
    _check_apart({"supervisor": supervisor, "student": student, "test": test})
    folder = Path(output)
    floor = finetune_completion(
        weak,
        completion_rows(supervisor),
        folder / "supervisor",
        predict={"student": student, "test": test},
    )
    weak_targets = floor.predictions["student"]
    learned = finetune_completion(
        strong, completion_rows(student, weak_targets), folder / "student", predict={"test": test}
    )
    ceiling = finetune_completion(
        strong, completion_rows(student), folder / "ceiling", predict={"test": test}
    )
    results = {
        "rows": {"supervisor": len(supervisor), "student": len(student), "test": len(test)},
        "weak_targets_right": float(exact_match(weak_targets, student).mean()),
        **score_completions(
            floor.predictions["test"],
            learned.predictions["test"],
            ceiling.predictions["test"],
            test,
            seed=seed,
        ),
    }
    with atomic_write(folder / "results.json", "w") as file:
        json.dump(results, file, indent=1)
    return results


def score_completions(
    weak: Completions, student: Completions, ceiling: Completions, test: Rows, *, seed: int = 0
) -> dict[str, Any]:
    """Exact-match accuracy of three models, PGR with its paired 95 % interval, and agreement.

    ``agreement`` is the share of rows where the student writes what its supervisor writes: overall,
    where that is right, and where it is wrong.
    """
    right = [exact_match(each, test) for each in (weak, student, ceiling)]
    accuracy = {
        name: float(values.mean())
        for name, values in zip(("weak", "student", "ceiling"), right, strict=True)
    }
    truth = np.array(completion_rows(test).completions)
    written = [np.array(each.of(test)) for each in (weak, student)]
    return {
        "accuracy": accuracy,
        "pgr": asdict(paired_bootstrap(*(v.astype(float) for v in right), seed=seed)),
        "agreement": asdict(agreement(truth, *written)),
    }


def _check_apart(parts: dict[str, Rows]) -> None:
    names: Sequence[str] = list(parts)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            common = set(parts[first].hashes) & set(parts[second].hashes)
            if common:
                ids = [
                    name
                    for name, digest in zip(parts[first].ids, parts[first].hashes, strict=True)
                    if digest in common
                ]
                raise DataError(
                    f"{len(common)} texts are both in the {first} rows and in the {second} rows "
                    f"(ids {first_few(ids)}); deal every text to one part."
                )
