"""Import and run transformers and the libraries around it without their noise."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Importing torch and transformers creates some million objects that stay. Looking through them
# again and again takes a sixth of the time to the first batch of an extraction.
THRESHOLD = 100_000


@contextmanager
def quiet(*, python_warnings: bool = True) -> Iterator[None]:
    """Silence messages and progress bars of transformers and the Hugging Face hub.

    ``python_warnings`` also silences Python's warnings, which a user cannot act on.
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


@contextmanager
def rare_collection() -> Iterator[None]:
    """Collect garbage seldom. For imports only: batches may leave cycles that hold tensors."""
    usual = gc.get_threshold()
    gc.set_threshold(max(THRESHOLD, usual[0]) if usual[0] else 0, *usual[1:])
    try:
        yield
    finally:
        gc.set_threshold(*usual)
