"""Score a segmented run of the demo's scene in the views that it was not trained on.

This is also an example of rendering masks from Python.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from nerfstudio.utils.eval_utils import eval_setup
from PIL import Image

from sa3d_nerfstudio.evaluation.metrics import iou
from sa3d_nerfstudio.overview import PromptPanel, ViewPanel, write_overview
from sa3d_nerfstudio.pipeline import SA3DPipeline
from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.traces.base import ViewTrace


def score(config: Path, scene: Path, name: str, output_dir: Path) -> None:
    """Write ``scores.json``, ``overview.png`` and the masks (``masks/frame_NNNN.png``, 255 = object).

    Args:
        config: config.yml of the sa3d run.
        scene: Folder of the scene.
        name: Name of the segmented object in prompts.json.
        output_dir: Folder to write to.
    """
    pipeline = eval_setup(config, test_mode="test")[1]
    assert isinstance(pipeline, SA3DPipeline)
    prompts = json.loads((scene / "prompts.json").read_text())["objects"]
    prompt = next(entry for entry in prompts if entry["name"] == name)
    (output_dir / "masks").mkdir(parents=True, exist_ok=True)

    dataset = pipeline.datamanager.eval_dataset
    assert dataset is not None
    rows, panels = [], []
    for index, file in enumerate(dataset.image_filenames):
        trace = pipeline.model.trace_view(dataset.cameras[index : index + 1])
        probability = _render_mask(pipeline, trace)
        mask = (probability > pipeline.config.threshold).numpy()
        Image.fromarray(mask.astype(np.uint8) * 255).save(output_dir / "masks" / f"{file.stem}.png")
        truth = np.asarray(Image.open(scene / "instances" / f"{file.stem}.png")) == prompt["id"]
        # For smaller masks, a single pixel would decide the IoU.
        if truth.mean() > 0.001:
            score = iou(mask, truth)
            rows.append({"frame": file.name, "iou": score, "pixels": int(truth.sum())})
            panels.append(ViewPanel(trace.rgb.cpu(), probability, file.name, f"unseen: IoU {score:.3f}"))
        print(f"{index + 1}/{len(dataset)} {file.name}")

    mean = float(np.mean([row["iou"] for row in rows]))
    result = {"object": name, "frames": len(rows), "mean_iou": mean, "per_frame": rows}
    (output_dir / "scores.json").write_text(json.dumps(result, indent=1) + "\n")
    _write_overview(output_dir / "overview.png", pipeline, prompt, panels, f"{name}: IoU {mean:.3f}")


def _render_mask(pipeline: SA3DPipeline, trace: ViewTrace) -> torch.Tensor:
    """Probability of the object at each pixel."""
    return pipeline.model.render_mask(trace).reshape(trace.height, trace.width).cpu()


def _write_overview(
    path: Path, pipeline: SA3DPipeline, prompt: dict[str, Any], panels: list[ViewPanel], title: str
) -> None:
    """Write the contact sheet: the click and the rendered mask in the prompted view, above the unseen views."""
    view = pipeline.views.find(Path(prompt["frame"]).name)
    trace = pipeline.views.trace(view)
    mask = _render_mask(pipeline, trace) > pipeline.config.threshold
    height, width = pipeline.views.image_size(view)
    click = Prompt.from_points(height, width, prompt["points"][:1]).resized(trace.height, trace.width)
    write_overview(path, PromptPanel(trace.rgb.cpu(), mask, click, pipeline.views.name(view)), panels, title)


if __name__ == "__main__":
    tyro.cli(score)
