"""prompt_search: a wording of the task's prompt, chosen on validation, if prompt_search.enabled in params.yaml."""

from pathlib import Path

from vlm.config import load_params, pins
from vlm.config.errors import reported
from vlm.data import json_files
from vlm.measuring.prompt_search import OUT, RUNTIME, search
from vlm.prompting import table


def main() -> None:
    params = load_params()
    if not params.prompt_search.enabled:
        table.write_candidates(Path(OUT, "candidates.csv"), [], {}, None)  # the stage needs its outputs
        json_files.write(f"{OUT}/details.json", {})
        json_files.write(RUNTIME, {"samples": 0, "seconds": 0.0, "samples_per_second": 0.0})
        print("prompt_search: switched off; `dvc exp run -S prompt_search.enabled=true` switches it on")
        return
    for line in search(pins.resolved(params)):
        print(f"prompt_search: {line}")


if __name__ == "__main__":
    with reported():
        main()
