"""Checksums of an object's prompts, settings and image size."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sa3d_nerfstudio.jobs import job_digest
from sa3d_nerfstudio.pipeline import SA3DPipelineConfig
from sa3d_nerfstudio.prompts.config import ObjectPrompts
from sa3d_nerfstudio.prompts.prompt import Prompt


@dataclass
class LaterConfig(SA3DPipelineConfig):
    """Settings of a later version, which has one more."""

    added: int = 1


def test_a_job_is_told_by_the_size_that_its_images_have_on_this_machine() -> None:
    prompts = ObjectPrompts("mug", {0: Prompt.from_points(10, 10, [(1, 2)])})
    config = SA3DPipelineConfig()
    assert config.working_size is None
    small, large = (job_digest(prompts, config, size) for size in (160, 1008))
    assert small != large
    assert small == job_digest(prompts, SA3DPipelineConfig(), 160)
    config.cache_disk_gb, config.cache_gb = 1.0, 1.0
    assert small == job_digest(prompts, config, 160), "where things are kept does not matter"
    assert job_digest(prompts, LaterConfig(), 160) == small
    assert job_digest(prompts, LaterConfig(added=2), 160) != small
    prompts.views[0].points = torch.tensor([[1.0, 3.0]])
    assert small != job_digest(prompts, config, 160)
