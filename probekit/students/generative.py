"""Generative finetuning: a language-model loss on texts, or on completions of prompts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from probekit.activations.checkpoint import tokenizer_fingerprint
from probekit.activations.quiet import quiet
from probekit.data import Rows
from probekit.errors import DataError, UsageError
from probekit.students.classifier import with_adapters
from probekit.students.completion import (
    CompletionRows,
    Completions,
    Speller,
    load_completions,
    prompts_of,
    write_greedily,
)
from probekit.students.config import FinetuneConfig
from probekit.students.folder import Folder, check_names, new_model, plain_settings
from probekit.students.language_model import (
    LanguageModel,
    Tokens,
    collate,
    hide_some,
    open_language_model,
    perplexity,
    split_held_out,
    text_tokens,
)
from probekit.students.trainer import (
    FiniteTrainer,
    buckets_of,
    check_finite_weights,
    precision_of,
    total_steps,
    wait_for_all,
)

__all__ = ["Completed", "finetune_completion", "finetune_lm"]


@dataclass(frozen=True, eq=False)
class Completed:
    """A model trained on completions, and the completions that it wrote."""

    folder: Path
    model: Path | None
    """Folder of the model; None if it was not saved."""
    predictions: dict[str, Completions] = field(default_factory=dict)
    """Greedy completions of each of ``predict``; also ``predictions/<name>.parquet``."""
    metrics: Mapping[str, Any] = field(default_factory=dict)


def finetune_lm(
    config: FinetuneConfig,
    rows: Rows,
    output: str | Path,
    *,
    validation: Rows | None = None,
    resume: bool = True,
    overwrite: bool = False,
) -> Path:
    """Train a language model on texts, without labels, and save it as a new base model.

    Decoders are trained on the next token, encoders on hidden tokens. ``metrics.json`` has the
    perplexity on held-out texts before and after.

    Parameters
    ----------
    config
        Settings; loss, pool and early stopping are not used.
    rows
        Texts, pairs or messages; no other column is read.
    output
        Folder. The same run in it is resumed, or reused if it is finished.
    validation
        Held-out texts; None: 5 % of the rows, which are not trained on.
    resume
        False: start again.
    overwrite
        Replace a finished or another training in the folder once the new one is complete.

    Returns
    -------
    Folder of the new model: configuration, tokenizer, safetensors.

    Raises
    ------
    ModelError
        If the model has no language-model head, or the loss is not finite.
    OutputExistsError
        If the folder holds another run or other files.
    """
    language = open_language_model(config)
    settings = {
        **_settings("lm", config, language),
        "rows": rows.fingerprint,
        "validation": None if validation is None else validation.fingerprint,
    }
    with Folder.claim(Path(output), settings, resume=resume, overwrite=overwrite) as folder:
        if folder.metrics is None:
            held_out_rows = validation
            if validation is None:
                rows, held_out_rows = split_held_out(rows, seed=config.seed)
            train = text_tokens(language, rows, config.max_length)
            held_out = _held_out_tokens(language, held_out_rows, config.max_length)
            metrics = _train(config, language, train, folder, held_out=held_out)
            folder.finish({"objective": "lm", "kind": language.kind, **metrics})
            wait_for_all()
    return Path(output) / "model"


def finetune_completion(
    config: FinetuneConfig,
    rows: CompletionRows,
    output: str | Path,
    *,
    predict: Mapping[str, Rows] | None = None,
    max_new_tokens: int | None = None,
    resume: bool = True,
    overwrite: bool = False,
) -> Completed:
    """Train a decoder to complete prompts, and complete others greedily with it.

    The loss is the mean over the completion's tokens and its end.

    Parameters
    ----------
    config
        Settings, as for :func:`finetune_lm`; ``save="none"`` saves no model.
    rows
        Prompts and completions, from :func:`completion_rows`: the truth, or a supervisor's.
    output
        Folder, as for :func:`finetune_lm`.
    predict
        Prompts by name; only columns id and text are read.
    max_new_tokens
        Maximum length of a completion; None: that of the longest training completion.
    resume
        False: start again.
    overwrite
        Replace a finished or another training in the folder once the new one is complete.

    Raises
    ------
    ModelError
        If the model is not a decoder, its tokenizer has no end token, or the loss is not finite.
    OutputExistsError
        If the folder holds another run or other files.
    """
    predict = predict or {}
    check_names(predict)
    if not len(rows):
        raise DataError("There is no row to train on; give at least one prompt and completion.")
    language = open_language_model(config, only_causal=True)
    speller = Speller(language.checkpoint, config.max_length)
    settings = {
        **_settings("completion", config, language),
        "rows": rows.fingerprint,
        "predict": {name: each.fingerprint for name, each in predict.items()},
        "max_new_tokens": max_new_tokens,
    }
    with Folder.claim(Path(output), settings, resume=resume, overwrite=overwrite) as folder:
        if folder.metrics is None:
            train = speller.rows(rows)
            longest = max_new_tokens or max(map(len, speller.completions(rows.completions)))

            def write(model: Any) -> None:
                for name, each in predict.items():
                    written = _complete(model, speller, each, longest, config.batch_size)
                    path = folder.work / "predictions" / f"{name}.parquet"
                    path.parent.mkdir(exist_ok=True)
                    replace(written, provenance={"run": folder.key}).save(path)

            metrics = _train(config, language, train, folder, use=write, keep=config.save != "none")
            folder.finish({"objective": "completion", **metrics})
            wait_for_all()
        paths = {name: folder.path / "predictions" / f"{name}.parquet" for name in predict}
        model = folder.path / "model"
        return Completed(
            folder=Path(output),
            model=Path(output) / "model" if model.is_dir() else None,
            predictions={name: load_completions(path) for name, path in paths.items()},
            metrics=folder.metrics or {},
        )


def _complete(
    model: Any, speller: Speller, rows: Rows, max_new_tokens: int, batch_size: int
) -> Completions:
    written = write_greedily(
        model, speller, prompts_of(rows), max_new_tokens=max_new_tokens, batch_size=batch_size
    )
    return Completions(
        ids=list(rows.ids),
        hashes=list(rows.hashes),
        texts=[each.text for each in written],
        logprob=np.array([each.logprob for each in written]),
    )


def _settings(objective: str, config: FinetuneConfig, language: LanguageModel) -> dict[str, Any]:
    """Return what affects the result besides the rows; the model counts by its weights."""
    if config.save == "adapter":
        raise UsageError(
            "A language model is saved whole, its adapters merged; set save to model or none."
        )
    return {
        "objective": objective,
        "config": plain_settings(config),
        "weights": language.checkpoint.weights,
        "tokenizer": tokenizer_fingerprint(language.checkpoint.tokenizer),
    }


def _train(
    config: FinetuneConfig,
    language: LanguageModel,
    rows: Sequence[Tokens],
    folder: Folder,
    *,
    held_out: Sequence[Tokens] = (),
    use: Callable[[Any], None] | None = None,
    keep: bool = True,
) -> dict[str, Any]:
    """Train, measure, use and save a model; return the metrics."""
    started, checkpoint = time.perf_counter(), language.checkpoint
    loaded = language.load(frozen=config.lora)
    use_cache = loaded.config.use_cache if hasattr(loaded.config, "use_cache") else None
    model = with_adapters(loaded, checkpoint, config) if config.lora else loaded
    buckets = buckets_of(config, checkpoint.position_limit)
    trainer = FiniteTrainer(
        config,
        folder.work,
        config.every(total_steps(config, len(rows))),
        model=model,
        rows=_Dataset(rows),
        # Of a masked model other tokens are hidden each time, by torch's global generator.
        collator=lambda items: collate(
            _to_predict(language, [item["row"] for item in items]),
            checkpoint.pad_id,
            buckets,
        ),
    )

    def measure() -> float | None:
        if not held_out:
            return None
        return perplexity(
            trainer.model,
            held_out,
            pad_id=checkpoint.pad_id,
            shifted=language.kind == "causal",
            batch_size=config.batch_size,
            autocast=trainer.accelerator.autocast(),
        )

    before = measure()
    folder.begin()
    with quiet():  # peft and the Trainer warn of each other's deprecated names
        trainer.train(resume_from_checkpoint=folder.last_checkpoint())
    model = cast(Any, trainer.model)
    check_finite_weights(model, checkpoint.label)
    metrics = {
        "dtype": precision_of(config).dtype,
        "rows": len(rows),
        "tokens": sum(len(row.ids) for row in rows),
        "max_length": checkpoint.length(config.max_length),
        "truncated": sum(row.truncated for row in rows),
        "steps": trainer.state.global_step,
        "train_loss": trainer.mean_loss,
        "held_out_rows": len(held_out),
        "perplexity_before": before,
        "perplexity_after": measure(),
        "history": trainer.state.log_history,
    }
    if use_cache is not None:
        loaded.config.use_cache = use_cache
    if trainer.is_world_process_zero():
        if use is not None:
            use(loaded)  # it contains the adapters; their wrapper would hide its generate method
        if keep:
            _save(model.merge_and_unload() if config.lora else model, language, folder.model)
    trainer.accelerator.wait_for_everyone()
    return {**metrics, "seconds": time.perf_counter() - started}


def _held_out_tokens(
    language: LanguageModel, rows: Rows | None, max_length: int | None
) -> list[Tokens]:
    """Return held-out rows as tokens, the hidden ones the same before and after training."""
    if rows is None:
        return []
    generator = torch.Generator().manual_seed(0)
    return _to_predict(language, text_tokens(language, rows, max_length), generator)


def _to_predict(
    language: LanguageModel, rows: Sequence[Tokens], generator: torch.Generator | None = None
) -> list[Tokens]:
    """Return rows with the labels to predict: all, or those hidden from a masked model."""
    if language.kind == "causal":
        return list(rows)
    checkpoint = language.checkpoint
    mask_id, vocabulary = checkpoint.tokenizer.mask_token_id, checkpoint.vocabulary
    return [
        hide_some(row, mask_id=mask_id, vocabulary=vocabulary, generator=generator) for row in rows
    ]


def _save(model: Any, language: LanguageModel, folder: Path) -> None:
    """Write a model folder that every command can load, in the model's original dtype."""
    with new_model(folder, model) as beside, quiet():
        model.to(language.checkpoint.dtype).save_pretrained(beside)
        language.checkpoint.tokenizer.save_pretrained(beside)


class _Dataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows as mappings, for the Trainer."""

    def __init__(self, rows: Sequence[Tokens]) -> None:
        self.rows = rows
        self.lengths = [len(row.ids) for row in rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"row": self.rows[index]}
