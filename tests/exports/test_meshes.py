"""Meshes: what can be asked for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from nerfstudio.fields.sdf_field import SDFField

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.exports.meshes import signed_distances


def test_marching_cubes_take_multiples_of_512():
    field = SDFField.__new__(SDFField)
    pipeline: Any = SimpleNamespace(model=SimpleNamespace(field=field))
    assert signed_distances(pipeline, 1024) is field
    for resolution in (-512, 128, 768):
        with pytest.raises(SA3DError, match="of 512 or a multiple of it"):
            signed_distances(pipeline, resolution)
