"""The true mask under the prompt, from a scene's instance maps: benchmarks only.

With this in place of a 2D segmenter, all remaining errors are those of the 3D part.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from PIL import Image, UnidentifiedImageError

from sa3d_nerfstudio.errors import SA3DError, one_line
from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.segmenters.base import Candidates, SegmenterImage, SegmenterOptions, check_prompt
from sa3d_nerfstudio.segmenters.proposals import no_proposals

BACKGROUND = 0
"""Id of pixels without an object."""

IdMap = Int[np.ndarray, "height width"]


class OracleSegmenter:
    """Segmenter that returns the instance under a prompt. The embedding is the id map of the image."""

    def __init__(self, folder: Path) -> None:
        """Use the id maps in a folder.

        Args:
            folder: Folder of one 8 or 16 bit single-channel PNG per image, with the image's stem as its name.

        Raises:
            SA3DError: There is no such folder.
        """
        if not folder.is_dir():
            raise SA3DError(
                f"{folder} is not a folder of instance maps: name it with --pipeline.oracle-instances "
                "or choose another --pipeline.segmenter."
            )
        self.folder = folder

    def embed(self, image: SegmenterImage) -> IdMap:
        """Read the id map of the image, at its size [height, width].

        Raises:
            SA3DError: The folder holds no readable id map for this image.
        """
        path = self.folder / f"{Path(image.name).stem}.png"
        return resize_nearest(read_ids(path), image.height, image.width, image.window)

    def predict(self, embedding: IdMap, prompt: Prompt) -> Candidates:
        """Predict one candidate with score 1: the whole visible instance, or an empty mask for background.

        Each positive point votes for the id under it; ids under negative points are excluded. Without positive points,
        it is the id whose bounding box has the highest IoU with the prompt's box. The prior is not used.
        """
        check_prompt(prompt, *embedding.shape)
        votes = _ids_under(embedding, prompt.positive)
        vetoed = set(_ids_under(embedding, prompt.negative).tolist())
        if len(votes):
            chosen = _most_voted(votes, vetoed)
        else:
            assert prompt.box is not None  # check_prompt: no positive point means a box
            chosen = _best_boxed(embedding, prompt.box.numpy(), vetoed)
        mask = (embedding == chosen) & (embedding != BACKGROUND)
        return Candidates(torch.from_numpy(mask)[None], torch.ones(1))

    def propose(self, embedding: IdMap) -> Candidates:
        """All instances of the image, each with score 1."""
        ids = [instance for instance in np.unique(embedding).tolist() if instance != BACKGROUND]
        masks = torch.from_numpy(np.stack([embedding == instance for instance in ids])) if ids else None
        return no_proposals(*embedding.shape) if masks is None else Candidates(masks, torch.ones(len(ids)))


def read_ids(path: Path) -> IdMap:
    """Read an id map as int32 [height, width].

    Raises:
        SA3DError: The file is missing or not a single-channel image.
    """
    try:
        with Image.open(path) as image:
            ids = np.asarray(image)
    except FileNotFoundError:
        raise SA3DError(
            f"the oracle has no instance map {path}: "
            "every image needs one of the same name in --pipeline.oracle-instances."
        ) from None
    except (UnidentifiedImageError, OSError) as error:
        reason = one_line(error)
        raise SA3DError(f"the instance map {path} cannot be read ({reason}): write it again as a PNG.") from error
    if ids.ndim != 2:
        raise SA3DError(f"the instance map {path} has several channels: it must hold one id per pixel, 8 or 16 bit.")
    return ids.astype(np.int32)


def resize_nearest(
    ids: IdMap, height: int, width: int, window: tuple[float, float, float, float] | None = None
) -> IdMap:
    """Resize an id map, or a window of it: each pixel takes the id under its centre.

    A centre between two pixels, as all are at half the size, takes the pixel before and the pixel after it in turns.
    Always the same side would shift every outline by half a pixel, in all views alike.

    Args:
        ids: The id map.
        height: Rows of the result.
        width: Columns of the result.
        window: y0, x0, y1, x1 as shares of the id map's sides; None for the whole map.
    """
    y0, x0, y1, x1 = window or (0.0, 0.0, 1.0, 1.0)
    row, column = np.mgrid[:height, :width]
    y = (y0 + (row + 0.5) * (y1 - y0) / height) * ids.shape[0]
    x = (x0 + (column + 0.5) * (x1 - x0) / width) * ids.shape[1]
    epsilon = 1e-6
    return ids[(y - epsilon * (column % 2)).astype(int), (x - epsilon * (row % 2)).astype(int)]


def _ids_under(ids: IdMap, points: torch.Tensor) -> Int[np.ndarray, " num"]:
    """The id under each x, y point."""
    x, y = points.round().long().numpy().T
    return ids[y, x]


def _most_voted(votes: Int[np.ndarray, " num"], vetoed: set[int]) -> int:
    """The id with most votes that is not vetoed. Objects win ties with the background, then earlier points."""
    best, best_rank = BACKGROUND, (0, False, 0)
    for index, candidate in enumerate(votes.tolist()):
        rank = (votes.tolist().count(candidate), candidate != BACKGROUND, -index)
        if candidate not in vetoed and rank > best_rank:
            best, best_rank = candidate, rank
    return best


def _best_boxed(ids: IdMap, box: np.ndarray, vetoed: set[int]) -> int:
    """The id whose bounding box has the highest IoU with ``box`` (x0, y0, x1, y1, upper bounds exclusive)."""
    best, best_iou = BACKGROUND, 0.0
    for candidate in np.unique(ids).tolist():
        if candidate == BACKGROUND or candidate in vetoed:
            continue
        y, x = np.nonzero(ids == candidate)
        low, high = np.array([x.min(), y.min()]), np.array([x.max() + 1, y.max() + 1])
        intersection = np.prod(np.maximum(np.minimum(high, box[2:]) - np.maximum(low, box[:2]), 0))
        iou = float(intersection / (np.prod(high - low) + np.prod(box[2:] - box[:2]) - intersection))
        if iou > best_iou:
            best, best_iou = candidate, iou
    return best


def build(options: SegmenterOptions) -> OracleSegmenter:
    """Build the oracle from ``options.oracle_instances``.

    Raises:
        SA3DError: No folder is named, or it does not exist.
    """
    if options.oracle_instances is None:
        raise SA3DError(
            "the oracle needs the folder of the scene's instance maps: name it with --pipeline.oracle-instances "
            "or choose another --pipeline.segmenter."
        )
    return OracleSegmenter(Path(options.oracle_instances))
