"""The labels loss, compared with the posterior that evaluation computes and with plain ways to compute its gradients."""

import dataclasses
import math

import pytest
import torch

from tests import architectures
from tests.vlm.training.jobs import a_batch
from vlm.config.params import ImageParams
from vlm.config.task import Task
from vlm.data import dataset
from vlm.evaluation import output_layer
from vlm.evaluation.posterior import Posterior
from vlm.evaluation.trie import Trie, answer_tokens
from vlm.models import encoding
from vlm.training.losses import AnswerLoss, edges_at
from vlm.training.trainer import Collator


def with_loss(job, kind, **knobs):
    return dataclasses.replace(job, finetune=job.finetune.model_copy(update={"loss": kind, **knobs}))


def taught(trainer, batch, counts=None):
    """The loss of a batch without dropout, and its gradients by parameter."""
    trainer.model.eval()
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=counts)
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", architectures.ARCHITECTURES)
def test_the_labels_loss_is_that_of_the_posterior_that_evaluation_computes(name, tmp_path):
    """Some labels share their beginnings; one continues another."""
    labels = ["Audi", "Audi Sport", "Aston Martin", "Volvo", "Land Rover", "Land"]
    task = Task(name="t", source={"folder": "photos"}, labels=labels, prompt={"user": "Which? {labels}"})
    split = architectures.write_pictures(tmp_path / "split.parquet", [(60 + 4 * i, 64) for i in range(len(labels))])
    model, processor, _ = architectures.loaded(name, tmp_path / name, split)
    pictures = [row.image for row in dataset.Reader(split).rows(range(len(labels)))]
    rows = [
        {"image": architectures.batching.decoded(p), "label": label} for p, label in zip(pictures, labels, strict=True)
    ]
    batch = encoding.to_device(Collator(processor, task)(rows), model)
    prompts = encoding.encode(processor, task, [row["image"] for row in rows])
    probabilities = Posterior(model, processor, task)(encoding.to_device(prompts, model))
    expected = -probabilities.diagonal().log().mean().item()
    loss, output = AnswerLoss("labels", model, processor, task)(model, batch, None)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    trie = Trie.of(answer_tokens(processor, task))
    assert output.logits.shape == (sum(map(len, trie.edges_of)), len({token for _, token in trie.edges}))


def test_the_gradients_of_the_labels_loss_are_those_of_a_softmax_over_each_nodes_children(job, tmp_path):
    """Computed one node at a time from the logits of the whole vocabulary at every position."""
    trainer, processor, batch = a_batch(with_loss(job, "labels"), tmp_path)
    loss, gradients = taught(trainer, batch)
    trie = Trie.of(answer_tokens(processor, job.task))
    trainer.model.zero_grad()
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "edges")}
    logits = trainer.model(**inputs).logits
    plain = 0.0
    for row, (target, edges) in enumerate(zip(batch["labels"], batch["edges"], strict=True)):
        for position in (edges >= 0).nonzero()[:, 0].tolist():
            node, token = trie.edges[edges[position]]
            assert token == target[position]
            children = [child for parent, child in trie.edges if parent == node]
            of_node = logits[row, position - 1, children].log_softmax(0)
            plain = plain - of_node[children.index(token)] / len(batch["labels"])
    plain.backward()
    assert loss == pytest.approx(plain.item(), rel=1e-5)
    assert gradients
    for name, p in trainer.model.named_parameters():
        if p.requires_grad:
            assert torch.allclose(gradients[name], p.grad, atol=1e-6), name


def test_both_is_a_weighted_sum_of_the_two(job, tmp_path):
    found = {}
    for kind in ("tokens", "labels", "both"):
        trainer, _, batch = a_batch(with_loss(job, kind), tmp_path / kind)
        found[kind] = taught(trainer, batch)
    (tokens, of_tokens), (labels, of_labels), (both, of_both) = (found[kind] for kind in ("tokens", "labels", "both"))
    assert both == pytest.approx(3 * tokens + labels, rel=1e-6)
    for name, gradient in of_both.items():
        assert torch.allclose(gradient, 3 * of_tokens[name] + of_labels[name], atol=1e-5), name


@pytest.mark.parametrize("kind", ["tokens", "labels", "both"])
def test_micro_batches_give_a_steps_loss_and_gradients(job, kind, tmp_path):
    """Of 16 samples at once and 4 x 4, as the trainer counts and calls."""
    plain = with_loss(job, kind, batch_size=16, lora=job.finetune.lora.model_copy(update={"dropout": 0.0}))
    found = []
    for micro_batch in (16, 4):
        chosen = dataclasses.replace(plain, finetune=plain.finetune.model_copy(update={"micro_batch": micro_batch}))
        trainer, _, _ = a_batch(chosen, tmp_path / str(micro_batch))
        trainer.train_sampler.set_epoch(0)
        loader = iter(trainer.get_train_dataloader())
        batches, counts = trainer.get_batch_samples(loader, 16 // micro_batch, torch.device("cpu"))
        assert len(batches) == 16 // micro_batch
        loss = sum(trainer.training_step(trainer.model, batch, counts).item() for batch in batches)
        found.append((loss, {n: p.grad for n, p in trainer.model.named_parameters() if p.requires_grad}))
    (whole, of_whole), (parts, of_parts) = found
    assert parts == pytest.approx(whole, rel=1e-5)
    for name, gradient in of_whole.items():
        assert torch.allclose(gradient, of_parts[name], atol=1e-6), name


@pytest.mark.parametrize("kind", ["tokens", "labels", "both"])
def test_the_validation_loss_does_not_depend_on_the_micro_batch(job, kind, tmp_path):
    losses = []
    for micro_batch in (1, 4):
        trainer, _, _ = a_batch(with_loss(job, kind, micro_batch=micro_batch), tmp_path / str(micro_batch))
        trainer.validate = dict
        losses.append(trainer.evaluate()["eval_loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    trainer.model.eval()
    rows = [trainer.eval_dataset[i] for i in range(len(trainer.eval_dataset))]
    expected = trainer.compute_loss(trainer.model, trainer.data_collator(rows)).item()
    assert losses[0] == pytest.approx(expected, rel=1e-5)


def test_gradient_checkpointing_changes_no_gradient(job, tmp_path):
    found = []
    for checkpointing in (False, True):
        chosen = with_loss(job, "labels", gradient_checkpointing=checkpointing)
        trainer, _, batch = a_batch(chosen, tmp_path / str(checkpointing))
        found.append(taught(trainer, batch))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    for name, gradient in found[0][1].items():
        assert torch.allclose(gradient, found[1][1][name], atol=1e-7), name


def test_under_bfloat16_the_labels_loss_is_computed_in_float32(job, tmp_path):
    """Its logits differ by less than bfloat16's steps, 0.125 at 16, when the last layers' inputs are the same."""
    trainer, _, batch = a_batch(with_loss(job, "labels"), tmp_path)
    head = trainer.model.get_base_model().get_output_embeddings()
    with torch.no_grad():
        head.weight.mul_(8)  # large logits
    trainer.model.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        _, output = trainer.loss(trainer.model, batch, None)
    assert output.logits.dtype == torch.float32
    assert output.logits.abs().max() > 16
    assert not torch.equal(output.logits, output.logits.bfloat16().float())


def test_the_output_layer_of_a_validation_pass_stays_in_float32_too(job):
    model, _ = job.load()
    head = output_layer.narrow_head(model, [3, 4, 5])
    hidden = torch.randn(2, model.get_output_embeddings().in_features)
    with torch.autocast("cpu", torch.bfloat16):
        found = head(hidden)
    assert torch.allclose(found, hidden @ head.weight.T)


def test_edges_lie_where_labels_part_from_each_other():
    trie = Trie.of([[1, 2, 3, 9], [1, 2, 4, 5, 9], [1, 2, 4, 6, 9]])
    assert [edges_at(trie, label, length) for label, length in enumerate([4, 6, 5])] == [
        [-1, -1, 0, -1],
        [-1, -1, 1, 2, -1, -1],
        [-1, -1, 1, 3, -1],
    ]


def test_a_single_label_has_no_loss(tmp_path):
    split = architectures.write_pictures(tmp_path / "split.parquet", [(64, 64)])
    task = Task(name="t", source={"folder": "photos"}, labels=["cat"], prompt={"user": "Which? {labels}"})
    model, processor, _ = architectures.loaded("lfm2_vl", tmp_path / "model", split, **ImageParams().model_dump())
    (row,) = dataset.Reader(split).rows([0])
    batch = Collator(processor, task)([{"image": architectures.batching.decoded(row.image), "label": "cat"}])
    loss, _ = AnswerLoss("both", model, processor, task)(model, batch, None)
    tokens, _ = AnswerLoss("tokens", model, processor, task)(model, batch, None)
    assert math.isfinite(loss.item())
    assert loss.item() == pytest.approx(3 * tokens.item())
