import pytest
import torch

from vlm.evaluation import batching
from vlm.evaluation.posterior import Posterior
from vlm.models import loading


@pytest.fixture
def posterior_of(tiny, image_params, task, make_split):
    """posterior_of("bfloat16") returns the probabilities of 224 badges' labels, (224, labels), in that dtype."""
    data = make_split("test", 224)

    def of(dtype):
        vlm, processor = loading.load(tiny.model_copy(update={"dtype": dtype}), image_params)
        asked, load = Posterior(vlm, processor, task), batching.Loader(data, processor, task)
        batches = batching.plan([0] * 224, 32)
        return torch.cat([asked(load(batch).to(vlm.device, vlm.dtype)) for batch in batches])

    return of


def test_labels_do_not_tie_in_bfloat16(posterior_of):
    probabilities = posterior_of("bfloat16")
    assert all(len(row.unique()) == len(row) for row in probabilities)
    agreement = (probabilities.argmax(1) == posterior_of("float32").argmax(1)).double().mean()
    assert agreement > 0.995
