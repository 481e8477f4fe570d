import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm.evaluation.trie import Trie

sequences = st.lists(st.lists(st.integers(1, 3), max_size=4), min_size=1, max_size=12, unique_by=tuple).map(
    lambda found: [[*sequence, 0] for sequence in found]  # 0 ends a turn, so none is a prefix of another
)


@given(sequences)
def test_a_trie_has_every_choice_once(found):
    trie = Trie.of(found)
    for sequence, edges in zip(found, trie.edges_of, strict=True):
        # The edges are the choices along the sequence; forced tokens and only children are not choices.
        tail = tuple(sequence[len(trie.forced) :])
        for edge in edges:
            node, token = trie.edges[edge]
            path = trie.nodes[node]
            assert tail[: len(path)] == path
            assert tail[len(path)] == token
    assert len({*trie.edges_of}) == len(found)
    for path in trie.nodes:
        assert not path or any(way[: len(path)] == path for way in trie.paths)
    children = [sum(node == n for n, _ in trie.edges) for node in range(len(trie.nodes))]
    assert all(count > 1 for count in children)
    # If siblings are equally probable, the probabilities sum to one.
    total = sum(math.prod(1 / children[trie.edges[e][0]] for e in edges) for edges in trie.edges_of)
    assert total == pytest.approx(1)


@given(sequences, st.integers(1, 12))
def test_parts_are_trees_that_have_every_deeper_node_once(found, most):
    trie = Trie.of(found)
    parts = trie.parts(most)
    nodes = [node for part in parts for node, _ in part.nodes]
    assert sorted(nodes) == list(range(1, len(trie.nodes)))
    for part in parts:
        written = [tuple(part.tokens[i] for i in chain) for chain in part.chains]
        assert len(set(written)) == len(part.tokens)  # no beginning of a path twice
        assert all(chain[-1] == i and chain[:-1] in {(), *part.chains} for i, chain in enumerate(part.chains))
        assert all(written[i] == trie.nodes[node] for node, i in part.nodes)
        assert len(part.tokens) <= max(most, *map(len, trie.paths))


def test_paths_share_the_tokens_of_their_common_beginning():
    trie = Trie.of([[1, 2, 3, 0], [1, 2, 4, 0], [1, 2, 4, 5, 0], [2, 0]])
    assert trie.paths == ((1, 2, 4),)
    trie = Trie.of([[1, 2, 3, 0], [1, 2, 3, 1, 0], [1, 2, 4, 0], [1, 2, 4, 5, 0], [2, 0]])
    assert trie.paths == ((1, 2, 3), (1, 2, 4))
    (whole,) = trie.parts(4)
    assert whole.tokens == (1, 2, 3, 4)
    assert whole.chains == ((0,), (0, 1), (0, 1, 2), (0, 1, 3))
    assert [part.tokens for part in trie.parts(3)] == [(1, 2, 3), (1, 2, 4)]
