"""Options of the commands that also work on a Ray cluster."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any, TypedDict

import click

from probekit.cli.options import option
from probekit.errors import UsageError

__all__ = ["ENGINE", "EngineOptions", "check_engine", "engine_of"]


class EngineOptions(TypedDict):
    """Where the work is done."""

    engine: Annotated[
        str,
        option(
            "ray: workers of a Ray cluster do the work (extra [cluster]), with the same result.",
            type=click.Choice(["local", "ray"]),
            default="local",
        ),
    ]
    address: Annotated[
        str | None,
        option("Ray cluster: auto or HOST:PORT.  [default: one that runs here, or a new one]"),
    ]
    workers: Annotated[
        int | None,
        option("Workers on the cluster.  [default: all it has room for]", type=click.IntRange(1)),
    ]
    gpus_per_worker: Annotated[
        float | None,
        option("GPUs of each worker; 0: one CPU.  [default: 0]", type=click.FloatRange(0)),
    ]


ENGINE = tuple(EngineOptions.__annotations__)


def check_engine(options: Mapping[str, Any]) -> bool:
    """Return whether a cluster is asked for; raise if only its options are given."""
    if options["engine"] == "ray":
        return True
    if given := [name for name in ENGINE[1:] if options[name] is not None]:
        raise UsageError(f"--{given[0].replace('_', '-')} is for --engine ray; add that.")
    return False


def engine_of(options: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Within it, the work is done where the options say."""
    if not check_engine(options):
        return nullcontext()
    from probekit.engine import on_ray

    return on_ray(
        options["address"], workers=options["workers"], gpus=options["gpus_per_worker"] or 0.0
    )
