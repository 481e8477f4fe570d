"""Runs an exported classifier with llama.cpp in this process, by the package xllamacpp.

The package has llama.cpp's server, whose completions also return token probabilities. The first request about a picture
encodes it and evaluates the prompt. A further request about it evaluates the prompt's last four tokens and its own: the
server keeps a checkpoint of the model's state there. (LFM2's convolutions cannot be rolled back to any other place.)
So a label's probability costs little more than the prompt, and needs nothing but the server's documented requests.
"""

import base64
import http.client
import io
import json
import secrets
from collections.abc import Collection, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from vlm.config import cores
from vlm.config.errors import InputError
from vlm.edge import resizing
from vlm.edge.classifier import MODEL, PROJECTOR, Classifier, NotExportable
from vlm.evaluation.trie import Trie

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from xllamacpp import CommonParams

NEGLIGIBLE = 1e-6  # the probability below which a node of the trie is not evaluated
# Added to the logits of tokens that are wanted, to lift them above all others. float32 keeps five digits of the sum.
_LIFT = 100.0
_FURTHER = 160.0  # to lift one token above those; float32's exponents still hold probabilities of e^-60 and less


class Llama:
    """The classifier in a folder, loaded; a context manager, because llama.cpp's threads have to be stopped.

    Raises InputError if the folder holds no classifier that llama.cpp can load, or xllamacpp is not installed, and in
    its methods RuntimeError if llama.cpp refuses a request.
    """

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        """`threads`: of llama.cpp; None: as many as this process has cores."""
        try:
            from xllamacpp import Server
        except ImportError:
            raise InputError("the package xllamacpp is not installed; `uv sync` installs it") from None
        self._classifier = Classifier.load(folder)
        for name in (MODEL, PROJECTOR):
            if not (folder / name).exists():
                raise InputError(f"{folder / name}: not found; `dvc repro export` writes it, `dvc pull` fetches it")
        self._key = secrets.token_urlsafe()  # keeps other users of this machine out
        parameters = self._parameters(folder, threads or cores.available())
        try:
            self._server: Any = Server(parameters)
        except RuntimeError:
            raise InputError(f"{folder}: llama.cpp cannot load {MODEL} and {PROJECTOR}; export them again") from None
        self._address = urlsplit(self._server.listening_address).netloc
        self._trie = trie = Trie.of(self._classifier.tokens.answers)
        self._parents = _parents(trie)
        self._most_gain = _most_gain(trie, self._classifier.offsets)
        self._labels_below = [sum(edge in edges for edges in trie.edges_of) for edge in range(len(trie.edges))]
        try:
            # The server completes in a thread of its own, and deleting it hangs until that has begun (build 11549).
            self._request("POST", "/completion", {"prompt": "a", "n_predict": 1})
            self._marker = self._request("GET", "/props")["media_marker"]
            self._beginnings = [self._text((*trie.forced, *path)) for path in trie.nodes]
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> "Llama":
        return self

    def __exit__(self, *exception: object) -> None:
        del self._server  # ends its threads

    def posterior(self, image: "Image.Image") -> "np.ndarray":
        """(labels,), float64, sums to 1: the probability of every label, as final_eval gives it.

        So the label prior is corrected if the classifier has `offsets`.
        """
        return self._classifier.corrected(self.plain_posterior(image))

    def plain_posterior(self, image: "Image.Image") -> "np.ndarray":
        """The same without a correction: what vlm/evaluation/posterior.py defines.

        Nodes of the trie that are reached with a probability below NEGLIGIBLE are not evaluated: the probability of
        reaching one is shared equally among the labels below it. If the prior is corrected, that is the probability
        which this could at most become.
        """
        import numpy as np

        trie, picture = self._trie, self._encoded(image)
        edges, reached = np.ones(len(trie.edges)), np.ones(len(trie.nodes))
        for node, parent in enumerate(self._parents):  # parents come first
            if parent is not None:
                reached[node] = reached[trie.edges[parent][0]] * edges[parent]
            own = [edge for edge, (start, _) in enumerate(trie.edges) if start == node]
            if reached[node] * self._most_gain[node] < NEGLIGIBLE:
                weights = np.array([self._labels_below[edge] for edge in own], float)
            else:
                weights = self._children(picture, node, [trie.edges[edge][1] for edge in own])
            edges[own] = weights / weights.sum()
        probabilities = np.array([np.prod(edges[list(path)]) for path in trie.edges_of])
        return probabilities / probabilities.sum()  # the sum is 1 except for rounding

    def greedy(self, image: "Image.Image") -> str:
        """The text that llama.cpp writes under labels.gbnf if it takes the most probable token at every step."""
        longest = max(map(len, self._classifier.tokens.answers))
        options = {"temperature": 0, "grammar": self._classifier.grammar(), "n_predict": 2 * longest}
        return self._complete(self._encoded(image), "", options)["content"]

    def tokenize(self, text: str) -> list[int]:
        """The text's tokens; control tokens in it are recognised, and none are added."""
        return self._request("POST", "/tokenize", {"content": text, "parse_special": True})["tokens"]

    def prompt_tokens(self, image: "Image.Image") -> int:
        """The number of tokens of the question about a picture: text, image tokens, and what llama.cpp adds."""
        return self._complete(self._encoded(image), "", {"n_predict": 0, "cache_prompt": True})["tokens_evaluated"]

    def _parameters(self, folder: Path, threads: int) -> "CommonParams":
        from xllamacpp import CommonParams

        tokens, limits = self._classifier.tokens, self._classifier.image
        parameters = CommonParams()
        parameters.model.path = str(folder / MODEL)
        parameters.mmproj.path = str(folder / PROJECTOR)
        parameters.image_min_tokens, parameters.image_max_tokens = limits.min_tokens, limits.max_tokens
        prompt = tokens.before + tokens.around_image + limits.max_tokens + tokens.after
        # Some more, for greedy answers in other tokens; llama.cpp rounds up to a multiple of 256.
        parameters.n_ctx = prompt + 2 * max(map(len, tokens.answers)) + 16
        parameters.n_parallel = 1  # all of the context for one request
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
        parameters.n_gpu_layers, parameters.mmproj_use_gpu, parameters.fit_params = 0, False, False
        parameters.cache_ram_mib = 0  # earlier prompts are of no use
        parameters.warmup = parameters.ui = False
        parameters.verbosity = -1  # no log
        parameters.api_keys, parameters.port, parameters.n_threads_http = [self._key], 0, 1
        return parameters

    def _text(self, tokens: Sequence[int]) -> str:
        """The text that an answer with these first tokens begins with. Raises NotExportable if it has other tokens.

        That is so if labels differ within a character that consists of several tokens.
        """
        after = self._classifier.prompt.after
        text = self._request("POST", "/detokenize", {"tokens": tokens})["content"]
        if self.tokenize(after + text) != [*self.tokenize(after), *tokens]:
            answers = zip(self._classifier.labels, self._classifier.tokens.answers, strict=True)
            labels = [label for label, answer in answers if answer[: len(tokens)] == tuple(tokens)]
            raise NotExportable(
                f"configs/tasks/{self._classifier.task}.yaml: labels: {labels[0]!r} and {labels[1]!r} differ where "
                "llama.cpp's server cannot continue a text, such as within a character of several tokens; rename one"
            )
        return text

    def _children(self, picture: str, node: int, children: Sequence[int]) -> "np.ndarray":
        """(children,): the probabilities of a node's children, up to a factor."""
        import numpy as np

        options = {
            "samplers": ["top_k", "temperature"],
            "temperature": 1,
            "n_predict": 1,
            "post_sampling_probs": True,
            "cache_prompt": node > 0,  # not for the root, so that a picture's answer is the same whatever was before
        }
        lifted = dict.fromkeys(children, _LIFT)
        reply: dict[str, Any] = {}
        while "completion_probabilities" not in reply:
            if reply:  # The server says none if it draws a token that ends within a character: let it draw another.
                lifted[self._complete_token(lifted)] = _FURTHER
            options |= {"logit_bias": list(lifted.items()), "top_k": len(lifted), "n_probs": len(lifted)}
            reply = self._complete(picture, self._beginnings[node], options)
        found = {token["id"]: token["prob"] for token in reply["completion_probabilities"][0]["top_probs"]}
        weights = np.array([found.get(token, 0.0) for token in children])
        if not weights.any():
            raise RuntimeError(f"llama.cpp: gives none of the tokens {list(children)} a probability")
        return weights

    def _complete_token(self, others: Collection[int]) -> int:
        """A token that ends with a character and is none of the others. Raises RuntimeError if there is none left."""
        for token in self.tokenize("0\n."):
            if token not in others:
                return token
        raise RuntimeError(f"llama.cpp: gives none of the tokens {list(others)} a probability")

    def _encoded(self, image: "Image.Image") -> str:
        resized = resizing.resized(image, self._classifier.image)
        content = io.BytesIO()
        resized.save(content, "BMP")  # takes a fifth of PNG's time, and is as exact
        return base64.b64encode(content.getvalue()).decode("ascii")

    def _complete(self, picture: str, answer: str, options: dict[str, Any]) -> dict[str, Any]:
        """The server's reply to the prompt with the beginning of an answer."""
        before, after = self._classifier.prompt.before, self._classifier.prompt.after
        prompt = {"prompt_string": f"{before}{self._marker}{after}{answer}", "multimodal_data": [picture]}
        return self._request("POST", "/completion", {"cache_prompt": False, "seed": 0, **options, "prompt": prompt})

    def _request(self, method: str, path: str, values: dict[str, Any] | None = None) -> dict[str, Any]:
        """The server's answer to a request. Raises RuntimeError, in one line, if it refuses it."""
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        # A connection of its own: the server closes one that is idle for five seconds, and at its end waits for them.
        with closing(http.client.HTTPConnection(self._address)) as connection:
            connection.request(method, path, json.dumps(values) if values else None, headers)
            response = connection.getresponse()
            reply = json.loads(response.read())
        if response.status != http.HTTPStatus.OK:
            raise RuntimeError(f"llama.cpp: {' '.join(reply['error']['message'].split())}")
        return reply


def _parents(trie: Trie) -> list[int | None]:
    """For each node the edge through which it is reached from the branching node above it; None for the root."""
    edge_at = {(*trie.nodes[start], token): edge for edge, (start, token) in enumerate(trie.edges)}
    above = [[path[:depth] for depth in range(len(path), 0, -1) if path[:depth] in edge_at] for path in trie.nodes]
    return [edge_at[beginnings[0]] if beginnings else None for beginnings in above]


def _most_gain(trie: Trie, offsets: Sequence[float]) -> "np.ndarray":
    """(nodes,): by what factor at most `offsets` raise the probability of a label below a node; 1 without offsets."""
    import numpy as np

    if not offsets:
        return np.ones(len(trie.nodes))
    below: list[list[float]] = [[] for _ in trie.nodes]
    for edges, offset in zip(trie.edges_of, offsets, strict=True):
        for edge in edges:
            below[trie.edges[edge][0]].append(offset)
    # All probabilities times exp(their offsets) add up to exp(the smallest offset) or more.
    return np.exp(np.array([max(own, default=min(offsets)) for own in below]) - min(offsets))
