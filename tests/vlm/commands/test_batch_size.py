from vlm.commands import batch_size
from vlm.config.params import load_params


def equally_long(forward):
    """Every batch takes a second, so larger ones are faster."""
    forward()
    return 1.0


def test_the_largest_batch_that_fits_is_proposed_if_it_is_the_fastest(at_root, make_split, no_memory_for, capsys):
    split = make_split("test", 9)
    with no_memory_for(5):
        assert batch_size.propose(load_params(), split, timed=equally_long) == 4
    shown = capsys.readouterr().out
    assert "8: does not fit" in shown
    assert "4.0 samples/s" in shown


def test_the_batch_is_no_larger_than_the_split(at_root, make_split):
    assert batch_size.propose(load_params(), make_split("test", 3), timed=equally_long) == 2


def test_a_larger_batch_that_is_not_faster_is_not_proposed(at_root, make_split):
    seconds = iter([1.0, 2.0, 4.0, 8.0])
    assert batch_size.propose(load_params(), make_split("test", 9), timed=lambda forward: next(seconds)) == 1


def test_a_forward_pass_is_timed(at_root, make_split):
    assert batch_size.propose(load_params(), make_split("test", 2)) in (1, 2)
