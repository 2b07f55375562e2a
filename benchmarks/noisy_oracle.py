"""True masks with errors added on purpose, to measure the loop with a segmenter that errs."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch

from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.segmenters.base import Candidates, SegmenterImage
from sa3d_nerfstudio.segmenters.oracle import BACKGROUND, IdMap, OracleSegmenter

Noise = Literal["eroded", "dilated", "wobbling", "wrong", "corrupted"]


class NoisyOracle(OracleSegmenter):
    """Oracle with errors; its embedding is the id map and the image's name.

    Args:
        folder: Folder of the id maps.
        noise: ``eroded`` and ``dilated``: every mask, by ``pixels``. ``wobbling``: dilated by ``pixels`` in two of five
            views, and eroded in two others. ``wrong``: in a share of the views, the mask of another visible object, or
            of the background. ``corrupted``: in a share of the views, at random the wrong object, half of the mask, or
            the mask dilated by a quarter of its size (the square root of its area).
        share: Share of the views that ``wrong`` and ``corrupted`` spoil.
        pixels: Pixels by which masks are eroded or dilated.
        seed: Seed that decides, with the views' names alone, which views are spoilt, in any order of calls.
        spared: Stem of the image whose mask stays true: the prompted view, because the user sees its mask.
    """

    def __init__(
        self, folder: Path, noise: Noise, share: float = 0.2, pixels: int = 1, seed: int = 0, spared: str = ""
    ) -> None:
        super().__init__(folder)
        self.noise, self.share, self.pixels, self.seed, self.spared = noise, share, pixels, seed, spared

    def embed(self, image: SegmenterImage) -> tuple[IdMap, str]:  # type: ignore[override]
        """The id map of the image, and its name."""
        return super().embed(image), Path(image.name).stem

    def predict(self, embedding: tuple[IdMap, str], prompt: Prompt) -> Candidates:  # type: ignore[override]
        """Mask of the true instance, with the errors of the noise."""
        ids, name = embedding
        mask = super().predict(ids, prompt).masks[0].numpy()
        if mask.any() and name != self.spared:
            mask = self._spoil(ids, mask, np.random.default_rng([self.seed, zlib.crc32(name.encode())]))
        return Candidates(torch.from_numpy(mask)[None], torch.ones(1))

    def _spoil(self, ids: IdMap, mask: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        if self.noise == "wobbling":
            change = generator.choice(["dilated", "dilated", "eroded", "eroded", "none"])
            return mask if change == "none" else self._outlined(change, mask)
        if self.noise in ("eroded", "dilated"):
            return self._outlined(self.noise, mask)
        if generator.random() >= self.share:
            return mask
        kind = "wrong" if self.noise == "wrong" else generator.choice(["wrong", "half", "fat"])
        if kind == "wrong":
            numbers = np.setdiff1d(ids, [BACKGROUND, *np.unique(ids[mask])])
            return ids == (generator.choice(numbers) if len(numbers) else BACKGROUND)
        if kind == "half":
            columns = np.nonzero(mask.any(axis=0))[0]
            half = mask.copy()
            half[:, columns[len(columns) // 2] :] = False
            return half if half.any() else mask
        return _morph(cv2.dilate, mask, max(round(float(np.sqrt(mask.sum())) / 4), 1))

    def _outlined(self, noise: str, mask: np.ndarray) -> np.ndarray:
        return _morph(cv2.erode if noise == "eroded" else cv2.dilate, mask, self.pixels)


def _morph(change: Callable[..., np.ndarray], mask: np.ndarray, pixels: int) -> np.ndarray:
    return change(mask.astype(np.uint8), np.ones((3, 3), np.uint8), iterations=pixels) > 0
