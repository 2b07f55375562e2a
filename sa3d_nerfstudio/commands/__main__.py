"""``python -m sa3d_nerfstudio.commands`` is ``sa3d``, where scripts are not on the path."""

from sa3d_nerfstudio.commands import main

if __name__ == "__main__":
    main()
