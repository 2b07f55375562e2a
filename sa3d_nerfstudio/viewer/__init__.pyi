from .context import PanelContext
from .editor import Editor
from .free_views import FreeViews
from .history import History, SceneState
from .nerfstudio_viewer import NerfstudioViewer
from .panel import SegmentPanel

__all__ = ["Editor", "FreeViews", "History", "NerfstudioViewer", "PanelContext", "SceneState", "SegmentPanel"]
