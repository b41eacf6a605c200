"""Completions of prompts: reading, joining, tokenising, and greedy generation by a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from probekit.activations.checkpoint import Checkpoint
from probekit.activations.encoding import longest_whole, opening_token, shortened
from probekit.activations.quiet import quiet
from probekit.data import Rows
from probekit.errors import DataError, LabelsError, ModelError, UsageError, first_few
from probekit.joins import find_ids
from probekit.output_tables import save_table
from probekit.safe import repaired
from probekit.sources import read_table
from probekit.students.language_model import IGNORED, Tokens

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "CompletionRows",
    "Completions",
    "Speller",
    "completion_rows",
    "exact_match",
    "load_completions",
    "prompts_of",
    "write_greedily",
]

FORMAT = "probekit-completions"
VERSION = 1


@dataclass(frozen=True, eq=False)
class Completions:
    """One completion per row, n rows: a model's, or the truth."""

    ids: Sequence[str]
    """n row ids, each once."""
    hashes: Sequence[str]
    """n text hashes of the prompts."""
    texts: Sequence[str]
    """n completions, white space at the ends removed."""
    logprob: NDArray[np.float64]
    """Mean log-probability of the tokens (n,); NaN if no model wrote them."""
    source: str = "completions"
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def fingerprint(self) -> str:
        """16 hex digits over ids, hashes and completions."""
        return _fingerprint(self.ids, self.hashes, self.texts)

    def of(self, rows: Rows) -> list[str]:
        """Return the completions of ``rows``, in their order.

        Raises
        ------
        LabelsError
            If a row has no completion, or one of another text.
        """
        position = {name: i for i, name in enumerate(self.ids)}
        missing = [name for name in rows.ids if name not in position]
        if missing:
            raise LabelsError(
                f"{self.source} has no completion for {len(missing)} of {len(rows)} rows of "
                f"{rows.source} (ids {first_few(missing)}); complete these rows first."
            )
        order = [position[name] for name in rows.ids]
        other = [
            name
            for name, digest, i in zip(rows.ids, rows.hashes, order, strict=True)
            if self.hashes[i] != digest
        ]
        if other:
            raise LabelsError(
                f"{self.source} has another text than {rows.source} in {len(other)} of {len(rows)} "
                f"rows (ids {first_few(other)}); use completions of these rows."
            )
        return [self.texts[i] for i in order]

    def save(self, path: str | Path) -> None:
        """Write Parquet or JSONL: id, text_hash, completion, logprob."""
        columns = {
            "id": list(self.ids),
            "text_hash": list(self.hashes),
            "completion": list(self.texts),
            "logprob": self.logprob,
        }
        save_table(columns, path, FORMAT, VERSION, provenance=dict(self.provenance))


def load_completions(path: str | Path) -> Completions:
    """Read what :meth:`Completions.save` wrote, or any table with id, text_hash and completion.

    Raises
    ------
    LabelsError
        If a column is missing or an id is not unique.
    """
    columns = read_table(path).columns
    missing = [name for name in ("id", "text_hash", "completion") if name not in columns]
    if missing:
        raise LabelsError(
            f"{path} has no column {missing[0]!r}; completions have id, text_hash and completion, "
            f"it has {', '.join(columns)}."
        )
    ids = find_ids(columns, source=str(path), error=LabelsError).ids
    if len(set(ids)) < len(ids):
        raise LabelsError(f"{path} has ids more than once; give each row one completion.")
    logprob = columns.get("logprob")
    return Completions(
        ids=ids,
        hashes=[str(value) for value in columns["text_hash"][:]],
        texts=[repaired(str(value)).strip() for value in columns["completion"][:]],
        logprob=np.array(
            [np.nan] * len(ids) if logprob is None else list(logprob[:]), dtype=np.float64
        ),
        source=str(path),
    )


@dataclass(frozen=True, eq=False)
class CompletionRows:
    """Training rows of a generative model: prompts and completions, and no other column."""

    ids: Sequence[str]
    hashes: Sequence[str]
    prompts: Sequence[str]
    completions: Sequence[str]
    """Completions to learn; may be empty if a supervisor wrote nothing."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def fingerprint(self) -> str:
        """16 hex digits over ids, hashes and completions."""
        return _fingerprint(self.ids, self.hashes, self.completions)


def _fingerprint(*columns: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps([list(each) for each in columns]).encode()).hexdigest()[:16]


def completion_rows(rows: Rows, targets: Completions | None = None) -> CompletionRows:
    """Join prompts with completions.

    Parameters
    ----------
    rows
        Prompts in the column text.
    targets
        A supervisor's completions, joined by id and text hash; the rows' own column
        ``completion``, the truth, is then not read. None: that column.

    Raises
    ------
    LabelsError
        If a row has no completion.
    """
    prompts = prompts_of(rows)
    if targets is None:
        if "completion" not in rows.columns:
            raise LabelsError(
                f"{rows.source} has no column 'completion' to learn; it has "
                f"{', '.join(rows.columns)}."
            )
        written = list(rows.columns["completion"][:])
        bad = [
            name
            for name, text in zip(rows.ids, written, strict=True)
            if not isinstance(text, str) or not text.strip()
        ]
        if bad:
            raise LabelsError(
                f"{rows.source} has {len(bad)} rows whose completion is empty or not text (ids "
                f"{first_few(bad)}); fill or remove them."
            )
        completions = [repaired(str(text)).strip() for text in written]
    else:
        completions = targets.of(rows)
    return CompletionRows(list(rows.ids), list(rows.hashes), prompts, completions)


def prompts_of(rows: Rows) -> list[str]:
    """Return the texts of the rows, which must be one text each."""
    if rows.kind != "text":
        raise LabelsError(
            f"{rows.source} holds rows of kind {rows.kind!r}; a prompt to complete is one text "
            "(column text)."
        )
    return [str(content) for content in rows.contents()]


def exact_match(predicted: Completions, rows: Rows) -> NDArray[np.bool_]:
    """Return whether each completion equals the row's own, up to white space at the ends (n,).

    In the order of ``rows``, whose column ``completion`` has the truth.
    """
    truth = completion_rows(rows)
    written = predicted.of(rows)
    return np.array([a.strip() == b for a, b in zip(written, truth.completions, strict=True)])


@dataclass(frozen=True)
class Written:
    """A completion and the mean log-probability of its tokens, the end included."""

    text: str
    logprob: float


class Speller:
    """Turns prompts and completions into tokens, always in the same way.

    A completion follows its prompt after one space and ends with the end-of-sequence token. Both
    are tokenised separately, so that training and generation see the same tokens.

    Raises
    ------
    ModelError
        If the tokenizer has no end-of-sequence token.
    """

    def __init__(self, checkpoint: Checkpoint, max_length: int | None) -> None:
        self.tokenizer: Any = checkpoint.tokenizer
        self.max_length = checkpoint.length(max_length)
        self.pad_id = checkpoint.pad_id
        if self.tokenizer.eos_token_id is None:
            raise ModelError(
                f"The tokenizer of {checkpoint.label} has no end-of-sequence token, so a model "
                "could not learn where a completion ends; take another model."
            )
        self.end: int = self.tokenizer.eos_token_id
        self.opening = opening_token(self.tokenizer)

    def prompts(self, texts: Sequence[str], *, room: int) -> list[list[int]]:
        """Return token ids of prompts; of a long one the last that leave ``room`` for a completion.

        A prompt that begins with the token which the tokenizer adds has it once.
        """
        return [ids for ids, _ in self._prompts(texts, room=room)]

    def _prompts(self, texts: Sequence[str], *, room: int) -> list[tuple[list[int], bool]]:
        """Return token ids of prompts, and whether they were cut."""
        limit = None if self.max_length is None else self.max_length - room
        if limit is not None and limit < 1:
            raise UsageError(
                f"Completions take {room} tokens, which leaves no room for a prompt in "
                f"{self.max_length}; raise --max-length or shorten the completions."
            )
        ends = [self._end_of(text, limit) for text in texts]
        result = []
        for text, end, ids in zip(texts, ends, self._ids(ends, special=True), strict=True):
            while len(ids) > 1 and ids[-1] == self.end:
                ids.pop()  # some tokenizers close every text
            if self.opening is not None and ids[:2] == [self.opening] * 2:
                del ids[1]
            kept = ids if limit is None else self._shortened(ids, limit)
            result.append((kept, len(kept) < len(ids) or len(end) < len(text)))
        empty = [text for text, (ids, _) in zip(texts, result, strict=True) if not ids]
        if empty:
            raise DataError(
                f"{len(empty)} prompts have no token ({first_few(empty)}): the tokenizer drops all "
                "that is in them; remove them."
            )
        return result

    def completions(self, texts: Sequence[str]) -> list[list[int]]:
        """Return token ids of completions, with the space before and the end token."""
        spaced = [t if self._adds_space else f" {t}" for t in texts]
        encoded = self._ids(spaced, special=False)
        return [[*(ids if t else []), self.end] for ids, t in zip(encoded, texts, strict=True)]

    def rows(self, rows: CompletionRows) -> list[Tokens]:
        """Return training rows, with labels only on the completion and its end."""
        completions = self.completions(rows.completions)
        prompts = self._prompts(rows.prompts, room=max(map(len, completions)))
        return [
            Tokens([*prompt, *ids], [*[IGNORED] * len(prompt), *ids], truncated=cut)
            for (prompt, cut), ids in zip(prompts, completions, strict=True)
        ]

    def text(self, ids: Sequence[int]) -> str:
        """Decode token ids into a completion, white space at the ends removed."""
        written = list(ids)
        if self.end in written:
            written = written[: written.index(self.end)]
        text: str = self.tokenizer.decode(written, skip_special_tokens=True)
        return text.strip()

    def _end_of(self, text: str, limit: int | None) -> str:
        """Return the text, or of a very long one an end with the same last tokens."""
        if limit is None or len(text) <= longest_whole(limit):
            return text
        return shortened(text, limit, lambda part: self._ids([part], special=False)[0], side="left")

    def _shortened(self, ids: list[int], limit: int) -> list[int]:
        """Return the last tokens, after the one that the tokenizer adds."""
        if len(ids) <= limit or ids[0] not in (self.opening, self.tokenizer.bos_token_id):
            return ids[-limit:]
        return [ids[0], *ids[len(ids) - limit + 1 :]]

    @property
    def _adds_space(self) -> bool:
        # SentencePiece puts a space before every text; a second one would be a separate token.
        ids = self._ids(["a"], special=False)[0]
        return str(self.tokenizer.convert_ids_to_tokens(ids)[0]).startswith("▁")

    def _ids(self, texts: list[str], *, special: bool) -> list[list[int]]:
        encoding = self.tokenizer(
            texts, add_special_tokens=special, return_attention_mask=False, verbose=False
        )
        ids: list[list[int]] = encoding["input_ids"]
        return ids


def write_greedily(
    model: Any,
    speller: Speller,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int = 32,
) -> list[Written]:
    """Complete every prompt by the most probable next token, until the end or ``max_new_tokens``.

    Prompts of similar length are batched, padded on the left; results are in the prompts' order.
    """
    ids = speller.prompts(prompts, room=max_new_tokens)
    order = sorted(range(len(ids)), key=lambda position: len(ids[position]))
    results: dict[int, Written] = {}
    before = model.training, model.generation_config
    model.eval()
    model.generation_config = _greedy(speller, max_new_tokens)
    try:
        with torch.inference_mode(), quiet():
            for start in range(0, len(order), batch_size):
                positions = order[start : start + batch_size]
                batch = _write_batch(model, speller, [ids[position] for position in positions])
                results.update(zip(positions, batch, strict=True))
    finally:
        model.generation_config = before[1]
        model.train(before[0])
    return [results[position] for position in range(len(ids))]


def _greedy(speller: Speller, max_new_tokens: int) -> Any:
    """Return all settings of generation: a model's own may sample or penalise repetition."""
    import transformers

    make: Any = transformers.GenerationConfig
    return make(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        eos_token_id=speller.end,
        pad_token_id=speller.pad_id,
        return_dict_in_generate=True,
        output_logits=True,
    )


def _write_batch(model: Any, speller: Speller, rows: Sequence[Sequence[int]]) -> list[Written]:
    device = next(model.parameters()).device
    width = max(map(len, rows))
    ids = torch.tensor([[*[speller.pad_id] * (width - len(row)), *row] for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    out = model.generate(input_ids=ids.to(device), attention_mask=mask.to(device))
    new = out.sequences[:, width:]
    steps = [
        torch.log_softmax(logits.float(), -1).gather(1, new[:, i : i + 1].to(logits.device))
        for i, logits in enumerate(out.logits)
    ]
    logprobs = torch.cat(steps, 1).double().cpu().numpy()
    written = []
    for tokens, row in zip(new.tolist(), logprobs, strict=True):
        n_tokens = tokens.index(speller.end) + 1 if speller.end in tokens else len(tokens)
        written.append(Written(speller.text(tokens[:n_tokens]), float(np.mean(row[:n_tokens]))))
    return written
