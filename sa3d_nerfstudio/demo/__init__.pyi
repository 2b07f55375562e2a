from .options import DemoConfig, SceneConfig
from .run import run_demo
from .scene import write_scene

__all__ = ["DemoConfig", "SceneConfig", "run_demo", "write_scene"]
