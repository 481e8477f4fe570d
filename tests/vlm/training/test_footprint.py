import dataclasses
import io
import pickle
import subprocess
import sys

import pytest
import torch
from PIL import Image

from tests.architectures import build
from tests.vlm.training.jobs import adapter, with_modules
from vlm.config.errors import InputError
from vlm.config.events import Log
from vlm.config.models import ModelConfig
from vlm.data import dataset
from vlm.models import loading
from vlm.training import footprint, lora
from vlm.training.footprint import Footprint, MicroBatch, Saved

GB = 10**9
NEED = Footprint(weights=GB, trained=GB // 10, saved=Saved(total=3 * GB, checkpointed=GB // 4, layer=GB // 5), logits=0)

# Hidden and intermediate size, layers and their attention layers, and heads: an eighth of LFM2-VL's as its model cards
# give them, with as many layers.
LFM2 = {
    "450M": (128, 576, 16, {2, 5, 8, 10, 12, 14}, 2),
    "1.6B": (256, 1024, 16, {2, 5, 8, 10, 12, 14}, 4),
    "3B": (256, 1344, 30, {2, 6, 9, 12, 15, 18, 21, 25}, 4),
}


def scaled(name, folder, tiny):
    """A model in the proportions of an LFM2-VL, with random weights and tiny's processor, in `folder`."""
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    config = AutoConfig.from_pretrained(tiny.id)
    hidden, intermediate, layers, attention, heads = LFM2[name]
    text = config.text_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = hidden, intermediate, layers
    text.layer_types = ["full_attention" if i in attention else "conv" for i in range(layers)]
    text.num_attention_heads, text.num_key_value_heads = heads, heads // 2
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    AutoProcessor.from_pretrained(tiny.id).save_pretrained(folder)
    return ModelConfig(name=name, id=str(folder), dtype="bfloat16")


@pytest.fixture
def pictures(task, tmp_path):
    """A split of four pictures of different shapes, whose prompts differ in length, with answers that do, too."""
    rows = []
    for number, size in enumerate([(128, 128), (200, 70), (96, 64), (300, 280)]):
        file = io.BytesIO()
        Image.effect_noise(size, 60).convert("RGB").save(file, "PNG")
        rows.append(dataset.Row(str(number), file.getvalue(), task.labels[number]))
    dataset.write(tmp_path / "pictures.parquet", rows)
    return str(tmp_path / "pictures.parquet")


def a_job(job, model, data, **knobs):
    finetune = job.finetune.model_copy(update={"cache_image_features": 0, **knobs})
    return dataclasses.replace(job, model=model, train=data, validation=data, finetune=finetune)


def a_step(job, directory):
    """The trainer, and the batch of its first step."""
    model, processor = loading.load(job.model, job.image)
    trainer = job.trainer(model, processor, directory, lambda event: None)
    if job.finetune.gradient_checkpointing is True:
        for name, layer in trainer.model.named_modules():
            if lora.part(name) == "vision" and hasattr(layer, "gradient_checkpointing"):
                layer.gradient_checkpointing = (
                    False  # autograd drops a frozen layer's input at once, which is not counted
                )
    trainer.model.train()
    return trainer, next(iter(trainer.get_train_dataloader()))


def saved_by_a_step(job, directory):
    trainer, batch = a_step(job, directory)
    with footprint.autocast("cpu", getattr(torch, job.model.dtype)):
        return len(batch["labels"]), footprint.count(
            trainer.model, lambda: trainer.compute_loss(trainer.model, dict(batch))
        )


@pytest.mark.parametrize(
    ("name", "checkpointing"),
    [*((name, False) for name in ("tiny", *LFM2, "qwen2_5_vl", "gemma3")), ("tiny", True), ("3B", True)],
)
def test_the_arithmetic_agrees_with_what_a_step_saves(name, checkpointing, job, pictures, tiny, tmp_path):
    """A step of four real pictures, padded to the longest prompt and answer; within 15 %."""
    if name == "tiny":
        model = tiny
    elif name in LFM2:
        model = scaled(name, tmp_path / name, tiny)
    else:
        model = ModelConfig(name=name, id=str(build(name, tmp_path / name)), dtype="bfloat16")
    job = with_modules(a_job(job, model, pictures, gradient_checkpointing=checkpointing), "language")
    need = footprint.of_job(job)
    samples, found = saved_by_a_step(job, tmp_path)
    assert samples == 4
    log_probabilities = need.logits / 4  # saved for the loss; the rest is there only for a moment
    saved = need.saved.checkpointed if checkpointing else need.saved.total
    assert found.total == pytest.approx(samples * (saved + log_probabilities), rel=0.15)


@pytest.mark.parametrize("bias", ["none", "all"])
def test_a_trained_vision_tower_is_counted(bias, job, pictures, tiny, tmp_path):
    modules = "language+projector+vision" if bias == "none" else "language"
    language = footprint.of_job(with_modules(a_job(job, tiny, pictures), "language")).saved.total
    job = with_modules(a_job(job, tiny, pictures), modules)
    knobs = job.finetune.lora.model_copy(update={"bias": bias})
    job = dataclasses.replace(job, finetune=job.finetune.model_copy(update={"lora": knobs}))
    saved = footprint.of_job(job).saved.total
    assert saved > 1.05 * language
    samples, found = saved_by_a_step(job, tmp_path)
    assert found.total == pytest.approx(samples * saved, rel=0.15)


def test_a_tensor_that_is_saved_twice_counts_once():
    one, other, x = torch.nn.Linear(50, 50), torch.nn.Linear(50, 50), torch.ones(7, 50)
    saved = footprint.count(torch.nn.ModuleList([one, other]), lambda: one(x) * other(x.view(1, 7, 50)[0]))
    assert saved.total == 3 * 7 * 50 * 4  # x, and the two factors


def test_counting_keeps_no_activation():
    """Otherwise counting itself would run out of memory."""
    model = torch.nn.Sequential(*[torch.nn.Linear(50, 50) for _ in range(4)])
    alive, most = set(), 0

    def track(module, args, output):
        nonlocal most
        reference = torch.multiprocessing.reductions.StorageWeakRef(output.untyped_storage())
        alive.add(reference)
        most = max(most, sum(not each.expired() for each in alive))

    for layer in model:
        layer.register_forward_hook(track)
    saved = footprint.count(model, lambda: model(torch.ones(7, 50)))
    assert saved.total == 4 * 7 * 50 * 4  # the inputs of four layers; the weights are not counted
    assert most <= 2


def test_memory_counts_weights_adapters_and_activations(job, pictures, tiny):
    need = footprint.of_job(a_job(job, tiny, pictures))
    model, _ = loading.load(tiny, job.image)
    assert need.weights == sum(p.nbytes for p in (*model.parameters(), *model.buffers()))
    made = footprint.trainable(model, job.finetune, "^.*(q_proj)$")
    trained = sum(p.numel() for p in made.parameters() if p.requires_grad)
    assert Footprint.of(made, need.saved, 0, "adamw", torch.float32).trained == 16 * trained
    one, two = (need.peak(MicroBatch(n, False)) for n in (1, 2))
    assert two - one > need.saved.total
    assert need.peak(MicroBatch(1, True)) < one


def test_candidates_are_the_divisors_and_then_the_same_with_checkpointing():
    plain = [MicroBatch(n, False) for n in (12, 6, 4, 3, 2, 1)]
    assert footprint.candidates(12, None, False) == plain
    assert footprint.candidates(12, None, "auto") == plain + [MicroBatch(n, True) for n in (12, 6, 4, 3, 2, 1)]
    assert footprint.candidates(12, 4, True) == [MicroBatch(4, True)]


@pytest.mark.parametrize(
    ("memory", "first"),
    [(10**3 * GB, MicroBatch(8, False)), (16.5 * GB, MicroBatch(4, False)), (5.8 * GB, MicroBatch(1, False)), (5.7 * GB, MicroBatch(4, True)), (3.0 * GB, MicroBatch(1, True))],
)  # fmt: skip
def test_the_largest_that_fits_is_chosen(memory, first):
    """By hand: 1 GB of context and 1.1 times (1.1 GB and a sample's 3.2 GB, or 0.65 GB with checkpointing)."""
    choices = footprint.candidates(8, None, "auto")
    assert choices[footprint.first_fitting(choices, NEED, memory)] == first


def test_nothing_fits_into_too_little():
    choices = footprint.candidates(8, None, "auto")
    assert footprint.first_fitting(choices, NEED, 2.5 * GB) == len(choices)


def test_what_is_tried_after_running_out_of_memory():
    tried = [MicroBatch(12, False)]
    while following := footprint.smaller(tried[-1], 12, "auto"):
        tried.append(following)
    assert [(each.samples, each.checkpointing) for each in tried] == [
        (12, False), (6, False), (3, False), (1, False), (1, True)
    ]  # fmt: skip
    assert footprint.smaller(MicroBatch(1, False), 12, False) is None
    assert footprint.smaller(MicroBatch(4, True), 12, True) == MicroBatch(2, True)


def test_a_jobs_batch_is_split_so_that_it_fits(job, pictures, tiny):
    job = a_job(job, tiny, pictures)
    need = footprint.of_job(job)
    events = []

    def split(most, job=job):
        return footprint.split(job, 4, round(need.peak(most)) + 1, 1, events.append)

    for most in (MicroBatch(4, False), MicroBatch(2, False), MicroBatch(1, False), MicroBatch(2, True)):
        assert split(most) == most
    assert events[1].text.startswith("2 samples at once: about 1.")
    with pytest.raises(InputError, match=r"^params\.yaml: image\.max_tokens: 1 sample at once with gradient checkp"):
        footprint.split(job, 4, GB, 1, events.append)
    never = a_job(job, tiny, pictures, gradient_checkpointing=False)
    with pytest.raises(InputError, match=r"1 sample at once would .* set finetune\.gradient_checkpointing: auto"):
        split(MicroBatch(2, True), never)
    assert footprint.split(job, 4, None, 1, events.append) == MicroBatch(4, False)


PROCESS = """
import pickle, sys
from pathlib import Path
import torch
from vlm.training import footprint

folder, rank, memory = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
job = pickle.loads((folder / "job").read_bytes())
print(footprint.split(job, 4, memory, 2, lambda event: None))
"""


def test_all_processes_choose_the_same(job, pictures, tiny, tmp_path):
    """That of the GPU with the least memory; otherwise they would wait for each other for ever."""
    job = a_job(job, tiny, pictures)
    (tmp_path / "job").write_bytes(pickle.dumps(job))
    need = footprint.of_job(job)
    memory = [round(need.peak(MicroBatch(samples, False))) + 1 for samples in (4, 2)]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, tmp_path, str(rank), str(size)], stdout=subprocess.PIPE, text=True
        )
        for rank, size in enumerate(memory)
    ]
    assert [process.communicate(timeout=100)[0] for process in running] == 2 * ["2 samples at once\n"]


def test_a_micro_batch_in_params_yaml_is_respected(job, pictures, tiny):
    job = a_job(job, tiny, pictures, micro_batch=2)
    need, events = footprint.of_job(job), []
    plenty, little = (round(need.peak(MicroBatch(2, mode))) + 1 for mode in (False, True))
    assert footprint.split(job, 4, plenty, 1, events.append) == MicroBatch(2, False)
    assert footprint.split(job, 4, little, 1, events.append) == MicroBatch(2, True)
    assert footprint.split(job, 4, GB, 1, events.append) == MicroBatch(2, True)
    assert [event.text.startswith("warning: params.yaml: finetune.micro_batch: 2 sa") for event in events] == [
        False, False, True
    ]  # fmt: skip


def test_a_gpu_without_memory_for_a_forward_pass_is_one_line(job, pictures, tiny, no_memory_for):
    with (
        no_memory_for(0),
        pytest.raises(InputError, match=r"^params\.yaml: image\.max_tokens: not even a forward pass"),
    ):
        footprint.split(a_job(job, tiny, pictures), 4, GB, 1, lambda event: None)


def test_checkpointing_changes_neither_loss_nor_gradients(job, pictures, tiny, tmp_path):
    """With dropout, whose random numbers have to be the same when activations are computed again."""
    found = []
    for checkpointing in (False, True):
        chosen = a_job(job, tiny, pictures, gradient_checkpointing=checkpointing)
        trainer, batch = a_step(with_modules(chosen, "language+projector+vision"), tmp_path / str(checkpointing))
        assert trainer.model.is_activation_checkpointing == checkpointing
        with torch.no_grad():
            for name, parameter in trainer.model.named_parameters():
                if "lora_B" in name:  # they start at zero, and then no other weight has a gradient
                    parameter.fill_(0.01)
        torch.manual_seed(3)
        loss = trainer.compute_loss(trainer.model, dict(batch))
        loss.backward()
        found.append([loss, *(p.grad for p in trainer.model.parameters() if p.requires_grad)])
    assert len(found[0]) > 50
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_a_checkpointed_run_ends_with_the_same_adapter(job, tmp_path):
    files = []
    for checkpointing in (False, True):
        knobs = job.finetune.model_copy(update={"gradient_checkpointing": checkpointing})
        files.append(adapter(dataclasses.replace(job, finetune=knobs), tmp_path / str(checkpointing)))
    assert files[0]["adapter_model.safetensors"] == files[1]["adapter_model.safetensors"]


def test_a_model_without_checkpointing_is_refused(job, pictures, tiny, tmp_path):
    job = a_job(job, tiny, pictures, gradient_checkpointing=True)
    model, processor = loading.load(job.model, job.image)
    model.supports_gradient_checkpointing = False
    with pytest.raises(
        InputError, match=r"^params\.yaml: finetune\.gradient_checkpointing: 'models/tiny' does not support it"
    ):
        job.trainer(model, processor, tmp_path, lambda event: None)


def test_without_memory_for_one_sample_checkpointing_is_tried(job, no_memory_for, tmp_path):
    events = []
    with no_memory_for(0), pytest.raises(InputError, match="not even one sample fits"):
        adapter(job, tmp_path, events.append)
    assert [event.text.partition(",")[0] for event in events if isinstance(event, Log)] == [
        "out of memory; continuing with 2 samples at once",
        "out of memory; continuing with 1 sample at once",
        "out of memory; continuing with 1 sample at once with gradient checkpointing",
    ]
