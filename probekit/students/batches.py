"""Training rows as token ids, padded batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from probekit.activations.batching import Encoded, pad
from probekit.activations.checkpoint import Checkpoint
from probekit.activations.encoding import Encoder
from probekit.data import Content
from probekit.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["TokenRows", "collate", "encode_rows"]


class TokenRows(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows as token ids, with what is trained on beside them.

    Items have ``input_ids`` (the Trainer measures these to group lengths), for pairs of completions
    those of both, and where given ``targets`` (C,) and ``weight``. ``truncated`` counts the rows
    that had more tokens than are read.
    """

    def __init__(
        self,
        parts: Sequence[Encoded],
        Y: NDArray[np.float64] | None,
        weight: NDArray[np.float64] | None,
    ) -> None:
        self.parts = parts
        self._targets = None if Y is None else Y.astype(np.float32)
        self._weight = None if weight is None else weight.astype(np.float32)
        self.lengths = np.max([part.lengths for part in parts], axis=0)
        self.truncated = int(np.any([part.truncated for part in parts], axis=0).sum())

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        # A range stands for the ids where only their number is asked for.
        item: dict[str, Any] = {"input_ids": range(int(self.lengths[index])), "place": index}
        item["rows"] = self
        if self._targets is not None:
            item["targets"] = self._targets[index]
        if self._weight is not None:
            item["weight"] = self._weight[index]
        return item


def encode_rows(
    checkpoint: Checkpoint,
    contents: Sequence[Content],
    ids: Sequence[str],
    *,
    kind: str,
    max_length: int | None,
    reward: bool = False,
    Y: NDArray[np.float64] | None = None,
    weight: NDArray[np.float64] | None = None,
) -> TokenRows:
    """Encode n rows as ``probekit extract`` does; with ``reward`` both texts of a pair alone.

    Raises
    ------
    DataError
        Where the objective is reward and the rows are no pairs.
    """
    if not reward:
        texts: list[list[Content]] = [list(contents)]
    elif kind == "pair":
        texts = [[str(pair[side]) for pair in contents] for side in (0, 1)]
        kind = "text"
    else:
        raise DataError(
            f"Reward modelling compares two texts, in columns text and text_pair; these rows are "
            f"of kind {kind}."
        )
    encoder = Encoder(checkpoint.tokenizer, kind=kind, max_length=checkpoint.length(max_length))
    return TokenRows([encoder.encode(part, ids) for part in texts], Y, weight)


def collate(items: Sequence[dict[str, Any]], pad_id: int) -> dict[str, torch.Tensor]:
    """Pad rows on the right; of pairs first and second text lie one behind the other."""
    rows: TokenRows = items[0]["rows"]
    places = np.array([item["place"] for item in items])
    sides = [pad(part, places, pad_id=pad_id) for part in rows.parts]
    width = max(ids.shape[1] for ids, _, _ in sides)

    def joined(arrays: Sequence[Any], filler: int) -> torch.Tensor:
        wide = [
            np.pad(
                array.astype(np.int64),
                ((0, 0), (0, width - array.shape[1])),
                constant_values=filler,
            )
            for array in arrays
        ]
        return torch.from_numpy(np.stack(wide, axis=1).reshape(-1, width))

    batch = {
        "input_ids": joined([ids for ids, _, _ in sides], pad_id),
        "attention_mask": joined(
            [np.ones_like(ids) if mask is None else mask for ids, mask, _ in sides], 0
        ),
    }
    if any(types is not None for _, _, types in sides):
        batch["token_type_ids"] = joined(
            [np.zeros_like(ids) if types is None else types for ids, _, types in sides], 0
        )
    for name in ("targets", "weight"):
        if name in items[0]:
            batch[name] = torch.from_numpy(np.stack([item[name] for item in items]))
    return batch
