"""Several processes that segment together: who they are, what they sum and share, and what becomes of their faults.

``ranks`` is what sessions and exports ask: which views are whose, and sums over all. ``launch`` joins the processes
that nerfstudio's launcher or ``torchrun`` has started, by ``torch.distributed``. ``watch`` notices where one has ended.
"""

import lazy_loader

# Public names are listed in __init__.pyi, and imported when they are first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
