"""``python -m sa3d_nerfstudio.demo``."""

from sa3d_nerfstudio.demo.run import main

if __name__ == "__main__":
    main()
