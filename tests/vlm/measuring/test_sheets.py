import io
import itertools

import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.vlm.measuring.splits import LABELS, predictions_for, write_split
from vlm.config.errors import InputError
from vlm.measuring import sheets
from vlm.measuring.answers import Predictions


def picture(width, height, mode="RGB"):
    buffer = io.BytesIO()
    Image.new(mode, (width, height), "teal" if mode == "RGB" else 90).save(buffer, "PNG")
    return buffer.getvalue()


def test_the_sheet_of_mistakes_is_a_small_file_that_depends_only_on_the_predictions(tmp_path, predictions, beside_data):
    for name, rows in (("a.png", predictions), ("b.png", predictions.sample(frac=1, random_state=0))):
        sheets.mistakes(tmp_path / name, Predictions("final_eval", rows, LABELS))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.png").stat().st_size < 500_000
    image = Image.open(tmp_path / "a.png")
    assert image.info.keys() <= {"transparency"}  # neither a date nor the name of a program
    assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


@pytest.fixture
def drawn(monkeypatch):
    """The (title, tiles) of every sheet that the test draws."""
    sheets_drawn = []

    def draw(title, tiles):
        sheets_drawn.append((title, tiles))
        return Image.new("RGB", (1, 1))

    monkeypatch.setattr(sheets, "_draw_sheet", draw)
    return sheets_drawn


def test_mistakes_show_the_truth_and_the_answer_in_the_order_of_the_labels(tmp_path, drawn, predictions, beside_data):
    order = ["Ford", "smart", "Acura", "BMW"]
    sheets.mistakes(tmp_path / "mistakes.png", Predictions("final_eval", predictions, order))
    title, tiles = drawn[0]
    assert title == "final_eval: 80 of 120 samples wrong, 48 shown"
    truths = [tile.lines[0][0].removeprefix("true: ") for tile in tiles]
    assert list(dict.fromkeys(truths)) == order
    assert truths == sorted(truths, key=order.index)
    assert {tile.lines[1][0] for tile in tiles if tile.lines[0][0] == "true: Ford"} == {
        "said: smart",
        "“I see\n a car, worth $1 or $2”",
    }


def test_probabilities_are_shown_if_there_are_any(tmp_path, drawn, predictions, beside_data):
    sure = predictions.assign(probabilities=[[0.125, 0.625, 0.25, 0.0]] * len(predictions))
    sheets.mistakes(tmp_path / "mistakes.png", Predictions("final_eval", sure, LABELS))
    assert {tile.lines[2:] for tile in drawn[0][1]} == {(("p = 0.62", sheets.GREY),)}


def test_no_mistakes_leave_only_a_title(tmp_path, data, beside_data):
    right = predictions_for(data, lambda i, label: label)
    sheets.mistakes(tmp_path / "mistakes.png", Predictions("final_eval", right, LABELS))
    assert Image.open(tmp_path / "mistakes.png").height < 100


def test_predictions_of_other_samples_than_those_of_the_split_are_reported(tmp_path, predictions, beside_data):
    others = predictions.assign(id="other-" + predictions["id"])
    with pytest.raises(InputError, match=r"data/test\.parquet: has no sample 'other-test-\d+', .*`dvc repro`"):
        sheets.mistakes(tmp_path / "mistakes.png", Predictions("final_eval", others, LABELS))
    assert not (tmp_path / "mistakes.png").exists()


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


def test_any_picture_and_any_text_can_be_drawn(tmp_path, monkeypatch):
    labels = ["Mercedes-Benz SLS AMG Coupé with a name that never ends", "Škoda", "Тойота", "丰田 🚗", "$x_1$ \\frac"]
    pictures = [picture(640, 480), picture(3, 700), picture(700, 3), picture(1, 1), picture(50, 60, "L")]
    rows = [(f"p{i}", data, label) for i, (data, label) in enumerate(zip(pictures, labels, strict=True))]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    data = write_split(tmp_path / "data" / "test.parquet", rows)
    predictions = predictions_for(data, lambda i, label: None if i % 2 else labels[i - 1])
    predictions["text"] = ["", " ", "\x00\n\t", "x" * 10_000, "“«"]
    sheets.mistakes(tmp_path / "mistakes.png", Predictions("baseline_eval", predictions, labels))
    sheets.samples(tmp_path / "samples.png", data, labels)
    assert Image.open(tmp_path / "samples.png").width == Image.open(tmp_path / "mistakes.png").width


@pytest.mark.parametrize(("size", "shown"), [((640, 320), (112, 56)), ((9, 12), (84, 112)), ((2000, 1), (112, 1))])
def test_pictures_keep_their_shape(size, shown):
    assert sheets._fitted(picture(*size)).size == shown


def test_samples_are_spread_over_the_labels(tmp_path, drawn, data):
    sheets.samples(tmp_path / "s.png", data, [*LABELS, "Volvo"], count=10)
    title, tiles = drawn[0]
    assert title == "test: 10 of 120 samples, 4 of 5 labels"
    assert [tile.lines[0][0] for tile in tiles] == ["Acura"] * 3 + ["BMW"] * 3 + ["Ford"] * 2 + ["smart"] * 2
    assert len({tile.picture for tile in tiles}) == 10
    sheets.samples(tmp_path / "s.png", data, LABELS, count=2)
    assert [tile.lines[0][0] for tile in drawn[1][1]] == ["Acura", "smart"]
