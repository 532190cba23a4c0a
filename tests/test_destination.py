"""Scenes and archives that lie elsewhere: compressed from there by ranges and to there by whole puts, and resumed.

HTTP is served by servers.py, S3 by moto, both on loopback.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from pictures import landscape, write_scene
from servers import ObjectStore, object_store, serving

import ditic_stream
from ditic_stream._destination import destination_of
from ditic_stream._paths import Uri, place_of
from ditic_stream.archive import open_archive
from ditic_stream.errors import ConfigError, SourceError
from ditic_stream.geometry import TileKey
from ditic_stream.reader import open_source
from ditic_stream.verify import verify

SETTINGS = {"model": "tiny", "tile": 256, "workers": 1}


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    with object_store() as found:
        yield found


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scene(tmp_path_factory.mktemp("scenes") / "a scene.tif", landscape(700, 900))


@pytest.fixture(scope="module")
def objects(scene: Path, store: ObjectStore) -> dict[str, bytes]:
    """What compressing the scene from S3 into a folder here gives, by name."""
    store.put(scene, "scenes/a%20scene.tif")
    folder = scene.parent / "here.ditic"
    ditic_stream.compress("s3://bucket/scenes/a scene.tif", folder, **SETTINGS)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def there(uri: str) -> dict[str, bytes]:
    with open_archive(uri) as archive:
        return {name: archive.store.get(name, 0, archive.store.size(name) or 0) for name in archive.store.names()}


def test_a_scene_is_read_by_ranges_and_gives_the_records_of_the_file_here(tmp_path, scene):
    ditic_stream.compress(scene, tmp_path / "near.ditic", **SETTINGS)
    with serving(scene.parent) as server:
        address = f"{server.url}/a%20scene.tif"
        ditic_stream.compress(address, tmp_path / "far.ditic", **SETTINGS)
        assert {request.range is None for request in server.requests if request.verb == "GET"} == {False}
    with open_archive(tmp_path / "near.ditic") as near, open_archive(tmp_path / "far.ditic") as far:
        source = far.manifest.source
        assert (source.name, source.size) == ("a scene.tif", scene.stat().st_size)
        assert source.sha256 is None and source.etag and '"' not in source.etag
        assert source.metadata == near.manifest.source.metadata
        for key in near.grid.tiles_of(TileKey(0, 0)):
            assert near.record(key).words == far.record(key).words
        facts = json.loads((tmp_path / "far.ditic/zarr.json").read_bytes())["attributes"]["ditic"]["source"]
        assert "sha256" not in facts and facts["etag"] == source.etag


def test_a_server_without_etags_has_its_scene_hashed(tmp_path, scene):
    with serving(scene.parent) as server:
        server.etags = False
        with open_source(f"{server.url}/a%20scene.tif") as far, open_source(scene) as near:
            assert far.etag is None
            assert far.digest() == near.digest()


@pytest.mark.parametrize("compression", [None, "deflate"])
def test_pixels_of_a_remote_tiff_are_those_of_the_file(tmp_path, compression):
    pixels = landscape(500, 610)
    tifffile.imwrite(tmp_path / "strips.tif", pixels, rowsperstrip=7, compression=compression, photometric="rgb")
    tifffile.imwrite(tmp_path / "tiles.tif", pixels, tile=(64, 64), compression=compression, photometric="rgb")
    window = ditic_stream.Window(row=123, col=77, height=200, width=90)
    with serving(tmp_path) as server:
        for name in ("strips.tif", "tiles.tif"):
            server.clear()
            with open_source(f"{server.url}/{name}") as far:
                np.testing.assert_array_equal(far.read(window).transpose(1, 2, 0), pixels[123:323, 77:167])
            assert len(server.requests) < 40, "ranges are asked for together"


def test_a_mask_beside_a_remote_scene_is_refused_and_sidecars_are_named(tmp_path, scene):
    (tmp_path / "s.tif").write_bytes(scene.read_bytes())
    (tmp_path / "s.tfw").write_text("1")
    with serving(tmp_path) as server:
        with open_source(f"{server.url}/s.tif") as source:
            assert "s.tfw beside the file is not kept" in source.warnings
        (tmp_path / "s.tif.msk").write_bytes(b"mask")
        with pytest.raises(SourceError, match=r"s\.tif\.msk beside the file holds a mask"):
            open_source(f"{server.url}/s.tif")


def test_a_scene_that_changes_while_it_is_read_is_noticed(tmp_path, scene):
    copy = tmp_path / "s.tif"
    copy.write_bytes(scene.read_bytes())
    with serving(tmp_path) as server, open_source(f"{server.url}/s.tif") as source:
        write_scene(copy, landscape(700, 900, seed=5))
        with pytest.raises(SourceError, match="changed while it was being read"):
            source.read(ditic_stream.Window(row=400, col=400, height=300, width=300))
        with pytest.raises(SourceError, match="changed while it was being read"):
            open_source(f"{server.url}/s.tif", etag=source.etag)


def test_an_archive_compressed_to_s3_has_the_bytes_of_one_here_and_its_manifest_comes_last(objects, store):
    store.requests.clear()
    result = ditic_stream.compress("s3://bucket/scenes/a scene.tif", "s3://bucket/out/a.ditic", **SETTINGS)
    assert result.archive == "s3://bucket/out/a.ditic"
    puts = [request for request in store.requests if request.startswith("PUT")]
    assert puts[0] == puts[-1] == "PUT /bucket/out/a.ditic/zarr.json"
    assert len(puts) == len(set(puts)) + 1 == len(objects) + 1, "every object is put once, the manifest twice"
    assert there("s3://bucket/out/a.ditic") == objects
    assert verify("s3://bucket/out/a.ditic").ok
    with pytest.raises(ConfigError, match=r"s3://bucket/out/a\.ditic is a complete archive of other settings"):
        ditic_stream.compress("s3://bucket/scenes/a scene.tif", "s3://bucket/out/a.ditic", quality=20, **SETTINGS)
    with ditic_stream.open("s3://bucket/out/a.ditic") as scene:
        assert scene.crs == "EPSG:32633"


def test_a_killed_run_to_s3_goes_on_and_ends_with_the_same_bytes(objects, store):
    command = [sys.executable, "-m", "ditic_stream", "compress", "s3://bucket/scenes/a scene.tif"]
    command += ["s3://bucket/out/killed.ditic", "--model", "tiny", "--tile", "256", "--workers", "1", "-q"]
    store.requests.clear()
    run = subprocess.Popen(command, env=dict(os.environ))
    began = time.monotonic()
    while sum("killed.ditic/records/" in one and one.startswith("PUT") for one in store.requests) < 3:
        assert run.poll() is None and time.monotonic() - began < 100
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    run.wait()
    with open_archive("s3://bucket/out/killed.ditic") as partial:
        assert not partial.manifest.complete
    result = ditic_stream.compress("s3://bucket/scenes/a scene.tif", "s3://bucket/out/killed.ditic", **SETTINGS)
    assert 3 <= result.resumed < result.shards
    assert there("s3://bucket/out/killed.ditic") == objects


def test_a_zip_on_s3_is_sent_in_parts_and_leaves_no_folder_behind(objects, store):
    ditic_stream.compress("s3://bucket/scenes/a scene.tif", "s3://bucket/out/z.ditic.zip", **SETTINGS)
    assert there("s3://bucket/out/z.ditic.zip") == objects
    assert verify("s3://bucket/out/z.ditic.zip").ok
    left = destination_of(place_of("s3://bucket/out/z.ditic.zip.partial")).store()
    assert not list(left.names())


def test_overwriting_takes_the_old_shards_away(store, tmp_path):
    store.put(write_scene(tmp_path / "s.tif", landscape(300, 300)), "s.tif")
    for quality in (50, 30):
        ditic_stream.compress(
            "s3://bucket/s.tif", "s3://bucket/out/o.ditic", quality=quality, overwrite=True, **SETTINGS
        )
        assert verify("s3://bucket/out/o.ditic").ok


def test_strangers_in_the_prefix_and_places_that_are_read_only_are_refused(scene, store, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    store.put(tmp_path / "notes.txt", "mine.ditic/notes.txt")
    with pytest.raises(ConfigError, match=r"s3://bucket/mine\.ditic holds notes\.txt"):
        ditic_stream.compress(scene, "s3://bucket/mine.ditic", overwrite=True, **SETTINGS)
    with pytest.raises(ConfigError, match="can be read and not written"):
        ditic_stream.compress(scene, "https://host/a.ditic", **SETTINGS)
    with pytest.raises(SourceError, match=r"s3://nobucket/a\.ditic: there is no bucket of that name"):
        ditic_stream.compress(scene, "s3://nobucket/a.ditic", **SETTINGS)


def test_decompress_takes_an_archive_from_s3(objects, store, tmp_path, scene):
    store.put(scene.parent / "here.ditic", "out/d.ditic")
    ditic_stream.decompress("s3://bucket/out/d.ditic", tmp_path / "far.tif", workers=1)
    with ditic_stream.open(scene.parent / "here.ditic") as near:
        np.testing.assert_array_equal(tifffile.imread(tmp_path / "far.tif"), near[...])


@pytest.mark.parametrize(
    ("text", "name", "neighbour", "shown"),
    [
        ("s3://bucket/a/b%20c.tif", "b c.tif", "s3://bucket/a/d%20e.ditic", "s3://bucket/a/b%20c.tif"),
        (
            "https://u:p@host:1/x/y.ditic/?sig=s#f",
            "y.ditic",
            "https://u:p@host:1/x/d%20e.ditic?sig=s",
            "https://host:1/x/y.ditic",
        ),
        ("GS://bucket/z.ditic.zip", "z.ditic.zip", "gs://bucket/d%20e.ditic", "gs://bucket/z.ditic.zip"),
    ],
)
def test_a_uri_is_named_moved_and_shown_without_credentials_and_survives_pickle(text, name, neighbour, shown):
    uri = place_of(text)
    assert isinstance(uri, Uri)
    assert (uri.name, uri.with_name("d e.ditic").full, str(uri)) == (name, neighbour, shown)
    assert "p@" not in repr(uri) and "sig" not in repr(uri)
    assert pickle.loads(pickle.dumps(uri)) == uri == place_of(uri)


@pytest.mark.parametrize("text", ["s3://bucket", "s3://bucket/", "http:///x", "file://other/x"])
def test_a_uri_that_names_nothing_is_refused(text):
    with pytest.raises(SourceError):
        place_of(text)
