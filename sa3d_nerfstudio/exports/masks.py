"""2D masks of objects: one PNG per image and object, one id map per image, or COCO annotations."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from nerfstudio.utils.rich_utils import CONSOLE
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from rich.progress import track

from sa3d_nerfstudio.distributed.ranks import Ranks, tell_as_data
from sa3d_nerfstudio.errors import SA3DError, one_line
from sa3d_nerfstudio.exports.dataset import NamedCamera
from sa3d_nerfstudio.exports.object_view import RenderedRays, view_objects
from sa3d_nerfstudio.exports.objects import ExportObject
from sa3d_nerfstudio.files import atomic_path, write_json, write_png
from sa3d_nerfstudio.models.outputs import MaskOutputs

tell_as_data(type(Path()))

IdMap = NDArray[np.int64]


def id_maps(
    model: MaskOutputs,
    cameras: Sequence[NamedCamera],
    objects: Sequence[ExportObject],
    threshold: float,
    ranks: Ranks | None = None,
) -> Iterator[tuple[NamedCamera, IdMap]]:
    """Id of the object in each pixel of each camera, 0 for none, under a progress bar.

    Args:
        model: The base model with masks.
        cameras: The cameras, each at its own size.
        objects: The objects; where two overlap, the pixel shows the more probable one.
        threshold: Probability above which a pixel belongs to an object.
        ranks: The processes that share the cameras; each yields its share.
    """
    ranks, rays = ranks or Ranks(), RenderedRays()
    for item in track(ranks.every(cameras), "masks", console=CONSOLE):
        view = view_objects(model, item.camera, objects, threshold)
        rays.add(view.seen.passing)
        yield item, view.ids(threshold).numpy()
    rays.summed(ranks).tell()


def dilated(mask: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """A mask dilated by a number of pixels."""
    if pixels <= 0:
        return mask
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * pixels + 1, 2 * pixels + 1))
    return cv2.dilate(mask.astype(np.uint8), disc).astype(bool)


def write_masks(
    folder: Path,
    maps: Iterable[tuple[NamedCamera, IdMap]],
    objects: Sequence[ExportObject],
    invert: bool = False,
    grow: int = 0,
    ranks: Ranks | None = None,
) -> dict[Path, Path]:
    """Write PNGs: 255 on the object and 0 elsewhere, or inverted.

    All objects together go to ``masks/IMAGE.png``, for nerfstudio's ``mask_path``: it trains on the pixels that are not
    0. If there are several objects, each also goes to ``objects/OBJECT/IMAGE.png``.

    Args:
        folder: Folder to write to.
        maps: See :func:`id_maps`.
        objects: The objects.
        invert: Write 0 on the object and 255 elsewhere.
        grow: Pixels to dilate the masks by.
        ranks: The processes that share the cameras; each writes the masks of its share.

    Returns:
        Path of the mask of all objects, by image; cameras without images are left out.
    """
    written = []
    for item, ids in maps:
        masks = {folder / "masks" / item.name: ids > 0}
        if len(objects) > 1:
            masks |= {folder / "objects" / target.stem / item.name: ids == target.id for target in objects}
        for path, mask in masks.items():
            write_png(path, ((dilated(mask, grow) != invert) * 255).astype(np.uint8))
        written.append((item.image, folder / "masks" / item.name))
    merged = (ranks or Ranks()).merged(written)
    return {image: path for image, path in merged if image is not None}


def write_rgba(
    folder: Path,
    maps: Iterable[tuple[NamedCamera, IdMap]],
    invert: bool = False,
    grow: int = 0,
    ranks: Ranks | None = None,
) -> dict[Path, Path]:
    """Write ``rgba/IMAGE.png``: each photo with the mask of all objects as alpha, 0 or 255.

    Colours are kept where alpha is 0, so that the outline has no seam.

    Args:
        folder: Folder to write to.
        maps: See :func:`id_maps`; the cameras must have photos.
        invert: Write alpha 0 on the objects and 255 elsewhere.
        grow: Pixels to dilate the masks by.
        ranks: The processes that share the cameras; each writes the images of its share.

    Returns:
        Path of the new image, by photo.

    Raises:
        SA3DError: A photo cannot be read, or is not of its camera's size.
    """
    written = []
    for item, ids in maps:
        assert item.image is not None
        try:
            with Image.open(item.image) as image:
                colors = np.asarray(image.convert("RGB"))
        except OSError as error:
            raise SA3DError(f"the photo {item.image} cannot be read ({one_line(error)}): restore it.") from error
        if colors.shape[:2] != ids.shape:
            raise SA3DError(
                f"the photo {item.image} has {colors.shape[1]} x {colors.shape[0]} pixels and its mask "
                f"{ids.shape[1]} x {ids.shape[0]}: put the photo back that the run was trained on."
            )
        alpha = ((dilated(ids > 0, grow) != invert) * 255).astype(np.uint8)
        path = folder / "rgba" / item.name
        write_png(path, np.dstack([colors, alpha]))
        written.append((item.image, path))
    return dict((ranks or Ranks()).merged(written))


def write_id_maps(
    folder: Path,
    maps: Iterable[tuple[NamedCamera, IdMap]],
    objects: Sequence[ExportObject],
    ranks: Ranks | None = None,
) -> Path:
    """Write ``ids/IMAGE.png`` with the id of the object in each pixel, and ``objects.json`` that names them.

    Args:
        folder: Folder to write to.
        maps: See :func:`id_maps`.
        objects: The objects.
        ranks: The processes that share the cameras; each writes the maps of its share, and the first the names.

    Returns:
        Path of objects.json.
    """
    # One bit depth for all maps.
    dtype = np.uint8 if max(item.id for item in objects) < 256 else np.uint16
    for item, ids in maps:
        write_png(folder / "ids" / item.name, ids.astype(dtype))
    path = folder / "objects.json"
    colors = {item.id: [round(255 * value) for value in item.color] for item in objects}
    table = [{"id": item.id, "name": item.name, "color": colors[item.id]} for item in objects]
    if (ranks or Ranks()).is_first:
        write_json(path, {"background_id": 0, "objects": table})
    return path


def write_coco(
    path: Path,
    maps: Iterable[tuple[NamedCamera, IdMap]],
    objects: Sequence[ExportObject],
    parents: Mapping[str, str | None] | None = None,
    ranks: Ranks | None = None,
) -> None:
    """Write COCO annotations, with masks as compressed run lengths, which ``pycocotools`` reads.

    An object's category is its id. Images are named by their full paths; on a camera path, by the names of their masks.

    Args:
        path: The JSON file.
        maps: See :func:`id_maps`.
        objects: The objects.
        parents: Parent of each object that is a part: the category's "supercategory", which is "object" for all others.
        ranks: The processes that share the cameras; the first writes the file.
    """
    parents, ranks = parents or {}, ranks or Ranks()
    entries: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
    for item, ids in maps:
        height, width = ids.shape
        name = item.name if item.image is None else item.image
        image, segments = {"file_name": str(name), "height": height, "width": width}, []
        entries.append((image, segments))
        for target in objects:
            mask = ids == target.id
            if not mask.any():
                continue
            lengths: Any = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            segments.append(
                {
                    "category_id": target.id,
                    "segmentation": {"size": [height, width], "counts": lengths["counts"].decode("ascii")},
                    "area": int(mask.sum()),
                    "bbox": [float(value) for value in coco_mask.toBbox(lengths)],
                    "iscrowd": 0,
                }
            )
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (image, segments) in enumerate(ranks.merged(entries), start=1):
        images.append({"id": number, **image})
        annotations += [
            {"id": len(annotations) + 1 + index, "image_id": number, **item} for index, item in enumerate(segments)
        ]
    if not ranks.is_first:
        return
    all_parents = {target.name: parents.get(target.name) or "object" for target in objects}
    categories = [
        {"id": target.id, "name": target.name, "supercategory": all_parents[target.name]} for target in objects
    ]
    with atomic_path(path) as temporary:
        content = {"images": images, "annotations": annotations, "categories": categories}
        temporary.write_text(json.dumps(content), "utf8")
