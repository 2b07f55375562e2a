"""SAM end to end: a checkpoint file of a tiny random model, loaded, embedding and answering as the real ones do."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.files import to_bytes
from sa3d_nerfstudio.gpu_memory import reclaim
from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.segmenters.base import Candidates, SegmenterImage, SegmenterOptions, embed_all
from sa3d_nerfstudio.segmenters.precision import to_half
from sa3d_nerfstudio.segmenters.registry import make_segmenter
from sa3d_nerfstudio.segmenters.sam import MAX_LOGIT, SamEmbedding, SamSegmenter, low_res_logits
from tests.segmenters.prompts import HEIGHT, PRIOR, PROMPTS, WIDTH
from tests.tiny_sam import save_tiny_sam, tiny_sam


def picture(seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> SegmenterImage:
    return SegmenterImage(torch.rand(height, width, 3, generator=torch.Generator().manual_seed(seed)), f"{seed}.jpg")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_sam(tmp_path_factory.mktemp("sam") / "tiny.pth")


@pytest.fixture
def segmenter(checkpoint: Path) -> SamSegmenter:
    made = make_segmenter("sam", SegmenterOptions(sam_checkpoint=checkpoint))
    assert isinstance(made, SamSegmenter)
    return made


@pytest.fixture
def dense(checkpoint: Path) -> SamSegmenter:
    made = make_segmenter("sam", SegmenterOptions(sam_checkpoint=checkpoint, sam_dense_prompts=True))
    assert isinstance(made, SamSegmenter)
    return made


def same(first: Candidates, second: Candidates) -> bool:
    return torch.equal(first.masks, second.masks) and torch.equal(first.scores, second.scores)


@pytest.mark.parametrize("kind", PROMPTS)
def test_every_kind_of_prompt(segmenter: SamSegmenter, kind: str) -> None:
    answer = segmenter.predict(segmenter.embed(picture()), PROMPTS[kind])
    # Beside part, object and whole, the single-mask answer where there is little left to choose.
    count = 3 if kind in ("point", "prior") else 4
    assert answer.masks.shape == (count, HEIGHT, WIDTH)
    assert answer.masks.dtype == torch.bool
    assert answer.scores.shape == (count,)
    assert answer.scores.dtype == torch.float32
    assert 0 < answer.masks.sum() < answer.masks.numel()
    assert answer.single == (3 if count == 4 else None)
    assert torch.equal(answer.best(), answer.masks[answer.scores.argmax() if count == 3 else 3])
    assert answer.logits is not None
    assert torch.equal(answer.logits > 0, answer.masks)
    assert not answer.masks.requires_grad
    assert not answer.scores.requires_grad


def test_prompts_differ(segmenter: SamSegmenter) -> None:
    embedding = segmenter.embed(picture())
    scores = {kind: tuple(segmenter.predict(embedding, prompt).scores.tolist()) for kind, prompt in PROMPTS.items()}
    assert scores["prior"] == scores["point"], "a prior must not matter unless dense prompts are on"
    del scores["prior"]
    assert len(set(scores.values())) == len(scores)
    flipped = Prompt.from_points(HEIGHT, WIDTH, [(60, 10), (0, 0)], [(20, 30), (25, 30)])
    assert tuple(segmenter.predict(embedding, flipped).scores.tolist()) != scores["points"]


@pytest.mark.parametrize(("height", "width"), [(60, 80), (80, 60), (256, 256), (300, 500), (33, 7)])
def test_sizes(segmenter: SamSegmenter, height: int, width: int) -> None:
    answer = segmenter.predict(
        segmenter.embed(picture(0, height, width)), Prompt.from_points(height, width, [(width - 1, height - 1)])
    )
    assert answer.masks.shape == (3, height, width)


def test_same_answer_as_the_predictor_at_its_own_size(segmenter: SamSegmenter) -> None:
    """Where the image has SAM's size no coordinate is moved, so SamPredictor used by hand must agree exactly.

    Embeddings are kept in half precision.
    """
    image = picture(0, 256, 256)
    predictor = SamPredictor(tiny_sam())
    predictor.set_image(to_bytes(image.rgb))
    assert predictor.features is not None
    predictor.features = predictor.features.half().float()
    points, labels = np.array([[20, 30], [200, 100]]), np.array([1, 0])
    three = predictor.predict(points, labels, multimask_output=True)
    single = predictor.predict(points, labels, multimask_output=False)
    answer = segmenter.predict(segmenter.embed(image), Prompt.from_points(256, 256, [(20, 30)], [(200, 100)]))
    for index, (masks, scores, _) in ((slice(0, 3), three), (slice(3, 4), single)):
        assert np.array_equal(answer.masks[index].numpy(), masks)
        assert np.allclose(answer.scores[index].numpy(), scores, atol=1e-6)


def test_a_prompt_means_the_same_place_at_every_size(segmenter: SamSegmenter) -> None:
    """A pixel of an image a quarter as large is the centre of a block of 4 x 4 of SAM's own pixels."""
    small = picture(0, 64, 64)
    enlarged = segmenter.embed(small)
    asked: list[torch.Tensor] = []
    handle = segmenter.model.prompt_encoder.register_forward_pre_hook(
        lambda module, args, kwargs: asked.extend([kwargs["points"][0].clone(), kwargs["boxes"].clone()]),
        with_kwargs=True,
    )
    segmenter.predict(enlarged, Prompt.from_points(64, 64, [(10, 20)], box=[0, 8, 16, 64]))
    handle.remove()
    # The encoder adds half a pixel.
    assert torch.allclose(asked[0] + 0.5, torch.tensor([[[42.0, 82.0]]]))
    assert torch.allclose(asked[1] + 0.5, torch.tensor([[0.0, 32.0, 64.0, 256.0]]))


def test_encoder_runs_once_per_image(segmenter: SamSegmenter) -> None:
    calls: list[int] = []
    segmenter.model.image_encoder.register_forward_hook(lambda *_: calls.append(1))
    embedding = segmenter.embed(picture())
    for prompt in PROMPTS.values():
        segmenter.predict(embedding, prompt)
    assert len(calls) == 1


def test_interleaved_embeddings(checkpoint: Path, segmenter: SamSegmenter) -> None:
    images = [picture(1), picture(2, 50, 90)]
    embeddings = [segmenter.embed(image) for image in images]
    for number in (0, 1, 1, 0, 1):
        image = images[number]
        prompt = Prompt.from_points(image.height, image.width, [(20, 30)], [(70, 10)])
        fresh = make_segmenter("sam", SegmenterOptions(sam_checkpoint=checkpoint))
        assert same(segmenter.predict(embeddings[number], prompt), fresh.predict(fresh.embed(image), prompt))
    prompt = PROMPTS["point"]
    assert not same(segmenter.predict(embeddings[0], prompt), segmenter.predict(segmenter.embed(picture(3)), prompt))


def test_deterministic(segmenter: SamSegmenter) -> None:
    answers = [segmenter.predict(segmenter.embed(picture()), PROMPTS["box and points"]) for _ in range(2)]
    assert same(*answers)


def test_frozen_and_no_submodule(segmenter: SamSegmenter) -> None:
    """Assigned to a module, as a pipeline does, it must add nothing to that module's checkpoint."""
    assert not segmenter.model.training
    assert not any(weight.requires_grad for weight in segmenter.model.parameters())
    owner = torch.nn.Module()
    owner.segmenter = segmenter  # type: ignore[assignment]
    assert not owner.state_dict()
    assert not list(owner.modules())[1:]
    image = picture()
    image.rgb.requires_grad_(True)
    assert not segmenter.embed(image).features.requires_grad


@pytest.mark.parametrize("points", [[(20, 30)], [(20, 30), (60, 30)]])
def test_prior_matters_with_dense_prompts(dense: SamSegmenter, segmenter: SamSegmenter, points: list) -> None:
    embedding = dense.embed(picture())
    without = dense.predict(embedding, Prompt.from_points(HEIGHT, WIDTH, points))
    prompted = dense.predict(embedding, Prompt.from_points(HEIGHT, WIDTH, points, prior=PRIOR))
    mirrored = dense.predict(embedding, Prompt.from_points(HEIGHT, WIDTH, points, prior=PRIOR.flip(1)))
    assert not same(without, prompted)
    assert not same(prompted, mirrored)
    assert same(without, segmenter.predict(embedding, Prompt.from_points(HEIGHT, WIDTH, points)))


def test_logits_of_a_prior() -> None:
    prior = torch.full((30, 40), 0.25)
    prior[:, 20:] = torch.nan
    prior[:15, :20] = 1.0
    logits = low_res_logits(prior, 64)
    assert logits.shape == (1, 64, 64)
    assert logits.isfinite().all()
    assert logits[0, 10, 10] == MAX_LOGIT
    assert logits[0, 40, 10] == pytest.approx(np.log(0.25 / 0.75))
    assert logits[0, 10, 50] == 0, "unknown is undecided"
    assert (logits[0, 48:] == -MAX_LOGIT).all(), "below the image is no object"
    assert (logits[0, :48] > -MAX_LOGIT).all()
    assert low_res_logits(torch.zeros(7, 500), 64).shape == (1, 64, 64)
    assert low_res_logits(torch.ones(500, 7), 64)[0, :, 2:].max() == -MAX_LOGIT


def disc_prior(height: int, width: int) -> torch.Tensor:
    """A soft disc off the centre, and a corner of which nothing is known."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    radius = 0.3 * min(height, width)
    prior = torch.sigmoid(2 * (radius - ((x - 0.6 * width) ** 2 + (y - 0.45 * height) ** 2).sqrt()))
    prior[-height // 6 :, : width // 6] = torch.nan
    return prior


def asked_densely(segmenter: SamSegmenter, prompt: Prompt) -> dict[str, torch.Tensor]:
    """What reaches the prompt encoder."""
    seen: dict[str, torch.Tensor] = {}
    handle = segmenter.model.prompt_encoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True
    )
    segmenter.predict(segmenter.embed(picture(0, prompt.height, prompt.width)), prompt)
    handle.remove()
    return seen


@pytest.mark.parametrize(("height", "width"), [(60, 80), (80, 60), (256, 256), (97, 61), (40, 200)])
def test_dense_prompts_are_such_as_sam_gives_itself(dense: SamSegmenter, height: int, width: int) -> None:
    """Its own low-resolution logits become masks by `postprocess_masks`; so must those made of a rendered mask."""
    prior = disc_prior(height, width)
    seen = asked_densely(
        dense, Prompt.from_points(height, width, [(int(0.6 * width), int(0.45 * height))], prior=prior)
    )
    side = dense.model.prompt_encoder.mask_input_size[0]
    assert seen["masks"].shape == (1, 1, side, side) == (1, 1, 64, 64)
    size = dense.embed(picture(0, height, width)).input_size
    mask = dense.model.postprocess_masks(seen["masks"], size, (height, width))[0, 0] > dense.model.mask_threshold
    truth = prior > 0.5
    assert (mask & truth).sum() / (mask | truth).sum() > (0.97 if max(height, width) <= 100 else 0.9)
    # The box goes around the same pixels, in the encoder's image; it adds half a pixel.
    y, x = truth.nonzero(as_tuple=True)
    box = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]) * max(size) / max(height, width)
    assert torch.allclose(seen["boxes"][0] + 0.5, box, atol=0.01 * max(size))


def test_dense_prompts_are_off_unless_asked_for(segmenter: SamSegmenter) -> None:
    assert SegmenterOptions().sam_dense_prompts is False
    seen = asked_densely(segmenter, PROMPTS["prior"])
    assert seen["masks"] is None
    assert seen["boxes"] is None


@pytest.mark.parametrize("prompt", [Prompt(HEIGHT, WIDTH), Prompt(HEIGHT, WIDTH, prior=PRIOR)])
def test_a_prompt_that_selects_nothing(dense: SamSegmenter, prompt: Prompt) -> None:
    with pytest.raises(SA3DError, match="add a positive point or a box"):
        dense.predict(dense.embed(picture()), prompt)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_the_cpu(checkpoint: Path, segmenter: SamSegmenter) -> None:
    cuda = make_segmenter("sam", SegmenterOptions(device="cuda", sam_checkpoint=checkpoint))
    embedding = cuda.embed(picture())
    assert embedding.features.is_cuda
    assert embedding.features.dtype == torch.float16
    expected = segmenter.predict(segmenter.embed(picture()), PROMPTS["box and points"])
    answer = cuda.predict(embedding, PROMPTS["box and points"])
    assert torch.allclose(answer.scores.cpu(), expected.scores, atol=0.02)
    assert (answer.masks.cpu() == expected.masks).float().mean() > 0.98


@pytest.mark.sam
@pytest.mark.skipif("SA3D_SAM_CHECKPOINT" not in os.environ, reason="SA3D_SAM_CHECKPOINT names no real weights")
def test_real_weights_find_a_disc() -> None:
    segmenter = make_segmenter("sam", SegmenterOptions("cuda" if torch.cuda.is_available() else "cpu"))
    y, x = torch.meshgrid(torch.arange(240.0), torch.arange(320.0), indexing="ij")
    disc = (x - 200) ** 2 + (y - 100) ** 2 < 40**2
    rgb = torch.where(disc[..., None], torch.tensor([0.8, 0.2, 0.1]), torch.tensor([0.3, 0.5, 0.4]))
    embedding = segmenter.embed(SegmenterImage(rgb, "disc.png"))
    point, box = Prompt.from_points(240, 320, [(200, 100)]), Prompt.from_points(240, 320, box=[160, 60, 241, 141])
    for prompt in (point, box):
        mask = segmenter.predict(embedding, prompt).best().cpu()
        assert (mask & disc).sum() / (mask | disc).sum() > 0.9


def test_images_embedded_together_are_as_embedded_alone(segmenter: SamSegmenter) -> None:
    """Images of several sizes in one pass of the encoder; nothing of one's memory is held by another."""
    images = [picture(0), picture(1, 80, 60), picture(2, 256, 256)]
    prompt = Prompt.from_points(80, 60, [(20, 30)])
    together = segmenter.embed_all(images)
    for image, found in zip(images, together, strict=True):
        alone = segmenter.embed(image)
        assert torch.allclose(found.features.float(), alone.features.float(), atol=2e-3)
        assert (found.original_size, found.input_size) == (alone.original_size, alone.input_size)
        assert found.features.untyped_storage().nbytes() == alone.features.untyped_storage().nbytes()
    assert not torch.allclose(together[0].features, together[1].features, atol=2e-2)
    answers = [segmenter.predict(each, prompt) for each in (together[1], segmenter.embed(images[1]))]
    assert (answers[0].masks != answers[1].masks).float().mean() < 0.002
    assert torch.allclose(answers[0].scores, answers[1].scores, atol=1e-3)


@pytest.mark.parametrize("lost", [torch.nan, torch.inf])
def test_an_encoder_that_overflows_is_run_again_in_full_precision(
    segmenter: SamSegmenter, lost: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(pixels: torch.Tensor) -> torch.Tensor:
        reduced = torch.is_autocast_enabled("cpu")
        ran.append(reduced)
        return whole(pixels) * (lost if reduced else 1.0)

    ran: list[bool] = []
    whole = segmenter.model.image_encoder.forward
    expected = segmenter.embed(picture())
    half = SamSegmenter(segmenter.model, dtype=torch.bfloat16)
    assert half.fingerprint != segmenter.fingerprint, "what is kept on disk is another's"
    monkeypatch.setattr(segmenter.model.image_encoder, "forward", forward)
    assert torch.equal(half.embed(picture()).features, expected.features)
    assert ran == [True, False]


def test_damaged_weights_end_in_a_sentence(segmenter: SamSegmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmenter.model.image_encoder, "forward", lambda pixels: pixels[:, :1] * torch.nan)
    with pytest.raises(SA3DError, match=r"embeds this image as NaN or infinity.*fetch them again"):
        segmenter.embed(picture())


def test_what_half_precision_cannot_hold_is_kept_as_it_is() -> None:
    assert to_half(torch.tensor([1.0, -2.0])).dtype == torch.float16
    assert torch.equal(to_half(torch.tensor([1e5, 1.0])), torch.tensor([1e5, 1.0]))


def test_a_batch_too_large_for_the_gpu_is_halved(segmenter: SamSegmenter) -> None:
    class Small(SamSegmenter):
        def embed_all(self, images: Sequence[SegmenterImage]) -> list[SamEmbedding]:
            sizes.append(len(images))
            if len(images) > 2:
                raise torch.cuda.OutOfMemoryError
            return super().embed_all(images)

    sizes: list[int] = []
    images = [picture(seed) for seed in range(5)]
    small = Small(segmenter.model)
    # What earlier tests have left in memory would be let go of first.
    while reclaim():
        pass
    found = embed_all(small, images)
    assert sizes == [5, 2, 2, 1]
    # What did not fit is not tried again.
    sizes.clear()
    embed_all(small, images[:4])
    assert sizes == [2, 2]
    for image, one in zip(images, found, strict=True):
        assert torch.allclose(one.features.float(), segmenter.embed(image).features.float(), atol=2e-3)
