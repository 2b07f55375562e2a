"""The demo's scene, checked through the files that it writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from numpy import ndarray
from PIL import Image

from sa3d_nerfstudio.demo import layout, scene
from sa3d_nerfstudio.demo.options import SceneConfig
from sa3d_nerfstudio.demo.scene import cameras, write_scene
from sa3d_nerfstudio.demo.tracer import first_hits, trace
from sa3d_nerfstudio.errors import SA3DError
from tests.scenes import TINY

SMALL = SceneConfig(train_views=8, test_views=2, width=96, height=72, supersample=1, surface_points=300)


@pytest.fixture(scope="module")
def small_scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scene with images large enough for scribbles; its colours do not matter."""
    folder = tmp_path_factory.mktemp("small")
    write_scene(folder, SMALL)
    return folder


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_text())


def ids(folder: Path, frame: str) -> ndarray:
    return np.asarray(Image.open(folder / "instances" / f"{Path(frame).stem}.png"))


def line(shape: tuple[int, int], points: list[list[int]]) -> ndarray:
    canvas = np.zeros(shape, np.uint8)
    return cv2.polylines(canvas, [np.asarray(points, np.int32)], False, (1,)) > 0


def test_every_frame_has_an_image_and_an_id_map_of_the_size_that_was_asked_for(tiny_scene: Path) -> None:
    transforms = read(tiny_scene, "transforms.json")
    frames = [frame["file_path"] for frame in transforms["frames"]]
    assert len(frames) == TINY.train_views + TINY.test_views
    assert transforms["train_filenames"] == frames[: TINY.train_views]
    assert transforms["val_filenames"] == transforms["test_filenames"] == frames[TINY.train_views :]
    for frame in frames:
        image, numbers = Image.open(tiny_scene / frame), ids(tiny_scene, frame)
        assert image.mode == "RGB" and image.size == (TINY.width, TINY.height)
        assert numbers.dtype == np.uint8 and numbers.shape == (TINY.height, TINY.width)
        assert numbers.max() <= len(layout.solids())


def test_the_same_configuration_gives_the_same_files(tiny_scene: Path, tmp_path: Path) -> None:
    write_scene(tmp_path / "tiny", TINY)
    files = sorted(path.relative_to(tiny_scene) for path in tiny_scene.rglob("*") if path.is_file())
    assert len(files) == 2 * (TINY.train_views + TINY.test_views) + 2 * len(layout.solids()) + 3
    for file in files:
        assert (tmp_path / "tiny" / file).read_bytes() == (tiny_scene / file).read_bytes(), file


def test_another_seed_moves_the_cameras_only(tmp_path: Path, tiny_scene: Path) -> None:
    reseeded = SceneConfig(**{**TINY.__dict__, "seed": 1})
    assert not np.allclose(cameras(reseeded)[0].pose, cameras(TINY)[0].pose)
    write_scene(tmp_path, reseeded)
    boxes = [
        [(o["aabb_min"], o["aabb_max"]) for o in read(f, "objects.json")["objects"]] for f in (tmp_path, tiny_scene)
    ]
    assert boxes[0] == boxes[1]


def test_nerfstudio_reads_the_cameras_as_they_are(tiny_scene: Path) -> None:
    parser = NerfstudioDataParserConfig(
        data=tiny_scene, orientation_method="none", center_method="none", auto_scale_poses=False
    ).setup()
    for split, expected in (
        ("train", cameras(TINY)[: TINY.train_views]),
        ("test", cameras(TINY)[TINY.train_views :]),
    ):
        outputs = parser.get_dataparser_outputs(split)
        assert len(outputs.image_filenames) == len(expected)
        poses = np.stack([camera.pose[:3] for camera in expected])
        np.testing.assert_allclose(outputs.cameras.camera_to_worlds.numpy(), poses, atol=1e-6)
        # nerfstudio's rays through the pixel centres equal the tracer's, so ids and renders line up.
        rays = outputs.cameras.generate_rays(camera_indices=0).flatten()
        origins, directions = expected[0].rays()
        np.testing.assert_allclose(rays.origins.numpy(), origins, atol=1e-5)
        np.testing.assert_allclose(rays.directions.numpy(), directions, atol=1e-5)


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_prompts_lie_on_their_objects(size: str, tiny_scene: Path, small_scene: Path) -> None:
    folder = tiny_scene if size == "tiny" else small_scene
    transforms, prompts = read(folder, "transforms.json"), read(folder, "prompts.json")
    assert prompts["common_frame"] in transforms["train_filenames"]
    numbers_of = {entry["name"]: entry["id"] for entry in read(folder, "objects.json")["objects"]} | {"background": 0}
    assert [prompt["name"] for prompt in prompts["objects"]] == [solid.name for solid in layout.solids()]
    for prompt in prompts["objects"]:
        assert transforms["train_filenames"][prompt["train_index"]] == prompt["frame"]
        numbers = ids(folder, prompt["frame"])
        assert prompt["id"] == numbers_of[prompt["name"]]
        mask = numbers == prompt["id"]
        assert prompt["pixels"] == mask.sum()
        assert len(prompt["points"]) == 3
        assert all(mask[y, x] for x, y in prompt["points"])
        assert all(numbers[y, x] == numbers_of[prompt["negative_on"]] for x, y in prompt["negative_points"])
        assert numbers_of[prompt["negative_on"]] != prompt["id"]
        x0, y0, x1, y1 = prompt["box"]
        inside = np.zeros_like(mask)
        inside[y0:y1, x0:x1] = True
        assert not (mask & ~inside).any()
        assert mask[y0].any() and mask[y1 - 1].any() and mask[:, x0].any() and mask[:, x1 - 1].any()
        assert mask[line(mask.shape, prompt["scribble"])].all()
        background = line(mask.shape, prompt["background_scribble"])
        assert background.any() and not mask[background].any()


def test_scribbles_run_along_and_around(small_scene: Path) -> None:
    prompts = {prompt["name"]: prompt for prompt in read(small_scene, "prompts.json")["objects"]}
    for prompt in prompts.values():
        assert len(prompt["scribble"]) >= 2
        assert len(prompt["background_scribble"]) >= 6
    post = prompts["post"]
    stroke = np.ptp(np.asarray(post["scribble"])[:, 1])
    assert stroke > 0.6 * (post["box"][3] - post["box"][1])
    x0, y0, x1, y1 = prompts["ball"]["box"]
    around = np.asarray(prompts["ball"]["background_scribble"])
    assert (around.min(0) < [x0, y0]).all() and (around.max(0) >= [x1, y1]).all()


def test_surface_samples_lie_on_their_objects_and_are_seen_where_the_ids_say(small_scene: Path) -> None:
    solids, train = layout.solids(), cameras(SMALL)[: SMALL.train_views]
    id_maps = [trace(*view.rays(supersample=5), solids, layout.room())[0].reshape(5 * 72, 5 * 96) for view in train]
    for entry in read(small_scene, "objects.json")["objects"]:
        points = np.load(small_scene / entry["points"])
        seen = np.load(small_scene / entry["points_seen"])
        assert points.shape == (300, 3) and seen.shape == (300,)
        assert (points > np.asarray(entry["aabb_min"]) - 1e-6).all()
        assert (points < np.asarray(entry["aabb_max"]) + 1e-6).all()
        assert 0 < entry["seen_fraction"] == (seen > 0).mean()
        # A second way to count: the sample faces the camera, and a large id map holds its id at its projection.
        counted = np.zeros(len(points))
        for view, numbers in zip(train, id_maps, strict=True):
            xy, _ = view.project(points)
            height, width = numbers.shape
            x, y = np.clip(np.floor(xy * width / view.width).astype(int), 0, [width - 1, height - 1]).T
            solid = solids[entry["id"] - 1]
            facing = (solid.normals(points) * (view.pose[:3, 3] - points)).sum(-1) > 0
            counted += (numbers[y, x] == entry["id"]) & facing
        assert np.abs(counted - seen).mean() < 0.25


def test_the_scene_is_as_hard_as_its_tags_say(small_scene: Path) -> None:
    solids = {solid.name: solid for solid in layout.solids()}
    rng = np.random.default_rng(0)

    # The tin touches the crate without overlapping it.
    gap = np.abs(solids["tin"].sample_surface(100_000, rng)[:, 0] - solids["crate"].bounds[0][0])
    assert gap.min() < 1e-4
    names = list(solids)
    for name in names:
        points = solids[name].sample_surface(5000, rng)
        points -= 1e-6 * solids[name].normals(points)
        assert points[:, 2].min() >= 0
        for other in names:
            assert other == name or not solids[other].contains(points).any(), (name, other)

    # The dice differ in position only.
    near, far = solids["die_near"], solids["die_far"]
    assert near.shape == far.shape and near.texture is far.texture and near.center != far.center

    # The post occludes part of the ball in some view.
    covered = 0
    for view in cameras(SMALL)[: SMALL.train_views]:
        with_post, _ = first_hits(*view.rays(), [solids["ball"], solids["post"]])
        ball_only, _ = first_hits(*view.rays(), [solids["ball"]])
        covered = max(covered, int(((ball_only == 1) & (with_post == 2)).sum()))
    assert covered > 20


def test_images_too_small_to_show_an_object_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SA3DError, match="use larger images or more views"):
        write_scene(tmp_path, SceneConfig(train_views=1, test_views=1, width=4, height=3, supersample=1))


def test_progress_counts_the_views(tmp_path: Path) -> None:
    reports: list[tuple[int, int]] = []
    write_scene(tmp_path, TINY, lambda done, total: reports.append((done, total)))
    assert reports == [(number, 12) for number in range(1, 13)]


def test_the_benchmarks_scorer_reads_the_scene(shared_dir: Path, tiny_scene: Path, tmp_path: Path) -> None:
    frames = read(tiny_scene, "transforms.json")["test_filenames"]
    for number, frame in enumerate(frames):
        mask = ids(tiny_scene, frame) == 1
        if number == 0:
            mask[:] = False
        Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / f"{Path(frame).stem}.png")
    command = [sys.executable, shared_dir / "scenes" / "score.py", tiny_scene, tmp_path, "ball"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    scores = json.loads(answer.stdout)
    assert [row["iou"] for row in scores["per_frame"]] == [0.0, 1.0]


def test_the_scene_has_the_form_of_the_benchmarks(shared_dir: Path, tiny_scene: Path) -> None:
    ours, theirs = (read(folder, "transforms.json") for folder in (tiny_scene, shared_dir / "scenes" / "desk"))
    assert ours.keys() == theirs.keys()
    ours, theirs = (read(folder, "prompts.json") for folder in (tiny_scene, shared_dir / "scenes" / "desk"))
    assert ours.keys() == theirs.keys()
    assert ours["objects"][0].keys() == theirs["objects"][0].keys()
    ours, theirs = (read(folder, "objects.json") for folder in (tiny_scene, shared_dir / "scenes" / "desk"))
    assert ours.keys() == theirs.keys()
    needed = {"id", "name", "aabb_min", "aabb_max", "center", "points", "points_seen", "seen_fraction", "tags"}
    assert needed <= ours["objects"][0].keys() and needed <= theirs["objects"][0].keys()


def test_suitability_is_nothing_where_the_object_is_not_seen() -> None:
    config = SceneConfig(width=32, height=24)
    view = scene.View("x", cameras(config)[0], np.zeros((24, 32), np.uint8), np.zeros((24, 32)))
    assert scene._suitability(view, layout.solids()[0], 1) == 0
