"""Write rows of a store that another process leads."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from probekit.activations.create import Plan, open_to_write, sync
from probekit.activations.notes import COLUMNS, new_notes
from probekit.activations.writer import StoreWriter

__all__ = ["MemberWriter"]


class MemberWriter(StoreWriter):
    """Writes states into a store that its leader holds, and notes beside it which rows are done.

    States of different rows are different bytes, so several processes may write them at once. The
    columns that all share are the leader's, who takes the notes over.
    """

    def __init__(self, path: Path, plan: Plan, rank: int) -> None:
        super().__init__(open_to_write(path), path, plan, None)
        self._notes = new_notes(path, rank, self._columns)
        start = 0
        for name in COLUMNS:
            self._places[name] = start
            start += self._columns[name].nbytes

    def finish(self) -> None:
        """Mark the rows done; the leader finishes the store."""
        self.flush()

    def close(self) -> None:
        """Flush and let the store go."""
        try:
            super().close()
        finally:
            self._notes.close()

    def _column_file(self) -> BinaryIO:
        return self._notes

    def _sync(self) -> None:
        super()._sync()
        sync(self._notes)
