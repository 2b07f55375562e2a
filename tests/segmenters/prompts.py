"""One prompt of each kind, which every network must be able to answer."""

from __future__ import annotations

import torch

from sa3d_nerfstudio.prompts.prompt import Prompt

HEIGHT, WIDTH = 60, 80
PRIOR = torch.linspace(0, 1, WIDTH).expand(HEIGHT, WIDTH)
PROMPTS = {
    "point": Prompt.from_points(HEIGHT, WIDTH, [(20, 30)]),
    "points": Prompt.from_points(HEIGHT, WIDTH, [(20, 30), (25, 30)], [(60, 10), (0, 0)]),
    "box": Prompt.from_points(HEIGHT, WIDTH, box=[10, 5, 40, 50]),
    "box and points": Prompt.from_points(HEIGHT, WIDTH, [(20, 30)], [(60, 10)], box=[10, 5, 40, 50]),
    "box and a negative point": Prompt.from_points(HEIGHT, WIDTH, negative=[(60, 10)], box=[10, 5, 40, 50]),
    "prior": Prompt.from_points(HEIGHT, WIDTH, [(20, 30)], prior=PRIOR),
}
