"""Runs small fine-tuning jobs for the tests of training; the fixture `job` is one."""

import dataclasses

from vlm.models import loading


def with_modules(job, pattern):
    lora = job.finetune.lora.model_copy(update={"modules": pattern})
    return dataclasses.replace(job, finetune=job.finetune.model_copy(update={"lora": lora}))


def adapter(job, directory, emit=lambda event: None):
    directory.mkdir(exist_ok=True)
    job.run(directory, emit)
    return {file.name: file.read_bytes() for file in sorted((directory / "adapter").iterdir())}


def a_batch(job, directory):
    loaded, processor = loading.load(job.model, job.image)
    trainer = job.trainer(loaded, processor, directory, lambda event: None)
    return trainer, processor, next(iter(trainer.get_train_dataloader()))
