"""Fingerprints that tell one model or tokenizer from another, wherever it lies."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from probekit.activations.folder import weight_files
from probekit.errors import ModelError
from probekit.safe import load_json, open_regular, read_json

__all__ = ["folder_weights", "hashed", "loaded_weights", "tokenizer_fingerprint"]

# Up to here every byte is hashed (about a second per GB); above, sizes, headers and samples are.
WHOLE_BYTES = 1 << 28
SAMPLES, SAMPLE_BYTES = 256, 1 << 14
# Keys of config.json that change without changing what the model computes.
INCIDENTAL = ("_name_or_path", "transformers_version")


def hashed(text: str) -> str:
    """16 hex digits of SHA-256."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def folder_weights(folder: Path) -> str:
    """Fingerprint configuration and weights of a local folder, not its name or place.

    Folders up to 256 MB are hashed whole (``sha256:…``); larger ones by their files' names, sizes,
    safetensors headers and 256 samples of 16 kB per file (``sampled:…``).
    """
    files = weight_files(folder)
    whole = sum(file.stat().st_size for file in files) <= WHOLE_BYTES
    digest = hashlib.sha256()
    try:
        config = read_json(folder / "config.json", error=ModelError)
        if not isinstance(config, dict):
            raise ModelError(f"{folder / 'config.json'} is no model's: it holds no JSON object.")
        kept = {k: v for k, v in config.items() if k not in INCIDENTAL}
        digest.update(json.dumps(kept, sort_keys=True).encode())
        for file in files:
            name = file.relative_to(folder).as_posix()
            digest.update(f"\x1e{name}\x1f{file.stat().st_size}\x1f".encode())
            with open_regular(file, error=ModelError) as stream:
                for offset, size in _spans(file.stat().st_size, whole=whole):
                    stream.seek(offset)
                    while size > 0 and (part := stream.read(min(size, 1 << 20))):
                        digest.update(part)
                        size -= len(part)
    except OSError as error:
        raise ModelError(f"{error.filename or folder} cannot be read: {error.strerror}.") from None
    return f"{'sha256' if whole else 'sampled'}:{digest.hexdigest()[:16]}"


def _spans(size: int, *, whole: bool) -> list[tuple[int, int]]:
    if whole:
        return [(0, size)]
    # The header of a safetensors file stands at its start and seldom exceeds a megabyte.
    step = max(1, size // SAMPLES)
    return [(0, 1 << 20), *((i * step, SAMPLE_BYTES) for i in range(1, SAMPLES)), (size - 64, 64)]


def loaded_weights(model: torch.nn.Module) -> str:
    """Fingerprint a model that is in memory: names, shapes, and up to 1,024 numbers per tensor."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"\x1e{name}\x1f{tuple(value.shape)}\x1f{value.dtype}\x1f".encode())
        if value.device.type != "meta":
            flat = value.detach().reshape(-1)
            sample = flat[:: max(1, len(flat) // 1024)].contiguous().cpu()
            digest.update(sample.view(torch.uint8).numpy().tobytes())
    return f"loaded:{digest.hexdigest()[:16]}"


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Fingerprint what a tokenizer does: vocabulary, rules, special tokens, side of truncation."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        rules = load_json(backend.to_str(), "The tokenizer", error=ModelError)
        # Set anew at every call; what a file happens to hold says nothing.
        rules = {k: v for k, v in rules.items() if k not in ("padding", "truncation")}
    else:
        rules = {"class": type(tokenizer).__name__, "vocabulary": sorted(tokenizer.get_vocab())}
    rules["specials"] = {k: str(v) for k, v in tokenizer.special_tokens_map.items()}
    rules["truncation_side"] = tokenizer.truncation_side
    return hashed(json.dumps(rules, sort_keys=True, ensure_ascii=False))
