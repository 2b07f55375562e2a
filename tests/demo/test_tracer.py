"""The ray tracer, compared with independently computed geometry."""

from __future__ import annotations

import numpy as np
import pytest
from numpy import ndarray

from sa3d_nerfstudio.demo import layout
from sa3d_nerfstudio.demo.solids import Box, Cylinder, Shape, Solid, Sphere
from sa3d_nerfstudio.demo.textures import checker, mottled, noise, stripes
from sa3d_nerfstudio.demo.tracer import Camera, Room, first_hits, render


def grey(points: ndarray) -> ndarray:
    return np.full_like(points, 0.5)


ROOM = Room((2.0, 2.0, 1.2), grey, grey)
SHAPES = [Sphere(0.3), Box((0.3, 0.2, 0.1)), Cylinder(0.2, 0.3)]


def camera(width: int = 64, height: int = 48) -> Camera:
    return Camera(layout.look_at(np.array([1.1, -0.5, 0.9]), np.array([0.0, 0.1, 0.3])), width, height, 1.05 * width)


def test_the_ids_of_a_sphere_are_its_analytic_projection() -> None:
    center, radius, view = np.array([0.1, 0.05, 0.4]), 0.25, camera()
    _, ids, distance = render(view, [Solid("ball", Sphere(radius), (0.1, 0.05, 0.4), grey)], ROOM, supersample=1)

    # A pixel shows the sphere if the angle between its ray and the centre is less than the sphere's angular radius.
    expected = np.zeros((view.height, view.width), dtype=bool)
    to_center = center - view.pose[:3, 3]
    limit = np.arcsin(radius / np.linalg.norm(to_center))
    for y in range(view.height):
        for x in range(view.width):
            local = np.array([x + 0.5 - view.width / 2, -(y + 0.5 - view.height / 2), -view.focal])
            ray = view.pose[:3, :3] @ local
            cosine = ray @ to_center / np.linalg.norm(ray) / np.linalg.norm(to_center)
            expected[y, x] = np.arccos(cosine) < limit
    assert 100 < expected.sum() < expected.size / 2
    np.testing.assert_array_equal(ids == 1, expected)
    assert distance[expected].min() == pytest.approx(np.linalg.norm(to_center) - radius, abs=1e-3)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: type(shape).__name__)
def test_rays_towards_surface_samples_end_on_the_surface(shape: Shape) -> None:
    solid = Solid("solid", shape, (0.2, -0.1, 0.5), grey, yaw=0.7)
    points = solid.sample_surface(400, np.random.default_rng(0))
    position = np.array([1.5, 0.4, 1.4])
    offset = points - position
    distance = np.linalg.norm(offset, axis=-1)
    ids, hit = first_hits(np.broadcast_to(position, points.shape), offset / distance[:, None], [solid])

    # A ray meets the solid at the sample, or before it where the sample lies on the far side.
    assert (ids == 1).mean() > 0.99
    assert (hit[ids == 1] < distance[ids == 1] + 1e-9).all()
    facing = (solid.normals(points) * offset).sum(-1) < -1e-3
    assert 50 < facing.sum() < 350
    np.testing.assert_allclose(hit[facing], distance[facing], atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: type(shape).__name__)
def test_samples_normals_bounds_and_inside_agree(shape: Shape) -> None:
    solid = Solid("solid", shape, (0.2, -0.1, 0.5), grey, yaw=0.7)
    points = solid.sample_surface(5000, np.random.default_rng(0))
    normals = solid.normals(points)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=-1), 1.0)
    assert solid.contains(points - 1e-6 * normals).mean() > 0.999
    assert not solid.contains(points + 1e-6 * normals).any()
    low, high = solid.bounds
    assert (points > low - 1e-9).all() and (points < high + 1e-9).all()
    np.testing.assert_allclose(points.min(0), low, atol=0.03)
    np.testing.assert_allclose(points.max(0), high, atol=0.03)


def test_projection_is_the_inverse_of_the_rays() -> None:
    view = camera()
    origins, directions = view.rays()
    xy, depth = view.project(origins + 1.7 * directions)
    x, y = np.meshgrid(np.arange(view.width) + 0.5, np.arange(view.height) + 0.5)
    np.testing.assert_allclose(xy, np.stack([x, y], axis=-1).reshape(-1, 2), atol=1e-9)
    assert (depth > 0).all()
    assert (view.project(origins - directions)[1] < 0).all()


def test_nearer_solids_cover_farther_ones_and_cast_shadows() -> None:
    near = Solid("near", Box((0.1, 0.1, 0.1)), (0.4, 0.0, 0.1), grey)
    far = Solid("far", Sphere(0.1), (0.0, 0.0, 0.1), grey)
    position, target = np.array([[1.2, 0.0, 0.1]]), np.array([[-1.0, 0.0, 0.0]])
    assert first_hits(position, target, [near, far])[0] == [1]
    assert first_hits(position, target, [far, near])[0] == [2]

    lit, _, _ = render(camera(), [], ROOM, supersample=1)
    hovering = Solid("hovering", Box((0.1, 0.1, 0.1)), (0.4, 0.0, 0.6), grey)
    shadowed, ids, _ = render(camera(), [hovering], ROOM, supersample=1)
    darker = (shadowed.astype(int) < lit.astype(int) - 20).all(-1) & (ids == 0)
    assert darker.sum() > 10


def test_supersampling_softens_edges_and_leaves_ids_alone() -> None:
    solid = Solid("ball", Sphere(0.25), (0.1, 0.05, 0.4), np.zeros_like)
    hard, ids, _ = render(camera(), [solid], ROOM, supersample=1)
    soft, supersampled_ids, _ = render(camera(), [solid], ROOM, supersample=4)
    np.testing.assert_array_equal(ids, supersampled_ids)
    assert set(np.unique(hard[ids == 1])) == {0}
    assert 0 < soft[ids == 1].max() < 255


@pytest.mark.parametrize("texture", [checker, mottled, stripes], ids=lambda texture: texture.__name__)
def test_textures_stay_within_their_colours(texture) -> None:
    first, second = (0.2, 0.3, 0.9), (0.7, 0.6, 0.1)
    options = {"axis": 2} if texture is stripes else {}
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (2000, 3))
    colours = texture(first, second, size=0.1, seed=3, **options)(points)
    assert colours.shape == points.shape
    assert colours.min() > 0.05 and colours.max() < 0.9 + 1e-9
    assert colours[:, 0].std() > 0.05


def test_noise_is_smooth_and_depends_on_its_seed() -> None:
    points = np.random.default_rng(0).uniform(-3.0, 3.0, (2000, 3))
    values = noise(points, size=0.5, seed=1)
    assert values.min() > 0.0 and values.max() < 1.0 and values.std() > 0.05
    assert np.abs(noise(points + 1e-5, size=0.5, seed=1) - values).max() < 1e-3
    assert np.abs(noise(points, size=0.5, seed=2) - values).max() > 0.2
