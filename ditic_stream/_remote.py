"""Archives and scenes that lie elsewhere, read by ranges: few requests, at once, each byte once.

In: a Uri.  Out: a RemoteStore (a Store: the objects of an archive) or a RemoteFile (a Readable: one zip or picture).
Knows which bytes are at hand and which to ask for together; knows nothing of shards or directories.

    fetch(ranges) --> those not at hand --> coalesced --> one round of requests beside one another --> blocks in memory
                  \\-> those that another thread has asked for just now: waited for
    get, read_at  --> from a block, else by a request of its own

An object that is rewritten while it is read is found out by its ETag (ChangedError); one that has none, by its size.
"""

from __future__ import annotations

import re
import threading
from bisect import bisect_right, insort
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

from ditic_stream._cloud import Bucket, ChangedError, Piece
from ditic_stream._files import Range
from ditic_stream._paths import Uri
from ditic_stream._store import OBJECT, NamedRange
from ditic_stream.errors import ConfigError, FormatError, SourceError

Wanted = tuple[int, int | None]
"""Offset and length; an offset below zero counts from the end, no length means to the end."""
KEPT_BYTES = 2**26
"""Bytes kept of one archive or picture, 64 MB."""
TOGETHER = 16
"""Requests under way beside one another."""
NEAR = 512
"""Bytes between two ranges that cost less than a request."""
RUNS, WASTE = 3, 1.0
"""Ranges of one object that are asked for alone at most, where coalescing them wastes no more than this part of what is
wanted: with its index, the records around a window of 512 pixels then come in four requests."""
ETAG = re.compile(r"[!#-~]{1,1024}")
"""What an ETag that a manifest keeps looks like, without its quotes."""
WASTE_AT_MOST = 2.0
"""The same where a number of requests is asked for."""
LARGEST = 2**24
"""Bytes of one request; longer ranges are taken apart."""
AHEAD, AMONG = 2**16, 2**15
"""Bytes of a picture that are read at least, where single values are asked for, since directories lie close together;
and bytes between two ranges of it that are read along, since what lies there belongs to a neighbour that comes soon."""


def coalesced(ranges: Iterable[Range], *, alone: bool, near: int = NEAR) -> list[Range]:
    """The ranges to ask for so as to have all of `ranges`, in order: neighbours joined, long ones taken apart.

    alone: nothing else is asked for at the same time; then there are at most RUNS of them, if WASTE allows.
    near: bytes between two ranges that are read rather than asked about.
    """
    return coalesced_groups([ranges], RUNS if alone else None, WASTE, near)[0]


def coalesced_groups(
    groups: Iterable[Iterable[Range]], most: int | None, waste: float, near: int = NEAR
) -> list[list[Range]]:
    """The same for ranges of several objects; most: how many there are in all at most, if `waste` allows."""
    runs: list[list[list[int]]] = []
    for ranges in groups:
        own: list[list[int]] = []
        for start, length in sorted(ranges):
            if own and start <= own[-1][1] + near:
                own[-1][1] = max(own[-1][1], start + length)
            else:
                own.append([start, start + length])
        runs.append(own)
    spare = waste * sum(end - start for own in runs for start, end in own)
    while most is not None and sum(map(len, runs)) > most:
        gaps = [
            (own[place + 1][0] - own[place][1], group, place)
            for group, own in enumerate(runs)
            for place in range(len(own) - 1)
        ]
        if not gaps:
            break
        gap, group, place = min(gaps)
        spare -= gap
        if spare < 0:
            break
        own = runs[group]
        own[place : place + 2] = [[own[place][0], own[place + 1][1]]]
    return [[(at, min(LARGEST, end - at)) for start, end in own for at in range(start, end, LARGEST)] for own in runs]


class Blocks:
    """Bytes of objects that were read, by place; the least recently used go when they are too many.  Thread-safe."""

    def __init__(self, limit: int = KEPT_BYTES) -> None:
        self._limit, self._bytes = limit, 0
        self._held: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._starts: dict[str, list[int]] = {}
        self._lock = threading.Lock()

    def find(self, name: str, start: int, length: int) -> bytes | None:
        """The bytes, if one block has them all."""
        with self._lock:
            starts = self._starts.get(name, [])
            place = bisect_right(starts, start)
            for first in reversed(starts[max(place - 8, 0) : place]):  # blocks seldom overlap
                block = self._held[name, first]
                if start + length <= first + len(block):
                    self._held.move_to_end((name, first))
                    return block[start - first : start - first + length]
            return None

    def add(self, name: str, start: int, data: bytes) -> None:
        with self._lock:
            old = self._held.pop((name, start), None)
            if old is None:
                insort(self._starts.setdefault(name, []), start)
            elif len(old) > len(data):
                data = old
            self._bytes += len(data) - len(old or b"")
            self._held[name, start] = data
            while self._bytes > self._limit and len(self._held) > 1:
                (gone, first), block = self._held.popitem(last=False)
                self._starts[gone].remove(first)
                self._bytes -= len(block)

    def clear(self) -> None:
        with self._lock:
            self._held.clear()
            self._starts.clear()
            self._bytes = 0


class _Remote:
    """What both have: a bucket, blocks at hand, and what is known of each object."""

    def __init__(self, uri: Uri) -> None:
        self.uri = uri
        self.bucket = Bucket(uri)
        self._blocks = Blocks()
        self._known: dict[str, Piece] = {}
        """Size and ETag of objects that were seen, without bytes."""
        self._near = NEAR
        self._absent: set[str] = set()
        """Objects that were not there when they were asked for: they stay so until the archive is opened again."""
        self._flights: dict[NamedRange, Future[None]] = {}
        """Ranges that were asked for and have not come."""
        self._pool: ThreadPoolExecutor | None = None
        self._closed = False
        self._lock = threading.Lock()

    def close(self) -> None:
        """Let go of what is held; a second call does nothing.  Who waits for a range gets ConfigError."""
        self._blocks.clear()
        with self._lock:
            self._closed = True
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)

    def bring(self, groups: Iterable[tuple[str, Sequence[Wanted]]], most: int | None = None) -> None:
        """Ask for ranges, given in groups of one object each, that are not at hand, beside one another; wait for those
        that others have asked for.  Objects that are not there or are too short are left to who reads."""
        others: list[Future[None]] = []
        with self._lock:  # a range is at hand, or under way, or this call's to ask for
            own = dict.fromkeys(self.missing(groups, others, most))
            flights = {one: Future[None]() for one in own}
            if flights and self._closed:
                raise self._gone()
            self._flights |= flights
            if len(flights) > 1 and self._pool is None:
                self._pool = ThreadPoolExecutor(TOGETHER, thread_name_prefix="ditic-remote")
            pool = self._pool
        for one, flight in flights.items():
            if len(flights) > 1 and pool is not None:
                self._send(pool, one, flight)
            else:
                self._fly(one, flight)
        for flight in flights.values():
            flight.result()
        for flight in others:
            error = flight.exception()
            if isinstance(error, Exception):  # and no interrupt, which was another's
                raise error

    def _send(self, pool: ThreadPoolExecutor, one: NamedRange, flight: Future[None]) -> None:
        try:
            task = pool.submit(self._fly, one, flight)
        except RuntimeError:  # closed a moment ago
            self._land(one, flight, self._gone())
        else:
            task.add_done_callback(lambda task: self._land(one, flight, self._gone()) if task.cancelled() else None)

    def _fly(self, one: NamedRange, flight: Future[None]) -> None:
        try:
            with suppress(FormatError):  # it ends before; who reads it says so
                self.ask(*one)
        except BaseException as error:
            self._land(one, flight, error)
        else:
            self._land(one, flight)

    def _land(self, one: NamedRange, flight: Future[None], error: BaseException | None = None) -> None:
        with self._lock:
            self._flights.pop(one, None)
        if error is None:
            flight.set_result(None)
        else:
            flight.set_exception(error)

    def _gone(self) -> ConfigError:
        return ConfigError(f"{self.uri} is closed; open it again to read")

    def _under_way(self, name: str, start: int, length: int | None) -> Future[None] | None:
        """The request of another that brings this range, or one around it."""
        found = self._flights.get((name, start, length))
        if found is None and length is not None and start >= 0:
            for (other, first, count), flight in self._flights.items():
                if other == name and count is not None and 0 <= first <= start and start + length <= first + count:
                    return flight
        return found

    def ask(self, name: str, start: int, length: int | None) -> bytes | None:
        """One request; its bytes are kept, unless they are too many.  None when there is no such object.

        length: None is to the end; nothing comes where that is too far.
        """
        known = self._known.get(name)
        most = KEPT_BYTES // 2 if length is None else None
        piece = self.bucket.get(name, start, length, known.etag if known else None, most)
        if piece is None:
            self._absent.add(name)
            return None
        self._absent.discard(name)
        self._meet(name, piece)
        data = piece.data
        if 0 < len(data) <= KEPT_BYTES // 2:
            self._blocks.add(name, start if start >= 0 else piece.size - len(data), data)
        return data

    def _meet(self, name: str, piece: Piece) -> None:
        """Hold what a server says of an object against what it said before."""
        known = self._known.setdefault(name, piece._replace(data=b""))
        if (known.size, known.etag) != (piece.size, piece.etag):
            raise ChangedError(f"{self.uri} changed while it was being read; run the same command again")

    def missing(
        self, groups: Iterable[tuple[str, Sequence[Wanted]]], others: list[Future[None]], most: int | None = None
    ) -> Iterator[NamedRange]:
        """What of the ranges is neither at hand nor, then it goes to `others`, under way: coalesced within a group."""
        left: list[tuple[str, list[Range]]] = []
        for name, ranges in groups:
            if name in self._absent:
                continue
            known, spans = self._known.get(name), list[Range]()
            for start, length in ranges:
                if known is None and (start < 0 or length is None):
                    flight = self._under_way(name, start, length)
                    if flight is None:
                        yield name, start, length
                    else:
                        others.append(flight)
                    continue
                if known is not None:
                    start = max(known.size + start, 0) if start < 0 else start
                    length = known.size - start if length is None else min(length, known.size - start)
                assert length is not None
                if length > 0 and self._blocks.find(name, start, length) is None:
                    flight = self._under_way(name, start, length)
                    if flight is None:
                        spans.append((start, length))
                    else:
                        others.append(flight)
            if spans:
                left.append((name, spans))
        waste = WASTE_AT_MOST
        if most is None and len(left) == 1:
            most, waste = RUNS, WASTE
        runs = coalesced_groups((spans for _, spans in left), most, waste, self._near)
        for (name, _), own in zip(left, runs, strict=True):
            for start, length in own:
                yield name, start, length

    def cut(self, name: str, start: int, length: int) -> bytes:
        """`length` bytes of an object, from the blocks or else by a request.  KeyError when there is no such object,
        FormatError when it is shorter."""
        data = self._blocks.find(name, start, length)
        if data is None and name not in self._absent:
            known = self._known.get(name)
            data = self.ask(name, start, length) if known is None or start + length <= known.size else b""
        if data is None:
            raise KeyError(name)
        if len(data) != length:
            raise FormatError(
                f"{name or self.uri} has {self._known[name].size} bytes, {start + length} are needed: it is cut short"
            )
        return data


class RemoteStore(_Remote):
    """A Store: the objects below a URI.

    Plain HTTP cannot list what is there: `promise` then says which objects belong to the archive.
    """

    def __init__(self, uri: Uri) -> None:
        super().__init__(uri)
        self._promised: Iterable[str] = ()
        self._listed: dict[str, int] | None = None

    def promise(self, names: Iterable[str]) -> None:
        """The objects an archive has when it is whole."""
        self._promised = names

    def size(self, name: str) -> int | None:
        known = self._known.get(name)
        if known is not None:
            return known.size
        if self._listed is not None:
            return self._listed.get(name)
        if name in self._absent:
            return None
        found = self.bucket.head(name)
        if found is not None:
            self._known.setdefault(name, found)
        return found.size if found else None

    def get(self, name: str, start: int, length: int) -> bytes:
        return self.cut(name, start, length) if length else b""

    def fetch(self, ranges: Iterable[NamedRange], most: int | None = None) -> None:
        groups: dict[str, list[Wanted]] = {}
        for name, start, length in ranges:
            groups.setdefault(name, []).append((start, length))
        self.bring(groups.items(), most)

    def names(self) -> Iterator[str]:
        """By one listing where there is one, by asking for each promised object otherwise."""
        if self._listed is None:
            if self.uri.is_web:
                names = list(self._promised)
                with ThreadPoolExecutor(TOGETHER) as pool:
                    sizes = list(pool.map(self.size, names))
                self._listed = {name: size for name, size in zip(names, sizes, strict=True) if size is not None}
            else:
                self._listed = {name: size for name, size in self.bucket.sizes().items() if OBJECT.fullmatch(name)}
        return iter(sorted(self._listed))


class RemoteFile(_Remote):
    """A Readable: the one object a URI names.  `etag`: its strong ETag without quotes, None when it has none.

    `size` is known, and its first bytes are at hand, from the one request that opening costs.
    head: how many; below zero, the last ones instead.
    Raises SourceError when there is none; FormatError when it is empty.
    """

    far = True

    def __init__(self, uri: Uri, head: int = AHEAD) -> None:
        super().__init__(uri)
        if self.ask("", min(head, 0), abs(head)) is None:
            raise SourceError(f"{uri} does not exist; name a file that does")
        self.size = self._known[""].size
        tag = (self._known[""].etag or "").removeprefix('"').removesuffix('"')
        self.etag = tag if ETAG.fullmatch(tag) else None
        self._ahead, self._near = AHEAD, AMONG

    def read_at(self, offset: int, size: int) -> bytes:
        size = min(size, self.size - offset)
        if size <= 0 or offset < 0:
            return b""
        data = self._blocks.find("", offset, size)
        if data is not None:
            return data
        if size < self._ahead:
            found = self.ask("", offset, min(self._ahead, self.size - offset)) or b""
            return found[:size]
        return self.cut("", offset, size)

    def exactly(self) -> None:
        """From here on read what is asked for and no more."""
        self._ahead, self._near = 0, NEAR

    def fetch(self, *groups: Iterable[Range], most: int | None = None) -> None:
        inside = [("", [one for one in group if 0 <= one[0] < self.size]) for group in groups]
        self.bring(inside, most)


def exists(uris: Sequence[Uri]) -> list[Uri]:
    """Those of the URIs that name an object, asked for beside one another.  What may not be looked at is not there."""

    def there(uri: Uri) -> bool:
        try:
            return Bucket(uri).head("") is not None
        except SourceError:
            return False

    with ThreadPoolExecutor(len(uris) or 1) as pool:
        return [uri for uri, found in zip(uris, pool.map(there, uris), strict=True) if found]
