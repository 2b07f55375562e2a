"""``sa3d demo``: all stages on a synthetic scene, scored against the truth."""

from __future__ import annotations

from dataclasses import dataclass

from sa3d_nerfstudio.demo.options import DemoConfig


@dataclass
class Demo(DemoConfig):
    """Try the installation: make a scene, train nerfacto, segment one object from one click, export it, score it."""

    def main(self) -> None:
        """Run the demo.

        Raises:
            SA3DError: A stage failed.
        """
        from sa3d_nerfstudio.demo.run import run_demo

        run_demo(self)
