from vlm.config.prompts import Candidates, Wording
from vlm.prompting.candidates import wordings

TWELVE = Candidates(user=["Which? {labels}", "What? {labels}"], order=["reversed"], answer=["label"])


def test_all_combinations_the_tasks_own_first(task):
    found = wordings(TWELVE, task, 12, 1)
    assert len(found) == len({wording.model_dump_json() for wording in found}) == 12
    assert found[0] == Wording.of(task)
    assert {wording.user for wording in found} == {task.prompt.user, "Which? {labels}", "What? {labels}"}


def test_a_sample_of_more_depends_on_the_seed_and_has_the_tasks_own_too(task):
    every = wordings(TWELVE, task, 12, 1)
    samples = [wordings(TWELVE, task, 5, seed) for seed in (1, 1, 2)]
    assert samples[0] == samples[1] != samples[2]
    for found in samples:
        assert len(found) == len({wording.model_dump_json() for wording in found}) == 5
        assert found[0] == Wording.of(task)
        assert set(map(str, found)) <= set(map(str, every))


def test_without_candidates_there_is_the_tasks_own(task):
    assert wordings(Candidates(), task, 50, 1) == (Wording.of(task),)


def test_a_product_too_large_to_list_is_sampled(task):
    many = Candidates(user=[f"{i}?" for i in range(1000)], system=[f"{i}!" for i in range(1000)])
    assert len(wordings(many, task, 50, 1)) == 50


def test_of_those_that_say_the_same_there_is_one(task):
    """A question without the list of labels has no order and no descriptions."""
    same = Candidates(user=["Whose badge?"], order=["reversed"], descriptions=[{"Audi": "four rings"}])
    for most in (8, 5):
        found = wordings(same, task, most, 1)
        assert [wording.user for wording in found].count("Whose badge?") == 1
        assert len(found) == 5
    (bare,) = [wording for wording in found if wording.user == "Whose badge?"]
    assert (bare.order, bare.descriptions) == ("listed", {})
