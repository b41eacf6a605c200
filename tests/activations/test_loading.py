"""States against a plain forward of the whole model, one row at a time, for many architectures."""

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

from probekit.activations.batching import Batch, cut_batches
from probekit.activations.checkpoint import open_checkpoint, open_loaded, text_root
from probekit.activations.encoding import Encoder
from probekit.activations.forward import Feed, Window
from probekit.activations.hooks import POOLERS, find_blocks
from probekit.activations.loading import Placement, kind_of, resolve_device, tapped
from probekit.errors import ModelError, UsageError

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = Placement("cpu")
LISTED = [
    *("bert", "roberta", "deberta-v3", "gpt2", "gpt-neox", "opt", "opt-projected"),
    *("llama", "qwen2", "gemma2", "phi", "t5"),
]
BEYOND = ["albert", "bart"]  # no list of blocks; an encoder beside its decoder

# Sums of float32 run in another order when a batch has another shape: a few units in the last
# place of the largest number in a state. 1e-5 is what the contract allows.
TOLERANCE = 1e-5

Reference = dict[int, list[torch.Tensor]]


def reference(folder: Path | str, texts: list[str]) -> Reference:
    """Layer -> states (s, d) of each text, by ``output_hidden_states`` of the whole model."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    root = text_root(model, model.config)
    found: Reference = {}
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            states = root(input_ids=ids, output_hidden_states=True).hidden_states
        for layer, value in enumerate(states):
            found.setdefault(layer, []).append(value[0])
    return found


def by_hand(states: torch.Tensor, pool: str) -> torch.Tensor:
    return {
        "last": states[-1],
        "first": states[0],
        "mean": states.sum(0) / len(states),
        "max": states.max(0).values,
    }[pool]


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, relative to the largest number of the state where that exceeds 1."""
    scale = max(1.0, float(expected.abs().max()))
    return float((found - expected).abs().max()) / scale


def run_tap(
    checkpoint: Any, layers: list[int], pool: str, texts: list[str], *, budget: int
) -> dict[int, torch.Tensor]:
    encoder = Encoder(checkpoint.tokenizer, kind="text")
    encoded = encoder.encode(texts, [str(i) for i in range(len(texts))])
    found: dict[int, torch.Tensor] = {}
    with tapped(checkpoint, layers, POOLERS[pool], CPU) as tap:
        feed = Feed(tap, torch.device("cpu"), checkpoint.pad_id)
        for places in cut_batches(encoded.lengths, budget):
            batch = Batch(places, places, encoded.lengths[places])
            for layer, states in feed.states(Window(encoded, []), batch).items():
                found.setdefault(layer, torch.zeros(len(texts), states.shape[1]))[places] = states
    return found


@pytest.fixture(scope="module")
def references(tiny_model: Callable[..., Path], texts: list[str]) -> Callable[[str], Reference]:
    made: dict[str, Reference] = {}

    def get(name: str) -> Reference:
        if name not in made:
            made[name] = reference(tiny_model(name), texts)
        return made[name]

    return get


@pytest.mark.parametrize("name", LISTED + BEYOND)
def test_every_layer_equals_a_plain_forward_of_single_rows(
    name: str,
    tiny_model: Callable[..., Path],
    references: Callable[[str], Reference],
    texts: list[str],
) -> None:
    checkpoint = open_checkpoint(str(tiny_model(name)))
    expected = references(name)
    layers = list(range(checkpoint.depth + 1))
    assert sorted(expected) == layers
    # About 32 rows a batch: rows of 3 and of 40 tokens share one, so that most are padded.
    for pool in sorted(POOLERS):
        found = run_tap(checkpoint, layers, pool, texts, budget=32 * 40)
        for layer in layers:
            for row, states in enumerate(expected[layer]):
                assert distance(found[layer][row], by_hand(states, pool)) < TOLERANCE


@pytest.mark.parametrize("name", LISTED + BEYOND)
def test_a_run_that_stops_early_gives_the_same_bits_as_the_whole_model(
    name: str, tiny_model: Callable[..., Path], references: Callable[[str], Reference]
) -> None:
    folder = tiny_model(name)
    checkpoint = open_checkpoint(str(folder))
    model = AutoModel.from_pretrained(folder).eval()
    root = text_root(model, model.config)
    ids = torch.tensor([[5, 9, 30, 40, 22]])
    with torch.no_grad():
        whole = root(input_ids=ids, output_hidden_states=True).hidden_states
    sizes = []
    for layer in range(checkpoint.depth + 1):
        with tapped(checkpoint, [layer], lambda s, _: s.clone(), CPU) as tap:
            assert torch.equal(tap(ids)[layer], whole[layer])
            assert checkpoint.widths[layer] == whole[layer].shape[-1]
            sizes.append(sum(p.numel() for p in tap.root.parameters()))
    if name != "albert":
        # Each layer needs one more block's weights in memory; the last adds no further block.
        steps = np.diff(sizes)
        blocks = find_blocks(root, checkpoint.depth)
        per_block = [sum(p.numel() for p in b.parameters()) for b in blocks]
        assert steps.tolist() == per_block


def test_batches_of_one_and_of_many_agree_to_the_tolerance_and_wrong_positions_would_not(
    tiny_model: Callable[..., Path], references: Callable[[str], Reference], texts: list[str]
) -> None:
    checkpoint = open_checkpoint(str(tiny_model("gpt2")))
    one = run_tap(checkpoint, [2], "last", texts, budget=1)[2]
    many = run_tap(checkpoint, [2], "last", texts, budget=4096)[2]
    assert max(map(distance, many, one)) < TOLERANCE
    # Control: padding on the left, where GPT-2 counts wrong positions.
    with tapped(checkpoint, [2], POOLERS["last"], CPU) as tap:
        ids = torch.tensor([[0, 0, 0, 30, 40]])
        mask = torch.tensor([[False, False, False, True, True]])
        naive = tap(ids, mask)[2][0]
        right = tap(ids[:, 3:])[2][0]
    assert distance(naive, right) > 100 * TOLERANCE


@pytest.mark.parametrize(("name", "kind"), [("bert", "mean"), ("gpt2", "last"), ("t5", "mean")])
def test_default_pooling(name: str, kind: str, tiny_model: Callable[..., Path]) -> None:
    assert open_checkpoint(str(tiny_model(name))).default_pool == kind


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_bfloat16_stays_bfloat16_on_the_processor(
    name: str, tiny_model: Callable[..., Path]
) -> None:
    checkpoint = open_checkpoint(str(tiny_model(name, "bfloat16")))
    assert checkpoint.dtype == torch.bfloat16
    with tapped(checkpoint, [2], POOLERS["last"], CPU) as tap:
        assert {p.dtype for p in tap.root.parameters()} == {torch.bfloat16}
        assert tap(torch.tensor([[5, 6]]))[2].dtype == torch.bfloat16
    asked = open_checkpoint(str(tiny_model(name, "bfloat16")), dtype="float32")
    with tapped(asked, [2], POOLERS["last"], CPU) as tap:
        assert {p.dtype for p in tap.root.parameters()} == {torch.float32}


def test_dtype_is_read_from_the_weights_where_the_configuration_is_silent(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_model("llama", "bfloat16"), tmp_path / "silent")
    config = json.loads((folder / "config.json").read_text())
    assert config.pop("dtype") == "bfloat16"
    (folder / "config.json").write_text(json.dumps(config))
    assert open_checkpoint(str(folder)).dtype == torch.bfloat16


def test_length_limits(tiny_model: Callable[..., Path]) -> None:
    # RoBERTa's 130 positions begin at padding_idx + 1 = 2.
    roberta = open_checkpoint(str(tiny_model("roberta")))
    assert roberta.length(None) == roberta.length(128) == 128
    with pytest.raises(UsageError, match="reads at most 128 tokens, not 129"):
        roberta.length(129)
    longest = torch.arange(5, 133)[None]
    with tapped(roberta, [1], POOLERS["mean"], CPU) as tap:
        assert torch.isfinite(tap(longest)[1]).all()
        with pytest.raises((IndexError, RuntimeError)):  # control: one more is one too many
            tap(torch.arange(5, 134)[None])
    assert open_checkpoint(str(tiny_model("t5"))).length(None) is None


def test_a_loaded_model_is_read_without_its_head_and_left_as_it_was(
    tiny_model: Callable[..., Path],
) -> None:
    from transformers import AutoModelForCausalLM

    folder = tiny_model("llama")
    model = AutoModelForCausalLM.from_pretrained(folder).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    called: list[int] = []
    model.lm_head.register_forward_hook(lambda *_: called.append(1))
    checkpoint = open_loaded(model, AutoTokenizer.from_pretrained(folder))
    fresh = open_checkpoint(str(folder))
    ids = torch.tensor([[5, 9, 30]])
    results = []
    for source in (checkpoint, fresh):
        with tapped(source, [1, 3], POOLERS["mean"], CPU) as tap:
            results.append(tap(ids))
    for layer in (1, 3):
        assert torch.equal(results[0][layer], results[1][layer])
    assert not called
    assert model.training
    assert not any(m._forward_pre_hooks for m in model.modules())
    after = model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert model(ids).logits.shape[:2] == (1, 3)
    assert called  # control: the hook on the head does fire


def test_blocks_are_found_only_where_there_is_one_list_of_that_depth() -> None:
    def block() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.ModuleList([torch.nn.Linear(1, 1)] * 2))

    two = torch.nn.ModuleList([block(), block()])
    nested = torch.nn.ModuleDict({"layers": two})
    assert find_blocks(nested, 2) is two  # the inner lists of 2 are parts of it
    both = torch.nn.ModuleDict({"a": torch.nn.ModuleList([block()] * 1), "b": two})
    assert find_blocks(both, 3) is None
    shared = block()
    assert find_blocks(torch.nn.ModuleDict({"a": torch.nn.ModuleList([shared] * 3)}), 3) is None


def test_weights_that_belong_to_another_model_are_refused(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_model("bert"), tmp_path / "mixed")
    shutil.copy(tiny_model("gpt2") / "model.safetensors", folder)
    checkpoint = open_checkpoint(str(folder))
    with (
        pytest.raises(ModelError, match=r"lack \d+ tensors that the model needs"),
        tapped(checkpoint, [1], POOLERS["mean"], CPU),
    ):
        pass


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ("tokenizer*", "has no tokenizer"),
        ("*.safetensors", "has no weights"),
        ("config.json", "has no config.json"),
    ],
)
def test_folders_that_lack_something_are_refused(
    missing: str, sentence: str, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_model("bert"), tmp_path / "m")
    for path in folder.glob(missing):
        path.unlink()
    with pytest.raises(ModelError, match=sentence):
        open_checkpoint(str(folder))


def test_pickled_weights_are_refused(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model("bert"), tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="only pickled weights"):
        open_checkpoint(str(folder))


def test_damaged_weights_and_configurations_are_refused(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_model("llama"), tmp_path / "m")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    checkpoint = open_checkpoint(str(folder))
    with (
        pytest.raises(ModelError, match="cannot be loaded") as caught,
        tapped(checkpoint, [1], POOLERS["mean"], CPU),
    ):
        pass
    assert "\n" not in str(caught.value)
    (folder / "config.json").write_text("{not json")
    with pytest.raises(ModelError, match=r"config.json: not JSON"):
        open_checkpoint(str(folder))


def test_unknown_names_are_refused_in_one_sentence() -> None:
    with pytest.raises(ModelError, match="hub cannot be reached") as caught:
        open_checkpoint("nobody/no-such-model")
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="does not exist"):
        open_checkpoint("./no/such/folder")


@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
def test_accelerate_places_the_weights_and_the_states_stay(
    name: str, tiny_model: Callable[..., Path]
) -> None:
    checkpoint = open_checkpoint(str(tiny_model(name)))
    ids = torch.tensor([[5, 9, 30]])
    found = []
    for device in ("cpu", "map"):
        with tapped(checkpoint, [0, 2], POOLERS["mean"], Placement(device)) as tap:
            found.append({k: v.cpu() for k, v in tap(ids).items()})
    for layer in (0, 2):
        torch.testing.assert_close(found[1][layer], found[0][layer])
    assert kind_of("map") == resolve_device("auto").partition(":")[0]


def test_devices() -> None:
    assert resolve_device("cpu") == "cpu"
    assert resolve_device("auto") in ("cpu", "mps", "cuda:0")
    for wrong in ("gpu", "cuda:99", "cuda:x", ""):
        with pytest.raises(UsageError, match="There is no device"):
            resolve_device(wrong)


@pytest.mark.parametrize("layers", [[0], [3], [6], [0, 1, 2, 3, 4, 5, 6]])
def test_minilm_equals_its_plain_forward(layers: list[int], minilm: str, texts: list[str]) -> None:
    some = texts[::5]
    expected = reference(minilm, some)
    found = run_tap(open_checkpoint(minilm), layers, "mean", some, budget=4096)
    for layer in layers:
        for row, states in enumerate(expected[layer]):
            assert distance(found[layer][row], by_hand(states, "mean")) < TOLERANCE


@pytest.mark.realdata
def test_stories260k_equals_its_plain_forward(realdata: Any, texts: list[str]) -> None:
    folder = str(realdata.models / "stories260K")
    expected = reference(folder, texts)
    checkpoint = open_checkpoint(folder)
    layers = list(range(checkpoint.depth + 1))
    found = run_tap(checkpoint, layers, "last", texts, budget=2048)
    for layer in layers:
        for row, states in enumerate(expected[layer]):
            assert distance(found[layer][row], by_hand(states, "last")) < TOLERANCE
