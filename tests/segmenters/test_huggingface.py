"""SAM 2 and SAM-HQ: tiny random models of the real classes, through their real processors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sa3d_nerfstudio.errors import MissingWeightsError, SA3DError
from sa3d_nerfstudio.files import to_bytes
from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.segmenters.base import Candidates, SegmenterImage, SegmenterOptions, StorableSegmenter
from sa3d_nerfstudio.segmenters.registry import make_segmenter
from sa3d_nerfstudio.segmenters.text import TextOptions, find_boxes, gives_masks
from sa3d_nerfstudio.segmenters.weights import CHECKPOINT_VARIABLE
from tests.segmenters.prompts import HEIGHT, PRIOR, PROMPTS, WIDTH
from tests.tiny_transformers_sam import (
    HAS_SAM3,
    SIDE,
    save_tiny_sam2,
    save_tiny_sam3,
    save_tiny_sam3_concepts,
    save_tiny_sam_hq,
)

transformers = pytest.importorskip("transformers", reason="SAM 2 and SAM-HQ need the extras [sam2] and [sam-hq]")
FAMILIES = {
    "sam2": (save_tiny_sam2, "Sam2Model", "Sam2Processor"),
    "sam3": (save_tiny_sam3, "Sam3TrackerModel", "Sam3TrackerProcessor"),
    "sam-hq": (save_tiny_sam_hq, "SamHQModel", "SamHQProcessor"),
}
needs_sam3 = pytest.mark.skipif(not HAS_SAM3, reason="SAM 3 needs transformers 5: the extra [sam3]")


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=needs_sam3 if name == "sam3" else ()) for name in FAMILIES]
)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return FAMILIES[family][0](tmp_path_factory.mktemp(family))


@pytest.fixture(scope="module")
def segmenter(family: str, folder: Path) -> Any:
    return make_segmenter(family, SegmenterOptions(sam_checkpoint=folder))


def picture(seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> SegmenterImage:
    return SegmenterImage(torch.rand(height, width, 3, generator=torch.Generator().manual_seed(seed)), f"{seed}.jpg")


def same(first: Candidates, second: Candidates) -> bool:
    return torch.equal(first.masks, second.masks) and torch.equal(first.scores, second.scores)


@pytest.mark.parametrize("kind", PROMPTS)
def test_every_kind_of_prompt(family: str, segmenter: Any, kind: str):
    answer = segmenter.predict(segmenter.embed(picture()), PROMPTS[kind])
    # Three, and the single-mask answer where there is little left to choose; of SAM-HQ always that.
    count = 1 if family == "sam-hq" else 3 if kind in ("point", "prior") else 4
    assert answer.masks.shape == (count, HEIGHT, WIDTH)
    assert answer.masks.dtype == torch.bool
    assert answer.scores.shape == (count,)
    assert answer.single == (3 if count == 4 else None)
    assert 0 < answer.masks.sum() < answer.masks.numel()
    assert not answer.scores.requires_grad


def test_prompts_and_images_differ(segmenter: Any):
    embedding = segmenter.embed(picture())
    scores = {kind: tuple(segmenter.predict(embedding, prompt).scores.tolist()) for kind, prompt in PROMPTS.items()}
    assert scores["prior"] == scores["point"], "a prior must not matter unless dense prompts are on"
    assert len(set(scores.values())) == len(PROMPTS) - 1
    prompt = PROMPTS["point"]
    assert not same(segmenter.predict(embedding, prompt), segmenter.predict(segmenter.embed(picture(1)), prompt))
    assert same(segmenter.predict(embedding, prompt), segmenter.predict(segmenter.embed(picture()), prompt))


def test_it_is_what_the_package_itself_answers(family: str, folder: Path, segmenter: Any):
    """At the encoder's own size, where its half pixels make no difference."""
    _, model_class, processor_class = FAMILIES[family]
    model = getattr(transformers, model_class).from_pretrained(folder).eval()
    processor = getattr(transformers, processor_class).from_pretrained(folder)
    image = picture(0, SIDE, SIDE)
    inputs = processor(
        images=to_bytes(image.rgb), input_points=[[[[20.0, 30.0], [200.0, 100.0]]]], input_labels=[[[1, 0]]],
        return_tensors="pt",
    )  # fmt: skip
    sizes = [inputs["original_sizes"], *([inputs["reshaped_input_sizes"]] if family == "sam-hq" else [])]
    answer = segmenter.predict(segmenter.embed(image), Prompt.from_points(SIDE, SIDE, [(20, 30)], [(200, 100)]))
    asked = [(False, slice(0, 1))] if family == "sam-hq" else [(True, slice(0, 3)), (False, slice(3, 4))]
    for multimask, index in asked:
        given = {name: inputs[name] for name in ("pixel_values", "input_points", "input_labels")}
        with torch.no_grad():
            outputs = model(**given, multimask_output=multimask)
        masks = processor.post_process_masks(outputs.pred_masks, *sizes)[0][0]
        # Embeddings are kept in half precision.
        assert torch.allclose(answer.scores[index], outputs.iou_scores[0, 0], atol=2e-3)
        assert (answer.masks[index] == masks).float().mean() > 0.995
        assert 0 < masks.sum() < masks.numel()


def test_embeddings_take_half_the_memory(segmenter: Any):
    tensors = segmenter.to_tensors(segmenter.embed(picture()))
    del tensors["sizes"]
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}


def asked(segmenter: Any, prompt: Prompt, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The points and boxes that reach the prompt encoder."""
    seen: list[torch.Tensor] = []
    handle = segmenter.model.prompt_encoder.register_forward_pre_hook(
        lambda module, args, prompted: seen.extend([prompted["input_points"].clone(), prompted["input_boxes"].clone()]),
        with_kwargs=True,
    )
    segmenter.predict(segmenter.embed(picture(0, height, width)), prompt)
    handle.remove()
    return seen[0][0, 0], seen[1][0, 0]


def test_a_prompt_means_the_same_place_at_every_size(family: str, segmenter: Any):
    """A pixel of an image a quarter as large is the centre of a block of 4 x 4 of the encoder's own pixels."""
    points, box = asked(segmenter, Prompt.from_points(64, 64, [(10, 20)], box=[0, 8, 16, 64]), 64, 64)
    # The encoder adds half a pixel.
    assert torch.allclose(points + 0.5, torch.tensor([[42.0, 82.0]]))
    assert torch.allclose(box + 0.5, torch.tensor([0.0, 32.0, 64.0, 256.0]))
    # SAM 2 stretches what SAM-HQ pads.
    points, _ = asked(segmenter, Prompt.from_points(32, 64, [(10, 20)], box=[0, 8, 16, 32]), 32, 64)
    assert torch.allclose(points + 0.5, torch.tensor([[42.0, 82.0 if family == "sam-hq" else 164.0]]))


def test_encoder_runs_once_per_image(segmenter: Any):
    calls: list[int] = []
    handle = segmenter.model.vision_encoder.register_forward_hook(lambda *_: calls.append(1))
    embedding = segmenter.embed(picture())
    for prompt in PROMPTS.values():
        segmenter.predict(embedding, prompt)
    handle.remove()
    assert len(calls) == 1


def test_embeddings_may_be_kept_on_disk(segmenter: Any):
    assert isinstance(segmenter, StorableSegmenter)


def test_embeddings_survive_the_disk(family: str, folder: Path, segmenter: Any, tmp_path: Path):
    embedding = segmenter.embed(picture())
    torch.save(segmenter.to_tensors(embedding), tmp_path / "kept.pt")
    again: Any = make_segmenter(family, SegmenterOptions(sam_checkpoint=folder))
    assert again.fingerprint == segmenter.fingerprint
    kept = again.from_tensors(torch.load(tmp_path / "kept.pt", weights_only=True))
    for prompt in PROMPTS.values():
        assert same(again.predict(kept, prompt), segmenter.predict(embedding, prompt))


def test_prior_matters_with_dense_prompts(family: str, folder: Path, segmenter: Any):
    dense = make_segmenter(family, SegmenterOptions(sam_checkpoint=folder, sam_dense_prompts=True))
    embedding = dense.embed(picture())
    with_box = Prompt.from_points(HEIGHT, WIDTH, [(20, 30)], box=[40, 0, 80, 60])
    with_both = Prompt.from_points(HEIGHT, WIDTH, [(20, 30)], box=[40, 0, 80, 60], prior=PRIOR)
    without = dense.predict(embedding, PROMPTS["point"])
    prompted = dense.predict(embedding, PROMPTS["prior"])
    mirrored = dense.predict(embedding, Prompt.from_points(HEIGHT, WIDTH, [(20, 30)], prior=PRIOR.flip(1)))
    assert not same(without, prompted)
    assert not same(prompted, mirrored)
    assert not same(prompted, dense.predict(embedding, with_box)), "the mask itself matters"
    assert same(prompted, dense.predict(embedding, with_both)), "the prior comes with a box around it"
    assert same(without, segmenter.predict(embedding, PROMPTS["point"]))


@pytest.mark.parametrize(("height", "width"), [(60, 80), (80, 60)])
def test_dense_prompts_lie_where_answers_lie(family: str, folder: Path, height: int, width: int):
    """What becomes a mask by the package's own processing of masks is the rendered one again."""
    dense: Any = make_segmenter(family, SegmenterOptions(sam_checkpoint=folder, sam_dense_prompts=True))
    prior = torch.zeros(height, width)
    prior[10:40, 25:55] = 0.9
    seen: list[torch.Tensor] = []
    handle = dense.model.prompt_encoder.register_forward_pre_hook(
        lambda module, args, prompted: seen.append(prompted["input_masks"]), with_kwargs=True
    )
    inputs = dense.processor.image_processor(to_bytes(picture(0, height, width).rgb), return_tensors="pt")
    embedding = dense.embed(picture(0, height, width))
    dense.predict(embedding, Prompt.from_points(height, width, [(40, 25)], prior=prior))
    handle.remove()
    logits = seen[0]
    assert logits.shape[-2:] == (SIDE // 4, SIDE // 4)
    sizes = [[(height, width)], *([inputs["reshaped_input_sizes"]] if family == "sam-hq" else [])]
    mask = dense.processor.post_process_masks(logits[None], *sizes)[0][0, 0]
    assert (mask & (prior > 0.5)).sum() / (mask | (prior > 0.5)).sum() > 0.95


def test_a_prompt_that_selects_nothing(segmenter: Any):
    with pytest.raises(SA3DError, match="add a positive point or a box"):
        segmenter.predict(segmenter.embed(picture()), Prompt(HEIGHT, WIDTH))


def test_frozen_and_no_submodule(segmenter: Any):
    assert not segmenter.model.training
    assert not any(weight.requires_grad for weight in segmenter.model.parameters())
    owner = torch.nn.Module()
    owner.segmenter = segmenter
    assert not owner.state_dict()


def test_the_environment_names_a_folder(family: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(CHECKPOINT_VARIABLE, str(folder))
    make_segmenter(family)
    # A file there is the first SAM's.
    monkeypatch.setenv(CHECKPOINT_VARIABLE, str(tmp_path / "sam_vit_h_4b8939.pth"))
    with pytest.raises(MissingWeightsError, match=r"may not be downloaded|given on request"):
        make_segmenter(family)


def test_weights_of_the_other_family(family: str, tmp_path: Path):
    other = "sam2" if family == "sam-hq" else "sam-hq"
    FAMILIES[other][0](tmp_path)
    with pytest.raises(SA3DError, match=r"holds a sam\w+ model, and no SAM"):
        make_segmenter(family, SegmenterOptions(sam_checkpoint=tmp_path))


def test_published_names(family: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(CHECKPOINT_VARIABLE, raising=False)
    with pytest.raises(MissingWeightsError) as caught:
        make_segmenter(family)
    published = {
        "sam2": "facebook/sam2.1-hiera-large", "sam3": "facebook/sam3", "sam-hq": "syscv-community/sam-hq-vit-huge",
    }[family]  # fmt: skip
    assert f"https://huggingface.co/{published}" in str(caught.value)
    assert f"--pipeline.segmenter {'sam2' if family == 'sam3' else 'grabcut'}" in str(caught.value)
    assert "\n" not in str(caught.value)
    if family == "sam3":
        assert "SAM License" in str(caught.value) and "`hf auth login`" in str(caught.value)


@needs_sam3
def test_weights_that_are_refused_name_licence_and_login(monkeypatch: pytest.MonkeyPatch):
    def refused(*_: Any, **__: Any) -> None:
        raise OSError("You are trying to access a gated repo.\nMake sure to have access to it.")

    monkeypatch.setattr(transformers.PretrainedConfig, "get_config_dict", refused)
    monkeypatch.delenv("SA3D_NO_DOWNLOAD", raising=False)
    with pytest.raises(MissingWeightsError, match=r"SAM License: ask for them at .*facebook/sam3, log in by `hf auth"):
        make_segmenter("sam3")


@pytest.mark.parametrize("kept", [0, 1])
def test_a_tensor_of_sam2_that_an_older_package_has_stored_once(tmp_path: Path, kept: int):
    from safetensors.torch import load_file, save_file

    twins = ["shared_image_embedding.positional_embedding", "prompt_encoder.shared_embedding.positional_embedding"]
    save_tiny_sam2(tmp_path / "old")
    state = load_file(tmp_path / "old" / "model.safetensors")
    same = state[twins[kept]]
    for name in twins:
        state.pop(name, None)
    save_file({**state, twins[kept]: same}, tmp_path / "old" / "model.safetensors", {"format": "pt"})
    old: Any = make_segmenter("sam2", SegmenterOptions(sam_checkpoint=tmp_path / "old"))
    for name in twins:
        assert torch.equal(old.model.state_dict()[name], same)
    # Without both, or without another one, it is no model.
    save_file(state, tmp_path / "old" / "model.safetensors", {"format": "pt"})
    with pytest.raises(SA3DError, match="tensors are missing"):
        make_segmenter("sam2", SegmenterOptions(sam_checkpoint=tmp_path / "old"))


@needs_sam3
def test_words_become_masks_by_sam3(tmp_path: Path):
    folder = save_tiny_sam3_concepts(tmp_path / "concepts")
    options = TextOptions(str(folder), mask_threshold=0.0)
    assert gives_masks(options)
    assert gives_masks(TextOptions("facebook/sam3")) and not gives_masks(TextOptions())
    image = picture(0, 60, 80)
    found = find_boxes(image, "A  mug.", options)
    assert len(found) == 12
    assert [match.score for match in found] == sorted((match.score for match in found), reverse=True)
    # What the package itself answers, instance by instance.
    model = transformers.Sam3Model.from_pretrained(folder).eval()
    processor = transformers.Sam3Processor.from_pretrained(folder)
    inputs = processor(images=to_bytes(image.rgb), text="a mug", return_tensors="pt")
    with torch.no_grad():
        outputs = model(**{name: inputs[name] for name in ("pixel_values", "input_ids", "attention_mask")})
    expected = processor.post_process_instance_segmentation(outputs, threshold=0.0, target_sizes=[(60, 80)])[0]
    order = expected["scores"].argsort(descending=True)
    for match, index in zip(found, order, strict=True):
        assert match.mask is not None
        assert torch.equal(match.mask, expected["masks"][index].bool())
        assert match.score == pytest.approx(float(expected["scores"][index]))
        y, x = match.mask.nonzero(as_tuple=True)
        assert match.box == (x.min(), y.min(), x.max() + 1, y.max() + 1)
    other = find_boxes(image, "red plate", options)
    assert [match.score for match in other] != [match.score for match in found]
    assert find_boxes(image, "a mug", TextOptions(str(folder), mask_threshold=1.0)) == []


def test_images_embedded_together_are_as_embedded_alone(segmenter: Any):
    images = [picture(0), picture(1), picture(2)]
    for image, found in zip(images, segmenter.embed_all(images), strict=True):
        expected = segmenter.to_tensors(segmenter.embed(image))
        for name, tensor in segmenter.to_tensors(found).items():
            assert tensor.shape == expected[name].shape
            assert torch.allclose(tensor.float(), expected[name].float(), atol=2e-3)
