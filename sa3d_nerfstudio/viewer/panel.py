"""The Segment panel in nerfstudio's viewer, assembled from its sections."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

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
            viewing = ViewSection(context, self._prompting)
            scene = SceneSection(context)
            context.sections = [self._prompting, *wording, editing, segmenting, viewing, scene]
            context.sections += [NameSection(context), ExportSection(context, segmenting.job)]
        self.viser_server.on_client_connect(self._on_connect)
        self.viser_server.on_client_disconnect(self._prompting.left)
        context.begin()
        if not self.nerfstudio_viewer.trains:
            close_at_interrupt(self.close)

    def close(self) -> None:
        """Stop a running job at the next view, and wait until its result is kept."""
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


def close_at_interrupt(close: Callable[[], None]) -> None:
    """Call a function at Ctrl-C, before the program is interrupted; a second Ctrl-C ends the call as well.

    ``ns-viewer`` does not tell its parts that it ends, and the interpreter waits for the worker. Exit handlers come too
    late: by then, a running job that uses a further thread fails with a traceback.

    Args:
        close: The function.
    """
    # A program without Ctrl-C, or with its own handler, ends in another way; other threads cannot set handlers.
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return

    def interrupted(*_: Any) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        close()
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupted)
