"""Writes the page and its pictures: FOLDER/index.html, FOLDER/thumbnails/ and FOLDER/pictures/."""

import base64
import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.config.errors import InputError
from vlm.config.events import Emit
from vlm.data import dataset
from vlm.measuring.answers import Predictions
from vlm.report import against, answers, curves, pictures, run, suspects, verdict

if TYPE_CHECKING:
    from vlm.config.params import Params

_ASSETS = Path(__file__).parent / "assets"
_STYLES = ("page.css", "parts.css")
# In the order in which they run
_SCRIPTS = (
    "base.js", "selection.js", "gallery.js", "sample.js", "matrix.js", "classes.js", "charts.js", "overview.js",
    "suspects.js", "main.js",
)  # fmt: skip
_MARK = '<meta name="generator" content="vlm report">'


@dataclass(frozen=True)
class Written:
    samples: int
    measurements: int
    megabytes: float  # of all files

    def __str__(self) -> str:
        measurements = "1 measurement" if self.measurements == 1 else f"{self.measurements} measurements"
        return f"{self.samples:,} samples, {measurements}, {self.megabytes:.1f} MB"


def write(folder: Path, params: "Params", emit: Emit, revision: str | None = None) -> Written:
    """Writes the report on the predictions that exist; with a `revision`, beside those of that revision.

    The folder is replaced when all is written. Raises InputError if it holds something other than a report, or if there
    is nothing to report or compare.
    """
    if folder.exists() and not _is_report(folder):
        raise InputError(f"{folder}: exists and is not a report; name a new folder")
    stale = run.stale(run.lock(), params.model.name, params.task.name)
    found, left_out = answers.load(stale)
    page = _data(found, params, stale, revision)
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    test = [("test", row) for row in range(len(page["ids"]))]
    suspicious = None if "audit" in stale else suspects.load()
    names = pictures.write(temporary, [*test, *(suspicious.pictures() if suspicious else ())], emit)
    page["pictures"] = [names[key] for key in test]
    if suspicious:
        page["suspects"] = _suspects(suspicious, names) | {"key": _key(params.task.name, page, suspicious)}
    html = _html(page, found, params, run.facts(params, stale), [answers.TITLES[name] for name in left_out])
    (temporary / "index.html").write_text(html, encoding="utf-8")
    megabytes = sum(file.stat().st_size for file in temporary.rglob("*") if file.is_file()) / 1e6
    _replace(folder, temporary)
    return Written(len(page["ids"]), len(found), megabytes)


def _data(found: dict[str, Predictions], params: "Params", stale: set[str], revision: str | None) -> dict[str, Any]:
    """What the page's scripts read. Lists have an entry per test sample; labels are places in `labels`."""
    ids, labels = dataset.ids_and_labels(answers.TEST)
    place = {label: number for number, label in enumerate(params.task.labels)}
    tuned = "structured_eval" in found and "final_eval" in found
    titles = answers.titles(found)
    return {
        "labels": list(params.task.labels),
        "ids": ids,
        "truth": [place[label] for label in labels],
        "models": [answers.columns(found[name], params.task, titles[name]) for name in titles if name in found],
        "lead": answers.leading(found),
        "tuning": {"before": "structured_eval", "after": "final_eval"} if tuned else None,
        "against": against.compare_with(revision, found, stale) if revision else None,
        "training": curves.training() if tuned else None,
        "thresholds": curves.thresholds(found),
        "robustness": [] if "robustness" in stale else curves.robustness(),
        "suspects": None,
    }


def _suspects(found: suspects.Suspects, names: dict[tuple[str, int], str]) -> dict[str, Any]:
    rows = [
        row
        | {"picture": names[row["split"], row["row"]]}
        | {"other_picture": names[row["other_split"], row["other_row"]] if row["other_split"] else None}
        for row in found.rows
    ]
    counts = {"total": found.total, "decided": found.decided, "first": suspects.FIRST}
    return {"rows": rows, "file": suspects.FILE.as_posix(), **counts}


def _key(task: str, page: dict[str, Any], found: suspects.Suspects) -> str:
    """What the browser keeps ticked decisions under: equal for reports with the same samples and findings only."""
    identity = json.dumps([task, page["labels"], page["ids"], page["truth"], found.rows])
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def _html(
    page: dict[str, Any], found: dict[str, Predictions], params: "Params", facts: dict[str, Any], left_out: list[str]
) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["signed"] = verdict.signed
    script = "\n" + "\n".join((_ASSETS / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    # "<" could end the script element that the data is in.
    data = json.dumps(page, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    lead = next(model for model in page["models"] if model["name"] == page["lead"])
    return environment.get_template("page.html").render(
        task=params.task.name,
        model=params.model.name,
        lead=lead,
        samples=len(page["ids"]),
        sentences=verdict.sentences(found),
        left_out=left_out,
        facts=facts,
        against=page["against"],
        suspects=page["suspects"],
        style=Markup("\n".join((_ASSETS / name).read_text(encoding="utf-8") for name in _STYLES)),
        script=Markup(script),
        # Browsers run this script only: a script in a label or a text would not run even if it got into the page.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=Markup(data),
    )


def _is_report(folder: Path) -> bool:
    index = folder / "index.html"
    return folder.is_dir() and (
        not any(folder.iterdir()) or (index.exists() and _MARK in index.read_text(encoding="utf-8")[:1000])
    )


def _replace(folder: Path, temporary: Path) -> None:
    """Puts `temporary` in the place of `folder`."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
