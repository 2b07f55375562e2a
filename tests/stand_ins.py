"""Stand-ins on a CPU for what nerfstudio takes from CUDA libraries, so that its own code, and ours, can be run.

As a script it is any command of nerfstudio with the stand-ins in place: ``python tests/stand_ins.py ns-train …``.
"""

from __future__ import annotations

import sys
from typing import Any, Protocol

import rasterizer
import torch
from nerfstudio.fields import sdf_field
from nerfstudio.models import splatfacto
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


def main() -> None:
    """Run the command of nerfstudio that the arguments name."""
    from nerfstudio.scripts import eval as ns_eval
    from nerfstudio.scripts import exporter, render, train

    from sa3d_nerfstudio.lpips import lpips_without_download

    sdf_on_cpu(Forever())
    command = sys.argv.pop(1)
    if "splatfacto" in sys.argv or command != "ns-train":
        splats_on_cpu(Forever())
    commands = {"ns-train": train, "ns-export": exporter, "ns-render": render, "ns-eval": ns_eval}
    with lpips_without_download():
        commands[command].entrypoint()


if __name__ == "__main__":
    main()
