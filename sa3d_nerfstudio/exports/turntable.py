"""A camera that circles an object, and its video."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.utils import colormaps
from numpy.typing import NDArray
from torch import Tensor

from sa3d_nerfstudio.distributed.ranks import Ranks
from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.exports.boxes import Box
from sa3d_nerfstudio.exports.object_view import RenderedRays
from sa3d_nerfstudio.files import atomic_path
from sa3d_nerfstudio.models.outputs import MaskOutputs

FIELD_OF_VIEW = 50.0
"""Field of view along the image's shorter side, in degrees."""


def orbit(
    boxes: Sequence[Box],
    camera_to_worlds: Float[Tensor, "num_views 3 4"],
    num_frames: int,
    elevation: float | None,
    margin: float = 1.1,
) -> Float[Tensor, "num_frames 4 4"]:
    """Poses on a circle around some boxes, at the least distance at which the boxes fit into the image.

    Args:
        boxes: Boxes around the objects.
        camera_to_worlds: Poses of the training cameras, for the default elevation and the first azimuth. Up is the
            z axis, as everywhere in nerfstudio.
        num_frames: Number of poses.
        elevation: Degrees above the horizon; by default the median of the training cameras.
        margin: Ratio of the image's shorter side to the extent of the boxes in the image, where that is largest.
    """
    corners = torch.from_numpy(np.concatenate([box.corners for box in boxes]))
    center = (corners.amin(0) + corners.amax(0)) / 2
    poses = camera_to_worlds.double().cpu()
    up = torch.tensor([0.0, 0.0, 1.0], dtype=poses.dtype)
    views = torch.nn.functional.normalize(poses[:, :, 3] - center, dim=-1)
    if elevation is None:
        elevation = math.degrees(math.asin(float((views @ up).median().clamp(-0.95, 0.95))))
    # The first pose is on the side of most cameras.
    front = views.mean(0) - (views.mean(0) @ up) * up
    if float(front.norm()) < 1e-3:
        front = torch.tensor([1.0, 0.0, 0.0], dtype=poses.dtype)
    front = torch.nn.functional.normalize(front, dim=0)
    side = torch.linalg.cross(up, front)
    height, radius = math.sin(math.radians(elevation)), math.cos(math.radians(elevation))
    angles = torch.linspace(0, 2 * math.pi, num_frames + 1, dtype=up.dtype)[:-1, None]
    outwards = radius * (angles.cos() * front + angles.sin() * side) + height * up
    # For each pose and corner, the distance of the camera at which the corner lies within the image.
    rightwards = torch.nn.functional.normalize(torch.linalg.cross(up.expand_as(outwards), outwards), dim=-1)
    upwards = torch.linalg.cross(outwards, rightwards)
    across = torch.maximum((rightwards @ (corners - center).T).abs(), (upwards @ (corners - center).T).abs())
    reach = margin * across / math.tan(math.radians(FIELD_OF_VIEW) / 2) + outwards @ (corners - center).T
    positions = center + float(reach.max()) * outwards
    poses = torch.eye(4, dtype=up.dtype).repeat(num_frames, 1, 1)
    poses[:, :3] = torch.stack([rightwards, upwards, outwards, positions], dim=-1)
    return poses


def camera_path(
    poses: Float[Tensor, "num_frames 4 4"], width: int, height: int, frames_per_second: float
) -> dict[str, Any]:
    """A camera path as saved by nerfstudio's viewer and read by ``ns-render camera-path``."""
    # The file holds the vertical field of view; in an upright image, the object must fit into the width.
    shorter = min(1.0, width / height)
    fov = 2 * math.degrees(math.atan(math.tan(math.radians(FIELD_OF_VIEW) / 2) / shorter))
    frame = {"fov": fov, "aspect": width / height}
    return {
        "camera_type": "perspective",
        "render_height": height,
        "render_width": width,
        "fps": frames_per_second,
        "seconds": len(poses) / frames_per_second,
        "is_cycle": True,
        "smoothness_value": 0.0,
        "crop": None,
        "camera_path": [{"camera_to_world": pose.reshape(-1).tolist(), **frame} for pose in poses],
    }


def check_outputs(model: MaskOutputs, camera: Cameras, names: Sequence[str]) -> None:
    """Check, on a few pixels, that the model has outputs of these names.

    Raises:
        SA3DError: An output is missing.
    """
    small = copy.deepcopy(camera)
    small.rescale_output_resolution(8 / int(camera.height.max()))
    render(model, small, names)


@torch.no_grad()
def render(
    model: MaskOutputs, camera: Cameras, names: Sequence[str], rays: RenderedRays | None = None
) -> Float[np.ndarray, "height width 3"]:
    """Outputs of the model side by side, as ``ns-render --rendered-output-names`` shows them, in [0, 1].

    Args:
        model: The base model with masks.
        camera: One camera.
        names: Names of the outputs.
        rays: Counts the rays of the image, and those that are rendered.

    Raises:
        SA3DError: The model lacks one of the outputs.
    """
    outputs = model.render_outputs(camera, names)
    if rays is not None:
        rays.add(model.rays_for(camera, names))
    images = []
    for name in names:
        if name not in outputs:
            raise SA3DError(f"the model has no output {name}: it has {', '.join(outputs)}.")
        image = outputs[name]
        if "depth" in name:
            image = colormaps.apply_depth_colormap(image, outputs.get("accumulation"))
        else:
            image = colormaps.apply_colormap(image)
        images.append(image.cpu().numpy())
    return np.concatenate(images, axis=1)


def images_from_ranks(
    rounds: Iterable[int], count: int, render_one: Callable[[int], NDArray[np.floating]], ranks: Ranks
) -> Iterator[NDArray[np.floating]]:
    """All images in order on rank 0, where each rank renders one image of each round; none on the other ranks.

    Args:
        rounds: Index of the first image of each round.
        count: Number of images.
        render_one: Renders the image of an index, in [0, 1].
        ranks: The processes that share the images.
    """
    for start in rounds:
        index = start + ranks.rank
        image = render_one(index) if index < count else None
        if ranks.size == 1:
            assert image is not None
            yield image
            continue
        # As bytes, as the video encodes them.
        pixels = None if image is None else torch.from_numpy((image.clip(0, 1) * 255).round().astype(np.uint8))
        for received in ranks.collect(pixels):
            if received is not None:
                yield received.numpy() / 255


def write_video(path: Path, images: Iterator[NDArray[np.floating]], frames_per_second: float) -> None:
    """Write images with values in [0, 1] as H.264 in MP4, which browsers and editors play.

    The encoder is part of PyAV: no ffmpeg has to be installed. Sizes are made even, as H.264 requires.
    """
    with atomic_path(path) as temporary, av.open(str(temporary), "w") as container:
        stream: Any = None
        for image in images:
            height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
            pixels = (image[:height, :width].clip(0, 1) * 255).round().astype(np.uint8)
            if stream is None:
                stream = container.add_stream("h264", rate=round(frames_per_second))
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                stream.options = {"crf": "18"}
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))
        if stream is not None:
            container.mux(stream.encode())
