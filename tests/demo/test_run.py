"""The parts of the demo that need no training."""

from __future__ import annotations

from pathlib import Path

import pytest
from nerfstudio.configs.method_configs import method_configs
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.models.nerfacto import NerfactoModelConfig

from sa3d_nerfstudio.demo.run import find_prompt
from sa3d_nerfstudio.demo.train import small_nerfacto
from sa3d_nerfstudio.errors import SA3DError


def test_an_unknown_object_is_refused_with_those_that_there_are(tiny_scene: Path) -> None:
    assert find_prompt(tiny_scene, "post")["name"] == "post"
    with pytest.raises(SA3DError, match=r"no object 'cup': choose one of ball, crate, .*post"):
        find_prompt(tiny_scene, "cup")


def test_the_training_configuration_is_nerfactos_own_but_smaller(tiny_scene: Path, tmp_path: Path) -> None:
    original = method_configs["nerfacto"]
    assert isinstance(original, TrainerConfig) and isinstance(original.pipeline.model, NerfactoModelConfig)
    config = small_nerfacto(tiny_scene, tmp_path, "now", steps=50)
    assert config.method_name == "nerfacto" and config.max_num_iterations == 50
    assert config.pipeline.datamanager._target is original.pipeline.datamanager._target
    # nerfstudio's configuration, which the whole process shares, is unchanged.
    assert original.max_num_iterations > 50
    assert original.pipeline.model.implementation == "tcnn"
