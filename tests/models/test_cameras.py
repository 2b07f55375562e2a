"""Cameras of every kind that a NeRF renders: traces and clicks follow the projection of the lens.

The expected projections are OpenCV's and, for panoramas, written by hand; nerfstudio's rays are not used for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.scene_box import OrientedBox
from torch import Tensor

from sa3d_nerfstudio.models import gating
from sa3d_nerfstudio.models.rays import MaskedModel
from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.segmentation.session import SegmentationSession
from sa3d_nerfstudio.segmentation.settings import SessionSettings
from sa3d_nerfstudio.segmenters.base import Candidates, SegmenterImage
from sa3d_nerfstudio.views.training_views import TrainingViews
from tests.models.test_rays import ball
from tests.small_models import camera, masked, small_model
from tests.stand_ins import sdf_on_cpu

OBJECT, OTHER, RADIUS = torch.tensor([0.45, 0.3, 0.1]), torch.tensor([-0.6, -0.35, 0.2]), 0.3
"""Centres and radius of two balls, away from the middle of the image, where lenses differ."""


@dataclass(frozen=True)
class Lens:
    """A kind of camera: its parameters in nerfstudio, and its projection."""

    kind: CameraType
    focal: float
    distortion: tuple[float, ...] = (0.0,) * 6
    """k1, k2, k3, k4, p1, p2."""
    distance: float = 2.2
    """Distance from the middle between the balls."""
    height: int = 36
    width: int = 48

    def ring(self, count: int) -> Tensor:
        """Poses [count, 3, 4] around the balls that look at the middle between them."""
        angles = torch.arange(count) * (2 * torch.pi / count) + 0.3
        back = torch.stack([angles.sin(), torch.full_like(angles, 0.25), angles.cos()], dim=-1)
        back = torch.nn.functional.normalize(back, dim=-1)
        up = torch.tensor([[0.0, 1.0, 0.0]]).expand_as(back)
        right = torch.nn.functional.normalize(torch.linalg.cross(up, back))
        return torch.stack([right, torch.linalg.cross(back, right), back, self.distance * back], dim=-1)

    def cameras(self, poses: Tensor, scale: int = 1) -> Cameras:
        """Cameras at poses [num, 3, 4], with images ``scale`` times as large."""
        focal = (
            [self.width / 2, float(self.height)]
            if self.kind is CameraType.EQUIRECTANGULAR
            else [self.focal, self.focal]
        )
        return Cameras(
            poses, fx=focal[0] * scale, fy=focal[1] * scale, cx=self.width / 2 * scale, cy=self.height / 2 * scale,
            height=self.height * scale, width=self.width * scale, camera_type=self.kind,
            distortion_params=torch.tensor(self.distortion),
        )  # fmt: skip

    def project(self, points: Tensor, pose: Tensor) -> np.ndarray:
        """Image coordinates x, y [num, 2] of world points; the top left corner of the image is 0, 0."""
        local = ((points - pose[:, 3]) @ pose[:, :3]).double().numpy()
        if self.kind is CameraType.EQUIRECTANGULAR:
            east, up = np.arctan2(local[:, 0], -local[:, 2]), np.arcsin(local[:, 1] / np.linalg.norm(local, axis=-1))
            return np.stack([(0.5 + east / (2 * np.pi)) * self.width, (0.5 - up / np.pi) * self.height], axis=-1)
        k1, k2, k3, k4, p1, p2 = self.distortion
        matrix = np.array([[self.focal, 0, self.width / 2], [0, self.focal, self.height / 2], [0, 0, 1]])
        local = (local * [1, -1, -1])[:, None]
        if self.kind is CameraType.FISHEYE:
            return cv2.fisheye.projectPoints(local, np.zeros(3), np.zeros(3), matrix, np.array([k1, k2, k3, k4]))[0][
                :, 0
            ]
        return cv2.projectPoints(local, np.zeros(3), np.zeros(3), matrix, np.array([k1, k2, p1, p2, k3]))[0][:, 0]

    def silhouette(self, center: Tensor, pose: Tensor) -> Tensor:
        """Pixels [height, width] that show a ball, except those that it barely touches."""
        generator = torch.Generator().manual_seed(1)
        directions = torch.nn.functional.normalize(torch.randn(20000, 3, generator=generator), dim=-1)
        x, y = np.floor(self.project(center + 0.93 * RADIUS * directions, pose)).astype(int).T
        inside = (x >= 0) & (x < self.width) & (y >= 0) & (y < self.height)
        image = torch.zeros(self.height, self.width, dtype=torch.bool)
        image[y[inside], x[inside]] = True
        return image


LENSES = {
    "perspective": Lens(CameraType.PERSPECTIVE, 45.0),
    "distorted": Lens(CameraType.PERSPECTIVE, 45.0, (0.6, -0.2, 0.0, 0.0, 0.03, -0.04)),
    "fisheye": Lens(CameraType.FISHEYE, 40.0, (0.12, 0.02, 0.0, 0.0, 0.0, 0.0)),
    "panorama": Lens(CameraType.EQUIRECTANGULAR, 0.0, distance=1.3, height=40, width=80),
}


def overlap(a: Tensor, b: Tensor) -> float:
    """Intersection over union."""
    return float((a & b).sum() / (a | b).sum())


@pytest.fixture
def balls() -> Iterator[MaskedModel]:
    """A nerfacto with density in the two balls alone."""
    model: Any = small_model("nerfacto")
    model.config.eval_num_rays_per_chunk = 1000
    model.collider.near_plane, model.collider.far_plane = 0.2, 4.5
    # Samples as fine as the comparison of silhouettes needs.
    sampler = model.proposal_sampler
    sampler.num_proposal_samples_per_ray, sampler.num_nerf_samples_per_ray = (64, 32), 24

    def gate(positions: Tensor) -> Tensor:
        nearest = torch.stack([(positions - center).norm(dim=-1, keepdim=True) for center in (OBJECT, OTHER)]).amin(0)
        # Nerfacto's density is that of fog; the gate increases it in the balls and removes it elsewhere.
        return 20.0 * (nearest < RADIUS)

    token = gating._GATE.set(gate)
    yield model
    gating._GATE.reset(token)


@pytest.mark.parametrize("name", LENSES)
def test_a_view_is_traced_through_its_lens(name: str, balls: MaskedModel):
    lens = LENSES[name]
    pose = lens.ring(3)[0]
    view = balls.trace_view(lens.cameras(pose[None]))
    seen = (view.accumulation > 0.5).reshape(lens.height, lens.width)
    truth = lens.silhouette(OBJECT, pose) | lens.silhouette(OTHER, pose)
    assert truth.sum() > 30
    assert overlap(seen, truth) > 0.65
    x, y = np.floor(lens.project(OBJECT[None], pose)[0]).astype(int)
    surface = view.surface_points().reshape(lens.height, lens.width, 3)[y, x]
    assert (surface - OBJECT).norm() < 1.15 * RADIUS
    if name in ("distorted", "fisheye"):
        pinhole = LENSES["perspective"].silhouette(OBJECT, pose) | LENSES["perspective"].silhouette(OTHER, pose)
        assert overlap(seen, pinhole) < overlap(seen, truth) - 0.05


@dataclass
class Silhouettes:
    """A segmenter that answers with the silhouette of the ball under the first point."""

    lens: Lens
    poses: Tensor

    def embed(self, image: SegmenterImage) -> list[Tensor]:
        """The two silhouettes."""
        height, width = self.lens.height, self.lens.width
        top, left, bottom, right = (0.0, 0.0, 1.0, 1.0) if image.window is None else image.window
        rows = slice(round(top * height), round(bottom * height))
        columns = slice(round(left * width), round(right * width))
        pose = self.poses[int(image.name[:-4])]
        masks = [self.lens.silhouette(center, pose)[rows, columns] for center in (OBJECT, OTHER)]
        assert all(mask.shape == (image.height, image.width) for mask in masks)
        return masks

    def predict(self, embedding: list[Tensor], prompt: Prompt) -> Candidates:
        """One candidate."""
        x, y = prompt.positive[0].long().tolist()
        chosen = next((mask for mask in embedding if mask[y, x]), torch.zeros_like(embedding[0]))
        return Candidates(chosen[None], torch.ones(1))


@pytest.mark.parametrize("name", LENSES)
def test_a_click_in_an_image_of_any_lens_selects_what_is_there(name: str, balls: MaskedModel):
    lens = LENSES[name]
    poses = lens.ring(4)
    views = TrainingViews(
        balls, lens.cameras(poses, scale=3), [Path(f"{i}.png") for i in range(4)], long_side=lens.width
    )
    assert views.image_size(0) == (3 * lens.height, 3 * lens.width)
    grid = balls.new_field(48)
    session = SegmentationSession(views, Silhouettes(lens, poses), grid, SessionSettings(max_passes=2))
    # In pixels of the full image, whose top left pixel is 0, 0.
    click = np.floor(3 * lens.project(OBJECT[None], poses[0])[0])
    session.prompt(0, Prompt.from_points(*views.image_size(0), [click]))
    report = session.run()
    assert sum(record.state in ("used", "prompt") for record in report.last().values()) >= 3
    points = grid.object_points()[0]
    assert (points.mean(0) - OBJECT).norm() < 0.15 * RADIUS
    assert ((points - OBJECT).norm(dim=-1) < 1.3 * RADIUS).float().mean() > 0.95
    balls.masks["ball"] = grid
    for other_name in ("perspective", name):
        pose = LENSES[other_name].ring(7)[3]
        view = balls.trace_view(LENSES[other_name].cameras(pose[None]))
        mask = balls.render_mask(view).reshape(view.height, view.width) > 0.5
        hidden, truth = (LENSES[other_name].silhouette(center, pose) for center in (OTHER, OBJECT))
        assert overlap(mask & ~hidden, truth & ~hidden) > 0.6, other_name


def test_the_middle_of_a_fisheye_lens_does_no_harm(balls: MaskedModel):
    """nerfstudio divides by zero there if a pixel lies exactly on the axis; the trace stays finite."""
    pose = LENSES["fisheye"].ring(3)[:1]
    fisheye = Cameras(pose, 50.0, 50.0, 32.5, 24.5, 65, 49, camera_type=CameraType.FISHEYE)
    assert fisheye.generate_rays(camera_indices=0).directions.isnan().any()
    view = balls.trace_view(fisheye)
    assert view.surface_points().isfinite().all()
    assert view.depth.isfinite().all()
    assert view.backproject(balls.new_field(16), torch.ones(len(view.accumulation), 1)).isfinite().all()


def test_evaluation_is_without_camera_corrections_and_with_the_models_choice_of_appearance():
    """As in the base model: uncorrected poses, and the mean appearance embedding or none."""

    def rendered(masks: bool, average: bool) -> Tensor:
        model = small_model("nerfacto", masked=masks)
        nerf: Any = model
        assert nerf.camera_optimizer.config.mode != "off"
        torch.manual_seed(5)
        with torch.no_grad():
            nerf.camera_optimizer.pose_adjustment.normal_(0, 0.3)
            nerf.field.embedding_appearance.embedding.weight.normal_(2, 1)
        nerf.field.use_average_appearance_embedding = average
        return model.trace_view(camera()).rgb if masks else model.get_outputs_for_camera(camera())["rgb"]  # type: ignore[arg-type]

    assert torch.allclose(rendered(True, True), rendered(False, True), atol=1e-6)
    assert torch.allclose(rendered(True, False), rendered(False, False), atol=1e-6)
    assert not torch.allclose(rendered(True, True), rendered(True, False), atol=1e-3)


def test_a_crop_box_crops_mask_and_object(balls: MaskedModel):
    """The viewer's crop, which reaches the model as near and far planes."""
    balls.masks["both"] = ball(1.0)
    right = OrientedBox(torch.eye(3), torch.tensor([1.0, 0.0, 0.0]), torch.tensor([2.0, 4.0, 4.0]))
    whole, half = balls.get_outputs_for_camera(camera(20, 28)), balls.get_outputs_for_camera(camera(20, 28), right)
    for name in ("mask", "object_accumulation"):
        assert whole[name][7, 18] > 0.9, name
        assert half[name][7, 18] > 0.9, name
        assert whole[name][13, 8] > 0.9, name
        assert half[name][:, :12].max() < 0.05, name


def test_a_scene_box_bounds_the_rays(monkeypatch: pytest.MonkeyPatch):
    """neus takes its near and far planes from the scene's box, and so does its trace."""
    sdf_on_cpu(monkeypatch)
    model = masked(small_model("neus-in-a-box"))
    view = model.trace_view(camera(20, 28))
    assert view.accumulation.max() > 0.5
    assert (view.samples.positions.abs() < 1.01).all()  # type: ignore[attr-defined]
    assert torch.allclose(view.rgb, model.get_outputs_for_camera(camera(20, 28))["rgb"], atol=1e-5)
