"""A folder from which jobs run on this machine and on the stand-in for Modal (tests/standins)."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from vlm.config.task import load_task
from vlm.data import dataset
from vlm.sources import badges

ROOT = Path(__file__).parents[3]
STANDINS = ROOT / "tests" / "standins"

JOB = """
import json, shutil, sys
from pathlib import Path
from vlm import compute
from vlm.config import pins
from vlm.config.errors import reported
from vlm.evaluation.job import Evaluation
from vlm.probing.job import FeatureExtraction
from vlm.robustness.job import Robustness
from vlm.training.job import FineTuning
from vlm.config.params import ModalParams, RobustnessParams, load_params


def main():
    kind, where, out, values = sys.argv[1:]
    params = pins.resolved(load_params())
    modal = ModalParams(**(params.modal.model_dump() | json.loads(values)))
    if kind == "finetune":
        job = FineTuning(params.task, params.model, params.image, params.finetune, 5, "data/train.parquet", "data/validation.parquet")
    elif kind == "features":
        job = FeatureExtraction(params.task, params.model, params.image)
    elif kind == "robustness":
        few = RobustnessParams(enabled=True, samples=4, severities=[3], corruptions=["contrast"])
        adapter = "local-finetune/adapter"
        job = Robustness(params.task, params.model, params.image, 2, "data/test.parquet", adapter, few)
    else:
        job = Evaluation.of(params, raw=kind == "raw", structured=kind == "structured")
    with compute.run(job, where, modal, live=f"{out}-live" if kind == "finetune" else None) as result:
        for name in job.RESULTS:
            copy = shutil.copytree if (result / name).is_dir() else shutil.copyfile
            Path(out).mkdir(exist_ok=True)
            if (result / name).exists():
                copy(result / name, Path(out, name))
    print("imported:", *sorted({"torch", "transformers"} & set(sys.modules)))


if __name__ == "__main__":
    with reported():
        main()
"""
MICRO = {
    "epochs: null": "epochs: 1",
    "batch_size: 16 ": "batch_size: 4 ",
    "eval_steps: 50": "eval_steps: 2",
    "eval_samples: 160": "eval_samples: 8",
    "batch_size: 32": "batch_size: 4",
    "max_new_tokens: 32": "max_new_tokens: 4",
    "outlines_samples: 64": "outlines_samples: 6",
    "prior_samples: 256": "prior_samples: 6",
    "calibrate: none": "calibrate: temperature",
}
# Starts `job.py`, sends it a signal when `sign` appears, then starts it again.
TWICE = """
import os, signal, subprocess, sys, time
number, sign, *arguments = sys.argv[1:]  # sign: a file (*.tsv), or text on stderr
command = [sys.executable, "job.py", *arguments]
first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
while sign.endswith(".tsv") and not os.path.exists(sign) and first.poll() is None:
    time.sleep(0.02)
for line in first.stderr if not sign.endswith(".tsv") else ():
    print(line, end="", file=sys.stderr)
    if sign in line:
        break
os.killpg(first.pid, int(number))
print(first.stderr.read(), "first:", first.wait(), file=sys.stderr)
sys.exit(subprocess.run(command).returncode)
"""


class Place:
    """A folder to run jobs in, with its own user cache and its own volumes of the stand-in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = tempfile.mkdtemp(
            prefix="vlm", dir="/tmp"
        )  # short, because a socket's path has at most 100 characters
        self.log: dict = {}
        for name in ("configs", "models/tiny", "requirements.lock"):
            source = ROOT / name
            (shutil.copytree if source.is_dir() else shutil.copyfile)(source, self._made(name))
        text = (ROOT / "params.yaml").read_text()
        for old, new in MICRO.items():
            assert old in text
            text = text.replace(old, new, 1)
        (folder / "params.yaml").write_text(text)
        (folder / "job.py").write_text(JOB)
        (folder / "twice.py").write_text(TWICE)
        icons = load_task("car_badges").source.badges.icons
        for number, (name, rows) in enumerate({"train": 24, "validation": 6, "test": 22}.items()):
            rendered = enumerate(badges.render_split(list(icons.values()), rows, 1, number, 0.3, workers=1))
            rows = [dataset.Row(f"{name}-{i}", jpeg, list(icons)[k]) for i, (k, jpeg) in rendered]
            dataset.write(self._made(f"data/{name}.parquet"), rows)

    def _made(self, name: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def run(self, kind, where, out, *options, code=0, before=(), outside=(), environment=(), **modal):
        """Runs a job and returns its stderr; on Modal, against the stand-in with `options`, whose log goes to `log`."""
        arguments = [kind, where, out, json.dumps(modal)]
        command = [sys.executable, *(before or ["job.py"]), *arguments]
        if where == "modal":
            log = self.folder / "log.json"
            command = [
                *outside,
                sys.executable,
                STANDINS / "fake_modal.py",
                "--log",
                log,
                "--state",
                self.state,
                *options,
                "--",
                *command,
            ]
        environment = os.environ | dict(environment) | {
            "PYTHONPATH": str(ROOT),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "HF_HOME": str(self.folder / "hf"),
            "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False, timeout=600
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        self.output = done.stdout
        if where == "modal":
            self.log = json.loads(log.read_text())
        return done.stderr

    def results(self, out: str) -> dict[str, bytes]:
        """The contents of all result files except runtime.json."""
        folders = [self.folder / out, self.folder / f"{out}-live"]
        files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
        names = {file: str(file.relative_to(self.folder)).removeprefix(out) for file in files}
        return {name: file.read_bytes() for file, name in names.items() if name != "/runtime.json"}

    def attempts(self, function: str) -> list[list[str]]:
        """The status of every attempt, for each call of a function."""
        return [
            [attempt["status"] for entry in call["inputs"] for attempt in entry["attempts"]]
            for call in self.log["calls"]
            if call["function"] == function
        ]
