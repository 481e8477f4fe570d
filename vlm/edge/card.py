"""README.md beside an exported classifier: what the files are, and how to use them on each platform."""

from vlm.edge import swift
from vlm.edge.classifier import MODEL, PROJECTOR, Classifier


def text(classifier: Classifier, checked: int) -> str:
    """The README's text. The classifier has to know its files (`Classifier.with_files`).

    `checked` is the number of pictures for which llama.cpp's answers were compared with PyTorch's.
    """
    limits, tokens = classifier.image, classifier.tokens
    longest = max(map(len, tokens.answers))
    # Greedy decoding may write an answer in more tokens than the tokenizer
    context = swift.context_size(classifier) + 256 * -(-longest // 256)
    server = (
        f"llama-server --model {MODEL} --mmproj {PROJECTOR} --image-min-tokens {limits.min_tokens} "
        f"--image-max-tokens {limits.max_tokens} --ctx-size {context} --parallel 1 --host 127.0.0.1 --port 8080"
    )
    return swift.rendered(
        "README.md.jinja",
        classifier=classifier,
        checked=checked,
        build=swift.BUILD,
        model=classifier.files[MODEL],
        projector=classifier.files[PROJECTOR],
        megabytes=lambda size: f"{size / 1e6:,.3g}" if size < 1e8 else f"{size / 1e6:,.0f}",
        prompt_tokens=tokens.before + tokens.after + tokens.around_image,
        server=server,
        n_predict=2 * longest,
    )
