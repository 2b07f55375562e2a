"""Segment Anything: one encoder pass per image, then any number of prompts.

A. Kirillov et al., "Segment Anything", ICCV 2023; the network and its transforms are those of ``segment_anything``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from jaxtyping import Float
from segment_anything import SamAutomaticMaskGenerator, SamPredictor
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor

from sa3d_nerfstudio.files import digest, to_bytes
from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.segmenters.base import Candidates, Segmenter, SegmenterImage, SegmenterOptions, check_prompt
from sa3d_nerfstudio.segmenters.precision import encoder_dtype, run_encoder, to_half
from sa3d_nerfstudio.segmenters.proposals import no_proposals
from sa3d_nerfstudio.segmenters.weights import find_checkpoint, load_sam

MAX_LOGIT = 8.0
"""Limit of a prior's logits: a rendered 0 or 1 is certain, but not infinitely so."""


@dataclass
class SamEmbedding:
    """SAM's embedding of an image, and the sizes that map prompts to it."""

    features: Float[Tensor, "1 channels grid grid"]
    """Encoder output in half precision, or in single precision if its values are too large."""
    original_size: tuple[int, int]
    """Height and width of the image."""
    input_size: tuple[int, int]
    """Height and width of the image inside the encoder's padded square."""


class SamSegmenter:
    """Segmenter with a Segment Anything model. It is no module, so that no checkpoint of a run holds its weights."""

    def __init__(self, model: Sam, dense_prompts: bool = False, dtype: torch.dtype | None = None) -> None:
        """Take a model; it is put into evaluation mode and frozen.

        Args:
            model: The network, on its device.
            dense_prompts: Whether a prompt's prior serves as SAM's dense mask prompt, with a box around it.
            dtype: Precision of the encoder; by default that of :func:`encoder_dtype`.
        """
        self.model = model.eval().requires_grad_(False)
        self.dense_prompts = dense_prompts
        self.dtype = encoder_dtype(model.device) if dtype is None else dtype
        self.input_side: int = model.image_encoder.img_size
        """Longer side of the encoder's image, in pixels."""

    def embed(self, image: SegmenterImage) -> SamEmbedding:
        """Run the encoder, in reduced precision on CUDA.

        Raises:
            SA3DError: The embedding holds NaN or infinity.
        """
        return self.embed_all([image])[0]

    def embed_all(self, images: Sequence[SegmenterImage]) -> list[SamEmbedding]:
        """Run the encoder once for several images of any sizes, each resized and padded to the same square."""
        model, resize = self.model, ResizeLongestSide(self.model.image_encoder.img_size)
        pixels = [torch.as_tensor(resize.apply_image(to_bytes(image.rgb))).permute(2, 0, 1) for image in images]
        batch = torch.stack([model.preprocess(resized.to(model.device)) for resized in pixels])
        # The decoder determines single pixels and costs next to nothing, so it stays in single precision.
        features = run_encoder(lambda: model.image_encoder(batch), model.device, self.dtype, "Segment Anything")
        return [
            # A copy, so that no embedding keeps the batch in memory.
            SamEmbedding(
                to_half(feature_map[None].clone()), (image.height, image.width), (resized.shape[1], resized.shape[2])
            )
            for feature_map, image, resized in zip(features, images, pixels, strict=True)
        ]

    def predict(self, embedding: SamEmbedding, prompt: Prompt) -> Candidates:
        """Predict SAM's three masks (part, object, whole), with its estimates of their IoU.

        For several points or a box, which leave little ambiguity, its single mask is added.

        Raises:
            SA3DError: The prompt selects nothing or lies outside of the image.
        """
        check_prompt(prompt, *embedding.original_size)
        box = prompt.box
        if box is None and self.dense_prompts and prompt.prior is not None:
            box = box_of_prior(prompt.prior)
        model, device = self.model, self.model.device
        points = None
        if len(prompt.points):
            points = (_place(prompt.points + 0.5, embedding)[None].to(device), prompt.labels.int()[None].to(device))
        several = len(prompt.points) > 1 or box is not None
        with torch.no_grad():
            sparse, dense = model.prompt_encoder(
                points=points,
                boxes=None if box is None else _place(box.reshape(2, 2), embedding).reshape(1, 4).to(device),
                masks=self._mask_input(prompt),
            )
            # All tokens at once: the first, of the single mask, is left out by the decoder's call for three masks.
            logits, scores = model.mask_decoder.predict_masks(
                image_embeddings=embedding.features.float(),
                image_pe=model.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
            )
            tokens = [*range(1, logits.shape[1]), *([0] if several else [])]
            logits = model.postprocess_masks(logits[:, tokens], embedding.input_size, embedding.original_size)[0]
        logits = logits - model.mask_threshold
        return Candidates(logits > 0, scores[0, tokens], logits, single=len(tokens) - 1 if several else None)

    def propose(self, embedding: SamEmbedding) -> Candidates:
        """Propose all masks by the authors' generator: a grid of points, filtered by quality and stability."""
        height, width = embedding.original_size
        generator = SamAutomaticMaskGenerator(self.model)
        generator.predictor = _EmbeddedPredictor(self.model, embedding)
        try:
            # The image is embedded already; the generator needs only its size.
            proposals = generator.generate(np.zeros((height, width, 3), np.uint8))
        except IndexError:  # raised if no mask is good enough
            proposals = []
        if not proposals:
            return no_proposals(height, width)
        masks = torch.from_numpy(np.stack([proposal["segmentation"] for proposal in proposals]))
        return Candidates(masks, torch.tensor([proposal["predicted_iou"] for proposal in proposals]))

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the weights and the encoder's precision."""
        return fingerprint_of(self.model, self.dtype)

    def to_tensors(self, embedding: SamEmbedding) -> dict[str, Tensor]:
        """Tensors of an embedding, by name, to save on disk."""
        sizes = torch.tensor([*embedding.original_size, *embedding.input_size])
        return {"features": embedding.features, "sizes": sizes}

    def from_tensors(self, tensors: dict[str, Tensor]) -> SamEmbedding:
        """Rebuild an embedding from its saved tensors."""
        height, width, input_height, input_width = tensors["sizes"].tolist()
        features = tensors["features"].to(self.model.device)
        return SamEmbedding(features, (height, width), (input_height, input_width))

    def _mask_input(self, prompt: Prompt) -> Float[Tensor, "1 1 side side"] | None:
        if not self.dense_prompts or prompt.prior is None:
            return None
        return low_res_logits(prompt.prior, self.model.prompt_encoder.mask_input_size[0])[None].to(self.model.device)


class _EmbeddedPredictor(SamPredictor):
    """Predictor for an image that is embedded already."""

    def __init__(self, model: Sam, embedding: SamEmbedding) -> None:
        super().__init__(model)
        self._embedding = embedding

    def set_image(self, image: np.ndarray, image_format: str = "RGB") -> None:
        """Use the embedded image; the arguments are ignored."""
        self.original_size = self._embedding.original_size
        self.input_size = self._embedding.input_size
        self.features = self._embedding.features.to(self.model.device).float()
        self.is_image_set = True


def fingerprint_of(model: torch.nn.Module, dtype: torch.dtype = torch.float32) -> str:
    """Digest of a network's weights (the beginning and the sum of each tensor) and of the encoder's precision."""
    state = model.state_dict()
    parts = [(name, state[name].reshape(-1)[:256], float(state[name].double().sum())) for name in sorted(state)]
    return digest([str(dtype), *(value for part in parts for value in part)])


def low_res_logits(prior: Float[Tensor, "height width"], side: int) -> Float[Tensor, "1 side side"]:
    """Convert a rendered probability to SAM's dense prompt.

    Args:
        prior: Probability of the object at each pixel, NaN without evidence.
        side: Size of the square that the prompt encoder takes (256 for the published models).

    Returns:
        Logits within ± :data:`MAX_LOGIT`, 0 without evidence. The image's long side is resized to ``side``; the right
        or the bottom is padded, as in SAM's images, with background.
    """
    logits = torch.logit(prior.float(), eps=1e-6).clamp(-MAX_LOGIT, MAX_LOGIT).nan_to_num(0.0)
    size = ResizeLongestSide.get_preprocess_shape(prior.shape[0], prior.shape[1], side)
    small = torch.nn.functional.interpolate(logits[None, None], size, mode="bilinear", antialias=True)[0]
    padding = (0, side - size[1], 0, side - size[0])
    return torch.nn.functional.pad(small, padding, value=-MAX_LOGIT)


def box_of_prior(prior: Float[Tensor, "height width"]) -> Float[Tensor, "4"] | None:
    """Box around the pixels of a rendered probability above 0.5, as x0, y0, x1, y1; None if there are none."""
    y, x = (prior > 0.5).nonzero(as_tuple=True)
    if len(x) == 0:
        return None
    return torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]).float().cpu()


def _place(corners: Float[Tensor, "num 2"], embedding: SamEmbedding) -> Float[Tensor, "num 2"]:
    """Convert x, y from the image's top left corner to pixels of the encoder's image, minus half a pixel.

    SAM's prompt encoder adds that half, as if points had been chosen in an image of that size.
    """
    (height, width), (input_height, input_width) = embedding.original_size, embedding.input_size
    return corners.cpu() * torch.tensor([input_width / width, input_height / height]) - 0.5


def build(options: SegmenterOptions, size: str | None = None) -> Segmenter:
    """Build the segmenter from the checkpoint that the options or the environment name, or from the published one.

    Args:
        options: Device, checkpoint, permission to download it, and whether priors are used.
        size: ``vit-h``, ``vit-l`` or ``vit-b`` to require that size; None accepts the checkpoint's.

    Raises:
        SA3DError: There is no checkpoint, it cannot be read, or it holds another size.
    """
    model = load_sam(find_checkpoint(options.sam_checkpoint, size, options.sam_download), size)
    return SamSegmenter(model.to(options.device), options.sam_dense_prompts)


build_vit_h = partial(build, size="vit-h")
build_vit_l = partial(build, size="vit-l")
build_vit_b = partial(build, size="vit-b")
