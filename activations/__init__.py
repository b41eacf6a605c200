"""Model and texts in, an HDF5 file of hidden states out."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probekit.activations.extraction import extract, extract_differences
    from probekit.activations.spec import ExtractionSpec
    from probekit.activations.store import ActivationStore

# Imported at first use: reading a store must not wait for torch and transformers.
_HOMES = {
    "ActivationStore": "probekit.activations.store",
    "ExtractionSpec": "probekit.activations.spec",
    "extract": "probekit.activations.extraction",
    "extract_differences": "probekit.activations.extraction",
}

__all__ = ["ActivationStore", "ExtractionSpec", "extract", "extract_differences"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'probekit.activations' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
