"""What decides the result of ``probekit saliency``: a run's fields, and which layers are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from probekit.errors import OutputExistsError, UsageError, did_you_mean
from probekit.experiments.config import RunConfig, read_yaml
from probekit.experiments.run import CONFIG, open_folder

__all__ = ["SaliencyConfig", "open_saliency_folder"]

PROBE_SETTINGS = ("l2", "penalties", "standardize")


@dataclass(frozen=True)
class SaliencyConfig(RunConfig):
    """Fields of a run, of which those about cleaning labels do nothing here."""

    command: ClassVar[str] = "saliency"

    layers: str = "all"
    """Layers that the probes read, as ``extract --layers`` takes them; the last is always read."""

    after_truth: bool = False
    """Also probe the layers of the model finetuned on ground truth, which is kept on disk."""

    def __post_init__(self) -> None:
        """Refuse what can be told to be wrong without reading anything."""
        super().__post_init__()
        if self.chain:
            raise UsageError("saliency compares a weak and a strong model; leave chain out.")
        if not self.validation_share:
            raise UsageError(
                "saliency chooses penalties and layers on validation rows; give a "
                "validation_share above 0."
            )
        for name in self.probe_options.get("logreg", {}):
            if name not in PROBE_SETTINGS:
                raise UsageError(
                    f"saliency's probes have no setting {name!r}"
                    f"{did_you_mean(name, PROBE_SETTINGS)}; probe_options.logreg takes "
                    f"{', '.join(PROBE_SETTINGS)}."
                )
        _ = self.probe  # refuses numbers that are none

    @property
    def extracted(self) -> str:
        """What extraction is asked for, the last layer included."""
        return self.layers if self.layers in ("all", "last") else f"{self.layers},last"

    @property
    def probe(self) -> dict[str, Any]:
        """Settings of the linear probes: penalties to choose from, standardize."""
        from probekit.probes.logistic import PENALTIES

        given: Mapping[str, Any] = self.probe_options.get("logreg", {})
        penalties: Sequence[Any] = given.get("penalties", PENALTIES)
        if given.get("l2", "auto") != "auto":
            penalties = [given["l2"]]
        try:
            numbers = [float(value) for value in penalties]
        except (TypeError, ValueError):
            numbers = []
        if not numbers or not all(0 <= value < float("inf") for value in numbers):
            raise UsageError(
                "probe_options.logreg.penalties is a list of numbers of at least 0, got "
                f"{penalties!r}."
            )
        return {"penalties": numbers, "standardize": bool(given.get("standardize", True))}


def open_saliency_folder(folder: Path, config: SaliencyConfig) -> None:
    """Make the folder of a comparison, or go on in one of the same configuration.

    Raises
    ------
    OutputExistsError
        Where the folder holds a run, another comparison or something else.
    """
    if (folder / CONFIG).is_file() and "layers" not in read_yaml(folder / CONFIG):
        raise OutputExistsError(
            f"{folder} holds a `probekit run`; name another folder beside it with -o, where the "
            "steps that both share are not done again."
        )
    open_folder(folder, config)
