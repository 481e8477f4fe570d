"""Classifier.swift's class Session in Python: the same calls of llama.cpp in the same order, by ctypes on xllamacpp.

There is no Swift compiler in the tests. This runs the calls for real, with the constants of a Swift file, and
test_swift.py compares their order with that file: change both together. ctypes passes the structs by value, so they
have to be declared anew, like llama_cpp_signatures.json, when llama.cpp's build changes.
"""

import ctypes
import importlib.metadata
import importlib.util
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from ctypes import POINTER, byref, c_bool, c_char_p, c_float, c_int, c_int8, c_int32, c_size_t, c_uint32, c_void_p
from pathlib import Path
from typing import Any

import numpy as np


class ModelParams(ctypes.Structure):
    _fields_ = [
        ("devices", c_void_p), ("tensor_buft_overrides", c_void_p), ("n_gpu_layers", c_int32), ("split_mode", c_int),
        ("load_mode", c_int), ("lazy_mode", c_int), ("main_gpu", c_int32), ("tensor_split", c_void_p),
        ("progress_callback", c_void_p), ("progress_callback_user_data", c_void_p), ("kv_overrides", c_void_p),
        ("vocab_only", c_bool), ("check_tensors", c_bool), ("use_extra_bufts", c_bool), ("no_host", c_bool),
        ("no_alloc", c_bool), ("load_mtp", c_bool),
    ]  # fmt: skip


class ContextParams(ctypes.Structure):
    _fields_ = [
        ("n_ctx", c_uint32), ("n_batch", c_uint32), ("n_ubatch", c_uint32), ("n_seq_max", c_uint32),
        ("n_rs_seq", c_uint32), ("n_outputs_max", c_uint32), ("n_outputs_max_per_seq", c_uint32),
        ("n_threads", c_int32), ("n_threads_batch", c_int32), ("ctx_type", c_int), ("rope_scaling_type", c_int),
        ("pooling_type", c_int), ("attention_type", c_int), ("flash_attn_type", c_int), ("rope_freq_base", c_float),
        ("rope_freq_scale", c_float), ("yarn_ext_factor", c_float), ("yarn_attn_factor", c_float),
        ("yarn_beta_fast", c_float), ("yarn_beta_slow", c_float), ("yarn_orig_ctx", c_uint32), ("defrag_thold", c_float),
        ("cb_eval", c_void_p), ("cb_eval_user_data", c_void_p), ("type_k", c_int), ("type_v", c_int),
        ("moe_cache_size", c_size_t), ("abort_callback", c_void_p), ("abort_callback_data", c_void_p),
        ("embeddings", c_bool), ("offload_kqv", c_bool), ("no_perf", c_bool), ("op_offload", c_bool),
        ("swa_full", c_bool), ("kv_unified", c_bool), ("samplers", c_void_p), ("n_samplers", c_size_t),
        ("ctx_other", c_void_p),
    ]  # fmt: skip


class VisionParams(ctypes.Structure):
    _fields_ = [
        ("use_gpu", c_bool), ("device", c_void_p), ("print_timings", c_bool), ("n_threads", c_int),
        ("image_marker", c_char_p), ("media_marker", c_char_p), ("flash_attn_type", c_int), ("warmup", c_bool),
        ("image_min_tokens", c_int), ("image_max_tokens", c_int), ("cb_eval", c_void_p), ("cb_eval_user_data", c_void_p),
        ("batch_max_tokens", c_int32), ("progress_callback", c_void_p), ("progress_callback_user_data", c_void_p),
    ]  # fmt: skip


class InputText(ctypes.Structure):
    _fields_ = [("text", c_char_p), ("text_len", c_size_t), ("add_special", c_bool), ("parse_special", c_bool)]


class Batch(ctypes.Structure):
    _fields_ = [
        ("n_tokens", c_int32), ("token", POINTER(c_int32)), ("embd", c_void_p), ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)), ("seq_id", POINTER(POINTER(c_int32))), ("logits", POINTER(c_int8)),
    ]  # fmt: skip


@ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)
def _report(level, text, data):
    if level == _ERROR:
        print(text.decode(), file=sys.stderr)


_ERROR = 4  # GGML_LOG_LEVEL_ERROR
_RESULTS_AND_ARGUMENTS = {
    "llama_log_set": (None, [type(_report), c_void_p]),
    "mtmd_helper_log_set": (None, [type(_report), c_void_p]),
    "llama_backend_init": (None, []),
    "llama_model_default_params": (ModelParams, []),
    "llama_model_load_from_file": (c_void_p, [c_char_p, ModelParams]),
    "llama_context_default_params": (ContextParams, []),
    "llama_init_from_model": (c_void_p, [c_void_p, ContextParams]),
    "llama_model_free": (None, [c_void_p]),
    "llama_free": (None, [c_void_p]),
    "llama_get_memory": (c_void_p, [c_void_p]),
    "llama_memory_clear": (None, [c_void_p, c_bool]),
    "llama_memory_seq_rm": (c_bool, [c_void_p, c_int32, c_int32, c_int32]),
    "llama_memory_seq_cp": (None, [c_void_p, c_int32, c_int32, c_int32, c_int32]),
    "llama_batch_init": (Batch, [c_int32, c_int32, c_int32]),
    "llama_batch_free": (None, [Batch]),
    "llama_decode": (c_int32, [c_void_p, Batch]),
    "llama_get_logits_ith": (POINTER(c_float), [c_void_p, c_int32]),
    "mtmd_context_params_default": (VisionParams, []),
    "mtmd_init_from_file": (c_void_p, [c_char_p, c_void_p, VisionParams]),
    "mtmd_free": (None, [c_void_p]),
    "mtmd_bitmap_init": (c_void_p, [c_uint32, c_uint32, c_char_p]),
    "mtmd_bitmap_free": (None, [c_void_p]),
    "mtmd_input_chunks_init": (c_void_p, []),
    "mtmd_input_chunks_free": (None, [c_void_p]),
    "mtmd_default_marker": (c_char_p, []),
    "mtmd_tokenize": (c_int32, [c_void_p, c_void_p, POINTER(InputText), POINTER(c_void_p), c_size_t]),
    "mtmd_helper_get_n_tokens": (c_size_t, [c_void_p]),
    "mtmd_helper_eval_chunks": (
        c_int32, [c_void_p, c_void_p, c_void_p, c_int32, c_int32, c_int32, c_bool, POINTER(c_int32)],
    ),
}  # fmt: skip


def library() -> ctypes.CDLL:
    """xllamacpp's shared library, which exports llama.cpp's C API."""
    folder = Path(importlib.util.find_spec("xllamacpp").submodule_search_locations[0])
    loaded = ctypes.CDLL(str(next(folder.glob("xllamacpp*.so"))))
    for name, (result, arguments) in _RESULTS_AND_ARGUMENTS.items():
        getattr(loaded, name).restype = result
        getattr(loaded, name).argtypes = arguments
    return loaded


def build() -> int:
    """The build of llama.cpp that the installed xllamacpp has."""
    return int(importlib.metadata.version("xllamacpp").rpartition(".")[2])


class Session:
    """`constants` are the Swift file's, by enum and name."""

    def __init__(self, c: ctypes.CDLL, folder: Path, constants: Mapping[str, Mapping[str, Any]]) -> None:
        self.c, self.prompt, self.answers, self.pixels = (c, *(constants[k] for k in ("Prompt", "Answers", "Pixels")))
        c.llama_log_set(_report, None)
        c.mtmd_helper_log_set(_report, None)
        c.llama_backend_init()
        model_options = c.llama_model_default_params()
        model_options.n_gpu_layers = 0
        model = c.llama_model_load_from_file(str(folder / "model.gguf").encode(), model_options)
        if not model:
            raise RuntimeError("model.gguf")
        options = c.llama_context_default_params()
        options.n_ctx = self.prompt["context"]
        options.n_seq_max = 2
        options.kv_unified = True
        options.n_threads = 1
        options.n_threads_batch = 1
        context = c.llama_init_from_model(model, options)
        if not context:
            c.llama_model_free(model)
            raise RuntimeError("context")
        vision_options = c.mtmd_context_params_default()
        vision_options.use_gpu = False
        vision_options.print_timings = False
        vision_options.n_threads = 1
        vision_options.image_min_tokens = self.pixels["minTokens"]
        vision_options.image_max_tokens = self.pixels["maxTokens"]
        vision = c.mtmd_init_from_file(str(folder / "mmproj.gguf").encode(), model, vision_options)
        if not vision:
            c.llama_free(context)
            c.llama_model_free(model)
            raise RuntimeError("mmproj.gguf")
        self.model, self.context, self.vision = model, context, vision

    def close(self) -> None:
        self.c.mtmd_free(self.vision)
        self.c.llama_free(self.context)
        self.c.llama_model_free(self.model)

    def probabilities(self, width: int, height: int, pixels: bytes) -> np.ndarray:
        """(labels,), for a picture in the processor's size; `pixels` are bytes R, G, B."""
        c, answers = self.c, self.answers
        if not answers["nodes"]:
            return np.ones(1)
        position = self._prefill(width, height, pixels)
        log_probabilities: dict[int, np.ndarray] = {}
        if not answers["forced"]:
            self._read(0, -1, log_probabilities)
        else:
            nodes = [-1] * (len(answers["forced"]) - 1) + [0]
            self._decode(answers["forced"], nodes, position, 0, log_probabilities)
            position += len(answers["forced"])
        memory = c.llama_get_memory(self.context)
        for path, nodes in zip(answers["paths"], answers["nodesOnPaths"], strict=True):
            c.llama_memory_seq_rm(memory, 1, -1, -1)
            c.llama_memory_seq_cp(memory, 0, 1, -1, -1)
            self._decode(path, nodes, position, 1, log_probabilities)
        sums = np.array(answers["offsets"])
        for label, steps in enumerate(answers["steps"]):
            for step in range(0, len(steps), 2):
                sums[label] += log_probabilities[steps[step]][steps[step + 1]]
        weights = np.exp(sums - sums.max())
        return weights / weights.sum()

    def _prefill(self, width: int, height: int, pixels: bytes) -> int:
        c, multiple = self.c, self.pixels["multiple"]
        c.llama_memory_clear(c.llama_get_memory(self.context), True)
        with ExitStack() as deferred:
            bitmap = c.mtmd_bitmap_init(width, height, pixels)
            deferred.callback(c.mtmd_bitmap_free, bitmap)
            chunks = c.mtmd_input_chunks_init()
            deferred.callback(c.mtmd_input_chunks_free, chunks)
            prompt = self.prompt["before"].encode() + c.mtmd_default_marker() + self.prompt["after"].encode()
            text = InputText(prompt, len(prompt), False, True)
            tokenized = c.mtmd_tokenize(self.vision, chunks, byref(text), (c_void_p * 1)(bitmap), 1)
            assert tokenized == 0, tokenized
            expected = self.prompt["tokens"] + (width // multiple) * (height // multiple)
            found = c.mtmd_helper_get_n_tokens(chunks)
            assert found == expected, (found, expected)
            position = c_int32(0)
            evaluated = c.mtmd_helper_eval_chunks(self.vision, self.context, chunks, 0, 0, 512, True, byref(position))
            assert evaluated == 0, evaluated
            return position.value

    def _decode(self, tokens, nodes, position: int, sequence: int, log_probabilities: dict[int, np.ndarray]) -> None:
        c = self.c
        with ExitStack() as deferred:
            batch = c.llama_batch_init(len(tokens), 0, 1)
            deferred.callback(c.llama_batch_free, batch)
            batch.n_tokens = len(tokens)
            for index, token in enumerate(tokens):
                batch.token[index] = token
                batch.pos[index] = position + index
                batch.n_seq_id[index] = 1
                batch.seq_id[index][0] = sequence
                batch.logits[index] = 0 if nodes[index] < 0 else 1
            decoded = c.llama_decode(self.context, batch)
            assert decoded == 0, decoded
            for index, node in enumerate(nodes):
                if node >= 0:
                    self._read(node, index, log_probabilities)

    def _read(self, node: int, index: int, log_probabilities: dict[int, np.ndarray]) -> None:
        logits = self.c.llama_get_logits_ith(self.context, index)
        assert logits
        values = np.array([logits[token] for token in self.answers["nodes"][node]], dtype=np.float64)
        largest = values.max()
        log_probabilities[node] = values - largest - np.log(np.exp(values - largest).sum())
