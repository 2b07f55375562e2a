"""The Segment panel in nerfstudio's viewer, put together of its sections."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import viser
from nerfstudio.viewer.viewer import Viewer
from nerfstudio.viewer.viewer_elements import ViewerControl

from sa3d_nerfstudio.segmenters.text import text_available
from sa3d_nerfstudio.viewer.desk import Desk
from sa3d_nerfstudio.viewer.editing import Editing
from sa3d_nerfstudio.viewer.host import Host
from sa3d_nerfstudio.viewer.naming import Naming
from sa3d_nerfstudio.viewer.prompting import Prompting
from sa3d_nerfstudio.viewer.saving import Saving
from sa3d_nerfstudio.viewer.segmenting import Segmenting
from sa3d_nerfstudio.viewer.sight import Sight
from sa3d_nerfstudio.viewer.viewing import Viewing
from sa3d_nerfstudio.viewer.wording import Wording
from sa3d_nerfstudio.viewer.workbench import Workbench

if TYPE_CHECKING:
    from sa3d_nerfstudio.pipeline import SA3DPipeline


class SegmentPanel(ViewerControl):
    """Prompting in nerfstudio's viewer. nerfstudio finds it among the pipeline's attributes, and sets it up."""

    def __init__(self, pipeline: SA3DPipeline) -> None:
        # Kept in a function: nerfstudio walks all attributes of the pipeline, and must not walk in circles.
        self._pipeline: Callable[[], SA3DPipeline] = lambda: pipeline
        self._visited = False

    def _setup(self, viewer: Viewer) -> None:
        super()._setup(viewer)
        pipeline = self._pipeline()
        self.host = Host(viewer)
        sight = Sight(pipeline.model, pipeline.views, pipeline.make_segmenter, pipeline.config, self.host.lock)
        bench = Workbench(sight, pipeline.config.resolution)
        self.host.prepare(pipeline.views.long_side if pipeline.device.type == "cpu" else None)
        # Above nerfstudio's own controls, whose order begins at 0.
        with self.viser_server.gui.add_folder("Segment", order=-1.0):
            self.desk = desk = Desk(self.host, bench, self._pipeline)
            self._prompting = Prompting(desk)
            wording = [Wording(desk, self._prompting)] if text_available() else []
            editing = Editing(desk)
            segmenting = Segmenting(desk, self._prompting)
            self._job = segmenting.job
            viewing = Viewing(desk, self._prompting)
            desk.sections = [self._prompting, *wording, editing, segmenting, viewing]
            desk.sections += [Naming(desk), Saving(desk, self._job)]
        self.viser_server.on_client_connect(self._came)
        self.viser_server.on_client_disconnect(self._prompting.left)
        desk.begin()

    def close(self) -> None:
        """Stop what runs at the next view, and wait until what was found is kept."""
        self._job.stop()
        self.desk.close()

    def _came(self, client: viser.ClientHandle) -> None:
        """A tab was opened; it begins where a picture was taken, and not somewhere in the middle of things.

        The first one finds the objects that came with the run lit up.
        """

        def welcome() -> None:
            self.host.look_from(client, 0)
            self.host.hide_cameras()
            first, self._visited = not self._visited, True
            if first and self.desk.bench.state.objects and self.host.wait_for_output():
                self.desk.show_view("overlay")

        # Not on the worker, which may be at work for minutes.
        threading.Thread(target=welcome, daemon=True).start()
