import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.models.lfm2_vl.image_processing_lfm2_vl import Lfm2VlImageProcessor

from vlm.config.params import ImageParams
from vlm.data import dataset
from vlm.evaluation import batching
from vlm.models import encoding, loading


@given(st.lists(st.integers(1, 9), max_size=60), st.integers(1, 8), st.booleans())
def test_every_row_is_in_one_batch_and_the_longest_come_first(lengths, batch_size, equal):
    batches = batching.plan(lengths, batch_size, equal)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    in_order = [lengths[row] for batch in batches for row in batch]
    assert in_order == sorted(lengths, reverse=True)
    if equal:
        assert all(len({lengths[row] for row in batch}) == 1 for batch in batches)
    else:
        assert len(batches) == -(-len(lengths) // batch_size)


def test_samples_of_equal_length_stay_in_order():
    assert batching.plan([7] * 5, 2) == [[0, 1], [2, 3], [4]]


def test_prompt_lengths_equal_those_of_the_encoded_prompts(task, tiny, image_params, make_split):
    processor = loading.load_processor(tiny, image_params)
    split = make_split("test", 3)
    load = batching.Loader(split, processor, task)
    assert load.lengths() == [load([0])["input_ids"].shape[1]] * 3
    assert load.lengths([2]) == load.lengths()[2:]


@pytest.mark.parametrize("splitting", [True, False])
def test_a_blank_picture_has_the_inputs_of_any_picture_of_its_size_except_for_the_pixels(task, tiny, splitting):
    processor = loading.load_processor(tiny, ImageParams())
    processor.image_processor = Lfm2VlImageProcessor(do_image_splitting=splitting)  # the real models' sizes
    for size in [(224, 224), (640, 480), (480, 641), (1024, 768), (40, 900), (3000, 2000)]:
        inputs = encoding.encode(processor, task, [Image.effect_noise(size, 80).convert("RGB")])
        blank = encoding.blank(processor, task, size)
        assert blank.keys() == inputs.keys()
        assert blank["pixel_values"].shape == inputs["pixel_values"].shape
        assert all(blank[name].equal(inputs[name]) for name in inputs if name != "pixel_values")


def test_the_loader_returns_rows_in_the_requested_order(task, tiny, image_params, make_split):
    processor = loading.load_processor(tiny, image_params)
    load = batching.Loader(make_split("test", 5), processor, task)
    both, first = load([3, 0]), load([0])
    assert both["pixel_values"][1].equal(first["pixel_values"][0])


def test_a_loader_that_has_been_used_can_be_pickled(task, tiny, image_params, make_split):
    load = batching.Loader(make_split("test", 2), loading.load_processor(tiny, image_params), task)
    inputs = load([0, 1])
    assert pickle.loads(pickle.dumps(load))([0, 1])["pixel_values"].equal(inputs["pixel_values"])


def test_a_missing_split_is_a_one_line_error(task, tiny, image_params):
    processor = loading.load_processor(tiny, image_params)
    with pytest.raises(dataset.InputError, match="no such file"):
        batching.Loader("data/none.parquet", processor, task)
