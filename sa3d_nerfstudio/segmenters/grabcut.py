"""GrabCut on colour and depth: the segmenter that needs no weights.

C. Rother, V. Kolmogorov, A. Blake, "GrabCut", SIGGRAPH 2004; the implementation is OpenCV's.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from skimage.graph import MCP_Geometric

from sa3d_nerfstudio.segmentation.prompts import Prompt
from sa3d_nerfstudio.segmenters.base import Candidates, SegmenterImage, SegmenterOptions, check_prompt

LONG_SIDE = 320
"""Images are shrunk to this: GrabCut's time grows faster than its masks improve."""
REACH = (0.25, 0.5, 1.0)
"""How far, of the way to the background, the probable foreground of each candidate extends."""


@dataclass
class GrabCutEmbedding:
    """What is computed once per image, at the working size."""

    height: int
    width: int
    lab: UInt8[np.ndarray, "rows columns 3"]
    cost: Float[np.ndarray, "rows columns"]


class GrabCutSegmenter:
    """Segments by colour and depth edges around the prompt."""

    def embed(self, image: SegmenterImage) -> GrabCutEmbedding:
        """Colours and edges at the working size."""
        scale = min(1.0, LONG_SIDE / max(image.height, image.width))
        size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
        rgb = (image.rgb.detach().clamp(0, 1).cpu().numpy() * 255).round().astype(np.uint8)
        lab = cv2.cvtColor(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2LAB)
        smooth = cv2.bilateralFilter(lab, 5, 20, 3).astype(np.float32)
        cost = np.hypot(cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)).sum(axis=2) / 100
        if image.depth is not None:
            depth = cv2.resize(
                image.depth.detach().cpu().numpy().astype(np.float32), size, interpolation=cv2.INTER_NEAREST
            )
            log = np.log(np.maximum(depth, 1e-6))
            cost += np.hypot(cv2.Sobel(log, cv2.CV_32F, 1, 0), cv2.Sobel(log, cv2.CV_32F, 0, 1)) * 5
        return GrabCutEmbedding(image.height, image.width, lab, cost)

    def predict(self, embedding: GrabCutEmbedding, prompt: Prompt) -> Candidates:
        """Three candidates, from tight to loose."""
        check_prompt(prompt, embedding.height, embedding.width)
        rows, columns = embedding.cost.shape
        prompt = prompt.resized(rows, columns)
        seeds = np.full((rows, columns), cv2.GC_PR_BGD, np.uint8)
        positive = [(int(y), int(x)) for x, y in prompt.positive.tolist()]
        inside = np.ones((rows, columns), bool)
        if prompt.box is not None:
            x0, y0, x1, y1 = (int(v) for v in prompt.box.round().tolist())
            inside[:] = False
            inside[max(y0, 0) : y1, max(x0, 0) : x1] = True
        if positive:
            distance, _ = MCP_Geometric(embedding.cost + 0.02).find_costs(positive)
            rim = np.concatenate([distance[0], distance[-1], distance[:, 0], distance[:, -1]])
            far = float(np.median(rim))
        else:
            distance, far = np.where(inside, 0.0, np.inf), 1.0
        known = None if prompt.prior is None else prompt.prior.cpu().numpy()
        masks, scores = [], []
        for reach in REACH:
            trimap = seeds.copy()
            trimap[(distance < reach * far * 0.5) & inside] = cv2.GC_PR_FGD
            if known is not None:
                trimap[known > 0.9] = cv2.GC_PR_FGD
                trimap[known < 0.1] = cv2.GC_PR_BGD
            trimap[~inside] = cv2.GC_BGD
            for (x, y), on in zip(prompt.points.tolist(), prompt.labels.tolist(), strict=True):
                cv2.circle(trimap, (int(x), int(y)), 2, (int(cv2.GC_FGD if on else cv2.GC_BGD),), -1)
            mask = self._cut(embedding.lab, trimap)
            masks.append(_holding(mask, positive))
            edge = masks[-1] ^ cv2.erode(masks[-1].astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
            contrast = float(embedding.cost[edge].mean()) if edge.any() else 0.0
            scores.append(contrast * float(np.exp(-10 * masks[-1].mean())))
        size = (embedding.width, embedding.height)
        big = [cv2.resize(m.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST).astype(bool) for m in masks]
        total = max([*scores, 1e-6])
        return Candidates(torch.from_numpy(np.stack(big)), torch.tensor(scores) / total)

    @staticmethod
    def _cut(lab: UInt8[np.ndarray, "rows columns 3"], trimap: UInt8[np.ndarray, "rows columns"]) -> np.ndarray:
        on = np.isin(trimap, (cv2.GC_FGD, cv2.GC_PR_FGD))
        if not on.any() or on.all():
            return on
        cv2.setRNGSeed(0)
        trimap, _, _ = cv2.grabCut(
            lab, trimap, (0, 0, 0, 0), np.zeros((1, 65)), np.zeros((1, 65)), 3, cv2.GC_INIT_WITH_MASK
        )
        return np.isin(trimap, (cv2.GC_FGD, cv2.GC_PR_FGD))


def _holding(mask: Bool[np.ndarray, "rows columns"], points: list[tuple[int, int]]) -> Bool[np.ndarray, "rows columns"]:
    """The connected parts of ``mask`` that hold a point, or all of it without points."""
    if not points:
        return mask
    _, label = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    return np.isin(label, [label[p] for p in points if label[p]])


def build(options: SegmenterOptions) -> GrabCutSegmenter:
    """Build the segmenter; it needs none of the options."""
    return GrabCutSegmenter()
