"""The conversations that tiny is pretrained on: questions about a picture of a brand, and the answers."""

import json

import numpy as np

QUESTIONS = (
    """
    What is this?|Which brand is this?|What do you see?|Describe the picture.|Name the brand in the picture.
    |Which company does this logo belong to?|What logo is shown here?|Tell me about this image.|Whose badge is this?
    |Can you read this emblem?|Do you know this sign?|What is in this picture?|Which of these is it: {options}?
    |Is it one of the following? {options}|Choose from this list:\n{lines}|What car, shop or product has this badge?
""".strip()
    .replace("\n    |", "|")
    .split("|")
)
ANSWERS = (
    """
    This is the {brand} badge.|This is the {brand} logo.|It looks like {brand}.|I see the {brand} emblem.
    |The picture shows the logo of {brand}.|That is {brand}.|A badge of {brand}.|{brand}, as far as I can tell.
    |The brand is {brand}.|I think this is {brand}.
""".strip()
    .replace("\n    |", "|")
    .split("|")
)
RECORDS = [
    "Answer in JSON with the key {key}.",
    "Give the brand as a JSON object, under {key}.",
    "Return a JSON object that describes the image. Its only key is {key}.",
]
TASK_KEY = "pred_class"  # the key in Task.answer; tiny must not see it
KEY_WORDS = """
    answer badge brand car class company image kind label logo maker model name object pred prediction sign title type
""".split()  # a JSON key is one or two of them
SYSTEMS = [
    "You are a helpful multimodal assistant.",
    "You know many brands.",
    "Answer briefly.",
    "You describe pictures.",
]


def sample(brand: str, titles: list[str], rng: np.random.Generator) -> tuple[list[dict], str]:
    """A conversation (without its answer) about a picture of `brand`, and the answer."""
    if rng.random() < 0.3:
        key = TASK_KEY
        while key == TASK_KEY:
            key = "_".join(rng.choice(KEY_WORDS, int(rng.integers(1, 3)), replace=False))
        question = RECORDS[rng.integers(len(RECORDS))].replace("{key}", key)
        answer = json.dumps({key: brand}, ensure_ascii=False)
    else:
        question = QUESTIONS[rng.integers(len(QUESTIONS))]
        answer = ANSWERS[rng.integers(len(ANSWERS))].replace("{brand}", brand)
    if "{" in question:
        options = [brand, *rng.choice(titles, int(rng.integers(2, 30)), replace=False)]
        rng.shuffle(options)
        question = question.format(options=", ".join(options), lines="\n".join(options))
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    if rng.random() < 0.5:
        messages.insert(0, {"role": "system", "content": SYSTEMS[rng.integers(len(SYSTEMS))]})
    return messages, answer


def texts(talk: list[tuple[list[dict], str]]) -> list[str]:
    """The full text of the conversations, to train the tokenizer on."""
    lines = []
    for messages, answer in talk:
        for message in messages:
            content = message["content"]
            lines.append(f"{message['role']}\n{content if isinstance(content, str) else content[1]['text']}")
        lines.append(f"assistant\n{answer}\n")
    return lines
