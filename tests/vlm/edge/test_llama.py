import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from vlm.config.errors import InputError
from vlm.config.params import load_params
from vlm.data import dataset
from vlm.edge import llama, merging
from vlm.edge.classifier import Classifier
from vlm.edge.llama import Llama
from vlm.evaluation import batching, prior
from vlm.models import encoding, loading

# Labels that share beginnings, and are the beginning of others
CARS = ("Land", "Land Rover", "Land Cruiser", "Audi", "Audi A1", "Audi A11", "Audi A12")


@pytest.fixture(scope="module")
def model():
    """The embedded model and its processor."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(Path(__file__).parents[3])
        params = load_params()
        return loading.load(params.model, params.image)


@pytest.fixture
def badges(make_split):
    return [batching.decoded(row.image) for row in dataset.Reader(make_split("test", 6)).rows(range(6))]


@pytest.fixture
def classifier_for(exported, model, at_root, tmp_path):
    """classifier_for(task) is a folder with the exported model and a classifier.json for another task."""

    def make(task, offsets=()):
        folder = tmp_path / f"classifier_{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        for name in ("model.gguf", "mmproj.gguf"):
            os.link(exported / name, folder / name)
        params = load_params().model_copy(update={"task": task})
        Classifier.of(params, model[1], "0" * 64, offsets).with_files(folder, ("F16", "F16")).save(folder)
        return folder

    return make


def pytorch(model, task, images):
    return merging.posteriors(*model, task, images).numpy()


def test_probabilities_are_pytorchs(exported, model, task, badges, capfd):
    expected = pytorch(model, task, badges)
    with Llama(exported, threads=1) as one:
        found = np.stack([one.posterior(badge) for badge in badges])
    assert np.abs(found.sum(1) - 1).max() < 1e-12
    assert 0 < np.abs(found - expected).max() < 0.01
    assert (found.argmax(1) == expected.argmax(1)).all()
    assert len(set(expected.argmax(1))) > 3  # else any constant would do
    assert capfd.readouterr() == ("", "")  # llama.cpp's log


@pytest.mark.parametrize(
    ("size", "mode"),
    [
        ((4000, 3000), "RGB"),
        ((60, 600), "RGB"),
        ((600, 60), "RGB"),
        ((300, 200), "L"),
        ((150, 150), "P"),
        ((33, 20), "L"),
    ],
)
def test_pictures_of_other_sizes_and_modes(size, mode, exported, model, task, badges):
    picture = badges[0].resize(size).convert(mode)
    rgb = picture.convert("RGB")
    with Llama(exported, threads=1) as one:
        assert one.prompt_tokens(picture) == encoding.encode(model[1], task, [rgb])["input_ids"].shape[1]
        found = one.posterior(picture)
    assert np.abs(found - pytorch(model, task, [rgb])[0]).max() < 0.01


@pytest.mark.parametrize("answer", ["json", "label"])
@pytest.mark.parametrize(
    "labels",
    [
        CARS,
        ("2012", "2022", "2020", "Volkswagen", "Volvo", "Škoda", "汽车", "火车", "MINI"),
        ("汽车", "火车"),
        ("solo",),
    ],
)
def test_labels_that_share_beginnings(labels, answer, classifier_for, model, task, badges):
    """Among them, labels that are the beginning of others and characters of several tokens."""
    task = task.model_copy(update={"labels": labels, "aliases": {}, "answer_form": answer})
    with Llama(classifier_for(task), threads=1) as one:
        found = np.stack([one.posterior(badge) for badge in badges])
        written = one.greedy(badges[0])
    assert np.abs(found - pytorch(model, task, badges)).max() < 0.01
    assert written in map(task.answer, labels)


def test_a_label_prior_is_corrected_as_pytorch_corrects_it(classifier_for, model, task, badges):
    task = task.model_copy(update={"labels": CARS, "aliases": {}})
    plain = pytorch(model, task, badges)
    offsets = (-np.log(plain.mean(0))).tolist()  # some labels are hardly ever the model's
    expected = prior.apply(plain, offsets)
    assert (expected.argmax(1) != plain.argmax(1)).any()
    with Llama(classifier_for(task, offsets), threads=1) as one:
        found = np.stack([one.posterior(badge) for badge in badges])
        uncorrected = np.stack([one.plain_posterior(badge) for badge in badges])
    assert np.abs(found - expected).max() < 0.01
    assert np.abs(uncorrected - plain).max() < 0.01
    assert (found.argmax(1) == expected.argmax(1)).all()


def test_a_node_that_is_hardly_reached_is_evaluated_if_the_correction_raises_a_label_below_it(
    classifier_for, model, task, badges, monkeypatch
):
    task = task.model_copy(update={"labels": CARS, "aliases": {}})
    (plain,) = pytorch(model, task, badges[:1])
    rare = CARS.index("Audi A11")
    offsets = [0.0] * len(CARS)
    offsets[rare] = -np.log(plain[rare])  # so that its corrected probability is about a half
    monkeypatch.setattr(llama, "NEGLIGIBLE", 0.9)  # so that no node below the root is evaluated without a correction
    with Llama(classifier_for(task), threads=1) as one:
        assert abs(one.posterior(badges[0])[rare] / plain[rare] - 1) > 0.2
    with Llama(classifier_for(task, offsets), threads=1) as one:
        assert one.posterior(badges[0])[rare] == pytest.approx(1 / (2 - plain[rare]), abs=0.01)


def test_only_the_first_request_about_a_picture_evaluates_the_prompt(classifier_for, task, badges, monkeypatch):
    """By the numbers of prompt tokens that the server reports as evaluated."""
    replies = []
    complete = Llama._complete

    def recorded(*arguments):
        replies.append(complete(*arguments))
        return replies[-1]

    monkeypatch.setattr(Llama, "_complete", recorded)
    with Llama(classifier_for(task.model_copy(update={"labels": CARS, "aliases": {}})), threads=1) as one:
        whole = one.prompt_tokens(badges[0])
        replies.clear()
        one.posterior(badges[0])
        one.posterior(badges[1])
    evaluated = [reply["timings"]["prompt_n"] for reply in replies]
    half = len(replies) // 2
    assert half > 1
    for picture in (evaluated[:half], evaluated[half:]):
        assert picture[0] > whole
        assert max(picture[1:]) < 20


def test_labels_that_differ_within_a_character_are_one_line(classifier_for, task):
    task = task.model_copy(update={"labels": ("Citroën", "Citroèn"), "aliases": {}})
    with pytest.raises(InputError, match=r"car_badges.yaml: labels: 'Citroën' and 'Citroèn' differ"):
        Llama(classifier_for(task), threads=1)


def test_a_node_that_is_hardly_reached_is_shared_equally(exported, task, badges, monkeypatch):
    monkeypatch.setattr(llama, "NEGLIGIBLE", 1.1)  # so that not even the root is evaluated
    with Llama(exported, threads=1) as one:
        assert one.posterior(badges[0]) == pytest.approx(1 / len(task.labels), rel=1e-12)


def test_an_answer_does_not_depend_on_earlier_ones(classifier_for, task, badges):
    folder = classifier_for(
        task.model_copy(update={"labels": ("Land", "Land Rover", "Audi", "Audi A1"), "aliases": {}})
    )
    with Llama(folder, threads=1) as one, Llama(folder, threads=1) as two:
        first = [one.posterior(badge) for badge in badges[:3]]
        two.greedy(badges[1])
        assert np.array_equal(two.posterior(badges[2]), first[2])
        assert np.array_equal(two.posterior(badges[2]), first[2])
        assert np.array_equal(two.posterior(badges[0]), first[0])


def test_greedy_decoding_writes_the_most_probable_of_labels_without_shared_beginnings(exported, task, badges):
    with Llama(exported, threads=1) as one:
        for badge in badges[:3]:
            assert one.greedy(badge) == task.answer(task.labels[one.posterior(badge).argmax()])


def test_tokens_are_the_tokenizers(exported, model):
    text = "<|im_start|>user\nIt's 'Citroën',  2012\n\n<|im_end|>"
    with Llama(exported, threads=1) as one:
        assert one.tokenize(text) == model[1].tokenizer(text, add_special_tokens=False)["input_ids"]


def test_a_picture_that_is_too_narrow_is_one_line(exported):
    with Llama(exported, threads=1) as one, pytest.raises(InputError, match="2000 x 20 pixels is too narrow"):
        one.posterior(Image.new("RGB", (2000, 20)))


def test_what_llama_cpp_refuses_is_one_line(exported, tmp_path):
    """Here, a prompt that is longer than the model's context."""
    for name in ("model.gguf", "mmproj.gguf"):
        os.link(exported / name, tmp_path / name)
    known = Classifier.load(exported)
    known.model_copy(update={"prompt": known.prompt.model_copy(update={"before": "word " * 3000})}).save(tmp_path)
    with Llama(tmp_path, threads=1) as one, pytest.raises(RuntimeError, match=r"^llama.cpp: .*context") as error:
        one.posterior(Image.new("RGB", (128, 128)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["model.gguf", "mmproj.gguf"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut off", "something else"])
def test_files_that_llama_cpp_cannot_load_are_one_line(name, damage, exported, tmp_path, capfd):
    for file in exported.glob("*.*"):
        content = file.read_bytes()
        if file.name == name:
            content = {"empty": b"", "cut off": content[: len(content) // 2], "something else": b"x" * 5000}.get(damage)
        if content is not None:
            (tmp_path / file.name).write_bytes(content)
    message = "not found" if damage == "missing" else "llama.cpp cannot load"
    with pytest.raises(InputError, match=message):
        Llama(tmp_path, threads=1)
    assert capfd.readouterr() == ("", "")


def test_transparent_pixels_are_white(exported):
    over_white = Image.new("RGB", (128, 128), "white")
    transparent = Image.new("RGBA", (128, 128), (0, 0, 0, 0))
    for picture in (over_white, transparent):
        ImageDraw.Draw(picture).ellipse((20, 20, 100, 100), fill="red")
    with Llama(exported, threads=1) as one:
        assert np.array_equal(one.posterior(over_white), one.posterior(transparent))
