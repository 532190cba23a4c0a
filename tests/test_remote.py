"""Archives over HTTP and S3: how many requests, how many bytes, and what happens when a server misbehaves.

The servers are real ones on loopback (servers.py); `delay` makes requests that follow one another told from those that
run beside one another.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from _repeat import repeat
from hypothesis import given
from hypothesis import strategies as st
from pictures import landscape, write_scene
from servers import Folder, object_store, serving

import ditic_stream
from ditic_stream import Window, _cloud, cli
from ditic_stream._paths import place_of
from ditic_stream._remote import Blocks, RemoteFile, coalesced
from ditic_stream._rendering import tiles_read
from ditic_stream.archive import Archive, open_archive, pack_zip
from ditic_stream.blend import windows_of
from ditic_stream.errors import ConfigError, MissingTileError, SourceError
from ditic_stream.geometry import TileKey
from ditic_stream.verify import verify

WAYS = ["wide.ditic", "wide.ditic.zip"]
"""An archive as a folder and as a zip."""
PLAIN = ["plain.ditic", "plain.ditic.zip"]
MASKED = ["masked.ditic", "masked.ditic.zip"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with archives: `wide`, 25 x 25 tiles of 256 pixels in shards of 8; `giga`, 32 x 32 of 1024 pixels, a
    gigapixel at an ordinary rate (the less a tile takes, the more opening counts); `masked`, like `wide` with a mask;
    each also as a zip.  `plain` is `wide` in format 1, which says no sizes."""
    folder = tmp_path_factory.mktemp("site")
    masked = np.where(np.indices((512, 512)).sum(0)[..., None] < 300, 0, landscape(512, 512))
    for name, picture, tile, side, quality in (
        ("wide", landscape(512, 512), 256, 25, 50),
        ("masked", masked.astype(np.uint8), 256, 25, 50),
        ("giga", landscape(1024, 1024), 1024, 32, 90),
    ):
        scene = write_scene(folder / f"{name}.tif", picture, 0 if name == "masked" else None)
        ditic_stream.compress(scene, folder / "small.ditic", model="tiny", tile=tile, quality=quality, workers=1)
        repeat(folder / "small.ditic", folder / f"{name}.ditic", rows=side, cols=side)
        pack_zip(folder / f"{name}.ditic", folder / f"{name}.ditic.zip")
        shutil.rmtree(folder / "small.ditic")
        if name == "wide":
            ditic_stream.compress(scene, folder / "small.ditic", model="tiny", tile=tile, quality=1, workers=1)
            repeat(folder / "small.ditic", folder / "plain.ditic", rows=side, cols=side, number=1)
            pack_zip(folder / "plain.ditic", folder / "plain.ditic.zip")
            shutil.rmtree(folder / "small.ditic")
    return folder


@pytest.fixture
def server(site: Path) -> Iterator[Folder]:
    with serving(site) as folder:
        yield folder


def shards_of(archive: Archive, window: Window) -> set[TileKey]:
    rows, cols = tiles_read(archive.grid, *windows_of(archive.grid, window))
    return {archive.grid.shard_of(TileKey(row, col)) for row in rows for col in cols}


def bring(archive: Archive, window: Window) -> None:
    """Fetch what decoding `window` takes, as a scene does for up to 16 windows."""
    tile = archive.grid.config.tile
    rows, cols = tiles_read(archive.grid, *windows_of(archive.grid, window))
    inside = [range(first // tile, (end - 1) // tile + 1) for first, end in
              ((window.row, window.row_end), (window.col, window.col_end))]  # fmt: skip
    archive.fetch(
        [TileKey(row, col) for row in rows for col in cols],
        masks=[TileKey(row, col) for row in inside[0] for col in inside[1]],
    )


def read_all(archive: Archive, window: Window) -> None:
    """Take every record and mask that decoding `window` takes."""
    rows, cols = tiles_read(archive.grid, *windows_of(archive.grid, window))
    for row in rows:
        for col in cols:
            archive.record(TileKey(row, col))
    archive.mask(window)


def somewhere(archive: Archive, seed: int, side: int = 512) -> list[Window]:
    """Windows in many places, the corners among them."""
    chance, limit = random.Random(seed), archive.grid.height - side
    places = [(0, 0), (limit, limit), *((chance.randrange(limit), chance.randrange(limit)) for _ in range(30))]
    return [Window(row=row, col=col, height=side, width=side) for row, col in places]


@pytest.mark.parametrize("name", WAYS)
def test_a_region_over_http_is_the_region_here(site, server, name):
    inside, across = Window(row=800, col=900, height=200, width=150), Window(row=2000, col=1980, height=100, width=150)
    server.delay = 0.25
    with ditic_stream.open(f"{server.url}/{name}") as far, ditic_stream.open(site / name) as near:
        assert (far.shape, far.dtype, far.crs, far.transform) == (near.shape, near.dtype, near.crs, near.transform)
        for window in (inside, across):
            server.clear()
            np.testing.assert_array_equal(far.read(window), near.read(window))
            assert len(server.requests) <= 4 if window is inside else server.rounds() <= 3
        server.clear()
        far.read(across)
        assert not server.requests, "what was read is kept"


@pytest.mark.parametrize("name", [*WAYS, *PLAIN, *MASKED])
def test_opening_takes_at_most_two_requests(server, name):
    with open_archive(f"{server.url}/{name}"):
        assert len(server.requests) <= 2
        assert server.sent < 20_000


@pytest.mark.parametrize("name", [*WAYS, *PLAIN, *MASKED])
def test_a_cold_region_in_one_shard_takes_four_requests_and_elsewhere_few_rounds(server, name):
    with open_archive(f"{server.url}/{name}") as archive:
        windows = somewhere(archive, 1)
    alone = apart = 0
    for window in windows:
        with open_archive(f"{server.url}/{name}") as archive:
            server.clear()
            within = len(shards_of(archive, window)) == 1
            apart += not within
            if not within and apart > 4:
                continue  # waiting is what this test mostly does
            server.delay = 0.0 if within else 0.25
            bring(archive, window)
            asked = len(server.requests)
            read_all(archive, window)
            assert len(server.requests) == asked, "all that is needed was brought"
            assert asked <= 4 if within else server.rounds() <= 3, [(one.name, one.at) for one in server.requests]
            alone += within
            server.delay = 0.0
    assert alone > 5


@pytest.mark.parametrize("name", ["giga.ditic", "giga.ditic.zip"])
def test_a_region_reads_less_than_two_parts_in_a_hundred_and_one_window_less_than_one(site, server, name):
    whole = sum(path.stat().st_size for path in [site / name, *(site / name).rglob("*")] if path.is_file())
    with open_archive(f"{server.url}/{name}") as archive:
        middles = (Window(row=at, col=at, height=512, width=512) for at in (1280, 2304, 3840))
        windows = [*somewhere(archive, 2), *middles]
    single = 0
    for window in windows:
        server.clear()
        with open_archive(f"{server.url}/{name}") as archive:
            bring(archive, window)
            rows, cols = windows_of(archive.grid, window)
        part = server.sent / whole
        single += len(rows) * len(cols) == 1
        assert part < (0.01 if len(rows) * len(cols) == 1 else 0.02), (window, part)
    assert single > 3


@pytest.mark.parametrize("name", MASKED)
def test_masks_come_with_the_records_in_one_round_and_are_exact(site, server, name):
    window = Window(row=300, col=300, height=512, width=512)
    server.delay = 0.25
    with open_archive(f"{server.url}/{name}") as far, open_archive(site / name) as near:
        server.clear()
        bring(far, window)
        read_all(far, window)
        assert server.rounds() == 1
        assert len(server.requests) <= 4
        np.testing.assert_array_equal(far.mask(window), near.mask(window))
        np.testing.assert_array_equal(far.preview(), near.preview())


@pytest.mark.parametrize("name", WAYS)
def test_a_server_without_suffix_ranges_is_asked_for_sizes(site, server, name):
    server.suffixes = False
    window = Window(row=40, col=40, height=64, width=64)
    with open_archive(f"{server.url}/{name}") as far, open_archive(site / name) as near:
        bring(far, window)
        assert far.record(TileKey(0, 0)) == near.record(TileKey(0, 0))


def test_many_shards_of_a_server_without_suffix_ranges_are_read_at_once(tmp_path, site, server):
    window = Window(row=1900, col=1900, height=300, width=300)
    with ditic_stream.open(site / "wide.ditic") as near:
        want = near.read(window)
    server.suffixes, server.delay = False, 0.05
    for _ in range(3):  # the indexes of four shards are asked for beside one another, and all refused
        with ditic_stream.open(f"{server.url}/wide.ditic") as far:
            np.testing.assert_array_equal(far.read(window), want)


@pytest.mark.parametrize("name", WAYS)
def test_threads_that_want_the_same_bytes_ask_for_them_once(server, name):
    window = Window(row=1900, col=1900, height=300, width=300)
    with open_archive(f"{server.url}/{name}") as archive:
        server.clear()
        bring(archive, window)
        alone = len(server.requests)
    server.delay = 0.1
    with open_archive(f"{server.url}/{name}") as archive, ThreadPoolExecutor(8) as pool:
        server.clear()
        list(pool.map(lambda _: bring(archive, window), range(8)))
        assert len(server.requests) == alone


@pytest.mark.parametrize("name", WAYS)
def test_closing_ends_reads_from_afar_with_one_sentence_and_leaves_no_thread(server, name):
    def read_on(far, at):
        while True:
            far.read(Window(row=1900 + 10 * at, col=1900, height=10, width=300))
            (far.archive.store if name.endswith(".ditic") else far.archive.store._file)._blocks.clear()

    def read(far, at):
        with pytest.raises(ConfigError, match="is closed; open it again to read"):
            read_on(far, at)

    server.delay = 0.1
    for seconds in (0.05, 0.15, 0.3):
        far = ditic_stream.open(f"{server.url}/{name}", cache_bytes=0)
        with ThreadPoolExecutor(6) as pool:
            reads = [pool.submit(read, far, at) for at in range(6)]
            time.sleep(seconds)
            far.close()
            for one in reads:
                one.result(30)
        with pytest.raises(ConfigError, match="is closed"):
            far.archive.fetch([TileKey(0, 0)])
    server.delay = 0.0
    for _ in range(100):
        left = [one.name for one in threading.enumerate() if one.name.startswith("ditic-")]
        if not left:
            break
        time.sleep(0.05)  # requests under way when it was closed end by themselves
    assert not left


def test_dropped_connections_and_busy_answers_are_tried_again(site, server):
    window = Window(row=0, col=0, height=100, width=100)
    with ditic_stream.open(site / "wide.ditic") as near:
        want = near.read(window)
    for trouble, etags in (("drop", True), ("drop", False), ("busy", True)):
        server.etags = etags
        setattr(server, trouble, 3)
        with ditic_stream.open(f"{server.url}/wide.ditic") as far:
            np.testing.assert_array_equal(far.read(window), want)
        assert getattr(server, trouble) == 0


def test_a_server_that_stays_busy_is_given_up(server, monkeypatch):
    monkeypatch.setattr(_cloud, "RETRIES", 2)
    server.busy = 1000
    with pytest.raises(SourceError, match=r"wide.ditic/zarr.json cannot be read: .*503.*try again later"):
        open_archive(f"{server.url}/wide.ditic")
    assert len(server.requests) == 3


def test_a_server_that_ignores_ranges_is_named(site):
    # The one of Python's own library.
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    plain = ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=str(site)))
    thread = Thread(target=plain.serve_forever, args=(0.02,))
    thread.start()
    try:
        for name in WAYS:
            with pytest.raises(SourceError, match=r"ignores range requests.*copy it here first"):
                open_archive(f"http://127.0.0.1:{plain.server_port}/{name}")
    finally:
        plain.shutdown()
        plain.server_close()
        thread.join()


@pytest.mark.parametrize(
    ("garble", "word"),
    [(zlib.compress, "less|more"), (lambda data: data[:-1], "less"), (lambda data: 2 * data, "more")],
)
@pytest.mark.parametrize("name", WAYS)
def test_a_server_that_sends_another_length_than_it_says_is_named(server, name, garble, word):
    server.garble = garble
    with pytest.raises(SourceError, match=rf"the server sent ({word}) than the \d+ bytes it said"):
        open_archive(f"{server.url}/{name}")


@pytest.mark.parametrize("name", ["none.ditic", "none.ditic.zip", "wide.tif"])
def test_what_is_not_there_is_a_source_error_without_credentials(server, name):
    address = f"http://user:secret@{server.url[7:]}/{name}?signature=secret"
    with pytest.raises(SourceError) as raised:
        open_archive(address)
    assert name in str(raised.value) and "secret" not in str(raised.value)
    assert raised.value.kind == "source"


def test_signed_addresses_keep_their_signature_and_refusals_do_not_show_it(server, monkeypatch):
    server.token = "signature=a%2Fb"
    with open_archive(f"{server.url}/wide.ditic?signature=a%2Fb") as archive:
        archive.record(TileKey(0, 0))
        assert "signature" not in str(archive.path)
    with pytest.raises(SourceError, match="access is denied") as raised:
        open_archive(f"{server.url}/wide.ditic?signature=wrong")
    assert "wrong" not in str(raised.value)


@pytest.mark.parametrize("name", WAYS)
def test_an_archive_that_is_replaced_while_it_is_read_is_noticed(tmp_path, site, name):
    if (site / name).is_dir():
        shutil.copytree(site / name, tmp_path / name)
    else:
        shutil.copy(site / name, tmp_path / name)
    with serving(tmp_path) as server, open_archive(f"{server.url}/{name}") as archive:
        archive.record(TileKey(0, 0))
        changed = tmp_path / name if name.endswith("zip") else tmp_path / name / "records/c/0/0/0"
        data = bytearray(changed.read_bytes())
        data[-40] ^= 1
        changed.write_bytes(data)
        with pytest.raises(SourceError, match="changed while it was being read"):
            archive.record(TileKey(3, 3))


def test_a_lost_shard_over_http_is_a_missing_tile(tmp_path, site):
    shutil.copytree(site / "wide.ditic", tmp_path / "a.ditic")
    (tmp_path / "a.ditic/records/c/0/1/0").unlink()
    with serving(tmp_path) as server, open_archive(f"{server.url}/a.ditic") as archive:
        bring(archive, Window(row=0, col=1900, height=512, width=512))
        archive.record(TileKey(0, 7))
        asked = len(server.requests)
        with pytest.raises(MissingTileError, match="records/c/0/1/0 is missing"):
            archive.record(TileKey(0, 8))
        assert len(server.requests) == asked, "that it is missing is known"


@pytest.mark.parametrize("name", WAYS)
def test_info_and_verify_take_addresses(site, server, name, capsys):
    for arguments in (["info", "--json"], ["verify", "--json"]):
        with pytest.raises(SystemExit) as leaving:
            cli.main([arguments[0], f"{server.url}/{name}", *arguments[1:]])
        assert not leaving.value.code, capsys.readouterr().err
        there = json.loads(capsys.readouterr().out)
        with pytest.raises(SystemExit):
            cli.main([arguments[0], str(site / name), *arguments[1:]])
        assert there == json.loads(capsys.readouterr().out)


def test_verify_over_http_names_a_damaged_tile(tmp_path, site):
    shutil.copytree(site / "wide.ditic", tmp_path / "a.ditic")
    damaged = tmp_path / "a.ditic/records/c/0/0/0"
    data = bytearray(damaged.read_bytes())
    data[20] ^= 1
    damaged.write_bytes(data)
    with serving(tmp_path) as server:
        report = verify(f"{server.url}/a.ditic")
    assert report.damaged == (TileKey(0, 0),)


def test_an_archive_on_s3_reads_in_as_few_requests_as_over_http(site):
    window = Window(row=600, col=600, height=512, width=512)
    with object_store() as store:
        for name in WAYS:
            store.put(site / name, f"some where/{name}".replace(" ", "%20"))
            with open_archive(f"s3://bucket/some where/{name}") as far, open_archive(site / name) as near:
                assert len(store.requests) <= 2
                store.requests.clear()
                bring(far, window)
                asked = len(store.requests)
                assert 2 <= asked <= 4
                assert far.record(TileKey(3, 3)) == near.record(TileKey(3, 3))
                assert len(store.requests) == asked
        store.requests.clear()
        assert verify("s3://bucket/some where/wide.ditic").ok
        with pytest.raises(SourceError, match=r"s3://bucket/nothing\.ditic"):
            open_archive("s3://bucket/nothing.ditic")


def test_decompressing_from_afar_asks_for_the_records_of_a_row_together(site, server, tmp_path):
    strip = Window(row=0, col=0, height=500, width=2048)
    ditic_stream.decompress(site / WAYS[0], tmp_path / "near.npy", window=strip, workers=1)
    for name in WAYS:
        server.clear()
        ditic_stream.decompress(f"{server.url}/{name}", tmp_path / "far.npy", window=strip, workers=1, overwrite=True)
        records = [one for one in server.requests if one.verb == "GET" and one.name.endswith((".zip", "/0"))]
        assert len(records) <= 12, "of 3 x 9 tiles"
        np.testing.assert_array_equal(np.load(tmp_path / "far.npy"), np.load(tmp_path / "near.npy"))


def test_a_bucket_that_is_not_there_is_named_as_such(site, tmp_path):
    with object_store():
        for name in ("a.ditic", "a.ditic.zip"):
            with pytest.raises(SourceError, match=r"s3://nowhere/a\.ditic.*: there is no bucket of that name"):
                open_archive(f"s3://nowhere/{name}")
        with pytest.raises(SourceError, match="there is no bucket of that name"):
            ditic_stream.compress(site / "wide.tif", "s3://nowhere/a.ditic", model="tiny", tile=256, workers=1)


def test_a_missing_extra_says_what_to_install(site, server):
    code = (
        "import sys; sys.modules['obstore'] = None\n"
        "from ditic_stream.archive import open_archive\n"
        f"open_archive({str(site / 'wide.ditic')!r}).close()\n"
        f"open_archive({server.url + '/wide.ditic'!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ConfigError: URIs need obstore; install it with pip install 'ditic-stream[cloud]'" in done.stderr


spans = st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 20_000)), min_size=1, max_size=30)


@given(spans, st.booleans())
def test_coalesced_ranges_hold_every_range_and_waste_little(ranges, alone):
    runs = coalesced(ranges, alone=alone)
    assert all(any(at <= start and start + length <= at + many for at, many in runs) for start, length in ranges)
    assert all(one[0] + one[1] < other[0] for one, other in pairwise(runs))
    wanted = np.zeros(1_020_001, bool)
    for start, length in ranges:
        wanted[start : start + length] = True
    assert sum(many for _, many in runs) <= 2 * wanted.sum() + 512 * len(ranges)
    if not alone:
        assert sum(many for _, many in runs) <= wanted.sum() + 512 * len(ranges)


@given(
    st.lists(st.integers(1000, 2000), min_size=64, max_size=64),
    st.tuples(st.integers(3, 4), st.integers(3, 4)),
    st.tuples(st.integers(0, 4), st.integers(0, 4)),
)
def test_the_records_around_a_window_come_in_three_ranges_of_a_shard_of_eight_by_eight(sizes, block, corner):
    starts = np.cumsum([8, *sizes])
    places = [(corner[0] + row) * 8 + corner[1] + col for row in range(block[0]) for col in range(block[1])]
    assert len(coalesced([(int(starts[place]), sizes[place]) for place in places], alone=True)) <= 3


@given(spans, st.integers(1, 10**5))
def test_blocks_give_back_what_was_put_or_nothing(ranges, limit):
    whole = np.random.default_rng(0).bytes(1_020_000)
    blocks = Blocks(limit)
    for start, length in ranges:
        blocks.add("a", start, whole[start : start + length])
        assert blocks.find("a", start, length) is not None, "what came last is held"
    held = 0
    for start, length in ranges:
        found = blocks.find("a", start, length)
        assert found in (None, whole[start : start + length])
        held += found is not None
    assert blocks.find("b", 0, 1) is None


def test_a_remote_file_reads_like_a_local_one(tmp_path, site):
    data = np.random.default_rng(1).bytes(300_000)
    (tmp_path / "a b.bin").write_bytes(data)
    with serving(tmp_path) as server:
        file = RemoteFile(place_of(f"{server.url}/a b.bin"))
        assert file.size == len(data) and file.etag
        file.fetch([(100_000, 10), (200_000, 10), (299_990, 100), (400_000, 5)])
        asked = len(server.requests)
        assert file.read_at(100_000, 10) == data[100_000:100_010]
        assert file.read_at(299_990, 100) == data[299_990:]
        assert len(server.requests) == asked
        assert file.read_at(150_000, 100_000) == data[150_000:250_000]
        assert file.read_at(400_000, 5) == b""
        file.close()


def test_opening_from_afar_is_light_and_a_path_does_without_obstore(site, server):
    code = (
        "import sys\n"
        "from ditic_stream.archive import open_archive\n"
        "open_archive(sys.argv[1]).close()\n"
        "print(sorted({'torch', 'zarr', 'numpy', 'obstore', 'fsspec'} & set(sys.modules)))"
    )
    for place, loaded in ((str(site / "wide.ditic"), "[]"), (f"{server.url}/wide.ditic.zip", "['obstore']")):
        done = subprocess.run([sys.executable, "-c", code, place], capture_output=True, text=True)
        assert done.stdout.strip() == loaded, done.stderr
