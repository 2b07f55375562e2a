"""Prompts in whole pixels of the image that a segmenter works on."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float

from sa3d_nerfstudio.fields.connected_parts import large_parts
from sa3d_nerfstudio.prompts.prompt import Prompt

SMALL_PART = 0.3
"""Connected parts of a prior that are smaller than this share of the largest are ignored."""


@dataclass
class PlacedPrompt:
    """A prompt in whole pixels; arrays have the size of the image."""

    shape: tuple[int, int]
    """Height and width."""
    positive: list[tuple[int, int]]
    """y, x of the points on the object."""
    negative: list[tuple[int, int]]
    """y, x of the points on something else."""
    inside: Bool[np.ndarray, "height width"] | None
    """Pixels in the box."""
    probable: Bool[np.ndarray, "height width"] | None
    """Pixels of the object by the prior, without ignored parts."""
    known: Bool[np.ndarray, "height width"] | None
    """Pixels with evidence in the prior, without ignored parts."""
    log_odds: Float[np.ndarray, "height width"] | None
    """Log odds of the object by the prior at each pixel; 0 where it is unknown."""

    @property
    def expected_area(self) -> float:
        """Pixels of the object by the prior, over the share of known pixels in and around it; 0 without a prior."""
        if self.probable is None or self.known is None:
            return 0.0
        area = float(self.probable.sum())
        distance = cv2.distanceTransform((~self.probable).astype(np.uint8), cv2.DIST_L2, 3)
        return area / float(self.known[distance < np.sqrt(area) / 2].mean())

    @property
    def spread(self) -> float:
        """Largest distance between two positive points, in pixels; 0 for fewer than two."""
        points = np.array(self.positive, float).reshape(-1, 2)
        return float(np.linalg.norm(points[:, None] - points[None], axis=-1).max(initial=0.0))


def place(prompt: Prompt, shape: tuple[int, int]) -> PlacedPrompt:
    """Place a prompt in an image of height and width ``shape``. A prior without object pixels counts as none."""
    prompt = prompt.resized(*shape)
    points = [[(int(y), int(x)) for x, y in group.tolist()] for group in (prompt.positive, prompt.negative)]
    inside = probable = known = log_odds = None
    if prompt.box is not None:
        x0, y0, x1, y1 = (round(value) for value in prompt.box.tolist())
        x0, y0 = min(max(x0, 0), shape[1] - 1), min(max(y0, 0), shape[0] - 1)
        inside = np.zeros(shape, bool)
        inside[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)] = True
    if prompt.prior is not None and bool((prompt.prior > 0.5).any()):
        prior = prompt.prior.detach().cpu().numpy()
        known = ~np.isnan(prior)
        probability = np.where(known, prior, 0.5)
        claimed = probability > 0.5
        # A click within the prior's object adds nothing: most likely it was chosen from the prior.
        points[0] = [point for point in points[0] if not claimed[point]]
        probable = large_parts(claimed, SMALL_PART)
        # Parts away from the object were lifted along its rim, by rays that just miss it.
        known &= probable | ~claimed
        probability[~known] = 0.5
        # Odds of about 20 : 1 at most, because fields err.
        log_odds = np.log((probability + 0.05) / (1.05 - probability))
    return PlacedPrompt(shape, points[0], points[1], inside, probable, known, log_odds)
