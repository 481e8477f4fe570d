"""A tokenizer.json as the keys of a GGUF file from which llama.cpp makes the same tokens."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.config.errors import InputError

if TYPE_CHECKING:
    from gguf import GGUFWriter

# How LFM2 and Llama 3 split text before they merge bytes: a contraction, a word, up to three digits, punctuation,
# line breaks, other white space. llama.cpp knows the expression by name only.
_LFM2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)


def add(writer: "GGUFWriter", folder: Path, vocabulary: int) -> None:
    """Adds the tokenizer of a transformers folder: tokens, their kinds, merges, special tokens and the chat template.

    `vocabulary` is the number of rows of the model's embeddings; ids without a token are filled up. Raises InputError
    for a tokenizer that llama.cpp would not reproduce.
    """
    import gguf

    file = folder / "tokenizer.json"
    if not file.exists():
        raise InputError(f"{file}: not found; llama.cpp's tokenizer is made from it")
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    name = pre_tokenizer(tokenizer, str(file))
    added = {token["id"]: token for token in tokenizer["added_tokens"]}
    texts = {number: text for text, number in tokenizer["model"]["vocab"].items()}
    texts |= {number: token["content"] for number, token in added.items()}
    if max(texts) >= vocabulary:
        raise InputError(f"{file}: has token {max(texts)}, but the model's vocab_size in config.json is {vocabulary}")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    writer.add_token_list([texts.get(number, f"[PAD{number}]") for number in range(vocabulary)])
    writer.add_token_types([_kind(number, texts, added) for number in range(vocabulary)])
    special = gguf.SpecialVocab(folder, load_merges=True)
    # The prompt in classifier.json has every token written out. Without this, runtimes put a second BOS token before
    # it: llama.cpp's default for `lfm2`.
    special.add_special_token = {"bos": False}
    special.add_to_gguf(writer, quiet=True)


def pre_tokenizer(tokenizer: Mapping[str, Any], file: str) -> str:
    """llama.cpp's name for the way in which a tokenizer.json splits text before it merges bytes.

    llama.cpp's own converter compares the tokens of one sample text with those of the tokenizers that it knows, and so
    fails for a tokenizer with another vocabulary. This goes by what the tokenizer does. llama.cpp's `lfm2` also takes
    a word that is a token as it is, even if no merges lead to it (`ignore_merges`). This differs from a tokenizer
    without that option only for such words; the comparison of tokens after the export would notice. `file` is for the
    message. Raises InputError.
    """
    model, parts = tokenizer["model"], _parts(tokenizer.get("pre_tokenizer"))
    kinds = [part["type"] for part in parts]
    if model["type"] != "BPE" or model.get("byte_fallback") or "ByteLevel" not in kinds:
        raise InputError(f"{file}: model: a byte-level BPE is needed for llama.cpp, not {model['type']}")
    if tokenizer.get("normalizer") is not None:
        kind = tokenizer["normalizer"]["type"]
        raise InputError(f"{file}: normalizer: {kind}: llama.cpp's byte-level BPE normalises nothing; null is needed")
    byte_level = parts[-1]
    if not byte_level["add_prefix_space"]:
        if kinds == ["ByteLevel"] and byte_level["use_regex"] and not model.get("ignore_merges"):
            return "gpt-2"
        if kinds == ["Split", "ByteLevel"] and not byte_level["use_regex"] and _splits_as_lfm2(parts[0]):
            return "lfm2"
    described = json.dumps(tokenizer["pre_tokenizer"], ensure_ascii=False)
    raise InputError(f"{file}: pre_tokenizer: {described}: only GPT-2's and LFM2's are known here by llama.cpp's name")


def _parts(pre: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if pre is None:
        return []
    return pre["pretokenizers"] if pre["type"] == "Sequence" else [pre]


def _splits_as_lfm2(split: Mapping[str, Any]) -> bool:
    return split["pattern"].get("Regex") == _LFM2 and split["behavior"] == "Isolated" and not split["invert"]


def _kind(number: int, texts: Mapping[int, str], added: Mapping[int, Mapping[str, Any]]) -> int:
    """How llama.cpp treats a token: as a part of words, a control token, one that is always found in text, or unused.

    As in llama.cpp's converter, an added token that looks like <|this|> is a control token, special or not.
    """
    from gguf import TokenType

    if number not in texts:
        return TokenType.UNUSED
    if number not in added:
        return TokenType.NORMAL
    text = texts[number]
    looks_special = text.startswith("<|") and text.endswith("|>")
    return TokenType.CONTROL if added[number]["special"] or looks_special else TokenType.USER_DEFINED
