from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from probekit.activations.checkpoint import open_checkpoint
from probekit.activations.extraction import extract
from probekit.data import Rows
from probekit.errors import DataError, LabelsError, ModelError, OutputExistsError, UsageError
from probekit.students.completion import (
    CompletionRows,
    Completions,
    Speller,
    completion_rows,
    exact_match,
    load_completions,
    write_greedily,
)
from probekit.students.config import FinetuneConfig
from probekit.students.generative import finetune_completion, finetune_lm
from probekit.students.language_model import (
    IGNORED,
    Tokens,
    collate,
    hide_some,
    open_language_model,
    perplexity,
    split_held_out,
    text_tokens,
)
from probekit.students.trainer import FiniteTrainer

pytestmark = pytest.mark.usefixtures("one_thread")

COLOURS = ("red", "green", "dark blue", "white")
DECODERS = ("llama", "gpt2", "qwen2")


def config(model: Any, **settings: Any) -> FinetuneConfig:
    chosen = {"lr": 2e-3, "batch_size": 8, "device": "cpu", "dtype": "float32", **settings}
    return FinetuneConfig(model=str(model), **chosen)


def story_rows(count: int = 60) -> Rows:
    texts = [
        f"The heron number {i % 7} stood in the reeds and waited for {i} days."
        for i in range(count)
    ]
    return Rows({"text": texts, "label": [i % 2 for i in range(count)]}, source="stories")


def colour_rows(count: int = 32, start: int = 0) -> Rows:
    """The completion follows from the prompt, so it can be learned in a few steps."""
    numbers = range(start, start + count)
    return Rows(
        {
            "id": [f"c{i}" for i in numbers],
            "text": [f"Row {i} has the colour {COLOURS[i % 4][0]} which is" for i in numbers],
            "completion": [COLOURS[i % 4] for i in numbers],
        },
        source="colours",
    )


def metrics_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return found


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


# Tokens and losses


def test_the_loss_is_on_the_completion_and_its_end_only(tiny_model: Callable[..., Path]) -> None:
    for name in DECODERS:
        speller = Speller(open_checkpoint(str(tiny_model(name))), None)
        for row, colour in zip(speller.rows(completion_rows(colour_rows(4))), COLOURS, strict=True):
            learned = [token for token in row.labels if token != IGNORED]
            assert row.labels[-len(learned) :] == learned == row.ids[-len(learned) :]
            assert learned[-1] == speller.tokenizer.eos_token_id
            assert speller.tokenizer.decode(learned[:-1]) == f" {colour}"
            prompt = row.ids[: -len(learned)]
            assert speller.tokenizer.decode(prompt, skip_special_tokens=True).endswith("which is")
            assert speller.text(learned) == colour


def test_trainings_loss_is_the_mean_over_the_completions_tokens(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    """A learning rate of nothing leaves the model as it is; its loss is then computed by hand."""
    rows = colour_rows(8)
    settings = config(tiny_model("llama"), lr=1e-30, epochs=1.0, save="none")
    finetune_completion(settings, completion_rows(rows), tmp_path / "run")
    language = open_language_model(settings)
    model = language.load().eval()
    total, n_tokens = 0.0, 0
    for row in Speller(language.checkpoint, None).rows(completion_rows(rows)):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([row.ids])).logits[0].double()
        logprobs = logits.log_softmax(-1)
        for place, label in enumerate(row.labels):
            if label != IGNORED:
                total, n_tokens = total - float(logprobs[place - 1, label]), n_tokens + 1
    # Float32 sums of a few dozen terms.
    assert metrics_of(tmp_path / "run")["train_loss"] == pytest.approx(total / n_tokens, rel=1e-5)


def test_perplexity_is_that_of_each_text_alone(tiny_model: Callable[..., Path]) -> None:
    for name in DECODERS:
        language = open_language_model(config(tiny_model(name)))
        model = language.load()
        rows = Rows({"text": ["The heron stood.", "A good map leaves out more than it shows, and"]})
        tokens = text_tokens(language, rows, None)
        pad = language.checkpoint.pad_id
        found = perplexity(model, tokens, pad_id=pad, shifted=True)
        total = 0.0
        for row in tokens:
            ids = torch.tensor([row.ids])
            with torch.inference_mode():
                total += float(model(input_ids=ids, labels=ids).loss) * (len(row.ids) - 1)
        assert found == pytest.approx(
            math.exp(total / sum(len(row.ids) - 1 for row in tokens)), rel=1e-4
        )


def test_padding_carries_neither_attention_nor_loss() -> None:
    batch = collate([Tokens([5, 6, 7], [IGNORED, 6, 7]), Tokens([8], [IGNORED])], pad_id=3)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 3, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 7], [IGNORED] * 3]


def test_hidden_tokens_are_a_seventh_and_never_special() -> None:
    row = Tokens([1, *range(10, 30), 2], [IGNORED, *range(10, 30), IGNORED])
    generator = torch.Generator().manual_seed(0)
    hidden = [hide_some(row, mask_id=4, vocabulary=50, generator=generator) for _ in range(1000)]
    labelled = np.array([[label != IGNORED for label in each.labels] for each in hidden])
    assert not labelled[:, [0, -1]].any()
    assert labelled.any(axis=1).all()
    # 20,000 draws of 0.15 (s.d. 0.0025), and the one row in 26 that has none gets one (+ 0.002).
    assert labelled[:, 1:-1].mean() == pytest.approx(0.152, abs=0.01)
    changed = np.array(
        [[a != b for a, b in zip(each.ids, row.ids, strict=True)] for each in hidden]
    )
    masked = np.array([[token == 4 for token in each.ids] for each in hidden])
    assert not changed[~labelled].any()
    # About 3,040 hidden: s.d. 0.007.
    assert masked[labelled].mean() == pytest.approx(0.8, abs=0.03)
    assert changed[labelled].mean() == pytest.approx(0.9, abs=0.02)
    assert all(
        label in (IGNORED, true)
        for each in hidden
        for label, true in zip(each.labels, row.ids, strict=True)
    )


# Language-model loss on texts


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_learns_texts_and_is_a_new_base_model(
    name: str, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    new = finetune_lm(config(tiny_model(name)), story_rows(), tmp_path / "lm")
    metrics = metrics_of(tmp_path / "lm")
    assert metrics["perplexity_after"] < metrics["perplexity_before"] / 2
    assert metrics["held_out_rows"] == 3
    before, after = weights_of(tiny_model(name)), weights_of(new)
    assert before.keys() == after.keys()
    moved = [key for key in before if not torch.equal(before[key], after[key])]
    assert len(moved) > len(before) / 2
    extract(story_rows(6), str(new), output=tmp_path / "acts.h5", layers="all")
    assert finetune_lm(config(new, max_steps=1), story_rows(), tmp_path / "again").is_dir()
    assert not (tmp_path / "lm" / "checkpoints").exists()


def test_a_cut_model_becomes_a_model_of_so_many_layers(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    new = finetune_lm(config(f"{tiny_model('llama')}@layers=2"), story_rows(), tmp_path / "lm")
    assert open_checkpoint(str(new)).depth == 2
    assert json.loads((new / "config.json").read_text())["use_cache"] is True


@pytest.mark.parametrize("name", DECODERS)
def test_adapters_are_trained_alone_and_merged(
    name: str, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    settings = config(tiny_model(name), lora=True, lr=1e-2)
    new = finetune_lm(settings, story_rows(), tmp_path / "lm")
    metrics = metrics_of(tmp_path / "lm")
    assert metrics["perplexity_after"] < metrics["perplexity_before"]
    before, after = weights_of(tiny_model(name)), weights_of(new)
    assert before.keys() == after.keys()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved
    assert all((before[key].ndim == 2 and ".layers." in key) or ".h." in key for key in moved)
    done = finetune_completion(
        settings, completion_rows(colour_rows(8)), tmp_path / "c", predict={"test": colour_rows(4)}
    )
    assert len(done.predictions["test"]) == 4
    # What was written is what the merged model writes.
    assert done.model is not None
    language = open_language_model(config(done.model))
    speller = Speller(language.checkpoint, None)
    again = write_greedily(
        language.load(), speller, colour_rows(4).columns["text"], max_new_tokens=4
    )
    expected = [
        text[: len(each.text)]
        for text, each in zip(done.predictions["test"].texts, again, strict=True)
    ]
    assert [each.text for each in again] == expected


def test_an_encoder_learns_hidden_tokens(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    folder = masked_bert(tiny_model("bert"), tmp_path / "bert")
    new = finetune_lm(config(folder, epochs=4.0), story_rows(), tmp_path / "lm")
    metrics = metrics_of(tmp_path / "lm")
    assert metrics["kind"] == "masked"
    assert metrics["perplexity_after"] < metrics["perplexity_before"] / 2
    extract(story_rows(6), str(new), output=tmp_path / "acts.h5")


def masked_bert(folder: Path, target: Path) -> Path:
    """The tiny BERT with a mask token, which conftest's has not."""
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    model = AutoModelForMaskedLM.from_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


def test_models_without_a_language_model_head_are_refused(
    minilm: str, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"saved without its masked-LM head \(cls\.predictions"):
        finetune_lm(config(minilm), story_rows(), tmp_path / "a")
    with pytest.raises(ModelError, match="is an encoder-decoder"):
        finetune_lm(config(tiny_model("t5")), story_rows(), tmp_path / "b")
    with pytest.raises(ModelError, match="has no mask token"):
        finetune_lm(config(tiny_model("bert")), story_rows(), tmp_path / "c")
    with pytest.raises(ModelError, match="cannot write a completion; take a decoder"):
        finetune_completion(
            config(tiny_model("bert")), completion_rows(colour_rows()), tmp_path / "d"
        )


def test_no_other_column_than_the_text_is_read(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    rows = story_rows()
    bare = Rows({"text": rows.columns["text"]}, source="stories")
    folders = [
        finetune_lm(config(tiny_model("llama"), max_steps=3), each, tmp_path / name)
        for name, each in (("labels", rows), ("bare", bare))
    ]
    first, second = map(weights_of, folders)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_held_out_texts_are_not_trained_on_and_given_ones_are_used(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    texts = [f"Text {i // 2} stands here twice." for i in range(100)]
    train, held = split_held_out(Rows({"text": texts}), seed=0)
    assert held is not None
    assert (len(train), len(held)) == (96, 4)  # 5 % of 100, but copies stay together
    assert not set(train.hashes) & set(held.hashes)
    assert split_held_out(Rows({"text": texts[:39]}), seed=0)[1] is None
    finetune_lm(
        config(tiny_model("llama"), max_steps=1),
        story_rows(),
        tmp_path / "lm",
        validation=story_rows(11),
    )
    metrics = metrics_of(tmp_path / "lm")
    assert (metrics["rows"], metrics["held_out_rows"]) == (60, 11)


def test_half_precision_is_trained_in_float32_and_saved_as_it_came(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    """Steps of 1e-5 are lost in bfloat16, whose neighbours of 0.3 are 0.002 apart."""
    model = tiny_model("llama", "bfloat16")
    new = finetune_lm(config(model, lr=1e-5, epochs=20.0), story_rows(), tmp_path / "lm")
    metrics = metrics_of(tmp_path / "lm")
    assert metrics["perplexity_after"] < metrics["perplexity_before"]
    before, after = weights_of(model), weights_of(new)
    assert {value.dtype for value in after.values()} == {torch.bfloat16}
    key = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(before[key], after[key])


def test_chat_messages_and_checkpointed_gradients(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    chats = [[{"role": "user", "content": f"Is {i} even?"}] for i in range(50)]
    rows = Rows({"messages": chats})
    model = tiny_model("llama")
    tokens = text_tokens(open_language_model(config(model)), rows, None)
    assert [token for token in tokens[0].ids if token == 1] == [1]  # the template writes BOS
    plain = finetune_lm(config(model, max_steps=3), rows, tmp_path / "plain")
    saving = finetune_lm(
        config(model, max_steps=3, gradient_checkpointing=True), rows, tmp_path / "saving"
    )
    first, second = weights_of(plain), weights_of(saving)
    # Adam's first steps turn rounding into steps of the learning rate; nearly all agree.
    same = [torch.isclose(first[k], second[k], atol=1e-4).float().mean() for k in first]
    assert min(same) > 0.99


def test_an_adapter_alone_is_no_base_model(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is saved whole"):
        finetune_lm(
            config(tiny_model("llama"), lora=True, save="adapter"), story_rows(), tmp_path / "lm"
        )


# Folders


def interrupt(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    original = FiniteTrainer.training_step

    def stopping(self: FiniteTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.state.global_step == step:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(FiniteTrainer, "training_step", stopping)


@pytest.mark.parametrize(
    "kind",
    [
        "causal",
        pytest.param("masked", marks=pytest.mark.slow),
        pytest.param("adapters", marks=pytest.mark.slow),
    ],
)
def test_a_killed_training_resumes_to_the_same_weights(
    kind: str,
    tiny_model: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    llama, bert = tiny_model("llama"), masked_bert(tiny_model("bert"), tmp_path / "bert")
    # 2 epochs of 8 steps, a checkpoint after each; killed in the middle of the second. Which tokens
    # are hidden is drawn batch by batch, and drawn anew where an epoch is resumed.
    stop = 8 if kind == "masked" else 9
    settings = config(
        bert if kind == "masked" else llama, lora=kind == "adapters", save_seconds=0.0
    )
    whole = finetune_lm(settings, story_rows(), tmp_path / "whole")
    with monkeypatch.context() as patched:
        interrupt(patched, stop)
        with pytest.raises(KeyboardInterrupt):
            finetune_lm(settings, story_rows(), tmp_path / "killed")
    left = tmp_path / "killed" / "checkpoints"
    expected = {f"checkpoint-{stop - 1}", f"checkpoint-{stop}"}
    assert {path.name for path in left.iterdir()} == expected
    (left / "checkpoint-10").mkdir()  # one that was being written
    steps: list[int] = []
    original = FiniteTrainer.training_step

    def counting(self: FiniteTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        steps.append(self.state.global_step)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(FiniteTrainer, "training_step", counting)
    resumed = finetune_lm(settings, story_rows(), tmp_path / "killed")
    assert steps == list(range(stop, 16))
    first, second = weights_of(whole), weights_of(resumed)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_finished_folder_is_used_and_another_runs_folder_refused(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tiny_model("llama"), max_steps=2)
    finetune_lm(settings, story_rows(), tmp_path / "lm")
    with monkeypatch.context() as patched:
        interrupt(patched, 0)
        assert finetune_lm(settings, story_rows(), tmp_path / "lm") == tmp_path / "lm" / "model"
        with pytest.raises(KeyboardInterrupt):  # the control: begun again, it would train
            finetune_lm(settings, story_rows(), tmp_path / "lm", resume=False)
    with pytest.raises(OutputExistsError, match=r"holds another run \(lr differ"):
        finetune_lm(dataclasses.replace(settings, lr=1.0), story_rows(), tmp_path / "lm")
    with pytest.raises(OutputExistsError, match=r"\(rows differ"):
        finetune_lm(settings, story_rows(50), tmp_path / "lm")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(OutputExistsError, match="holds no training of probekit"):
        finetune_lm(settings, story_rows(), tmp_path / "mine")


def test_a_loss_that_is_no_number_stops_with_its_step(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = FiniteTrainer.compute_loss

    def broken(self: FiniteTrainer, *args: Any, **kwargs: Any) -> Any:
        loss = original(self, *args, **kwargs)
        return loss * float("nan") if self.state.global_step == 5 else loss

    monkeypatch.setattr(FiniteTrainer, "compute_loss", broken)
    with pytest.raises(ModelError, match=r"The loss of step 6 is nan, so training stopped"):
        finetune_lm(config(tiny_model("llama"), save_seconds=0.0), story_rows(), tmp_path / "lm")
    kept = tmp_path / "lm" / "checkpoints" / "checkpoint-5" / "model.safetensors"
    from safetensors.torch import load_file

    assert all(torch.isfinite(value).all() for value in load_file(kept).values())
    assert not (tmp_path / "lm" / "model").exists()


# Completions


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_learns_to_complete(
    name: str, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    rows, test = colour_rows(), colour_rows(12, start=100)
    done = finetune_completion(
        config(tiny_model(name), epochs=30.0, lr=5e-3),
        completion_rows(rows),
        tmp_path / "run",
        predict={"train": rows, "test": test},
    )
    # What four answers by chance or one answer for all would give is 25 %.
    assert exact_match(done.predictions["train"], rows).mean() >= 0.75
    found = done.predictions["test"]
    assert (found.logprob <= 0).all()
    saved = load_completions(tmp_path / "run" / "predictions" / "test.parquet")
    assert list(saved.ids) == test.ids
    assert list(saved.hashes) == test.hashes
    assert saved.texts == found.texts
    assert done.model is not None
    assert open_checkpoint(str(done.model)).depth == 3


@pytest.mark.parametrize("name", DECODERS)
def test_completions_in_batches_are_those_of_each_prompt_alone(
    name: str, tiny_model: Callable[..., Path]
) -> None:
    language = open_language_model(config(tiny_model(name)))
    model, speller = language.load(), Speller(language.checkpoint, None)
    prompts = ["The heron", "Nobody at the harbour had seen the boat since", "She", "A good map"]
    together = write_greedily(model, speller, prompts, max_new_tokens=6)
    for prompt, found in zip(prompts, together, strict=True):
        ids = speller.prompts([prompt], room=6)[0]
        logprobs = []
        for _ in range(6):
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([ids])).logits[0, -1].double()
            ids = [*ids, int(logits.argmax())]
            logprobs.append(float(logits.log_softmax(-1).max()))
            if ids[-1] == speller.end:
                break
        assert found.text == speller.text(ids[-len(logprobs) :])
        # Padding and cached states change the order of float32 sums.
        assert found.logprob == pytest.approx(np.mean(logprobs), rel=1e-3)


def test_a_models_own_way_of_generating_is_not_used(tiny_model: Callable[..., Path]) -> None:
    language = open_language_model(config(tiny_model("llama")))
    model, speller = language.load(), Speller(language.checkpoint, None)
    plain = write_greedily(model, speller, ["The heron"], max_new_tokens=8)
    model.generation_config.repetition_penalty = 50.0
    model.generation_config.do_sample = True
    model.generation_config.suppress_tokens = list(range(3, 200))
    assert write_greedily(model, speller, ["The heron"], max_new_tokens=8) == plain
    assert model.generation_config.repetition_penalty == 50.0


def test_long_prompts_keep_their_end_and_bos(tiny_model: Callable[..., Path]) -> None:
    speller = Speller(open_checkpoint(str(tiny_model("llama"))), 16)
    long = "The heron stood in the reeds and waited for the water to clear."
    (ids,) = speller.prompts([long], room=4)
    whole = speller.tokenizer(long)["input_ids"]
    assert len(ids) == 12 < len(whole)
    assert ids == [whole[0], *whole[-11:]]
    gpt2 = Speller(open_checkpoint(str(tiny_model("gpt2"))), 16)
    (ids,) = gpt2.prompts([long], room=4)
    assert ids == gpt2.tokenizer(long)["input_ids"][-12:]


def test_a_prompt_with_bos_of_its_own_has_one(tiny_model: Callable[..., Path]) -> None:
    speller = Speller(open_checkpoint(str(tiny_model("llama"))), 24)
    tokenizer = speller.tokenizer
    plain, own = speller.prompts(["hello there", "<s>hello there"], room=4)
    assert plain == own == tokenizer("hello there")["input_ids"]
    assert tokenizer("<s>hello there")["input_ids"][:2] == [tokenizer.bos_token_id] * 2  # control


def test_a_prompt_of_any_length_keeps_its_end(tiny_model: Callable[..., Path]) -> None:
    speller = Speller(open_checkpoint(str(tiny_model("llama"))), 24)
    text = "The heron stood in the reeds. " * 10_000
    whole = speller.tokenizer(text)["input_ids"]
    (found,) = speller.prompts([text], room=4)
    assert found == [whole[0], *whole[-19:]]
    rows = CompletionRows(["a", "b"], ["x", "y"], [text, "short"], ["done", "done"])
    assert [row.truncated for row in speller.rows(rows)] == [True, False]


def test_a_student_of_a_wrong_teacher_learns_the_teachers_answers(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    """The rows bring their truth; a student that saw it would not answer as its teacher does."""
    rows = colour_rows()
    wrong = [COLOURS[(COLOURS.index(text) + 1) % 4] for text in rows.columns["completion"]]
    teacher = Completions(rows.ids, rows.hashes, wrong, np.full(len(rows), np.nan), "teacher")
    learned = completion_rows(rows, teacher)
    assert learned.completions == wrong
    done = finetune_completion(
        config(tiny_model("llama"), epochs=25.0, save="none"),
        learned,
        tmp_path / "run",
        predict={"train": rows},
    )
    texts = done.predictions["train"].texts
    assert np.mean([a == b for a, b in zip(texts, wrong, strict=True)]) >= 0.75
    assert exact_match(done.predictions["train"], rows).mean() <= 0.25
    assert done.model is None


def test_an_empty_completion_of_a_supervisor_can_be_learned(
    tiny_model: Callable[..., Path],
) -> None:
    rows = colour_rows(4)
    teacher = Completions(rows.ids, rows.hashes, ["", "red", "", "x"], np.zeros(4))
    speller = Speller(open_checkpoint(str(tiny_model("llama"))), None)
    found = speller.rows(completion_rows(rows, teacher))
    assert [label for label in found[0].labels if label != IGNORED] == [speller.end]


def test_bad_completions_are_reported_in_a_sentence(tmp_path: Path, write_jsonl: Any) -> None:
    rows = colour_rows(4)
    teacher = Completions(rows.ids, rows.hashes, ["a"] * 4, np.zeros(4), source="weak.parquet")
    with pytest.raises(LabelsError, match=r"no column 'completion' to learn; it has text, label"):
        completion_rows(story_rows())
    empty = Rows({"text": ["a", "b"], "completion": ["x", " "]})
    with pytest.raises(LabelsError, match=r"1 rows .* is empty or not text \(ids '1'"):
        completion_rows(empty)
    with pytest.raises(LabelsError, match=r"no completion for 2 of 4 rows of colours"):
        completion_rows(colour_rows(4, start=2), teacher)
    other = Rows({**rows.columns, "text": [*rows.columns["text"][:3], "another"]}, source="new")
    with pytest.raises(LabelsError, match=r"another text than new in 1 of 4 rows \(ids 'c3'"):
        completion_rows(other, teacher)
    pairs = Rows({"text": ["a"], "text_pair": ["b"], "completion": ["c"]})
    with pytest.raises(LabelsError, match="kind 'pair'"):
        completion_rows(pairs)
    path = write_jsonl([{"id": "a", "completion": "b"}])
    with pytest.raises(LabelsError, match="no column 'text_hash'"):
        load_completions(path)
    path = write_jsonl([{"id": "a", "text_hash": "0", "completion": "b"}] * 2)
    with pytest.raises(LabelsError, match="more than once"):
        load_completions(path)


def test_texts_without_a_token_to_predict_are_reported(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="no row with a token to predict"):
        finetune_lm(config(tiny_model("gpt2")), Rows({"text": ["a", "b"]}), tmp_path / "lm")
    with pytest.raises(DataError, match="no row to train on"):
        finetune_completion(config("nowhere"), CompletionRows([], [], [], []), tmp_path / "c")
    with pytest.raises(UsageError, match="leaves no room for a prompt in 3"):
        finetune_completion(
            config(tiny_model("gpt2"), max_length=3),
            completion_rows(colour_rows(4)),
            tmp_path / "c",
        )


# Real models and puzzles


@pytest.mark.realdata
def test_stories_learns_texts_and_is_read_again(realdata: Any, tmp_path: Path) -> None:
    """A real model: it knows English before, and knows these texts better afterwards."""
    model = realdata.models / "stories260K"
    new = finetune_lm(config(model, epochs=1.0), story_rows(), tmp_path / "lm")
    metrics = metrics_of(tmp_path / "lm")
    assert metrics["perplexity_before"] < 512  # less than the vocabulary: it is no random model
    assert metrics["perplexity_after"] < metrics["perplexity_before"] / 5
    extract(story_rows(6), str(new), output=tmp_path / "acts.h5")
