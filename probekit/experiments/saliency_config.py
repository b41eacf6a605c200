"""What decides the result of ``probekit saliency``: a run's fields, and which layers are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from probekit.errors import OutputExistsError, UsageError
from probekit.experiments.config import RunConfig
from probekit.experiments.run import CONFIG, open_folder
from probekit.kinds import Flag, Kind, Layers
from probekit.settings import configuration, read_settings

__all__ = ["SaliencyConfig", "open_saliency_folder"]

PROBE_SETTINGS = ("l2", "penalties", "standardize")


@configuration
class SaliencyConfig(RunConfig):
    """Fields of a run, of which those about cleaning labels do nothing here."""

    command: ClassVar[str] = "saliency"

    layers: Annotated[str, Layers()] = "all"
    """Layers that the probes read, as ``extract --layers`` takes them; the last is always read."""

    after_truth: Annotated[bool, Flag()] = False
    """Also probe the layers of the model finetuned on ground truth, which is kept on disk."""

    def __post_init__(self) -> None:
        """Refuse what can be told to be wrong without reading anything."""
        super().__post_init__()
        if self.chain:
            raise UsageError("saliency compares a weak and a strong model; leave chain out.")
        if not self.validation_share and self.validation_rows is None:
            raise UsageError(
                "saliency chooses penalties and layers on validation rows; give a "
                "validation_share above 0."
            )

    @staticmethod
    def probe_kinds(name: str) -> Mapping[str, Kind]:
        """Of a logistic probe only what its path of penalties takes."""
        kinds = RunConfig.probe_kinds(name)
        return {key: kinds[key] for key in PROBE_SETTINGS} if name == "logreg" else kinds

    @property
    def extracted(self) -> str:
        """What extraction is asked for, the last layer included."""
        return self.layers if self.layers in ("all", "last") else f"{self.layers},last"

    @property
    def probe(self) -> dict[str, Any]:
        """Settings of the linear probes: penalties to choose from, standardize."""
        from probekit.probes.logistic import PENALTIES

        given: Mapping[str, Any] = self.probe_options.get("logreg", {})
        penalties: Sequence[float] | None = given.get("penalties")
        if given.get("l2", "auto") != "auto":
            penalties = [given["l2"]]
        numbers = [float(value) for value in (PENALTIES if penalties is None else penalties)]
        return {"penalties": numbers, "standardize": given.get("standardize", True)}


def open_saliency_folder(folder: Path, config: SaliencyConfig, *, make: bool = True) -> None:
    """Make the folder of a comparison, or go on in one of the same configuration.

    ``make=False`` only checks.

    Raises
    ------
    OutputExistsError
        Where the folder holds a run, another comparison or something else.
    """
    if (folder / CONFIG).is_file() and "layers" not in read_settings(folder / CONFIG):
        raise OutputExistsError(
            f"{folder} holds a `probekit run`; name another folder beside it with -o, where the "
            "steps that both share are not done again."
        )
    open_folder(folder, config, make=make)
