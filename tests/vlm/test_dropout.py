import pytest
import torch
from peft import LoraConfig, get_peft_model

from vlm.dropout import Dropout, make_fast


@pytest.mark.parametrize("p", [0.05, 0.5, 0.999999])
def test_it_drops_as_torch_does(p):
    torch.manual_seed(0)
    x = torch.full((300, 1001), 2.0, requires_grad=True)
    out = Dropout(p).train()(x)
    kept = out != 0
    assert kept.double().mean().item() == pytest.approx(1 - p, abs=4 * (p * (1 - p) / x.numel()) ** 0.5 + 2e-5)
    assert torch.allclose(out[kept], torch.tensor(2.0 / (1 - min(p, 1 - 2**-16))), rtol=1e-3)
    out.sum().backward()
    assert torch.equal(x.grad != 0, kept)
    # Neighbours, which come from one draw, do not fall together.
    if p == 0.5:
        both = (kept[:, :-1] & kept[:, 1:]).double().mean().item()
        assert both == pytest.approx(0.25, abs=0.005)


def test_the_same_seed_drops_the_same():
    x = torch.ones(7, 3)
    one, other = (Dropout(0.5).train()(x) for _ in range(2) if torch.manual_seed(4))
    assert torch.equal(one, other)


def test_nothing_is_dropped_in_evaluation():
    x = torch.randn(5, 5)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0).train()(x), x)


def test_every_lora_layer_has_it():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    wrapped = get_peft_model(model, LoraConfig(target_modules="0|1", lora_dropout=0.1))
    make_fast(wrapped)
    found = [module for module in wrapped.modules() if isinstance(module, torch.nn.Dropout)]
    assert [type(module) for module in found] == [Dropout, Dropout]
    assert {module.p for module in found} == {0.1}
