"""Crops: cut on the device as they would be one by one, the same for a seed, even over the pictures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ditic_stream.errors import ConfigError
from ditic_stream.training.data import Crops, Mix, Pictures, shrink_weights


def pictures() -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return [
        torch.randint(256, (3, height, width), generator=random, dtype=torch.uint8)
        for height, width in ((300, 700), (640, 256), (100, 90))
    ]


def test_a_gather_and_two_products_cut_what_one_crop_after_the_other_is() -> None:
    crops = Crops(pictures(), 256, 3)
    draw = crops.draw(12)
    assert 0 < int((draw.cut != 256).sum()) < 12
    together, apart = crops.at_once(draw), crops.one_by_one(draw)
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=0)  # a 400th of a level: float32 weights


def test_an_unscaled_unturned_crop_is_the_picture_itself() -> None:
    held = pictures()
    crops = Crops([p.clone() for p in held], 64, 3)
    draw = crops.draw(4)
    never = torch.zeros(4, dtype=torch.bool)
    draw = replace(
        draw, cut=torch.full((4,), 64), flipped=never[:, None].expand(4, 3), graded=never, smooth=never,
        picture=torch.tensor([0, 1, 2, 2]), top=torch.tensor([200, 500, 36, 0]), left=torch.tensor([600, 10, 0, 26]),
    )  # fmt: skip
    for crop, number, top, left in zip(crops.cut(draw), draw.picture, draw.top, draw.left, strict=True):
        expected = held[int(number)][:, int(top) : int(top) + 64, int(left) : int(left) + 64].float() / 255
        assert torch.equal(crop, expected)


def test_shrinking_weighs_pixels_as_torch_interpolates_them() -> None:
    x = torch.rand(2, 3, 200, 200, generator=torch.Generator().manual_seed(0))
    weight = shrink_weights(torch.tensor([200, 131]), 96, 210)[:, None, :, :200]
    mine = weight @ x @ weight.mT
    for number, cut in enumerate((200, 131)):
        theirs = F.interpolate(x[number : number + 1, :, :cut, :cut], (96, 96), mode="bilinear", antialias=True)
        torch.testing.assert_close(mine[number], theirs[0], atol=1e-5, rtol=0)  # as above


def test_a_batch_depends_on_seed_and_number_alone() -> None:
    first = Crops(pictures(), 256, 5)
    batches = [first.batch(2) for _ in range(3)]
    later = Crops(pictures(), 256, 5, number=2)
    assert torch.equal(later.batch(2), batches[2]) and not torch.equal(batches[0], batches[1])
    assert not torch.equal(Crops(pictures(), 256, 6).batch(2), batches[0])


def test_crops_are_of_the_8_bit_grid_and_cover_pictures_by_their_area() -> None:
    crops = Crops(pictures(), 64, 1)
    batch = crops.batch(40) * 255
    assert float((batch - batch.round()).abs().max()) < 1e-4 and float(batch.min()) >= 0 and float(batch.max()) <= 255
    counts = torch.bincount(crops.draw(4000).picture, minlength=3).numpy() / 4000
    areas = np.array([300 * 700, 640 * 256, 100 * 90]) / (300 * 700 + 640 * 256 + 100 * 90)
    assert np.abs(counts - areas).max() < 0.04  # five standard deviations


def test_all_turns_and_all_ends_of_a_picture_are_drawn() -> None:
    draw = Crops(pictures()[:1], 256, 1).draw(3000)
    assert len(torch.unique(draw.flipped.long() @ torch.tensor([1, 2, 4]))) == 8
    tall, wide = draw.top + draw.cut, draw.left + draw.cut
    assert int(draw.top.min()) == 0 and int(tall.max()) == 300
    assert int(draw.left.min()) <= 2 and 697 <= int(wide.max()) <= 700


def test_pictures_share_one_buffer_and_come_back_as_they_went_in() -> None:
    held = pictures()
    together = Pictures([p.clone() for p in held])
    assert all(torch.equal(a, b) for a, b in zip(together, held, strict=True))
    last = together.chosen([2, 0])
    assert last.buffer is together.buffer and torch.equal(last[0], held[2]) and torch.equal(last[1], held[0])


def test_pictures_below_the_side_of_a_crop_are_left_out() -> None:
    assert len(Crops(pictures(), 128, 0).pictures) == 2
    with pytest.raises(ConfigError, match="512 x 512"):
        Crops(pictures(), 512, 0)


def test_another_mix_cuts_the_same_places_and_changes_other_shares() -> None:
    mixes = Mix(detailed=0), Mix(shrunk=0, smooth=1, graded=0, detailed=0)
    usual, other = (Crops(pictures(), 64, 3, mix=mix) for mix in mixes)
    one, two = (crops.draw(32) for crops in (usual, other))
    assert torch.equal(one.picture, two.picture) and torch.equal(one.flipped, two.flipped)
    assert bool(two.smooth.all()) and not bool(two.graded.any()) and set(two.cut.tolist()) == {64}
    assert 0 < int(one.smooth.sum()) < 32


def test_detail_of_a_place_is_about_that_of_the_crop_cut_there() -> None:
    smooth = torch.linspace(0, 255, 700).expand(3, 300, 700).to(torch.uint8)
    smooth[1, :, 350:] = torch.arange(350) % 2 * 20  # in green, which tells, 20 levels a pixel
    crops = Crops([smooth], 256, 3)
    zero = torch.zeros(3, dtype=torch.long)
    found = crops.detail(zero, torch.tensor([256, 256, 256]), zero, torch.tensor([0, 400, 222]))
    assert float(found[0]) == pytest.approx(255 / 700, abs=0.02)
    assert float(found[1]) == 20 and float(found[2]) == pytest.approx(10.6, abs=0.1)


def test_a_detailed_crop_is_the_most_detailed_of_its_candidates() -> None:
    held = [torch.full((3, 300, 300), 90, dtype=torch.uint8) for _ in range(7)] + pictures()[:1]  # noise is the last
    share = 300 * 700 / (300 * 700 + 7 * 300 * 300)
    plain, chosen = (Crops(held, 256, 3, mix=Mix(detailed=part)) for part in (0.0, 1.0))
    noisy = [float((crops.draw(2000).picture == 7).double().mean()) for crops in (plain, chosen)]
    assert noisy[0] == pytest.approx(share, abs=0.05)
    assert noisy[1] == pytest.approx(1 - (1 - share) ** 8, abs=0.05)
    half = Crops(held, 256, 3, mix=Mix(detailed=0.5)).draw(2000)
    assert float((half.picture == 7).double().mean()) == pytest.approx(sum(noisy) / 2, abs=0.05)
