"""Every address of the server, over real archives; what may not be asked; what is told when something fails."""

from __future__ import annotations

import shutil
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from conftest import Command, Sample
from servers import serving
from starlette.testclient import TestClient

from ditic_stream.archive import open_archive
from ditic_stream.doors.server.answers import Body, Kept, Outgoing
from ditic_stream.doors.server.app import Settings, make_app
from ditic_stream.doors.server.gate import Busy
from ditic_stream.doors.server.run import configured
from ditic_stream.doors.server.served import Catalog, name_of, source_at_hand
from ditic_stream.errors import ConfigError
from ditic_stream.geometry import TileKey


@pytest.fixture(scope="module")
def client(sample: Sample, deep: Path) -> Iterator[TestClient]:
    with Catalog() as catalog:
        catalog.add(sample.archive, source=sample.scene)
        catalog.add(deep)
        with TestClient(make_app(catalog, Settings(threads=2)), follow_redirects=False) as found:
            yield found


@pytest.fixture(scope="module")
def decoded(sample: Sample) -> np.ndarray:
    return tifffile.imread(sample.decoded)


def png(answer: Any) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    return imagecodecs.png_decode(answer.content)


# --- what there is


def test_index_names_each_archive_and_loads_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert 'href="scene/"' in page.text and 'href="deep/"' in page.text
    assert "scene/tilejson.json" in page.text and "deep/tilejson.json" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for text in (page.text, client.get("/scene/").text):
        assert "http://" not in text and "https://" not in text


@pytest.mark.parametrize("said", ["/maps", "/maps/", "/a/b.c", "//evil.example", "/a b", '/"><b>', "maps", ""])
def test_behind_a_proxy_addresses_have_the_prefix_that_it_says(client: TestClient, said: str) -> None:
    prefix = said.rstrip("/") if said in ("/maps", "/maps/", "/a/b.c") else ""
    headers, base = {"X-Forwarded-Prefix": said}, f"http://testserver{prefix}/scene"
    assert client.get("/scene/tilejson.json", headers=headers).json()["tiles"][0].startswith(f"{base}/tiles/")
    assert client.get("/scene/iiif/info.json", headers=headers).json()["id"] == f"{base}/iiif"
    assert client.get("/scene/iiif", headers=headers).headers["location"] == f"{base}/iiif/info.json"
    assert client.get("/scene", headers=headers).headers["location"] == f"{base}/"


def test_a_root_path_is_part_of_every_address(sample: Sample) -> None:
    with Catalog() as catalog:
        catalog.add(sample.archive)
        config = configured(make_app(catalog, Settings(threads=1)), root_path="/maps")
        config.load()
        with TestClient(config.loaded_app, root_path="/maps") as behind:
            found = behind.get("/maps/scene/tilejson.json").json()
            assert found["tiles"][0].startswith("http://testserver/maps/scene/tiles/")


def test_health_says_what_runs(client: TestClient) -> None:
    answer = client.get("/healthz")
    assert answer.headers["x-content-type-options"] == "nosniff"
    facts = answer.json()
    assert facts["status"] == "ok" and facts["archives"] == 2 and facts["threads"] == 2
    assert {"running", "waiting", "done", "refused", "late", "left"} <= set(facts)


def test_info_holds_what_the_command_says_and_how_it_is_shown(
    client: TestClient, sample: Sample, ditic: Command
) -> None:
    import json

    facts = client.get("/scene/info").json()
    assert json.loads(ditic("info", sample.archive, "--json").out).items() <= facts.items()
    assert facts["crs"] == "EPSG:32633" and facts["shown"]["stretch"].startswith("none")
    assert facts["original"]["name"] == "scene.tif" and facts["levels"][0] == [700, 600]
    deep = client.get("/deep/info").json()
    assert deep["original"] is None and deep["shown"]["bands"] == [1] and deep["shown"]["transparent"]
    assert 1000 <= deep["shown"]["low"][0] < deep["shown"]["high"][0] <= 1000 + 30 * 255
    assert {one["name"] for one in client.get("/info").json()["archives"]} == {"scene", "deep"}


def test_rates_are_the_bytes_of_the_records(client: TestClient, sample: Sample) -> None:
    facts = client.get("/scene/rates").json()
    with open_archive(sample.archive) as archive:
        expected = [
            len(archive.shard(archive.grid.shard_of(key)).record_bytes(key))
            for key in (TileKey(row, col) for row in range(3) for col in range(3))
        ]
    assert facts == {"tile": 256, "rows": 3, "cols": 3, "bytes": expected}


# --- pixels


def test_region_is_the_crop_of_what_decompress_gives(client: TestClient, decoded: np.ndarray) -> None:
    found = png(client.get("/scene/region?window=123,45,300,200"))
    assert (found == decoded[45:245, 123:423]).all()
    assert (png(client.get("/region?archive=scene&window=123,45,300,200")) == found).all()


def test_region_can_be_made_smaller_and_larger(client: TestClient, decoded: np.ndarray) -> None:
    small = png(client.get("/scene/region?size=70,60"))
    assert small.shape == (60, 70, 3)
    means = decoded.reshape(60, 10, 70, 10, 3).mean((1, 3))
    assert np.abs(small - means).mean() < 4
    assert png(client.get("/scene/region?window=10,10,2,2&size=64,64")).shape == (64, 64, 3)


def test_bands_and_ranges_of_a_region(client: TestClient, decoded: np.ndarray) -> None:
    swapped = png(client.get("/scene/region?window=0,0,50,50&bands=3,2,1"))
    assert (swapped == decoded[:50, :50, ::-1]).all()
    one = png(client.get("/scene/region?window=0,0,50,50&bands=2&rescale=0,510"))
    assert one.ndim == 2 and np.abs(one - decoded[:50, :50, 1] / 2).max() <= 1


def test_what_is_nodata_is_transparent_and_sixteen_bits_are_stretched(client: TestClient) -> None:
    found = png(client.get("/deep/region"))
    assert found.shape == (300, 520, 4)
    assert not found[:150, :260, 3].any() and (found[150:, :, 3] == 255).all() and (found[:, 260:, 3] == 255).all()
    seen = found[150:, :, 0]
    assert np.percentile(seen, 5) < 60 and np.percentile(seen, 95) > 195


def test_deep_zoom_tiles_join_to_the_decoded_scene(client: TestClient, decoded: np.ndarray) -> None:
    answer = client.get("/scene/image.dzi")
    root = ET.fromstring(answer.text)
    assert answer.headers["content-type"] == "application/xml" and root.get("Overlap") == "1"
    size = root.find("{http://schemas.microsoft.com/deepzoom/2008}Size")
    assert size is not None and (size.get("Width"), size.get("Height")) == ("700", "600")
    side = int(root.get("TileSize", "0"))
    whole = np.zeros_like(decoded)
    for row in range(2):
        for col in range(2):
            tile = png(client.get(f"/scene/image_files/10/{col}_{row}.png"))
            top, left = row * side - (row > 0), col * side - (col > 0)
            whole[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    assert (whole == decoded).all()
    for level in range(10):
        assert client.get(f"/scene/image_files/{level}/0_0.{root.get('Format')}").status_code == 200
    assert client.get("/deep/image.dzi").text.count('Format="png"') == 1


def test_the_original_is_served_at_the_same_levels(client: TestClient, sample: Sample) -> None:
    tile = png(client.get("/scene/original_files/10/0_0.png"))
    assert (tile == tifffile.imread(sample.scene)[:513, :513]).all()
    for level in range(10):
        shapes = {
            png(client.get(f"/scene/{folder}/{level}/0_0.png")).shape[:2]
            for folder in ("image_files", "original_files")
        }
        assert len(shapes) == 1
    assert client.get("/deep/original_files/5/0_0.png").status_code == 404


@pytest.mark.parametrize(("form", "media"), [("png", "image/png"), ("jpg", "image/jpeg"), ("webp", "image/webp")])
def test_map_tiles_come_in_three_formats(client: TestClient, form: str, media: str) -> None:
    pytest.importorskip("rasterio")
    facts = client.get("/scene/tilejson.json", params={"format": form}).json()
    lon, lat, zoom = facts["center"]
    n = 2**zoom
    x = int((lon + 180) / 360 * n)
    y = int((1 - np.arcsinh(np.tan(np.radians(lat))) / np.pi) / 2 * n)
    address = facts["tiles"][0].format(z=zoom, x=x, y=y)
    answer = client.get(address)
    assert answer.status_code == 200 and answer.headers["content-type"] == media
    assert "immutable" in answer.headers["cache-control"]
    if form != "jpg":
        pixels = imagecodecs.imread(answer.content)
        assert pixels.shape == (256, 256, 4) and 0 < (pixels[..., 3] > 0).mean() < 1
        twice = client.get(address.replace(f"{y}.", f"{y}@2x."))
        assert imagecodecs.imread(twice.content).shape[:2] == (512, 512)


def test_map_tiles_show_the_bands_and_ranges_their_tilejson_was_asked_for(client: TestClient) -> None:
    asked = "bands=3,2,1&rescale=0,99&rescale=0,200&rescale=50,255"
    (address,) = client.get(f"/scene/tilejson.json?format=png&{asked}").json()["tiles"]
    facts = client.get("/scene/tilejson.json").json()
    z = facts["minzoom"]
    x = int((facts["center"][0] + 180) / 360 * 2**z)
    y = int((1 - np.arcsinh(np.tan(np.radians(facts["center"][1]))) / np.pi) / 2 * 2**z)
    found = client.get(address.format(z=z, x=x, y=y))
    assert (png(found) == png(client.get(f"/scene/tiles/{z}/{x}/{y}.png?{asked}"))).all()
    assert (png(found) != png(client.get(f"/scene/tiles/{z}/{x}/{y}.png"))).any()


def test_a_scene_that_lies_nowhere_has_no_map_tiles(client: TestClient) -> None:
    for address in ("/deep/tilejson.json", "/deep/tiles/0/0/0.png"):
        answer = client.get(address)
        assert answer.status_code == 400 and "where it lies" in answer.json()["message"]


def test_iiif_serves_what_its_info_promises(client: TestClient, decoded: np.ndarray) -> None:
    base = client.get("/scene/iiif")
    assert base.status_code == 303 and base.headers["location"] == "http://testserver/scene/iiif/info.json"
    facts = client.get("/scene/iiif/info.json")
    assert facts.headers["access-control-allow-origin"] == "*"
    assert facts.json()["id"] == "http://testserver/scene/iiif"
    linked = client.get("/scene/iiif/info.json", headers={"Accept": "application/ld+json"})
    assert linked.headers["content-type"].startswith("application/ld+json;profile=")
    for size in facts.json()["sizes"]:
        wide, high = size["width"], size["height"]
        assert png(client.get(f"/scene/iiif/full/{wide},{high}/0/default.png")).shape[:2] == (high, wide)
    answer = client.get("/scene/iiif/100,50,200,100/max/!90/default.png")
    expected = np.rot90(decoded[50:150, 100:300][:, ::-1], -1)
    assert (png(answer) == expected).all()
    assert answer.headers["access-control-allow-origin"] == "*"
    assert '<http://testserver/scene/iiif/100,50,200,100/max/!90/default.png>;rel="canonical"' in answer.headers["link"]
    assert client.get("/scene/iiif/full/%5E800,/0/gray.jpg").status_code == 200
    assert client.get("/scene/iiif/full/max/45/default.jpg").status_code == 501


# --- keeping


def test_a_picture_a_client_has_is_not_sent_again(client: TestClient) -> None:
    first = client.get("/scene/image_files/8/0_0.png")
    tag = first.headers["etag"]
    assert first.headers["cache-control"] == "public, max-age=3600"
    for asked in (tag, f'"x", W/{tag}', "*"):
        again = client.get("/scene/image_files/8/0_0.png", headers={"If-None-Match": asked})
        assert again.status_code == 304 and not again.content and again.headers["etag"] == tag
    assert client.get("/scene/image_files/8/0_0.jpg").headers["etag"] != tag
    assert client.get("/scene/image_files/8/0_0.png?bands=1").headers["etag"] != tag
    head = client.head("/scene/image_files/8/0_0.png")
    assert head.headers["etag"] == tag and int(head.headers["content-length"]) == len(first.content)


def test_only_the_version_at_hand_may_be_kept_for_good(client: TestClient) -> None:
    version = client.get("/scene/info").json()["version"]
    assert "immutable" in client.get(f"/scene/image_files/8/0_0.png?v={version}").headers["cache-control"]
    assert "immutable" not in client.get("/scene/image_files/8/0_0.png?v=other").headers["cache-control"]


def test_other_origins_may_read_when_they_are_let(sample: Sample) -> None:
    asked = {"Origin": "https://maps.example"}
    with Catalog() as catalog:
        catalog.add(sample.archive)
        with TestClient(make_app(catalog, Settings(threads=1))) as client:
            assert "access-control-allow-origin" not in client.get("/scene/info", headers=asked).headers
        with TestClient(make_app(catalog, Settings(threads=1, cors=("https://maps.example",)))) as client:
            assert client.get("/info", headers=asked).headers["access-control-allow-origin"] == "https://maps.example"
            other = client.get("/info", headers={"Origin": "https://else.example"})
            assert "access-control-allow-origin" not in other.headers


def test_a_page_whose_name_is_made_to_mean_this_machine_reads_nothing_of_a_view(sample: Sample) -> None:
    own = ["localhost:8000", "127.0.0.1", "127.0.0.1:1", "[::1]:80", "a.localhost", "LocalHost."]
    others = ["evil.example", "evil.example:80", "localhost.evil.example", "127.0.0.1.evil.example", "[", "", "[::2]"]
    with Catalog() as catalog:
        catalog.add(sample.archive)
        for settings in (Settings(threads=1, own_names=True), Settings(threads=1)):
            with TestClient(make_app(catalog, settings)) as client:
                for address in ("/", "/scene/", "/info", "/healthz", "/scene/region?window=0,0,1,1"):
                    for host in own + others:
                        status = client.get(address, headers={"Host": host}).status_code
                        assert status == (404 if settings.own_names and host in others else 200), (address, host)


def test_finished_pictures_are_kept_within_bounds() -> None:
    kept = Kept(1000)
    for number in range(50):
        kept.put(number, bytes(100))
        assert kept.bytes <= 1000
    assert kept.get(49) is not None and kept.get(0) is None
    kept.put("large", bytes(200))
    assert kept.get("large") is None  # an eighth at most


def test_bodies_on_their_way_are_bounded() -> None:
    outgoing = Outgoing(1000)
    Body(bytes(2000), outgoing)  # alone, anything may go
    with pytest.raises(Busy, match="at most 1000"):
        Body(bytes(1), outgoing)


# --- refusals

HOSTILE = [
    "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/scene/../../etc/passwd", "/etc/passwd",
    "//etc/passwd", "/scene/%2e%2e/%2e%2e/etc/passwd", "/scene/..%2f..%2fetc%2fpasswd", "/..%5c..%5cwindows",
    "/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/static/viewer.html", "/static/%00",
    "/static/viewer.js%00.png", "/scene%00/info", "/%00", "/scene.ditic/zarr.json", "/scene/zarr.json",
    "/scene/image_files/9/..%2f0_0.png", "/scene/image_files/%2e%2e/0_0.png", "/scene/tiles/0/0/..%2f0.png",
    "/scene/iiif/..%2f..%2f/max/0/default.png", "/file:%2f%2f%2fetc%2fpasswd",
    "/scene/original_files/0/%2fetc%2fpasswd",
]  # fmt: skip


@pytest.mark.parametrize("address", HOSTILE)
def test_no_address_leaves_the_archives(client: TestClient, address: str) -> None:
    answer = client.get(address)
    assert answer.status_code in (400, 404), answer.text
    assert set(answer.json()) == {"kind", "message"} and "root:" not in answer.text


def test_names_are_never_paths(sample: Sample, tmp_path: Path) -> None:
    assert name_of("/data/a scene (1).ditic.zip") == "a-scene-1"
    assert name_of("https://host/key/x.ditic?versionId=3") == "x" and name_of("s3://bucket/a%20b.ditic.zip") == "a-b"
    assert name_of("/data/...ditic") == "scene" and name_of("/data/../<script>.ditic") == "script"
    with Catalog() as catalog:
        names = [catalog.add(sample.archive).name for _ in range(2)]
        other = tmp_path / "info.ditic"
        shutil.copytree(sample.archive, other)
        names.append(catalog.add(other).name)
        assert names == ["scene", "scene-2", "info-2"]
        with TestClient(make_app(catalog, Settings(threads=1))) as client:
            for absolute in (sample.archive, other):
                assert client.get(f"/region?archive={absolute}").status_code == 404
            assert client.get("/region").status_code == 404  # of three, one has to be named
            assert client.get("/scene-2/image_files/5/0_0.png").status_code == 200


@pytest.mark.parametrize(
    ("address", "status"),
    [
        ("/scene/region?window=0,0,10", 400), ("/scene/region?window=0,0,0,10", 400),
        ("/scene/region?window=a,0,1,1", 400),
        ("/scene/region?window=690,0,11,1", 400), ("/scene/region?window=-1,0,1,1", 400),
        ("/scene/region?window=0,0,1,1&size=99999,99999", 413), ("/scene/region?size=5000,1", 413),
        ("/scene/region?size=0,1", 400), ("/scene/region?format=exe", 400), ("/scene/region?bands=9", 400),
        ("/scene/region?bands=0", 400), ("/scene/region?bands=1,2,3,1", 400), ("/scene/region?rescale=5", 400),
        ("/scene/region?rescale=nan,1", 400), ("/scene/region?rescale=2,1", 400),
        ("/scene/iiif/full/%5E9999,/0/default.png", 413), ("/scene/iiif/full/9999,/0/default.png", 400),
        ("/scene/iiif/900,0,1,1/max/0/default.png", 400), ("/scene/image_files/99/0_0.png", 404),
        ("/scene/image_files/10/9_9.png", 404), ("/scene/image_files/10/0_0.gif", 400),
        ("/scene/image_files/x/0_0.png", 404), ("/scene/tiles/99/0/0.png", 400), ("/scene/tiles/3/8/0.png", 400),
        ("/scene/tiles/0/0/0", 404), (f"/scene/tiles/0/0/{'9' * 5000}.png", 404),
        ("/scene/tilejson.json?bands=9", 400), ("/scene/tilejson.json?rescale=1,0", 400),
        ("/scene/tilejson.json?format=exe", 400), ("/scene/nothing", 404), ("/nothing/info", 404), ("/nothing/", 404),
        ("/scene/region?window=" + "9" * 400, 400),
    ],
)  # fmt: skip
def test_what_cannot_be_made_is_refused_with_a_reason(client: TestClient, address: str, status: int) -> None:
    answer = client.get(address)
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"kind", "message"} and len(answer.json()["message"]) > 10
    assert answer.headers["cache-control"] == "no-store"


def test_other_methods_are_not_taken(client: TestClient) -> None:
    assert client.post("/scene/region").status_code == 405
    assert client.delete("/scene/info").status_code == 405


def test_damage_is_told_by_its_tile_and_not_by_its_place(sample: Sample, tmp_path: Path) -> None:
    archive = tmp_path / "hurt.ditic"
    shutil.copytree(sample.archive, archive)
    with open_archive(archive) as opened:
        reader = opened.shard(opened.grid.shard_of(TileKey(0, 0)))
        name, key = opened.layout.records(reader.shard), TileKey(0, 0)
        record = reader.record_bytes(key)
    raw = bytearray((archive / name).read_bytes())
    at = bytes(raw).index(record) + len(record) // 2
    raw[at] ^= 255
    (archive / name).write_bytes(raw)
    with Catalog() as catalog:
        catalog.add(archive)
        with TestClient(make_app(catalog, Settings(threads=1))) as client:
            answer = client.get("/hurt/region?window=0,0,50,50")
            assert answer.status_code == 500 and answer.json()["kind"] == "checksum"
            assert "tile 0,0" in answer.text and str(tmp_path) not in answer.text
            assert client.get("/hurt/region?window=600,500,50,50").status_code == 200
    shard = archive / name
    shard.unlink()
    with Catalog() as catalog:
        catalog.add(archive, on_error="fill")
        with TestClient(make_app(catalog, Settings(threads=1))) as client:
            assert client.get("/hurt/region?window=0,0,50,50").status_code == 200
            rates = client.get("/hurt/rates").json()["bytes"]
            assert rates[0] == -1 and max(rates) > 0


def test_only_what_stays_the_same_may_be_kept_for_good(sample: Sample) -> None:
    """A source may be another by the next start, and a filled tile whole: their versions differ from start to start."""
    found = []
    for _ in range(2):
        with Catalog() as catalog:
            catalog.add(sample.archive, source=sample.scene)
            catalog.add(sample.archive, on_error="fill")
            with TestClient(make_app(catalog, Settings(threads=1))) as client:
                facts = client.get("/scene/info").json()
                while facts["original"]["done"] < 1:
                    facts = client.get("/scene/info").json()
                address = "/scene/original_files/8/0_0.png?v="
                assert "immutable" in client.get(address + facts["original"]["version"]).headers["cache-control"]
                assert "immutable" not in client.get(address + facts["version"]).headers["cache-control"]
                filled = client.get("/scene-2/info").json()["version"]
                found.append((facts["version"], facts["original"]["version"], filled))
    (same, *first), (again, *second) = found
    assert same == again and not set(first) & set(second)


def test_an_original_that_cannot_be_read_to_its_end_is_told_and_not_waited_for(sample: Sample, tmp_path: Path) -> None:
    pixels = tifffile.imread(sample.scene)
    source = tmp_path / "scene.tif"
    tifffile.imwrite(source, pixels, photometric="rgb", compression="zlib", rowsperstrip=16)
    whole = bytearray(source.read_bytes())
    middle = len(whole) // 2
    whole[middle : middle + 40000] = bytes(40000)
    source.write_bytes(whole)
    with Catalog() as catalog:
        original = catalog.add(sample.archive, source=source).original
        assert original is not None
        original.prepare()
        with TestClient(make_app(catalog, Settings(threads=1))) as client:
            assert client.get("/scene/info").json()["original"]["failed"] is True
            answer = client.get("/scene/original_files/8/0_0.png")
            assert answer.status_code == 404 and "scene.tif cannot be read" in answer.json()["message"]
            assert client.get("/scene/image_files/8/0_0.png").status_code == 200


def test_a_source_is_at_hand_when_its_name_and_size_fit(sample: Sample, deep: Path, tmp_path: Path) -> None:
    assert source_at_hand(sample.archive) == sample.scene
    archive = tmp_path / "scene.ditic"
    shutil.copytree(sample.archive, archive)
    assert source_at_hand(archive) is None
    (tmp_path / "scene.tif").write_bytes(b"other")
    assert source_at_hand(archive) is None
    with Catalog() as catalog, pytest.raises(ConfigError, match="the scene it was made from"):
        catalog.add(archive, source=deep.with_suffix(".tif"))


def test_an_archive_far_away_is_served_like_one_at_hand(sample: Sample, decoded: np.ndarray) -> None:
    with serving(sample.archive.parent) as folder, Catalog() as catalog:
        catalog.add(f"{folder.url}/scene.ditic?token=secret")
        with TestClient(make_app(catalog, Settings(threads=1))) as client:
            found = png(client.get("/scene/region?window=300,300,100,100"))
            assert (found == decoded[300:400, 300:400]).all()
            for address in ("/", "/scene/info", "/info"):
                assert "secret" not in client.get(address).text
    assert source_at_hand("https://host/scene.ditic") is None
