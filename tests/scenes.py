"""Scenes for tests: the demo's own, as small as a test can bear."""

from __future__ import annotations

from sa3d_nerfstudio.demo.scene import SceneConfig

TINY = SceneConfig(train_views=10, test_views=2, width=32, height=24, supersample=2, surface_points=500)
"""Ten views to train on and two to test on, of 32 x 24 pixels."""
