import pytest

from vlm.training.job import FineTuning


@pytest.fixture
def job(task, tiny, image_params, finetune_params, make_split):
    return FineTuning(
        task=task,
        model=tiny,
        image=image_params,
        finetune=finetune_params,
        seed=5,
        train=make_split("train", 24),
        validation=make_split("test", 8),
    )
