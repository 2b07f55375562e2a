"""``sa3d`` as ``python -m sa3d_nerfstudio.commands``, for environments whose scripts are not on the path."""

from sa3d_nerfstudio.commands import main

if __name__ == "__main__":
    main()
