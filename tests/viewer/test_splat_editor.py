"""What the Segment panel does in a Gaussian model: the same, with splats for cells."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor

from sa3d_nerfstudio.fields.base import LIGHT_LOGIT
from sa3d_nerfstudio.fields.splat_mask import SplatMask
from sa3d_nerfstudio.models.splats import MaskedSplatModel
from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.segmentation.settings import SessionSettings
from sa3d_nerfstudio.segmenters.base import Candidates, SegmenterImage
from sa3d_nerfstudio.viewer.editor import Editor
from sa3d_nerfstudio.viewer.free_views import FreeViews
from sa3d_nerfstudio.viewer.scene_objects import SceneObjects
from sa3d_nerfstudio.views.training_views import TrainingViews
from tests.small_models import masked_splats
from tests.stand_ins import splats_on_cpu

HEIGHT, WIDTH, PART = 24, 32, 12


class HueSegmenter:
    """Finds what has about the colour of any positive point, or of the middle of the box."""

    def embed(self, image: SegmenterImage) -> Tensor:
        return image.rgb

    def predict(self, embedding: Tensor, prompt: Prompt) -> Candidates:
        places = prompt.positive if prompt.box is None else (prompt.box[:2] + prompt.box[2:])[None] / 2
        colors = [embedding[y, x] for x, y in places.long().tolist()]
        near = [(embedding - color).abs().amax(-1) < 0.35 for color in colors]
        return Candidates(torch.stack(near).any(0, keepdim=True), torch.ones(1))


def two_balls() -> MaskedSplatModel:
    """A red ball of splats and a blue one beside it."""
    model = masked_splats(2 * PART)
    splats = model.gauss_params
    offsets = torch.nn.functional.normalize(torch.randn(PART, 3), dim=-1) * 0.2
    middle = torch.tensor([0.5, 0.0, 0.0])
    splats["means"].copy_(torch.cat([offsets - middle, offsets + middle]))
    splats["scales"].fill_(math.log(0.12))
    splats["opacities"].fill_(6.0)
    splats["features_rest"].zero_()
    colors = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.1, 0.9]]).repeat_interleave(PART, 0)
    splats["features_dc"].copy_((colors - 0.5) / 0.28209479177387814)
    return model


def cameras() -> Cameras:
    """Four that look at the middle from z = ± 3 and y = ± 3; a fifth from the first's side, for the viewer."""
    poses = []
    for angle in (0.0, 0.5 * math.pi, math.pi, 1.5 * math.pi, 0.15):
        turn = torch.tensor([[1, 0, 0], [0, math.cos(angle), -math.sin(angle)], [0, math.sin(angle), math.cos(angle)]])
        poses.append(torch.cat([turn, (turn @ torch.tensor([0.0, 0.0, 3.0]))[:, None]], dim=1))
    size = {"cx": WIDTH / 2, "cy": HEIGHT / 2, "width": WIDTH, "height": HEIGHT}
    return Cameras(torch.stack(poses), fx=float(WIDTH), fy=float(WIDTH), **size)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> MaskedSplatModel:
    splats_on_cpu(monkeypatch)
    return two_balls()


def bench_of(model: MaskedSplatModel) -> Editor:
    views = TrainingViews(model, cameras()[:4], [Path(f"{view}.png") for view in range(4)], WIDTH)
    return Editor(FreeViews(model, views, HueSegmenter, SessionSettings(max_passes=2)))


def objects_splats(model: MaskedSplatModel) -> list[int]:
    return model.object_splats().nonzero()[:, 0].tolist()


def fields_of(editor: Editor) -> set[SplatMask]:
    """All fields of an editor and its model."""
    fields = {field for entry in editor.state for field in (entry.evidence, entry.total)}
    fields |= {editor.model.masks[name] for name in editor.model.masks.names}
    return {field for field in fields if isinstance(field, SplatMask)}


def bytes_of(editor: Editor) -> int:
    """Memory of all fields, and of what is derived from them for each splat."""
    fields = fields_of(editor)
    derived = [tensor for field in fields for _, tensor in field._derived.values() if tensor.numel() >= 2 * PART]
    return sum(field.num_bytes for field in fields) + sum(tensor.nbytes for tensor in derived)


def test_loaded_objects_stay_packed(model: MaskedSplatModel):
    for number in range(3):
        field = model.new_field(0)
        hit = torch.zeros(2 * PART)
        hit[4 * number : 4 * number + 4] = 1
        field.set(hit, torch.ones(2 * PART))
        field.set_logits(torch.where(hit > 0, 4.0, LIGHT_LOGIT))
        field.rest()
        model.masks[f"object {number}"] = field
    loaded = sum(model.masks[name].num_bytes for name in model.masks.names)
    editor = bench_of(model)
    assert bytes_of(editor) == loaded, "taking over the objects neither copies nor unpacks them"
    objects, view = SceneObjects(editor), editor.look(cameras()[4:5])
    name = objects.pick(view, 0.5 - 0.5 / 3, 0.5)
    unpicked = [field for field in editor.model.masks.names if field != name]
    assert all(field.is_packed for field in fields_of(editor))
    editor.picture(view)
    editor.rest()
    assert bytes_of(editor) == loaded
    # A prompt goes on from the packed evidence.
    editor.mark(view, 0.5 + 0.5 / 3, 0.5, True)
    assert not all(field.is_packed for field in fields_of(editor))
    objects.merge(unpicked)
    editor.rest()
    assert len(fields_of(editor)) == 3 and all(field.is_packed for field in fields_of(editor))


def test_a_ball_of_splats_is_segmented_refined_and_saved(model: MaskedSplatModel):
    editor = bench_of(model)
    view = editor.look(cameras()[4:5])
    plain = editor.picture(view)
    # The red ball is on the left.
    editor.mark(view, 0.5 - 0.5 / 3, 0.5, True)
    assert (editor.picture(view) - plain)[:, : WIDTH // 2].abs().max() > 0.2
    assert (editor.picture(view) - plain)[:, WIDTH // 2 :].abs().max() < 0.05
    ((place, on),) = editor.markers()
    assert on and math.dist(place, (-0.5, 0.0, 0.0)) < 0.5
    for progress in editor.segment(live_every=0.0):
        assert progress.rejected == 0
    assert objects_splats(model) == list(range(PART))

    editor.add_object()
    editor.draw_box(view, 0.5, 0.2, 0.95, 0.8)
    editor.undo()
    editor.mark(view, 0.5 + 0.5 / 3, 0.5, True)
    editor.solo(True)
    assert objects_splats(model) and min(objects_splats(model)) >= PART

    again = two_balls()
    again.load_state_dict(model.state_dict())
    later = bench_of(again)
    assert later.state.names == ["object", "object 2"] and objects_splats(again) == objects_splats(model)
    later.select("object")
    assert len(later.markers()) == 1
    later.solo(True)
    later.mark(later.look(cameras()[1:2]), 0.5 + 0.5 / 3, 0.5, True)
    # A correction: now what this view sees of the other ball belongs to it, too.
    assert objects_splats(again)[:PART] == list(range(PART)) and len(objects_splats(again)) > PART
