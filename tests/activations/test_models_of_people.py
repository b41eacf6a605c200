"""Checkpoints as people have them: how they say they are to be read, and what cannot be read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from probekit.activations.checkpoint import open_checkpoint
from probekit.activations.extraction import extract, prepare
from probekit.activations.folder import local_reader, read_settings
from probekit.activations.job import Request
from probekit.errors import ModelError

pytestmark = pytest.mark.usefixtures("one_thread")

Folder = Callable[..., Path]


def changed(folder: Path, to: Path, **keys: Any) -> Path:
    """A copy of a model's folder with other keys in its configuration."""
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**config, **keys}))
    return to


def last_states(rows: list[str], folder: Path, out: Path) -> np.ndarray:
    with extract(rows, folder, output=out, layers="last") as store:
        return np.array(store.layer(store.layers[-1]))


# --- the last layer, and which way a model reads ------------------------------------------------


def test_the_last_layer_is_after_the_final_norm_whatever_the_configuration_ties(
    tiny_model: Folder, texts: list[str], tmp_path: Path
) -> None:
    plain = tiny_model("llama")
    untied = changed(plain, tmp_path / "untied", tie_last_hidden_states=False)
    wanted = last_states(texts, plain, tmp_path / "a.h5")
    np.testing.assert_array_equal(last_states(texts, untied, tmp_path / "b.h5"), wanted)
    pair = AutoModel.from_pretrained(untied), AutoTokenizer.from_pretrained(untied)
    with extract(texts, pair, output=tmp_path / "c.h5", layers="last") as store:
        np.testing.assert_allclose(store.layer(store.layers[-1]), wanted, rtol=1e-5, atol=1e-5)
    # Control: transformers gives the states before the norm.
    ids = pair[1](texts[0], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        found = pair[0](input_ids=ids, output_hidden_states=True)
    assert (found.hidden_states[-1] - found.last_hidden_state).abs().max() > 0.1
    # 0.1.0 stored those, so that a store it has begun is not resumed.
    spec = prepare(Request(texts, untied, tmp_path / "d.h5", layers="last")).spec.to_json()
    assert spec["last_layer"] == "after the final norm"
    for folder, layers in ((untied, "1"), (plain, "last")):
        spec = prepare(Request(texts, folder, tmp_path / "d.h5", layers=layers)).spec.to_json()
        assert "last_layer" not in spec


@pytest.mark.parametrize(
    ("keys", "pool"),
    [
        ({}, "last"),
        ({"is_causal": False}, "mean"),
        ({"use_bidirectional_attention": True}, "mean"),
        ({"is_causal": True}, "last"),
    ],
)
def test_a_decoder_that_reads_both_ways_is_pooled_by_the_mean(
    keys: dict[str, Any], pool: str, tiny_model: Folder, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(str(changed(tiny_model("llama"), tmp_path / "m", **keys)))
    assert checkpoint.default_pool == pool
    assert checkpoint.causal == (pool == "last")


# --- sentence-transformers ------------------------------------------------------------------------


def sentence_folder(
    folder: Path, to: Path, pooling: Any, *, inside: str = "", **sizes: Any
) -> Path:
    """The folder as sentence-transformers lays it out; ``inside``: the transformer's own folder."""
    shutil.copytree(folder, to / inside)
    kind = "sentence_transformers.models."
    modules = [
        {"idx": 0, "path": inside, "type": f"{kind}Transformer"},
        {"idx": 1, "path": "1_Pooling", "type": f"{kind}Pooling"},
        {"idx": 2, "path": "2_Normalize", "type": f"{kind}Normalize"},
    ]
    (to / "modules.json").write_text(json.dumps(modules))
    (to / "1_Pooling").mkdir()
    (to / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (to / inside / "sentence_bert_config.json").write_text(json.dumps(sizes))
    return to


@pytest.mark.parametrize("inside", ["", "0_Transformer"])
@pytest.mark.parametrize(
    ("pooling", "pool"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "first"),
        ({"pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "cls"}, "first"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, None),
        ({"pooling_mode_weightedmean_tokens": True}, None),
        ([], None),
    ],
)
def test_sentence_transformers_folders_say_how_they_are_read(
    pooling: Any, pool: str | None, inside: str, tiny_model: Folder, tmp_path: Path
) -> None:
    plain = tiny_model("bert")
    made = {"inside": inside, "max_seq_length": 9}
    folder = sentence_folder(plain, tmp_path / "st", pooling, **made)
    rows = ["one two three four five six seven eight"]
    job = prepare(Request(rows, folder, tmp_path / "a.h5"))
    assert (job.spec.pooling, job.spec.max_length) == (pool or "mean", 9)
    assert job.spec.model == "st"
    (note,) = job.notes
    assert ("states are pooled by" in note) == (pool is not None)
    assert "at most 9 tokens of a row are read" in note
    asked = prepare(Request(rows, folder, tmp_path / "a.h5", pool="max", max_length=20))
    assert (asked.spec.pooling, asked.spec.max_length, asked.notes) == ("max", 20, ())
    control = prepare(Request(rows, plain, tmp_path / "a.h5"))
    assert (control.spec.pooling, control.spec.max_length, control.notes) == ("mean", 128, ())


def test_modules_stay_in_their_folder_and_one_is_a_transformer(
    tiny_model: Folder, tmp_path: Path
) -> None:
    folder = sentence_folder(tiny_model("bert"), tmp_path / "st", {})
    for path in ("../other", "/etc", "a/../../b"):
        (folder / "modules.json").write_text(json.dumps([{"type": "x.Transformer", "path": path}]))
        with pytest.raises(ModelError, match="outside of its folder"):
            open_checkpoint(str(folder))
    (folder / "modules.json").write_text(json.dumps([{"type": "x.StaticEmbedding", "path": ""}]))
    with pytest.raises(ModelError, match=r"without a transformer \(StaticEmbedding\)"):
        open_checkpoint(str(folder))
    dense = [
        {"type": "x.Transformer"},
        {"type": "x.Pooling", "path": "1_Pooling"},
        {"type": "Dense"},
    ]
    (folder / "modules.json").write_text(json.dumps(dense))
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    settings = read_settings(local_reader(folder))
    assert settings is not None
    assert "its Dense is not applied" in settings.describe(pooling=True, max_length=True)
    for size in (0, True, "many", None):
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": size}))
        settings = read_settings(local_reader(folder))
        assert settings is not None
        assert settings.max_length is None


# --- encoders within, towers beside, adapters ----------------------------------------------------


def _half(**more: Any) -> dict[str, Any]:
    sizes = {"vocab_size": 420, "hidden_size": 32, "intermediate_size": 48, "head_dim": 8}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return {**sizes, **heads, "max_position_embeddings": 128, "pad_token_id": 0, **more}


def test_t5gemma_is_read_by_its_encoder(
    tiny_model: Folder, texts: list[str], tmp_path: Path
) -> None:
    from transformers import T5GemmaConfig, T5GemmaModel

    torch.manual_seed(0)
    model = T5GemmaModel(T5GemmaConfig(encoder=_half(), decoder=_half())).eval()
    folder = tmp_path / "t5gemma"
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model("llama"))
    tokenizer.save_pretrained(folder)
    with extract(texts, folder, output=tmp_path / "a.h5", layers="all") as store:
        assert store.spec["pooling"] == "mean"
        assert store.spec["max_length"] == 128
        for row, text in enumerate(texts[:3]):
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                states = model.get_encoder()(input_ids=ids, output_hidden_states=True)
            for layer, wanted in enumerate(states.hidden_states):
                found = torch.tensor(store.read(layer, [row])[0])
                torch.testing.assert_close(found, wanted[0].mean(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["Qwen2VL", "Qwen2_5_VL", "Qwen3VL"])
def test_text_towers_beside_a_vision_tower_are_read_left_to_right(
    name: str, tiny_model: Folder, texts: list[str], tmp_path: Path
) -> None:
    import transformers

    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    config = getattr(transformers, f"{name}Config")(
        text_config=_half(rope_parameters=rope),
        vision_config={"depth": 1, "hidden_size": 32, "embed_dim": 32, "num_heads": 4}
        | {"intermediate_size": 48, "out_hidden_size": 32, "deepstack_visual_indexes": [0]},
    )
    torch.manual_seed(0)
    folder = tmp_path / name
    getattr(transformers, f"{name}Model")(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model("llama")).save_pretrained(folder)
    with extract(texts[:4], folder, output=tmp_path / "a.h5", layers="last") as store:
        assert store.spec["pooling"] == "last"
        assert np.isfinite(store.layer(2)).all()


def test_models_that_read_no_text_are_refused_in_a_sentence(
    tiny_model: Folder, tmp_path: Path
) -> None:
    from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 48, "image_size": 8, "patch_size": 4}
    clip = CLIPConfig(text_config={**sizes, "vocab_size": 420}, vision_config=sizes)
    for model in (CLIPModel(clip), ViTModel(ViTConfig(**sizes))):
        folder = tmp_path / type(model).__name__
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(tiny_model("bert")).save_pretrained(folder)
        with pytest.raises(ModelError, match=r"has no token embeddings.*its text model"):
            open_checkpoint(str(folder))


def test_an_adapter_is_named_and_never_loaded(tiny_model: Folder, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base\\u001b[2J"}')
    with pytest.raises(ModelError, match=r"holds an adapter \(adapter_config.json, for the base"):
        open_checkpoint(str(folder))
    # transformers would put it onto the base that it names, from wherever that is.
    both = changed(tiny_model("bert"), tmp_path / "both")
    open_checkpoint(str(both))  # control
    shutil.copy(folder / "adapter_config.json", both)
    with pytest.raises(ModelError, match="holds an adapter beside a model") as caught:
        open_checkpoint(str(both))
    assert "\x1b" not in str(caught.value)
