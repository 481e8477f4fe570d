import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm.data import dataset
from vlm.evaluation import batching
from vlm.models import loading


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
    lengths = batching.prompt_lengths(split, processor, task)
    inputs = batching.Loader(split, processor, task)([0, 1, 2])
    assert lengths == [inputs["input_ids"].shape[1]] * 3


def test_the_loader_returns_rows_in_the_requested_order(task, tiny, image_params, make_split):
    processor = loading.load_processor(tiny, image_params)
    load = batching.Loader(make_split("test", 5), processor, task)
    both, first = load([3, 0]), load([0])
    assert both["pixel_values"][1].equal(first["pixel_values"][0])


def test_ahead_keeps_the_order_and_works_at_most_two_items_ahead():
    begun, two_ahead = [], threading.Event()

    def work(item):
        begun.append(item)
        if item == 2:
            two_ahead.set()
        return item * item

    results = batching.ahead(work, range(6))
    assert next(results) == (0, 0)
    assert two_ahead.wait(10)
    assert len(begun) <= 4
    assert list(results) == [(i, i * i) for i in range(1, 6)]


def test_ahead_passes_exceptions_on():
    def work(item):
        raise ValueError(f"row {item}")

    with pytest.raises(ValueError, match="row 0"):
        list(batching.ahead(work, range(3)))


def test_a_missing_split_is_a_one_line_error(task, tiny, image_params):
    processor = loading.load_processor(tiny, image_params)
    with pytest.raises(dataset.InputError, match="no such file"):
        batching.Loader("data/none.parquet", processor, task)
