"""Images and options that the pipeline passes to segmenters and text detector, on a real, tiny run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sa3d_nerfstudio as sa3d
from sa3d_nerfstudio.api import Run
from sa3d_nerfstudio.errors import MissingWeightsError
from sa3d_nerfstudio.prompts.config import PromptConfig
from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.segmenters.base import Candidates, SegmenterImage
from sa3d_nerfstudio.segmenters.sam import SamSegmenter
from sa3d_nerfstudio.segmenters.text import TextOptions, find_boxes
from tests.tiny_dino import save_tiny_dino
from tests.tiny_sam import save_tiny_sam
from tests.tiny_transformers_sam import HAS_SAM3, save_tiny_sam3_concepts

pytestmark = pytest.mark.slow


def load(run: Path, output: Path, **options: Any) -> Run:
    return sa3d.load(run, output_dir=output, **{"segmenter": "grabcut", "working_size": 16, **options})


class Boxed:
    """Segmenter that returns the pixels in the prompt's box."""

    def embed(self, image: SegmenterImage) -> tuple[int, int]:
        return image.height, image.width

    def predict(self, embedding: tuple[int, int], prompt: Prompt) -> Candidates:
        assert prompt.box is not None
        x0, y0, x1, y1 = (round(value) for value in prompt.box.tolist())
        mask = torch.zeros(1, *embedding, dtype=torch.bool)
        mask[0, y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)] = True
        return Candidates(mask, torch.ones(1))


def test_words_prompt_as_the_box_does_that_they_find(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("transformers", reason="text prompts need the extra [text]")
    model = save_tiny_dino(tmp_path / "dino")
    run = load(tiny_run, tmp_path / "out", text_model=str(model))
    monkeypatch.setattr(run.pipeline, "make_segmenter", Boxed)
    views = run.pipeline.views
    # Photos are 32 pixels wide at any working size.
    image = SegmenterImage(views.picture(1, 1333), views.name(1))
    assert image.width == 32
    matches = find_boxes(image, "a mug", TextOptions(str(model)))
    assert len(matches) > 1
    for index in (0, 1):
        box = list(matches[index].box)
        view, by_index = run.pipeline.text_finder().box(1, "a mug", index)
        assert view == 1 and by_index == pytest.approx(box, abs=1e-4)
        by_words = run.prompt(1, text="a mug", box_index=index, name="text")
        assert torch.equal(by_words, run.prompt(1, box=box, name="box"))
    # Without a view, the finder takes the best match of six views: only the other views may have better ones.
    view, best = run.pipeline.text_finder().box(None, "a mug")
    scores = {
        number: find_boxes(SegmenterImage(views.picture(number, 1333), ""), "a mug", TextOptions(str(model)))[0].score
        for number in range(len(views))
    }
    assert sum(score > scores[view] for score in scores.values()) <= len(views) - 6
    with pytest.raises(sa3d.SA3DError, match="not both"):
        run.prompt(1, box=box, text="a mug")
    with pytest.raises(sa3d.SA3DError, match="need a view"):
        run.prompt(points=[(3, 4)], text="a mug")
    run.pipeline.config.prompt = PromptConfig(text="a mug")
    (prompted,) = run.pipeline.prompts_from_config()
    assert list(prompted.views) == [view]
    box = prompted.views[view].box
    assert box is not None
    assert box.tolist() == pytest.approx(best)
    # All objects that match the text, each with its masks in the views that show it.
    run.pipeline.config.prompt = PromptConfig(text="a mug", instances="all")
    objects = run.pipeline.prompts_from_config()
    assert [entry.name for entry in objects][:2] == ["object", "object 2"]
    assert all(prompt.mask is not None for entry in objects for prompt in entry.views.values())


@pytest.mark.parametrize("working_size", [32, 16])
def test_segmenters_see_what_they_are_told_to(tiny_run: Path, tiny_scene: Path, tmp_path: Path, working_size: int):
    render = load(tiny_run, tmp_path, working_size=working_size, image_source="render").pipeline.views
    photo = load(tiny_run, tmp_path, working_size=working_size).pipeline.views
    assert torch.equal(render.picture(2), render.trace(2).rgb)
    path = next(tiny_scene.glob(f"images/{photo.name(2)}"))
    pixels = np.asarray(Image.open(path).resize((working_size, working_size * 3 // 4), Image.Resampling.BOX))
    error = (photo.picture(2) - torch.from_numpy(pixels[..., :3] / 255.0)).abs().mean()
    assert error < (0.001 if working_size == 32 else 0.03)
    assert (render.picture(2) - photo.picture(2)).abs().mean() > error


def test_options_reach_the_segmenter(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    checkpoint = save_tiny_sam(tmp_path / "tiny.pth")
    pipeline = load(tiny_run, tmp_path, segmenter="sam", sam_checkpoint=checkpoint, dense_prompts=True).pipeline
    segmenter = pipeline.make_segmenter()
    assert isinstance(segmenter, SamSegmenter)
    assert segmenter.dense_prompts
    assert pipeline.text_options().download
    # From here on, only the option forbids downloads.
    monkeypatch.delenv("SA3D_NO_DOWNLOAD")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    pipeline.config.segmenter, pipeline.config.sam_checkpoint = "sam-vit-b", None
    pipeline.config.sam_download = False
    with pytest.raises(MissingWeightsError, match=r"sam_vit_b_01ec64\.pth"):
        pipeline.make_segmenter()
    assert not pipeline.text_options().download


def test_a_later_run_renders_nothing(tiny_run: Path, tmp_path: Path, tiny_prompt: dict[str, Any]):
    first = load(tiny_run, tmp_path / "out")
    first.prompt(tiny_prompt["frame"], points=tiny_prompt["points"][:1])
    first.segment()
    cache, count = first.pipeline.views.cache, len(first.pipeline.views)
    # Each view is rendered once, and each visited view is embedded once; a second object adds neither.
    embedded = cache.computed - count
    assert 0 < embedded <= count
    first.prompt(tiny_prompt["frame"], points=tiny_prompt["points"][:1], name="again")
    first.segment()
    assert cache.computed == count + embedded
    assert not list((tmp_path / "out").rglob("*.view"))
    config = first.save()
    assert len(list((config.parent.parent / "cache").rglob("*.view"))) == count
    second = load(tiny_run, tmp_path / "out")
    second.prompt(tiny_prompt["frame"], points=tiny_prompt["points"][:1])
    second.segment()
    assert second.pipeline.views.cache.computed <= embedded
    assert torch.equal(second.mask(0), first.mask(0)) or (second.mask(0) - first.mask(0)).abs().max() < 1e-4
    changed = load(tiny_run, tmp_path / "out")
    with torch.no_grad():
        weights = dict(changed.pipeline.model.named_parameters())
        next(weights[name] for name in weights if name.startswith("field.")).add_(1e-3)
    assert changed.pipeline.base_digest() != second.pipeline.base_digest()


def test_words_are_proposals_by_their_boxes(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("transformers", reason="text prompts need the extra [text]")
    model = save_tiny_dino(tmp_path / "dino")
    options = {"text_model": str(model), "everything_views": 2, "everything_min_share": 0.0}
    run = load(tiny_run, tmp_path / "out", everything_text="A mug. a plate.", **options)
    monkeypatch.setattr(run.pipeline, "make_segmenter", Boxed)
    views = run.pipeline.views
    image = SegmenterImage(views.picture(1, 1333), views.name(1))
    matches = [match for text in ("a mug", "a plate") for match in find_boxes(image, text, TextOptions(str(model)))]
    proposals = run.pipeline.text_finder().proposals(1, "A mug. a plate.")
    assert 0 < len(proposals.masks) <= len(matches)
    for mask, score in zip(proposals.masks, proposals.scores.tolist(), strict=True):
        boxes = [match.box for match in matches if match.score == pytest.approx(score)]
        assert any(torch.equal(mask, run.prompt(1, box=list(box), name="box").cpu()) for box in boxes)
    # The scene is segmented from these proposals, and not from the segmenter's.
    scene = run.pipeline.scene()
    steps = scene.steps()
    assert [next(steps).stage for _ in range(2)] == ["proposals"] * 2
    view = scene.pool.views[0]
    text_scores = run.pipeline.text_finder().proposals(view, "A mug. a plate.").scores.tolist()
    scores = [item.score for item in scene.pool.proposals if item.view == view]
    assert scores and set(scores) <= set(text_scores)


@pytest.mark.skipif(not HAS_SAM3, reason="SAM 3 needs transformers 5: the extra [sam3]")
def test_instances_of_sam3_are_proposals_as_they_are(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    options = TextOptions(str(save_tiny_sam3_concepts(tmp_path / "concepts")), mask_threshold=0.0)
    run = load(tiny_run, tmp_path / "out")
    monkeypatch.setattr(run.pipeline, "text_options", lambda: options)
    views, finder = run.pipeline.views, run.pipeline.text_finder()
    proposals = finder.proposals(1, "a mug.")
    matches = find_boxes(SegmenterImage(views.picture(1, 1333), views.name(1)), "a mug", options)
    size = views.trace(1).height, views.trace(1).width
    masks = torch.stack([match.mask for match in matches if match.mask is not None])
    expected = Candidates(masks, torch.ones(len(masks))).at(*size).masks
    assert 0 < len(proposals.masks) <= len(expected)
    for mask, score in zip(proposals.masks, proposals.scores.tolist(), strict=True):
        indices = [index for index, match in enumerate(matches) if match.score == pytest.approx(score)]
        assert any(torch.equal(mask, expected[index]) for index in indices)
    no_masks = TextOptions(options.model, mask_threshold=1.0)
    monkeypatch.setattr(run.pipeline, "text_options", lambda: no_masks)
    assert run.pipeline.text_finder().proposals(1, "a mug").masks.shape == (0, *size)


def test_a_prompt_that_fails_changes_nothing(tiny_objects: Path, tiny_scene: Path, tiny_prompt: dict, tmp_path: Path):
    oracle: dict[str, Any] = {"segmenter": "oracle", "oracle_instances": tiny_scene / "instances", "max_passes": 1}
    run = load(tiny_objects, tmp_path, **oracle)
    masks = run.pipeline.model.masks
    before, prompts = masks["ball"], dict(masks.prompts)
    frame, point = tiny_prompt["frame"], tiny_prompt["points"][0]
    with pytest.raises(sa3d.SA3DError, match="and not 'smal'"):
        run.prompt(frame, [point], name="ball", candidate="smal")  # type: ignore[arg-type]
    with pytest.raises(sa3d.SA3DError, match="selects nothing"):
        run.prompt(frame, negative_points=[point], name="ball")
    assert masks["ball"] is before and masks.prompts == prompts
    assert sa3d.load(run.save()).pipeline.model.masks.prompts == prompts
    run.prompt(frame, [point], name="ball")
    assert masks["ball"] is before, "an object is replaced when it is segmented"
    run.segment()
    assert masks["ball"] is not before and masks["ball"].holds_object(0.5)


def test_python_takes_masks_and_scribbles(tiny_run: Path, tiny_scene: Path, tiny_prompt: dict, tmp_path: Path):
    run = load(tiny_run, tmp_path, segmenter="oracle", oracle_instances=tiny_scene / "instances", working_size=32)
    frame = tiny_prompt["frame"]
    mask = np.zeros((24, 32), bool)
    mask[5:9, 7:12] = True
    assert np.array_equal(run.prompt(frame, mask=mask).cpu().numpy(), mask)
    Image.fromarray(mask).save(tmp_path / "mask.png")
    assert np.array_equal(run.prompt(frame, mask=tmp_path / "mask.png").cpu().numpy(), mask)
    x, y = tiny_prompt["points"][0]
    scribble = np.zeros((24, 32), np.uint8)
    scribble[y, x] = 255
    Image.fromarray(scribble).save(tmp_path / "scribble.png")
    assert torch.equal(run.prompt(frame, scribble=tmp_path / "scribble.png"), run.prompt(frame, [(x, y)]))
    with pytest.raises(sa3d.SA3DError, match="an array of 24 x 32"):
        run.prompt(frame, mask=mask.T)
    with pytest.raises(sa3d.SA3DError, match="need a view"):
        run.prompt(text="a mug", mask=mask)
