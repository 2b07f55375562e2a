"""The splats of objects, by nerfstudio's own exporter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nerfstudio.scripts import exporter

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.exports.objects import ExportObject, only
from sa3d_nerfstudio.files import atomic_path
from sa3d_nerfstudio.models.splats import MaskedSplatModel
from sa3d_nerfstudio.pipeline import SA3DPipeline


def write_splats(path: Path, pipeline: SA3DPipeline, objects: Sequence[ExportObject], config: Path) -> None:
    """Write what ``ns-export gaussian-splat`` writes, of some objects.

    Args:
        path: A PLY file.
        pipeline: A loaded run of Gaussians.
        objects: The objects, in one file.
        config: The run's config.yml.

    Raises:
        SA3DError: The run is none of Gaussians.
    """
    model = pipeline.model
    if not isinstance(model, MaskedSplatModel):
        raise SA3DError("this run has no splats, for it is none of Gaussians: use sa3d export points or mesh.")
    before = model.for_inference
    model.for_inference = True  # which is how the model knows that its splats are being exported
    try:
        with atomic_path(path) as temporary, only(model.masks, objects), _loaded(pipeline):
            exporter.ExportGaussianSplat(config, path.parent, temporary.name).main()
    finally:
        model.for_inference = before


@contextmanager
def _loaded(pipeline: SA3DPipeline) -> Iterator[None]:
    """While this lasts, nerfstudio's exporter takes this pipeline and does not load the run again, with all objects."""

    def loaded(config: Path, *_: Any, **__: Any) -> tuple[Any, SA3DPipeline, Path, int]:
        return pipeline.config, pipeline, config, 0

    module: Any = exporter
    eval_setup, module.eval_setup = module.eval_setup, loaded
    try:
        yield
    finally:
        module.eval_setup = eval_setup
