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
    """Write the file of ``ns-export gaussian-splat`` for some objects.

    Args:
        path: A PLY file.
        pipeline: A loaded run of Gaussians.
        objects: The objects, in one file.
        config: The run's config.yml.

    Raises:
        SA3DError: The run has no Gaussians.
    """
    model = pipeline.model
    if not isinstance(model, MaskedSplatModel):
        raise SA3DError("this run has no splats, for it is none of Gaussians: use sa3d export points or mesh.")
    before = model.for_inference
    model.for_inference = True  # by which the model tells an export of its splats
    try:
        with atomic_path(path) as temporary, only(model.masks, objects), _loaded(pipeline):
            exporter.ExportGaussianSplat(config, path.parent, temporary.name).main()
    finally:
        model.for_inference = before


@contextmanager
def _loaded(pipeline: SA3DPipeline) -> Iterator[None]:
    """Within this context, nerfstudio's exporter takes this pipeline instead of loading the run again."""

    def loaded(config: Path, *_: Any, **__: Any) -> tuple[Any, SA3DPipeline, Path, int]:
        return pipeline.config, pipeline, config, 0

    module: Any = exporter
    eval_setup, module.eval_setup = module.eval_setup, loaded
    try:
        yield
    finally:
        module.eval_setup = eval_setup
