import hashlib
import json
import resource
import shutil
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.vlm.edge import lfm2_vl
from vlm.config import errors
from vlm.config.errors import InputError
from vlm.edge import gguf_files, quantization

# What llama.cpp's own converter made of models/tiny
CONVERTER = json.loads((Path(__file__).parent / "llama_cpp_converter_tiny.json").read_text())
BEFORE = "<|startoftext|><|im_start|>user\n"
AFTER = "Which car's maker is it, 1 of 12345?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A shallow model, 256 wide: K types have blocks of 256 values."""
    layers = ["conv", "full_attention", "conv", "full_attention"]
    text = {"num_hidden_layers": 4, "layer_types": layers}
    return lfm2_vl.build(tmp_path_factory.mktemp("models") / "3B", "3B", text=text, vision={"num_hidden_layers": 3})


def read(file: Path) -> tuple[dict, dict]:
    """The keys of a GGUF file with their values, and its tensors."""
    reader = gguf.GGUFReader(file)
    keys = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    return keys, {tensor.name: tensor for tensor in reader.tensors}


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def shortened(value):
    """Long lists as the converter's are recorded: length and hash."""
    if not isinstance(value, list) or len(value) < 50:
        return value
    return {"length": len(value), "sha256": hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]}


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0"])
def test_tiny_is_written_as_llama_cpps_converter_writes_it(kind, at_root, tmp_path):
    gguf_files.write(Path("models/tiny"), tmp_path, kind, kind)
    for part in ("model", "mmproj"):
        expected = CONVERTER[f"{part}-{kind}.gguf"]
        keys, tensors = read(tmp_path / f"{part}.gguf")
        written = {
            name: [t.tensor_type.name, t.shape.tolist(), hashlib.sha256(t.data.tobytes()).hexdigest()[:16]]
            for name, t in tensors.items()
        }
        if (part, kind) == ("mmproj", "Q8_0"):
            # Difference 1: the patch embedding is as in an F16 file, and not F32.
            assert expected["tensors"]["v.patch_embd.weight"][0] == "F32"
            expected["tensors"]["v.patch_embd.weight"] = CONVERTER["mmproj-F16.gguf"]["tensors"]["v.patch_embd.weight"]
        assert written == expected["tensors"]
        # Difference 2: a name and a size label, made from the folder's name and the number of parameters.
        wanted = {name: v for name, v in expected["keys"].items() if name not in ("general.name", "general.size_label")}
        # Difference 3: how pictures are resized, which newer converters write, and that no BOS token is to be added.
        more = {
            "model": {"tokenizer.ggml.add_bos_token": False},
            "mmproj": {"clip.vision.image_resize_algo": "bilinear"},
        }
        assert {name: shortened(value) for name, value in keys.items()} == wanted | more[part]


@pytest.mark.parametrize(
    ("size", "changes"),
    [
        ("450M", {}),
        ("1.6B", {}),
        ("3B", {}),
        ("450M", {"projector_use_layernorm": False}),
        ("450M", {"tie_word_embeddings": False, "text": {"tie_word_embeddings": False}}),
        ("450M", {"vision_feature_layer": -2}),  # transformers takes the last layer all the same
    ],
)
def test_llama_cpp_computes_what_pytorch_computes(size, changes, tmp_path):
    """The next token's probabilities after a picture and text, in float32: they agree within 0.1 %."""
    folder = lfm2_vl.build(tmp_path / "model", size, **changes)
    gguf_files.write(folder, tmp_path / "out", "F32", "F32")
    keys, tensors = read(tmp_path / "out/model.gguf")
    assert ("output.weight" in tensors) == ("tie_word_embeddings" in changes)
    assert keys["lfm2.feed_forward_length"] == (384 if size == "3B" else 256)
    processor = AutoProcessor.from_pretrained(folder)
    pytorch = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    image, other = pictures()
    with torch.no_grad(), lfm2_vl.served(tmp_path / "out") as llama:
        expected, unlike = (
            pytorch(**encoded(processor, each)).logits[0, -1].log_softmax(-1).numpy() for each in (image, other)
        )
        found = llama.next_token(BEFORE, image, AFTER, 50)
    difference = max(abs(expected[token] - value) for token, value in found.items())
    assert difference < 0.001 < 0.05 < np.abs(expected - unlike).max()


def pictures() -> tuple[Image.Image, Image.Image]:
    """A picture of a size that the processor keeps, and another one."""
    noise = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    return Image.fromarray(noise), Image.fromarray(noise[::-1])


def encoded(processor, image):
    return processor(images=[image], text=[BEFORE + "<image>" + AFTER], return_tensors="pt", add_special_tokens=False)


def test_equal_models_give_equal_bytes(model, tmp_path):
    """Written again, from several weights files, from another folder, and with the Hub's names."""
    gguf_files.write(model, tmp_path / "once", "Q4_K_M", "Q8_0")
    gguf_files.write(model, tmp_path / "again", "Q4_K_M", "Q8_0")
    assert sorted(contents(tmp_path / "once")) == ["mmproj.gguf", "model.gguf"]
    assert contents(tmp_path / "again") == contents(tmp_path / "once")

    several = shutil.copytree(model, tmp_path / "several")
    weights = load_file(several / "model.safetensors")
    (several / "model.safetensors").unlink()
    files = {name: f"model-0000{number % 3 + 1}-of-00003.safetensors" for number, name in enumerate(weights)}
    for file in set(files.values()):
        save_file({name: weights[name] for name in weights if files[name] == file}, several / file)
    (several / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    gguf_files.write(several, tmp_path / "from_several", "Q4_K_M", "Q8_0")
    assert contents(tmp_path / "from_several") == contents(tmp_path / "once")

    hub = shutil.copytree(model, tmp_path / "hub")
    named = {name.replace("vision_tower.", "vision_tower.vision_model."): weight for name, weight in weights.items()}
    assert named.keys() != weights.keys()
    # What checkpoints hold besides: the output layer, though it is the embeddings, and the tower's pooling head
    named["lm_head.weight"] = weights["model.language_model.embed_tokens.weight"].clone()
    named["model.vision_tower.vision_model.head.probe"] = torch.ones(1, 1, 128)
    save_file(named, hub / "model.safetensors")
    image = json.loads((hub / "processor_config.json").read_text())["image_processor"]
    (hub / "processor_config.json").write_text('{"processor_class": "Lfm2VlProcessor"}')
    (hub / "preprocessor_config.json").write_text(json.dumps(image))
    gguf_files.write(hub, tmp_path / "from_hub", "Q4_K_M", "Q8_0")
    assert contents(tmp_path / "from_hub") == contents(tmp_path / "once")


@pytest.mark.parametrize(
    ("kind", "error", "types"),
    [
        ("F32", 0, {"F32"}),
        ("F16", 0.0005, {"F32", "F16"}),
        ("BF16", 0, {"F32", "BF16"}),  # the weights are bfloat16
        ("Q8_0", 0.01, {"F32", "Q8_0"}),
        ("Q6_K", 0.03, {"F32", "Q6_K", "Q8_0"}),
        ("Q5_K_M", 0.06, {"F32", "Q5_K", "Q6_K", "Q5_1", "Q8_0"}),
        ("Q4_K_M", 0.11, {"F32", "Q4_K", "Q6_K", "Q5_0", "Q8_0"}),
        ("Q4_0", 0.13, {"F32", "Q4_0", "Q6_K"}),
    ],
)
def test_what_is_read_back_is_within_the_types_error(kind, error, types, model, tmp_path):
    """The root mean square error of each tensor, relative to the tensor's. Feed-forward rows have 384 values."""
    gguf_files.write(model, tmp_path / "exact", "F32", "F32")
    gguf_files.write(model, tmp_path / "out", kind, "F32" if kind not in quantization.VISION_TYPES else kind)
    for part in ("model", "mmproj"):
        _, exact = read(tmp_path / f"exact/{part}.gguf")
        _, tensors = read(tmp_path / f"out/{part}.gguf")
        assert tensors.keys() == exact.keys()
        for name, tensor in tensors.items():
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)
            assert np.sqrt(np.mean((values - exact[name].data) ** 2)) <= error * np.sqrt(
                np.mean(exact[name].data ** 2.0)
            )
        if part == "model":
            assert {tensor.tensor_type.name for tensor in tensors.values()} == types


def test_a_tensor_that_is_converted_in_parts_is_complete(tmp_path):
    folder = lfm2_vl.build(tmp_path / "model", text={"vocab_size": 40_000})
    gguf_files.write(folder, tmp_path / "out", "BF16", "F16")
    source = load_file(folder / "model.safetensors")["model.language_model.embed_tokens.weight"]
    assert source.shape == (40_000, 128)  # more values than are converted at once
    written = read(tmp_path / "out/model.gguf")[1]["token_embd.weight"]
    assert np.array_equal(gguf.quants.dequantize(written.data, written.tensor_type), source.float().numpy())


@pytest.mark.parametrize(("kind", "likeness"), [("Q6_K", 0.98), ("Q5_K_M", 0.96), ("Q4_K_M", 0.9), ("Q4_0", 0.85)])
def test_llama_cpp_answers_much_the_same_with_a_quantised_model(kind, likeness, model, tmp_path):
    gguf_files.write(model, tmp_path, kind, "Q8_0")
    assert read(tmp_path / "model.gguf")[0]["general.file_type"] == gguf.LlamaFileType[f"MOSTLY_{kind}"]
    pytorch = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32).eval()
    image, _ = pictures()
    with torch.no_grad(), lfm2_vl.served(tmp_path) as llama:
        expected = pytorch(**encoded(AutoProcessor.from_pretrained(model), image)).logits[0, -1].log_softmax(-1).numpy()
        found = llama.next_token(BEFORE, image, AFTER, 500)
    assert np.corrcoef([expected[token] for token in found], list(found.values()))[0, 1] > likeness


@pytest.mark.parametrize("part", ["config.json", "tokenizer.json", "model.safetensors", "processor_config.json"])
def test_a_missing_file_is_named_and_nothing_is_left(part, model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "model")
    (folder / part).unlink()
    with pytest.raises(InputError, match=part.replace(".", r"\.")):
        gguf_files.write(folder, tmp_path / "out", "F16", "F16")
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model_type": "qwen2_5_vl"},
            "config.json: model_type: 'qwen2_5_vl' cannot be exported for llama.cpp; LFM2-VL",
        ),
        (
            {"text_config": {"model_type": "lfm2_moe"}},
            "config.json: text_config.model_type: 'lfm2_moe' cannot be exported",
        ),
        ({"text_config": {"model_type": "lfm2", "conv_bias": True}}, "text_config.conv_bias: True cannot be exported"),
        (
            {"projector_bias": False},
            "config.json: projector_bias: False cannot be exported: llama.cpp computes True only",
        ),
        (
            {"vision_config": {"model_type": "siglip2_vision_model", "hidden_act": "relu"}},
            "hidden_act: 'relu' cannot be",
        ),
        ({"vision_config": None}, "config.json: vision_config.model_type: None cannot be exported"),
    ],
)
def test_an_architecture_that_llama_cpp_does_not_run_is_named(change, message, model):
    config = json.loads((model / "config.json").read_text())
    gguf_files.require_supported(config)
    with pytest.raises(InputError) as raised:
        gguf_files.require_supported(config | change)
    assert message in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value", "kind", "message"),
    [
        ("model.language_model.layers.3.feed_forward.w1.weight", float("nan"), "F32", "values that F32 cannot hold"),
        ("model.vision_tower.encoder.layers.0.mlp.fc1.weight", 1e5, "F16", "beyond 65504"),
        ("model.language_model.layers.0.experts.weight", 1.0, "F16", "llama.cpp's LFM2-VL has no such weights"),
    ],
)
def test_weights_that_cannot_be_written_are_named(name, value, kind, message, model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights[name] = weights.get(name, torch.zeros(2, 2)).clone()
    weights[name][1, 1] = value
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(InputError, match=name) as raised:
        gguf_files.write(folder, tmp_path / "out", kind, kind)
    assert message in str(raised.value)
    assert not list(tmp_path.glob("out/.*")) and not (tmp_path / "out/mmproj.gguf").exists()


def test_without_xllamacpp_a_k_type_is_refused_in_one_line(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(InputError, match=r"tensors of type Q\d_K are written with xllamacpp, which is not installed"):
        gguf_files.write(model, tmp_path, "Q4_K_M", "Q8_0")
    assert not list(tmp_path.iterdir())
    gguf_files.write(model, tmp_path, "Q8_0", "Q4_0")


def test_a_full_disk_is_recognised_and_nothing_is_left(model, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))  # stands in for a full disk
    try:
        with pytest.raises(OSError, match="No space left on device") as raised:
            gguf_files.write(model, tmp_path, "F16", "F16")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert errors.is_disk_full(raised.value) and raised.value.filename == str(tmp_path / "model.gguf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("resample", "algorithm"), [(3, "bicubic"), (1, "lanczos")])
def test_the_processors_resampling_is_in_the_file(resample, algorithm, model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "model")
    config = json.loads((folder / "processor_config.json").read_text())
    config["image_processor"]["resample"] = resample
    (folder / "processor_config.json").write_text(json.dumps(config))
    gguf_files.write(folder, tmp_path / "out", "F16", "F16")
    assert read(tmp_path / "out/mmproj.gguf")[0]["clip.vision.image_resize_algo"] == algorithm
    config["image_processor"]["resample"] = 5
    (folder / "processor_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"processor_config\.json: resample: 5: llama\.cpp has"):
        gguf_files.write(folder, tmp_path / "out", "F16", "F16")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K_M"])
def test_a_model_as_wide_as_the_450m_is_written_and_loaded(kind, tmp_path):
    text = {
        "hidden_size": 1024,
        "intermediate_size": 6656,
        "vocab_size": 65_536,
        "num_hidden_layers": 2,
        "layer_types": ["conv", "full_attention"],
    }
    vision = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 1, "num_patches": 256}
    folder = lfm2_vl.build(tmp_path / "model", text=text, vision=vision, projector_hidden_size=2560)
    gguf_files.write(folder, tmp_path / "out", kind, "Q8_0")
    keys, tensors = read(tmp_path / "out/model.gguf")
    assert keys["lfm2.feed_forward_length"] == 4608
    assert tensors["token_embd.weight"].tensor_type.name == "Q6_K"
    with lfm2_vl.served(tmp_path / "out") as llama:
        assert len(llama.next_token(BEFORE, pictures()[0], AFTER, 20)) == 20
