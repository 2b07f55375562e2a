"""Splats of any program, imported, segmented and exported by the commands; a slow rasteriser replaces gsplat's."""

from __future__ import annotations

import json
import os
import shutil
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import plyfile
import pytest
import torch
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.scripts.exporter import ExportGaussianSplat
from nerfstudio.utils.eval_utils import eval_setup
from PIL import Image

import sa3d_nerfstudio as sa3d
from sa3d_nerfstudio.base_run.patches import lpips_without_download
from sa3d_nerfstudio.commands import main
from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.exports import rim
from sa3d_nerfstudio.exports.objects import select
from sa3d_nerfstudio.exports.rim import clean_rim, reaches
from sa3d_nerfstudio.exports.splats import SceneSplats
from sa3d_nerfstudio.splat_files.cameras import read_cameras
from sa3d_nerfstudio.splat_files.gaussians import Gaussians
from sa3d_nerfstudio.splat_files.ply import read_ply, write_ply
from sa3d_nerfstudio.splat_files.splat_transform import VARIABLE
from tests.splat_files.test_cameras import write_inria
from tests.splat_files.test_ply import some
from tests.splat_scenes import desk
from tests.stand_ins import splats_on_cpu
from tests.viewer.browser import CHROMIUM, FLAGS

pytestmark = pytest.mark.slow

BALL, BLOCK, BOARD = range(3)
"""Indices of the desk's solids."""
QUICK: dict[str, Any] = {"working_size": 96, "num_views": 10, "max_passes": 2, "likelihood_steps": 6}
"""Fewest renders that suffice: six views of 64 pixels miss a whole side of the block."""


@pytest.fixture(scope="module", autouse=True)
def _stand_ins() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        splats_on_cpu(patch)
        yield


def run(*words: object) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    assert not ended.value.code


def columns(path: Path) -> dict[str, np.ndarray]:
    data = plyfile.PlyData.read(str(path))["vertex"].data
    return {name: np.array(data[name]) for name in data.dtype.names}


def imported(path: Path, output: Path, *options: object) -> Path:
    """Import a file; return the config.yml of its run."""
    run("import", path, "--output-dir", output, "--timestamp", "T", *options)
    return output / path.stem / "splatfacto" / "T" / "config.yml"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """config.yml of the imported desk. Read-only."""
    folder = tmp_path_factory.mktemp("import")
    write_ply(folder / "desk.ply", desk().gaussians)
    return imported(folder / "desk.ply", folder / "outputs")


@pytest.fixture(scope="module")
def segmented(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """config.yml of a sa3d run with the ball and the block, each prompted by a click in a virtual view."""
    output = tmp_path_factory.mktemp("segmented")
    loaded = sa3d.load(base.parent, output_dir=output, segmenter="grabcut", **QUICK)
    scene = desk()
    frames = json.loads((base.parent / "desk" / "transforms.json").read_text())["frames"]
    for name, target in (("ball", [0, 0, 0.35]), ("block", [0.72, 0.5, 0.4])):
        # The view that sees most of the object's splats.
        owner = scene.owner == (BALL if name == "ball" else BLOCK)
        cameras = read_cameras(base.parent / "desk" / "transforms.json")
        best = max(range(len(cameras)), key=lambda index: int(scene.seen(cameras[index])[owner].sum()))
        pose, frame = np.array(frames[best]["transform_matrix"]), frames[best]
        local = (np.array(target) - pose[:3, 3]) @ pose[:3, :3]
        point = (frame["cx"] - frame["fl_x"] * local[0] / local[2], frame["cy"] + frame["fl_y"] * local[1] / local[2])
        loaded.prompt(best, [point], name=name)
        loaded.segment()
    return loaded.save()


def write_as_nerfstudio(path: Path, gaussians: Gaussians) -> None:
    """Write a PLY with the code of nerfstudio's exporter."""
    values: OrderedDict[str, np.ndarray] = OrderedDict()
    for index, name in enumerate("xyz"):
        values[name] = gaussians.means[:, index]
    for name in ("nx", "ny", "nz"):
        values[name] = np.zeros(len(gaussians), np.float32)
    for index in range(3):
        values[f"f_dc_{index}"] = gaussians.features_dc[:, index, None]
    colours = gaussians.features_rest.transpose(0, 2, 1).reshape(len(gaussians), -1)
    for index in range(colours.shape[1]):
        values[f"f_rest_{index}"] = colours[:, index, None]
    values["opacity"] = gaussians.opacities[:, None]
    for index in range(3):
        values[f"scale_{index}"] = gaussians.scales[:, index, None]
    for index in range(4):
        values[f"rot_{index}"] = gaussians.quats[:, index, None]
    ExportGaussianSplat.write_ply(str(path), len(gaussians), values)


def write_as_inria(path: Path, gaussians: Gaussians) -> None:
    """Write a PLY in the layout of the reference implementation's ``save_ply``."""
    colours = gaussians.features_rest.transpose(0, 2, 1).reshape(len(gaussians), -1)
    names = ["x", "y", "z", "nx", "ny", "nz", *(f"f_dc_{index}" for index in range(3))]
    names += [*(f"f_rest_{index}" for index in range(colours.shape[1])), "opacity"]
    names += [*(f"scale_{index}" for index in range(3)), *(f"rot_{index}" for index in range(4))]
    blocks = (
        gaussians.means, np.zeros_like(gaussians.means), gaussians.features_dc, colours, gaussians.opacities[:, None],
        gaussians.scales, gaussians.quats,
    )  # fmt: skip
    table = np.empty(len(gaussians), dtype=[(name, "f4") for name in names])
    table[:] = list(map(tuple, np.concatenate(blocks, axis=1)))
    plyfile.PlyData([plyfile.PlyElement.describe(table, "vertex")]).write(str(path))


@pytest.mark.parametrize(("layout", "degree"), [(write_as_nerfstudio, 3), (write_as_inria, 3), (write_as_inria, 0)])
def test_what_is_imported_and_exported_is_the_same_in_every_property(layout, degree: int, tmp_path: Path):
    path = tmp_path / "scene.ply"
    layout(path, some(500, degree))
    config = imported(path, tmp_path / "outputs")
    run("export", "splats", "--load-config", config, "--object", "scene", "--output-dir", tmp_path / "out")
    before, after = columns(path), columns(tmp_path / "out" / "scene.ply")
    assert list(before) == list(after)
    for name, values in before.items():
        assert np.array_equal(values, after[name]), name
        assert after[name].dtype == np.float32


def test_nerfstudio_reads_the_run_as_its_own(base: Path):
    with lpips_without_download():
        config, pipeline, checkpoint, _ = eval_setup(base)
    gaussians = desk().gaussians
    model: Any = pipeline.model
    assert config.method_name == "splatfacto"
    assert torch.equal(model.means, torch.from_numpy(gaussians.means))
    assert torch.equal(model.features_rest, torch.from_numpy(gaussians.features_rest))
    assert torch.equal(model.opacities[:, 0], torch.from_numpy(gaussians.opacities))
    missing = set(torch.load(checkpoint, weights_only=True)["pipeline"]) ^ {
        f"_model.{key}" for key in model.state_dict()
    }
    assert all(key.startswith("_model.lpips") for key in missing)
    dataset = pipeline.datamanager.train_dataset
    assert isinstance(dataset, InputDataset)
    assert [path.name for path in dataset.image_filenames] == [f"{index:03d}.jpg" for index in range(len(dataset))]
    # The drawing matches its camera: it is red at the projection of the ball's centre.
    camera = dataset.cameras[0]
    pose = camera.camera_to_worlds
    local = (torch.tensor([0, 0, 0.35]) - pose[:, 3]) @ pose[:, :3]
    x, y = camera.cx - camera.fx * local[0] / local[2], camera.cy + camera.fy * local[1] / local[2]
    red, green, blue = dataset[0]["image"][int(y), int(x)]
    assert red > 2 * green
    assert red > 2 * blue


def test_an_object_of_imported_splats_is_segmented_and_exported(segmented: Path, tmp_path: Path):
    scene, out = desk(), tmp_path / "out"
    words = ["export", "splats", "--load-config", segmented, "--output-dir", out]
    run(*words, "--object", "ball", "background", "scene", "--no-clean-rim")
    everything, ball, background = (columns(out / f"{name}.ply") for name in ("scene", "ball", "background"))
    assert len(everything["x"]) == len(scene.owner)
    keys = [set(zip(*(item[axis].tolist() for axis in "xyz"), strict=True)) for item in (everything, ball, background)]
    assert not keys[1] & keys[2]
    true_keys = {tuple(row) for row in scene.gaussians.means[scene.owner == BALL].tolist()}
    assert len(keys[1] & true_keys) > 0.9 * len(keys[1] | true_keys)
    run(*words, "--labelled")
    labelled, table = columns(out / "scene.ply"), json.loads((out / "objects.json").read_text())
    assert labelled["object_id"].dtype == np.int32
    assert {entry["name"]: entry["id"] for entry in table["objects"]} == {"ball": 1, "block": 2}
    for number, owner, min_iou in ((1, BALL, 0.9), (2, BLOCK, 0.75), (0, BOARD, 0.9)):
        on, owned = labelled["object_id"] == number, scene.owner == owner
        assert (on & owned).sum() > min_iou * (on | owned).sum(), number
    for name, values in everything.items():
        assert np.array_equal(values, labelled[name])
    run(*words, "--object", "all", "--center")
    centered, _ = read_ply(out / "all.ply")
    assert np.allclose(centered.means.min(0) + centered.means.max(0), 0, atol=1e-5)
    # Upright: the lower ends of ball and block, on the board, have the largest y.
    assert np.ptp(centered.means[:, 1]) == pytest.approx(0.7, abs=0.1)
    assert np.allclose(centered.means[:, 1].max(), 0.35, atol=0.06)


def test_spikes_at_the_rim_are_left_out_where_the_mask_is_fitted_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(rim, "SIZE", 72)
    scene = desk()
    spikes = np.flatnonzero(scene.owner == BALL)[::25][:8]
    # Long and thin, they stand out of the ball.
    scene.gaussians.scales[spikes] = np.log([0.02, 0.02, 0.5])
    write_ply(tmp_path / "desk.ply", scene.gaussians)
    loaded = sa3d.load(imported(tmp_path / "desk.ply", tmp_path), output_dir=tmp_path, working_size=72)
    model = loaded.pipeline.model
    field = model.new_field(0)
    on = torch.from_numpy((scene.owner == BALL).astype(np.float32))
    field.add(on, torch.ones_like(on))
    model.masks["ball"] = field
    (item,) = select(model.masks)
    gaussians = SceneSplats.of(loaded.pipeline).gaussians
    cleaned = clean_rim(loaded.pipeline, item, gaussians, on.numpy() > 0)
    removed = (on.numpy() > 0) & ~cleaned.keep
    assert cleaned.before is not None
    assert cleaned.after is not None
    assert cleaned.after > cleaned.before + 0.002
    assert removed[spikes].sum() >= 5
    assert removed.sum() < 12
    assert not (removed & (scene.owner != BALL)).any()
    # An error of the measurement is raised, and not reported as splats that cannot be rendered.
    with monkeypatch.context() as patch:
        patch.setattr(rim, "_fit", mock.Mock(side_effect=RuntimeError("a fault")))
        with pytest.raises(RuntimeError, match="a fault"):
            clean_rim(loaded.pipeline, item, gaussians, on.numpy() > 0)
    monkeypatch.setattr(type(model), "render_splats", mock.Mock(side_effect=AttributeError("no kernels")))
    unmeasured = clean_rim(loaded.pipeline, item, gaussians, on.numpy() > 0)
    assert unmeasured.removed == 0 and "cannot be rendered here (no kernels" in unmeasured.reason


def test_reach_is_how_far_a_splat_stands_out_of_the_others():
    gaussians = desk().gaussians[desk().owner == BALL]
    usual = reaches(gaussians)
    gaussians.scales[3] = np.log([0.01, 0.01, 1.0])
    reach = reaches(gaussians)
    assert np.argmax(reach) == 3
    assert reach[3] > 5 * np.delete(usual, 3).max()


@pytest.fixture(scope="module")
def splat_transform() -> str:
    program = shutil.which(os.environ.get(VARIABLE, "splat-transform"))
    if program is None:
        pytest.skip(
            f"splat-transform is not installed (npm install -g @playcanvas/splat-transform), nor named in {VARIABLE}"
        )
    return program


def test_all_forms_are_written_and_read_again(splat_transform: str, segmented: Path, tmp_path: Path):
    for form in ("compressed.ply", "spz", "sog", "glb", "html"):
        run(
            "export", "splats", "--load-config", segmented, "--output-dir", tmp_path, "--object", "ball",
            "--format", form, "--no-clean-rim",
        )  # fmt: skip
        assert (tmp_path / f"ball.{form}").stat().st_size > 1000
    assert (tmp_path / "ball.glb").read_bytes()[:4] == b"glTF"
    assert b"<html" in (tmp_path / "ball.html").read_bytes()[:2000].lower()
    run("export", "splats", "--load-config", segmented, "--output-dir", tmp_path, "--object", "ball", "--no-clean-rim")
    ball, _ = read_ply(tmp_path / "ball.ply")
    for form in ("compressed.ply", "spz", "sog"):
        config = imported(tmp_path / f"ball.{form}", tmp_path / form.replace(".", "_"), "--name", "ball")
        run(
            "export",
            "splats",
            "--load-config",
            config.parents[3] / "ball" / "splatfacto" / "T" / "config.yml",
            "--object",
            "scene",
            "--output-dir",
            config.parent,
        )
        reimported, _ = read_ply(config.parent / "scene.ply")
        assert len(reimported) == len(ball), form
        # These formats sort and round the splats.
        assert np.allclose(np.sort(reimported.means, axis=0), np.sort(ball.means, axis=0), atol=0.01), form
    assert sorted(path.name for path in tmp_path.glob("saving*")) == []


@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no {CHROMIUM}")
def test_the_page_of_an_object_shows_it_in_a_browser(splat_transform: str, segmented: Path, tmp_path: Path):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    words = ["export", "splats", "--load-config", segmented, "--output-dir", tmp_path, "--object", "ball"]
    run(*words, "--format", "html", "--center", "--no-clean-rim")
    schemes: list[str] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS.split())
        page = browser.new_page(viewport={"width": 480, "height": 360})
        page.on("request", lambda request: schemes.append(request.url.split(":")[0]))
        page.goto((tmp_path / "ball.html").as_uri(), timeout=240_000)
        for _ in range(60):
            page.wait_for_timeout(3000)
            page.screenshot(path=str(tmp_path / "page.png"), timeout=120_000)
            image = np.asarray(Image.open(tmp_path / "page.png").convert("RGB")).astype(int)
            middle, corner = image[140:220, 200:280].reshape(-1, 3).mean(0), image[5, 5]
            if middle[0] > 1.5 * max(middle[1:]):
                break
        browser.close()
    assert middle[0] > 1.5 * max(middle[1:])
    assert np.ptp(corner) < 30
    # The page requests nothing outside its file.
    assert set(schemes) <= {"file", "blob", "data"}


def test_without_splat_transform_a_sentence_tells_how_to_get_it(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(VARIABLE, raising=False)
    (tmp_path / "scene.spz").write_bytes(b"x")
    with pytest.raises(SA3DError, match="not on the PATH: npm install -g @playcanvas/splat-transform"):
        main(["import", str(tmp_path / "scene.spz"), "--output-dir", str(tmp_path / "o")])
    words = ["export", "splats", "--load-config", str(base), "--output-dir", str(tmp_path / "o"), "--format", "html"]
    with pytest.raises(SA3DError, match="npm install"):
        main(words)
    monkeypatch.setenv(VARIABLE, "nothing-of-that-name")
    with pytest.raises(SA3DError, match="names nothing-of-that-name, which is no program"):
        main(words)


def test_what_splat_transform_says_is_handed_on(splat_transform: str, tmp_path: Path):
    (tmp_path / "scene.spz").write_bytes(b"no such thing")
    with pytest.raises(SA3DError, match="splat-transform cannot make") as error:
        main(["import", str(tmp_path / "scene.spz"), "--output-dir", str(tmp_path / "o")])
    assert "\n" not in str(error.value)


def test_given_cameras_and_photos_are_the_views(tmp_path: Path):
    write_ply(tmp_path / "desk.ply", desk().gaussians)
    cameras = write_inria(tmp_path / "cameras.json")
    (tmp_path / "images").mkdir()
    Image.new("RGB", (200, 150), (9, 8, 7)).save(tmp_path / "images" / "00001.png")
    config = imported(tmp_path / "desk.ply", tmp_path / "outputs", "--cameras", cameras)
    frames = json.loads((config.parent / "desk" / "transforms.json").read_text())["frames"]
    assert [Path(frame["file_path"]).name for frame in frames] == ["00000.jpg", "00001.png", "00002.jpg"]
    loaded = sa3d.load(config, output_dir=tmp_path)
    assert len(loaded.pipeline.views) == 3
    views = loaded.pipeline.views
    index = views.find("1")
    assert views.name(index).endswith("00001.png")
    # Segmenters see the photo of a view that has one, and otherwise a render, not the drawing.
    assert views.picture(index, 1024).shape == (150, 200, 3)
    assert (views.picture(index) * 255).round().unique().tolist() == [7, 8, 9]
    for drawn in {0, 1, 2} - {index}:
        assert torch.equal(views.picture(drawn, 1024), views.trace(drawn).rgb)
        assert views.picture_size(drawn, 1024) == views.picture(drawn, 1024).shape[:2]
        window = views.frame(drawn).around((10, 10, 40, 60), 1.0)
        assert torch.equal(views.window_picture(drawn, window), views.window_trace(drawn, window).rgb)


def test_segmenters_see_renders_of_splats_and_not_the_drawings(base: Path, tmp_path: Path):
    views = sa3d.load(base.parent, output_dir=tmp_path, working_size=64).pipeline.views
    assert not views.has_photos
    assert torch.equal(views.picture(0, 1024), views.trace(0).rgb)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["import", "absent.ply"], "there is no splat file"),
        (["import", "scene.obj"], "no splat file of a known kind"),
        (["import", "desk.ply", "--cameras", "absent.json"], "there are no cameras"),
        (["export", "splats", "--load-config", "RUN", "--labelled", "--center"], "--labelled writes the whole scene"),
        (["export", "splats", "--load-config", "RUN"], "no object to export"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(
    words: list[str], sentence: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scene.obj").write_text("v 0 0 0\n")
    write_ply(tmp_path / "desk.ply", desk().gaussians)
    with pytest.raises(SA3DError, match=sentence) as error:
        main([str(base) if word == "RUN" else word for word in words] + ["--output-dir", str(tmp_path / "out")])
    assert "\n" not in str(error.value)


def test_a_run_is_not_written_over(base: Path):
    with pytest.raises(SA3DError, match=r"there is a run .* already"):
        main(["import", str(base.parents[4] / "desk.ply"), "--output-dir", str(base.parents[3]), "--timestamp", "T"])
