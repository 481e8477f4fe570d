import io
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dvc_render import VegaRenderer
from PIL import Image

from vlm.measuring import charts, metrics, sheets, tables
from vlm.sources import badges

DVC = Path(__file__).parents[3] / ".dvc"
LABELS = ["Acura", "BMW", "Ford", "smart"]
ICONS = ["acura", "bmw", "ford", "smart"]
SAMPLES = 120


def write_split(path, rows):
    """A split of (id, picture file, label)."""
    table = [{"id": id_, "image": {"bytes": data, "path": None}, "label": label} for id_, data, label in rows]
    schema = pa.schema(
        {"id": pa.string(), "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "label": pa.string()}
    )
    pq.write_table(pa.Table.from_pylist(table, schema), path, row_group_size=50)
    return path


def predictions_for(data, answer):
    """Predictions with `answer(index, label)` -> label or None."""
    table = pq.read_table(data, columns=["id", "label"]).to_pandas()
    table["predicted"] = [answer(i, label) for i, label in enumerate(table["label"])]
    table["text"] = [
        predicted if isinstance(predicted, str) else "I see\n a car, worth $1 or $2" for predicted in table["predicted"]
    ]
    return table.assign(probabilities=None)


def picture(width, height, mode="RGB"):
    buffer = io.BytesIO()
    Image.new(mode, (width, height), "teal" if mode == "RGB" else 90).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rendered = badges.render_split(ICONS, SAMPLES, seed=1, stream=0, severity=1.0, workers=1)
    rows = [(f"test-{i:03d}", data, LABELS[label]) for i, (label, data) in enumerate(rendered)]
    return write_split(tmp_path_factory.mktemp("data") / "test.parquet", rows)


@pytest.fixture(scope="module")
def predictions(data):
    """Every third answer invalid, every other third the next label."""
    return predictions_for(data, lambda i, label: [label, None, LABELS[(LABELS.index(label) + 1) % 4]][i % 3])


@pytest.fixture(scope="module")
def written(tmp_path_factory, data, predictions):
    directory = tmp_path_factory.mktemp("plots") / "baseline_eval"
    tables.write(directory, predictions, LABELS)
    sheets.mistakes(directory / "mistakes.png", predictions, LABELS, data)
    return directory


def test_write_writes_the_same_bytes_whatever_the_order_of_the_predictions(tmp_path, written, predictions, data):
    shuffled = predictions.sample(frac=1, random_state=0)
    tables.write(tmp_path / "baseline_eval", shuffled, LABELS)
    sheets.mistakes(tmp_path / "baseline_eval" / "mistakes.png", shuffled, LABELS, data)
    names = [
        "confusion.csv",
        "mistakes.png",
        "per_class.csv",
        "reliability.csv",
        "risk_coverage.csv",
        "top_confusions.csv",
    ]
    assert sorted(path.name for path in written.iterdir()) == names
    for name in names:
        assert (tmp_path / "baseline_eval" / name).read_bytes() == (written / name).read_bytes()


def test_confusion_has_a_row_a_sample(written, predictions):
    table = pd.read_csv(written / "confusion.csv")
    assert list(table.columns) == ["actual", "predicted"]
    assert len(table) == SAMPLES
    expected = pd.crosstab(predictions["label"], predictions["predicted"].fillna(tables.NO_LABEL))
    pd.testing.assert_frame_equal(pd.crosstab(table["actual"], table["predicted"]), expected, check_names=False)


def test_tables_have_the_order_of_the_labels(tmp_path, predictions):
    order = LABELS[::-1]
    tables.write(tmp_path, predictions, order)
    confusion = pd.read_csv(tmp_path / "confusion.csv")
    assert list(confusion["actual"].unique()) == order
    assert list(confusion[confusion["actual"] == "Ford"]["predicted"].unique()) == ["Ford", "smart", tables.NO_LABEL]
    assert list(pd.read_csv(tmp_path / "per_class.csv")["label"]) == order


def test_top_confusions(written, predictions):
    table = pd.read_csv(written / "top_confusions.csv")
    assert list(table.columns) == ["confusion", "count", "rate"]
    rows = list(table.itertuples(index=False))
    assert rows == sorted(rows, key=lambda row: (-row.count, row.confusion))
    assert table["count"].sum() == (predictions["label"] != predictions["predicted"]).sum()
    invalid = table.set_index("confusion").loc["BMW → (no label)"]
    of_bmw = predictions[predictions["label"] == "BMW"]
    assert invalid["count"] == of_bmw["predicted"].isna().sum()
    assert invalid["rate"] == pytest.approx(of_bmw["predicted"].isna().mean(), abs=1e-6)


def test_per_class_agrees_with_the_metrics(written, predictions):
    table = pd.read_csv(written / "per_class.csv")
    assert list(table.columns) == ["label", "f1", "precision", "recall", "support"]
    assert list(table["label"]) == LABELS
    assert table["support"].sum() == SAMPLES
    values = metrics.classification(predictions, LABELS)
    assert table["f1"].mean() == pytest.approx(values["macro_f1"], abs=1e-6)
    assert table["recall"].mean() == pytest.approx(values["balanced_accuracy"], abs=1e-6)


def test_pictures_are_small_and_say_nothing_of_when_or_with_what_they_were_made(written):
    path = written / "mistakes.png"
    assert path.stat().st_size < 500_000
    image = Image.open(path)
    assert image.info.keys() <= {"transparency"}
    assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


def test_no_mistakes(tmp_path, data):
    right = predictions_for(data, lambda i, label: label)
    tables.write(tmp_path, right, LABELS)
    sheets.mistakes(tmp_path / "mistakes.png", right, LABELS, data)
    assert (tmp_path / "top_confusions.csv").read_text() == "confusion,count,rate\n"
    assert Image.open(tmp_path / "mistakes.png").height < 100


def test_mistakes_are_spread_over_all_of_them():
    chosen = sheets._spread(list(range(1000)), 48)
    assert len(set(chosen)) == 48
    assert (chosen[0], chosen[-1]) == (0, 999)
    assert {b - a for a, b in itertools.pairwise(chosen)} <= {21, 22}
    assert sheets._spread([1, 2], 48) == [1, 2]


def test_only_wanted_pictures_are_kept(data):
    table = pq.read_table(data).to_pylist()
    found = sheets._read_pictures(data, ["test-003", "test-119"])
    assert found == {row["id"]: row["image"]["bytes"] for row in (table[3], table[119])}


def test_any_picture_and_any_text_can_be_drawn(tmp_path):
    labels = ["Mercedes-Benz SLS AMG Coupé with a name that never ends", "Škoda", "Тойота", "丰田 🚗", "$x_1$ \\frac"]
    pictures = [picture(640, 480), picture(3, 700), picture(700, 3), picture(1, 1), picture(50, 60, "L")]
    rows = [(f"p{i}", data, label) for i, (data, label) in enumerate(zip(pictures, labels, strict=True))]
    data = write_split(tmp_path / "test.parquet", rows)
    predictions = predictions_for(data, lambda i, label: None if i % 2 else labels[i - 1])
    predictions["text"] = ["", " ", "\x00\n\t", "x" * 10_000, "“«"]
    tables.write(tmp_path / "plots", predictions, labels)
    sheets.mistakes(tmp_path / "plots" / "mistakes.png", predictions, labels, data)
    sheets.samples(tmp_path / "samples.png", data, labels)
    assert Image.open(tmp_path / "samples.png").width == Image.open(tmp_path / "plots" / "mistakes.png").width


@pytest.mark.parametrize(("size", "shown"), [((640, 320), (112, 56)), ((9, 12), (84, 112)), ((2000, 1), (112, 1))])
def test_pictures_keep_their_shape(size, shown):
    assert sheets._fitted(picture(*size)).size == shown


def test_samples_are_spread_over_the_labels(tmp_path, monkeypatch, data):
    drawn = []
    monkeypatch.setattr(sheets, "_draw_sheet", lambda path, title, tiles: drawn.append((title, tiles)))
    sheets.samples(tmp_path / "s.png", data, [*LABELS, "Volvo"], count=10)
    title, tiles = drawn[0]
    assert title == "test: 10 of 120 samples, 4 of 5 labels"
    assert [tile.lines[0][0] for tile in tiles] == ["Acura"] * 3 + ["BMW"] * 3 + ["Ford"] * 2 + ["smart"] * 2
    assert len({tile.picture for tile in tiles}) == 10
    sheets.samples(tmp_path / "s.png", data, LABELS, count=2)
    assert [tile.lines[0][0] for tile in drawn[1][1]] == ["Acura", "smart"]


def test_reliability_and_risk_coverage(predictions, tmp_path):
    tables.write(tmp_path, predictions, LABELS)
    assert (tmp_path / "reliability.csv").read_text() == "samples,confidence,accuracy\n"  # DVC wants a header
    assert (tmp_path / "risk_coverage.csv").read_text() == "coverage,risk\n"
    certainty = np.linspace(1, 0.4, SAMPLES)  # the first sample is the surest
    right = predictions["label"] == predictions["predicted"]
    rows = [[p, *[(1 - p) / 3] * 3] for p in certainty]
    tables.write(tmp_path, predictions.assign(probabilities=rows), LABELS)
    bins = pd.read_csv(tmp_path / "reliability.csv")
    assert bins["samples"].tolist() == [8] * 15
    assert bins["accuracy"].mean() == pytest.approx(right.mean(), abs=1e-5)
    curve = pd.read_csv(tmp_path / "risk_coverage.csv")
    assert len(curve) == 100
    assert curve["coverage"].is_monotonic_increasing
    assert curve["risk"].iloc[-1] == pytest.approx(1 - right.mean(), abs=1e-6)
    assert curve["risk"].iloc[49] == pytest.approx(1 - right[: SAMPLES // 2].mean(), abs=1e-6)


def test_class_distribution(tmp_path):
    path = tmp_path / "plots" / "class_distribution.csv"
    tables.class_distribution(path, {"train": {"b": 2, "a, b": 1}, "test": {"b": 0, "a, b": 3}})
    assert path.read_text() == 'label,count,split\nb,2,train\n"a, b",1,train\nb,0,test\n"a, b",3,test\n'


def test_the_picture_of_accuracies(tmp_path):
    rows = [("raw", 0.0, 0.0, 0.004), ("structured", 0.612, 0.581, 0.642), ("fine-tuned,\nstructured", 1.0, 0.996, 1.0)]
    for name in ("a.png", "b.png"):
        charts.accuracy(tmp_path / name, rows)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.png").stat().st_size < 100_000
    # A bar that is as high as the axis ends where its 100 % is, and one of 0 has no height.
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    blue = (abs(pixels - (0x3B, 0x75, 0xAF)) < 3).all(axis=2)
    columns = np.flatnonzero(blue.any(axis=0))
    heights = [blue[:, columns[0]].sum(), blue[:, columns[-1]].sum()]
    assert heights[0] / heights[1] == pytest.approx(0.612, abs=0.005)


# What DVC draws them with


@pytest.mark.parametrize("template", sorted(path.stem for path in (DVC / "plots").glob("*.json")))
def test_dvc_can_fill_the_templates(template):
    points = [{"rev": rev, "filename": "train/loss.tsv", "step": "1", "loss": "2"} for rev in ("workspace", "HEAD")]
    renderer = VegaRenderer(
        points, "p", template=template, template_dir=str(DVC / "plots"), x="step", y="loss", title="T"
    )
    filled = json.dumps(renderer.get_filled_template())
    assert "<DVC_METRIC" not in filled
    assert '"text": "T"' in filled


def test_the_page_needs_no_network():
    page = (DVC / "plots_page.html").read_text(encoding="utf-8")
    assert page.count("{plot_divs}") == 1
    assert "{scripts}" not in page  # DVC would put links to a CDN there
    assert not re.search(r"<(script|link)[^>]+(src|href)=", page)
