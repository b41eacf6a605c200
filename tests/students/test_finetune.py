"""Finetuning classifiers: what they learn from, what they never see, and that they resume."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from probekit.activations.extraction import extract
from probekit.data import Rows
from probekit.errors import (
    DataError,
    LabelsError,
    ModelError,
    OutputExistsError,
    UsageError,
)
from probekit.labels import WeakLabels
from probekit.students.classifier import read_head
from probekit.students.config import FinetuneConfig
from probekit.students.finetune import ClassTrainer, TrainingRows, finetune, hold_out, training_rows
from probekit.students.losses import Loss
from probekit.students.predict import evaluate_predictions, predict_rows, proba_of, read_curve
from probekit.students.trainer import FiniteTrainer
from probekit.verdicts import Verdicts

pytestmark = pytest.mark.usefixtures("one_thread")

ARCHITECTURES = [
    "bert",
    "roberta",
    "deberta-v3",
    "gpt2",
    "gpt-neox",
    "opt",
    "opt-projected",
    "llama",
    "qwen2",
    "gemma2",
    "phi",
    "t5",
    "albert",
    "bart",
]
ANIMALS = ["a small cat", "the cats sleep", "one cat and a mouse", "cat", "my cat is old"]
TOOLS = ["a steel hammer", "hammers and nails", "the hammer fell", "hammer", "an old hammer broke"]


def make_rows(n: int = 40, start: int = 0) -> Rows:
    """Texts about cats (0) and hammers (1); ``label`` is the truth."""
    texts = [f"{(ANIMALS, TOOLS)[i % 2][i // 2 % 5]} {i // 10}" for i in range(start, start + n)]
    labels = [i % 2 for i in range(start, start + n)]
    return Rows({"id": [f"r{i}" for i in range(start, start + n)], "text": texts, "label": labels})


def labels_of(rows: Rows, probs: Any = None, classes: tuple[str, ...] = ("cat", "tool")) -> Any:
    if probs is None:
        probs = np.eye(len(classes))[list(rows.columns["label"])]
    return WeakLabels(list(rows.ids), list(rows.hashes), np.asarray(probs, float), classes)


def verdicts_of(rows: Rows, **columns: Any) -> Verdicts:
    n, Y = len(rows), np.eye(2, dtype=np.float32)[list(rows.columns["label"])]
    fields: dict[str, Any] = {
        "weak": Y,
        "probe": Y,
        "label": Y,
        "keep": np.ones(n, bool),
        "weight": np.ones(n, np.float32),
        "disagreement": np.zeros(n, np.float32),
        "fold": np.zeros(n, np.int16),
    }
    return Verdicts(list(rows.ids), list(rows.hashes), ("cat", "tool"), **{**fields, **columns})


@pytest.fixture
def config(tiny_model: Callable[..., Path]) -> Callable[..., FinetuneConfig]:
    def make(**more: Any) -> FinetuneConfig:
        # Exact, also where "auto" would take mixed precision.
        settings = {"lr": 3e-3, "epochs": 6, "batch_size": 8, "device": "cpu", "dtype": "float32"}
        return FinetuneConfig(**{"model": str(tiny_model("bert")), **settings, **more})

    return make


def test_it_learns_what_it_is_taught(config: Any, tmp_path: Path) -> None:
    rows, test = make_rows(), make_rows(20, 100)
    done = finetune(config(), training_rows(rows, labels_of(rows)), tmp_path, predict={"t": test})
    figures = evaluate_predictions(done.predictions["t"], labels_of(test))
    assert figures["accuracy"] > 0.9
    assert figures["auroc"] > 0.95
    assert done.metrics["steps"] == 30
    assert done.predictions["t"].ids == test.ids
    assert done.predictions["t"].hashes == test.hashes


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_mixed_precision_needs_no_gpu(config: Any, tmp_path: Path, device: str) -> None:
    """The Trainer refuses it unless it knows that a CPU is meant."""
    rows = make_rows()
    train, settings = training_rows(rows, labels_of(rows)), {"epochs": 1, "device": device}
    mixed = finetune(config(dtype="bfloat16", **settings), train, tmp_path / "mixed")
    plain = finetune(config(dtype="float32", **settings), train, tmp_path / "plain")
    losses = [done.metrics["train_loss"] for done in (mixed, plain)]
    # Eight bits of mantissa: near, and not the same.
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert losses[0] != losses[1]


def test_to_look_at_a_training_does_not_change_it(config: Any, tmp_path: Path) -> None:
    """Loaders draw from the generator that dropout draws from."""
    rows, test, held = make_rows(), make_rows(20, 100), make_rows(12, 200)
    train, held_out = (training_rows(each, labels_of(each)) for each in (rows, held))
    settings = {"predict": {"t": test}}
    plain = finetune(config(epochs=2), train, tmp_path / "plain", **settings)
    watched = {
        "held out": finetune(
            config(epochs=2), train, tmp_path / "a", validation=held_out, **settings
        ),
        "curves": finetune(config(epochs=2), train, tmp_path / "b", curves=True, **settings),
        "other times": finetune(
            config(epochs=2, evals=3), train, tmp_path / "c", curves=True, **settings
        ),
    }
    for name, done in watched.items():
        assert np.array_equal(done.predictions["t"].probs, plain.predictions["t"].probs), name
    other = finetune(config(epochs=2, seed=1), train, tmp_path / "d", **settings)
    assert not np.array_equal(other.predictions["t"].probs, plain.predictions["t"].probs)


def test_a_student_of_an_always_wrong_teacher_is_wrong(config: Any, tmp_path: Path) -> None:
    """If the truth, which stands in a column of the rows, leaked, it would be right."""
    rows, test = make_rows(), make_rows(20, 100)
    wrong = labels_of(rows, np.eye(2)[[1 - y for y in rows.columns["label"]]])
    done = finetune(config(), training_rows(rows, wrong), tmp_path, predict={"t": test})
    figures = evaluate_predictions(done.predictions["t"], labels_of(test))
    assert figures["accuracy"] < 0.1


def test_training_rows_have_no_place_for_the_truth() -> None:
    names = {each.name for each in dataclasses.fields(TrainingRows)}
    assert names == {"contents", "kind", "ids", "hashes", "Y", "weight", "classes", "groups"}
    rows = make_rows(8)
    train = training_rows(rows, labels_of(rows, np.full((8, 2), 0.5)))
    assert train.contents == rows.contents()
    assert (train.Y == 0.5).all()


# Adapters of the others are slow: an encoder, a decoder and one of both stand for them.
ADAPTED = ("bert", "llama", "bart")


@pytest.mark.parametrize(
    ("name", "lora"),
    [
        pytest.param(
            *(name, lora),
            id=f"{name}-{'lora' if lora else 'full'}",
            marks=[pytest.mark.slow] if lora and name not in ADAPTED else [],
        )
        for name in ARCHITECTURES
        for lora in (False, True)
    ],
)
def test_predictions_are_the_head_on_extracted_states(
    name: str, lora: bool, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    """A second way: the saved folder, read by extract, times the saved head."""
    rows = make_rows(12)
    settings = {"lr": 1e-2, "max_steps": 3, "batch_size": 4, "device": "cpu", "dtype": "float32"}
    config = FinetuneConfig(model=str(tiny_model(name)), lora=lora, **settings)
    done = finetune(
        config, training_rows(rows, labels_of(rows)), tmp_path / "out", predict={"t": rows}
    )
    assert done.model is not None
    info, head = read_head(done.model)
    store = extract(rows, str(done.model), layers="last", output=tmp_path / "acts.h5", pool="auto")
    with store:
        assert store.spec["pooling"] == info.pool
        logits = store.layer() @ head["weight"].numpy().T + head["bias"].numpy()
    expected = torch.softmax(torch.from_numpy(logits.astype(np.float64)), dim=1).numpy()
    # Other batches, and adapters merged into the weights: the last bits of float32.
    np.testing.assert_allclose(done.predictions["t"].probs, expected, atol=2e-5)
    assert np.ptp(expected[:, 1]) > 1e-3  # the control: rows differ
    trained, all_ = (done.metrics[key] for key in ("trained_parameters", "parameters"))
    assert trained < 0.5 * all_ if lora else trained > 0.5 * all_


@pytest.mark.parametrize("objective", ["classify", "reward"])
def test_a_saved_classifier_predicts_as_it_did(objective: str, config: Any, tmp_path: Path) -> None:
    rows = make_rows(24)
    if objective == "reward":
        texts = list(rows.columns["text"])
        rows = Rows({"text": texts, "text_pair": texts[::-1], "label": rows.columns["label"]})
    train = training_rows(rows, labels_of(rows))
    done = finetune(config(objective=objective), train, tmp_path, predict={"t": rows})
    assert done.model is not None
    counted: list[int] = []
    again = predict_rows(done.model, rows, batch_tokens=64, on_rows=counted.append)
    # Other batches: the last bits of float32.
    np.testing.assert_allclose(again.probs, done.predictions["t"].probs, atol=1e-5)
    assert (again.ids, again.classes) == (rows.ids, ("cat", "tool"))
    assert sum(counted) == 24
    assert len(counted) > 1


def test_a_saved_classifier_reads_as_much_as_it_was_trained_on(config: Any, tmp_path: Path) -> None:
    texts = [f"{'word ' * (i % 9)}{('cat', 'tool')[i % 2]}" for i in range(24)]
    rows = Rows({"text": texts, "label": [0, 1] * 12})
    train = training_rows(rows, labels_of(rows))
    done = finetune(config(max_length=8), train, tmp_path, predict={"t": rows})
    assert done.model is not None
    assert read_head(done.model)[0].max_length == 8
    again = predict_rows(done.model, rows)
    np.testing.assert_allclose(again.probs, done.predictions["t"].probs, atol=1e-5)
    cut = done.metrics["truncated"]
    assert 0 < cut["t"] == cut["training rows"] < 24
    assert again.provenance["truncated"] == cut["t"]
    assert again.provenance["max_length"] == done.metrics["max_length"] == 8
    # Control: more of each row gives other probabilities.
    more = predict_rows(done.model, rows, max_length=100)
    assert np.abs(more.probs - again.probs).max() > 1e-3
    assert more.provenance["truncated"] == 0
    # Folders of 0.1.0 do not say it: they are read as it read them.
    note = done.model / "classifier.json"
    content = json.loads(note.read_text())
    old = {key: content[key] for key in ("classes", "pool", "objective")}
    note.write_text(json.dumps(old))
    np.testing.assert_array_equal(predict_rows(done.model, rows).probs, more.probs)
    for wrong in ("many", 0, True):
        note.write_text(json.dumps({**old, "max_length": wrong}))
        with pytest.raises(ModelError, match="is damaged: its max_length is"):
            predict_rows(done.model, rows)


def test_predictions_do_not_depend_on_padding(
    tiny_model: Callable[..., Path], config: Any, tmp_path: Path
) -> None:
    texts = [f"{'word ' * (i % 5)}{('cat', 'tool')[i % 2]}" for i in range(12)]
    rows = Rows({"text": texts, "label": [0, 1] * 6})
    train = training_rows(rows, labels_of(rows))
    fnet = config(model=str(tiny_model("fnet")), max_steps=2)
    done = finetune(fnet, train, tmp_path, predict={"t": rows})
    assert done.model is not None
    alone = [predict_rows(done.model, rows.select([i])).probs[0] for i in range(12)]
    np.testing.assert_allclose(done.predictions["t"].probs, alone, atol=1e-5)
    np.testing.assert_allclose(predict_rows(done.model, rows).probs, alone, atol=1e-5)


def test_what_is_no_saved_classifier_is_reported(config: Any, tmp_path: Path) -> None:
    rows = make_rows(8)
    train = training_rows(rows, labels_of(rows))
    with pytest.raises(UsageError, match="holds no classifier"):
        predict_rows(config().model, rows)
    done = finetune(config(lora=True, save="adapter", max_steps=1), train, tmp_path)
    assert done.model is not None
    with pytest.raises(UsageError, match="an adapter alone"):
        predict_rows(done.model, rows)


def test_adapter_alone_is_small(config: Any, tmp_path: Path) -> None:
    rows = make_rows(8)
    train = training_rows(rows, labels_of(rows))
    done = finetune(config(lora=True, save="adapter", max_steps=1), train, tmp_path)
    assert done.model is not None
    assert (done.model / "adapter_model.safetensors").is_file()
    assert not (done.model / "model.safetensors").exists()


def test_lora_without_a_matching_module_is_reported(config: Any, tmp_path: Path) -> None:
    rows = make_rows(8)
    with pytest.raises(ModelError, match=r"LoRA finds no module .*nowhere.*are called dense, key"):
        finetune(
            config(lora=True, lora_modules=["nowhere"]),
            training_rows(rows, labels_of(rows)),
            tmp_path,
        )


def test_three_classes(config: Any, tmp_path: Path) -> None:
    texts = [f"{word} {i}" for i in range(15) for word in ("cat", "hammer", "seven wizards")]
    rows = Rows({"text": texts, "label": [i % 3 for i in range(45)]})
    train = training_rows(rows, labels_of(rows, classes=("a", "b", "c")))
    done = finetune(config(), train, tmp_path, predict={"t": rows})
    assert done.predictions["t"].probs.shape == (45, 3)
    np.testing.assert_allclose(done.predictions["t"].probs.sum(axis=1), 1)
    assert (done.predictions["t"].hard == np.arange(45) % 3).mean() > 0.9


def test_soft_labels_are_learned_as_such(config: Any, tmp_path: Path) -> None:
    rows = make_rows()
    done = finetune(
        config(epochs=8),
        training_rows(rows, labels_of(rows, np.tile([0.3, 0.7], (40, 1)))),
        tmp_path,
        predict={"t": rows},
    )
    # Hardened labels would drive it to 1.
    assert done.predictions["t"].probs[:, 1].mean() == pytest.approx(0.7, abs=0.1)


def test_verdicts_keep_label_and_weight_are_honoured(config: Any, tmp_path: Path) -> None:
    rows = make_rows(16)
    keep = np.arange(16) >= 4
    label = np.tile(np.array([[0.25, 0.75]], np.float32), (16, 1))
    weight = np.where(np.arange(16) % 2, 3, 1).astype(np.float32)
    train = training_rows(rows, verdicts_of(rows, keep=keep, label=label, weight=weight))
    assert train.ids == rows.ids[4:]
    np.testing.assert_allclose(train.Y, label[4:])
    np.testing.assert_allclose(train.weight, weight[4:] / 2)
    assert train.weight.mean() == pytest.approx(1)
    plain = training_rows(rows, labels_of(rows))
    assert len(plain) == 16


def test_rows_of_weight_zero_teach_nothing(config: Any, tmp_path: Path) -> None:
    """Their labels may be anything: the same predictions to the last bit."""
    rows = make_rows(24)
    weight = np.where(np.arange(24) % 3 == 0, 0, 1).astype(np.float32)
    flipped = np.eye(2, dtype=np.float32)[list(rows.columns["label"])]
    flipped[weight == 0] = flipped[weight == 0][:, ::-1]
    found = []
    for name, columns in (("a", {}), ("b", {"label": flipped})):
        train = training_rows(rows, verdicts_of(rows, weight=weight, **columns))
        done = finetune(config(epochs=1), train, tmp_path / name, predict={"t": rows})
        found.append(done.predictions["t"].probs)
    np.testing.assert_array_equal(*found)
    control = training_rows(rows, verdicts_of(rows, label=flipped))
    done = finetune(config(epochs=1), control, tmp_path / "c", predict={"t": rows})
    assert np.abs(done.predictions["t"].probs - found[0]).max() > 1e-4


def test_same_seed_same_result(config: Any, tmp_path: Path) -> None:
    rows = make_rows(16)
    train = training_rows(rows, labels_of(rows))
    probs = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        done = finetune(config(epochs=1, seed=seed), train, tmp_path / name, predict={"t": rows})
        probs[name] = done.predictions["t"].probs
    np.testing.assert_array_equal(probs["a"], probs["b"])
    assert np.abs(probs["a"] - probs["c"]).max() > 1e-5


def test_mixed_precision_leaves_the_head_in_float32(config: Any, tmp_path: Path) -> None:
    rows = make_rows(16)
    train = training_rows(rows, labels_of(rows))
    done = finetune(config(dtype="bfloat16", epochs=1), train, tmp_path, predict={"t": rows})
    assert done.model is not None
    head = read_head(done.model)[1]
    assert {value.dtype for value in head.values()} == {torch.float32}
    logits = np.log(done.predictions["t"].probs)
    difference = logits[:, 1] - logits[:, 0]
    rounded = torch.from_numpy(difference).bfloat16().double().numpy()
    # bfloat16 logits would be equal to their roundings up to float64's own.
    assert np.abs(difference - rounded).max() > 1e-6


class TestReward:
    def pairs(self, n: int = 24) -> Rows:
        """The completion about hammers is preferred."""
        texts = [
            (ANIMALS[i % 5] + f" {i}", TOOLS[i % 5] + f" {i}")[:: 1 if i % 2 else -1]
            for i in range(n)
        ]
        return Rows(
            {
                "text": [first for first, _ in texts],
                "text_pair": [second for _, second in texts],
                "label": [i % 2 for i in range(n)],
            }
        )

    def test_probability_is_the_sigmoid_of_a_difference(self, config: Any, tmp_path: Path) -> None:
        rows = self.pairs()
        swapped = Rows({"text": rows.columns["text_pair"], "text_pair": rows.columns["text"]})
        done = finetune(
            config(objective="reward"),
            training_rows(rows, labels_of(rows, classes=("first", "second"))),
            tmp_path / "out",
            predict={"t": rows, "swapped": swapped},
        )
        probs = done.predictions["t"].probs
        assert (probs.argmax(axis=1) == rows.columns["label"]).mean() > 0.9
        # Each is scored alone, so exchanging them exchanges the probabilities.
        np.testing.assert_allclose(done.predictions["swapped"].probs, probs[:, ::-1], atol=1e-5)
        assert done.model is not None
        info, head = read_head(done.model)
        assert info.objective == "reward"
        assert head.keys() == {"weight"}  # a bias would cancel
        scores = []
        for side in ("text", "text_pair"):
            name = str(done.model)
            with extract(
                list(rows.columns[side]), name, layers="last", output=tmp_path / side
            ) as s:
                scores.append(s.layer() @ head["weight"].numpy()[0])
        expected = 1 / (1 + np.exp(-(scores[1] - scores[0]).astype(np.float64)))
        np.testing.assert_allclose(probs[:, 1], expected, atol=2e-5)

    def test_it_needs_pairs(self, config: Any, tmp_path: Path) -> None:
        rows = make_rows(8)
        train = training_rows(rows, labels_of(rows))
        with pytest.raises(DataError, match="columns text and text_pair"):
            finetune(config(objective="reward"), train, tmp_path)


class TestHeldOut:
    def test_best_evaluation_on_weak_labels_is_kept(self, config: Any, tmp_path: Path) -> None:
        rows, held = make_rows(), make_rows(12, 200)
        noisy = labels_of(held, np.eye(2)[[i % 2 if i % 3 else 1 - i % 2 for i in range(12)]])
        settings = config(early_stop="log_loss", epochs=8, evals=10, lr=1e-2)
        done = finetune(
            settings,
            training_rows(rows, labels_of(rows)),
            tmp_path,
            validation=training_rows(held, noisy),
            predict={"t": held},
            curves=True,
        )
        losses = {
            h["step"]: h["eval_log_loss"] for h in done.metrics["history"] if "eval_log_loss" in h
        }
        best = min(losses, key=losses.__getitem__)
        assert done.metrics["best_step"] == best < done.metrics["steps"]
        steps, probs = read_curve(tmp_path, "t")
        assert steps == sorted(losses)
        kept = probs[steps.index(best)]
        np.testing.assert_allclose(done.predictions["t"].probs, kept, atol=1e-6)
        # The history's figure, computed again from the curve.
        weak = noisy.probs * np.log(probs[steps.index(best)])
        assert losses[best] == pytest.approx(-weak.sum(axis=1).mean(), abs=1e-5)

    def test_patience_stops(self, config: Any, tmp_path: Path) -> None:
        rows, held = make_rows(), make_rows(12, 200)
        wrong = labels_of(held, np.eye(2)[[1 - y for y in held.columns["label"]]])
        done = finetune(
            config(early_stop="log_loss", patience=2, epochs=8, evals=10, lr=1e-2),
            training_rows(rows, labels_of(rows)),
            tmp_path,
            validation=training_rows(held, wrong),
        )
        assert done.metrics["steps"] < 40

    def test_it_needs_rows(self, config: Any, tmp_path: Path) -> None:
        rows = make_rows(8)
        with pytest.raises(UsageError, match="needs held-out rows with weak labels"):
            finetune(config(early_stop="auroc"), training_rows(rows, labels_of(rows)), tmp_path)

    def test_share_is_taken_off_with_copies_together(self) -> None:
        rows = Rows({"text": [f"t{i // 2}" for i in range(40)], "label": [0, 1] * 20})
        train, held = hold_out(training_rows(rows, labels_of(rows)), 0.25, seed=3)
        assert len(held) == 10
        assert not set(train.hashes) & set(held.hashes)
        assert sorted(map(int, [*train.ids, *held.ids])) == list(range(40))
        with pytest.raises(UsageError, match="leaves one side empty"):
            hold_out(train, 0.001)


class TestResume:
    SCRIPT = textwrap.dedent(
        """
        import sys
        sys.path.insert(0, {tests!r})
        import torch
        torch.set_num_threads(1)
        from test_finetune_rows import make
        from probekit.students.config import FinetuneConfig
        from probekit.students.finetune import finetune
        train, rows = make()
        config = FinetuneConfig(model=sys.argv[1], lr=3e-3, epochs=4, batch_size=4, device="cpu",
                                loss="logconf", save_seconds=0.0)
        finetune(config, train, sys.argv[2], predict={{"t": rows}})
        """
    )

    @pytest.mark.slow
    def test_a_killed_training_ends_like_an_unbroken_one(
        self, tiny_model: Callable[..., Path], tmp_path: Path
    ) -> None:
        """With a loss that has a state; every step writes a checkpoint here."""
        (tmp_path / "test_finetune_rows.py").write_text(
            textwrap.dedent(
                """
                import numpy as np
                from probekit.data import Rows
                from probekit.labels import WeakLabels
                from probekit.students.finetune import training_rows

                def make():
                    rows = Rows({"text": [["hammer", "cat"][i % 2] + f" {i}" for i in range(40)]})
                    probs = np.array([[0.2, 0.8] if i % 2 else [0.7, 0.3] for i in range(40)])
                    labels = WeakLabels(list(rows.ids), list(rows.hashes), probs, ("a", "b"))
                    return training_rows(rows, labels), rows
                """
            )
        )
        script = self.SCRIPT.format(tests=str(tmp_path))
        model = str(tiny_model("bert"))

        def begin(folder: str) -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                [sys.executable, "-c", script, model, str(tmp_path / folder)],
                stderr=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

        assert begin("whole").wait(120) == 0
        broken, deadline = begin("broken"), time.monotonic() + 60
        while not any(
            (
                tmp_path / "broken" / "checkpoints" / f"checkpoint-{i}" / "trainer_state.json"
            ).exists()
            for i in range(5, 40)
        ):
            assert time.monotonic() < deadline
            assert broken.poll() is None
            time.sleep(0.01)
        broken.send_signal(signal.SIGKILL)
        broken.wait()
        assert not (tmp_path / "broken" / "metrics.json").exists()
        assert begin("broken").wait(120) == 0
        weights = [
            load_file(tmp_path / name / "model" / "model.safetensors")
            for name in ("whole", "broken")
        ]
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
        assert not (tmp_path / "broken" / "checkpoints").exists()

    @pytest.mark.parametrize("grad_accum", [pytest.param(1, marks=pytest.mark.slow), 2])
    def test_figures_are_of_the_whole_training(
        self, grad_accum: int, config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The mean loss, what the window let in, and how long early stopping has been patient."""
        rows, held = make_rows(), make_rows(12, 200)
        train = training_rows(rows, labels_of(rows))
        wrong = labels_of(held, np.eye(2)[[1 - y for y in held.columns["label"]]])
        settings = config(
            epochs=4, evals=8, lr=3e-3, save_seconds=0.0, loss="window", grad_accum=grad_accum
        )
        patient = config(epochs=8, evals=16, lr=1e-2, early_stop="log_loss", patience=3)
        held_out = training_rows(held, wrong)
        whole = finetune(settings, train, tmp_path / "whole").metrics
        stopped = finetune(patient, train, tmp_path / "p", validation=held_out).metrics
        step = FiniteTrainer.training_step

        def interrupted(how: Any, folder: str, at: int, **more: Any) -> Any:
            def until(self: FiniteTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
                if self.state.global_step == at:
                    raise KeyboardInterrupt
                return step(self, *args, **kwargs)

            monkeypatch.setattr(FiniteTrainer, "training_step", until)
            with pytest.raises(KeyboardInterrupt):
                finetune(how, train, tmp_path / folder, **more)
            monkeypatch.setattr(FiniteTrainer, "training_step", step)
            return finetune(how, train, tmp_path / folder, **more).metrics

        broken = interrupted(settings, "broken", whole["steps"] * 2 // 3)
        assert broken["train_loss"] == whole["train_loss"]
        assert broken["notes"] == whole["notes"]
        logged = [entry["loss"] for entry in broken["history"] if "loss" in entry]
        # The control: the steps since the kill have another mean.
        assert whole["train_loss"] != pytest.approx(np.mean(logged[-2:]), rel=1e-3)
        again = interrupted(patient, "q", stopped["steps"] - 1, validation=held_out)
        assert again["steps"] == stopped["steps"] < 80 // grad_accum

    def test_a_finished_folder_is_used_as_it_is(self, config: Any, tmp_path: Path) -> None:
        rows = make_rows(8)
        train = training_rows(rows, labels_of(rows))
        first = finetune(config(epochs=1), train, tmp_path, predict={"t": rows})
        before = (tmp_path / "metrics.json").stat().st_mtime_ns
        again = finetune(config(epochs=1), train, tmp_path, predict={"t": rows})
        assert (tmp_path / "metrics.json").stat().st_mtime_ns == before
        np.testing.assert_array_equal(first.predictions["t"].probs, again.predictions["t"].probs)

    @pytest.mark.parametrize("change", ["lr", "labels"])
    def test_another_run_is_refused(self, change: str, config: Any, tmp_path: Path) -> None:
        rows = make_rows(8)
        train = training_rows(rows, labels_of(rows))
        finetune(config(epochs=1), train, tmp_path)
        other = config(epochs=1, **({"lr": 1e-3} if change == "lr" else {}))
        if change == "labels":
            train = training_rows(rows, labels_of(rows, np.full((8, 2), 0.5)))
        with pytest.raises(OutputExistsError, match=r"another run \((lr|train) differ"):
            finetune(other, train, tmp_path)


def test_a_loss_that_is_no_number_stops_and_keeps_the_checkpoint(
    config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverging(self: Any, *args: Any, step: int, **more: Any) -> Any:
        return call(self, *args, step=step, **more) * (np.nan if step == 2 else 1)

    call = Loss.__call__
    monkeypatch.setattr(Loss, "__call__", diverging)
    rows = make_rows(16)
    train = training_rows(rows, labels_of(rows))
    with pytest.raises(ModelError, match="The loss of step 3 is nan, so training stopped before"):
        finetune(config(save_seconds=0.0), train, tmp_path)
    kept = list((tmp_path / "checkpoints").glob("checkpoint-*/model.safetensors"))
    assert kept
    assert not (tmp_path / "metrics.json").exists()


def test_evaluations_every_so_many_steps(config: Any, tmp_path: Path) -> None:
    rows, held = make_rows(40), make_rows(10, 100)
    settings = config(epochs=4, early_stop="log_loss", eval_steps=6, evals=2)
    done = finetune(
        settings,
        training_rows(rows, labels_of(rows)),
        tmp_path,
        validation=training_rows(held, labels_of(held)),
    )
    evaluated = [each["step"] for each in done.metrics["history"] if "eval_log_loss" in each]
    assert evaluated[:3] == [6, 12, 18], "of 20 steps; `evals` would have been every 10"
    assert done.metrics["best_step"] in evaluated


class TestOneClass:
    """Students that are sure of one class for every row, and labels that are of one class."""

    def test_saturated_predictions_are_read_back(
        self, config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rows = make_rows(16)

        def saturated(self: Any, rows: Any) -> Any:
            return np.tile([0.0, 1.0], (len(rows), 1))

        monkeypatch.setattr(ClassTrainer, "probabilities", saturated)
        train = training_rows(rows, labels_of(rows))
        done = finetune(config(epochs=1), train, tmp_path, predict={"t": rows})
        np.testing.assert_array_equal(done.predictions["t"].probs, [[0, 1]] * 16)
        figures = evaluate_predictions(done.predictions["t"], labels_of(rows))
        assert figures["auroc"] == 0.5
        assert all(v is not None and np.isfinite(v) for v in figures.values())
        # Used as it is, too.
        again = finetune(config(epochs=1), train, tmp_path, predict={"t": rows})
        assert again.predictions["t"].classes == ("cat", "tool")

    def test_a_rate_far_too_high_ends_whole(self, config: Any, tmp_path: Path) -> None:
        rows = make_rows(16)
        settings = config(lr=30.0, epochs=3)
        done = finetune(
            settings, training_rows(rows, labels_of(rows)), tmp_path, predict={"t": rows}
        )
        assert np.isfinite(done.predictions["t"].probs).all()

    def test_labels_of_one_class_are_refused_before_the_folder_is_taken(
        self, config: Any, tmp_path: Path
    ) -> None:
        rows = make_rows(8)
        train = training_rows(rows, labels_of(rows, np.tile([0.0, 1.0], (8, 1))))
        with pytest.raises(LabelsError, match="All 8 rows to train on are of the class 'tool'"):
            finetune(config(), train, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        # The control: soft labels say something, whichever class is the likelier for all rows.
        soft = np.column_stack([np.linspace(0.1, 0.4, 8), np.linspace(0.9, 0.6, 8)])
        train = training_rows(rows, labels_of(rows, soft))
        assert finetune(config(epochs=1), train, tmp_path / "out").metrics["steps"] == 1

    def test_held_out_labels_of_one_class_have_no_auroc(self, config: Any, tmp_path: Path) -> None:
        rows, held = make_rows(8), make_rows(6, 100)
        train = training_rows(rows, labels_of(rows))
        validation = training_rows(held, labels_of(held, np.tile([0.2, 0.8], (6, 1))))
        with pytest.raises(LabelsError, match="All 6 held-out labels are of one class"):
            finetune(config(early_stop="auroc"), train, tmp_path, validation=validation)
        finetune(config(early_stop="log_loss", epochs=1), train, tmp_path, validation=validation)


def test_outputs_that_are_not_finite_are_one_sentence() -> None:
    with pytest.raises(ModelError, match="outputs for 2 of 3 rows are not finite; lower"):
        proba_of([[0.0, np.nan], [np.inf, 0.0], [1.0, 2.0]])
    np.testing.assert_allclose(proba_of([[0.0, 0.0], [-1e6, 1e6]]), [[0.5, 0.5], [0, 1]])


class TestBadInput:
    def test_labels_that_miss_rows(self) -> None:
        rows = make_rows(8)
        some = labels_of(rows.select([0, 1, 2]))
        with pytest.raises(LabelsError, match="no label for 5 of 8 rows"):
            training_rows(rows, some)
        assert len(training_rows(rows, some, only_labelled=True)) == 3

    def test_labels_of_other_texts(self) -> None:
        rows = make_rows(8)
        other = Rows({**rows.columns, "text": [f"x{i}" for i in range(8)]})
        with pytest.raises(LabelsError, match="text"):
            training_rows(other, labels_of(rows))

    def test_verdicts_of_another_data_set(self) -> None:
        rows = make_rows(8)
        with pytest.raises(DataError, match="8 of 8 rows of the verdicts are not in"):
            training_rows(make_rows(8, 100), verdicts_of(rows))
        other = Rows({**rows.columns, "text": [f"x{i}" for i in range(8)]})
        with pytest.raises(DataError, match="have another text than the verdicts"):
            training_rows(other, verdicts_of(rows))

    def test_everything_filtered_away(self) -> None:
        rows = make_rows(8)
        with pytest.raises(DataError, match="all were dropped; filter less"):
            training_rows(rows, verdicts_of(rows, keep=np.zeros(8, bool)))

    def test_weights_that_leave_nothing(self) -> None:
        rows = make_rows(8)
        with pytest.raises(LabelsError, match="must not be negative, nor all 0"):
            training_rows(rows, verdicts_of(rows, weight=np.zeros(8, np.float32)))

    def test_one_class(self, config: Any, tmp_path: Path) -> None:
        rows = make_rows(8)
        labels = labels_of(rows, np.ones((8, 1)), ("only",))
        with pytest.raises(LabelsError, match="one class only"):
            finetune(config(), training_rows(rows, labels), tmp_path)

    def test_fewer_classes_in_validation(self, config: Any, tmp_path: Path) -> None:
        rows = make_rows(8)
        three = np.eye(3)[[0, 1, 2, 0, 1, 2, 0, 1]]
        with pytest.raises(LabelsError, match="have the classes a, b, c, validation labels"):
            finetune(
                config(),
                training_rows(rows, labels_of(rows, three, ("a", "b", "c"))),
                tmp_path,
                validation=training_rows(rows, labels_of(rows)),
            )

    def test_unknown_loss(self, config: Any, tmp_path: Path) -> None:
        rows = make_rows(8)
        with pytest.raises(UsageError, match="did you mean logconf"):
            finetune(config(loss="logcnf"), training_rows(rows, labels_of(rows)), tmp_path)

    def test_generative_objectives_are_elsewhere(self, config: Any, tmp_path: Path) -> None:
        rows = make_rows(8)
        with pytest.raises(UsageError, match=r"probekit\.students\.generative"):
            finetune(config(objective="lm"), training_rows(rows, labels_of(rows)), tmp_path)

    @pytest.mark.parametrize(
        ("settings", "sentence"),
        [
            ({"objective": "rank"}, "objective is one of classify"),
            ({"epochs": 0}, r"epochs is a number in \(0, 1,000,000\], got 0"),
            ({"batch_size": 0}, "batch_size is a whole number from 1 to"),
            ({"lr": -1.0}, r"lr is a number in \(0,"),
            ({"save": "adapter"}, "Only LoRA has an adapter"),
            ({"early_stop": "loss"}, "early_stop is one of log_loss"),
            ({"device": "cuda:1"}, "CUDA_VISIBLE_DEVICES"),
            ({"learning_rat": 1}, "learning_rat is not a setting"),
            ({"epochs": "two"}, r"epochs is a number in .* got 'two'"),
        ],
    )
    def test_settings(self, settings: dict[str, Any], sentence: str) -> None:
        FinetuneConfig.from_mapping({"model": "m"})  # the control
        with pytest.raises(UsageError, match=sentence):
            FinetuneConfig.from_mapping({"model": "m", **settings})
