"""Photos of training views: read ahead, dropped, and resampled to the pixels of renders."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sa3d_nerfstudio.views.photos import MOST_AHEAD, Photos, on_pixels


@pytest.mark.parametrize("have", [(90, 120), (45, 60), (31, 41)])
def test_photos_of_other_sizes_are_stretched(have: tuple[int, int]):
    """Images of any size in the data set show the camera's whole view."""
    rows, columns = torch.arange(have[0]) + 0.5, torch.arange(have[1]) + 0.5
    ramp = torch.stack(torch.meshgrid(rows / have[0], columns / have[1], indexing="ij"), dim=-1)
    photo = torch.cat([ramp, ramp[..., :1]], dim=-1)
    # A camera of 60 x 45 at a long side of 25 has 25 x 18 pixels, instead of a height of 18.75.
    resampled = on_pixels(photo, (45, 60), (18, 25), 25)
    expected = (torch.arange(18) + 0.5) / 18.75
    assert (resampled[:, 12, 0] - expected)[1:-1].abs().max() < 0.012
    assert resampled.shape == (18, 25, 3)


def test_photos_that_are_read_ahead_are_few_and_used_once():
    reads: list[int] = []

    def read(view: int) -> Tensor:
        reads.append(view)
        return torch.full((2, 3, 3), view / 10)

    photos = Photos(read)
    views = list(range(MOST_AHEAD + 2))
    for view in [*views, views[-1]]:
        photos.preload(view)
    assert reads == views, "what is held is not read again"
    newest = views[-1]
    assert torch.equal(photos.photo(newest), torch.full((2, 3, 3), newest / 10))
    assert reads == views, "a photo that was read ahead is not read again"
    photos.photo(newest)
    assert reads == [*views, newest], "it is held until it is used once"
    photos.photo(views[0])
    assert reads[-1] == views[0], "the oldest have been dropped"
