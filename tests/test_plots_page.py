"""What `dvc plots` draws: the plots of plots/dvc.yaml, the templates in .dvc/plots and the page around them."""

import json
import re
from pathlib import Path

import pytest
from dvc_render import VegaRenderer
from dvc_render.base import Renderer

from tests.vlm.measuring.test_metrics import table
from vlm.config.yaml_files import read_yaml
from vlm.measuring import tables
from vlm.measuring.answers import Predictions

ROOT = Path(__file__).parents[1]
TEMPLATES = ROOT / ".dvc" / "plots"
PAGE = (ROOT / ".dvc" / "plots_page.html").read_text(encoding="utf-8")
# The plots of plots/dvc.yaml by name: {} for a picture, whose name is its path
PLOTS = {
    name: properties
    for plot in read_yaml(ROOT / "plots" / "dvc.yaml")["plots"]
    for name, properties in (plot.items() if isinstance(plot, dict) else [(f"plots/{plot}", {})])
}


def filled(template, points, **properties):
    """The Vega-Lite spec that DVC makes of a template and rows."""
    return VegaRenderer(points, "p", template=template, template_dir=str(TEMPLATES), **properties).get_filled_template()


def fields(spec):
    """The columns that a spec encodes, anywhere in it."""
    if isinstance(spec, list):
        return set().union(*map(fields, spec))
    if not isinstance(spec, dict):
        return set()
    own = {spec["field"]} if isinstance(spec.get("field"), str) else set()
    return own.union(*(fields(value) for key, value in spec.items() if key != "values"))


# Templates


@pytest.mark.parametrize("template", sorted(path.stem for path in TEMPLATES.glob("*.json")))
def test_dvc_can_fill_the_templates(template):
    points = [{"rev": rev, "filename": "train/loss.tsv", "step": "1", "loss": "2"} for rev in ("workspace", "HEAD")]
    spec = filled(template, points, x="step", y="loss", title="T")
    assert "<DVC_METRIC" not in json.dumps(spec)
    assert spec["title"]["text"] == "T"


def test_the_plots_use_all_templates_and_no_others():
    used = {properties["template"] for properties in PLOTS.values() if properties}
    assert used == {path.stem for path in TEMPLATES.glob("*.json")}


def rows_of(path):
    """The rows of a CSV file as DVC gives them to a template: texts, and a revision."""
    header, *lines = path.read_text().splitlines()
    return [dict(zip(header.split(","), line.split(","), strict=True), rev="workspace") for line in lines]


def test_the_confusion_matrix_has_the_order_of_the_task(tmp_path):
    labels = ["b", "c", "a"]
    frame = table(("a", "b"), ("c", "c"), ("b", None), ("b", "a"), ("c", "a"))
    tables.write(tmp_path, Predictions("x", frame, labels))
    spec = filled("confusion_matrix", rows_of(tmp_path / "confusion.csv"), x="predicted", y="actual", title="T")
    orders = {}
    for axis in ("x", "y"):
        encoding = spec["spec"]["encoding"][axis]
        assert encoding["sort"]["op"] == "min"
        # Vega-Lite sorts texts as texts: "10" before "9"
        assert {"calculate": f"toNumber(datum.{encoding['sort']['field']})", "as": encoding["sort"]["field"]} in spec[
            "transform"
        ]
        places = {row[encoding["field"]]: int(row[encoding["sort"]["field"]]) for row in spec["data"]["values"]}
        orders[axis] = sorted(places, key=places.get)
    assert orders == {"x": [*labels, tables.NO_LABEL], "y": labels}
    # Were a layer to name an axis itself, Vega-Lite would drop the order and sort by name.
    assert not any({"x", "y"} & set(layer["encoding"]) for layer in spec["spec"]["layer"])


def test_bars_have_the_order_of_the_file(tmp_path):
    labels = ["b", "c", "a"]
    tables.write(tmp_path, Predictions("x", table(("a", "b"), ("c", "c"), ("b", "b")), labels))
    spec = filled("bars", rows_of(tmp_path / "per_class.csv"), x="f1", y="label", title="T")
    assert [row["label"] for row in spec["data"]["values"]] == labels
    assert spec["spec"]["encoding"]["y"]["sort"] is None  # absent, it would sort by name


def test_checkpoints_have_their_intervals_and_an_axis_that_need_not_start_at_zero():
    row = {"rev": "w", "step": "50", "accuracy": "0.8", "low": "0.7", "high": "0.9"}
    spec = filled("checkpoints", [row], x="step", y="accuracy", title="T")
    assert {"accuracy", "low", "high", "step", "rev"} <= fields(spec)
    assert any(layer["mark"]["type"] == "point" for layer in spec["layer"])
    scales = [layer["encoding"]["y"]["scale"] for layer in spec["layer"]]
    assert [scale["zero"] for scale in scales] == [False] * len(scales)


# The page


GROUPS = json.loads(re.search(r"const GROUPS = (\[.*?\n  \]);", PAGE, re.DOTALL)[1])


def test_the_page_knows_every_plot_and_the_title_of_every_picture():
    listed = {name: title for group in GROUPS for name, *title in group}
    assert set(listed) == set(PLOTS)
    assert {name for name, title in listed.items() if any(title)} == {name for name in PLOTS if name.endswith(".png")}


def test_the_page_finds_a_plot_under_the_id_that_dvc_gives_it():
    pattern = re.search(r"const idOf = name => name\.replace\(/(\[.*\])/g, \"_\"\)", PAGE)[1].replace(
        "*()[\\]", "*()\\[\\]"
    )
    for name in (*PLOTS, r"a!@#$%^&*()[]{};,<>?\/:.|`~=_+ b-'\"c"):
        assert re.sub(pattern, "_", name) == Renderer.remove_special_chars(name)


def test_the_page_needs_no_network():
    assert PAGE.count("{plot_divs}") == 1
    assert "{scripts}" not in PAGE  # DVC would put links to a CDN there
    assert not re.search(r"<(script|link)[^>]+(src|href)=", PAGE)
