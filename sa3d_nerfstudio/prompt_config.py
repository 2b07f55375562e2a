"""Alias of the prompts' class under the module name in runs saved by version 0.1; the class is in ``prompts`` now."""

from sa3d_nerfstudio.prompts.config import PromptConfig

__all__ = ["PromptConfig"]
