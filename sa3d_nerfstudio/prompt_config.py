"""Where runs saved by version 0.1 name the class of their prompts, which is in ``prompts`` now."""

from sa3d_nerfstudio.prompts.config import PromptConfig

__all__ = ["PromptConfig"]
