"""The sa3d command line on a tiny trained run; third-party libraries read its outputs back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import av
import numpy as np
import open3d
import plyfile
import pytest
import torch
import trimesh
import tyro
from nerfstudio.cameras.camera_paths import get_path_from_json
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.data.pixel_samplers import PixelSamplerConfig
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.scripts.exporter import ExportPointCloud, ExportTSDFMesh
from PIL import Image
from pycocotools.coco import COCO

import sa3d_nerfstudio as sa3d
from sa3d_nerfstudio.commands import main
from sa3d_nerfstudio.datamanager import Filtered
from sa3d_nerfstudio.errors import SA3DError
from tests.subprocesses import succeed

pytestmark = pytest.mark.slow


def run(*words: object) -> int:
    """Run ``sa3d`` with these arguments in this process; return its exit status."""
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return int(ended.value.code or 0)


def truth(scene: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Corners of an object's true box, in the data set's frame."""
    objects = json.loads((scene / "objects.json").read_text())["objects"]
    entry = next(entry for entry in objects if entry["name"] == name)
    return np.array(entry["aabb_min"]), np.array(entry["aabb_max"])


def near(points: np.ndarray, scene: Path, name: str) -> float:
    """Share of the points in an object's box, widened by a third because the base model has trained for seconds."""
    low, high = truth(scene, name)
    slack = (high - low).max() / 3
    return float(((points >= low - slack) & (points <= high + slack)).all(-1).mean())


def iou(mask: np.ndarray, other: np.ndarray) -> float:
    return float((mask & other).sum() / max((mask | other).sum(), 1))


@pytest.fixture(scope="module")
def masks(tiny_objects: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inverted masks of all images."""
    folder = tmp_path_factory.mktemp("masks")
    words = ["masks", "--load-config", tiny_objects, "--output-dir", folder, "--split", "all", "--invert"]
    assert run(*words) == 0
    return folder


def test_masks_fit_the_objects_and_what_the_model_renders(masks: Path, tiny_objects: Path, tiny_scene: Path):
    names = {path.name for path in (tiny_scene / "images").iterdir()}
    assert {path.name for path in (masks / "masks").iterdir()} == {Path(name).stem + ".png" for name in names}
    assert {path.name for path in (masks / "objects").iterdir()} == {"ball", "crate"}
    loaded = sa3d.load(tiny_objects)
    objects = json.loads((tiny_scene / "objects.json").read_text())["objects"]
    ids = {entry["name"]: entry["id"] for entry in objects}
    overlaps = []
    for index in range(3):
        stem = Path(loaded.pipeline.views.name(index)).stem
        union_mask = np.asarray(Image.open(masks / "masks" / f"{stem}.png"))
        assert union_mask.shape == (24, 32)
        assert set(np.unique(union_mask)) <= {0, 255}
        # Rendered from all rays, not only from those that pass through an object's cells.
        rendered = (loaded.mask(index) > 0.5).numpy()
        assert iou(union_mask == 0, rendered) > 0.9
        true_ids = np.asarray(Image.open(tiny_scene / "instances" / f"{stem}.png"))
        for name in ("ball", "crate"):
            object_mask = np.asarray(Image.open(masks / "objects" / name / f"{stem}.png"))
            overlaps.append(iou(object_mask == 0, true_ids == ids[name]))
    assert np.mean(overlaps) > 0.6


def test_nerfstudio_reads_inverted_masks_and_ignores_the_objects(masks: Path):
    parser = NerfstudioDataParserConfig(data=masks / "transforms.json").setup()
    for split, number in (("train", 10), ("val", 2)):
        outputs = parser.get_dataparser_outputs(split)
        assert outputs.mask_filenames is not None
        assert len(outputs.mask_filenames) == len(outputs.image_filenames) == number
    dataset = InputDataset(parser.get_dataparser_outputs("train"))
    names = dataset._dataparser_outputs.mask_filenames
    assert names is not None
    black = np.stack([np.asarray(Image.open(name)) == 0 for name in names])
    assert black.mean() > 0.03
    batch = {
        key: torch.stack([torch.as_tensor(dataset[i][key]) for i in range(len(names))]) for key in ("image", "mask")
    }
    batch["image_idx"] = torch.arange(len(names))
    camera, row, column = PixelSamplerConfig(num_rays_per_batch=2000).setup().sample(batch)["indices"].unbind(-1)
    assert not black[camera, row, column].any()
    assert VanillaDataManagerConfig().pixel_sampler.ignore_mask is False


def test_photos_with_the_mask_as_alpha_are_a_data_set(
    tiny_objects: Path, masks: Path, tiny_scene: Path, tmp_path: Path
):
    words = ["masks", "--load-config", tiny_objects, "--output-dir", tmp_path, "--format", "rgba", "--split", "train"]
    assert run(*words) == 0
    names = sorted(path.name for path in (tmp_path / "rgba").iterdir())
    assert len(names) == 10
    for name in names:
        image = np.asarray(Image.open(tmp_path / "rgba" / name))
        photo = np.asarray(Image.open(tiny_scene / "images" / name).convert("RGB"))
        assert np.array_equal(image[..., :3], photo)
        assert np.array_equal(image[..., 3] == 255, np.asarray(Image.open(masks / "masks" / name)) == 0)
    # nerfstudio's parser reads the data set with its alpha channel; the splits that were not written are empty.
    content = json.loads((tmp_path / "transforms.json").read_text())
    assert [len(content[f"{split}_filenames"]) for split in ("train", "val", "test")] == [10, 0, 0]
    parser = NerfstudioDataParserConfig(data=tmp_path).setup()
    dataset = InputDataset(parser.get_dataparser_outputs("train"))
    assert dataset[0]["image"].shape == (24, 32, 4)
    assert {path.parent.name for path in dataset.image_filenames} == {"rgba"}


@pytest.mark.parametrize("form", ["masks", "rgba"])
def test_a_data_set_without_transforms_json_gets_none(
    tiny_objects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, form: str
):
    monkeypatch.setattr(Filtered, "transforms_path", None)
    words = ["masks", "--load-config", tiny_objects, "--output-dir", tmp_path, "--format", form, "--split", "all"]
    assert run(*words, "--object", "ball") == 0
    assert "no transforms.json that names them: the data set has none of its own" in capsys.readouterr().out
    assert not (tmp_path / "transforms.json").exists()


def test_a_cloud_of_the_whole_scene_says_what_is_which_object(tiny_objects: Path, tiny_scene: Path, tmp_path: Path):
    words = ["export", "points", "--load-config", tiny_objects, "--output-dir", tmp_path, "--labelled"]
    assert run(*words, "--num-points", 3000, "--save-world-frame") == 0
    data = plyfile.PlyData.read(str(tmp_path / "scene.ply"))["vertex"].data
    points = np.stack([data[axis] for axis in "xyz"], axis=-1)
    table = [entry for entry in json.loads((tmp_path / "objects.json").read_text())["objects"] if not entry["hidden"]]
    assert [(entry["id"], entry["name"]) for entry in table] == [(1, "ball"), (2, "crate")]
    assert 2000 < len(points) <= 3000
    assert (data["object_id"] == 0).mean() > 0.5
    for entry in table:
        on = data["object_id"] == entry["id"]
        assert on.sum() > 20
        assert near(points[on], tiny_scene, entry["name"]) > 0.8
        assert near(points[~on], tiny_scene, entry["name"]) < 0.2
    assert (data["probability"] >= 0.5).all()


def test_an_id_map_names_its_objects(tiny_objects: Path, masks: Path, tmp_path: Path):
    words = ["masks", "--load-config", tiny_objects, "--output-dir", tmp_path, "--split", "test", "--format", "id-map"]
    assert run(*words) == 0
    table = json.loads((tmp_path / "objects.json").read_text())
    assert [(entry["id"], entry["name"]) for entry in table["objects"]] == [(1, "ball"), (2, "crate")]
    paths = sorted((tmp_path / "ids").iterdir())
    assert len(paths) == 2
    for path in paths:
        ids = np.asarray(Image.open(path))
        assert set(np.unique(ids)) <= {0, 1, 2}
        for item in table["objects"]:
            object_mask = np.asarray(Image.open(masks / "objects" / item["name"] / path.name)) == 0
            assert np.array_equal(ids == item["id"], object_mask)


def test_coco_annotations_are_the_same_masks(tiny_objects: Path, masks: Path, tmp_path: Path):
    words = ["masks", "--load-config", tiny_objects, "--output-dir", tmp_path, "--split", "test", "--format", "coco"]
    assert run(*words, "--object", "tin", "ball") == 0
    coco = COCO(str(tmp_path / "annotations.json"))
    # The tin is hidden, but --object names it.
    assert {entry["id"]: entry["name"] for entry in coco.loadCats(coco.getCatIds())} == {1: "ball", 3: "tin"}
    assert len(coco.getImgIds()) == 2
    compared = 0
    for annotation in coco.loadAnns(coco.getAnnIds(catIds=[1])):
        image = coco.loadImgs(annotation["image_id"])[0]
        assert Path(image["file_name"]).is_file()
        mask = coco.annToMask(annotation).astype(bool)
        png = np.asarray(Image.open(masks / "objects" / "ball" / (Path(image["file_name"]).stem + ".png"))) == 0
        # Not equal: the crate claims no pixels here, and the tin claimed none in the PNG masks.
        assert iou(mask, png) > 0.9
        assert annotation["area"] == mask.sum()
        x, y, width, height = annotation["bbox"]
        rows, columns = np.nonzero(mask)
        assert (x, y, x + width, y + height) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        compared += 1
    assert compared


def test_points_of_each_object_are_read_by_three_libraries(tiny_objects: Path, tiny_scene: Path, tmp_path: Path):
    words = ["export", "points", "--load-config", tiny_objects, "--output-dir", tmp_path, "--num-points", 1500]
    assert run(*words, "--save-world-frame") == 0
    assert {path.name for path in tmp_path.iterdir()} == {"ball.ply", "crate.ply"}
    for number, name in enumerate(("ball", "crate"), start=1):
        vertices = plyfile.PlyData.read(tmp_path / f"{name}.ply")["vertex"]
        names = {"x", "y", "z", "nx", "ny", "nz", "red", "green", "blue", "probability", "object_id"}
        assert {prop.name for prop in vertices.properties} == names
        assert 1350 < len(vertices["x"]) <= 1500  # the requested number, less outliers
        assert (vertices["object_id"] == number).all()
        assert ((vertices["probability"] > 0.5) & (vertices["probability"] <= 1)).all()
        cloud = open3d.io.read_point_cloud(tmp_path / f"{name}.ply")
        positions, normals = np.asarray(cloud.points), np.asarray(cloud.normals)
        assert near(positions, tiny_scene, name) > 0.95
        assert np.allclose(np.linalg.norm(normals, axis=-1), 1, atol=1e-3)
        # Most normals of a convex object point away from its centre.
        low, high = truth(tiny_scene, name)
        assert ((normals * (positions - (low + high) / 2)).sum(-1) > 0).mean() > 0.8
        point_cloud = trimesh.load(tmp_path / f"{name}.ply")
        assert isinstance(point_cloud, trimesh.PointCloud)
        assert np.allclose(point_cloud.vertices, positions, atol=1e-5)
    colors = np.asarray(open3d.io.read_point_cloud(tmp_path / "ball.ply").colors).mean(axis=0)
    assert colors[0] > 1.5 * colors[2]  # a red ball


def test_boxes_go_into_nerfstudios_own_options(tiny_objects: Path, tiny_scene: Path, tmp_path: Path, capsys):
    assert run("export", "box", "--load-config", tiny_objects, "--output-dir", tmp_path / "n") == 0
    lines = [line.split(":", 1)[1].split() for line in capsys.readouterr().out.splitlines() if "--obb" in line]
    boxes = json.loads((tmp_path / "n" / "boxes.json").read_text())
    assert boxes["frame"] == "nerfstudio"
    required_options = ["--load-config", "c", "--output-dir", "o"]
    options = tyro.cli(tyro.conf.FlagConversionOff[ExportPointCloud], args=[*required_options, *lines[0]])
    assert options.obb_center is not None and options.obb_rotation is not None and options.obb_scale is not None
    box = OrientedBox.from_params(options.obb_center, options.obb_rotation, options.obb_scale)
    field = sa3d.load(tiny_objects).pipeline.model.masks["ball"]
    points, _ = field.object_points()
    assert box.within(points.double()).float().mean() > 0.9
    entry = boxes["objects"][0]
    assert np.allclose(entry["obb_center"], options.obb_center, atol=1e-4)
    words = [f"--bounding-box-{end} {' '.join(map(str, entry[f'bounding_box_{end}']))}" for end in ("min", "max")]
    tsdf = tyro.cli(tyro.conf.FlagConversionOff[ExportTSDFMesh], args=[*required_options, *" ".join(words).split()])
    assert np.allclose(tsdf.bounding_box_max, entry["bounding_box_max"])
    assert (
        run("export", "box", "--load-config", tiny_objects, "--output-dir", tmp_path / "w", "--save-world-frame") == 0
    )
    world = json.loads((tmp_path / "w" / "boxes.json").read_text())["objects"][0]
    low, high = truth(tiny_scene, "ball")
    size = (high - low).max()
    assert np.abs(np.array(world["obb_center"]) - (low + high) / 2).max() < 0.4 * size
    assert (np.array(world["obb_scale"]) > 0.7 * size).all() and (np.array(world["obb_scale"]) < 1.8 * size).all()


def test_a_mesh_opens_as_ply_and_as_glb(tiny_objects: Path, tiny_scene: Path, tmp_path: Path):
    words = ["export", "mesh", "--load-config", tiny_objects, "--output-dir", tmp_path, "--num-points", 1500]
    assert run(*words, "--depth", 5, "--object", "ball", "--save-world-frame") == 0
    mesh = open3d.io.read_triangle_mesh(tmp_path / "ball.ply")
    vertices = np.asarray(mesh.vertices)
    assert len(mesh.triangles) > 100
    assert mesh.has_vertex_colors() and mesh.has_vertex_normals()
    assert near(vertices, tiny_scene, "ball") > 0.9
    scene = trimesh.load(tmp_path / "ball.glb", force="scene")
    assert isinstance(scene, trimesh.Scene)
    (shape,) = scene.geometry.values()
    assert len(shape.faces) == len(mesh.triangles)
    # The GLB has y up where the PLY has z up.
    assert np.allclose(shape.bounds[:, 1], [vertices[:, 2].min(), vertices[:, 2].max()], atol=1e-4)
    assert shape.visual.vertex_colors[:, 0].mean() > 1.5 * shape.visual.vertex_colors[:, 2].mean()


def test_nerfstudios_tsdf_makes_a_mesh_of_one_object(tiny_objects: Path, tiny_scene: Path, tmp_path: Path):
    words = ["export", "mesh", "--load-config", tiny_objects, "--output-dir", tmp_path, "--method", "tsdf"]
    options = ["--resolution", 24, "--downscale-factor", 1, "--object", "crate", "--save-world-frame"]
    assert run(*words, *options, "--format", "ply") == 0
    mesh = open3d.io.read_triangle_mesh(tmp_path / "crate.ply")
    assert len(mesh.triangles) > 50
    assert near(np.asarray(mesh.vertices), tiny_scene, "crate") > 0.8


def test_a_turntable_keeps_the_object_in_the_middle(tiny_objects: Path, tmp_path: Path, capsys):
    video = tmp_path / "ball.mp4"
    words = ["turntable", "--load-config", tiny_objects, "--output-path", video, "--object", "ball", "--frames", 4]
    assert run(*words, "--size", 48, 40, "--fps", 2) == 0
    assert "ns-render takes no --object: it shows ball, crate" in capsys.readouterr().out
    with av.open(str(video)) as container:
        images = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(images) == 4
    for image in images:
        assert image.shape == (40, 48, 3)
        on = (image < 200).any(-1)
        rows, columns = np.nonzero(on)
        assert 0.08 < on.mean() < 0.7
        assert abs(rows.mean() - 20) < 6 and abs(columns.mean() - 24) < 6
        assert on[[0, -1]].mean() < 0.2 and on[:, [0, -1]].mean() < 0.2
    path = json.loads(video.with_suffix(".json").read_text())
    cameras = get_path_from_json(path)
    assert (int(cameras.width[0]), int(cameras.height[0]), len(cameras)) == (48, 40, 4)
    assert path["seconds"] == 2
    # Masks are rendered by the cameras of that path.
    folder = tmp_path / "along"
    words = [
        "masks",
        "--load-config",
        tiny_objects,
        "--output-dir",
        folder,
        "--camera-path",
        video.with_suffix(".json"),
    ]
    assert run(*words, "--object", "ball") == 0
    path_masks = [np.asarray(Image.open(path)) for path in sorted((folder / "masks").iterdir())]
    assert len(path_masks) == 4
    assert path_masks[0].shape == (40, 48)
    assert np.mean([(mask > 0).mean() for mask in path_masks]) > 0.05


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ns-render wants ffmpeg")
def test_ns_render_takes_the_turntables_camera_path(tiny_objects: Path, tmp_path: Path):
    words = ["turntable", "--load-config", tiny_objects, "--output-path", tmp_path / "t.mp4", "--path-only"]
    assert run(*words, "--frames", 2, "--size", 40, 32, "--object", "ball") == 0
    assert not (tmp_path / "t.mp4").exists()
    succeed(
        "ns-render", "camera-path", "--load-config", tiny_objects, "--camera-path-filename", tmp_path / "t.json",
        "--rendered-output-names", "object_rgb", "background_rgb", "--output-path", tmp_path / "r.mp4",
        "--output-format", "images", "--image-format", "png",
    )  # fmt: skip
    images = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "r").iterdir())]
    assert [image.shape for image in images] == [(32, 80, 3)] * 2
    for image in images:
        object_half, background_half = image[:, :40], image[:, 40:]
        assert (object_half == 255).all(-1).mean() > 0.2
        assert (background_half == 255).all(-1).mean() < 0.1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["masks", "--output-dir", "OUT", "--object", "cup"], "no object 'cup'"),
        (["masks", "--output-dir", "OUT", "--invert", "--format", "coco"], "--format masks"),
        (["masks", "--output-dir", "OUT", "--camera-path", "c.json", "--format", "rgba"], "a camera path has none"),
        (["masks", "--output-dir", "OUT", "--camera-path", "OUT"], "camera path"),
        (["export", "splats", "--output-dir", "OUT"], "none of Gaussians"),
        (["export", "mesh", "--output-dir", "OUT", "--method", "marching-cubes", "--num-points", "300"], "signed dist"),
        (["turntable", "--output-path", "OUT/video.gif"], "MP4"),
        (
            ["turntable", "--output-path", "OUT/v.mp4", "--rendered-output-names", "rbg"],
            "no output rbg",
        ),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(words: list[str], sentence: str, tiny_objects: Path, tmp_path: Path):
    words = [word.replace("OUT", str(tmp_path / "out")) for word in words]
    with pytest.raises(SA3DError, match=sentence) as error:
        main([*words, "--load-config", str(tiny_objects)])
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "out").rglob("*.mp4"))


def test_a_run_without_objects_is_refused(tiny_objects: Path, tmp_path: Path, capsys):
    run_without = sa3d.load(tiny_objects)
    run_without.pipeline.model.masks.hidden = set(run_without.objects)
    config = run_without.save(tmp_path / "hidden")
    with pytest.raises(SA3DError, match="all objects of this run are hidden: name those"):
        main(["export", "box", "--load-config", str(config), "--output-dir", str(tmp_path / "out")])
    # The table lists hidden objects, too.
    for chosen, names in (([], ["ball", "crate", "tin"]), (["--object", "tin"], ["tin"])):
        assert run("export", "table", "--load-config", config, "--output-dir", tmp_path / "table", *chosen) == 0
        assert "left out" not in capsys.readouterr().out
        table = json.loads((tmp_path / "table" / "objects.json").read_text())["objects"]
        assert [entry["name"] for entry in table] == names
    for name in run_without.objects:
        del run_without.pipeline.model.masks[name]
    config = run_without.save(tmp_path / "none")
    for form in ("points", "table"):
        with pytest.raises(SA3DError, match="no object to export"):
            main(["export", form, "--load-config", str(config), "--output-dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
