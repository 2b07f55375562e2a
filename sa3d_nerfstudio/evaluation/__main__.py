"""``python -m sa3d_nerfstudio.evaluation nvos|spin-nerf``."""

import sys

import tyro

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.evaluation.command import Evaluation


def main() -> None:
    """Read the command line and run the benchmark."""
    evaluation = tyro.cli(Evaluation, prog="sa3d evaluate")  # type: ignore[call-overload]
    try:
        evaluation.main()
    except SA3DError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
