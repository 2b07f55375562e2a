"""CPU stand-ins for the CUDA libraries of nerfstudio, so that its code and ours run without a GPU.

As a script, it runs commands of nerfstudio, one after another in one process, with the stand-ins installed:
``python tests/stand_ins.py ns-train … --then ns-export …``.
"""

from __future__ import annotations

import sys
from types import FunctionType, SimpleNamespace
from typing import Any, Protocol

import nerfacc
import rasterizer
import torch
from nerfacc import grid, volrend
from nerfacc.estimators import occ_grid
from nerfstudio.configs.method_configs import method_configs
from nerfstudio.exporter import marching_cubes
from nerfstudio.field_components.encodings import HashEncoding
from nerfstudio.fields import sdf_field
from nerfstudio.models import generfacto, splatfacto
from nerfstudio.scripts import exporter
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


class Encoding(HashEncoding):
    """Stand-in for tiny-cuda-nn's hash grid: nerfstudio's PyTorch version."""

    def __init__(self, n_input_dims: int, encoding_config: dict[str, Any]) -> None:
        levels, base = encoding_config["n_levels"], encoding_config["base_resolution"]
        super().__init__(
            num_levels=levels,
            min_res=base,
            max_res=round(base * encoding_config["per_level_scale"] ** (levels - 1)),
            log2_hashmap_size=encoding_config["log2_hashmap_size"],
            features_per_level=encoding_config["n_features_per_level"],
            implementation="torch",
        )
        self.n_output_dims = self.get_out_dim()


class TinyCudaNN:
    """Stand-in for the module ``tinycudann``."""

    Encoding = Encoding


def _stay(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return tensor


def splats_on_cpu(patch: Patch) -> None:
    """Let splatfacto run: the rasteriser of ``rasterizer.py``, no move to CUDA, no compiler."""
    patch.setattr(splatfacto, "rasterization", rasterizer.rasterization)
    patch.setattr(splatfacto, "get_viewmat", splatfacto.get_viewmat._torchdynamo_orig_callable)
    patch.setattr(torch.Tensor, "cuda", _stay)


def one_worker(patch: Patch) -> None:
    """Load training batches in one process: nerfstudio's main branch starts four, more than there are cores."""
    for config in method_configs.values():
        # Methods of plugins that are not installed have no pipeline.
        manager = getattr(getattr(config, "pipeline", None), "datamanager", None)
        if hasattr(manager, "dataloader_num_workers"):
            patch.setattr(manager, "dataloader_num_workers", 1)


def sdf_on_cpu(patch: Patch) -> None:
    """Let fields of signed distances be built without tiny-cuda-nn."""
    patch.setattr(sdf_field, "tcnn", TinyCudaNN)


class Guidance(nn.Module):
    """Stand-in for the diffusion models that train a generfacto: prefers a dark ball on white, whatever the prompt."""

    def __init__(self, device: torch.device | str, **kwargs: Any) -> None:
        super().__init__()
        self.device = device
        self.weights = nn.Parameter(torch.zeros(1), requires_grad=False)

    def get_text_embeds(self, prompt: str, negative_prompt: str) -> Tensor:
        """Zeros, for any prompt."""
        return torch.zeros(2, 1, 8)

    def sds_loss(self, text_embeddings: Tensor, image: Tensor, guidance_scale: float, grad_scaler: Any) -> Tensor:
        """Mean squared difference of an image [1, 3, height, width] from a dark disc in its middle, on white."""
        y, x = (torch.linspace(-1, 1, size) for size in image.shape[2:])
        disc = (y[:, None] ** 2 + x**2).sqrt() < 0.5
        return (image - torch.where(disc, 0.2, 1.0)).square().mean()


def no_diffusion(patch: Patch) -> None:
    """Let generfacto be built and trained without downloads: only its guidance is replaced."""
    for name in ("StableDiffusion", "DeepFloyd"):
        patch.setattr(generfacto, name, Guidance)


def march(
    rays_o: Tensor,
    rays_d: Tensor,
    binaries: Tensor,
    aabbs: Tensor,
    near_planes: Tensor,
    far_planes: Tensor,
    step_size: float,
    cone_angle: float,
) -> tuple[SimpleNamespace, SimpleNamespace]:
    """Stand-in for nerfacc's march through an occupancy grid: all rays at once, a step at a time.

    Steps grow with distance as nerfacc's do; those whose middle lies in an occupied cell become samples.
    """
    enter, leave, hits = grid._ray_aabb_intersect(rays_o, rays_d, aabbs[-1:])
    start, end = torch.maximum(enter[:, 0], near_planes), torch.minimum(leave[:, 0], far_planes)
    start = torch.where(hits[:, 0], start, end)
    rays, starts, ends = [], [], []
    while (start < end).any():
        stop = torch.minimum(start + (start * cone_angle).clamp(min=step_size), end)
        middle = rays_o + rays_d * ((start + stop) / 2)[:, None]
        occupied = grid._query(middle, binaries, aabbs[0])[0] & (start < end)
        rays.append(occupied.nonzero()[:, 0])
        starts.append(start[occupied])
        ends.append(stop[occupied])
        start = stop
    indices = torch.cat([*rays, torch.zeros(0, dtype=torch.long, device=rays_o.device)])
    order = indices.argsort(stable=True)
    values = torch.stack([torch.cat([*times, rays_o.new_zeros(0)])[order] for times in (starts, ends)]).reshape(-1)
    is_left = torch.arange(len(values), device=values.device) < len(indices)
    intervals = SimpleNamespace(vals=values, is_left=is_left, is_right=~is_left)
    return intervals, SimpleNamespace(ray_indices=indices[order], packed_info=pack_info(indices[order], len(rays_o)))


def pack_info(ray_indices: Tensor, n_rays: int) -> Tensor:
    """Stand-in for ``nerfacc.pack_info``: first sample and number of samples of each ray."""
    counts = torch.bincount(ray_indices, minlength=n_rays)
    return torch.stack([counts.cumsum(0) - counts, counts], dim=-1)


def exclusive_sum(inputs: Tensor, packed_info: Tensor) -> Tensor:
    """Stand-in for nerfacc's kernel: sum of the inputs before each sample on its ray."""
    starts, counts = packed_info.unbind(-1)
    before = inputs.double().cumsum(0) - inputs
    first = torch.repeat_interleave(starts, counts)
    return (before - before[first]).to(inputs)


def occupancy_on_cpu(patch: Patch) -> None:
    """Let instant-ngp train and render without nerfacc's kernels."""
    patch.setattr(occ_grid, "traverse_grids", march)
    patch.setattr(volrend, "exclusive_sum", exclusive_sum)
    patch.setattr(nerfacc, "pack_info", pack_info)


def coarse_marching_cubes(patch: Patch) -> None:
    """Run nerfstudio's marching cubes on 64 cells a side instead of 512, which take a minute and nine gigabytes."""
    original = marching_cubes.generate_mesh_with_multires_marching_cubes.__wrapped__
    constants = tuple(64 if constant == 512 else constant for constant in original.__code__.co_consts)
    code = original.__code__.replace(co_consts=constants)
    coarse = FunctionType(code, original.__globals__, argdefs=original.__defaults__)

    @torch.no_grad()
    def generate(geometry: Any, resolution: int, *box: Any, **more: Any) -> Any:
        return coarse(geometry, resolution // 8, *box, **more)

    def generate_by_name(geometry_callable_field: Any, resolution: int, **more: Any) -> Any:
        return generate(geometry_callable_field, resolution, **more)

    patch.setattr(exporter, "generate_mesh_with_multires_marching_cubes", generate_by_name)
    patch.setattr(marching_cubes, "generate_mesh_with_multires_marching_cubes", generate)


def main() -> None:
    """Run the commands in the arguments, which ``--then`` separates."""
    from nerfstudio.scripts import eval as ns_eval
    from nerfstudio.scripts import render, train

    from sa3d_nerfstudio.base_run.patches import lpips_without_download
    from sa3d_nerfstudio.commands import main as sa3d

    for install in (one_worker, sdf_on_cpu, splats_on_cpu, occupancy_on_cpu, no_diffusion, coarse_marching_cubes):
        install(Forever())
    commands = {"ns-train": train, "ns-export": exporter, "ns-render": render, "ns-eval": ns_eval}
    arguments = sys.argv[1:]
    with lpips_without_download():
        while arguments:
            end = arguments.index("--then") if "--then" in arguments else len(arguments)
            sys.argv, arguments = arguments[:end], arguments[end + 1 :]
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
