"""The entry point through which nerfstudio finds ``sa3d``."""

from __future__ import annotations

from nerfstudio.plugins.types import MethodSpecification

from sa3d_nerfstudio.base_run.checkpoint import allow_nerfstudio_checkpoints, quiet_nerfstudio
from sa3d_nerfstudio.errors import end_in_a_sentence
from sa3d_nerfstudio.trainer import default_config

# nerfstudio imports its plugins before it reads any checkpoint: from here on all of its commands can load theirs.
allow_nerfstudio_checkpoints()
quiet_nerfstudio()
end_in_a_sentence()

sa3d = MethodSpecification(
    config=default_config(),
    description="Segment Anything in 3D: cut objects out of a trained run (ns-train sa3d --load-dir RUN).",
)
