from .run import DemoConfig, run_demo
from .scene import SceneConfig, write_scene

__all__ = ["DemoConfig", "SceneConfig", "run_demo", "write_scene"]
