import re
from pathlib import Path

import pytest

from vlm.config.errors import InputError, reported
from vlm.config.models import load_model
from vlm.config.params import load_params
from vlm.config.task import load_task
from vlm.config.yaml_files import read_yaml

PARAMS = """\
model: small
task: pets
seed: 23
compute: auto
modal: {gpu: null, containers: 1, max_dollars: null, timeout: 24, region: null}
prepare: {train: 100, validation: null, test: 10}
image: {max_tokens: null, splitting: false}
evaluation: {batch_size: 8, raw_batch_size: 8, max_new_tokens: 32}
structured_eval: {engine: posterior, prior: batch, prior_samples: 256, outlines_samples: 64, calibrate: none}
finetune:
  method: lora
  loss: tokens
  optimizer: adamw
  epochs: 2
  learning_rate: null
  batch_size: 16
  lr_scale: {language: 1.0, projector: 1.0, vision: 1.0}
  micro_batch: null
  gradient_checkpointing: auto
  eval_steps: 50
  eval_samples: 100
  select_by: accuracy
  patience: null
  balance: none
  augment: none
  cache_image_features: 16
  track_with: [dvclive]
  lora: {modules: language, r: 8, alpha: 16, dropout: 0.05, rslora: false, dora: false, bias: none}
final_eval: {adapter: best, prior: none}
robustness: {enabled: false, samples: 200, severities: [1, 5], corruptions: [contrast]}
prompt_search: {enabled: false, candidates: pets, sample: 50, passes: 8}
export: {text: Q4_0, vision: Q8_0, samples: null, sweep: []}
"""
MODEL = """\
id: org/small
revision: null
runs_on_cpu: true
options:
  dtype: float32
  attention: sdpa
  learning_rate: 5e-4
  lora_modules: {language: '.*\\.q_proj'}
"""
TASK = """\
source: {folder: pets}
columns: {image: image, label: label}
classes: {a: cat, b: dog}
labels: [cat, dog]
aliases: {cat: [kitten]}
prompt: {system: null, user: Which?}
"""
GPUS = "dollars_per_second: {L4: 0.0002, H100: 0.001}"
FILES = {
    "params.yaml": PARAMS,
    "configs/models/small.yaml": MODEL,
    "configs/tasks/pets.yaml": TASK,
    "configs/gpus.yaml": GPUS,
}


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)


def message_of(file: str, old: str, new: str) -> str:
    """The error message, which is one line, after replacing `old` by `new` in a file."""
    assert old in FILES[file]
    Path(file).write_text(FILES[file].replace(old, new, 1))
    with pytest.raises(InputError) as caught:
        load_params()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_three_files_are_read_into_one_frozen_object():
    params = load_params()
    assert (params.seed, params.prepare.test, params.finetune.lora.r) == (23, 10, 8)
    assert (params.model.name, params.model.id, params.model.learning_rate) == ("small", "org/small", 0.0005)
    assert (params.task.name, params.task.labels, params.task.aliases) == ("pets", ("cat", "dog"), {"cat": ["kitten"]})
    with pytest.raises(ValueError):
        params.seed = 24


def test_an_entry_of_the_sweep_without_a_vision_type_has_that_of_the_export():
    text = PARAMS.replace("sweep: []", "sweep: [F16+F16, Q8_0, Q4_K_M+Q4_0]")
    Path("params.yaml").write_text(text)
    assert load_params().export.swept == [("F16", "F16"), ("Q8_0", "Q8_0"), ("Q4_K_M", "Q4_0")]


@pytest.mark.parametrize("options", ["options: {}\n", "options:\n", ""])
def test_a_models_file_without_options_uses_the_defaults(options):
    Path("configs/models/small.yaml").write_text(f"id: org/small\nrevision: null\n{options}")
    model = load_model("small")
    assert (model.dtype, model.attention, model.learning_rate, model.lora_modules) == ("bfloat16", "sdpa", 0.0002, {})


def test_yaml_is_read_as_dvc_reads_it():
    Path("x.yaml").write_text("a: no\nb: 5e-4\nc: 450M\nd: 1.6B\n")
    assert read_yaml("x.yaml") == {"a": "no", "b": 0.0005, "c": "450M", "d": "1.6B"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seed: 23", "seed: twenty", "params.yaml: seed: 'twenty' should be a whole number"),
        ("seed: 23", "seed: 2.5", "params.yaml: seed: 2.5 should be a whole number"),
        ("seed: 23", "seed: true", "params.yaml: seed: true should be a whole number"),
        ("seed: 23", "seed: -1", "params.yaml: seed: -1 should be greater than or equal to 0"),
        ("seed: 23\n", "", "params.yaml: seed: is missing; add it"),
        ("compute: auto", "compute: here", "params.yaml: compute: 'here' should be 'auto'"),
        ("containers: 1", "containers: 0", "params.yaml: modal.containers: 0 should be greater than 0"),
        ("train: 100", "train: 0", "params.yaml: prepare.train: 0 should be greater than 0"),
        ("train: 100", "trian: 100", "params.yaml: prepare.trian: there is no such key; the keys here are train, validation, test"),
        ("splitting: false", "splitting: 1", "params.yaml: image.splitting: 1 should be true or false"),
        ("batch_size: 8", "batch_size: '8'", "params.yaml: evaluation.batch_size: '8' should be a whole number"),
        (", max_new_tokens: 32", "", "params.yaml: evaluation.max_new_tokens: is missing; add it"),
        ("evaluation: {batch_size: 8, raw_batch_size: 8, max_new_tokens: 32}", "evaluation: 8", "params.yaml: evaluation: 8 should be a mapping of keys to values"),
        ("dropout: 0.05", "dropout: 1", "params.yaml: finetune.lora.dropout: 1 should be less than 1"),
        ("dropout: 0.05", "dropout: low", "params.yaml: finetune.lora.dropout: 'low' should be a number"),
        ("modules: language", "modules: '(q_proj'", "params.yaml: finetune.lora.modules: '(q_proj' should be a regular expression: missing )"),
        ("alpha: 16", "beta: 16", "params.yaml: finetune.lora.alpha: is missing; add it"),
        ("r: 8,", "r: 8, rank: 8,", "params.yaml: finetune.lora.rank: there is no such key; the keys here are modules, r, alpha, dropout"),
        ("checkpointing: auto", "checkpointing: maybe", "params.yaml: finetune.gradient_checkpointing: 'maybe' should be 'auto', True or False"),
        ("sweep: []", "sweep: [Q5]", "params.yaml: export.sweep: ['Q5'] 'Q5' should be one of F32, F16"),
        ("sweep: []", "sweep: [Q8_0, Q8_0+]", "params.yaml: export.sweep: ['Q8_0', 'Q8_0+'] '' should be one of F32, F16"),
        ("sweep: []", "sweep: [F16, F16]", "params.yaml: export.sweep: ['F16', 'F16'] lists 'F16' twice; list everything once"),
        ("vision: Q8_0,", "vision: Q4_K_M,", "params.yaml: export.vision: 'Q4_K_M' should be 'F32', 'F16'"),
        ("micro_batch: null", "micro_batch: 5", "params.yaml: finetune.micro_batch: 5 does not divide finetune.batch_size, 16"),
        ("learning_rate: null", "learning_rate: 0", "params.yaml: finetune.learning_rate: 0 should be a number above 0, auto or null"),
        ("learning_rate: null", "learning_rate: best", "params.yaml: finetune.learning_rate: 'best' should be a number above 0, auto or null"),
        ("loss: tokens", "loss: label", "params.yaml: finetune.loss: 'label' should be 'tokens', 'labels' or 'both'"),
        ("epochs: 2", "epochs: .inf", "params.yaml: finetune.epochs: inf should be a finite number"),
        ("max_tokens: null", "max_tokens: 100000000", "params.yaml: image.max_tokens: 100000000 should be less than or equal to 32768"),
        ("{language: 1.0, projector: 1.0, vision: 1.0}", "{language: 0, projector: 0, vision: 0}", "params.yaml: finetune.lr_scale: 0 for every part trains nothing"),
        ("severities: [1, 5]", "severities: [1, 6]", "params.yaml: robustness.severities.1: 6 should be 1, 2, 3, 4 or 5"),
        ("severities: [1, 5]", "severities: []", "params.yaml: robustness.severities: [] should have at least one entry"),
        ("severities: [1, 5]", "severities: 3", "params.yaml: robustness.severities: 3 should be a list"),
        ("corruptions: [contrast]", "corruptions: [fog]", "params.yaml: robustness.corruptions.0: 'fog' should be 'contrast', 'gaussian_noise',"),
        ("[contrast]", "[contrast, contrast]", "params.yaml: robustness.corruptions: ['contrast', 'contrast'] lists 'contrast' twice; list everything once"),
        ("gpu: null", "gpu: RTX4090", "params.yaml: modal.gpu: 'RTX4090' should be one of L4, H100 (see configs/gpus.yaml)"),
        ("timeout: 24", "timeout: 99", "params.yaml: modal.timeout: 99 should be less than or equal to 24"),
        ("model: small", "model: large", "params.yaml: model: 'large' has no file configs/models/large.yaml; the available names are small"),
        ("task: pets", "task: cars", "params.yaml: task: 'cars' has no file configs/tasks/cars.yaml; the available names are pets"),
        ("model: small", "model: 3", "params.yaml: model: 3 should be the name of a file in configs/models, without .yaml"),
        ("model: small\n", "", "params.yaml: model: is missing; add it"),
        ("seed: 23", "seed: 23\nseed: 24", "params.yaml: seed: is there twice, in lines 3 and 4; remove one of the two"),
        ("seed: 23", "seed: 23\nprepare: {test: 9}", "params.yaml: prepare: is there twice, in lines 4 and 7; join the two"),
        ("r: 8,", "r: 8, r: 16,", "params.yaml: finetune.lora.r: is there twice, in line "),
        ("prepare: {train", "prepare: {{train", "params.yaml: line "),
        ("seed: 23", "seed: [23", "params.yaml: line "),
        ("seed: 23", "\tseed: 23", "params.yaml: line 3: "),
    ],
)  # fmt: skip
def test_a_bad_value_in_params_yaml_is_reported_in_one_line(old, new, message):
    assert message_of("params.yaml", old, new).startswith(message)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("id: org/small\n", "", "id: is missing; add it"),
        ("id: org/small", "id: ''", "id: '' should not be empty"),
        ("id: org/small", "id: 3", "id: 3 should be text; put it in quotes"),
        ("dtype: float32", "dtype: float8", "options.dtype: 'float8' should be 'float32', 'bfloat16' or 'float16'"),
        ("runs_on_cpu: true", "runs_on_cpu: 'yes'", "runs_on_cpu: 'yes' should be true or false"),
        ("learning_rate: 5e-4", "learning_rate: 0", "options.learning_rate: 0 should be greater than 0"),
        (
            "language: '.*\\.q_proj'",
            "language: '*q'",
            "options.lora_modules.language: '*q' should be a regular expression: nothing to repeat",
        ),
        (
            "attention: sdpa",
            "precision: high",
            "options.precision: there is no such key; the keys here are dtype, attention",
        ),
        (
            "runs_on_cpu: true",
            "runs_on_gpu: true",
            "runs_on_gpu: there is no such key; the keys here are id, revision, runs_on_cpu, gpu, options",
        ),
        (
            "runs_on_cpu: true",
            "dtype: float32",
            "dtype: there is no such key; the keys here are id, revision, runs_on_cpu, gpu, options",
        ),
        ("options:\n", "optoins:\n", "optoins: there is no such key; the keys here are id, revision, runs_on_cpu"),
        ("runs_on_cpu: true", "name: small", "name: there is no such key; the name is taken from the file name"),
        (MODEL, "- id\n", "should be a mapping of keys to values"),
        (MODEL, "", "should be a mapping of keys to values"),
    ],
)
def test_a_bad_value_in_a_models_file_is_reported_in_one_line(old, new, message):
    assert message_of("configs/models/small.yaml", old, new).startswith(f"configs/models/small.yaml: {message}")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("labels: [cat, dog]", "labels: [cat, dog, cat]", "labels: 'cat' is listed twice; list every label once"),
        ("labels: [cat, dog]", "labels: [cat, dog, bird]", "classes: the label 'bird' is missing; every label needs an entry"),
        ("labels: [cat, dog]", "labels: []", "labels: [] should have at least one entry"),
        ("labels: [cat, dog]", "labels: cat", "labels: 'cat' should be a list"),
        ("labels: [cat, dog]", "labels: [cat, 5]", "labels.1: 5 should be text; put it in quotes"),
        ("b: dog", "b: bird", "classes: the label 'dog' is missing; every label needs an entry"),
        ("classes: {a: cat, b: dog}", "classes: {0: cat, 1: dog}", "classes.0: 0 should be text; put it in quotes"),
        ("aliases: {cat: [kitten]}", "aliases: {cat: kitten}", "aliases.cat: 'kitten' should be a list"),
        ("{folder: pets}", "{folder: pets, hub: org/pets}", "source: names hub and folder; give exactly one of badges, hub, folder"),
        ("{folder: pets}", "{}", "source: names no kind; give exactly one of badges, hub, folder"),
        ("{folder: pets}", "pets", "source: 'pets' should be a mapping of keys to values"),
        ("{folder: pets}", "{fodler: pets}", "source.fodler: there is no such key; the keys here are badges, hub, revision, train, test, expect, folder"),
        ("source: {folder: pets}\n", "", "source: is missing; add it"),
        ("{folder: pets}", "{badges: {severity: 2, icons: {cat: a, dog: b}}}", "source.badges.severity: 2 should be less than or equal to 1"),
        ("{folder: pets}", "{badges: {severity: 1, icon: {cat: a, dog: b}}}", "source.badges."),
        ("user: Which?", "user: null", "prompt.user: is empty; write some text"),
        (", user: Which?", "", "prompt.user: is missing; add it"),
        ("user: Which?", "user: 'Which? {label}'", "prompt.user: 'Which? {label}' {label} is not a placeholder; use {labels} for the list of labels"),
        ("cat: [kitten]", "cat: ['', kitten]", "aliases.cat: an alias is empty or has no letter or digit; remove it"),
        ("prompt: {", "prompt: {assistant: x, ", "prompt.assistant: there is no such key; the keys here are system, user"),
        ("columns: {image: image, label: label}", "columns: {picture: image}", "columns.picture: there is no such key; the keys here are image, label"),
    ],
)  # fmt: skip
def test_a_bad_value_in_a_tasks_file_is_reported_in_one_line(old, new, message):
    assert message_of("configs/tasks/pets.yaml", old, new).startswith(f"configs/tasks/pets.yaml: {message}")


def test_a_missing_params_yaml_is_reported_in_one_line():
    Path("params.yaml").unlink()
    with pytest.raises(InputError, match=r"^params\.yaml: cannot be read: no such file or directory$"):
        load_params()


def test_a_file_that_is_not_text_is_reported_in_one_line():
    Path("params.yaml").write_bytes(b"model: \xff\n")
    with pytest.raises(InputError, match=r"^params\.yaml: should be text in UTF-8$"):
        load_params()


@pytest.mark.parametrize(("load", "kind"), [(load_model, "models"), (load_task, "tasks")])
def test_a_name_without_a_file_lists_the_available_names(load, kind):
    with pytest.raises(
        InputError, match=re.escape(f"'nothing' has no file configs/{kind}/nothing.yaml; the available names are ")
    ):
        load("nothing")


def test_reported_prints_the_line_and_exits_with_code_1(capsys):
    with pytest.raises(SystemExit) as caught, reported():
        raise InputError("params.yaml: seed: is missing; add it")
    assert caught.value.code == 1
    assert capsys.readouterr().err == "error: params.yaml: seed: is missing; add it\n"
