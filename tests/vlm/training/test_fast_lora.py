import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from vlm.training.fast_lora import make_fast


def pair(**knobs):
    """The same LoRA model twice, as PEFT runs it and made fast; its B matrices are not zero."""
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 4, bias=False))
    plain = get_peft_model(layers, LoraConfig(target_modules="0|2", r=3, init_lora_weights=False, **knobs))
    fast = copy.deepcopy(plain)
    make_fast(fast)
    return plain, fast


def results(model, x):
    """The output, and the gradients of the input and of the trained parameters."""
    x = x.clone().requires_grad_()
    out = model(x)
    out.square().sum().backward()
    return [out.detach(), x.grad, *(p.grad for p in model.parameters() if p.requires_grad)]


@pytest.mark.parametrize(
    "knobs", [{}, {"use_rslora": True}, {"bias": "all"}, {"bias": "lora_only"}, {"lora_bias": True}, {"use_dora": True}]
)
@pytest.mark.parametrize("shape", [(6,), (2, 7, 6), (9, 6)])
@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")
def test_results_equal_those_of_peft(knobs, shape):
    plain, fast = pair(**knobs)
    x = torch.randn(shape)
    for one, other in zip(results(plain, x), results(fast, x), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_dropout_is_off_in_evaluation_mode():
    plain, fast = pair(lora_dropout=0.5)
    x = torch.randn(3, 6)
    assert torch.allclose(plain.eval()(x), fast.eval()(x), atol=1e-6)
    assert not torch.allclose(fast.train()(x), fast.eval()(x), atol=1e-3)


def test_disabled_and_merged_adapters_are_respected():
    plain, fast = pair(lora_dropout=0.5)
    x = torch.randn(3, 6)
    with fast.disable_adapter(), plain.disable_adapter():
        assert torch.equal(plain(x), fast(x))
    fast.merge_adapter()
    assert torch.allclose(plain.eval()(x), fast(x), atol=1e-5)


def identity(size, p):
    """A layer whose output is the dropped-out input."""
    base = torch.nn.Sequential(torch.nn.Linear(size, size, bias=False))
    config = LoraConfig(target_modules="0", r=size, lora_alpha=size, lora_dropout=p, init_lora_weights=False)
    model = get_peft_model(base, config)
    make_fast(model)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.zeros(size, size) if "base_layer" in name else torch.eye(size))
    return model


@pytest.mark.parametrize("p", [0.05, 0.5, 0.999999])
def test_dropout_has_the_statistics_of_torch(p):
    torch.manual_seed(0)
    x = torch.full((7000, 41), 2.0, requires_grad=True)
    out = identity(41, p)(x)
    kept = out != 0
    assert kept.double().mean().item() == pytest.approx(1 - p, abs=4 * (p * (1 - p) / x.numel()) ** 0.5 + 2e-5)
    assert torch.allclose(out[kept], torch.tensor(2.0 / (1 - min(p, 1 - 2**-16))), rtol=1e-3)
    out.sum().backward()
    assert torch.equal(x.grad != 0, kept)
    # Neighbours, which come from one draw, are dropped independently.
    if p == 0.5:
        both = (kept[:, :-1] & kept[:, 1:]).double().mean().item()
        assert both == pytest.approx(0.25, abs=0.005)


def test_dropout_repeats_with_the_seed_and_differs_between_calls():
    model, x = identity(5, 0.5), torch.ones(30, 5)
    torch.manual_seed(4)
    one, next_one = model(x), model(x)
    torch.manual_seed(4)
    assert torch.equal(one, model(x))
    assert not torch.equal(one, next_one)
