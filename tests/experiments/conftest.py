from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

ANIMALS = ["a small cat", "the cats sleep", "one cat and a mouse", "cat", "my cat is old"]
TOOLS = ["a steel hammer", "hammers and nails", "the hammer fell", "hammer", "an old hammer broke"]


@pytest.fixture
def animals_and_tools(write_jsonl: Callable[..., Path]) -> Callable[..., Path]:
    """Function that writes n rows about cats (0) and hammers (1); a seventh is labelled wrongly."""

    def write(n: int = 240, name: str = "rows.jsonl") -> Path:
        return write_jsonl(
            [
                {
                    "id": f"r{i}",
                    "text": f"{(ANIMALS, TOOLS)[i % 2][i // 2 % 5]} {i}",
                    "label": i % 2 if i % 7 else 1 - i % 2,
                }
                for i in range(n)
            ],
            name,
        )

    return write
