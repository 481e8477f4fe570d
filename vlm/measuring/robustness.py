"""Measures how much accuracy both models lose on corrupted pictures, and draws what the corruptions look like."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.data import dataset, json_files
from vlm.evaluation.intervals import wilson
from vlm.measuring.pictures import DARK, DPI, GREY, put_text, rasterised, save
from vlm.robustness.answers import CLEAN

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from PIL import Image

_RESAMPLES = 10_000
_SHOWN = 2  # samples in samples.png

# Sizes in pixels
_BOX = 128  # pictures are scaled to fit into a square of this side
_CELL = _BOX + 8  # distance from one picture to the next
_GAP = 16  # between the pictures of one sample and those of the next
_NAMES = 132  # width of the column with the corruptions' names
_HEAD = 56  # height of the title and the column headings


def measure(answers: "pd.DataFrame", data: str) -> dict[str, Any]:
    """Measures `answers` (see vlm/robustness/answers.py) to samples of the split `data` and returns all results.

    Writes plots/robustness/: details.json with the results, accuracy.csv (see `accuracy`) and samples.png, a contact
    sheet; and metrics/robustness.json with `robust`, the mean accuracy under corruption of the fine-tuned model. If
    there are no answers, because robustness is switched off, the results and the metrics are empty, accuracy.csv has
    only its header, and there is no sheet.
    """
    plots = Path("plots", "robustness")
    plots.mkdir(parents=True, exist_ok=True)
    accuracy(answers).to_csv(plots / "accuracy.csv", index=False, lineterminator="\n")
    if answers.empty:
        found, metrics = {}, {}
        (plots / "samples.png").unlink(missing_ok=True)
    else:
        found = drops(answers)
        metrics = {"robust": found["fine-tuned"]["corrupted"]}
        save(sheet(answers, data), plots / "samples.png")
    json_files.write(plots / "details.json", found)
    json_files.write("metrics/robustness.json", metrics)
    return found


def accuracy(answers: "pd.DataFrame") -> "pd.DataFrame":
    """One row per model, corruption and severity: accuracy with its 95 % Wilson interval (low, high), as fractions.

    Severity 0 are the original pictures. They are listed with every corruption, so that every curve begins there.
    """
    import pandas as pd

    rows = []
    for model, own in answers.assign(right=answers["label"] == answers["predicted"]).groupby("model", sort=False):
        of = own.groupby(["corruption", "severity"], sort=False)["right"].agg(["sum", "size"])
        for corruption in dict.fromkeys(name for name, _ in of.index if name != CLEAN[0]):
            levels = {
                CLEAN[1]: of.loc[CLEAN],
                **{level: of.loc[(corruption, level)] for level in of.loc[corruption].index},
            }
            for severity in sorted(levels):
                right, samples = map(int, levels[severity])
                rows.append((model, corruption, severity, right / samples, *wilson(right, samples)))
    columns = ["model", "corruption", "severity", "accuracy", "low", "high"]
    return pd.DataFrame(rows, columns=columns).round(6)


def drops(answers: "pd.DataFrame") -> dict[str, Any]:
    """How much accuracy corruption costs, as fractions with 95 % intervals (_low, _high).

    For each model: `clean`, the accuracy on the original pictures; `corrupted`, the mean of its accuracies over all
    corruptions and severities; `drop`, the difference; and the drop by corruption, averaged over the severities.
    `extra_drop` is how much more the fine-tuned model loses than the base model; negative if fine-tuning has made the
    model more robust. `samples` is the number of samples.

    The intervals are from a paired percentile bootstrap over the samples (B. Efron and R. Tibshirani, An Introduction
    to the Bootstrap, 1993, chapter 13): a sample is drawn with the answers of both models to all of its pictures.
    """
    found: dict[str, Any] = {}
    lost = {}
    for model, own in answers.assign(right=answers["label"] == answers["predicted"]).groupby("model", sort=False):
        # (samples, conditions), in the order of the file
        table = own.pivot(index="id", columns=["corruption", "severity"], values="right").astype(float)
        clean, corrupted = table[CLEAN], table.drop(columns=[CLEAN])
        lost[model] = clean - corrupted.mean(axis=1)
        found[model] = {
            "clean": float(clean.mean()),
            "corrupted": float(corrupted.to_numpy().mean()),
            **_with_interval("drop", lost[model].to_numpy()),
            "by_corruption": {
                corruption: _with_interval("drop", (clean - corrupted[corruption].mean(axis=1)).to_numpy())
                for corruption in dict.fromkeys(corrupted.columns.get_level_values(0))
            },
        }
    extra = (lost["fine-tuned"] - lost["base"]).to_numpy()  # pandas aligns them by id
    return {"samples": len(extra), **found, **_with_interval("extra_drop", extra)}


def _with_interval(name: str, values: "np.ndarray") -> dict[str, float]:
    """The mean of `values`, one for each sample, and its bootstrap interval."""
    import numpy as np
    from scipy.stats import bootstrap

    mean = float(values.mean())
    low = high = mean
    if np.ptp(values) > 0:  # else every resample has the same mean
        drawn = bootstrap(
            (values,),
            np.mean,
            n_resamples=_RESAMPLES,
            batch=max(1, 2_000_000 // len(values)),  # so that memory does not grow with the samples
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
        low, high = float(drawn.low), float(drawn.high)
    return {name: mean, f"{name}_low": low, f"{name}_high": high}


def sheet(answers: "pd.DataFrame", data: str) -> "Image.Image":
    """Draws samples with every corruption of `answers` at every severity: exactly the pictures that the models saw.

    One row per corruption; for each sample the original and the severities from left to right.
    """
    import numpy as np
    from matplotlib.figure import Figure
    from PIL import Image

    from vlm.evaluation.batching import decoded
    from vlm.robustness.corruptions import corrupted

    changed = answers[answers["corruption"] != CLEAN[0]]
    corruptions, severities = changed["corruption"].unique().tolist(), changed["severity"].unique().tolist()
    ids, _ = dataset.ids_and_labels(data)
    chosen = [ids.index(id_) for id_ in answers["id"].unique()[:_SHOWN]]
    samples = [(row.id, decoded(row.image)) for row in dataset.Reader(data).rows(chosen)]
    wide = _CELL * (1 + len(severities)) + _GAP
    width, height = _NAMES + wide * len(samples), _HEAD + _CELL * len(corruptions)
    page = Image.new("RGB", (width, height), "white")
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    title = f"{Path(data).stem}: {len(samples)} samples as the models see them under corruption"
    put_text(figure, title, 8, 18, width - 16, ha="left", fontsize=10, color=DARK)
    for j, corruption in enumerate(corruptions):
        centre = _HEAD + _CELL * j + _BOX // 2
        put_text(figure, corruption.replace("_", " "), 8, centre, _NAMES - 12, ha="left", fontsize=9, color=DARK)
        for i, (id_, original) in enumerate(samples):
            for k, severity in enumerate([0, *severities]):
                x = _NAMES + wide * i + _CELL * k
                picture = _fitted(corrupted(original, corruption, severity, id_) if severity else original)
                page.paste(picture, (x + (_BOX - picture.width) // 2, centre - picture.height // 2))
                if j == 0:
                    heading = f"severity {severity}" if severity else "original"
                    put_text(figure, heading, x + _BOX // 2, _HEAD - 12, _BOX, ha="center", fontsize=8, color=GREY)
    figure.figimage(np.asarray(page))
    return rasterised(figure).quantize(256, Image.Quantize.MEDIANCUT)  # a third of the size


def _fitted(image: "Image.Image") -> "Image.Image":
    """Scales a picture until it just fits into the box. When enlarged, its pixels stay sharp."""
    from PIL import Image

    scale = _BOX / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)
