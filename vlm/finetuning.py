"""The fine-tuning job: LoRA with PEFT, trained with TRL on the task's own prompt and answers."""

import csv
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vlm import batching, dataset, features, lora, metrics, runtime
from vlm.errors import InputError
from vlm.events import Emit, Log, Progress, Scalars
from vlm.params import FinetuneParams, ImageParams, ModelConfig
from vlm.sampling import AugmentedRows, EpochSampler
from vlm.task import Task

if TYPE_CHECKING:
    import torch
    from accelerate import PartialState
    from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

# What the trainer's log calls a number -> what DVCLive calls it. Times and speeds differ between equal runs: left out.
_SCALARS = {
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "eval_loss": "eval/loss",
    "eval_accuracy": "eval/accuracy",
    "eval_log_loss": "eval/log_loss",
}
_CHECKPOINTS = [
    *["step", "epoch", "train_loss", "eval_loss", "accuracy", "accuracy_low", "accuracy_high", "log_loss"],
    *["learning_rate", "best"],
]
_PATTERN_KEY = "params.yaml: finetune.lora.modules"
_DIVERGED = 20.0  # nats a token; a model that knows nothing of a 65k vocabulary has 11


@dataclass(frozen=True)
class FineTuning:
    """Trains a LoRA adapter on `train`, looking at `validation` as it goes.

    Writes adapter/ and last/ (the best checkpoint on validation and the last one, as PEFT loads them, with the
    processor), modules.csv (what LoRA was put on), checkpoints.csv (a row a look at validation), metrics.json and
    runtime.json. The loss is the mean cross-entropy of the answer's tokens, the end of the turn included.
    """

    task: Task
    model: ModelConfig
    image: ImageParams
    finetune: FinetuneParams
    seed: int
    train: str
    validation: str

    # What a stage takes out of the job's folder; the rest is unfinished work.
    DATA_PARALLEL: ClassVar = True
    RESULTS: ClassVar = ("adapter", "last", "modules.csv", "checkpoints.csv", "metrics.json", "runtime.json")

    @property
    def inputs(self) -> list[str]:
        """The files that the job reads."""
        return [self.train, self.validation]

    def run(self, directory: Path, emit: Emit) -> None:
        """Trains, or goes on from the last complete checkpoint in `directory`; both end with the same adapter on a CPU.

        In processes that torchrun or `accelerate launch` has started, each takes its share of every batch, and the
        first one speaks and writes. Raises InputError for a pattern of modules that matches none or parts of what it
        names, and for a loss that diverges; the checkpoints before it stay.
        """
        import torch

        started = time.perf_counter()
        processes = _processes()
        emit = _once(emit) if processes.is_main_process else _silent
        if self.model.dtype == "float16" and self.finetune.lora.bias != "none":
            raise InputError(
                f"params.yaml: finetune.lora.bias: {self.finetune.lora.bias} trains float16 weights themselves, whose "
                f"gradients cannot be scaled; none, or bfloat16 in configs/models/{self.model.name}.yaml, works"
            )
        if self.model.dtype == "float16" and not torch.cuda.is_available():
            raise InputError(
                f"configs/models/{self.model.name}.yaml: options.dtype: float16 cannot be trained without a GPU; "
                "float32 and bfloat16 can"
            )
        share, rest = divmod(self.finetune.batch_size, processes.num_processes)
        at_once = self.finetune.micro_batch or share
        if rest or share % at_once:
            raise InputError(
                f"params.yaml: finetune.batch_size: {self.finetune.batch_size} should be a multiple of "
                f"{processes.num_processes} processes x {at_once or 1} samples at once (finetune.micro_batch)"
                + (", one for each GPU that CUDA_VISIBLE_DEVICES shows" if processes.num_processes > 1 else "")
            )
        while True:
            try:
                trainer, processor, modules, done_before = self._train(directory, at_once, emit)
                break
            except RuntimeError as error:
                if not runtime.is_out_of_memory(error):
                    raise
            # Here, and not above, for the exception holds the tensors that did not fit.
            if at_once == 1:
                raise InputError(
                    "params.yaml: finetune.micro_batch: not even one sample at once fits into this device's memory; "
                    "image.max_tokens makes samples smaller"
                )
            smaller = max(n for n in range(1, at_once // 2 + 1) if share % n == 0)
            if processes.num_processes > 1:  # the others still wait for this one in the middle of a step
                raise InputError(
                    f"params.yaml: finetune.micro_batch: {at_once} samples at once do not fit into a device's memory; "
                    f"{smaller} might"
                )
            at_once = smaller
            runtime.free_memory()
            emit(Log(f"out of memory; going on with {at_once} samples at once, as many as before to a step"))
        processes.wait_for_everyone()
        if not processes.is_main_process:
            return
        state = trainer.state
        best = directory / "checkpoints" / f"checkpoint-{state.best_global_step}"
        last = directory / "checkpoints" / f"checkpoint-{state.global_step}"

        looks = self._looks(state)
        (chosen,) = [look for look in looks if look["step"] == state.best_global_step]
        for source, name in ((best, "adapter"), (last, "last")):
            self._save_adapter(source, directory / name, processor, looks[-1] if name == "last" else chosen)
        _write_csv(directory / "modules.csv", _report(modules, trainer.model))
        _write_csv(directory / "checkpoints.csv", [{name: look[name] for name in _CHECKPOINTS} for look in looks])
        values = {
            "steps": state.global_step,
            "best_step": state.best_global_step,
            "train_loss": looks[-1]["train_loss"],
            "eval_loss": chosen["eval_loss"],
            "validation_accuracy": chosen["accuracy"],
            "validation_accuracy_low": chosen["accuracy_low"],
            "validation_accuracy_high": chosen["accuracy_high"],
            "trainable_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
            "lora_modules": len(modules),
        }
        (directory / "metrics.json").write_text(json.dumps(values))
        samples = (state.global_step - done_before) * self.finetune.batch_size
        runtime.write(directory / "runtime.json", runtime.measured(samples, time.perf_counter() - started))

    def _train(self, directory: Path, at_once: int, emit: Emit) -> tuple[Any, "ProcessorMixin", dict, int]:
        """The trainer after training, the processor, the modules that LoRA is on, and the steps of earlier runs."""
        from vlm import model

        loaded, processor = model.load(self.model, self.image)
        modules = self.lora_modules(loaded)
        scratch = directory / "scratch"  # what can be made again
        kept = None
        if self._keeps_features(modules):
            splits = [self.train, self.validation]
            budget = self.finetune.cache_image_features
            kept = features.precompute(
                loaded, processor, self.task, splits, scratch / "features", at_once, budget, emit
            )
        trainer = self.trainer(loaded, processor, directory / "checkpoints", emit, at_once, kept)
        checkpoint = last_checkpoint(directory / "checkpoints")
        done_before = 0
        if checkpoint:
            state = json.loads((checkpoint / "trainer_state.json").read_text())
            done_before = state["global_step"]
            emit(Log(f"going on from the checkpoint of step {done_before}"))
            for entry in state["log_history"]:
                _emit_scalars(entry, emit)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        return trainer, processor, modules, done_before

    def _keeps_features(self, modules: dict[str, "torch.nn.Linear"]) -> bool:
        """Whether a picture's features are wanted again, and are the same then: nothing before them is trained."""
        knobs = self.finetune
        frozen = knobs.lora.bias != "all" and not any(lora.part(name) == "vision" for name in modules)
        return knobs.cache_image_features > 0 and knobs.epochs > 1 and knobs.augment == "none" and frozen

    def lora_modules(self, model: "PreTrainedModel") -> dict[str, "torch.nn.Linear"]:
        """The linear layers that finetune.lora.modules names, by name. Raises InputError, see vlm.lora."""
        return lora.matched_modules(model, self._pattern(model), _PATTERN_KEY)

    def _pattern(self, model: "PreTrainedModel") -> str:
        return lora.pattern_for(model, self.finetune.lora.modules, self.model.lora_modules, _PATTERN_KEY)

    def trainer(
        self,
        model: "PreTrainedModel",
        processor: "ProcessorMixin",
        directory: Path,
        emit: Emit,
        at_once: int | None = None,
        kept: dict[str, features.Features] | None = None,
    ) -> Any:
        """TRL's trainer, ready to train; the model gets its LoRA layers.

        `at_once`: samples to a forward of this process. `kept`: the splits' image features, if the model takes them.
        """
        import torch
        from peft import LoraConfig
        from transformers import EarlyStoppingCallback, PrinterCallback, set_seed
        from trl import SFTConfig

        from vlm import fast_lora

        set_seed(self.seed)  # LoRA's first weights are drawn before the trainer sets it
        params = self.finetune
        micro_batch = at_once or params.micro_batch or params.batch_size
        arguments = SFTConfig(
            output_dir=str(directory),
            num_train_epochs=params.epochs,
            per_device_train_batch_size=micro_batch,
            per_device_eval_batch_size=micro_batch,
            gradient_accumulation_steps=params.batch_size // (micro_batch * _processes().num_processes),
            learning_rate=params.learning_rate or self.model.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.05,  # of all steps
            seed=self.seed,
            data_seed=self.seed,
            bf16=self.model.dtype == "bfloat16",
            fp16=self.model.dtype == "float16",
            activation_checkpointing=False,
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=torch.cuda.is_available(),
            # Where the model computes on the CPU too, they would only take its cores.
            dataloader_num_workers=min(8, os.cpu_count() or 1) if torch.cuda.is_available() else 0,
            max_length=None,  # cutting a prompt would cut image tokens off
            completion_only_loss=True,
            remove_unused_columns=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            logging_steps=1,
            logging_nan_inf_filter=False,
            eval_strategy="steps",
            eval_steps=params.eval_steps,
            save_strategy="steps",
            save_steps=params.eval_steps,
            save_total_limit=2,  # and the best
            metric_for_best_model=params.select_by.removeprefix("eval_"),
            greater_is_better=params.select_by == "accuracy",
            load_best_model_at_end=False,
            report_to=[],
            disable_tqdm=True,
            log_level="error",
        )
        callbacks = [_reporter(emit)]
        if params.patience is not None:
            callbacks.append(EarlyStoppingCallback(params.patience))
        knobs = params.lora
        trainer = _trainer_class()(
            model=model,
            args=arguments,
            data_collator=_Collator(processor, self.task),
            train_dataset=_samples(self.train, directory.parent / "scratch"),
            eval_dataset=_samples(self.validation, directory.parent / "scratch"),
            processing_class=processor,
            # A pattern stays as it is; PEFT would write a list in an order that changes from run to run.
            peft_config=LoraConfig(
                r=knobs.r,
                lora_alpha=knobs.alpha,
                lora_dropout=knobs.dropout,
                target_modules=self._pattern(model),
                use_rslora=knobs.rslora,
                use_dora=knobs.dora,
                bias=knobs.bias,
                task_type="CAUSAL_LM",
            ),
            callbacks=callbacks,
        )
        trainer.remove_callback(PrinterCallback)
        fast_lora.make_fast(trainer.model)
        _, labels = dataset.ids_and_labels(self.train)
        if kept:
            trainer.train_dataset = _FeatureRows(kept[self.train], labels)
            trainer.eval_dataset = _FeatureRows(kept[self.validation], dataset.ids_and_labels(self.validation)[1])
        else:
            trainer.train_dataset = AugmentedRows(trainer.train_dataset, params.augment, self.task.flip, self.seed)
        trainer.train_sampler = EpochSampler(labels, params.balance, self.seed)
        trainer.lr_scale = params.lr_scale
        load = kept[self.validation] if kept else batching.Loader(self.validation, processor, self.task)
        trainer.validate = lambda: self._validate(trainer.model, processor, load, micro_batch)
        return trainer

    def _validate(
        self, model: Any, processor: "ProcessorMixin", load: "Callable[[Sequence[int]], BatchFeature]", at_once: int
    ) -> dict[str, float]:
        """What the posterior says of a part of validation: accuracy with its interval, and log loss."""
        import numpy as np
        import torch

        from vlm.posterior import Posterior

        rows = validation_rows(self.validation, self.finetune.eval_samples, self.seed)
        _, labels = dataset.ids_and_labels(self.validation)
        truth = np.array([self.task.labels.index(labels[row]) for row in rows])
        lengths = batching.prompt_lengths(self.validation, processor, self.task)
        inner, training = model.get_base_model(), model.training
        model.eval()
        ask = Posterior(inner, processor, self.task)
        found = torch.zeros(len(rows), len(self.task.labels), dtype=torch.float64)
        # A batch at most as large as a training step's, which is known to fit
        batches = batching.plan([lengths[row] for row in rows], at_once, ask.wants_equal_lengths)
        processes = _processes()
        for batch in batches[processes.process_index :: processes.num_processes]:
            inputs = load([rows[i] for i in batch]).to(inner.device, inner.dtype)
            found[batch] = ask(inputs).double()
        if processes.num_processes > 1:
            found = found.to(inner.device)
            torch.distributed.all_reduce(found)
        model.train(training)
        probabilities = found.cpu().numpy()
        right = int((probabilities.argmax(1) == truth).sum())
        low, high = metrics.wilson(right, len(rows))
        of_truth = np.maximum(probabilities[np.arange(len(rows)), truth], np.finfo(np.float64).tiny)
        return {
            "accuracy": right / len(rows),
            "accuracy_low": low,
            "accuracy_high": high,
            "log_loss": float(-np.log(of_truth).mean()),
        }

    def _looks(self, state: Any) -> list[dict]:
        """The looks at validation, from the trainer's log; one a step (the last may be logged twice after a resume)."""
        looks, train_loss, rate = {}, math.nan, math.nan
        for entry in state.log_history:
            if "loss" in entry:
                train_loss, rate = entry["loss"], entry["learning_rate"]
            if "eval_loss" in entry:
                look = {name: entry.get(f"eval_{name}") for name in _CHECKPOINTS}
                look |= {"step": entry["step"], "epoch": round(entry["epoch"], 6), "eval_loss": entry["eval_loss"]}
                look |= {"train_loss": train_loss, "learning_rate": rate}
                looks[entry["step"]] = look | {"best": int(entry["step"] == state.best_global_step)}
        return list(looks.values())

    def _save_adapter(self, checkpoint: Path, directory: Path, processor: "ProcessorMixin", look: dict) -> None:
        """The checkpoint's adapter as PEFT loads it, the processor, and a model card."""
        from vlm import model as loading

        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        shutil.copyfile(checkpoint / "adapter_model.safetensors", directory / "adapter_model.safetensors")
        config = json.loads((checkpoint / "adapter_config.json").read_text())
        config["revision"] = loading.hub_revision(self.model)  # PEFT would load the base at main
        (directory / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        processor.save_pretrained(directory)
        (directory / "README.md").write_text(self._model_card(look), encoding="utf-8")

    def _model_card(self, look: dict) -> str:
        from huggingface_hub import ModelCard, ModelCardData

        revision = self.model.revision or "not pinned"
        data = ModelCardData(
            base_model=self.model.id,
            library_name="peft",
            pipeline_tag="image-text-to-text",
            tags=["lora", "image-classification", self.task.name],
        )
        knobs = json.dumps(self.finetune.model_dump(mode="json", exclude={"track_with"}), indent=2)
        low, high = look["accuracy_low"], look["accuracy_high"]
        text = f"""\
---
{data.to_yaml()}
---

# {self.model.id}, fine-tuned for {self.task.name}

A LoRA adapter that answers one of {len(self.task.labels)} labels. Base model: `{self.model.id}`, revision `{revision}`;
its license holds for what is made with it.

On validation, constrained to the labels: accuracy {look["accuracy"]:.1%} ({low:.1%} to {high:.1%}, Wilson 95 %),
loss {look["eval_loss"]:.4f} nats a token, at step {look["step"]}. The test split was not looked at.

Training data: sha256 `{_sha256(self.train)}`. Seed {self.seed}. Parameters:

```json
{knobs}
```

Prompt:

```
{self.task.prompt.system or "(no system prompt)"}

{self.task.prompt.user}
```

Labels: {", ".join(self.task.labels)}. An answer reads `{self.task.answer(self.task.labels[0])}`.
"""
        return str(ModelCard(text))


def _processes() -> "PartialState":
    """Which of how many processes this is, as accelerate knows it."""
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available())


def validation_rows(data: str, count: int, seed: int) -> list[int]:
    """`count` rows of a split (all, if it has fewer), spread over the labels as evenly as can be."""
    import numpy as np

    _, labels = dataset.ids_and_labels(data)
    order = np.random.default_rng(seed).permutation(len(labels))
    seen: dict[str, int] = {}
    rank = {}
    for row in order.tolist():
        rank[row] = seen[labels[row]] = seen.get(labels[row], 0) + 1
    return sorted(sorted(order.tolist(), key=lambda row: rank[row])[:count])


def _report(modules: dict[str, "torch.nn.Linear"], adapted: Any) -> list[dict]:
    """A row a matched module: its part, its size and how much of it PEFT trains."""
    trained = {name: p.numel() for name, p in adapted.named_parameters() if p.requires_grad}
    return [
        {
            "module": name,
            "part": lora.part(name),
            "in_features": layer.in_features,
            "out_features": layer.out_features,
            "trainable_parameters": sum(n for of, n in trained.items() if of.startswith(f"base_model.model.{name}.")),
        }
        for name, layer in modules.items()
    ]


def _samples(data: str, directory: Path) -> Any:
    """The split's pictures and labels, decoded when they are asked for; `directory` gets a copy of them."""
    from datasets import Dataset

    return Dataset.from_parquet(data, cache_dir=str(directory / "datasets"))


class _FeatureRows:
    """A split's rows by item (see vlm.sampling), with features in the place of pictures."""

    def __init__(self, kept: features.Features, labels: Sequence[str]) -> None:
        self.kept = kept
        self._labels = labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, item: int) -> dict:
        row = item % len(self)
        return {"inputs": self.kept.row(row), "label": self._labels[row], "collate": self.kept.collate}


class _Collator:
    """Rows -> a batch whose prompts end, and whose answers begin, at one position: padded left and right of it.

    The same tokens as evaluation sees (vlm.model.encode) and vlm.posterior takes for the answers.
    """

    def __init__(self, processor: "ProcessorMixin", task: Task) -> None:
        from vlm.posterior import turn_tokens

        self._processor = processor
        self._task = task
        self._answers = dict(zip(task.labels, turn_tokens(processor, task), strict=True))

    def __call__(self, rows: Sequence[dict]) -> dict[str, "torch.Tensor"]:
        import torch

        from vlm import model

        if "inputs" in rows[0]:
            batch = rows[0]["collate"]([row["inputs"] for row in rows])
        else:
            batch = model.encode(self._processor, self._task, [row["image"].convert("RGB") for row in rows])
        answers = [torch.tensor(self._answers[row["label"]]) for row in rows]
        padding = self._processor.tokenizer.pad_token_id
        ids = torch.nn.utils.rnn.pad_sequence(answers, batch_first=True, padding_value=padding)
        lengths = torch.tensor([len(answer) for answer in answers])
        real = torch.arange(ids.shape[1]) < lengths[:, None]
        prompts = batch["input_ids"]
        for name in ("token_type_ids", "mm_token_type_ids"):
            if name in batch:
                batch[name] = torch.cat([batch[name], torch.zeros_like(ids)], dim=1)
        batch["input_ids"] = torch.cat([prompts, ids], dim=1)
        batch["attention_mask"] = torch.cat([batch["attention_mask"], real.to(batch["attention_mask"].dtype)], dim=1)
        batch["labels"] = torch.cat([torch.full_like(prompts, -100), ids.masked_fill(~real, -100)], dim=1)
        return dict(batch)


def _trainer_class() -> type:
    import torch
    from trl import SFTTrainer

    class Trainer(SFTTrainer):
        """SFTTrainer: logits for the answers only, rates by part, our sampler, accuracy on validation."""

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            if inputs["input_ids"].is_cuda:
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # TRL's fused head
            target = inputs.pop("labels")[:, 1:]
            answers = target != -100  # by position: whether what comes next is supervised

            def leave_out_the_rest(head, args):
                (hidden,) = args
                return (hidden[:, :-1][answers],)

            head = self.model.get_base_model().get_output_embeddings()
            hook = head.register_forward_pre_hook(leave_out_the_rest)
            try:
                output = model(**inputs, use_cache=False)  # its logits: (supervised tokens, vocabulary)
            finally:
                hook.remove()
            loss = torch.nn.functional.cross_entropy(output.logits.float(), target[answers], reduction="sum")
            count = answers.sum() if num_items_in_batch is None else num_items_in_batch
            loss = loss / count
            if self.args.average_tokens_across_devices and num_items_in_batch is not None:
                loss = loss * self.accelerator.num_processes
            return (loss, output) if return_outputs else loss

        def _get_train_sampler(self, train_dataset=None):
            return self.train_sampler

        def create_optimizer(self, model=None):
            optimizer = super().create_optimizer(model)
            part_of = {id(p): lora.part(name) for name, p in self.model.named_parameters()}
            groups = []
            for group in optimizer.param_groups:
                for part in lora.PARTS:
                    chosen = [p for p in group["params"] if part_of[id(p)] == part]
                    if chosen:
                        rate = group["lr"] * getattr(self.lr_scale, part)
                        groups.append({**group, "params": chosen, "lr": rate})
            optimizer.param_groups = groups
            return optimizer

        def evaluate(self, *args, **kwargs):
            self._found = {f"eval_{name}": value for name, value in self.validate().items()}
            return super().evaluate(*args, **kwargs)

        def log(self, logs, start_time=None):
            if "eval_loss" in logs:
                logs.update(self._found)  # in place: these are the metrics by which the best checkpoint is chosen
            super().log(logs, start_time)

    return Trainer


def _write_csv(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _sha256(path: str) -> str:
    import hashlib

    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def last_checkpoint(directory: Path) -> Path | None:
    """The latest checkpoint that was written to its end."""
    complete = [path for path in directory.glob("checkpoint-*") if _is_complete(path)]
    return max(complete, key=lambda path: int(path.name.removeprefix("checkpoint-")), default=None)


def _is_complete(checkpoint: Path) -> bool:
    """Whether nothing in it is missing or cut off: torch's files are zips and, as safetensors, know their length."""
    import zipfile

    from safetensors import SafetensorError, safe_open

    try:
        json.loads((checkpoint / "trainer_state.json").read_text())  # the trainer writes it last
        with safe_open(checkpoint / "adapter_model.safetensors", "pt"):
            pass
    except (OSError, ValueError, SafetensorError):
        return False
    # The random state of a process a file
    files = [checkpoint / "optimizer.pt", checkpoint / "scheduler.pt", *checkpoint.glob("rng_state*.pth")]
    return len(files) > 2 and all(zipfile.is_zipfile(path) for path in files)


def _silent(event: Any) -> None:
    """Says nothing."""


def _once(emit: Emit) -> Emit:
    """Drops the scalars of a step that were seen before: what a resumed training replays or repeats."""
    seen: set[tuple[int, str]] = set()

    def forward(event: Any) -> None:
        if isinstance(event, Scalars):
            event = Scalars(event.step, {n: v for n, v in event.values.items() if (event.step, n) not in seen})
            seen.update((event.step, name) for name in event.values)
            if not event.values:
                return
        emit(event)

    return forward


def _emit_scalars(entry: dict, emit: Emit) -> None:
    values = {name: float(entry[logged]) for logged, name in _SCALARS.items() if logged in entry}
    if values:
        emit(Scalars(entry["step"], values))


def _reporter(emit: Emit) -> Any:
    """A trainer callback that turns steps and logs into events, and stops at a loss that has diverged."""
    from transformers import TrainerCallback

    class Reporter(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            emit(Progress(state.global_step, state.max_steps, "step"))

        def on_step_end(self, args, state, control, **kwargs):
            emit(Progress(state.global_step, state.max_steps, "step"))
            if state.global_step >= state.max_steps:
                # Whatever eval_steps is, the end has a look at validation and a checkpoint.
                control.should_evaluate = control.should_save = True

        def on_log(self, args, state, control, logs=None, **kwargs):
            loss = logs.get("loss", logs.get("eval_loss"))
            if loss is not None and not (math.isfinite(loss) and loss < _DIVERGED):
                rate = next(entry["learning_rate"] for entry in reversed(state.log_history) if "learning_rate" in entry)
                raise InputError(
                    f"params.yaml: finetune.learning_rate: the loss is {loss} at step {state.global_step} with a "
                    f"learning rate of {rate:.3g}: training diverged; a smaller one would do"
                )
            _emit_scalars({**logs, "step": state.global_step}, emit)

    return Reporter()
