"""Decode parts of several rANS streams at once: the steps of all are one step of more lanes.

In: decoders, and the table indexes of each one's next part.  Out: the symbols of each.  Knows what `rans` knows.

A step costs what calling numpy costs, so eight streams of 64 lanes take little longer than one.  Streams need not be of
one length: those that are done drop out.  Words are dealt out stream by stream, in the order of lanes, as one decoder
alone takes them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ditic_stream.errors import FormatError
from ditic_stream.rans import PRECISION, TOTAL, Decoder, Tables

Keys = NDArray[np.int64]


def pull_together(decoders: Sequence[Decoder], indexes: Sequence[ArrayLike]) -> list[NDArray[np.int32]]:
    """The next part of each decoder, as its `pull` gives it.  All use the same tables.

    FormatError when a stream ends early, without saying which: the decoders are of no use then.
    """
    found: dict[int, NDArray[np.int32]] = {}
    by_lanes: dict[int, list[int]] = {}
    for place, decoder in enumerate(decoders):
        by_lanes.setdefault(decoder.lanes, []).append(place)
    for places in by_lanes.values():
        if len(places) == 1:
            found[places[0]] = decoders[places[0]].pull(indexes[places[0]])
            continue
        tables = decoders[places[0]].tables
        chosen = [tables.checked(indexes[place]) for place in places]
        order = sorted(range(len(places)), key=lambda at: -chosen[at].size)
        some = [decoders[places[at]] for at in order]
        keys = _steps(some, tables, [chosen[at] for at in order])
        for at, decoder, own in zip(order, some, keys, strict=True):
            found[places[at]] = decoder.symbols(chosen[at], own)
    return [found[place] for place in range(len(decoders))]


def _steps(decoders: list[Decoder], tables: Tables, chosen: list[Keys]) -> list[Keys]:
    """Step through one part of decoders that have as many lanes, the longest first; their keys, with slots added."""
    lanes, count = decoders[0].lanes, len(decoders)
    sizes = [one.size for one in chosen]
    keys = np.zeros((-(-sizes[0] // lanes), count, lanes), np.int64)
    ragged: dict[int, list[tuple[int, int]]] = {}
    for place, one in enumerate(chosen):
        whole, rest = divmod(one.size, lanes)
        keys[:whole, place] = one[: whole * lanes].reshape(whole, lanes) << PRECISION
        if rest:
            keys[whole, place, :rest] = one[whole * lanes :] << PRECISION
            ragged.setdefault(whole, []).append((place, rest))
    live = np.array([(np.array(sizes) > step * lanes).sum() for step in range(len(keys))], np.intp)
    state = np.stack([decoder.state for decoder in decoders])
    words = np.concatenate([*(decoder.words for decoder in decoders), np.zeros(1, np.uint32)])  # so that there is one
    ends = np.cumsum([decoder.words.size for decoder in decoders])
    at = np.array([decoder.at for decoder in decoders]) + ends - [decoder.words.size for decoder in decoders]
    begins = at - [decoder.at for decoder in decoders]
    _run(keys, live, ragged, state, words, at, tables.slots)
    if bool((at > ends).any()):
        raise FormatError("the words of a stream end before its part does")
    for decoder, own, place in zip(decoders, state, (at - begins).tolist(), strict=True):
        decoder.state, decoder.at = own, place
    return [keys[:, place].reshape(-1)[:size] for place, size in enumerate(sizes)]


def _run(
    keys: Keys,
    live: NDArray[np.intp],
    ragged: dict[int, list[tuple[int, int]]],
    state: NDArray[np.uint32],
    words: NDArray[np.uint32],
    at: NDArray[np.int64],
    slots: NDArray[np.uint32],
) -> None:
    """Step through `keys` (steps, streams, lanes); state (streams, lanes) and places in `words` follow in place."""
    sixteen, mask, bottom = np.uint32(PRECISION), np.uint32(TOTAL - 1), np.uint32(TOTAL)
    high, found, offset = (np.empty_like(state) for _ in range(3))
    empty = np.empty(state.shape, bool)
    halves = state.reshape(-1).view(np.uint16)
    low = (halves[::2] if np.little_endian else halves[1::2]).reshape(state.shape)
    flat, counted = state.reshape(-1), np.arange(state.size)
    now = -1
    for step, streams in enumerate(live.tolist()):
        if streams != now:  # a stream is done
            now = streams
            x, lo, h, f, o, e = (array[:streams] for array in (state, low, high, found, offset, empty))
            places = at[:streams]
        key = keys[step, :streams]
        kept = [(place, rest, state[place, rest:].copy()) for place, rest in ragged.get(step, ())]
        # x' = count * (x div 2^16) + x mod 2^16 - start, as in Decoder
        np.add(key, lo, key)
        slots.take(key, None, f, "clip")
        np.bitwise_and(f, mask, o)
        np.right_shift(f, sixteen, f)
        np.right_shift(x, sixteen, h)
        np.multiply(f, h, x)
        np.add(x, o, x)
        np.less(x, bottom, e)
        for place, rest, old in kept:  # lanes that have no symbol in this step
            state[place, rest:] = old
            empty[place, rest:] = False
        needy = np.flatnonzero(e)
        if needy.size:
            needs = np.add.reduce(e, 1, np.int64)
            following = (places - np.add.accumulate(needs) + needs).repeat(needs)
            following += counted[: needy.size]
            flat[needy] = (flat[needy] << sixteen) | words.take(following, None, None, "clip")
            places += needs
