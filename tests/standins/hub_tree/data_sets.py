"""Data sets with the names, columns, shards, front matter and quirks of the real ones, and invented pictures."""

import json
import random
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from hub_tree.classes import ACTIONS, MAKERS, cars
from hub_tree.pictures import Painter, encode

_Features = dict[str, str | list[str]]  # a column is "image", "string" or of these classes
_Splits = dict[str, list[dict]]


def stanford_cars(folder: Path, images: int) -> None:
    """Maker, model and year as texts, each maker in every split."""
    classes, makers = cars(), list(MAKERS)
    splits = {}
    for split, count in (("train", images), ("test", max(len(makers), images // 2))):
        painter = Painter(f"0/paulescu/{split}")
        rows = []
        for i, m in enumerate(_spread(list(MAKERS.values()), count, painter.rng)):
            own = [car for car in classes if car[0] == makers[m]]
            k = painter.rng.randrange(len(own))
            maker, model, year = own[k]
            image = encode(painter.car(m, k), f"{split}_{i:05d}", png=painter.rng.random() < 0.1)
            rows.append({"image": image, "maker": maker, "model": model, "year": year})
        splits[split] = rows
    features: _Features = {"image": "image", "maker": "string", "model": "string", "year": "string"}
    _write(folder, features, splits, {"train": 3, "test": 2})


def cats_vs_dogs(folder: Path, images: int) -> None:
    """One split, sorted by label as the real one is; a quarter of the pictures is not RGB."""
    painter, rows = Painter("0/pets"), []
    for i in range(images):
        label = painter.rng.randrange(2)
        picture = painter.pet(bool(label))
        mode = ("L", "RGBA", "P")[i % 3] if i % 12 < 3 else "RGB"
        if mode == "P":
            picture = picture.quantize(64)
        elif mode != "RGB":
            picture = picture.convert(mode)
        rows.append({"image": encode(picture, f"{i:05d}"), "labels": label})
    rows.sort(key=lambda row: row["labels"])
    _write(folder, {"image": "image", "labels": ["cat", "dog"]}, {"train": rows}, {"train": 2})


def human_actions(folder: Path, images: int) -> None:
    """Some pictures of the train split come twice, some of those with two labels; the test split's labels are all 0."""
    painter, train = Painter("0/actions"), []
    copies = max(2, images // 20)
    for i, label in enumerate(_spread([1] * len(ACTIONS), max(1, images - copies), painter.rng)):
        train.append({"image": encode(painter.person(label), f"Image_{i + 1}"), "labels": label})
    for k in range(copies):
        row = dict(painter.rng.choice(train[: images - copies]))
        row["image"] = {**row["image"], "path": f"Image_{images - copies + k + 1}.jpg"}
        if k % 5 == 4:
            row["labels"] = (row["labels"] + 1) % len(ACTIONS)
        train.insert(painter.rng.randrange(len(train) + 1), row)
    test = [
        {"image": encode(painter.person(painter.rng.randrange(len(ACTIONS))), f"Image_{i + 1}"), "labels": 0}
        for i in range(max(1, images // 2))
    ]
    _write(folder, {"image": "image", "labels": ACTIONS}, {"train": train, "test": test}, {"train": 2})


def _spread(weights: list[int], n: int, rng: random.Random) -> list[int]:
    """n indices in proportion to the weights, each at least once if n allows, shuffled."""
    total = sum(weights)
    counts = [max(1, round(n * weight / total)) for weight in weights] if n >= len(weights) else [0] * len(weights)
    while sum(counts) > n:
        counts[max(range(len(counts)), key=counts.__getitem__)] -= 1
    picks = [i for i, count in enumerate(counts) for _ in range(count)]
    picks += rng.choices(range(len(weights)), weights, k=n - len(picks))
    rng.shuffle(picks)
    return picks


def _write(folder: Path, features: _Features, splits: _Splits, shards: dict[str, int]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "data").mkdir(parents=True)
    schema = _schema(features)
    for split, rows in splits.items():
        count = shards.get(split, 1)
        for k in range(count):
            part = rows[len(rows) * k // count : len(rows) * (k + 1) // count]
            path = folder / "data" / f"{split}-{k:05d}-of-{count:05d}.parquet"
            pq.write_table(pa.Table.from_pylist(part, schema=schema), path, row_group_size=100)
    card = {
        "task_categories": ["image-classification"],
        "dataset_info": {
            "features": [{"name": name, "dtype": _card_type(kind)} for name, kind in features.items()],
            "splits": [{"name": split, "num_examples": len(rows)} for split, rows in splits.items()],
        },
        "configs": [
            {"config_name": "default", "data_files": [{"split": name, "path": f"data/{name}-*"} for name in splits]}
        ],
    }
    text = yaml.safe_dump(card, sort_keys=False, allow_unicode=True)
    (folder / "README.md").write_text(f"---\n{text}---\n\nSynthetic pictures in the shape of `{folder.name}`.\n")


def _schema(features: _Features) -> pa.Schema:
    """Arrow's types, with those of `datasets` in the metadata."""
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    types: dict[str, pa.DataType] = {}
    meta: dict[str, dict] = {}
    for name, kind in features.items():
        if kind == "image":
            types[name], meta[name] = image, {"_type": "Image"}
        elif kind == "string":
            types[name], meta[name] = pa.string(), {"dtype": "string", "_type": "Value"}
        else:
            types[name], meta[name] = pa.int64(), {"names": kind, "_type": "ClassLabel"}
    return pa.schema(types, metadata={"huggingface": json.dumps({"info": {"features": meta}})})


def _card_type(kind: str | list[str]) -> str | dict:
    if isinstance(kind, str):
        return kind
    return {"class_label": {"names": {str(i): name for i, name in enumerate(kind)}}}
