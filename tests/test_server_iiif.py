"""IIIF Image API 3: words, sizes, info.json by its rules."""

from __future__ import annotations

import numpy as np
import pytest
from pictures import landscape

from ditic_stream.doors.server.display import MAX_AREA, MAX_SIDE, TooLargeError
from ditic_stream.doors.server.iiif import Request, UnsupportedError, finished, info, parse
from ditic_stream.errors import ConfigError

WIDTH, HEIGHT = 300, 200


def asked(region: str = "full", size: str = "max", rotation: str = "0", last: str = "default.jpg") -> Request:
    return parse(region, size, rotation, last, width=WIDTH, height=HEIGHT)


@pytest.mark.parametrize(
    ("region", "box"),
    [
        ("full", (0, 0, 300, 200)),
        ("square", (50, 0, 250, 200)),
        ("125,15,120,140", (125, 15, 245, 155)),
        ("pct:41.6,7.5,40,70", (125, 15, 245, 155)),
        ("125,15,200,200", (125, 15, 300, 200)),
        ("pct:41.6,7.5,66.6,100", (125, 15, 300, 200)),
    ],
)
def test_regions_of_the_specification(region: str, box: tuple[int, ...]) -> None:
    found = asked(region)
    assert (found.left, found.top, found.right, found.bottom) == box


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("max", (300, 200)), ("150,", (150, 100)), (",150", (225, 150)), ("pct:50", (150, 100)),
        ("225,100", (225, 100)), ("!225,100", (150, 100)), ("!999,999", (300, 200)), ("^360,", (360, 240)),
        ("^,240", (360, 240)), ("^pct:120", (360, 240)), ("^360,360", (360, 360)), ("^!360,360", (360, 240)),
        ("1,", (1, 1)), ("^max", (2508, 1672)),
    ],
)  # fmt: skip
def test_sizes_of_the_specification(size: str, expected: tuple[int, int]) -> None:
    found = asked(size=size)
    assert (found.width, found.height) == expected


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"region": "360,0,10,10"}, "outside"), ({"region": "0,0,0,10"}, "empty"), ({"region": "0,0,10"}, "none"),
        ({"region": "1.5,0,9,9"}, "none"), ({"region": "-1,0,9,9"}, "none"), ({"region": "pct:0,0,101x,9"}, "none"),
        ({"size": "301,"}, "enlarge"), ({"size": "pct:101"}, "enlarge"), ({"size": "full"}, "none"),
        ({"size": "0,"}, "1 x 1"), ({"size": ","}, "none"), ({"size": "pct:0"}, "1 x 1"),
        ({"rotation": "-90"}, "none"), ({"rotation": "361"}, "none"), ({"rotation": "!x"}, "none"),
        ({"last": "native.jpg"}, "no quality"), ({"last": "default.gif"}, "not served"),
        ({"last": "jpg"}, "no quality"),
    ],
)  # fmt: skip
def test_words_the_specification_has_not_are_refused(parts: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        asked(**parts)


def test_what_is_legal_and_not_done_is_told_apart() -> None:
    with pytest.raises(UnsupportedError):
        asked(rotation="22.5")
    with pytest.raises(TooLargeError):
        asked(size="^5000,5000")


def test_max_of_a_large_region_stays_within_the_bounds() -> None:
    for width, height in [(100_000, 50_000), (5000, 10), (3000, 3000)]:
        found = parse("full", "max", "0", "default.png", width=width, height=height)
        assert found.width <= MAX_SIDE and found.height <= MAX_SIDE and found.width * found.height <= MAX_AREA
        assert abs(found.width / found.height - width / height) < 0.1 * width / height


def test_mirror_comes_before_the_turn_and_turns_are_clockwise() -> None:
    rgba = np.zeros((2, 3, 4), np.uint8)
    rgba[0, 0] = 255
    assert np.argwhere(finished(rgba, asked(rotation="90"))[..., 0]).tolist() == [[0, 1]]
    assert np.argwhere(finished(rgba, asked(rotation="!0"))[..., 0]).tolist() == [[0, 2]]
    assert np.argwhere(finished(rgba, asked(rotation="!90"))[..., 0]).tolist() == [[2, 1]]
    assert finished(rgba, asked(rotation="360")).tolist() == rgba.tolist()


def test_grey_and_bitonal() -> None:
    rgba = np.dstack([landscape(9, 9), np.full((9, 9), 255, np.uint8)])
    grey = finished(rgba, asked(last="gray.png"))
    assert (grey[..., 0] == grey[..., 1]).all()
    assert np.abs(grey[..., 0] - rgba[..., :3] @ [0.299, 0.587, 0.114]).max() <= 1
    assert set(np.unique(finished(rgba, asked(last="bitonal.png"))[..., :3])) <= {0, 255}


def test_canonical_spelling_asks_for_the_same() -> None:
    for region, size in [("full", "max"), ("pct:10,10,50,50", "75,"), ("square", "^400,"), ("0,0,300,200", ",50")]:
        found = asked(region, size, "!90", "gray.jpeg")
        spelling = found.canonical(WIDTH, HEIGHT)
        assert parse(*spelling.split("/"), width=WIDTH, height=HEIGHT) == found
        assert spelling.endswith("/!90/gray.jpg")
    assert asked().canonical(WIDTH, HEIGHT) == "full/max/0/default.jpg"


@pytest.mark.parametrize(("width", "height"), [(1, 1), (300, 200), (8000, 5000), (2**24, 7), (100_000, 100_000)])
def test_info_keeps_the_rules_of_its_specification(width: int, height: int) -> None:
    facts = info("http://host/scene/iiif", width, height)
    for name, value in {
        "@context": "http://iiif.io/api/image/3/context.json",
        "id": "http://host/scene/iiif",
        "type": "ImageService3",
        "protocol": "http://iiif.io/api/image",
        "profile": "level2",
        "width": width,
        "height": height,
    }.items():
        assert facts[name] == value
    assert next(iter(facts)) == "@context"
    for size in facts["sizes"]:  # each can be asked for as w,h
        assert set(size) == {"width", "height"}
        found = parse("full", f"{size['width']},{size['height']}", "0", "default.jpg", width=width, height=height)
        assert (found.width, found.height) == (size["width"], size["height"])
    assert [size["width"] for size in facts["sizes"]] == sorted(size["width"] for size in facts["sizes"])
    (tiles,) = facts["tiles"]
    factors = tiles["scaleFactors"]
    assert factors == sorted(set(factors)) and factors[0] == 1
    # Every tile that these imply can be asked for, the ragged ones too.
    for factor in factors:
        side = tiles["width"] * factor
        for left, top in [(0, 0), ((width - 1) // side * side, (height - 1) // side * side)]:
            wide, high = min(side, width - left), min(side, height - top)
            size = f"{-(-wide // factor)},{-(-high // factor)}"
            found = parse(f"{left},{top},{wide},{high}", size, "0", "default.jpg", width=width, height=height)
            assert found.width <= tiles["width"] and found.height <= tiles["height"]
    assert facts["maxArea"] <= facts["maxWidth"] * facts["maxHeight"]
    assert not {"full", "default"} & set(facts["extraQualities"])
