"""Options of the commands that read a sa3d run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sa3d_nerfstudio.terminal import say

if TYPE_CHECKING:
    from sa3d_nerfstudio.exports.objects import ExportObject
    from sa3d_nerfstudio.pipeline import SA3DPipeline


@dataclass(kw_only=True)
class RunOptions:
    """Options of a command that reads a sa3d run."""

    load_config: Path
    """config.yml of a run of ns-train sa3d. Like nerfstudio, this runs code that the file names."""
    object: tuple[str, ...] = ()
    """Names of the objects to export, hidden ones included; by default all that are not hidden."""
    data: Path | None = None
    """The data set, if it has moved."""
    device: Literal["cuda", "cpu"] | None = None
    """Device to render on; by default CUDA, if there is such a device."""

    def load(self, output: Path) -> tuple[SA3DPipeline, list[ExportObject]]:
        """Check that the output folder is writable, load the run, and select the objects.

        Args:
            output: Folder of the output.

        Raises:
            SA3DError: The run cannot be used, or has no such object.
        """
        pipeline = self.load_run(output)
        return pipeline, self.choose(pipeline, self.object)

    def load_run(self, output: Path) -> SA3DPipeline:
        """Check that the output folder is writable, then load the run.

        Args:
            output: Folder of the output.

        Raises:
            SA3DError: The run cannot be used.
        """
        from nerfstudio.utils.rich_utils import CONSOLE

        from sa3d_nerfstudio.api import load
        from sa3d_nerfstudio.base_run.checkpoint import quiet_nerfstudio
        from sa3d_nerfstudio.files import check_writable

        check_writable(output)
        quiet_nerfstudio()
        was_quiet = CONSOLE.quiet
        CONSOLE.quiet = True  # nerfstudio prints a line for each image
        try:
            return load(self.load_config, data=self.data, device=self.device).pipeline
        finally:
            CONSOLE.quiet = was_quiet

    def choose(self, pipeline: SA3DPipeline, names: tuple[str, ...]) -> list[ExportObject]:
        """Select objects, and print their names, the hidden ones left out, and the device.

        Args:
            pipeline: A loaded run.
            names: Names of objects; by default all that are not hidden.

        Raises:
            SA3DError: The run has no such object.
        """
        from sa3d_nerfstudio.exports.objects import left_out, listed, select

        masks = pipeline.model.masks
        objects = select(masks, names)
        say(f"objects     {listed([f'{item.name} ({item.id})' for item in objects])}")
        hidden = left_out(masks, objects)
        if hidden:
            say(f"left out    {listed(hidden)}: hidden; name them with --object")
        say(f"device      {pipeline.device}")
        return objects
