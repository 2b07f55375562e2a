from .everything import SceneObject, SceneReport, SceneSegmentation, SceneSettings
from .lifting import EvidenceLifting, GradientLifting
from .likelihood import MaskedView, MaskLikelihood
from .mask_lifter import MaskLifter
from .predictor import MaskPredictor
from .progress import print_report, run_with_progress
from .report import SessionReport, ViewRecord
from .self_prompting import self_prompt
from .session import SegmentationSession
from .session_views import PromptedMask, SessionViews
from .settings import SessionSettings

__all__ = [
    "EvidenceLifting",
    "GradientLifting",
    "MaskLifter",
    "MaskLikelihood",
    "MaskPredictor",
    "MaskedView",
    "PromptedMask",
    "SceneObject",
    "SceneReport",
    "SceneSegmentation",
    "SceneSettings",
    "SegmentationSession",
    "SessionReport",
    "SessionSettings",
    "SessionViews",
    "ViewRecord",
    "print_report",
    "run_with_progress",
    "self_prompt",
]
