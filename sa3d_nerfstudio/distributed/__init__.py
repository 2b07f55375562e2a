"""Processes that segment together: their ranks, their sums and shared values, and their faults.

``ranks`` is the interface for sessions and exports: the views of each rank, and sums over all ranks. ``launch`` joins
the processes that nerfstudio's launcher or ``torchrun`` has started, by ``torch.distributed``. ``watch`` detects the
end of a rank.
"""

import lazy_loader

# Public names are listed in __init__.pyi, and imported when they are first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
