"""Renders a task's question with a model's chat template, whatever the template's conventions."""

from typing import TYPE_CHECKING

from vlm.config.errors import InputError
from vlm.config.task import Task

if TYPE_CHECKING:
    from transformers import ProcessorMixin


def prompt(processor: "ProcessorMixin", task: Task) -> str:
    """The text up to the model's turn, with a placeholder for the picture. Raises InputError, see `messages`."""
    return _render(processor, messages(processor, task))


def messages(processor: "ProcessorMixin", task: Task) -> list[dict]:
    """The task's conversation in a form that the template renders completely.

    Templates differ in how they take a system prompt: LFM2.5-VL's expects plain text; SmolVLM's expects a list of parts
    and silently drops plain text; others reject the role, and then it is put before the question. Returns the first
    form that is rendered completely. Raises InputError if there is no template, if it renders none of them, and if the
    prompt contains special tokens.
    """
    import jinja2

    _require_no_special_tokens(processor, task)
    plain = task.conversation()
    system = task.prompt.system and plain[0]["content"]
    forms = [plain]
    if system:
        as_parts = {"role": "system", "content": [{"type": "text", "text": system}]}
        in_question = {"role": "user", "content": [{"type": "text", "text": f"{system}\n\n"}, *plain[1]["content"]]}
        forms += [[as_parts, plain[1]], [in_question]]
    question = next(part["text"] for part in plain[-1]["content"] if part["type"] == "text")
    for form in forms:
        try:
            written = _render(processor, form)
        except jinja2.TemplateError:  # what a template raises for a role that it does not know
            continue
        if question.strip() in written and (system or "").strip() in written:
            return form
    raise InputError(
        f"configs/tasks/{task.name}.yaml: prompt: the model's chat template leaves out the question; is it a template "
        "for text and pictures?"
    )


def _require_no_special_tokens(processor: "ProcessorMixin", task: Task) -> None:
    special = [*processor.tokenizer.all_special_tokens, getattr(processor, "image_token", None)]
    texts = {"prompt.system": task.prompt.system or "", "prompt.user": task.prompt.user}
    texts |= {"labels": "\n".join(task.labels)}
    texts |= {key: "\n".join(of.values()) for key, of in (("words", task.words), ("descriptions", task.descriptions))}
    for key, text in texts.items():
        for token in filter(None, special):
            if token in text:
                raise InputError(
                    f"configs/tasks/{task.name}.yaml: {key}: {token!r} is a special token of this model, which only "
                    "its chat template may write; write something else"
                )


def _render(processor: "ProcessorMixin", conversation: list[dict]) -> str:
    if not (getattr(processor, "chat_template", None) or processor.tokenizer.chat_template):
        raise InputError("params.yaml: model: has no chat template; only models tuned for conversations do")
    return processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
