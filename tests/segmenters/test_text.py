"""Words to boxes: a tiny random Grounding DINO of the real classes, through its real processor."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from sa3d_nerfstudio.errors import MissingWeightsError, SA3DError
from sa3d_nerfstudio.segmenters import pretrained
from sa3d_nerfstudio.segmenters.base import SegmenterImage
from sa3d_nerfstudio.segmenters.text import (
    GROUNDING_DINO,
    TextMatch,
    TextOptions,
    choose_box,
    describe_boxes,
    find_boxes,
    text_available,
)
from tests.tiny_dino import save_tiny_dino

pytest.importorskip("transformers", reason="text prompts need the extra [text]")

HEIGHT, WIDTH = 60, 80


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_dino(tmp_path_factory.mktemp("dino"))


@pytest.fixture
def options(model: Path) -> TextOptions:
    return TextOptions(str(model))


def picture(seed: int = 0) -> SegmenterImage:
    return SegmenterImage(torch.rand(HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(seed)), f"{seed}.jpg")


def test_the_thresholds_are_the_published_ones():
    assert (TextOptions().box_threshold, TextOptions().text_threshold) == (0.35, 0.25)


def test_boxes_lie_in_the_image_from_best_to_worst(options: TextOptions):
    boxes = find_boxes(picture(), "A red  mug.", options)
    assert len(boxes) > 2
    scores = [found.score for found in boxes]
    assert scores == sorted(scores, reverse=True)
    assert min(scores) > options.box_threshold
    for found in boxes:
        x0, y0, x1, y1 = found.box
        assert 0 <= x0 < x1 <= WIDTH
        assert 0 <= y0 < y1 <= HEIGHT
        assert found.label
        assert set(found.label.split()) <= {"a", "red", "mug"}
    assert boxes == find_boxes(picture(), "a red mug", options), "spelling must not matter"


def test_it_is_what_the_package_itself_finds(model: Path, options: TextOptions):
    from transformers import GroundingDinoForObjectDetection, GroundingDinoProcessor

    image = (picture().rgb * 255).round().to(torch.uint8).numpy()
    network = GroundingDinoForObjectDetection.from_pretrained(model).eval()
    processor = GroundingDinoProcessor.from_pretrained(model)
    inputs = processor(images=image, text="green plate.", return_tensors="pt")
    with torch.no_grad():
        outputs = network(**inputs)
    (expected,) = processor.post_process_grounded_object_detection(
        outputs, inputs["input_ids"], threshold=0.35, text_threshold=0.25, target_sizes=[(HEIGHT, WIDTH)]
    )
    best = int(expected["scores"].argmax())
    found = find_boxes(picture(), "green plate", options)[0]
    assert found.score == pytest.approx(float(expected["scores"][best]), abs=1e-5)
    assert found.box == pytest.approx(expected["boxes"][best].clamp(min=0).tolist(), abs=1e-3)


def test_words_and_pixels_matter(options: TextOptions):
    assert find_boxes(picture(), "mug", options) != find_boxes(picture(), "teddy bear", options)
    assert find_boxes(picture(), "mug", options) != find_boxes(picture(1), "mug", options)


def test_thresholds_matter(model: Path, options: TextOptions):
    boxes = find_boxes(picture(), "a mug", options)
    between = (boxes[0].score + boxes[1].score) / 2
    assert find_boxes(picture(), "a mug", TextOptions(str(model), box_threshold=between)) == boxes[:1]
    assert find_boxes(picture(), "a mug", TextOptions(str(model), box_threshold=1.0)) == []
    # A box that no single word is sure of is called by all of them.
    assert {found.label for found in find_boxes(picture(), "a mug", TextOptions(str(model), text_threshold=1.0))} == {
        "a mug"
    }


@pytest.mark.parametrize("text", ["", "  ", " . "])
def test_no_words(options: TextOptions, text: str):
    with pytest.raises(SA3DError, match="holds no words"):
        find_boxes(picture(), text, options)


TWO = [TextMatch((1, 2, 30, 40), 0.8, "mug"), TextMatch((5.4, 6.5, 7.6, 8.7), 0.4, "red mug")]


def test_the_only_box_is_meant():
    assert choose_box(TWO[:1], "mug", "a.png") is TWO[0]


def test_one_of_several_is_chosen():
    assert choose_box(TWO, "mug", "a.png", 1) is TWO[1]


def test_the_best_of_several_is_meant_and_all_are_listed():
    assert choose_box(TWO, "mug", "a.png") is TWO[0]
    assert describe_boxes(TWO, "mug", "a.png") == (
        '2 places in a.png look like "mug" (0: mug 0.80 at 1 2 30 40; 1: red mug 0.40 at 5 6 8 9)'
    )
    assert describe_boxes(TWO[:1] * 20, "mug", "a.png").endswith("0.80 at 1 2 30 40; and 14 more)")


@pytest.mark.parametrize("index", [2, -1])
def test_an_index_without_a_box(index: int):
    with pytest.raises(SA3DError, match=f"there is no box {index}, choose one"):
        choose_box(TWO, "mug", "a.png", index)


def test_nothing_found():
    with pytest.raises(SA3DError, match=r'nothing in a\.png looks like "mug": try other words'):
        choose_box([], "mug", "a.png", 0)


def refusal(folder: Path | str, **options: object) -> str:
    """The sentence that refuses a model."""
    with pytest.raises(SA3DError) as caught:
        find_boxes(picture(), "mug", TextOptions(str(folder), **options))  # type: ignore[arg-type]
    text = str(caught.value)
    assert "\n" not in text
    assert "--pipeline.text-model" in text
    assert "--pipeline.prompt.points" in text
    return text


def changed(model: Path, folder: Path, **values: object) -> Path:
    """A copy of the model with other values in its config.json."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))
    return folder


def test_a_folder_that_is_not_there(tmp_path: Path):
    assert f"there is no folder {tmp_path / 'gone'}" in refusal(tmp_path / "gone")


def test_no_download():
    """The tests run where downloads are forbidden; a model of the hub is then one that is missing."""
    with pytest.raises(MissingWeightsError, match="may not be downloaded: put model"):
        find_boxes(picture(), "mug", TextOptions())
    assert "https://huggingface.co/IDEA-Research/no-such-model" in refusal("IDEA-Research/no-such-model")


def test_pickled_weights_are_refused(model: Path, tmp_path: Path):
    folder = changed(model, tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    assert f"Grounding DINO in {folder} cannot be read" in refusal(folder)


def test_weights_that_are_cut_short(model: Path, tmp_path: Path):
    folder = changed(model, tmp_path / "cut")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert f"Grounding DINO in {folder} cannot be read" in refusal(folder)


def test_weights_of_another_size(model: Path, tmp_path: Path):
    folder = changed(model, tmp_path / "larger", decoder_layers=3)
    assert "do not fit together" in refusal(folder)


def test_a_model_of_another_kind(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    assert "holds a bert model, and no Grounding DINO" in refusal(tmp_path)
    (tmp_path / "config.json").unlink()
    assert f"{tmp_path} does not say what it holds: name a folder with config.json" in refusal(tmp_path)


def test_a_file_in_the_place_of_a_folder(model: Path):
    weights = model / "model.safetensors"
    assert f"{weights} (--pipeline.text-model) is a file: name a folder with" in refusal(weights)


def test_a_config_that_is_no_json(model: Path, tmp_path: Path):
    folder = changed(model, tmp_path / "damaged")
    (folder / "config.json").write_text("{")
    assert f"Grounding DINO in {folder} cannot be read" in refusal(folder)


def test_without_the_package(options: TextOptions, monkeypatch: pytest.MonkeyPatch):
    """As if the extra were too old, or not there at all."""
    assert text_available()
    monkeypatch.setattr(pretrained, "OLDEST", (99, 0))
    assert not text_available()
    with pytest.raises(SA3DError, match=r"pip install 'sa3d-nerfstudio\[text\]', or prompt with"):
        pretrained.load_pretrained(GROUNDING_DINO, options.model)
