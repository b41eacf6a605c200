"""Write rows of a store that another process has created."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from probekit.activations.create import Plan, open_to_write, sync
from probekit.activations.notes import COLUMNS, new_notes
from probekit.activations.writer import StoreWriter

__all__ = ["MemberWriter"]


class MemberWriter(StoreWriter):
    """Writes states into the leader's store, and notes in a file beside it which rows are done.

    States of different rows are different bytes, so several processes may write them at once. Only
    the leader writes the shared columns, from these notes.
    """

    def __init__(self, path: Path, plan: Plan, rank: int) -> None:
        super().__init__(open_to_write(path), path, plan, None)
        self._notes = new_notes(path, rank, self._columns)
        offset = 0
        for name in COLUMNS:
            self._places[name] = offset
            offset += self._columns[name].nbytes

    def finish(self) -> None:
        """Note the rows as done; the leader finishes the store."""
        self.flush()

    def close(self) -> None:
        """Flush and close the store."""
        try:
            super().close()
        finally:
            self._notes.close()

    def _column_file(self) -> BinaryIO:
        return self._notes

    def _sync(self) -> None:
        super()._sync()
        sync(self._notes)
