"""measure_prompt_search: what the prompt search's winner is worth, on validation and on test; plots/prompt_search/."""

from pathlib import Path

from vlm.config.errors import reported
from vlm.measuring import prompt_search
from vlm.prompting.table import FOLDER


def main() -> None:
    found = prompt_search.measure(Path(FOLDER))
    said = prompt_search.lines(found) if found else ["nothing to measure; the prompt search is switched off"]
    for line in said:
        print(f"measure_prompt_search: {line}")


if __name__ == "__main__":
    with reported():
        main()
