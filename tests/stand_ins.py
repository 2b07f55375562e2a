"""Stand-ins on a CPU for what nerfstudio takes from CUDA libraries, so that its own code, and ours, can be run.

As a script it is any commands of nerfstudio, one after another in one process, with the stand-ins in place:
``python tests/stand_ins.py ns-train … --then ns-export …``.
"""

from __future__ import annotations

import sys
from typing import Any, Protocol

import nerfacc
import rasterizer
import torch
from nerfstudio.cameras.rays import Frustums, RayBundle, RaySamples
from nerfstudio.fields import sdf_field
from nerfstudio.model_components import ray_samplers
from nerfstudio.models import generfacto, splatfacto
from torch import Tensor, nn


class Patch(Protocol):
    """``pytest.MonkeyPatch``, or :class:`Forever`."""

    def setattr(self, target: Any, name: str, value: Any) -> None:
        """Replace an attribute."""
        ...


class Forever:
    """Replaces attributes for the rest of the process."""

    def setattr(self, target: Any, name: str, value: Any) -> None:
        """Replace an attribute."""
        setattr(target, name, value)


class Encoding(nn.Module):
    """In the place of tiny-cuda-nn's hash grid, of which an SDF field without grid features asks only the size."""

    def __init__(self, n_input_dims: int, encoding_config: dict[str, Any]) -> None:
        super().__init__()
        self.n_output_dims = encoding_config["n_levels"] * encoding_config["n_features_per_level"]


class TinyCudaNN:
    """In the place of the module ``tinycudann``."""

    Encoding = Encoding


def _stay(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return tensor


def splats_on_cpu(patch: Patch) -> None:
    """Let splatfacto run: the rasteriser of ``rasterizer.py``, no move to CUDA, no compiler."""
    patch.setattr(splatfacto, "rasterization", rasterizer.rasterization)
    patch.setattr(splatfacto, "get_viewmat", splatfacto.get_viewmat._torchdynamo_orig_callable)
    patch.setattr(torch.Tensor, "cuda", _stay)


def sdf_on_cpu(patch: Patch) -> None:
    """Let fields of signed distances be built without tiny-cuda-nn."""
    patch.setattr(sdf_field, "tcnn", TinyCudaNN)


class Diffusion(nn.Module):
    """In the place of the diffusion models and text embeddings that train a generfacto, and play no part afterwards."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()


def no_diffusion(patch: Patch) -> None:
    """Let generfacto be built without downloads."""
    for name in ("StableDiffusion", "DeepFloyd", "PositionalTextEmbeddings"):
        patch.setattr(generfacto, name, Diffusion)


def packed_samples(
    ray_bundle: RayBundle, near_plane: float, far_plane: float, render_step_size: float, **_: Any
) -> tuple[RaySamples, Tensor]:
    """In the place of nerfacc's march through an occupancy grid: packed samples, of which rays have different numbers.

    Ray i has 4 + i % 9 of them, in the middle of as many equal steps from 1 to 6.
    """
    counts = 4 + torch.arange(len(ray_bundle)) % 9
    rays = torch.repeat_interleave(torch.arange(len(ray_bundle)), counts)
    first = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    step = (5.0 / counts[rays]).float()
    starts = 1.0 + (torch.arange(len(rays)) - first) * step
    bundle = ray_bundle[rays]
    frustums = Frustums(
        origins=bundle.origins, directions=bundle.directions, starts=starts[:, None], ends=(starts + step)[:, None],
        pixel_area=bundle.pixel_area,
    )  # fmt: skip
    return RaySamples(frustums=frustums, camera_indices=bundle.camera_indices), rays


def pack_info(ray_indices: Tensor, n_rays: int) -> Tensor:
    """In the place of ``nerfacc.pack_info``: first sample and number of samples of each ray."""
    counts = torch.bincount(ray_indices, minlength=n_rays)
    return torch.stack([counts.cumsum(0) - counts, counts], dim=-1)


def packed_weights(
    t_starts: Tensor, t_ends: Tensor, sigmas: Tensor, packed_info: Tensor, **_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """In the place of ``nerfacc.render_weight_from_density``: a loop over rays."""
    alphas = 1 - torch.exp(-sigmas * (t_ends - t_starts))
    transmittance = torch.ones_like(alphas)
    for start, count in packed_info.tolist():
        passed = torch.cumprod(1 - alphas[start : start + count], dim=0)
        transmittance[start + 1 : start + count] = passed[:-1]
    return transmittance * alphas, transmittance, alphas


def occupancy_on_cpu(patch: Patch) -> None:
    """Let instant-ngp render without nerfacc's kernels."""
    patch.setattr(ray_samplers.VolumetricSampler, "forward", lambda _, **given: packed_samples(**given))
    patch.setattr(nerfacc, "pack_info", pack_info)
    patch.setattr(nerfacc, "render_weight_from_density", packed_weights)


def main() -> None:
    """Run the commands that the arguments name."""
    from nerfstudio.scripts import eval as ns_eval
    from nerfstudio.scripts import exporter, render, train

    from sa3d_nerfstudio.commands import main as sa3d
    from sa3d_nerfstudio.lpips import lpips_without_download

    sdf_on_cpu(Forever())
    splats_on_cpu(Forever())
    commands = {"ns-train": train, "ns-export": exporter, "ns-render": render, "ns-eval": ns_eval}
    words = sys.argv[1:]
    with lpips_without_download():
        while words:
            end = words.index("--then") if "--then" in words else len(words)
            sys.argv, words = words[:end], words[end + 1 :]
            if sys.argv[0] == "sa3d":
                try:
                    sa3d()
                except SystemExit as ended:
                    if ended.code:
                        raise
            else:
                commands[sys.argv[0]].entrypoint()


if __name__ == "__main__":
    main()
