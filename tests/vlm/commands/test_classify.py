import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlm.commands import classify
from vlm.config.errors import InputError
from vlm.config.params import load_params
from vlm.evaluation import prior
from vlm.sources import badges

ROOT = Path(__file__).parents[3]


@pytest.fixture
def photos(tmp_path, task):
    """Three badges, the last one in a subfolder, and files that are not pictures."""
    icons = task.source.badges.icons
    rendered = badges.render_split(list(icons.values()), 3, 1, 0, 0.1, workers=1)
    names = ["a.jpg", "b.jpg", "below/c.jpg"]
    (tmp_path / "photos" / "below").mkdir(parents=True)
    for name, (_, jpeg) in zip(names, rendered, strict=True):
        (tmp_path / "photos" / name).write_bytes(jpeg)
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no picture")
    (tmp_path / "photos" / "notes.txt").write_text("not a picture")
    (tmp_path / "photos" / "._a.jpg").write_text("hidden, as macOS leaves them on other disks")
    return tmp_path / "photos"


def test_every_file_gets_all_labels_most_probable_first(photos, at_root):
    params = load_params()
    files = classify.find([photos])
    assert [file.name for file in files] == ["a.jpg", "b.jpg", "c.jpg", "broken.jpg"]
    found = {item.file.name: item for item in classify.classify(files, params)}
    assert found["broken.jpg"].error
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        probabilities = [p for _, p in found[name].labels]
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) == pytest.approx(1)
        assert {label for label, _ in found[name].labels} == set(params.task.labels)


def test_batches_that_do_not_fit_in_memory_are_split(photos, at_root, no_memory_for):
    files, params, events = classify.find([photos]), load_params(), []
    whole = list(classify.classify(files, params))
    with no_memory_for(1):
        parts = list(classify.classify(files, params, emit=events.append))
    assert [event.text for event in events] == [
        "out of memory with 3 samples; continuing with 1 at a time",
        "out of memory with 2 samples; continuing with 1 at a time",
    ]
    for one, other in zip(whole, parts, strict=True):
        assert [label for label, _ in one.labels][:1] == [label for label, _ in other.labels][:1]
        assert dict(one.labels) == pytest.approx(dict(other.labels), abs=1e-3)
    with no_memory_for(0), pytest.raises(InputError, match=r"image\.max_tokens: not even one sample"):
        list(classify.classify(files, params))


def test_pictures_are_turned_upright_according_to_their_exif(tmp_path, at_root):
    picture = Image.effect_noise((80, 128), 80).convert("RGB")
    picture.save(tmp_path / "plain.png")
    picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif(6))
    plain, turned = classify.classify([tmp_path / "plain.png", tmp_path / "turned.png"], load_params())
    assert plain.labels == turned.labels


def exif(orientation):
    made = Image.Exif()
    made[0x0112] = orientation
    return made


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "vlm", "classify", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
    )


def test_the_command_reports_unreadable_files_and_continues(photos):
    done = run(photos, photos / "none.jpg", "--top", "2", "--json", "--prior", "none")
    assert done.returncode == 1
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {Path(line["file"]).name for line in lines} == {"a.jpg", "b.jpg", "c.jpg"}
    assert all(len(line["labels"]) == 2 and 0 <= line["labels"][0]["probability"] <= 1 for line in lines)
    errors = done.stderr.splitlines()
    assert len(errors) == 2
    assert any("broken.jpg: " in line for line in errors)
    assert any("none.jpg: does not exist" in line for line in errors)
    shutil.rmtree(photos / "below")
    done = run(photos / "a.jpg", "--prior", "none")
    assert done.returncode == 0
    assert done.stdout.startswith(f"{photos}/a.jpg: ")
    assert done.stdout.count("%") == 3
    assert done.stderr == ""


@pytest.fixture
def printed(at_root, capsys):
    """Runs the command in this process and returns what it prints."""

    def run(*arguments):
        parser = argparse.ArgumentParser()
        classify.add_arguments(parser)
        classify.main(parser.parse_args([*map(str, arguments)]))
        return capsys.readouterr().out

    return run


def test_below_the_minimum_confidence_the_answer_is_none_of_these(photos, printed):
    best = json.loads(printed(photos / "a.jpg", "--json"))["labels"][0]
    label, probability = best["label"], best["probability"]
    for minimum, sure in ((probability - 0.001, True), (probability + 0.001, False)):
        line = json.loads(printed(photos / "a.jpg", "--json", "--min-confidence", minimum))
        assert (line["answer"], line["labels"][0]) == (label if sure else None, best)
        shown = f"{label} {probability:.1%}"
        text = printed(photos / "a.jpg", "--top", 1, "--min-confidence", minimum)
        assert text == f"{photos}/a.jpg: {shown if sure else f'none of these ({shown})'}\n"


@pytest.mark.parametrize("minimum", ["-0.1", "1.5", "nan", "95"])
def test_a_minimum_confidence_is_a_probability(minimum, printed):
    with pytest.raises(InputError, match=rf"\A--min-confidence: {minimum}: should be a probability, from 0 to 1\Z"):
        printed("x.jpg", f"--min-confidence={minimum}")


@pytest.fixture
def in_repository(tmp_path, at_root, monkeypatch):
    """A folder with params.yaml, the configuration, the embedded model and an empty predictions/."""
    folder = tmp_path / "repository"
    folder.mkdir()
    for name in ("configs", "models"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copyfile(ROOT / "params.yaml", folder / "params.yaml")
    (folder / "predictions/structured_eval").mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


def classified(capsys, *arguments):
    """Runs the command in this process; returns the labels of its first picture, and what it writes to stderr."""
    parser = argparse.ArgumentParser()
    classify.add_arguments(parser)
    classify.main(parser.parse_args([*map(str, arguments), "--json", "--top", "31"]))
    said = capsys.readouterr()
    labels = json.loads(said.out.splitlines()[0])["labels"]
    return {entry["label"]: entry["probability"] for entry in labels}, said.err


def test_the_label_prior_of_the_evaluation_is_corrected(photos, in_repository, capsys):
    params = load_params()
    plain, said = classified(capsys, photos / "a.jpg")
    assert said == ""
    weights = np.linspace(1, 3, len(params.task.labels))
    entry = prior.estimate("batch", [weights / weights.sum()] * 1000) | prior.belongs_to(
        params.task, params.model, None
    )
    file = in_repository / "predictions/structured_eval/test.json"
    file.write_text(json.dumps({"image_tokens": 16.0, "prior": entry}))
    expected = prior.apply([[plain[label] for label in params.task.labels]], prior.offsets(entry))[0]
    corrected, said = classified(capsys, photos / "a.jpg")
    assert corrected == pytest.approx(dict(zip(params.task.labels, expected, strict=True)), rel=1e-4)
    assert said == (
        "the label prior in predictions/structured_eval/test.json is corrected; --prior none shows the model's own "
        "probabilities\n"
    )
    assert classified(capsys, photos / "a.jpg", "--prior", "none") == (plain, "")
    other = file.rename(in_repository / "other.json")
    assert classified(capsys, photos / "a.jpg")[0] == plain
    assert classified(capsys, photos / "a.jpg", "--prior", other)[0] == corrected


def test_a_label_prior_of_something_else_is_not_used(photos, in_repository, capsys):
    params = load_params()
    shorter = params.task.model_copy(update={"labels": params.task.labels[:-1]})
    entry = prior.estimate("batch", [[1 / 30] * 30]) | prior.belongs_to(shorter, params.model, None)
    file = Path("predictions/structured_eval/test.json")
    file.write_text(json.dumps({"prior": entry}))
    _, said = classified(capsys, photos / "a.jpg")
    assert said == (
        "the label prior in predictions/structured_eval/test.json belongs to another question; the probabilities are not "
        "corrected\n"
    )
    with pytest.raises(
        InputError, match=r"\A--prior: predictions/structured_eval/test\.json: its label prior belongs to "
    ):
        classified(capsys, photos / "a.jpg", "--prior", file)
    file.write_text("{}")
    with pytest.raises(
        InputError, match=r"\A--prior: predictions/structured_eval/test\.json: has no label prior; name "
    ):
        classified(capsys, photos / "a.jpg", "--prior", file)
    with pytest.raises(InputError, match=r"\Anone\.json: no such file"):
        classified(capsys, photos / "a.jpg", "--prior", "none.json")


def test_every_unreadable_picture_in_a_folder_is_reported(tmp_path, monkeypatch, at_root):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    names = {
        "a.HEIC": heic,
        "b.heif": heic,
        "c.avif": b"broken",
        "d.nef": b"II*\0",
        "e.pdf": b"",
        "f.csv": b"",
        "g": b"",
    }
    for name, content in names.items():
        (tmp_path / name).write_bytes(content)
    found = {item.file.name: item.error for item in classify.classify(classify.find([tmp_path]), load_params())}
    assert found == {
        "a.HEIC": "is HEIC; `pip install pillow-heif` reads it",
        "b.heif": "is HEIC; `pip install pillow-heif` reads it",
        "c.avif": "is in no picture format that Pillow can read",
        "d.nef": "is a camera's raw file; convert it to JPEG or PNG",
    }


def test_wrong_arguments_are_reported_in_one_line(tmp_path):
    with pytest.raises(InputError, match="has no pictures in it"):
        classify.find([tmp_path])
    done = run("x.jpg", "--adapter", tmp_path, "--prior", "none")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "is no adapter" in done.stderr
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "other/model"}')
    done = run("x.jpg", "--adapter", tmp_path, "--prior", "none")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "'other/model' is not the model tiny" in done.stderr
