import pytest
from transformers import Lfm2VlConfig

from tests.architectures import ARCHITECTURES, build
from vlm.config import gpus
from vlm.config.errors import InputError
from vlm.config.models import ModelConfig, load_model
from vlm.config.params import load_params
from vlm.evaluation import batching
from vlm.evaluation.trie import turn_tokens
from vlm.models import loading
from vlm.training import estimate, footprint
from vlm.training.footprint import MicroBatch


@pytest.fixture
def a_job(job):
    def made(model, **lora):
        knobs = job.finetune.lora.model_copy(update=lora)
        finetune = job.finetune.model_copy(update={"lora": knobs})
        return type(job)(job.task, model, job.image, finetune, job.seed, job.train, job.validation)

    return made


def estimated(job, folder):
    processor = loading.load_processor(job.model, job.image)
    prompt = max(batching.Loader(job.train, processor, job.task).lengths())
    answer = max(map(len, turn_tokens(processor, job.task)))
    return estimate.estimated(job.model, folder, job.finetune, prompt, answer)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_estimate_agrees_with_the_loaded_model(name, dtype, a_job, tmp_path):
    """Within 15 %; exactly, up to the mask, where only the language model is trained."""
    folder = build(name, tmp_path / name)
    job = a_job(ModelConfig(name=name, id=str(folder), dtype=dtype), modules="language")
    real, found = footprint.of_job(job), estimated(job, folder)
    assert found.saved.total == pytest.approx(real.saved.total, rel=0.02)
    assert found.saved.checkpointed == pytest.approx(real.saved.checkpointed, rel=0.15)
    assert found.saved.layer == pytest.approx(real.saved.layer, rel=0.02)
    assert (found.weights, found.trained, found.logits) == (real.weights, real.trained, real.logits)


@pytest.mark.parametrize("lora", [{}, {"dora": True}, {"dropout": 0.0}, {"r": 32}])
def test_the_estimate_with_a_trained_projector(lora, a_job, tiny):
    job = a_job(tiny, modules="language+projector", **lora)
    real, found = footprint.of_job(job), estimated(job, tiny.folder)
    for batch in (MicroBatch(1, False), MicroBatch(1, True)):
        assert found.saved.total == pytest.approx(real.saved.total, rel=0.15)
        assert found.peak(batch) == pytest.approx(real.peak(batch), rel=0.15)


@pytest.mark.parametrize("lora", [{"modules": "language+vision"}, {"modules": "language", "bias": "all"}])
def test_a_trained_vision_tower_is_not_estimated(lora, a_job, tiny):
    with pytest.raises(InputError, match="a trained vision tower needs is only known when the job runs"):
        estimated(a_job(tiny, **lora), tiny.folder)


def test_what_is_missing_is_named(at_root, make_split):
    params = load_params()
    params = params.model_copy(update={"model": params.model.model_copy(update={"lora_parts": "language+projector"})})
    with pytest.raises(InputError, match=r"^data/nothing\.parquet: no such file"):
        estimate.of_params(params, "data/nothing.parquet")
    assert estimate.of_params(params, make_split("train", 3)).weights > 0


# Hidden and intermediate size, attention layers, layers, heads of the language model; hidden and intermediate size,
# layers, heads of the vision tower.
VISION = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
DIMENSIONS = {
    "450M": (1024, 4608, {2, 5, 8, 10, 12, 14}, 16, 16, 768, 3072, 12, 12),
    "1.6B": (2048, 8192, {2, 5, 8, 10, 12, 14}, 16, 32, 1152, 4304, 27, 16),
    "3B": (2048, 10752, {2, 6, 9, 12, 15, 18, 21, 25}, 30, 32, 1152, 4304, 27, 16),
}


@pytest.mark.parametrize(
    ("name", "prompt", "samples"),
    [("450M", 2000, 4), ("450M", 500, 16), ("1.6B", 2000, 4), ("1.6B", 500, 16), ("3B", 2000, 2), ("3B", 500, 8)],
)
def test_the_defaults_fit_on_their_gpus(name, prompt, samples, at_root, tmp_path):
    """car_maker with pictures of 1024 x 768, as 7 tiles (about 2,000 tokens) or one (about 500), and batches of 16.

    Dimensions are from the model cards; those of the 3B's layers are approximate.
    """
    hidden, intermediate, attention, layers, heads, *vision = DIMENSIONS[name]
    Lfm2VlConfig(
        text_config={
            "model_type": "lfm2",
            "vocab_size": 65_536,
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "block_auto_adjust_ff_dim": False,
            "num_hidden_layers": layers,
            "layer_types": ["full_attention" if i in attention else "conv" for i in range(layers)],
            "num_attention_heads": heads,
            "num_key_value_heads": 8,
        },
        vision_config={
            "model_type": "siglip2_vision_model",
            "vision_use_head": False,
            **dict(zip(VISION, vision, strict=True)),
        },
        tie_word_embeddings=True,
    ).save_pretrained(tmp_path)
    model, knobs = load_model(name), load_params().finetune
    need = estimate.estimated(model, tmp_path, knobs, prompt, answer=12)
    parameters = (need.weights + need.trained / 8) / 2  # bfloat16, and float32 with three more copies
    assert parameters == pytest.approx(float(name[:-1]) * (1e6 if name[-1] == "M" else 1e9), rel=0.1)
    choices = footprint.candidates(16, knobs.micro_batch, knobs.gradient_checkpointing)
    assert knobs.batch_size == 16
    fitting = footprint.first_fitting(choices, need, gpus.memory_gb(model.gpu) * 1e9)
    assert choices[fitting] == MicroBatch(samples, False)
