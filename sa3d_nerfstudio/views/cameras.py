"""Cameras of the training views: at other sizes, their digests, and the poses that the base run has learnt."""

from __future__ import annotations

import copy

import torch
from nerfstudio.cameras.cameras import Cameras

from sa3d_nerfstudio.files import digest
from sa3d_nerfstudio.models.outputs import MaskOutputs

CAMERA_PARTS = (
    *("camera_to_worlds", "fx", "fy", "cx", "cy", "height", "width"),
    *("distortion_params", "camera_type", "times", "metadata"),
)
"""Attributes that make up nerfstudio's ``Cameras``."""


def resized_camera(cameras: Cameras, view: int, long_side: int) -> Cameras:
    """One of several cameras, for images whose longer side is no longer than ``long_side`` pixels.

    The camera is on the host, where its attributes can be read without waiting for a GPU.
    """
    camera = cameras[view : view + 1].to("cpu")
    longest = max(int(camera.height.max()), int(camera.width.max()))
    if longest > long_side:
        camera.rescale_output_resolution(long_side / longest)
    return camera


def camera_digest(camera: Cameras) -> str:
    """Digest of all attributes of a camera."""
    return digest([getattr(camera, name) for name in CAMERA_PARTS])


@torch.no_grad()
def learnt_poses(model: MaskOutputs, cameras: Cameras) -> Cameras:
    """The training cameras, moved to the poses that the base run's camera optimiser has learnt.

    The radiance field was trained from these poses, yet nerfstudio renders from those of the data set once training is
    over. Only from the learnt poses do the render and the photo of a view coincide.

    Args:
        model: The base model.
        cameras: Cameras of all training images, with the poses of the data set.

    Returns:
        The same cameras if the model has no optimiser, or the optimiser has learnt nothing.
    """
    optimizer = getattr(model, "camera_optimizer", None)
    if optimizer is None or getattr(optimizer, "num_cameras", None) != len(cameras) or optimizer.config.mode == "off":
        return cameras
    corrections = optimizer.get_correction_matrices().to(cameras.camera_to_worlds)
    poses = cameras.camera_to_worlds
    # As nerfstudio's optimiser moves rays: it rotates directions, and shifts origins, in the world.
    # Rotated without a matrix product, which CUDA may compute with mantissas of 10 bits.
    rotated = (corrections[:, :, :3, None] * poses[:, None, :, :3]).sum(2)
    moved = torch.cat([rotated, poses[:, :, 3:] + corrections[:, :, 3:]], dim=-1)
    if torch.equal(moved, poses):
        return cameras
    cameras = copy.copy(cameras)
    cameras.camera_to_worlds = moved
    return cameras
