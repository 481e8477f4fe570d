"""describe: draws sample pictures of the training split, and writes a table of class sizes by split."""

from collections import Counter
from pathlib import Path

from vlm.config import load_params
from vlm.config.errors import reported
from vlm.data import dataset
from vlm.measuring import sheets, tables


def main() -> None:
    labels = load_params().task.labels
    counts = {}
    for split in ("train", "validation", "test"):
        found = Counter(dataset.ids_and_labels(f"data/{split}.parquet")[1])
        counts[split] = {label: found[label] for label in labels}
    tables.class_distribution(Path("plots/describe/class_distribution.csv"), counts)
    sheets.samples(Path("plots/describe/samples.png"), "data/train.parquet", labels)
    sizes = [sum(count[label] for count in counts.values()) for label in labels]
    print(f"describe: {len(labels)} labels, {min(sizes)} to {max(sizes)} pictures each; plots/describe/samples.png")


if __name__ == "__main__":
    with reported():
        main()
