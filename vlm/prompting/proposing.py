"""Questions that a language model proposes, through DSPy, which is optional and imported only here.

DSPy's GroundedProposer, the part of its optimiser MIPROv2 that writes instructions (K. Opsahl-Ong et al., "Optimizing
Instructions and Demonstrations for Multi-Stage Language Model Programs", EMNLP 2024), gets the present question and a
description of the task, and no pictures. What it proposes is added to the file of candidates, so that the search itself
stays repeatable and somebody can read the questions first.
"""

import logging
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING

from ruamel.yaml.scalarstring import LiteralScalarString

from vlm.config.errors import InputError
from vlm.config.prompts import Candidates, Proposer, load_candidates
from vlm.config.task import Task
from vlm.config.yaml_files import round_trip

if TYPE_CHECKING:
    import dspy


def add(file: Path, task: Task, seed: int) -> str:
    """Adds questions that the model in the file's `propose` proposes to its `user`; returns a line that says how many.

    Raises InputError if the file names no model, if DSPy is not installed, and if the model cannot be reached.
    """
    candidates = load_candidates(file, task)
    if candidates.propose is None:
        raise InputError(f"{file}: propose: is missing; name a model, such as {{model: openai/gpt-5-mini, count: 10}}")
    known = {task.prompt.user.strip(), *(question.strip() for question in candidates.user)}
    new = []
    for question in _propose(candidates.propose, task, seed, str(file)):
        if question not in known and _fits(question, task):
            known.add(question)
            new.append(question)
    if new:
        _append(file, new)
    wanted = candidates.propose
    return f"{file}: user: {len(new)} new questions, of {wanted.count} that {wanted.model} wrote"


def _propose(wanted: Proposer, task: Task, seed: int, file: str) -> list[str]:
    """The questions that the model writes, with {labels} in each of them."""
    try:
        import dspy
        from dspy.propose.grounded_proposer import GroundedProposer
        from dspy.utils.exceptions import DSPyError
    except ImportError:
        raise InputError(
            f"{file}: propose: needs DSPy, which is not installed; `uv sync --extra prompts` or "
            "`pip install 'vlm-classification[prompts]'` installs it"
        ) from None
    logging.getLogger("dspy").setLevel(logging.ERROR)  # its warnings are about its own proposer
    program = dspy.Predict(dspy.Signature("picture: dspy.Image -> pred_class: str", task.prompt.user))
    proposer = GroundedProposer(
        prompt_model=_model(wanted, dspy),
        program=program,
        trainset=[],
        use_dataset_summary=False,  # which would be made of examples; this is the task's description instead:
        program_aware=False,
        use_task_demos=False,
        use_instruct_history=False,
        set_history_randomly=False,
        rng=random.Random(seed),
    )
    proposer.use_dataset_summary, proposer.data_summary = True, _description(task)
    try:
        (proposed,) = proposer.propose_instructions_for_program([], program, None, {}, wanted.count).values()
    except DSPyError as error:
        raise InputError(f"{file}: propose: {str(error).strip().splitlines()[0]}") from None
    questions = [question.strip() for question in proposed if question.strip()]
    return [question if "{labels}" in question else f"{question}\n\n{{labels}}" for question in questions]


def _model(wanted: Proposer, dspy: "dspy") -> "dspy.LM":
    # A server of one's own often needs no key, but OpenAI's protocol has none without.
    key = os.environ.get("OPENAI_API_KEY", "unused")
    own = {"api_base": wanted.base_url, "api_key": key} if wanted.base_url else {}
    return dspy.LM(wanted.model, temperature=1.0, cache=False, **own)


def _description(task: Task) -> str:
    labels = "\n".join(f"- {task.word(label)}" for label in task.labels)
    return (
        "Pictures, each of which belongs to exactly one class. The instruction is the question that a small "
        "vision-language model is asked about a picture. It must contain the placeholder {labels}, which is replaced "
        "with the list of classes, one per line, and must not contain the classes themselves. The classes are:\n"
        f"{labels}"
    )


def _fits(question: str, task: Task) -> bool:
    try:
        Candidates(user=[question]).parts(task)
    except InputError:
        return False
    return True


def _append(file: Path, questions: list[str]) -> None:
    """Adds questions to the list `user` of a file of candidates; its comments are kept."""
    yaml = round_trip()
    values = yaml.load(file.read_text(encoding="utf-8"))
    texts = [LiteralScalarString(question) if "\n" in question else question for question in questions]
    values.setdefault("user", []).extend(texts)
    temporary = file.with_name(f".{file.name}.tmp")
    with temporary.open("w", encoding="utf-8") as out:
        yaml.dump(values, out)
    temporary.replace(file)
