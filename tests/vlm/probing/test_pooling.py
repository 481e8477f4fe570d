import pytest
import torch

from tests.architectures import ARCHITECTURES, loaded, write_pictures
from vlm.models import encoding
from vlm.probing.pooling import NoFeatures, pooled

SIZES = [(100, 60), (64, 120), (60, 60), (300, 90)]


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("data") / "train.parquet", SIZES)


@pytest.fixture
def prepared(split, tmp_path):
    def prepare(name, **image):
        model, _, load = loaded(name, tmp_path / name, split, **image)
        return model, load

    return prepare


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_features_of_a_picture_do_not_depend_on_its_batch(prepared, name):
    model, load = prepared(name)
    together = pooled(model, load(range(len(SIZES))))
    assert together.dtype == torch.float32
    assert together.shape == (len(SIZES), 2 * model.config.vision_config.hidden_size)
    alone = torch.cat([pooled(model, load([row])) for row in range(len(SIZES))])
    assert torch.allclose(together, alone, atol=1e-4)
    assert not torch.isclose(together[0], together[1], atol=1e-2).all()  # they are of different pictures


def test_padding_does_not_count(prepared):
    """In LFM2-VL, whose pictures have different numbers of patches."""
    model, load = prepared("lfm2_vl")
    inputs = load(range(len(SIZES)))
    counts = inputs["pixel_attention_mask"].sum(1).tolist()
    assert len(set(counts)) > 1
    with torch.inference_mode():
        state = model.get_image_features(**encoding.picture_inputs(inputs)).last_hidden_state
    real = [state[row, :count] for row, count in enumerate(counts)]
    expected = torch.stack([torch.cat([patches.mean(0), patches.amax(0)]) for patches in real])
    assert torch.allclose(pooled(model, inputs), expected, atol=1e-5)


def test_a_picture_in_tiles_has_one_vector(prepared):
    model, load = prepared("idefics3", splitting=True)
    inputs = load([0, 2])
    assert inputs["pixel_values"].shape[1] > 1  # tiles
    assert pooled(model, inputs).shape == (2, 64)


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        (None, "get_image_features"),
        (lambda **inputs: torch.ones(4, 8), "last_hidden_state"),
        (lambda **inputs: torch.nn.Module()(), "forward"),
    ],
)
def test_a_model_without_a_usable_vision_tower_is_refused(prepared, method, reason):
    model, load = prepared("llava")
    model.get_image_features = method
    with pytest.raises(NoFeatures, match=reason):
        pooled(model, load([0]))


def test_an_error_of_the_device_does_not_pass_for_a_missing_vision_tower(prepared):
    def fail(**inputs):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    model, load = prepared("llava")
    model.get_image_features = fail
    with pytest.raises(RuntimeError, match="illegal memory access"):
        pooled(model, load([0]))


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_features_that_are_not_finite_are_refused(prepared, value):
    model, load = prepared("llava")
    whole = model.get_image_features

    def overflowing(**inputs):
        output = whole(**inputs)
        output.last_hidden_state[0, -1, 0] = value
        return output

    model.get_image_features = overflowing
    with pytest.raises(NoFeatures, match="values that are not finite in float32"):
        pooled(model, load([0]))


def test_patches_that_do_not_divide_into_pictures_are_refused(prepared):
    model, load = prepared("qwen2_5_vl")
    whole = model.get_image_features

    def without_one(**inputs):
        output = whole(**inputs)
        output.last_hidden_state = output.last_hidden_state[1:]
        return output

    model.get_image_features = without_one
    with pytest.raises(NoFeatures, match=r"\d+ patches do not divide"):
        pooled(model, load([0, 1]))
