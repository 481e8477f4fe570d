import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from vlm.training.fast_lora import make_fast


def pair(dtype=torch.float32, **knobs):
    """The same LoRA model twice, as PEFT runs it and made fast; its B matrices are not zero."""
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 4, bias=False)).to(dtype)
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("of_input", ["reduced", "float32"])  # a layer norm's output is float32 under autocast
def test_in_reduced_precision_results_are_as_close_to_exact_ones_as_those_of_peft(dtype, of_input):
    plain, fast = pair(dtype)
    exact = copy.deepcopy(plain).double()
    x = torch.randn(50, 6).to(dtype if of_input == "reduced" else torch.float32)
    expected = results(exact, x.double())
    with torch.autocast("cpu", dtype=dtype):
        both = list(zip(expected, results(plain, x), results(fast, x), strict=True))
    names = ["output", "gradient of x", *(name for name, p in fast.named_parameters() if p.requires_grad)]
    for name, (true, one, other) in zip(names, both, strict=True):
        assert one.dtype == other.dtype, name
        errors = [((found.double() - true).norm() / true.norm()).item() for found in (one, other)]
        assert errors[1] < max(1.5 * errors[0], torch.finfo(dtype).eps), name
        assert errors[1] < 4 * torch.finfo(dtype).eps, name


def test_float32_weights_under_autocast_give_the_results_of_peft():
    plain, fast = pair()
    x = torch.randn(9, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for one, other in zip(results(plain, x), results(fast, x), strict=True):
            assert torch.equal(one, other)


def saved_bytes(model, x):
    """The bytes that a forward pass saves for the backward pass, beside parameters and `x`."""
    given = {tensor.untyped_storage().data_ptr() for tensor in (x, *model.parameters())}
    sizes = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in given:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model(x)  # alive, and so its saved tensors, whose addresses would be used again
    assert out.requires_grad
    return sum(sizes.values())


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_less_is_saved_for_the_backward_pass_than_by_peft(dropout):
    plain, fast = pair(torch.bfloat16, lora_dropout=dropout)
    x = torch.randn(500, 6, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        peft, ours = saved_bytes(plain, x), saved_bytes(fast, x)
    assert ours < 0.8 * peft


def test_other_devices_than_a_cpu_use_the_dropout_of_torch():
    """On the device "meta", which computes shapes and dtypes only."""
    _, fast = pair(torch.bfloat16, lora_dropout=0.5)
    x = torch.empty(3, 7, 6, dtype=torch.bfloat16, device="meta")
    found = results(fast.to("meta"), x)
    assert (found[0].shape, found[0].dtype) == ((3, 7, 4), torch.bfloat16)
    assert [gradient.dtype for gradient in found[1:]] == [torch.bfloat16, *[torch.float32] * 4]


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


def identity(size, p, dtype=torch.float32):
    """A layer whose output is the dropped-out input."""
    base = torch.nn.Sequential(torch.nn.Linear(size, size, bias=False, dtype=dtype))
    config = LoraConfig(target_modules="0", r=size, lora_alpha=size, lora_dropout=p, init_lora_weights=False)
    model = get_peft_model(base, config)
    make_fast(model)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.zeros(size, size) if "base_layer" in name else torch.eye(size))
    return model


@pytest.mark.parametrize(("p", "dtype"), [*((p, torch.float32) for p in (0.05, 0.5, 0.999999)), (0.5, torch.bfloat16)])
def test_dropout_has_the_statistics_of_torch(p, dtype):
    torch.manual_seed(0)
    x = torch.full((7000, 41), 2.0, dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        out = identity(41, p, dtype)(x)
    kept = out != 0
    assert kept.double().mean().item() == pytest.approx(1 - p, abs=4 * (p * (1 - p) / x.numel()) ** 0.5 + 2e-5)
    assert torch.allclose(out[kept].float(), torch.tensor(2.0 / (1 - min(p, 1 - 2**-16))), rtol=1e-3)
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
