"""Tries against dictionaries of the sequences themselves."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from speechkit.asr.trie import Trie

SEQUENCES = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5).map(tuple), max_size=12)


def sequences_of(trie: Trie) -> list[tuple[int, ...]]:
    """What each node stands for, walked down from the root."""
    found: list[tuple[int, ...]] = [()]
    for parent, symbol in zip(trie.parents[1:].tolist(), trie.symbols[1:].tolist(), strict=True):
        found.append((*found[parent], symbol))
    return found


@given(SEQUENCES)
def test_every_beginning_of_a_sequence_is_one_node(sequences: list[tuple[int, ...]]) -> None:
    trie, nodes = Trie.of(sequences, 4)
    found = sequences_of(trie)
    assert sorted(found) == sorted({sequence[:n] for sequence in sequences for n in range(6)} | {()})
    assert [found[node] for node in nodes] == sequences
    for depth in range(1, len(trie.levels) + 1):
        assert {len(sequence) for sequence in found[trie.level(depth)]} == {depth}


@given(SEQUENCES)
def test_children_are_found_by_search_and_by_table(sequences: list[tuple[int, ...]]) -> None:
    trie, _ = Trie.of(sequences, 4)
    found = sequences_of(trie)
    number = {sequence: node for node, sequence in enumerate(found)}
    expected = [[number.get((*sequence, symbol), -1) for symbol in range(4)] for sequence in found]
    expected.append([-1] * 4)  # no node has no children
    nodes = np.append(np.arange(len(trie)), -1)[:, None]
    assert trie.find(nodes, np.arange(4)).tolist() == expected
    trie.tabulate()
    assert trie.table is not None and trie.find(nodes, np.arange(4)).tolist() == expected


@given(SEQUENCES)
def test_suffixes_are_the_longest_proper_ones_that_are_nodes(sequences: list[tuple[int, ...]]) -> None:
    trie, _ = Trie.of(sequences, 4)
    found = sequences_of(trie)
    for sequence, suffix in zip(found[1:], trie.suffixes()[1:].tolist(), strict=True):
        assert found[suffix] == next(sequence[i:] for i in range(1, len(sequence) + 1) if sequence[i:] in found)


def test_a_trie_too_large_for_a_table_goes_without() -> None:
    trie, _ = Trie.of([(0, 1), (5, 6)], 2**21)
    trie.tabulate()
    assert trie.table is None and trie.find(np.array([0]), np.array([5])).tolist() == [2]
