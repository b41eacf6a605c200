"""A model before its weights are loaded: shape, tokenizer, identity."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from probekit.activations.folder import (
    SentenceSettings,
    check_adapter,
    check_folder,
    local_reader,
    read_config,
    read_settings,
    weight_files,
)
from probekit.activations.hooks import CANNOT_RUN, find_blocks, plain_states, vocabulary_of
from probekit.activations.quiet import quiet, rare_collection
from probekit.errors import ModelError, UsageError
from probekit.safe import MAX_BYTES, expand, load_json, one_line, open_regular, read_json

# Tokenizers without a limit give a number like 1e30.
MAX_LENGTH = 1 << 24
# Text towers whose last hidden_states come before the final norm.
UNTIED = ("clip_text_model", "tipsv2_text_model")
_TRUNCATED = re.compile(r"(?P<name>.+)@layers=(?P<layers>.*)")
# Up to here every byte is hashed (about a second per GB); above, sizes, headers and samples are.
WHOLE_BYTES = 1 << 28
SAMPLES, SAMPLE_BYTES = 256, 1 << 14
# Keys of config.json that change without changing what the model computes.
INCIDENTAL = ("_name_or_path", "transformers_version")


@dataclass(frozen=True)
class Checkpoint:
    """A model and its tokenizer; the weights are not loaded yet (or loaded by the caller)."""

    name: str
    """Hub name or folder, as passed to transformers."""
    label: str
    """Name without a path, for the store."""
    revision: str | None
    """Commit on the hub."""
    config: Any
    tokenizer: Any
    skeleton: torch.nn.Module
    """The model without weights; if ``loaded``, the model itself."""
    dtype: torch.dtype
    """Dtype that the model computes in."""
    loaded: bool = False
    cut: int | None = None
    """Number of blocks kept of a model named ``…@layers=K``."""
    sentence: SentenceSettings | None = None
    """Settings of a sentence-transformers model."""

    @property
    def root(self) -> torch.nn.Module:
        """The part that reads text, without weights."""
        return text_root(self.skeleton, self.config)

    @property
    def depth(self) -> int:
        """Number of blocks, L."""
        config: Any = getattr(self.root, "config", self.config)
        depth = getattr(config.get_text_config(), "num_hidden_layers", None)
        if not isinstance(depth, int) or depth < 1:
            raise ModelError(
                f"The configuration of {self.label} has no number of layers (num_hidden_layers); "
                "only stacks of blocks can be read."
            )
        return depth

    @cached_property
    def weights(self) -> str:
        """Fingerprint of weights and configuration."""
        if self.loaded:
            return _loaded_weights(self.skeleton)
        if self.revision is not None:
            fingerprint = f"commit:{self.revision[:16]}"
        else:
            fingerprint = folder_weights(Path(self.name))
        return fingerprint if self.cut is None else f"{fingerprint}@layers={self.cut}"

    @cached_property
    def widths(self) -> dict[int, int]:
        """Width of every layer's states, measured by running the skeleton."""
        try:
            with quiet():
                return {i: s.shape[-1] for i, s in plain_states(self.root, self.depth).items()}
        except ModelError:
            # Some models branch on values, which a skeleton does not have.
            width = int(getattr(self.config.get_text_config(), "hidden_size", 0))
            if self.loaded or width < 1:
                raise
            return dict.fromkeys(range(self.depth + 1), width)

    @property
    def vocabulary(self) -> int:
        """Number of token embeddings."""
        return vocabulary_of(self.root)

    @property
    def position_limit(self) -> int | None:
        """Maximum number of tokens that the model can read; None without a limit."""
        if (positions := self._position_embedding()) is not None:
            return int(positions.num_embeddings) - int(positions.padding_idx or 0) - 1
        limit = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        return limit if isinstance(limit, int) and 0 < limit < MAX_LENGTH else None

    @property
    def pad_id(self) -> int:
        """Token id of padding; any will do if the mask hides it."""
        positions = self._position_embedding()
        known = [
            positions.padding_idx if positions is not None else None,
            getattr(self.tokenizer, "pad_token_id", None),
        ]
        valid = [i for i in known if isinstance(i, int) and 0 <= i < self.vocabulary]
        return valid[0] if valid else 0

    def _position_embedding(self) -> torch.nn.Embedding | None:
        # RoBERTa and its relatives: positions begin at padding_idx + 1 of the embedding.
        for name, module in self.root.named_modules():
            if isinstance(module, torch.nn.Embedding) and "position" in name.rsplit(".", 1)[-1]:
                return module if module.padding_idx is not None else None
        return None

    def loading_options(self, dtype: torch.dtype) -> dict[str, Any]:
        """Arguments of ``from_pretrained`` that load this model's weights in ``dtype``."""
        options = {
            "config": copy.deepcopy(self.config),
            "dtype": dtype,
            "use_safetensors": True,
            "output_loading_info": True,
        }
        return options if self.revision is None else {**options, "revision": self.revision}

    def check_complete(self, info: Mapping[str, Any]) -> None:
        """Raise ModelError if the loading info names missing weights, those of a pooler aside."""
        missing = [key for key in sorted(info["missing_keys"]) if "pooler" not in key]
        if missing:
            raise ModelError(
                f"The weights of {self.label} lack {len(missing)} tensors that the model needs "
                f"({', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}); they belong to "
                "another model or are incomplete."
            )

    def length(self, asked: int | None) -> int | None:
        """Maximum number of tokens per row: ``asked``, or what tokenizer and model are made for."""
        limit = self.position_limit
        if asked is not None:
            if asked < 1:
                raise UsageError(f"A row has at least one token, not {asked}.")
            if limit is not None and asked > limit:
                raise UsageError(
                    f"{self.label} reads at most {limit} tokens, not {asked}; lower --max-length."
                )
            return asked
        own = getattr(self.tokenizer, "model_max_length", None)
        stated = None if self.sentence is None else self.sentence.max_length
        known = [n for n in (own, limit, stated) if n is not None and 0 < n < MAX_LENGTH]
        return int(min(known)) if known else None

    @property
    def untied(self) -> bool:
        """Whether its last hidden_states come before the final norm (its output comes after)."""
        configs = (self.config, self.config.get_text_config())
        untied = any(getattr(c, "tie_last_hidden_states", None) is False for c in configs)
        return untied or self.config.model_type in UNTIED

    @property
    def causal(self) -> bool:
        """Whether it reads left to right (a decoder), and not both ways.

        Raises UsageError if it is not known.
        """
        from transformers.models.auto import modeling_auto as auto

        config = self.config.get_text_config()
        kinds = {self.config.model_type, config.model_type}
        if getattr(self.config, "is_encoder_decoder", False):
            return False
        if any(getattr(c, "is_causal", None) is False for c in (config, self.config)):
            return False
        decoder = bool(getattr(config, "is_decoder", False))
        both_ways = bool(kinds & set(auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES)) or bool(
            getattr(config, "use_bidirectional_attention", False)
        )
        if both_ways and not decoder:
            return False
        if decoder or kinds & set(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
            return True
        if kinds & set(auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES):
            return False
        # Text towers of models that also read images: the flags of their attention.
        blocks = find_blocks(self.root, self.depth)
        modules = blocks.modules() if blocks is not None else ()
        flags = {flag for m in modules if isinstance(flag := getattr(m, "is_causal", None), bool)}
        if len(flags) == 1:
            return flags.pop()
        raise UsageError(
            f"Whether {self.label} ({config.model_type}) reads left to right or both ways is not "
            "known; choose a pooling: --pool last, first, mean or max."
        )

    @property
    def default_pool(self) -> str:
        """The model's own setting, else ``last`` if it reads left to right, else ``mean``."""
        if self.sentence is not None and self.sentence.pooling is not None:
            return self.sentence.pooling
        return "last" if self.causal else "mean"


def text_root(model: torch.nn.Module, config: Any) -> torch.nn.Module:
    """Return the encoder of an encoder-decoder model, else the model."""
    if not getattr(config, "is_encoder_decoder", False):
        return model
    try:
        encoder: torch.nn.Module = model.get_encoder()  # type: ignore[operator]
    except CANNOT_RUN as error:
        raise ModelError(f"{type(model).__name__} has no text encoder.") from error
    return encoder


def open_loaded(model: Any, tokenizer: Any) -> Checkpoint:
    """Wrap a model that the caller has loaded, with or without a head, and its tokenizer."""
    if not isinstance(model, torch.nn.Module) or not callable(tokenizer):
        raise UsageError("A loaded model is a pair: (transformers model, tokenizer).")
    given: Any = model
    base: Any = given.get_base_model() if hasattr(given, "get_base_model") else given
    base = getattr(base, "base_model", base)
    if not hasattr(base, "config") or not hasattr(base, "get_input_embeddings"):
        raise UsageError(f"{type(model).__name__} is not a transformers model.")
    name = str(getattr(base.config, "_name_or_path", "") or type(base).__name__)
    label = Path(name).name if Path(name).is_dir() else name
    dtype = next((p.dtype for p in base.parameters() if p.dtype.is_floating_point), torch.float32)
    return Checkpoint(name, label, None, base.config, tokenizer, base, dtype, loaded=True)


def open_checkpoint(
    name: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> Checkpoint:
    """Read configuration and tokenizer of a folder or of a model on the hub.

    ``name`` may end in ``@layers=K``: the model is then its first K blocks.

    Raises ModelError if it does not exist, has no tokenizer, or only pickled weights.
    """
    from transformers import AutoConfig

    name, cut = split_model_name(name)
    local = expand(name, error=ModelError)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    sentence = None
    if local.is_dir():
        check_adapter(local)
        sentence = read_settings(local_reader(local))
        folder = local / sentence.transformer if sentence is not None else local
        name = str(folder)
        check_folder(folder)
    elif local.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(
            f"The model folder {name} does not exist or is not a folder; give a folder that "
            "save_pretrained wrote, or a name on the Hugging Face hub."
        )
    with rare_collection(), quiet():
        commit = None if local.is_dir() else _find_commit(name, revision)
        if commit is not None:
            options["revision"] = commit
            sentence = read_settings(_hub_reader(name, commit))
        with _explained(f"The model {name} cannot be opened"):
            config = AutoConfig.from_pretrained(name, **options)
        if cut is not None:
            _truncate_config(config, cut, name)
        tokenizer = _open_tokenizer(name, options)
        skeleton = _build_skeleton(name, config, trust_remote_code=trust_remote_code)
        vocabulary_of(text_root(skeleton, config))
        torch_dtype = getattr(torch, dtype) if dtype != "auto" else _own_dtype(name, config, commit)
    label = Path(os.path.realpath(local)).name if local.is_dir() else name
    label = label if cut is None else f"{label}@layers={cut}"
    return Checkpoint(
        name, label, commit, config, tokenizer, skeleton, torch_dtype, cut=cut, sentence=sentence
    )


def split_model_name(name: str) -> tuple[str, int | None]:
    """Split ``NAME@layers=K`` into the name and the number of blocks to keep (None: all).

    Raises UsageError if K is not a whole number above 0.
    """
    match = _TRUNCATED.fullmatch(name)
    if match is None or expand(name, error=ModelError).exists():
        return name, None
    layers = match["layers"]
    if not layers.isdecimal() or int(layers) < 1:
        raise UsageError(
            f"A model is cut as NAME@layers=K with K at least 1, got {layers!r} in {name!r}."
        )
    return match["name"], int(layers)


def _truncate_config(config: Any, layers: int, name: str) -> None:
    """Keep only the first ``layers`` blocks in a configuration, and in its lists per block."""
    text = config.get_text_config()
    depth = getattr(text, "num_hidden_layers", None)
    if not isinstance(depth, int) or not 1 <= layers <= depth:
        raise UsageError(f"{name} has {depth} layers; @layers={layers} cannot be cut from it.")
    for key, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == depth and key != "architectures":
            setattr(text, key, value[:layers])
    text.num_hidden_layers = layers


def _hub_reader(name: str, commit: str) -> Callable[[str], Any]:
    """Return a function that reads JSON files of a model on the hub or in its cache, else None."""
    from transformers.utils.hub import cached_file

    def read(file: str) -> Any:
        try:
            path = cached_file(
                name,
                file,
                revision=commit,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            )
        except Exception:  # as in _explained; these settings are optional
            return None
        return None if path is None else read_json(path, error=ModelError)

    return read


@contextmanager
def _explained(failure: str) -> Iterator[None]:
    """Raise ModelError whatever fails: hub, HTTP and configurations raise some twenty types."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, ModelError):
        raise
    except BaseException as error:  # a damaged tokenizer.json may cause a panic, no Exception
        raise ModelError(f"{failure}: {why(error)}") from error


def _find_commit(name: str, revision: str | None) -> str:
    """Return the commit of a branch or tag on the hub (or in its cache)."""
    from transformers.utils.hub import cached_file, extract_commit_hash

    with _explained(f"The model {name} cannot be opened"):
        file = cached_file(name, "config.json", revision=revision or "main")
        commit = extract_commit_hash(file, None)
    if commit is None:
        raise ModelError(f"The model {name} cannot be opened: its commit on the hub is not known.")
    return commit


def _open_tokenizer(name: str, options: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    with _explained(f"The tokenizer of {name} cannot be opened"):
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
        words, special = len(tokenizer), len(set(tokenizer.all_special_tokens))
    if words <= special:
        raise ModelError(
            f"The tokenizer of {name} has no vocabulary; save the one that the model was trained "
            "with beside it."
        )
    longest = getattr(tokenizer, "model_max_length", None)
    if longest is not None and (isinstance(longest, bool) or not isinstance(longest, int | float)):
        raise ModelError(
            f"The tokenizer of {name} has model_max_length {one_line(str(longest))[:60]!r}; set it "
            "to a number, or remove it."
        )
    return tokenizer


def _build_skeleton(name: str, config: Any, *, trust_remote_code: bool) -> torch.nn.Module:
    from transformers import AutoModel, AutoModelForTextEncoding
    from transformers.initialization import no_init_weights

    encoder_only = getattr(config, "is_encoder_decoder", False) and (
        type(config) in AutoModelForTextEncoding._model_mapping
    )

    def build(auto: Any) -> torch.nn.Module:
        with torch.device("meta"), no_init_weights():
            # A copy: encoders like T5's write into the configuration. Eager: masks of other
            # attention may branch on values, which a skeleton does not have.
            skeleton: torch.nn.Module = auto.from_config(
                copy.deepcopy(config),
                trust_remote_code=trust_remote_code,
                attn_implementation="eager",
            )
        return skeleton.eval()

    if encoder_only:
        # Some of these classes accept only checkpoints saved without a decoder (T5Gemma).
        with suppress(ValueError):
            return build(AutoModelForTextEncoding)
    with _explained(f"The model {name} cannot be built"):
        return build(AutoModel)


def _own_dtype(name: str, config: Any, commit: str | None) -> torch.dtype:
    dtype = getattr(config.get_text_config(), "dtype", None) or getattr(config, "dtype", None)
    if dtype is not None:
        named: torch.dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        return named
    folder = Path(name)
    if commit is not None:
        from transformers.utils.hub import cached_file

        options = {"revision": commit, "_raise_exceptions_for_missing_entries": False}
        file = cached_file(name, "model.safetensors", **options)
        folder = Path(file).parent if file else folder
    names = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
    for path in sorted(folder.glob("*.safetensors")):
        with open_regular(path, error=ModelError) as stream:
            size = int.from_bytes(stream.read(8), "little")
            if size > min(path.stat().st_size, MAX_BYTES):
                continue
            header = load_json(stream.read(size), f"The header of {path}", error=ModelError)
        for tensor in header.values() if isinstance(header, dict) else ():
            if isinstance(tensor, dict) and tensor.get("dtype") in names:
                return names[tensor["dtype"]]
    return torch.float32


def why(error: BaseException) -> str:
    """Return a library's error as the end of a sentence, with the usual repair."""
    text = " ".join(str(error).split()) or type(error).__name__
    if "connect" in text or "offline" in text.lower() or "LocalEntryNotFound" in text:
        return (
            "it is not a folder here and the Hugging Face hub cannot be reached; check the name "
            "and the connection, or give a local folder."
        )
    if "trust_remote_code" in text:
        return (
            "it contains code of its own; read that code, then pass --trust-remote-code if you "
            "trust it."
        )
    if "not a valid model identifier" in text or "Repository Not Found" in text:
        return (
            "it is neither a folder here nor a model on the Hugging Face hub (private ones need "
            "`hf auth login`)."
        )
    return (text if len(text) <= 300 else text[:299] + "…").rstrip(".") + "."


def hashed(text: str) -> str:
    """Return 16 hex digits of the SHA-256 of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def folder_weights(folder: Path) -> str:
    """Fingerprint configuration and weights of a local folder, not its name or path.

    Folders up to 256 MB are hashed whole (``sha256:…``); larger ones by their files' names, sizes,
    safetensors headers and 256 samples of 16 kB per file (``sampled:…``).
    """
    files = weight_files(folder)
    whole = sum(file.stat().st_size for file in files) <= WHOLE_BYTES
    digest = hashlib.sha256()
    try:
        kept = {k: v for k, v in read_config(folder).items() if k not in INCIDENTAL}
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
    # A safetensors file begins with its header, seldom more than a megabyte.
    step = max(1, size // SAMPLES)
    return [(0, 1 << 20), *((i * step, SAMPLE_BYTES) for i in range(1, SAMPLES)), (size - 64, 64)]


def _loaded_weights(model: torch.nn.Module) -> str:
    """Fingerprint a model in memory: names, shapes, and up to 1,024 numbers per tensor."""
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
        # Set anew at every call, so the file's values do not matter.
        rules = {k: v for k, v in rules.items() if k not in ("padding", "truncation")}
    else:
        rules = {"class": type(tokenizer).__name__, "vocabulary": sorted(tokenizer.get_vocab())}
    rules["specials"] = {k: str(v) for k, v in tokenizer.special_tokens_map.items()}
    rules["truncation_side"] = tokenizer.truncation_side
    return hashed(json.dumps(rules, sort_keys=True, ensure_ascii=False))
