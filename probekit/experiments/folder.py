"""The folder of a run: whether it is this run's, and what the run was made by."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from probekit.errors import DataError, OutputExistsError, first_few
from probekit.experiments.cache import versions
from probekit.experiments.config import RunConfig, write_config
from probekit.files import TEMPORARY
from probekit.settings import read_settings

__all__ = ["CONFIG", "METRICS", "open_folder", "provenance"]

CONFIG, METRICS = "config.yaml", "metrics.json"


def open_folder(folder: Path, config: RunConfig, *, make: bool = True) -> None:
    """Make a run's folder, or resume one of the same configuration; ``make=False`` only checks.

    Raises
    ------
    OutputExistsError
        If the folder holds another run or other files.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputExistsError(f"{folder} is a file; name a folder with -o.")
    if (folder / CONFIG).is_file():
        earlier = type(config).from_mapping(read_settings(folder / CONFIG), folder / CONFIG)
        differing = config.differences(earlier)
        if differing and not (folder / METRICS).exists() and not _foreign(folder):
            write_config(config, folder / CONFIG)  # a run that wrote nothing else here
        elif differing:
            raise OutputExistsError(
                f"{folder} holds a run of another configuration, which differs in "
                f"{', '.join(differing)}; "
                "name another folder with -o, where steps that both share are not done again."
            )
        return
    if folder.exists() and (names := _foreign(folder)):
        listed = first_few(sorted(names))
        raise OutputExistsError(f"{folder} holds other files ({listed}); name another folder.")
    if not make:
        return
    if not folder.absolute().parent.is_dir():
        raise DataError(f"The folder {folder.parent} of the output {folder.name} does not exist.")
    folder.mkdir(exist_ok=True)
    write_config(config, folder / CONFIG)


def _foreign(folder: Path) -> list[str]:
    """List what a folder holds besides a run's configuration, whole or half written."""
    names = [path.name for path in folder.iterdir()]
    return [name for name in names if name != CONFIG and not name.endswith(TEMPORARY)]


def provenance() -> dict[str, Any]:
    """Return the versions and hardware of this process."""
    return {
        "versions": versions(),
        "hardware": {"machine": platform.machine(), "cpus": os.cpu_count(), "gpu": _gpu()},
    }


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
