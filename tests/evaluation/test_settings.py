"""Settings as words."""

from __future__ import annotations

import pytest

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.evaluation.settings import session_settings


def test_settings_are_those_of_the_session() -> None:
    settings = session_settings(["num-prompts=10", "lifting=gradient", "threshold=1e-1", "prompt_weight=2"])
    assert (settings.num_prompts, settings.lifting) == (10, "gradient")
    assert (settings.threshold, settings.prompt_weight) == (0.1, 2)
    for word, words in {
        "num_prompt=3": "has no 'num_prompt=3': it takes NAME=VALUE with one of lifting",
        "num_prompts=2.5": "num_prompts takes int, and not '2.5'",
        "max_passes=True": "max_passes takes int",
        "lifting=both": "takes evidence or gradient",
        "threshold": "takes float, and not ''",
    }.items():
        with pytest.raises(SA3DError, match=words):
            session_settings([word])
