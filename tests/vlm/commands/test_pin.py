import json
import sys
from pathlib import Path

import platformdirs
import pytest
from ruamel.yaml import YAML

import vlm.__main__
from vlm.commands import pin
from vlm.config import hub, pins
from vlm.config.errors import InputError
from vlm.config.models import ModelConfig
from vlm.config.task import Task

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL = """\
# A model.
id: models/small   # a folder

revision: null     # written by vlm pin
options: {dtype: float32}
"""
TASK = """\
# A task whose layout no YAML writer would keep.
source: {folder: pets,   sha256: null}
labels:
  [cat,
   dog]
prompt:
  user: |-
    Which?   # not a comment
"""


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pins._warn_unpinned.cache_clear()
    pins._warn_moving.cache_clear()
    for folder in ("configs/models", "configs/tasks", "models/small", "pets/cat"):
        Path(folder).mkdir(parents=True)
    Path("configs/models/small.yaml").write_text(MODEL)
    Path("configs/tasks/pets.yaml").write_text(TASK)
    Path("models/small/config.json").write_text("{}")
    Path("pets/cat/1.jpg").write_text("a cat")
    return tmp_path


def remember(*revisions: tuple[str, str, str | None]) -> None:
    """Stores revisions as if the Hub had resolved them at noon."""
    commits = {
        hub._name(repo, revision, kind): {"commit": COMMIT, "since": "2026-11-23 12:00 UTC"}
        for kind, repo, revision in revisions
    }
    path = platformdirs.user_cache_path("vlm-pipeline") / "revisions.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(commits))


def model(**values) -> ModelConfig:
    return ModelConfig(**{"name": "small", "id": "models/small", **values})


def task(source: dict) -> Task:
    return Task(name="pets", source=source, labels=("cat", "dog"), prompt={"user": "Which?"})


# The hash


def test_the_hash_changes_with_names_and_contents():
    hashes = {pins.folder_hash(Path("models/small"))}
    Path("models/small/config.json").write_text("{ }")
    hashes.add(pins.folder_hash(Path("models/small")))
    Path("models/small/config.json").rename("models/small/other.json")
    hashes.add(pins.folder_hash(Path("models/small")))
    Path("models/small/empty").write_text("")
    hashes.add(pins.folder_hash(Path("models/small")))
    assert len(hashes) == 4


def test_the_hash_is_independent_of_the_machine():
    """Computes the expected hash independently: sorted names and contents, without hidden files."""
    import hashlib

    Path("models/small/sub").mkdir()
    Path("models/small/sub/a.txt").write_text("a")
    Path("models/small/.cache").mkdir()
    Path("models/small/.cache/x").write_text("x")
    Path("models/small/.hidden").write_text("x")
    expected = hashlib.sha256()
    for name, content in (("config.json", b"{}"), ("sub/a.txt", b"a")):
        expected.update(name.encode() + b"\0" + hashlib.sha256(content).digest())
    assert pins.folder_hash(Path("models/small")) == f"sha256:{expected.hexdigest()}"


# Writing


def test_pinning_a_folder_changes_one_value_and_nothing_else():
    line = pin.pin_model("small")
    found = pins.folder_hash(Path("models/small"))
    assert line == f"configs/models/small.yaml: revision: {found}"
    assert Path("configs/models/small.yaml").read_text() == MODEL.replace("null", found)

    assert pin.pin_task("pets") == f"configs/tasks/pets.yaml: source.sha256: {pins.folder_hash(Path('pets'))}"
    assert Path("configs/tasks/pets.yaml").read_text() == TASK.replace("null", pins.folder_hash(Path("pets")))
    assert not list(Path("configs").rglob(".*")), "temporary files are removed"


def test_pinning_again_changes_nothing_unless_the_folder_has_changed():
    pin.pin_model("small")
    before = Path("configs/models/small.yaml").read_bytes()
    assert "still sha256:" in pin.pin_model("small")
    assert Path("configs/models/small.yaml").read_bytes() == before
    Path("models/small/config.json").write_text("other")
    pin.pin_model("small")
    assert Path("configs/models/small.yaml").read_bytes() != before


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("id: x\nrevision:\ndtype: float32\n", ["revision"]),
        ("id: x\nrevision:   # to come\n", ["revision"]),
        ("# head\nid: x  # tail\n", ["revision"]),
        ("source: {hub: a/b}\nlabels: [x]\n", ["source", "revision"]),
        ("source:\n  # which\n  hub: a/b\n  train: all\nlabels: [x]\n", ["source", "revision"]),
        ("source:\n  hub: a/b\n  revision: 'main' # old\n", ["source", "revision"]),
        ("id: x\r\nrevision: null\r\n", ["revision"]),
    ],
)
def test_the_value_is_written_at_its_path(text, path):
    expected, values = YAML(typ="safe").load(text), YAML(typ="safe").load(pin._set(text, path, COMMIT))
    (expected if len(path) == 1 else expected["source"])["revision"] = COMMIT
    assert values == expected
    assert pin._set(text, path, COMMIT).count("#") == text.count("#")
    assert pin._set(text, path, COMMIT).count("\r") == text.count("\r")


@pytest.mark.parametrize("commit", ["1" * 40, "12" + "3" * 35 + "e45"])
def test_a_commit_that_looks_like_a_number_is_quoted(commit):
    assert YAML(typ="safe").load(pin._set("revision: null\n", ["revision"], pin._quoted(commit))) == {
        "revision": commit
    }


def test_a_hub_revision_is_replaced_by_its_commit(monkeypatch):
    calls = []
    monkeypatch.setattr(pin.hub, "resolve", lambda *arguments: calls.append(arguments) or COMMIT)
    Path("configs/models/small.yaml").write_text(MODEL.replace("models/small ", "org/small ").replace("null", "v1"))
    assert pin.pin_model("small") == f"configs/models/small.yaml: revision: {COMMIT}"
    Path("configs/tasks/pets.yaml").write_text(TASK.replace("folder: pets,   sha256: null", "hub: org/pets"))
    assert pin.pin_task("pets") == f"configs/tasks/pets.yaml: source.revision: {COMMIT}"
    assert calls == [
        ("org/small", "v1", "model", "configs/models/small.yaml: id"),
        ("org/pets", None, "dataset", "configs/tasks/pets.yaml: source.hub"),
    ]


def test_badges_need_no_pin():
    badges = "badges: {severity: 0.5, icons: {cat: audi, dog: bmw}}"
    Path("configs/tasks/pets.yaml").write_text(TASK.replace("folder: pets,   sha256: null", badges))
    before = Path("configs/tasks/pets.yaml").read_bytes()
    assert pin.pin_task("pets") == "configs/tasks/pets.yaml: badges are rendered from the seed; there is nothing to pin"
    assert Path("configs/tasks/pets.yaml").read_bytes() == before


def test_the_command_pins_only_what_it_is_given(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["vlm", "pin", "--model", "small"])
    with pytest.raises(SystemExit) as ended:
        vlm.__main__.main()
    assert not ended.value.code
    assert capsys.readouterr().out.startswith("configs/models/small.yaml: revision: sha256:")
    assert Path("configs/tasks/pets.yaml").read_text() == TASK


def test_a_missing_folder_is_reported_in_one_line():
    Path("configs/tasks/pets.yaml").write_text(TASK.replace("pets,", "dogs,"))
    with pytest.raises(InputError, match=r"configs/tasks/pets\.yaml: source\.folder: 'dogs' is not a folder here"):
        pin.pin_task("pets")


# Checking


def test_an_unchanged_pinned_folder_causes_no_warning(capsys):
    pins.verify_model(model(revision=pins.folder_hash(Path("models/small"))))
    pins.verify_source(task({"folder": "pets", "sha256": pins.folder_hash(Path("pets"))}))
    assert capsys.readouterr().err == ""


def test_a_changed_pinned_folder_is_reported_in_one_line():
    before = pins.folder_hash(Path("models/small"))
    Path("models/small/config.json").write_text("other")
    found = pins.folder_hash(Path("models/small"))
    with pytest.raises(InputError) as caught:
        pins.verify_model(model(revision=before))
    assert str(caught.value) == (
        f"configs/models/small.yaml: revision: models/small has changed: expected {before}, found {found}; "
        "run `python -m vlm pin --model small` if the change is intended"
    )


@pytest.mark.parametrize(("revision", "called"), [(None, "the newest commit"), ("main", "main")])
def test_an_unpinned_revision_warns_once_and_names_the_commit_in_use(revision, called, capsys):
    remember(("model", "org/small", revision), ("dataset", "org/pets", revision))
    for _ in range(2):
        assert pins.resolved_model(model(id="org/small", revision=revision)).revision == COMMIT
        assert pins.verify_source(task({"hub": "org/pets", "revision": revision})) == COMMIT
    assert capsys.readouterr().err.splitlines() == [
        f"warning: configs/{file}: not pinned; all stages on this machine use {COMMIT}, which was {called} on "
        f"2026-11-23 12:00 UTC; `python -m vlm pin --{kind}` pins today's commit"
        for file, kind in (
            ("models/small.yaml: revision", "model small"),
            ("tasks/pets.yaml: source.revision", "task pets"),
        )
    ]


def test_unpinned_folders_warn_too(capsys):
    pins.verify_model(model())
    pins.verify_source(task({"folder": "pets"}))
    assert [line.split(":")[2] for line in capsys.readouterr().err.splitlines()] == [" revision", " source.sha256"]


def test_a_pinned_commit_causes_no_warning(capsys):
    assert pins.resolved_model(model(id="org/small", revision=COMMIT)).revision == COMMIT
    assert pins.verify_source(task({"hub": "org/pets", "revision": COMMIT})) == COMMIT
    assert capsys.readouterr().err == ""


def test_a_missing_pinned_folder_is_not_searched_for_on_the_hub():
    with pytest.raises(InputError, match="id: 'models/gone' is not a folder here"):
        pins.resolved_model(model(id="models/gone", revision="sha256:" + "0" * 64))
