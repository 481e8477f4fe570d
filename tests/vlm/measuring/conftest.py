import pytest

from tests.vlm.measuring.splits import LABELS, SAMPLES, predictions_for, write_split
from vlm.sources import badges


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A split of 120 badges of four labels, at data/test.parquet in some folder."""
    icons = [label.lower() for label in LABELS]
    rendered = badges.render_split(icons, SAMPLES, seed=1, stream=0, severity=1.0, workers=1)
    rows = [(f"test-{i:03d}", data, LABELS[label]) for i, (label, data) in enumerate(rendered)]
    folder = tmp_path_factory.mktemp("split") / "data"
    folder.mkdir()
    return write_split(folder / "test.parquet", rows)


@pytest.fixture(scope="session")
def predictions(data):
    """A third of the answers is right, a third is no label, and a third is the next label."""
    return predictions_for(data, lambda i, label: [label, None, LABELS[(LABELS.index(label) + 1) % 4]][i % 3])


@pytest.fixture
def beside_data(data, monkeypatch):
    """Runs the test in the folder of data/test.parquet."""
    monkeypatch.chdir(data.parents[1])
