"""Scenes that change with time are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager, VanillaDataManagerConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.models.vanilla_nerf import NeRFModel, VanillaModelConfig

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.pipeline import BaseReference, SA3DPipelineConfig


class Moving(VanillaDataManager):
    """Data manager of data with times."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.includes_time = True


def pipeline(data: Path, model: VanillaModelConfig, datamanager: type) -> SA3DPipelineConfig:
    parser = NerfstudioDataParserConfig(data=data)
    base = BaseReference("dnerf", data, data, 0, datamanager)
    return SA3DPipelineConfig(
        datamanager=VanillaDataManagerConfig(_target=datamanager, dataparser=parser), model=model, base=base
    )


def test_a_model_that_moves_is_refused(tiny_scene: Path):
    moving = VanillaModelConfig(_target=NeRFModel, enable_temporal_distortion=True)
    with pytest.raises(SA3DError, match="changes with time"):
        pipeline(tiny_scene, moving, VanillaDataManager).setup(device="cpu")


def test_data_with_times_is_refused(tiny_scene: Path):
    with pytest.raises(SA3DError, match="changes with time"):
        pipeline(tiny_scene, VanillaModelConfig(_target=NeRFModel), Moving).setup(device="cpu")
