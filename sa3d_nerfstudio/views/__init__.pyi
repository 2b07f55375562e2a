from .cache import Embeddings, ViewCache
from .disk import DiskStore
from .names import find_view
from .surface_points import view_points, write_view_points
from .training_views import TrainingViews

__all__ = ["DiskStore", "Embeddings", "TrainingViews", "ViewCache", "find_view", "view_points", "write_view_points"]
