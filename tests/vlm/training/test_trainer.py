import dataclasses
import io
import json

import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader

from tests.vlm.training.jobs import a_batch, adapter, with_modules
from vlm.config.errors import InputError
from vlm.config.params import LearningRateScale
from vlm.data import dataset
from vlm.evaluation import batching
from vlm.models import loading
from vlm.training import features, lora
from vlm.training.checkpoints import last_checkpoint
from vlm.training.trainer import use_workers


def test_only_the_answer_is_supervised(job, tmp_path, task):
    _, processor, batch = a_batch(job, tmp_path)
    texts = set()
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        supervised = processor.tokenizer.decode(ids[labels != -100])
        texts.add(supervised)
        whole = processor.tokenizer.decode(ids).split("<|pad|>")[0]
        prompt = processor.apply_chat_template(task.conversation(), add_generation_prompt=True, tokenize=False)
        expanded = "<|image_start|>" + "<image>" * 16 + "<|image_end|>"
        assert whole == prompt.replace("<image>", expanded) + supervised
    assert texts <= {task.answer(label) + "<|im_end|>\n" for label in task.labels}


def test_training_uses_the_same_tokens_as_trl(job, tmp_path, task):
    """Prompt and answer, as SFTTrainer's own collator tokenises conversational rows."""
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    trainer, processor, _ = a_batch(job, tmp_path)
    rows = [trainer.train_dataset[i] for i in range(4)]
    ours = trainer.data_collator(rows)
    theirs = DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True)(
        [
            {
                "images": [row["image"]],
                "prompt": task.conversation(),
                "completion": [{"role": "assistant", "content": task.answer(row["label"])}],
            }
            for row in rows
        ]
    )
    for i in range(4):
        real = [batch["input_ids"][i][batch["attention_mask"][i] == 1].tolist() for batch in (ours, theirs)]
        supervised = [batch["labels"][i][batch["labels"][i] != -100].tolist() for batch in (ours, theirs)]
        assert real[0] == real[1]
        assert supervised[0] == supervised[1]


def test_the_first_batch_has_the_longest_prompt_and_batches_are_of_similar_length(job, tmp_path):
    """Half of the pictures are twice as wide as high, which takes fewer tokens."""
    rows = []
    for i, row in enumerate(dataset.Reader(job.train).rows(range(24))):
        buffer = io.BytesIO()
        batching.decoded(row.image).resize((128, 64 if i % 2 else 128)).save(buffer, "PNG")
        rows.append(dataset.Row(row.id, buffer.getvalue(), row.label))
    dataset.write(tmp_path / "train.parquet", rows)
    trainer, _, _ = a_batch(dataclasses.replace(job, train=str(tmp_path / "train.parquet")), tmp_path / "trainer")
    prompts = [
        ((batch["attention_mask"] == 1) & (batch["labels"] == -100)).sum(1).tolist()
        for batch in trainer.get_train_dataloader()
    ]
    lengths = {length for batch in prompts for length in batch}
    assert len(lengths) == 2
    assert prompts[0] == [max(lengths)] * 4
    assert all(len(set(batch)) == 1 for batch in prompts)


@pytest.mark.parametrize("start", ["fork", "forkserver", "spawn"])
def test_data_loader_workers_make_the_same_batches_however_they_are_started(job, start, tmp_path):
    """A batch of augmented pictures, and one of cached image features."""
    augmented = dataclasses.replace(job, finetune=job.finetune.model_copy(update={"augment": "strong"}))
    pictures = a_batch(augmented, tmp_path / "pictures")[0].train_dataset
    loaded, processor = loading.load(job.model, job.image)
    splits, silent = [job.train, job.validation], lambda event: None
    kept = features.precompute(loaded, processor, job.task, splits, tmp_path / "kept", 1.0, silent)
    trainer = job.trainer(loaded, processor, tmp_path / "features", silent, kept=kept)
    rows = ConcatDataset([pictures, trainer.train_dataset])
    batches = [[4, 0, 7], [len(pictures) + row for row in (3, 9)]]

    def found(**workers):
        return list(DataLoader(rows, batch_sampler=batches, collate_fn=trainer.data_collator, **workers))

    for expected, batch in zip(found(), found(num_workers=1, multiprocessing_context=start), strict=True):
        assert set(batch) == set(expected)
        for name, values in expected.items():
            assert torch.equal(batch[name], values), name


@pytest.mark.parametrize("workers", [0, 2])
def test_the_trainers_own_loader_works_with_worker_processes(job, workers, tmp_path):
    trainer, _, expected = a_batch(job, tmp_path / "expected")
    use_workers(trainer.args, workers)
    trainer.train_sampler.set_epoch(0)
    found = next(iter(trainer.get_train_dataloader()))
    assert trainer.args.dataloader_num_workers == workers
    assert all(found[name].equal(expected[name]) for name in expected)


def test_the_loss_equals_the_plain_one_up_to_rounding(job, tmp_path):
    """Value and gradients, compared with a loss from the logits of every position."""
    trainer, _, batch = a_batch(job, tmp_path)
    trainer.model.eval()  # no dropout
    loss = trainer.compute_loss(trainer.model, dict(batch))
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
    trainer.model.zero_grad()
    plain = trainer.model(**batch).loss
    plain.backward()
    assert loss.item() == pytest.approx(plain.item(), rel=1e-5)
    assert gradients
    for name, p in trainer.model.named_parameters():
        if p.requires_grad:
            assert torch.allclose(gradients[name], p.grad, atol=1e-6), name


def test_each_part_has_its_own_learning_rate(job, tmp_path):
    scale = LearningRateScale(language=1.0, projector=0.5, vision=0.25)
    scaled = dataclasses.replace(job, finetune=job.finetune.model_copy(update={"lr_scale": scale}))
    trainer, _, _ = a_batch(with_modules(scaled, "language+projector+vision"), tmp_path)
    optimizer = trainer.create_optimizer()
    part_of = {id(p): lora.part(name) for name, p in trainer.model.named_parameters()}
    rates = {(part_of[id(p)], group["lr"]) for group in optimizer.param_groups for p in group["params"]}
    base = job.model.learning_rate
    assert rates == {("language", base), ("projector", base / 2), ("vision", base / 4)}
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in trainer.model.parameters() if p.requires_grad}


def test_the_seed_determines_the_initial_weights(job, tmp_path):
    def initial_weights(seed):
        torch.manual_seed(99)  # as if earlier code had drawn numbers
        trainer, _, _ = a_batch(dataclasses.replace(job, seed=seed), tmp_path / str(seed))
        return torch.cat([p.flatten() for name, p in trainer.model.named_parameters() if "lora_A" in name])

    one, again, other = initial_weights(1), initial_weights(1), initial_weights(2)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_training_stops_when_validation_no_longer_improves(job, tmp_path):
    """With a learning rate of almost 0, the first validation pass stays the best."""
    still = job.finetune.model_copy(update={"learning_rate": 1e-12, "patience": 1})
    adapter(dataclasses.replace(job, finetune=still), tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["steps"], metrics["best_step"]) == (4, 2)


def test_a_diverging_loss_is_a_one_line_error_and_keeps_the_checkpoints(job, tmp_path):
    wild = dataclasses.replace(job, finetune=job.finetune.model_copy(update={"learning_rate": 1e4, "eval_steps": 1}))
    with pytest.raises(
        InputError, match=r"finetune\.learning_rate: the loss is .* at step \d with a learning rate of 10000"
    ):
        adapter(wild, tmp_path)
    assert last_checkpoint(tmp_path / "checkpoints") is not None
    assert not (tmp_path / "adapter").exists()
