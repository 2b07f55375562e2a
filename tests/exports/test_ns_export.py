"""What nerfstudio's exporters read off a model: the object, where they do not ask for more."""

from __future__ import annotations

import pytest
import torch
from nerfstudio.exporter.marching_cubes import create_point_pyramid, evaluate_multiresolution_sdf
from nerfstudio.exporter.tsdf_utils import TSDF
from nerfstudio.fields.sdf_field import SDFField
from torch import Tensor

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.models.rays import FAR, MaskedModel
from sa3d_nerfstudio.models.signed_distance import whole_scene
from sa3d_nerfstudio.traces.nerf import NerfTrace
from tests.models.test_rays import ball
from tests.small_models import camera, masked, small_model
from tests.stand_ins import occupancy_on_cpu, sdf_on_cpu

METHODS = ["nerfacto", "vanilla-nerf", "mipnerf", "tensorf", "instant-ngp", "neus", "neus-facto"]


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    for install in (sdf_on_cpu, occupancy_on_cpu):
        install(monkeypatch)


def with_ball(method: str) -> MaskedModel:
    model = masked(small_model(method))
    model.masks["ball"] = ball(0.7)
    return model


@pytest.mark.parametrize("method", METHODS)
def test_an_image_of_rays_is_the_objects(method: str):
    model = with_ball(method)
    rays = camera(20, 28).generate_rays(camera_indices=0, keep_shape=True)
    with torch.no_grad():
        exported = model.get_outputs_for_camera_ray_bundle(rays)
        viewed = model.get_outputs_for_camera(camera(20, 28))
    names = [name for name in ("rgb", "rgb_fine") if name in viewed]
    depths = [name for name in ("depth", "depth_fine", "expected_depth") if name in viewed]
    accumulations = [name for name in ("accumulation", "accumulation_fine") if name in viewed]
    alone = viewed["object_accumulation"]
    assert alone.max() > 1e-4
    for name in accumulations:
        assert torch.allclose(exported[name], alone, atol=1e-4)
    for name in depths:
        assert (exported[name][alone < 0.4] == FAR).all()
        assert torch.allclose(exported[name][alone > 0.6], viewed["object_depth"][alone > 0.6], atol=1e-3)
    for name in names:
        # Colours are the object's own; mixed with the background's, they are those of object_rgb.
        seen = alone[..., 0] > 0.02
        mixed = exported[name] * alone + (1 - alone)
        assert torch.allclose(mixed[seen], viewed["object_rgb"][seen], atol=0.02)


def test_exporters_are_refused_without_an_object():
    rays = camera().generate_rays(camera_indices=0, keep_shape=True)
    with pytest.raises(SA3DError, match="no object to export"):
        masked(small_model("nerfacto")).get_outputs_for_camera_ray_bundle(rays)


def test_after_an_export_images_are_whole():
    model = with_ball("nerfacto")
    with torch.no_grad():
        before = model.get_outputs_for_camera(camera())["rgb"]
        model.get_outputs_for_camera_ray_bundle(camera().generate_rays(camera_indices=0, keep_shape=True))
        assert torch.equal(model.get_outputs_for_camera(camera())["rgb"], before)


def test_where_there_is_no_object_a_tsdf_sees_free_space():
    """nerfstudio's own integration of a depth image: FAR on the left, a surface at 3 on the right."""
    volume = TSDF.from_aabb(torch.tensor([[-1.0, -1, -1], [1, 1, 1]]), volume_dims=torch.tensor([16, 16, 16]))
    pose = torch.eye(4)[None]
    pose[0, 2, 3] = 3.0
    depth = torch.full((1, 1, 40, 40), 3.0)
    depth[..., :20] = FAR
    volume.integrate_tsdf(pose, camera(40, 40).get_intrinsics_matrices(), depth)
    assert (volume.values[:7, 8] == 1).all()
    assert volume.values[12, 8, 15] > 0
    assert volume.values[12, 8, 0] < 0


@pytest.mark.parametrize("method", ["neus", "neus-facto"])
def test_a_field_of_distances_is_cut_to_the_object(method: str):
    model = masked(small_model(method))
    field = model.field
    assert isinstance(field, SDFField)
    model.masks["ball"] = ball(0.3, (0.2, 0.0, 0.0))
    points = torch.rand(4000, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        cut = field.forward_geonetwork(points)
        whole = whole_scene(lambda: field.forward_geonetwork(points))
    on = (points - torch.tensor([0.2, 0.0, 0.0])).norm(dim=-1)
    assert torch.equal(cut[on < 0.25, 0] < 0, whole[on < 0.25, 0] < 0)
    assert (whole[on < 0.25, 0] < 0).sum() > 10
    assert (whole[on > 0.35, 0] < 0).sum() > 10
    assert (cut[on > 0.35, 0] > 0).all()
    assert torch.equal(cut[:, 1:], whole[:, 1:])
    model.masks.hidden.add("ball")
    with pytest.raises(SA3DError, match="no object to export"):
        field.forward_geonetwork(points)


def test_marching_cubes_may_refine_where_the_distance_is_small_only():
    """nerfstudio's own search from coarse to fine finds each side of the surface where evaluating every point does."""
    model = masked(small_model("neus"))
    field = model.field
    assert isinstance(field, SDFField)
    model.masks["ball"] = ball(0.3, (0.3, 0.0, 0.0))
    size = 64
    line = torch.linspace(-0.2, 0.8, size), torch.linspace(-0.5, 0.5, size)
    points = torch.stack(torch.meshgrid(line[0], line[1], line[1], indexing="ij"))
    asked = 0

    def evaluate(positions: Tensor) -> Tensor:
        nonlocal asked
        asked += len(positions)
        return field.forward_geonetwork(positions)[:, 0]

    with torch.no_grad():
        exact = evaluate(points.reshape(3, -1).T.contiguous())
        asked = 0
        found = evaluate_multiresolution_sdf(evaluate, create_point_pyramid(points), None, 0.8, -0.2, size)
    assert asked < 0.7 * size**3
    assert (exact < 0).sum() > 1000
    assert torch.equal(found < 0, exact < 0)


@pytest.mark.parametrize("method", ["neus", "neus-facto"])
def test_distances_are_along_the_ray(method: str):
    """Models of signed distances give depth along the camera's axis; a view's trace gives distance all the same."""
    model = masked(small_model(method))
    view = model.trace_view(camera(20, 28))
    assert isinstance(view, NerfTrace)
    samples = view.samples
    origin = torch.tensor([0.0, 0.0, 3.0])
    distance = samples.composite((samples.positions - origin).norm(dim=-1, keepdim=True))[:, 0]
    distance = distance / samples.composite(torch.ones_like(samples.weights[:, None]))[:, 0].clamp(min=1e-9)
    solid = view.accumulation > 0.5
    assert solid.sum() > 20
    assert torch.allclose(view.depth.reshape(-1)[solid], distance[solid], atol=0.02)
    with torch.no_grad():
        axial = model.get_outputs_for_camera(camera(20, 28))["depth"].reshape(-1)
    assert (view.depth.reshape(-1)[solid] - axial[solid]).max() > 0.02


def test_an_occluder_of_distances_is_gone():
    """The near half of neus' sphere hides the far half: the object. Its sampler would stop at the near half."""
    model = masked(small_model("neus"))
    far = ball(0.35, (0.0, 0.0, -0.6))
    model.masks["far"] = far
    with torch.no_grad():
        outputs = model.get_outputs_for_camera(camera(21, 29))
    assert outputs["mask"][10, 14] < 0.2
    assert outputs["object_accumulation"][10, 14] > 0.3
    assert outputs["object_depth"][10, 14] == 0 or outputs["object_depth"][10, 14] > 3.2
