import hashlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import confusion_matrix, f1_score

from tests.vlm.measuring.splits import LABELS, write_split
from tests.vlm.measuring.test_metrics import table
from vlm.config.errors import InputError
from vlm.config.task import load_task
from vlm.measuring import Predictions
from vlm.measuring.answers import NO_LABEL

ROOT = Path(__file__).parents[3]


def sure(frame, confidence, labels=LABELS):
    """The frame with probabilities: `confidence` for the answer, the rest shared by the other labels."""
    p = np.repeat(((1 - np.array(confidence)) / (len(labels) - 1))[:, None], len(labels), axis=1)
    p[np.arange(len(frame)), [labels.index(label) for label in frame["predicted"]]] = confidence
    return frame.assign(probabilities=list(p))


def test_the_frame_says_which_answers_are_right_and_how_confident_they_are():
    frame = table(("a", "a"), ("a", "b"), ("b", None))
    raw = Predictions("baseline_eval", frame, "ab")
    assert raw.frame["right"].tolist() == [True, False, False]
    assert raw.frame["confidence"].isna().all()
    assert not raw.has_probabilities
    found = Predictions("final_eval", sure(frame[:2], [0.75, 0.5], "ab"), "ab")
    assert found.frame["confidence"].tolist() == [0.75, 0.5]
    assert found.has_probabilities
    assert repr(found) == "<final_eval: 1 of 2 right>"


def test_answers_to_another_split_than_test():
    found = Predictions("final_eval", table(("a", "a")), "a", split="validation")
    assert (found.data, found.file) == ("data/validation.parquet", Path("predictions/final_eval/validation.parquet"))
    assert repr(found) == "<final_eval on validation: 1 of 1 right>"


def test_mistakes_begin_with_the_most_confident():
    frame = sure(table(("a", "b"), ("a", "a"), ("b", "a"), ("b", "a")), [0.6, 0.99, 0.9, 0.6], "ab")
    assert Predictions("x", frame, "ab").mistakes()["id"].tolist() == ["s2", "s0", "s3"]
    raw = Predictions("x", table(("a", None), ("a", "a"), ("b", "a")), "ab")
    assert raw.mistakes()["id"].tolist() == ["s0", "s2"]


def test_the_confusion_matrix_has_the_order_of_the_labels_and_agrees_with_scikit_learn(predictions):
    order = ["Ford", "smart", "Volvo", "Acura", "BMW"]
    found = Predictions("x", predictions, order).confusion()
    occurring = [label for label in order if label != "Volvo"]
    assert found.index.tolist() == occurring
    assert found.columns.tolist() == [*occurring, NO_LABEL]
    labels = [*occurring, NO_LABEL]
    expected = confusion_matrix(predictions["label"], predictions["predicted"].fillna(NO_LABEL), labels=labels)
    assert (found.to_numpy() == expected[:-1]).all()


def test_per_class_counts_an_answer_that_is_no_label_as_a_miss(predictions):
    found = Predictions("x", predictions, LABELS).per_class()
    assert found.index.tolist() == LABELS
    assert found["support"].sum() == len(predictions)
    answers = predictions["predicted"].fillna("")
    assert found["f1"].mean() == pytest.approx(f1_score(predictions["label"], answers, labels=LABELS, average="macro"))


def test_what_another_model_changes():
    before = Predictions("before", table(("a", "a"), ("a", "b"), ("b", None), ("c", "a"), ("c", "b")), "abc")
    after = Predictions("after", table(("a", "b"), ("a", "a"), ("b", None), ("c", "b"), ("c", "b")), "abc")
    assert before.changes(after)[["id", "before", "after", "change"]].to_numpy().tolist() == [
        ["s0", "a", "b", "broken"],
        ["s1", "b", "a", "fixed"],
        ["s3", "a", "b", "still wrong"],
    ]
    compared = before.compare(after)
    assert (compared["samples"], compared["gained"], compared["lost"], compared["gain"]) == (5, 1, 1, 0)


def test_only_samples_that_both_answer_are_compared():
    """Another revision may have left out samples, corrected a label, or put the samples in another order."""
    frame = table(("a", "a"), ("a", "b"), ("b", "b"), ("b", "a"))
    other = table(("a", "a"), ("a", "a"), ("a", "b"), ("b", "b")).iloc[[3, 1, 2]]
    compared = Predictions("x", frame, "ab").compare(Predictions("y", other, "ab"))
    assert (compared["samples"], compared["gain"]) == (2, 1.0)
    changed = Predictions("x", frame, "ab").changes(Predictions("y", other, "ab"))
    assert changed["id"].tolist() == ["s1", "s3"]


def test_other_samples_cannot_be_compared():
    frame = table(("a", "a"), ("a", "a"), ("b", "b"))
    for other in (frame.assign(id=["x", "y", "z"]), frame.assign(label=["b", "b", "b"])):
        with pytest.raises(InputError, match=r"\Aone and two: are answers to different samples; [^\n]*\Z"):
            Predictions("one", frame, "ab").compare(Predictions("two", other, "ab"))


def test_answers_for_another_task_are_reported():
    with pytest.raises(
        InputError, match=r"predictions/probe_linear/test\.parquet: has the label 'c', .*`dvc repro probe`"
    ):
        Predictions("probe_linear", table(("a", "c")), "ab")
    three = sure(table(("a", "b")), [0.5], "abc")
    with pytest.raises(InputError, match=r"predictions/final_eval/validation\.parquet: .*`dvc repro final_eval`"):
        Predictions("final_eval", three, "ab", split="validation")


def test_a_picture_of_mistakes_or_of_chosen_samples(predictions, beside_data):
    found = Predictions("final_eval", predictions, LABELS)
    one, all_of_them = found.show(n=8), found.show(only_mistakes=False, n=16)
    assert one.width == all_of_them.width
    assert one.height < all_of_them.height
    chosen = found.frame[found.frame["label"] == "Ford"][["id"]]
    assert found.show(rows=chosen).height > one.height


def test_the_answers_in_the_working_tree(repository, monkeypatch):
    monkeypatch.chdir(repository)
    found = Predictions.load("final_eval")
    assert found.labels == load_task("car_badges").labels
    assert len(found.frame) == 2
    with pytest.raises(
        InputError, match=r"predictions/final_eval_raw/test\.parquet: no such file; `dvc repro final_eval`"
    ):
        Predictions.load("final_eval_raw")


def test_the_answers_at_another_revision(repository, monkeypatch):
    monkeypatch.chdir(repository)
    now, before = Predictions.load("final_eval"), Predictions.load("final_eval", revision="HEAD~1")
    assert before.frame["predicted"].tolist() == ["Audi", "BMW"]
    assert before.labels == ("Audi", "BMW", "Fiat")
    assert repr(before) == "<final_eval at HEAD~1: 2 of 2 right>"
    assert before.compare(now)["lost"] == 1
    assert before.show(only_mistakes=False).height > 100
    with pytest.raises(InputError, match=r"data/test\.parquet: no such file; `dvc repro prepare`"):
        now.show()
    for name, revision, message in (
        ("final_eval", "no-such", r"no-such: git has no such commit, branch, tag or experiment"),
        ("final_eval_raw", "HEAD", r"predictions/final_eval_raw/test\.parquet: there is no such file in HEAD"),
        (
            "structured_eval",
            "HEAD",
            r"predictions/structured_eval/test\.parquet: is not in DVC's cache as of HEAD; `dvc pull`",
        ),
        (
            "baseline_eval",
            "HEAD",
            r"predictions/baseline_eval/test\.parquet: is not in DVC's cache as of HEAD; `dvc pull`",
        ),
    ):
        with pytest.raises(InputError, match=message):
            Predictions.load(name, revision=revision)


def test_answers_of_a_revision_that_do_not_fit(repository, monkeypatch):
    monkeypatch.chdir(repository)
    task = repository / "configs/tasks/car_badges.yaml"
    text, params = task.read_text(), (repository / "params.yaml").read_text()

    def commit():
        identity = ("-c", "user.name=t", "-c", "user.email=t@localhost")
        subprocess.run(["git", *identity, "commit", "-qam", "x"], check=True)

    task.write_text("labels: [Audi]\n")
    commit()
    with pytest.raises(InputError, match=r"final_eval/test\.parquet: .*'BMW', .* as of HEAD; name a revision") as error:
        Predictions.load("final_eval", revision="HEAD")
    assert "dvc repro" not in str(error.value)
    task.write_text("prompt: {}\n")
    commit()
    with pytest.raises(InputError, match=r"configs/tasks/car_badges\.yaml: has no labels in HEAD"):
        Predictions.load("final_eval", revision="HEAD")
    task.write_text(text)
    (repository / "params.yaml").write_text(params.replace("task: car_badges", ""))
    commit()
    with pytest.raises(InputError, match=r"\Aparams\.yaml: has no task in HEAD\Z"):
        Predictions.load("final_eval", revision="HEAD")


@pytest.fixture
def repository(tmp_path):
    """Two commits with predictions of final_eval in DVC's cache, and those of structured_eval, which are missing there.

    The pictures are in the cache, too, but not in the working tree.
    """
    folder = tmp_path / "repository"
    shutil.copytree(ROOT / "configs", folder / "configs")
    shutil.copytree(ROOT / "models/tiny", folder / "models/tiny")
    shutil.copyfile(ROOT / "params.yaml", folder / "params.yaml")
    for name in (".dvc", "data", "predictions"):
        (folder / name).mkdir()
    (folder / ".dvc/config").touch()
    (folder / ".gitignore").write_text("*.parquet\n/.dvc/cache\n")

    def commit():
        identity = ("-c", "user.name=t", "-c", "user.email=t@localhost")
        for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "x"]):
            subprocess.run(["git", *command], cwd=folder, check=True)

    def track(name, frame):
        """Writes a folder of predictions as a stage does; returns its file in the cache, and the list of its files."""
        file = folder / f"predictions/{name}/test.parquet"
        file.parent.mkdir(exist_ok=True)
        frame.assign(probabilities=None).to_parquet(file)
        cached, md5 = cache(file.read_bytes())
        listed, md5 = cache(json.dumps([{"md5": md5, "relpath": file.name}]).encode(), ".dir")
        write_out(file.parent, md5)
        return cached, listed

    def cache(content, suffix=""):
        md5 = hashlib.md5(content).hexdigest() + suffix
        cached = folder / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
        cached.parent.mkdir(parents=True, exist_ok=True)
        cached.write_bytes(content)
        return cached, md5

    def write_out(path, md5):
        """As `dvc add` does."""
        path.with_name(f"{path.name}.dvc").write_text(f"outs:\n- {{md5: {md5}, hash: md5, path: {path.name}}}\n")

    split = folder / "data/test.parquet"
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    write_split(split, [(f"s{i}", picture.getvalue(), "Audi") for i in range(2)])
    write_out(split, cache(split.read_bytes())[1])
    split.unlink()
    task = folder / "configs/tasks/car_badges.yaml"
    text = task.read_text()
    task.write_text("labels: [Audi, BMW, Fiat]\n")
    track("final_eval", table(("Audi", "Audi"), ("BMW", "BMW")))
    for name, missing in (("structured_eval", 0), ("baseline_eval", 1)):
        track(name, table(("Audi", "BMW")).assign(text=name))[missing].unlink()
    commit()
    task.write_text(text)
    track("final_eval", table(("Audi", "Audi"), ("BMW", "Audi")))
    commit()
    return folder


def test_looking_at_answers_imports_no_torch():
    code = "import sys; from vlm.measuring import Predictions; sys.exit(bool({'torch', 'transformers', 'dvc'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
