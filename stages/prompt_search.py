"""prompt_search: a wording of the task's prompt, chosen on validation, if prompt_search.enabled in params.yaml."""

from vlm.config import load_params, pins
from vlm.config.errors import reported
from vlm.prompting.search import search, write_nothing


def main() -> None:
    params = load_params()
    if not params.prompt_search.enabled:
        write_nothing()  # the stage needs its outputs
        print("prompt_search: switched off; `dvc exp run -S prompt_search.enabled=true` switches it on")
        return
    print(f"prompt_search: {search(pins.resolved(params))}")


if __name__ == "__main__":
    with reported():
        main()
