"""The door to obstore: objects on other machines, by HTTP, S3 and the stores it knows besides.

In: a Uri.  Out: a Bucket, which gets ranges of objects, puts whole objects, lists and removes them.
Knows requests, retries and how to say what failed without giving a credential away; knows nothing of archives.

Why obstore and not fsspec: a range costs one request (fsspec's S3 asks for the size first), its answers bring the size
and the ETag of the object along, which makes suffix ranges and guarded reads possible; connections are kept, it waits
without holding Python up, and it retries with back-off, in the middle of a body, too, from where that broke off.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Iterable
from datetime import timedelta
from typing import Any, NamedTuple, NoReturn

from ditic_stream._paths import Uri
from ditic_stream.errors import ConfigError, DiticError, FormatError, SourceError, StorageError

RETRIES, RETRY_SECONDS = 6, 60
"""Times a request is sent again, and the seconds after which none is, where a server is busy or does not answer."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds between them, growing."""
BODIES = 4
"""Times a body is asked for that breaks off without an ETag, so that it cannot be gone on with."""
CONNECT_SECONDS, REQUEST_SECONDS = 10, 120
CHUNK = 2**20
"""Bytes of a body taken at a time."""
PART, PARTS = 2**24, 4
"""Bytes of a part of a stream, of which S3 takes 10 000, and parts under way at once."""
WEAK = "W/"


class Piece(NamedTuple):
    """Bytes of an object, and what its server said of it."""

    data: bytes
    size: int
    """Of the whole object."""
    etag: str | None
    """Its strong ETag with the quotes, None when it has none."""


class ChangedError(SourceError):
    """The object is not the one that was read before."""


class Bucket:
    """The objects below a URI by their names, and the one it names itself by "".  Safe in several threads."""

    def __init__(self, uri: Uri) -> None:
        self.uri = uri
        self._obstore = _obstore()
        self._suffixes = True
        try:
            self._store: Any = self._obstore.store.from_url(uri.full, **_options(uri))
        except Exception as error:  # its own classes, ValueError and more; none says what to do
            raise SourceError(
                f"{uri}: {_words(error)}; places are read by https://, s3://, gs:// and az://, and by path"
            ) from error

    def get(
        self, name: str, start: int, length: int | None, etag: str | None = None, most: int | None = None
    ) -> Piece | None:
        """`length` bytes from `start`; to the end where it is None, the last -start bytes where start is negative.
        None when there is no such object.

        Fewer come only where the object ends; none where they would be more than `most`.  etag: fail with ChangedError
        unless the object still has this one.
        Raises FormatError when it ends before `start`; SourceError when it cannot be had.
        """
        if start < 0 and not self._suffixes:
            found = self.head(name)
            if found is None:
                return None
            start, length = max(found.size + start, 0), None if length is None else min(length, found.size)
        options: dict[str, Any] = {"range": _range(start, length)}
        if etag is not None:
            options["if_match"] = etag
        for attempt in range(BODIES):
            try:
                result = self._obstore.get(self._store, name, options=options)
            except FileNotFoundError as error:
                if _lacks_bucket(error):
                    self._fail(name, error)
                return None
            except Exception as error:
                if start < 0 and _refuses_suffix(error):  # whether or not another thread has found out meanwhile
                    self._suffixes = False
                    return self.get(name, start, length, etag, most)
                self._fail(name, error)
            piece = Piece(b"", result.meta["size"], _strong(result.meta["e_tag"]))
            if etag is not None and piece.etag != etag:
                raise ChangedError(self._changed(name))
            promised = result.range[1] - result.range[0]
            if most is not None and promised > most:
                return piece
            data = bytearray()
            try:
                for some in result.stream(min_chunk_size=CHUNK):
                    data += some
                    if len(data) > promised:  # a body need not end
                        break
            except Exception as error:
                if attempt + 1 == BODIES:
                    self._fail(name, error)
                time.sleep(_pause(attempt))
                continue
            if len(data) != promised:
                raise SourceError(
                    f"{self._named(name)}: the server sent {'more' if len(data) > promised else 'less'} than the "
                    f"{promised} bytes it said it would; it may compress what it sends: turn that off for archives, or "
                    "copy it here first"
                )
            return piece._replace(data=bytes(data))
        raise AssertionError("the last attempt returns or raises")

    def head(self, name: str) -> Piece | None:
        """Size and ETag of an object, without its bytes; None when there is none."""
        try:
            found = self._obstore.head(self._store, name)
        except FileNotFoundError:
            return None
        except Exception as error:
            self._fail(name, error)
        return Piece(b"", found["size"], _strong(found["e_tag"]))

    def sizes(self) -> dict[str, int]:
        """The bytes of every object below the URI, by name.  SourceError where nothing can be listed."""
        try:
            return {one["path"]: one["size"] for some in self._obstore.list(self._store) for one in some}
        except Exception as error:
            self._fail("", error)

    def put(self, name: str, data: bytes, *, fresh: bool = False) -> bool:
        """Write an object, whole or not at all.

        fresh: only where there is none yet; False says that there was one.  StorageError when it cannot be written.
        """
        try:
            if fresh:
                self._obstore.put(self._store, name, data, mode="create")
            else:
                self._obstore.put(self._store, name, data)
        except self._obstore.exceptions.AlreadyExistsError:
            return False
        except Exception as error:
            raise self._unwritten(name, error) from error
        return True

    def stream(self, name: str, pieces: Iterable[bytes]) -> int:
        """Write an object in parts while its pieces come; it is there once the last one is, or not at all.

        Returns its bytes.  Of a stream that breaks off the store keeps the parts, under no name, as its rules say.
        """
        size = 0
        try:
            writer = self._obstore.open_writer(self._store, name, buffer_size=PART, max_concurrency=PARTS)
            for piece in pieces:
                writer.write(piece)
                size += len(piece)
            writer.close()
        except DiticError:
            raise  # of what the pieces are read from
        except Exception as error:
            raise self._unwritten(name, error) from error
        return size

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects; those that are not there are no error."""
        try:
            self._obstore.delete(self._store, list(names))
        except FileNotFoundError:
            pass
        except Exception as error:
            raise StorageError(f"cannot remove objects of {self.uri} ({_words(error)})") from error

    def _unwritten(self, name: str, error: Exception) -> StorageError:
        if _lacks_bucket(error):
            return StorageError(f"cannot write {self._named(name)}: there is no bucket of that name; make it first")
        return StorageError(
            f"cannot write {self._named(name)} ({_words(error)}); check the bucket and the credentials, then run the "
            "same command again"
        )

    def _named(self, name: str) -> str:
        return f"{self.uri}/{name}" if name else str(self.uri)

    def _changed(self, name: str) -> str:
        return f"{self._named(name)} changed while it was being read; run the same command again"

    def _fail(self, name: str, error: Exception) -> NoReturn:
        """Say in our words what obstore says."""
        kinds, place = self._obstore.exceptions, self._named(name)
        status = _status(error)
        if _lacks_bucket(error):
            raise SourceError(
                f"{place}: there is no bucket of that name; check it, and AWS_REGION and AWS_ENDPOINT_URL for S3"
            ) from error
        if isinstance(error, kinds.NotSupportedError):
            raise SourceError(
                f"{place}: the server ignores range requests and would send all of it each time; serve it by one that "
                "answers them (nginx, caddy, an object store), or copy it here first"
            ) from error
        if isinstance(error, kinds.PreconditionError):
            raise ChangedError(self._changed(name)) from error
        if isinstance(error, kinds.PermissionDeniedError | kinds.UnauthenticatedError):
            raise SourceError(f"{place}: access is denied; check the credentials, docs/remote.md names them") from error
        if status == 416:
            raise FormatError(f"{place} is shorter than what is asked of it: it is cut short") from error
        advice = "try again later" if status is None or status >= 429 else "check the address, and AWS_REGION for S3"
        raise SourceError(f"{place} cannot be read: {_words(error)}; {advice}") from error


def _obstore() -> Any:
    try:
        import obstore
        import obstore.exceptions
        import obstore.store
    except ImportError:
        raise ConfigError(
            "URIs need obstore; install it with pip install 'ditic-stream[cloud]', or name a local path"
        ) from None
    return obstore


def _options(uri: Uri) -> dict[str, Any]:
    """What obstore is told besides what it takes from the environment by itself."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "") if uri.scheme in ("s3", "s3a") else uri.full
    client: dict[str, Any] = {
        "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
        "timeout": timedelta(seconds=REQUEST_SECONDS),
        "allow_http": endpoint.startswith("http:"),
    }
    retry = {
        "max_retries": RETRIES,
        "retry_timeout": timedelta(seconds=RETRY_SECONDS),
        "backoff": {
            "init_backoff": timedelta(seconds=FIRST_PAUSE),
            "max_backoff": timedelta(seconds=LONGEST_PAUSE),
            "base": 2,
        },
    }
    options: dict[str, Any] = {"client_options": client, "retry_config": retry}
    if uri.scheme in ("s3", "s3a") and os.environ.get("AWS_NO_SIGN_REQUEST", "").lower() in ("1", "yes", "true"):
        options["skip_signature"] = True
    return options


def _range(start: int, length: int | None) -> Any:
    if start < 0:
        return {"suffix": -start}
    return {"offset": start} if length is None else (start, start + length)


def _strong(etag: str | None) -> str | None:
    """A weak ETag says that two objects mean the same, not that they are: it guards nothing."""
    return None if etag is None or etag.startswith(WEAK) else etag


def _status(error: Exception) -> int | None:
    found = re.search(r"status code: (\d{3})", str(error))
    return int(found[1]) if found else None


def _lacks_bucket(error: Exception) -> bool:
    """True where it is the bucket that is not there, by the codes of S3, GCS and Azure."""
    return re.search(r"NoSuchBucket|The specified bucket does not exist|ContainerNotFound", str(error)) is not None


def _refuses_suffix(error: Exception) -> bool:
    """True of a server, or a store, that knows ranges but not those that count from the end."""
    return _status(error) in (400, 405, 501) or "suffix" in str(error).partition("\n")[0].lower()


def _words(error: Exception) -> str:
    """The last clause of obstore's first line, without addresses: these may carry credentials."""
    line = str(error).strip().partition("\n")[0].rpartition(" - ")[2]
    return re.sub(r"[a-z0-9+.-]+://\S+", "...", line.partition(": <")[0])[:200].rstrip(": ") or type(error).__name__


def _pause(attempt: int) -> float:
    """Seconds before the next attempt: twice as long each time, a little different for each who waits."""
    return float(min(FIRST_PAUSE * 2**attempt, LONGEST_PAUSE) * random.uniform(0.5, 1))
