"""The trained run behind ``--load-dir``: its configuration, its checkpoint and its data set.

``find`` locates them and reports missing ones. ``checkpoint`` reads weights as data only, and checks that they are
finite. ``patches`` builds nerfstudio's models without the networks that they would download.
"""

import lazy_loader

# Public names are listed in __init__.pyi, and imported when they are first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
