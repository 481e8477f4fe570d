"""A repository with invented pictures and predictions, as the stages would leave it."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from vlm.data import dataset

ROOT = Path(__file__).parents[3]
# What would do harm if it got into the page as HTML
LABELS = (
    "Audi",
    "BMW",
    "<img src=x onerror=hacked=1>",
    "</script><script>hacked=1</script>",
    "a \"quoted\" & 'plain' one",
)
ACCURACY = {"majority": None, "probe_linear": 0.7, "baseline_eval": None, "structured_eval": 0.6, "final_eval": 0.9}


def repository(folder: Path, labels=LABELS, samples=60, names=tuple(ACCURACY), seed=0) -> Path:
    """Writes configs, params.yaml, data/ and predictions/ into a new folder."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(ROOT / "configs", folder / "configs")
    params = (ROOT / "params.yaml").read_text()
    (folder / "params.yaml").write_text(params.replace("task: car_badges", "task: invented"))
    task = {"source": {"folder": "pictures"}, "labels": list(labels), "prompt": {"user": "Which? {labels}"}}
    (folder / "configs/tasks/invented.yaml").write_text(json.dumps(task))  # JSON is YAML
    (folder / "data").mkdir()
    rng = np.random.default_rng(seed)
    for split, rows in (("train", 8), ("validation", 4), ("test", samples)):
        pictures = [dataset.Row(f"{split}/{i}.jpg", picture(rng), labels[i % len(labels)]) for i in range(rows)]
        dataset.write(folder / f"data/{split}.parquet", pictures)
    for name in names:
        write_predictions(folder, name, labels, samples, np.random.default_rng([seed, len(name)]))
    return folder


def picture(rng, width=96, height=72) -> bytes:
    coarse = Image.fromarray(rng.integers(0, 255, (height // 12, width // 12, 3), dtype=np.uint8))
    file = io.BytesIO()
    coarse.resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def write_predictions(folder: Path, name: str, labels, samples: int, rng, accuracy=None) -> None:
    """Answers that are right with the probability of ACCURACY, and else the next label."""
    n = len(labels)
    truth = np.arange(samples) % n
    rate = accuracy if accuracy is not None else ACCURACY[name]
    right = rng.random(samples) < (rate if rate is not None else 0)
    answer = np.where(right, truth, (truth + 1) % n)
    texts = [f'{{"pred_class": {json.dumps(labels[a])}}}' for a in answer]
    probabilities = rng.dirichlet(np.ones(n), samples) * 0.4
    probabilities[np.arange(samples), answer] += 0.6
    if name == "majority":
        answer, probabilities = np.zeros(samples, int), np.tile([2, *[1] * (n - 1)], (samples, 1)) / (n + 1)
    predicted, lists = [labels[a] for a in answer], probabilities.tolist()
    if name == "baseline_eval":
        texts = [f"I see <b>{labels[t]}</b>.\nIt is sample {i}." for i, t in enumerate(truth)]
        predicted, lists = [None] * samples, [None] * samples
    columns = {
        "id": pa.array([f"test/{i}.jpg" for i in range(samples)], pa.string()),
        "label": pa.array([labels[t] for t in truth], pa.string()),
        "text": pa.array(texts, pa.string()),
        "predicted": pa.array(predicted, pa.string()),
        "probabilities": pa.array(lists, pa.list_(pa.float64())),
    }
    (folder / f"predictions/{name}").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / f"predictions/{name}/test.parquet")


def write_validation(folder: Path, name="final_eval", least=0.710345) -> None:
    """Answers to validation: 30 that are right, of which the least confident has the probability `least`, and a wrong
    one just below, so that `least` is the threshold for an accuracy of 95 %. No threshold reaches 99 %."""
    confidences, n = [*[0.9] * 29, least, least - 1e-6], len(LABELS)
    rest = [[(1 - p) / (n - 1)] * (n - 1) for p in confidences]
    columns = {
        "id": pa.array([f"validation/{i}.jpg" for i in range(len(confidences))], pa.string()),
        "label": pa.array([*[LABELS[0]] * 30, LABELS[1]], pa.string()),
        "text": pa.array([LABELS[0]] * len(confidences), pa.string()),
        "predicted": pa.array([LABELS[0]] * len(confidences), pa.string()),
        "probabilities": pa.array([[p, *others] for p, others in zip(confidences, rest, strict=True)]),
    }
    pq.write_table(pa.table(columns), folder / f"predictions/{name}/validation.parquet")


SUSPECTS = """\
rank,id,split,kind,score,label,suggestion,other,reason,decided
1,test/3.jpg,test,label_error,0.97,</script><script>hacked=1</script>,BMW,,The model gives BMW 97 %: <b>look</b>.,
2,train/2.jpg,train,near_duplicate,0.9,<img src=x onerror=hacked=1>,,test/test/7.jpg,Almost the same picture as test/7.jpg.,
3,test/7.jpg,test,near_duplicate,0.9,<img src=x onerror=hacked=1>,,train/train/2.jpg,Almost the same picture as train/2.jpg.,
4,validation/1.jpg,validation,blank,0.8,BMW,,,All pixels have one colour.,
"""


def write_results(folder: Path) -> None:
    """What audit, finetune, measure and robustness write."""
    write(folder, "plots/audit/suspects.csv", SUSPECTS)
    write(
        folder,
        "plots/finetune/checkpoints.csv",
        "step,epoch,train_loss,eval_loss,accuracy,low,high,log_loss,learning_rate,best\n"
        "50,0.5,0.4,0.35,0.78,0.71,0.84,1.2,0.005,0\n100,1.0,0.3,0.29,0.87,0.81,0.91,0.9,0.003,1\n",
    )
    losses = "".join(f"{step}\t{3 / step:.3f}\n" for step in range(1, 101))
    write(folder, "plots/finetune/plots/metrics/train/loss.tsv", f"step\tloss\n{losses}")
    write_validation(folder)
    rows = [
        f"{model},{corruption},{severity},{accuracy:.3f},{accuracy - 0.05:.3f},{accuracy + 0.05:.3f}"
        for model, start in (("base", 0.6), ("fine-tuned", 0.9))
        for corruption in ("motion_blur", "contrast")
        for severity in (0, 1, 3, 5)
        for accuracy in [start - 0.1 * severity]
    ]
    write(
        folder, "plots/robustness/accuracy.csv", "\n".join(["model,corruption,severity,accuracy,low,high", *rows, ""])
    )
    runtime = {"samples": 60, "seconds": 5.5, "samples_per_second": 10.9, "peak_memory_gb": 1.2, "device": "CPU"}
    write(folder, "metrics/runtime/structured_eval.json", json.dumps(runtime))


def write(folder: Path, path: str, text: str) -> None:
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_text(text)
