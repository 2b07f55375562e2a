"""Base models whose training has gone wrong."""

from __future__ import annotations

import torch
from nerfstudio.models.base_model import Model
from nerfstudio.models.splatfacto import SplatfactoModel

from sa3d_nerfstudio.errors import SA3DError

FEW = 0.01
"""Share of the splats that may hold numbers which are none: training leaves some such, and they are not drawn."""


def check_finite(model: Model) -> None:
    """Check that the weights of a base model are numbers.

    Raises:
        SA3DError: Some are NaN or infinite, so that it renders nothing of use.
    """
    splats = dict(model.gauss_params) if isinstance(model, SplatfactoModel) else {}
    if splats:
        bad = torch.stack([~torch.isfinite(value.flatten(1)).all(-1) for value in splats.values()]).any(0)
        share = float(bad.float().mean()) if len(bad) else 0.0
        if share > FEW:
            raise SA3DError(
                f"{100 * share:.0f} % of the base model's splats are NaN or infinite, for its training has gone wrong: "
                "pick an earlier checkpoint with --load-step, or train it again."
            )
        return
    for name, value in model.named_parameters():
        if not name.startswith(("masks.", "lpips.")) and not bool(torch.isfinite(value).all()):
            raise SA3DError(
                f"the base model's weights ({name}) are NaN or infinite, for its training has gone wrong: "
                "pick an earlier checkpoint with --load-step, or train it again."
            )
