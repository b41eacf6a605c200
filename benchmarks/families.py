"""Every family of transformers that reads tokens, tiny and random, through `probekit extract`.

Each gives the same states as its rows alone, or is refused in one sentence; anything else is a bug.

    python benchmarks/families.py [FAMILY ...]
"""

from __future__ import annotations

import copy
import inspect
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from probekit.activations.extraction import extract
from probekit.errors import ProbekitError

LARGEST = 30_000_000
TOLERANCE = 1e-4
TEXTS = [" ".join(["the heron stood in the reeds"] * (1 + i % 4)) + str(i) for i in range(6)]
# Whatever a family calls its sizes; those that it does not have are left alone.
SMALL = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embedding_size", "dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_heads", "n_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "n_inner", "hidden_dim"), 64),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 64),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 128),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("attention_hidden_size", "lru_width", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("head_dim", "d_kv", "state_size", "mamba_n_heads", "mamba_d_head"), 8),
    **dict.fromkeys(("initializer_range", "init_std"), 0.3),
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "rotary_dim": 4,
    "conv_kernel_size": 3,
    "pad_token_id": 0,
}


def small_tokenizer() -> Any:
    """Bytes as tokens, between [CLS] and [SEP]."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    raw = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, [], unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", cls_token="[CLS]")


def shrink(config: Any, vocabulary: int) -> Any:
    """Make a family's default configuration tiny, and those within it."""
    depth = getattr(config, "num_hidden_layers", None)
    per_layer = {k: v for k, v in vars(config).items() if isinstance(v, list) and len(v) == depth}
    for name, value in {**SMALL, "vocab_size": vocabulary}.items():
        known = getattr(config, name, None)
        if isinstance(known, int | float) and not isinstance(known, bool):
            setattr(config, name, value)
    for name, values in per_layer.items():
        setattr(config, name, values[:2])
    for name, value in list(vars(config).items()):
        if hasattr(value, "to_dict") and "config" in name:
            shrink(value, vocabulary)
    return config


def make(family: str, folder: Path, tokenizer: Any) -> str:
    """Save a tiny random model; return why it cannot be made, or nothing."""
    from transformers import CONFIG_MAPPING, AutoModel

    try:
        config = shrink(CONFIG_MAPPING[family](), len(tokenizer))
        with torch.device("meta"):
            size = sum(p.numel() for p in AutoModel.from_config(copy.deepcopy(config)).parameters())
        if size > LARGEST:
            return f"{size:,} parameters"
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(folder)
    except Exception as error:  # sizes that do not fit together, missing packages
        return f"{type(error).__name__}: {' '.join(str(error).split())[:80]}"
    tokenizer.save_pretrained(folder)
    return ""


def farthest(folder: Path, store: Any, tokenizer: Any) -> float:
    """Largest distance of a stored state from that of its row alone, relative to its scale."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder).eval()
    model = model.get_encoder() if getattr(model.config, "is_encoder_decoder", False) else model
    more: dict[str, Any] = {"output_hidden_states": True}
    if "use_cache" in inspect.signature(model.forward).parameters:
        more["use_cache"] = False
    worst = 0.0
    for row, text in enumerate(TEXTS):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            result = model(input_ids=ids, **more)
        states = [*result.hidden_states[:-1], result.last_hidden_state]
        for layer in store.layers:
            alone = states[layer][0].mean(0).numpy()
            scale = max(1.0, float(np.abs(alone).max()))
            stored = store.read(layer, [row])[0]
            worst = max(worst, float(np.abs(stored - alone).max()) / scale)
    return worst


def judge(family: str, folder: Path, tokenizer: Any) -> tuple[str, str]:
    """Verdict on a family, and its reason."""
    if reason := make(family, folder, tokenizer):
        return "not made", reason
    try:
        options: Any = {"layers": "all", "pool": "mean", "progress": False}
        with extract(TEXTS, folder, output=folder.with_suffix(".h5"), **options) as store:
            worst = farthest(folder, store, tokenizer)
    except ProbekitError as error:
        return "refused", str(error)
    except Exception as error:
        return "FAULT", f"{type(error).__name__}: {error}"
    return ("right" if worst < TOLERANCE else "WRONG"), f"{worst:.1e}"


def main(families: list[str]) -> int:
    """Print a line for each family; 1 where one is wrong or ends in a traceback."""
    from transformers.models.auto import modeling_auto as auto
    from transformers.utils import logging

    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    counts: Counter[str] = Counter()
    tokenizer, home = small_tokenizer(), Path(tempfile.mkdtemp())
    for family in families or sorted(auto.MODEL_MAPPING_NAMES):
        verdict, reason = judge(family, home / family, tokenizer)
        shutil.rmtree(home / family, ignore_errors=True)
        (home / family).with_suffix(".h5").unlink(missing_ok=True)
        counts[verdict] += 1
        print(f"{family:32} {verdict:9} {reason}", flush=True)
    shutil.rmtree(home)
    print(dict(counts))
    return int(bool(counts["FAULT"] or counts["WRONG"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
