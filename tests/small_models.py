"""Small, untrained nerfstudio models, for tests that need a radiance field but no trained scene."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.dataparsers.base_dataparser import Semantics
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.field_components import encodings, mlp
from nerfstudio.fields.sdf_field import SDFFieldConfig
from nerfstudio.models.base_model import Model
from nerfstudio.models.depth_nerfacto import DepthNerfactoModelConfig
from nerfstudio.models.generfacto import GenerfactoModelConfig
from nerfstudio.models.instant_ngp import InstantNGPModelConfig, NGPModel
from nerfstudio.models.mipnerf import MipNerfModel
from nerfstudio.models.nerfacto import NerfactoModelConfig
from nerfstudio.models.neus import NeuSModelConfig
from nerfstudio.models.neus_facto import NeuSFactoModelConfig
from nerfstudio.models.semantic_nerfw import SemanticNerfWModelConfig
from nerfstudio.models.splatfacto import SplatfactoModel, SplatfactoModelConfig
from nerfstudio.models.tensorf import TensoRFModelConfig
from nerfstudio.models.vanilla_nerf import NeRFModel, VanillaModelConfig

from sa3d_nerfstudio.base_run.patches import lpips_without_download
from sa3d_nerfstudio.models.attach import with_masks
from sa3d_nerfstudio.models.rays import MaskedModel
from sa3d_nerfstudio.models.splats import MaskedSplatModel

_SMALL_NERFACTO = {
    "implementation": "torch",
    "num_levels": 4,
    "log2_hashmap_size": 10,
    "hidden_dim": 16,
    "hidden_dim_color": 16,
    "num_nerf_samples_per_ray": 12,
    "num_proposal_samples_per_ray": (24, 12),
    "average_init_density": 3.0,
}

CONFIGS = {
    "nerfacto": lambda: NerfactoModelConfig(**_SMALL_NERFACTO),
    "nerfacto-bounded": lambda: NerfactoModelConfig(**_SMALL_NERFACTO, disable_scene_contraction=True),
    "depth-nerfacto": lambda: DepthNerfactoModelConfig(**_SMALL_NERFACTO),
    "vanilla-nerf": lambda: VanillaModelConfig(_target=NeRFModel, num_coarse_samples=12, num_importance_samples=12),
    "mipnerf": lambda: VanillaModelConfig(_target=MipNerfModel, num_coarse_samples=12, num_importance_samples=12),
    "tensorf": lambda: TensoRFModelConfig(
        init_resolution=16, final_resolution=16, num_samples=12, num_uniform_samples=24
    ),
}

_SMALL_SDF = {
    "num_layers": 2, "hidden_dim": 16, "geo_feat_dim": 8, "num_layers_color": 2, "hidden_dim_color": 16, "bias": 0.6,
    "inside_outside": False, "num_levels": 2, "log2_hashmap_size": 8, "beta_init": 0.3,
}  # fmt: skip
_SMALL_NEUS = {
    "sdf_field": SDFFieldConfig(**_SMALL_SDF), "num_samples": 12, "num_samples_importance": 16,
    "num_samples_outside": 8,
}  # fmt: skip
_SMALL_NGP = {
    "grid_resolution": 16, "grid_levels": 1, "log2_hashmap_size": 10, "max_res": 64, "background_color": "black",
    "render_step_size": 0.15,
}  # fmt: skip
NEEDING_STAND_INS = {
    "semantic-nerfw": lambda: SemanticNerfWModelConfig(**_SMALL_NERFACTO),
    "neus": lambda: NeuSModelConfig(**_SMALL_NEUS, far_plane=6.0, overwrite_near_far_plane=True),
    "neus-in-a-box": lambda: NeuSModelConfig(**_SMALL_NEUS),
    "neus-facto": lambda: NeuSFactoModelConfig(
        sdf_field=SDFFieldConfig(**_SMALL_SDF), num_proposal_samples_per_ray=(24, 12), num_neus_samples_per_ray=12,
        far_plane=6.0, overwrite_near_far_plane=True, background_model="none",
    ),
    "instant-ngp": lambda: InstantNGPModelConfig(**_SMALL_NGP),
    "instant-ngp-bounded": lambda: InstantNGPModelConfig(**_SMALL_NGP, disable_scene_contraction=True),
    "generfacto": lambda: GenerfactoModelConfig(
        implementation="torch", num_proposal_samples_per_ray=(24, 12), num_nerf_samples_per_ray=12, max_res=32,
    ),
}  # fmt: skip
"""Methods whose models need CUDA libraries or downloads to be built; see tests/stand_ins.py."""


def small_model(method: str, masked: bool = True, tiny_cuda_nn: bool = False) -> Model:
    """Build an untrained model of a method, in evaluation mode.

    Args:
        method: Key of :data:`CONFIGS` or :data:`NEEDING_STAND_INS`.
        masked: Whether the model has masks.
        tiny_cuda_nn: Whether the model may use tiny-cuda-nn if installed, which computes on CUDA alone.
    """
    torch.manual_seed(0)
    box = SceneBox(torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]]))
    with ExitStack() as stack:
        stack.enter_context(lpips_without_download())
        for module in () if tiny_cuda_nn else (encodings, mlp):
            stack.enter_context(mock.patch.object(module, "TCNN_EXISTS", False))
        config = (CONFIGS | NEEDING_STAND_INS)[method]()
        metadata = {"semantics": Semantics([], ["a", "b"], torch.eye(3)[:2])}
        model = config.setup(scene_box=box, num_train_data=3, metadata=metadata, grad_scaler=None, device="cpu")
    if isinstance(model, NGPModel):
        # Two thirds of the cells are occupied, so that rays have different numbers of samples.
        model.occupancy_grid.binaries.copy_(torch.rand(1, 16, 16, 16) < 0.67)
    model.eval()
    return with_masks(model, threshold=0.5, object_background="white") if masked else model


def small_splats(num_splats: int = 40, masked: bool = True, **config: Any) -> SplatfactoModel:
    """Build an untrained splatfacto in evaluation mode: splats of all shapes in a cube of side 1.5 at the origin."""
    torch.manual_seed(0)
    box = SceneBox(torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]]))
    settings = SplatfactoModelConfig(random_init=True, num_random=num_splats, random_scale=1.5, **config)
    with lpips_without_download():
        model = settings.setup(scene_box=box, num_train_data=3, metadata={})
    assert isinstance(model, SplatfactoModel)
    splats = model.gauss_params
    with torch.no_grad():
        splats["scales"] += torch.randn(num_splats, 3) * 0.4 - 0.7
        splats["opacities"] += torch.rand(num_splats, 1) * 5
        splats["features_rest"] += torch.randn_like(splats["features_rest"]) * 0.05
    model.step = 30000
    model.eval()
    model.requires_grad_(False)
    if masked:
        with_masks(model, threshold=0.5, object_background="white")
    return model


def masked_splats(num_splats: int = 40, **config: Any) -> MaskedSplatModel:
    """:func:`small_splats` with masks."""
    model = small_splats(num_splats, **config)
    assert isinstance(model, MaskedSplatModel)
    return model


def masked(model: Model) -> MaskedModel:
    """The same model, as a masked model for type checkers."""
    assert isinstance(model, MaskedModel)
    return model


def camera(height: int = 10, width: int = 14) -> Cameras:
    """A camera that looks at the origin from z = 3."""
    pose = torch.eye(4)[None, :3]
    pose[0, 2, 3] = 3.0
    return Cameras(
        pose, fx=float(width), fy=float(width), cx=width / 2, cy=height / 2, height=height, width=width,
        camera_type=CameraType.PERSPECTIVE,
    )  # fmt: skip


def rays(height: int = 10, width: int = 14) -> RayBundle:
    """All rays of :func:`camera`, with near and far planes."""
    bundle = camera(height, width).generate_rays(camera_indices=0, keep_shape=True).flatten()
    bundle.nears = torch.full_like(bundle.origins[:, :1], 1.0)
    bundle.fars = torch.full_like(bundle.origins[:, :1], 6.0)
    return bundle
