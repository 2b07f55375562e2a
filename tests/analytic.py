"""An analytic scene: balls and a floor, traced exactly, for tests of the loop over views."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.segmenters.base import Candidates, SegmenterImage
from sa3d_nerfstudio.traces.nerf import NerfViewTrace, WeightedSamples

# x, y, z and radius of three balls: two that touch, one apart.
BALLS = torch.tensor([[0.0, 0.0, 0.3, 0.3], [0.5, 0.0, 0.2, 0.2], [-0.8, 0.5, 0.25, 0.25]])
FLOOR = 0.0
HAZE = 1 / 3
"""Weight of the floater on each ray that meets it."""


class BallViews:
    """Ring of cameras around the balls; every ray ends on the first surface, with all its weight."""

    focal: float | None = None
    """Focal length in pixels; the width of the images by default."""

    def __init__(
        self,
        count: int = 12,
        height: int = 48,
        width: int = 64,
        distance: float = 3.0,
        balls: Tensor = BALLS,
        numbers: Tensor | None = None,
        noise: float = 0.0,
        floater: Tensor | None = None,
    ) -> None:
        """Set up the scene.

        Args:
            count: Number of cameras.
            height: Height of the images in pixels.
            width: Width of the images in pixels.
            distance: Distance of the cameras from the axis of their ring.
            balls: x, y, z and radius of each ball.
            numbers: Object of each ball, counted from 1; by default, each ball is an object.
            noise: Standard deviation of the depth at which rays end, as in radiance fields.
            floater: x, y, z and radius of a ball of haze outside all objects, with a third of each ray's weight.
        """
        self.height, self.width = height, width
        self.balls, self.noise, self.floater = balls, noise, floater
        self.numbers = torch.arange(1, len(balls) + 1) if numbers is None else numbers
        self.poses = torch.stack([_look_at_middle(2 * math.pi * i / count, distance) for i in range(count)])
        self.traced: list[int] = []
        self.preloaded: list[tuple[int, bool]] = []
        self.passes = 0

    def __len__(self) -> int:
        return len(self.poses)

    @property
    def camera_to_worlds(self) -> Tensor:
        return self.poses

    def name(self, view: int) -> str:
        return f"{view:03d}.png"

    def ids(self, view: int) -> Tensor:
        """Object that each pixel sees, [height, width], counted from 1; 0 is the floor or background."""
        return self._cast(view)[1].reshape(self.height, self.width)

    def trace(self, view: int) -> NerfViewTrace:
        self.traced.append(view)
        depth, ids, origins, directions = self._cast(view)
        depth = depth + self.noise * torch.randn(len(depth), generator=torch.Generator().manual_seed(view))
        hit = torch.isfinite(depth).nonzero()[:, 0]
        weights = torch.isfinite(depth).float()
        accumulation = weights.clone()
        positions, rays, shares = (origins + directions * depth[:, None])[hit], hit, weights[hit]
        if self.floater is not None:
            near = _enter(self.floater, origins, directions)
            hazy = (near < depth).nonzero()[:, 0]
            weights[hazy] *= 1 - HAZE
            accumulation[hazy] = torch.maximum(accumulation[hazy], torch.tensor(HAZE))
            positions = torch.cat([positions, (origins + directions * near[:, None])[hazy]])
            rays, shares = torch.cat([hit, hazy]), torch.cat([weights[hit], torch.full((len(hazy),), HAZE)])
        samples = WeightedSamples(positions, shares, rays, accumulation)
        shape = (self.height, self.width)
        return NerfViewTrace(
            samples=samples,
            height=self.height,
            width=self.width,
            rgb=ids.reshape(*shape, 1).expand(*shape, 3) / 3.0,
            depth=depth.nan_to_num(posinf=1e3).reshape(*shape, 1),
            origins=origins,
            directions=directions,
        )

    def picture(self, view: int, side: int | None = None) -> Tensor:
        return self.trace(view).rgb

    def picture_size(self, view: int, side: int | None = None) -> tuple[int, int]:
        return self.height, self.width

    def preload(self, view: int, picture: bool) -> None:
        self.preloaded.append((view, picture))

    def begin_pass(self) -> None:
        self.passes += 1

    def _cast(self, view: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        pose, focal = self.poses[view], self.focal or self.width
        y, x = torch.meshgrid(torch.arange(self.height) + 0.5, torch.arange(self.width) + 0.5, indexing="ij")
        local = torch.stack([(x - self.width / 2) / focal, -(y - self.height / 2) / focal, -torch.ones_like(x)], dim=-1)
        directions = torch.nn.functional.normalize(local.reshape(-1, 3) @ pose[:, :3].T, dim=-1)
        origins = pose[:, 3].expand_as(directions)
        depth = torch.where(directions[:, 2] < 0, (FLOOR - origins[:, 2]) / directions[:, 2], torch.inf)
        ids = torch.zeros(len(depth), dtype=torch.long)
        for number, ball in zip(self.numbers.tolist(), self.balls, strict=True):
            t = _enter(ball, origins, directions)
            ids = torch.where(t < depth, number, ids)
            depth = torch.minimum(depth, t)
        return depth, ids, origins, directions


def _enter(ball: Tensor, origins: Tensor, directions: Tensor) -> Tensor:
    """Distance at which each ray enters a ball; infinity for rays that miss it."""
    offset = origins - ball[:3]
    b = (offset * directions).sum(-1)
    root = b * b - (offset * offset).sum(-1) + ball[3] ** 2
    t = -b - root.clamp(min=0).sqrt()
    return torch.where((root > 0) & (t > 0), t, torch.inf)


def _look_at_middle(angle: float, distance: float) -> Tensor:
    position = torch.tensor([distance * math.cos(angle), distance * math.sin(angle), 1.5])
    back = torch.nn.functional.normalize(position - torch.tensor([0.0, 0.1, 0.2]), dim=0)
    right = torch.nn.functional.normalize(torch.linalg.cross(torch.tensor([0.0, 0.0, 1.0]), back), dim=0)
    return torch.stack([right, torch.linalg.cross(back, right), back, position], dim=1)


@dataclass
class BallSegmenter:
    """Segmenter that returns the ball under the first positive point, or in some views a given wrong mask."""

    views: BallViews
    wrong: dict[int, Tensor]
    prompts: list[tuple[str, Prompt]]
    embedded: list[str]

    @classmethod
    def of(cls, views: BallViews, wrong: dict[int, Tensor] | None = None) -> BallSegmenter:
        return cls(views, wrong or {}, [], [])

    def embed(self, image: SegmenterImage) -> int:
        self.embedded.append(image.name)
        return int(image.name.removesuffix(".png"))

    def predict(self, embedding: int, prompt: Prompt) -> Candidates:
        self.prompts.append((self.views.name(embedding), prompt))
        if embedding in self.wrong:
            return Candidates(self.wrong[embedding][None], torch.ones(1))
        ids = self.views.ids(embedding)
        x, y = prompt.positive[0].long().tolist()
        mask = (ids == ids[y, x]) & (ids > 0)
        return Candidates(mask[None], torch.ones(1))
