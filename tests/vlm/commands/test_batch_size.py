from vlm.commands import batch_size
from vlm.config.params import load_params


def test_the_largest_batch_that_fits_is_proposed(at_root, make_split, no_memory_for, capsys):
    split = make_split("test", 9)
    with no_memory_for(5):
        assert batch_size.propose(load_params(), split) == 4
    shown = capsys.readouterr().out
    assert "8: does not fit" in shown


def test_the_batch_is_no_larger_than_the_split(at_root, make_split):
    assert batch_size.propose(load_params(), make_split("test", 3)) == 2
