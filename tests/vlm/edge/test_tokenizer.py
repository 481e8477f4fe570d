import copy
import json

import gguf
import pytest
from transformers import AutoTokenizer

from tests.vlm.edge import lfm2_vl
from vlm.config.errors import InputError
from vlm.edge import gguf_files, tokenizer

TEXTS = [
    "<|startoftext|><|im_start|>user\nIt's 12345 CAT'S and 3 cars...\n\n\tYou'll see?<|im_end|>\n",
    'Answer: {"pred_class": "Land Rover"}<|im_end|>',
    "Café  ''S'll née 日本語 emoji 🚀🚀, x=-1e9;   trailing   \n \n\n",
    "one<image>two<|img_row_1_col_1|> three",
]


@pytest.mark.parametrize(("lfm2", "name"), [(True, "lfm2"), (False, "gpt-2")])
def test_llama_cpp_makes_the_same_tokens(lfm2, name, tmp_path):
    folder = lfm2_vl.build(tmp_path / "model", lfm2_tokenizer=lfm2)
    gguf_files.write(folder, tmp_path / "out", "F16", "F16")
    original = AutoTokenizer.from_pretrained(folder)
    with lfm2_vl.served(tmp_path / "out") as llama:
        for text in TEXTS:
            assert llama.tokens(text) == original(text, add_special_tokens=False).input_ids
    keys = {field: value.contents() for field, value in gguf.GGUFReader(tmp_path / "out/model.gguf").fields.items()}
    assert keys["tokenizer.ggml.pre"] == name
    # The prompt says where the BOS token is; llama.cpp would put a second one before it.
    assert keys["tokenizer.ggml.bos_token_id"] == 1 and keys["tokenizer.ggml.add_bos_token"] is False
    assert keys["tokenizer.ggml.eos_token_id"] == original.eos_token_id
    assert len(keys["tokenizer.ggml.tokens"]) == len(original) + 5 == keys["lfm2.vocab_size"]
    assert keys["tokenizer.ggml.tokens"][-1] == f"[PAD{len(original) + 4}]"
    kinds = keys["tokenizer.ggml.token_type"]
    assert kinds[original.eos_token_id] == gguf.TokenType.CONTROL and kinds[-1] == gguf.TokenType.UNUSED
    assert kinds[original.convert_tokens_to_ids("a")] == gguf.TokenType.NORMAL


def test_an_added_word_that_is_not_special_is_found_in_text(tmp_path):
    folder = lfm2_vl.build(tmp_path / "model")
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    number = max(content["model"]["vocab"].values()) + 1
    for offset, text in enumerate(["<think>", "<|tool|>"]):
        content["added_tokens"].append(
            {**content["added_tokens"][-1], "id": number + offset, "content": text, "special": False}
        )
    file.write_text(json.dumps(content))
    gguf_files.write(folder, tmp_path / "out", "F16", "F16")
    kinds = gguf.GGUFReader(tmp_path / "out/model.gguf").fields["tokenizer.ggml.token_type"].contents()
    assert kinds[number] == gguf.TokenType.USER_DEFINED and kinds[number + 1] == gguf.TokenType.CONTROL
    text = "I <think>of</think> a <|tool|>"
    with lfm2_vl.served(tmp_path / "out") as llama:
        assert llama.tokens(text) == AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False).input_ids


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
SPLIT = {"type": "Split", "pattern": {"Regex": lfm2_vl.LFM2_PATTERN}, "behavior": "Isolated", "invert": False}
GPT2 = {"model": {"type": "BPE", "ignore_merges": False}, "normalizer": None, "pre_tokenizer": BYTES}


def test_a_pre_tokenizer_is_known_by_what_it_does():
    sequence = {"type": "Sequence", "pretokenizers": [SPLIT, BYTES | {"use_regex": False}]}
    assert tokenizer.pre_tokenizer(GPT2, "") == "gpt-2"
    assert tokenizer.pre_tokenizer(GPT2 | {"pre_tokenizer": sequence}, "") == "lfm2"


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (
            "pre_tokenizer",
            BYTES | {"add_prefix_space": True},
            'pre_tokenizer: {"type": "ByteLevel", "add_prefix_space": true',
        ),
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [SPLIT, BYTES]}, "only GPT-2's and LFM2's are known"),
        ("pre_tokenizer", {"type": "Metaspace"}, "model: a byte-level BPE is needed for llama.cpp"),
        ("pre_tokenizer", None, "model: a byte-level BPE is needed for llama.cpp"),
        (
            "normalizer",
            {"type": "NFC"},
            "tokenizer.json: normalizer: NFC: llama.cpp's byte-level BPE normalises nothing",
        ),
        (
            "model",
            {"type": "WordPiece"},
            "tokenizer.json: model: a byte-level BPE is needed for llama.cpp, not WordPiece",
        ),
        ("model", {"type": "BPE", "ignore_merges": True}, "only GPT-2's and LFM2's are known"),
    ],
)
def test_a_tokenizer_that_llama_cpp_does_not_reproduce_is_named(place, value, message):
    with pytest.raises(InputError) as raised:
        tokenizer.pre_tokenizer(GPT2 | {place: value}, "models/x/tokenizer.json")
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_other_digits_are_another_pre_tokenizer():
    split = copy.deepcopy(SPLIT)
    split["pattern"]["Regex"] = split["pattern"]["Regex"].replace("{1,3}", "{1,2}")
    pre = {"type": "Sequence", "pretokenizers": [split, BYTES | {"use_regex": False}]}
    with pytest.raises(InputError, match=r"pre_tokenizer: .*1,2.*: only GPT-2's and LFM2's are known"):
        tokenizer.pre_tokenizer(GPT2 | {"pre_tokenizer": pre}, "tokenizer.json")


def test_a_token_beyond_the_embeddings_is_an_error(tmp_path):
    folder = lfm2_vl.build(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["vocab_size"] = 100
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        InputError, match=r"tokenizer\.json: has token \d+, but the model's vocab_size in config.json is 100"
    ):
        gguf_files.write(folder, tmp_path / "out", "F16", "F16")
