"""Data sets of the Hugging Face hub, split by split, or the same files from a folder.

Where the environment variable ``PROBEKIT_DATASETS`` names a folder, ``org/name`` is read from its
subfolder of that name alone, laid out as on the hub (``hf download org/name --repo-type dataset
--local-dir $PROBEKIT_DATASETS/org/name``): for machines without internet.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from probekit.errors import DataError
from probekit.safe import expand, read_bytes
from probekit.tables import Table, dataset_table, no_progress_bars

__all__ = ["DATASETS_VARIABLE", "UnreachedError", "read_hub"]

DATASETS_VARIABLE = "PROBEKIT_DATASETS"

# The hub keeps Parquet copies here: of loading scripts too, which datasets 4 refuses to run.
CONVERTED = "refs/convert/parquet"


class UnreachedError(DataError):
    """A data set of the hub that cannot be read from here; elsewhere it may well be."""


def read_hub(name: str, config: str | None, split: str) -> Table:
    """Read a split of a data set; its columns stay on disk and are read slice by slice.

    Parameters
    ----------
    name, config
        ``org/name`` and its configuration, None for the only one.
    split
        As ``datasets`` takes it: ``train``, ``train[:10%]``.

    Raises
    ------
    UnreachedError
        Where it cannot be read.
    """
    return _read(name, config, split, os.environ.get(DATASETS_VARIABLE) or None)


@lru_cache(maxsize=8)  # a task's splits are compared with each other; each is opened once
def _read(name: str, config: str | None, split: str, folder: str | None) -> Table:
    whole = f"{name}{f':{config}' if config else ''}@{split}"
    try:
        with no_progress_bars():
            dataset = (
                _from_hub(name, config, split)
                if folder is None
                else _from_folder(expand(folder), name, config, split)
            )
    except DataError:
        raise
    except Exception as error:  # datasets, hub and HTTP raise some twenty kinds
        raise UnreachedError(f"hf:{whole} cannot be read: {_why(error)}") from error
    return dataset_table(dataset, source=f"hf:{whole}")


def _from_hub(name: str, config: str | None, split: str) -> Any:
    import datasets

    try:
        return datasets.load_dataset(name, config, split=split)
    except (RuntimeError, ValueError) as error:
        text = str(error)
        if "scripts are no longer supported" not in text and "BuilderConfig" not in text:
            raise
    return datasets.load_dataset(name, data_dir=config, revision=CONVERTED, split=split)


def _from_folder(root: Path, name: str, config: str | None, split: str) -> Any:
    import datasets

    folder = root / name
    if not folder.is_dir():
        raise UnreachedError(
            f"{DATASETS_VARIABLE} is {root}, which has no folder {name}; copy the data set there "
            f"with `hf download {name} --repo-type dataset --local-dir {folder}`, or unset "
            f"{DATASETS_VARIABLE} to read it from the Hugging Face hub."
        )
    # A card that lists configurations says where their files are; else each has a folder.
    card = folder / "README.md"
    listed = card.is_file() and "\nconfigs:" in read_bytes(card).decode("utf-8", "replace")
    if config is None or listed or not (folder / config).is_dir():
        return datasets.load_dataset(str(folder), config, split=split)
    return datasets.load_dataset(str(folder), data_dir=config, split=split)


def _why(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ConnectionError) or "offline" in text.lower():
        return (
            "the Hugging Face hub cannot be reached and the data set is not in its cache; check "
            f"the connection, give a local file, or set {DATASETS_VARIABLE} to a folder that holds "
            "org/name as on the hub."
        )
    if "doesn't exist on the Hub" in text or "NotFound" in type(error).__name__:
        return (
            "there is no such data set on the Hugging Face hub (private ones need `hf auth login`)."
        )
    return (text if len(text) <= 300 else text[:299] + "…").rstrip(".") + "."
