from .config import ObjectPrompts, PromptConfig
from .images import open_image, points_of_stroke, read_mask, read_scribble
from .prompt import Prompt
from .view_prompt import Mark, ViewPrompt

__all__ = [
    "Mark",
    "ObjectPrompts",
    "Prompt",
    "PromptConfig",
    "ViewPrompt",
    "open_image",
    "points_of_stroke",
    "read_mask",
    "read_scribble",
]
