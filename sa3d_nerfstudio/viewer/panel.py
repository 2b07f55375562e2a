"""The Segment panel in nerfstudio's viewer, assembled from its sections."""

from __future__ import annotations

import threading
from collections.abc import Callable

import viser
from nerfstudio.viewer.viewer import Viewer
from nerfstudio.viewer.viewer_elements import ViewerControl

from sa3d_nerfstudio.segmenters.text import text_available
from sa3d_nerfstudio.viewer.context import PanelContext
from sa3d_nerfstudio.viewer.editor import Editor
from sa3d_nerfstudio.viewer.export_section import ExportSection
from sa3d_nerfstudio.viewer.free_views import FreeViews
from sa3d_nerfstudio.viewer.nerfstudio_viewer import NerfstudioViewer, PanelPipeline
from sa3d_nerfstudio.viewer.object_section import NameSection, ViewSection
from sa3d_nerfstudio.viewer.prompt_section import EditSection, PromptSection, TextSection
from sa3d_nerfstudio.viewer.scene_section import SceneSection
from sa3d_nerfstudio.viewer.segment_section import SegmentSection


class SegmentPanel(ViewerControl):
    """Panel for prompts in nerfstudio's viewer. nerfstudio finds it among the pipeline's attributes, and sets it up."""

    def __init__(self, pipeline: PanelPipeline) -> None:
        # Kept in a function: nerfstudio walks all attributes of the pipeline, and must not walk in circles.
        self._pipeline: Callable[[], PanelPipeline] = lambda: pipeline
        self._visited = False
        self._welcoming: list[threading.Thread] = []

    def _setup(self, viewer: Viewer) -> None:
        super()._setup(viewer)
        pipeline = self._pipeline()
        self.nerfstudio_viewer = NerfstudioViewer(viewer)
        free_views = FreeViews(
            pipeline.model, pipeline.views, pipeline.make_segmenter, pipeline.config, self.nerfstudio_viewer.lock
        )
        editor = Editor(free_views, pipeline.config.resolution)
        self.nerfstudio_viewer.prepare(pipeline.views.long_side if pipeline.device.type == "cpu" else None)
        # Above nerfstudio's own controls, whose order begins at 0.
        with self.viser_server.gui.add_folder("Segment", order=-1.0):
            self.context = context = PanelContext(self.nerfstudio_viewer, editor, self._pipeline)
            self._prompting = PromptSection(context)
            wording = [TextSection(context, self._prompting)] if text_available() else []
            editing = EditSection(context)
            segmenting = SegmentSection(context, self._prompting)
            self._job = segmenting.job
            viewing = ViewSection(context, self._prompting)
            scene = SceneSection(context)
            context.sections = [self._prompting, *wording, editing, segmenting, viewing, scene]
            context.sections += [NameSection(context), ExportSection(context, self._job)]
        self.viser_server.on_client_connect(self._on_connect)
        self.viser_server.on_client_disconnect(self._prompting.left)
        context.begin()

    def close(self) -> None:
        """Stop a running job at the next view, and wait until its result is kept."""
        self._job.stop()
        self.context.close()
        self.nerfstudio_viewer.close()
        for thread in self._welcoming:
            thread.join(30)

    def _on_connect(self, client: viser.ClientHandle) -> None:
        """Move the camera of a new tab from amid the scene to that of the first training image.

        The first tab shows the overlay if the run came with objects.
        """

        def welcome() -> None:
            self.nerfstudio_viewer.render_from(client, 0)
            self.nerfstudio_viewer.hide_cameras()
            first, self._visited = not self._visited, True
            if first and self.context.editor.state.objects and self.nerfstudio_viewer.wait_for_output():
                self.context.show_view("overlay")

        # Not on the worker, which may be busy for minutes.
        thread = threading.Thread(target=welcome, daemon=True)
        thread.start()
        self._welcoming = [*(running for running in self._welcoming if running.is_alive()), thread]
