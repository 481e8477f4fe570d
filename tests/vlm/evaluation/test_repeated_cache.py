from vlm.evaluation.repeated_cache import budget

GB = 10**9


def test_on_a_gpu_the_budget_is_a_fraction_of_the_memory_that_the_weights_leave():
    assert budget(24 * GB, 4 * GB) == 5 * GB
    assert budget(80 * GB, 4 * GB) == 19 * GB


def test_it_is_never_smaller_than_on_a_cpu():
    on_a_cpu = budget(None, 4 * GB)
    assert on_a_cpu == budget(None, 0) == 64 * 2**20
    assert budget(4 * GB, 4 * GB) == budget(4 * GB, 5 * GB) == on_a_cpu
