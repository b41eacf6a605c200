"""What people answer about rows: the column of a true label, and the word for "cannot tell"."""

from __future__ import annotations

__all__ = ["ANSWER", "UNSURE"]

ANSWER = "true_label"
UNSURE = "?"
