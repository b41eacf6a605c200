"""A model with its language-model head, texts as tokens, and its perplexity on them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from probekit.activations.batching import Buckets
from probekit.activations.checkpoint import Checkpoint, open_checkpoint, why
from probekit.activations.encoding import Encoder
from probekit.activations.quiet import quiet
from probekit.data import Rows
from probekit.errors import DataError, ModelError, UsageError
from probekit.groups import duplicate_groups
from probekit.students.config import FinetuneConfig

__all__ = [
    "IGNORED",
    "LanguageModel",
    "Tokens",
    "collate",
    "hide_some",
    "open_language_model",
    "perplexity",
    "split_held_out",
    "text_tokens",
]

IGNORED = -100
"""Label of a token without a loss, as in transformers."""

HIDDEN_SHARE = 0.15
HELD_OUT_SHARE, MAX_HELD_OUT, MIN_ROWS = 0.05, 500, 40
HEADS = {"causal": "AutoModelForCausalLM", "masked": "AutoModelForMaskedLM"}
HEAD_NAMES = {"causal": "language-model head", "masked": "masked-LM head"}


@dataclass(frozen=True)
class Tokens:
    """One row: m token ids, and the label of each (its id, or IGNORED)."""

    ids: Sequence[int]
    labels: Sequence[int]
    types: Sequence[int] | None = None
    """Token types of a pair."""
    truncated: bool = False
    """Whether the text had more tokens than are read."""


@dataclass(frozen=True)
class LanguageModel:
    """A model that predicts tokens; its weights are not loaded yet."""

    checkpoint: Checkpoint
    kind: str
    """``causal`` (predicts the next token) or ``masked`` (predicts hidden ones)."""
    trust_remote_code: bool = False

    def load(self, *, frozen: bool = False) -> Any:
        """Load the model with the head that it was pretrained with.

        In float32, as steps are small; a frozen base keeps its own dtype.

        Raises
        ------
        ModelError
            If its weights were saved without that head.
        """
        import transformers

        checkpoint = self.checkpoint
        options = checkpoint.loading_options(checkpoint.dtype if frozen else torch.float32)
        auto: Any = getattr(transformers, HEADS[self.kind])
        with quiet():
            try:
                model, info = auto.from_pretrained(
                    checkpoint.name, trust_remote_code=self.trust_remote_code, **options
                )
            except (
                Exception
            ) as error:  # safetensors, accelerate and the hub raise types of their own
                raise ModelError(f"{checkpoint.label} cannot be loaded: {why(error)}") from error
        if missing := sorted(info["missing_keys"]):
            raise ModelError(
                f"{checkpoint.label} was saved without its {HEAD_NAMES[self.kind]} ({missing[0]} "
                "is missing), so a language-model loss would train random weights; take a "
                "checkpoint that has one."
            )
        return model


def open_language_model(config: FinetuneConfig, *, only_causal: bool = False) -> LanguageModel:
    """Open ``config.model`` and determine how it predicts tokens.

    Parameters
    ----------
    config
        Its model (may end in ``@layers=K``), revision and trust_remote_code are used.
    only_causal
        Whether to raise ModelError unless the model writes text from left to right.

    Raises
    ------
    ModelError
        If models of its kind have no language-model head.
    """
    trust = config.trust_remote_code
    checkpoint = open_checkpoint(config.model, revision=config.revision, trust_remote_code=trust)
    kind = _kind(checkpoint)
    if only_causal and kind != "causal":
        raise ModelError(
            f"{checkpoint.label} reads both ways and cannot write a completion; take a decoder."
        )
    if kind == "masked" and checkpoint.tokenizer.mask_token_id is None:
        raise ModelError(
            f"The tokenizer of {checkpoint.label} has no mask token, which masked-LM loss needs; "
            "take a decoder or another encoder."
        )
    return LanguageModel(checkpoint, kind, trust)


def _kind(checkpoint: Checkpoint) -> str:
    if getattr(checkpoint.config, "is_encoder_decoder", False):
        raise ModelError(
            f"{checkpoint.label} is an encoder-decoder, for which a language-model loss on texts "
            "is not defined here; take a decoder, or an encoder with a masked-LM head."
        )
    try:
        return "causal" if checkpoint.causal else "masked"
    except UsageError:
        raise ModelError(
            f"{checkpoint.label} ({checkpoint.config.model_type}) is not known to have a "
            "language-model head; take a decoder, or an encoder with a masked-LM head."
        ) from None


def collate(
    rows: Sequence[Tokens], pad_id: int, buckets: Buckets | None = None
) -> dict[str, torch.Tensor]:
    """Pad rows on the right: input_ids, attention_mask, labels, each (B, width).

    ``buckets``: to one of few widths; else to the longest row.
    """
    width = max(len(row.ids) for row in rows)
    width = width if buckets is None else buckets.width(width)

    def padded(parts: Sequence[Sequence[int]], value: int) -> torch.Tensor:
        return torch.tensor([[*part, *[value] * (width - len(part))] for part in parts])

    batch = {
        "input_ids": padded([row.ids for row in rows], pad_id),
        "attention_mask": padded([[1] * len(row.ids) for row in rows], 0),
        "labels": padded([row.labels for row in rows], IGNORED),
    }
    if any(row.types is not None for row in rows):
        batch["token_type_ids"] = padded([row.types or [0] * len(row.ids) for row in rows], 0)
    return batch


def perplexity(
    model: Any,
    rows: Sequence[Tokens],
    *,
    pad_id: int,
    shifted: bool,
    batch_size: int = 32,
    autocast: AbstractContextManager[Any] | None = None,
) -> float:
    """Return exp of the mean negative log-probability of the labelled tokens.

    The mean is over tokens, not rows. ``shifted``: a label is predicted from the position before.
    """
    device = next(model.parameters()).device
    total, n_tokens, training = 0.0, 0, model.training
    model.eval()
    with torch.inference_mode(), autocast or nullcontext():
        for start in range(0, len(rows), batch_size):
            batch = collate(rows[start : start + batch_size], pad_id)
            labels = batch.pop("labels").to(device)
            logits = model(**{name: part.to(device) for name, part in batch.items()}).logits
            if shifted:
                logits, labels = logits[:, :-1], labels[:, 1:]
            kept = labels != IGNORED
            loss = torch.nn.functional.cross_entropy(
                logits[kept].float(), labels[kept], reduction="sum"
            )
            total, n_tokens = total + float(loss), n_tokens + int(kept.sum())
    model.train(training)
    # A model that has diverged may be so wrong that exp overflows.
    return math.exp(min(total / n_tokens, 700.0)) if n_tokens else float("nan")


def text_tokens(language: LanguageModel, rows: Rows, max_length: int | None) -> list[Tokens]:
    """Encode texts, pairs or chat messages; rows without a token to predict are left out.

    Causal: every token but the first is predicted. Masked: every token but the special ones may be
    hidden.
    """
    checkpoint = language.checkpoint
    tokenizer = checkpoint.tokenizer
    encoder = Encoder(tokenizer, kind=rows.kind, max_length=checkpoint.length(max_length))
    encoded = encoder.encode(rows.contents(), rows.ids)
    ends = np.cumsum(encoded.lengths)[:-1]
    parts = [part.tolist() for part in np.split(encoded.flat, ends)]
    types: Sequence[Any] = [None] * len(parts)
    if encoded.types is not None:
        types = [part.tolist() for part in np.split(encoded.types, ends)]
    result = []
    special = set(tokenizer.all_special_ids)
    for ids, row_types, cut in zip(parts, types, encoded.truncated.tolist(), strict=True):
        if language.kind == "causal":
            labels = [IGNORED, *ids[1:]]
        else:
            labels = [IGNORED if token in special else token for token in ids]
        if any(label != IGNORED for label in labels):
            result.append(Tokens(ids, labels, row_types, cut))
    if not result:
        raise DataError(
            f"{rows.source} has no row with a token to predict: each is one token or special ones "
            "only; give it longer texts."
        )
    return result


def split_held_out(rows: Rows, *, seed: int) -> tuple[Rows, Rows | None]:
    """Hold out 5 % of the rows (at most 500), none if there are fewer than 40.

    Copies of a text and rows of a group stay together.
    """
    n_held_out = min(int(HELD_OUT_SHARE * len(rows)), MAX_HELD_OUT)
    if len(rows) < MIN_ROWS:
        return rows, None
    numbers = duplicate_groups(hashes=rows.hashes, groups=rows.groups)
    first: dict[int, str] = {}
    for number, digest in zip(numbers.tolist(), rows.hashes, strict=True):
        first[number] = min(first.get(number, digest), digest)
    groups: dict[str, list[int]] = {}
    for position, number in enumerate(numbers.tolist()):
        groups.setdefault(first[number], []).append(position)
    held_out: set[int] = set()
    for digest in sorted(groups, key=lambda d: hashlib.sha256(f"{seed}\x1f{d}".encode()).digest()):
        if len(held_out) + len(groups[digest]) <= n_held_out:
            held_out.update(groups[digest])
    if not held_out:
        return rows, None
    rest = [position for position in range(len(rows)) if position not in held_out]
    return rows.select(rest), rows.select(sorted(held_out))


def hide_some(
    row: Tokens, *, mask_id: int, vocabulary: int, generator: torch.Generator | None = None
) -> Tokens:
    """Hide 15 % of the tokens with a label, at least one, and label only these.

    Of these, 80 % become the mask, 10 % a random token, 10 % stay (Devlin et al. 2019,
    https://arxiv.org/abs/1810.04805).
    """
    draws = torch.rand(len(row.ids), 2, generator=generator)
    replacements = torch.randint(vocabulary, (len(row.ids),), generator=generator).tolist()
    chance, kind = draws.T.tolist()
    candidates = [i for i, label in enumerate(row.labels) if label != IGNORED]
    hidden = {i for i in candidates if chance[i] < HIDDEN_SHARE}
    hidden = hidden or {min(candidates, key=chance.__getitem__)}
    ids = list(row.ids)
    for i in hidden:
        if kind[i] < 0.9:
            ids[i] = mask_id if kind[i] < 0.8 else replacements[i]
    labels = [label if i in hidden else IGNORED for i, label in enumerate(row.labels)]
    return Tokens(ids, labels, row.types, row.truncated)
