"""A tiny random LFM2-VL model with the files of a real repository."""

import json
import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Lfm2VlConfig, Lfm2VlForConditionalGeneration, PreTrainedTokenizerFast
from transformers.models.lfm2_vl.image_processing_lfm2_vl import Lfm2VlImageProcessor

from hub_tree.classes import ACTIONS, MAKERS, cars

CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")
_LAYERS = "ccac"  # of the language model: c, conv; a, attention
_VOCABULARY = 1536


def write_model(folder: Path, light: bool) -> None:
    """With `light`, pictures are few tokens and not tiled, for fast runs on a CPU."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tokenizer = _tokenizer()
    torch.manual_seed(0)
    model = Lfm2VlForConditionalGeneration(_config(len(tokenizer))).to(torch.bfloat16)
    # On the generation config, too, as in the real repositories
    model.generation_config.update(bos_token_id=1, eos_token_id=7, pad_token_id=0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    few = {"min_image_tokens": 4, "max_image_tokens": 16, "tile_size": 128, "max_num_patches": 64}
    real = {"min_image_tokens": 64, "max_image_tokens": 256, "tile_size": 512, "max_num_patches": 1024}
    Lfm2VlImageProcessor(
        downsample_factor=2, do_image_splitting=not light, min_tiles=2, max_tiles=10, use_thumbnail=True,
        encoder_patch_size=16, max_pixels_tolerance=2.0, **(few if light else real),
    ).save_pretrained(folder)  # fmt: skip
    # The real repositories were written by transformers 4: two files of the processor, a template of its own
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "Lfm2VlProcessor"}, indent=2) + "\n")
    shutil.copyfile(CHAT_TEMPLATE, folder / "chat_template.jinja")
    processor = {"image_processor_type": "Lfm2VlImageProcessorFast", "processor_class": "Lfm2VlProcessor"}
    _update(folder / "preprocessor_config.json", processor)
    classes = {"tokenizer_class": "PreTrainedTokenizerFast", "processor_class": "Lfm2VlProcessor"}
    _update(folder / "tokenizer_config.json", classes)
    card = "library_name: transformers\nlicense: other\nlicense_name: lfm1.0\npipeline_tag: image-text-to-text"
    (folder / "README.md").write_text(f"---\n{card}\n---\n\nA tiny random stand-in for {folder.name}.\n")


def _config(vocabulary: int) -> Lfm2VlConfig:
    return Lfm2VlConfig(
        text_config=dict(
            model_type="lfm2", vocab_size=vocabulary, hidden_size=64, intermediate_size=192,
            num_hidden_layers=len(_LAYERS), layer_types=["conv" if c == "c" else "full_attention" for c in _LAYERS],
            num_attention_heads=4, num_key_value_heads=2, block_auto_adjust_ff_dim=False, max_position_embeddings=32768,
            bos_token_id=1, eos_token_id=7, pad_token_id=0, tie_word_embeddings=True,
        ),
        vision_config=dict(
            model_type="siglip2_vision_model", hidden_size=48, intermediate_size=144, num_hidden_layers=2,
            num_attention_heads=4, patch_size=16, num_patches=256, vision_use_head=False,
        ),
        image_token_id=396, projector_hidden_size=128, downsample_factor=2, tie_word_embeddings=True,
    )  # fmt: skip


def _tokenizer() -> PreTrainedTokenizerFast:
    """Knows the words of the data sets, and has the special tokens of the real one, at its ids."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    words = [*MAKERS, *ACTIONS, "cat", "dog"]
    lines = [f"What is in this picture? Answer with one of:\n- {word}\n" for word in words] * 4
    lines += [f'{{"pred_class": "{word}"}}' for word in words] * 4 + [" ".join(car) for car in cars()]
    lines += ["You are a helpful multimodal assistant by Liquid AI. Which maker, model and year is this car?"] * 20
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=_special_tokens(),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|startoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        extra_special_tokens={
            "image_token": "<image>",
            "image_start_token": "<|image_start|>",
            "image_end_token": "<|image_end|>",
            "image_thumbnail": "<|img_thumbnail|>",
        },
    )


def _special_tokens() -> list[str]:
    """In the order that gives the real ids: pad 0, bos 1, im_start 6, im_end 7, <image> 396."""
    names = """<|pad|> <|startoftext|> <|endoftext|> <|fim_pre|> <|fim_mid|> <|fim_suf|> <|im_start|> <|im_end|>
        <|tool_list_start|> <|tool_list_end|> <|tool_call_start|> <|tool_call_end|> <|tool_response_start|>
        <|tool_response_end|>""".split()
    names += [f"<|reserved_{i}|>" for i in range(396 - len(names))]
    names.append("<image>")
    names += [f"<|img_row_{row}_col_{column}|>" for row in range(1, 11) for column in range(1, 11)]
    return [*names, "<|img_thumbnail|>", "<|image_start|>", "<|image_end|>"]


def _update(file: Path, values: dict[str, str]) -> None:
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | values, indent=2) + "\n")
