"""check: all settings are valid, also those that no other stage depends on because they change no result."""

from vlm import compute
from vlm.config import gpus, load_params
from vlm.config.errors import reported
from vlm.config.prompts import candidates_file, load_candidates


def main() -> None:
    params = load_params()
    if params.prompt_search.enabled:
        load_candidates(candidates_file(params.prompt_search.candidates, params.task), params.task)
    if compute.place(params.model, params.compute) == "local":
        where = "on this machine"
    else:
        container = gpus.container_for(params.model, params.modal, several=True)
        where = f"on Modal, {container.gpu}, {container.dollars_per_second * 3600:.2f} dollars an hour and container"
    print(f"check: the settings are valid; {params.model.name} runs {where}")


if __name__ == "__main__":
    with reported():
        main()
