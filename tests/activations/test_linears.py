"""Linear layers in oneDNN: the same numbers up to rounding, and only where it can take them."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from probekit.activations import linears
from probekit.activations.linears import fast_linears

CPU = torch.device("cpu")

pytestmark = pytest.mark.skipif(
    isinstance(fast_linears(CPU), linears.nullcontext), reason="PyTorch has no MKL or no oneDNN"
)


@pytest.fixture
def taken(monkeypatch):
    """Shapes of the products that oneDNN was given."""
    shapes = []
    product = linears._product

    def seen(x, weight, bias, *rest):
        shapes.append((tuple(x.shape), tuple(weight.shape)))
        return product(x, weight, bias, *rest)

    monkeypatch.setattr(linears, "_product", seen)
    return shapes


@pytest.mark.parametrize("shape", [(7, 48), (3, 5, 48), (2, 1, 4, 48)])
@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_the_numbers_are_those_of_float64(shape, bias, taken):
    torch.manual_seed(0)
    layer = torch.nn.Linear(48, 20, bias=bias)
    x = torch.randn(shape)
    with fast_linears(CPU):
        fast = layer(x)
        turned = layer(torch.randn(48, 6).T)  # rows that do not lie one after the other
    assert len(taken) == 2
    assert turned.shape == (6, 20)
    exact = layer.double()(x.double())
    # Sums of 48 products below 1: some units in the last place of 1.
    assert (fast - exact).abs().max() < 2e-6
    assert (fast.bfloat16() - exact).abs().max() > 2e-6  # the control


@torch.inference_mode()
def test_the_rest_goes_where_it_went(taken):
    weight, x = torch.randn(20, 48), torch.randn(3, 48)
    cases = [
        (x.double(), weight.double()),
        (x.bfloat16(), weight.bfloat16()),
        (x[0], weight),
        (x[:0], weight),
    ]
    expected = [functional.linear(*case) for case in cases]
    with fast_linears(CPU):
        found = [functional.linear(*case) for case in cases]
        assert not taken
        functional.linear(input=x, weight=weight, bias=None)
    assert all(map(torch.equal, found, expected))
    assert len(taken) == 1
    functional.linear(x, weight)
    assert len(taken) == 1


def test_it_can_be_switched_off(taken, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    with torch.inference_mode(), fast_linears(CPU):
        functional.linear(torch.randn(3, 48), torch.randn(20, 48))
    assert not taken


def test_elsewhere_than_on_the_processor_nothing_changes():
    assert isinstance(fast_linears(torch.device("cuda")), linears.nullcontext)


def test_without_the_product_nothing_changes(monkeypatch):
    monkeypatch.setattr(linears, "_product", None)
    assert isinstance(fast_linears(CPU), linears.nullcontext)


def test_a_tapped_model_runs_in_it_and_is_left_as_it_was(taken):
    from transformers import BertConfig, BertModel

    from probekit.activations.tapping import Tap, find_blocks

    torch.manual_seed(0)
    model = BertModel(
        BertConfig(
            vocab_size=50,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
        )
    ).eval()
    ids = torch.randint(0, 50, (4, 9))
    with torch.inference_mode():
        plain = model(input_ids=ids, output_hidden_states=True).hidden_states
    assert not taken
    tap = Tap(model, (0, 2), depth=2, take=lambda s, _: s.clone(), blocks=find_blocks(model, 2))
    found = tap(ids)
    assert len(taken) >= 2 * 6  # query, key, value, output and two of the feed-forward part
    for layer in (0, 2):
        assert (found[layer] - plain[layer]).abs().max() < 1e-5  # the contract's
    tap.remove()
    taken.clear()
    model(input_ids=ids)
    assert not taken
