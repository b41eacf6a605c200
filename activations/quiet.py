"""Keep other libraries off stderr while probekit talks."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["quiet"]


@contextmanager
def quiet(*, python_warnings: bool = True) -> Iterator[None]:
    """Silence notes and progress bars of transformers and its company.

    ``python_warnings`` includes those of Python's warnings module, which whoever loads a model can
    do nothing about.
    """
    from transformers.utils import logging as untyped

    transformers_logging: Any = untyped

    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    hub.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            if python_warnings:
                warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        hub.setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()
