import json
import sys
from pathlib import Path

import numpy as np
import pytest

from vlm.config.errors import InputError
from vlm.config.events import Log
from vlm.config.params import load_params
from vlm.edge import export, merging
from vlm.edge.classifier import Classifier, NotExportable
from vlm.edge.llama import Llama
from vlm.evaluation import prior
from vlm.models import loading

FILES = ["Classifier.swift", "README.md", "classifier.json", "labels.gbnf", "mmproj.gguf", "model.gguf"]


@pytest.fixture
def work(adapter, make_split, tmp_path):
    """work(sweep=[("Q4_0", "Q8_0")]) exports the adapter with random weights to work.folder / "edge"."""
    split = make_split("test", 4)

    def run(params=None, offsets=(), sweep=(), emit=lambda event: None):
        types, output = ("F16", "F16"), work.folder / "edge"
        return export.export(params or load_params(), adapter, split, output, types, offsets, sweep, emit)

    work = run
    work.folder, work.adapter, work.split = tmp_path / "out", Path(adapter), split
    return work


def test_the_files_answer_as_the_adapter_does(work):
    found = work(sweep=[("Q4_0", "Q8_0")])
    (small,) = export.swept(work.folder / "edge")
    assert small.name == "Q4_0+Q8_0"
    assert sorted(path.name for path in small.iterdir()) == FILES
    assert sorted(path.name for path in small.parents[1].iterdir()) == [*FILES, "sweep"]
    assert [path.name for path in work.folder.iterdir()] == ["edge"]
    params, images = load_params(), merging.samples(work.split)
    model, processor = loading.load(params.model, params.image, str(work.adapter))
    expected = merging.posteriors(model, processor, params.task, images).numpy()
    with Llama(work.folder / "edge") as llama:
        answers = np.stack([llama.posterior(image) for image in images])
    assert np.abs(answers - expected).max() == pytest.approx(found.difference, abs=1e-4)
    assert found.difference < 0.01 and (found.samples, found.changed) == (4, 0)
    small = Classifier.load(small)
    assert [file.type for file in small.files.values()] == ["Q4_0", "Q8_0"]
    assert small.labels == params.task.labels
    assert found.bytes == sum(file.bytes for file in Classifier.load(work.folder / "edge").files.values())


def test_the_files_correct_the_label_prior(work):
    params, images = load_params(), merging.samples(work.split)
    model, processor = loading.load(params.model, params.image, str(work.adapter))
    plain = merging.posteriors(model, processor, params.task, images).numpy()
    offsets = np.random.default_rng(0).normal(scale=2, size=plain.shape[1]).tolist()
    expected = prior.apply(plain, offsets)
    assert (expected.argmax(1) != plain.argmax(1)).any()
    found = work(offsets=offsets, sweep=[("Q8_0", "F16")])
    for folder in (work.folder / "edge", *export.swept(work.folder / "edge")):
        assert list(Classifier.load(folder).offsets) == offsets
        assert "**Correct the label prior**" in (folder / "README.md").read_text()
        assert f"let offsets: [Double] = {offsets}" in (folder / "Classifier.swift").read_text()
    with Llama(work.folder / "edge") as llama:
        answers = np.stack([llama.posterior(image) for image in images])
    assert np.abs(answers - expected).max() == pytest.approx(found.difference, abs=1e-4)
    assert found.difference < 0.01 and found.changed == 0


def test_the_label_prior_is_that_of_final_eval(at_root, tmp_path, monkeypatch):
    params = load_params()

    def with_prior(method, engine="posterior"):
        blocks = {"final_eval": {"prior": method}, "structured_eval": {"engine": engine}}
        return params.model_copy(
            update={name: getattr(params, name).model_copy(update=values) for name, values in blocks.items()}
        )

    monkeypatch.chdir(tmp_path)
    assert export.prior_offsets(with_prior("none")) == export.prior_offsets(with_prior("batch", "outlines")) == []
    with pytest.raises(InputError, match=r"predictions/final_eval/test.json: no such file; `dvc repro final_eval`"):
        export.prior_offsets(with_prior("batch"))
    probabilities = [(i + 1) / 496 for i in range(31)]
    entry = {"method": "batch", "samples": 9, "strength": 1.0, "probabilities": probabilities}
    (tmp_path / "predictions/final_eval").mkdir(parents=True)
    file = tmp_path / "predictions/final_eval/test.json"
    file.write_text(json.dumps({"prior": entry}))
    assert export.prior_offsets(with_prior("batch")) == pytest.approx([-np.log(p) for p in probabilities])
    assert export.prior_offsets(with_prior("none")) == []
    for stale in ({}, {"prior": entry | {"method": "blank"}}, {"prior": entry | {"probabilities": [0.5, 0.5]}}):
        file.write_text(json.dumps(stale))
        with pytest.raises(
            InputError, match=r"final_eval/test.json: prior: .*with 31 labels; run `dvc repro final_eval`"
        ):
            export.prior_offsets(with_prior("batch"))


def test_an_error_leaves_nothing_behind(work):
    work.folder.mkdir()
    (work.folder / ".edge.tmp").mkdir()  # as a killed export leaves it
    config = json.loads((work.adapter / "adapter_config.json").read_text())
    (work.adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "models/other"}))
    with pytest.raises(InputError, match="'models/other' is not the model tiny"):
        work()
    assert list(work.folder.iterdir()) == []


def test_an_existing_folder_is_not_overwritten(work):
    (work.folder / "edge").mkdir(parents=True)
    with pytest.raises(InputError, match="edge: exists; name a new folder"):
        work()


def test_a_model_that_cuts_pictures_into_tiles_is_exported_without_and_says_so(work):
    params, events = load_params(), []
    params = params.model_copy(update={"image": params.image.model_copy(update={"splitting": True})})
    work(params, emit=events.append)
    (warning,) = [event.text for event in events if isinstance(event, Log)]
    assert "an exported classifier cuts none" in warning and "image.splitting: false" in warning


def test_what_cannot_be_exported_is_said_in_a_line(tmp_path, tiny, monkeypatch):
    params = load_params()
    export.require_exportable(params)
    monkeypatch.setitem(sys.modules, "xllamacpp", None)  # as if it were not installed
    with pytest.raises(NotExportable, match=r"the package xllamacpp cannot be imported \("):
        export.require_exportable(params)
