"""The contact sheet of a segmentation: the prompt in its view, and the rendered mask in the others."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from jaxtyping import Bool, Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sa3d_nerfstudio.distributed.ranks import tell_as_data
from sa3d_nerfstudio.fields.base import MaskField
from sa3d_nerfstudio.files import atomic_path, to_bytes
from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.segmentation.session import SegmentationSession
from sa3d_nerfstudio.segmentation.session_views import ViewKey
from sa3d_nerfstudio.traces.base import ViewTrace, render_probability

CELL = 320
"""Width of a view in pixels."""
GAP = 16
HEADER_SCALE = 1.5
"""Size of the prompt view relative to the others."""
FINE = 2
"""Overlays are drawn at this multiple of their size and scaled down, for smooth edges."""
MAX_ASPECT = 1.5
"""Largest height of a cell relative to its width; taller portraits are drawn narrower."""

PAPER, INK, FAINT = (255, 255, 255), (31, 35, 40), (110, 118, 129)
TINT = (0, 150, 255)
POSITIVE, NEGATIVE, BOX = (30, 190, 80), (230, 50, 50), (255, 214, 10)
STATE_COLORS = {"prompt": (0, 120, 212), "used": (26, 138, 66), "rejected": (207, 34, 46), "skipped": (128, 134, 143)}


@dataclass
class PromptPanel:
    """The view that the user has prompted."""

    rgb: Float[Tensor, "height width 3"]
    """The image, in [0, 1]."""
    mask: Bool[Tensor, "height width"]
    """The prompt's 2D mask."""
    prompt: Prompt
    """The prompt, in pixels of an image of any size."""
    name: str = ""
    """The image's name."""


@dataclass
class ViewPanel:
    """One view with the object's rendered mask."""

    rgb: Float[Tensor, "height width 3"]
    """The image, in [0, 1]."""
    mask_probability: Float[Tensor, "mask_height mask_width"]
    """The rendered mask; 0 or NaN, drawn as background, where there is no evidence."""
    name: str
    """The image's name."""
    status: str
    """Its state: ``prompt``, ``used``, ``rejected: reason`` or ``skipped: reason``."""
    window: tuple[float, float, float, float] | None = None
    """Window rendered at full size: y0, x0, y1, x1, as shares of the image; None if the whole image was."""


Overview = tuple[PromptPanel, list[ViewPanel]]
"""Panels of an object's overview.png."""
VIEWS = 12
"""Largest number of views beside the prompted one."""
tell_as_data(PromptPanel, ViewPanel)


def overview_of(session: SegmentationSession) -> Overview:
    """The panels of an object's overview; each of several processes renders those of its views."""
    ranks = session.ranks
    view = next(iter(session.prompted))
    prompt_panel = ranks.share(partial(_prompt_panel, session, view))
    records = [record for record in session.report.last().values() if record.view not in session.prompted]
    step = max(1, len(records) / VIEWS)
    panels = []
    for record in (records[int(index * step)] for index in range(min(VIEWS, len(records)))):
        if ranks.owner(record.view) != ranks.rank:
            continue
        window = session.window(record.view)
        rgb = session.image(record.view, lambda trace: trace.rgb)
        probability = session.image(record.view, partial(_probability, session.grid))[..., 0]
        status = f"{record.state}: {record.reason}" if record.reason else record.state
        shares = None if window is None else window.shares
        panels.append(ViewPanel(rgb.cpu(), probability.cpu(), record.name, status, shares))
    drawn = [panel for rank_panels in ranks.gather(panels) for panel in rank_panels]
    return prompt_panel, sorted(drawn, key=lambda panel: panel.name)


def _prompt_panel(session: SegmentationSession, view: ViewKey) -> PromptPanel:
    prompted = session.prompted[view]
    return PromptPanel(session.trace(view).rgb.cpu(), prompted.mask.cpu(), prompted.prompt, session.name(view))


def _probability(field: MaskField, trace: ViewTrace) -> Float[Tensor, "height width 1"]:
    return render_probability(trace, field)[0].reshape(trace.height, trace.width, 1)


def write_overview(
    path: Path,
    prompt_view: PromptPanel,
    views: Sequence[ViewPanel],
    title: str = "",
    columns: int = 4,
    threshold: float = 0.5,
) -> None:
    """Write the contact sheet: the prompt and its 2D mask on top, below them the views with their rendered masks.

    Args:
        path: The PNG to write; it appears whole or not at all.
        prompt_view: The view that the user has prompted.
        views: The views to show, in reading order.
        title: Headline, such as the object's name.
        columns: Views per row.
        threshold: Probability above which a pixel belongs to the object.
    """
    page = _stack([_header(prompt_view, views, title, columns), *_grid(views, columns, threshold)])
    with atomic_path(path) as temporary:
        page.save(temporary)


def _header(panel: PromptPanel, views: Sequence[ViewPanel], title: str, columns: int) -> Image.Image:
    """The prompted view with the prompt and with the 2D mask, and the summary beside them."""
    size = _fitted([panel.rgb], HEADER_SCALE)
    with_prompt = _draw_prompt(_picture(panel.rgb, size), panel.prompt)
    with_mask = _draw_mask(_picture(panel.rgb, size), panel.mask.float(), 0.5)
    pictures = [
        _captioned(_smooth(with_prompt), panel.name, "prompt", size[0]),
        _captioned(_smooth(with_mask), "2D mask", "", size[0]),
    ]
    left = GAP + 2 * (size[0] + GAP)
    width = max(_page_width(columns), left + CELL)
    header = Image.new("RGB", (width, GAP + pictures[0].height), PAPER)
    for number, picture in enumerate(pictures):
        header.paste(picture, (GAP + number * (size[0] + GAP), GAP))
    header.paste(_summary(panel.prompt, views, title, width - left - GAP), (left, GAP))
    return header


def _summary(prompt: Prompt, views: Sequence[ViewPanel], title: str, width: int) -> Image.Image:
    """Title, parts of the prompt, and number of views in each state."""
    sheet = Image.new("RGB", (width, 200), PAPER)
    draw = ImageDraw.Draw(sheet)
    y = 0
    if title:
        draw.text((0, y), _shortened(title, _font(24, bold=True), width), INK, _font(24, bold=True))
        y += 40
    parts = [
        f"{len(points)} {sign} point{'s' if len(points) > 1 else ''}"
        for points, sign in ((prompt.positive, "positive"), (prompt.negative, "negative"))
        if len(points)
    ]
    text = ", ".join(parts + ["box"] * (prompt.box is not None) + ["mask"] * (prompt.mask is not None))
    draw.text((0, y), _shortened(text, _font(14), width), FAINT, _font(14))
    y += 32
    for state, number in Counter(_state(view.status) for view in views).items():
        chip = _chip(draw, (0, y), state)
        draw.text((chip + 8, y + 1), f"{number} view{'s' if number > 1 else ''}", INK, _font(14))
        y += 26
    return sheet


def _grid(views: Sequence[ViewPanel], columns: int, threshold: float) -> list[Image.Image]:
    """Rows of views with their rendered masks."""
    size = _fitted([view.rgb for view in views])
    rows = []
    for start in range(0, len(views), columns):
        cells = [
            _captioned(
                _smooth(
                    _draw_window(_draw_mask(_picture(view.rgb, size), view.mask_probability, threshold), view.window)
                ),
                Path(view.name).name,
                view.status,
                size[0],
            )
            for view in views[start : start + columns]
        ]
        row = Image.new("RGB", (_page_width(columns), GAP + max(cell.height for cell in cells)), PAPER)
        for number, cell in enumerate(cells):
            row.paste(cell, (GAP + number * (CELL + GAP), GAP))
        rows.append(row)
    return rows


def _fitted(images: Sequence[Float[Tensor, "height width 3"]], scale: float = 1.0) -> tuple[int, int]:
    """Width and height of the cells for these images."""
    aspect = max((image.shape[0] / image.shape[1] for image in images), default=0.75)
    return round(CELL * scale), round(CELL * scale * min(aspect, MAX_ASPECT))


def _page_width(columns: int) -> int:
    return GAP + columns * (CELL + GAP)


def _picture(rgb: Float[Tensor, "height width 3"], size: tuple[int, int]) -> Image.Image:
    """The image at :data:`FINE` times the size that fits a cell."""
    height, width = rgb.shape[:2]
    scale = FINE * min(size[0] / width, size[1] / height)
    fitted = (max(round(width * scale), FINE), max(round(height * scale), FINE))
    return Image.fromarray(to_bytes(rgb)).resize(fitted, Image.Resampling.BICUBIC)


def _smooth(fine: Image.Image) -> Image.Image:
    return fine.resize((fine.width // FINE, fine.height // FINE), Image.Resampling.BOX)


def _draw_mask(picture: Image.Image, mask: Float[Tensor, "height width"], threshold: float) -> Image.Image:
    """Tint the pixels in the mask, mute the others, and draw the mask's outline."""
    soft = mask.detach().cpu().float().nan_to_num(0).numpy()
    # Interpolated before thresholding, so that the outline of a small mask is smooth.
    on = cv2.resize(soft, picture.size, interpolation=cv2.INTER_CUBIC) > threshold
    pixels = np.array(picture, np.float32)
    drawn = 0.85 * (0.6 * pixels + 0.4 * pixels.mean(axis=2, keepdims=True))
    drawn[on] = 0.65 * pixels[on] + 0.35 * np.array(TINT)
    if on.any():
        # The outline lies outside the mask, so that it hides nothing of a thin object.
        distance = cv2.distanceTransform((~on).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        drawn[~on & (distance <= 3 * FINE)] *= 0.6
        drawn[~on & (distance <= 2 * FINE)] = PAPER
    return Image.fromarray(drawn.round().astype(np.uint8))


def _draw_window(picture: Image.Image, window: tuple[float, float, float, float] | None) -> Image.Image:
    """Draw the border of the window rendered at full size, as a thin frame."""
    if window is not None:
        y0, x0, y1, x1 = window
        corners = [x0 * picture.width, y0 * picture.height, x1 * picture.width - 1, y1 * picture.height - 1]
        ImageDraw.Draw(picture).rectangle(corners, outline=PAPER, width=FINE)
    return picture


def _draw_prompt(picture: Image.Image, prompt: Prompt) -> Image.Image:
    """Draw the prompt's box, and its points as discs with a plus or a minus."""
    draw = ImageDraw.Draw(picture)
    x_scale, y_scale = picture.width / prompt.width, picture.height / prompt.height
    line, radius = 2 * FINE, 9 * FINE
    if prompt.box is not None:
        x0, y0, x1, y1 = prompt.box.tolist()
        left, top = x0 * x_scale, y0 * y_scale
        # A box of less than a pixel is drawn as one pixel.
        corners = [left, top, max(x1 * x_scale - 1, left), max(y1 * y_scale - 1, top)]
        draw.rectangle(corners, outline=INK, width=2 * line)
        draw.rectangle(corners, outline=BOX, width=line)
    for (x, y), on in zip(prompt.points.tolist(), prompt.labels.tolist(), strict=True):
        x, y = (x + 0.5) * x_scale, (y + 0.5) * y_scale
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), PAPER)
        inner, arm = radius - line, radius - 2.4 * line
        draw.ellipse((x - inner, y - inner, x + inner, y + inner), POSITIVE if on else NEGATIVE)
        draw.line((x - arm, y, x + arm, y), PAPER, line)
        if on:
            draw.line((x, y - arm, x, y + arm), PAPER, line)
    return picture


def _captioned(picture: Image.Image, name: str, status: str, width: int) -> Image.Image:
    """A picture, centred above its name, its state, and the reason for the state."""
    state, _, reason = status.partition(":")
    cell = Image.new("RGB", (width, picture.height + (50 if reason else 28)), PAPER)
    cell.paste(picture, ((width - picture.width) // 2, 0))
    draw = ImageDraw.Draw(cell)
    y = picture.height + 6
    chip = _chip(draw, (width, y), state, right=True) if state else width
    draw.text((0, y + 1), _shortened(name, _font(13), chip - 8), INK, _font(13))
    if reason:
        draw.text((0, y + 23), _shortened(reason.strip(), _font(12), width), FAINT, _font(12))
    return cell


def _chip(draw: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, right: bool = False) -> int:
    """Draw a coloured label at its top left or top right corner; return the x of its far end."""
    x, y = corner
    width = math.ceil(draw.textlength(text, _font(12, bold=True))) + 14
    x0 = x - width if right else x
    draw.rounded_rectangle((x0, y, x0 + width - 1, y + 19), 9, STATE_COLORS.get(text, FAINT))
    draw.text((x0 + width / 2, y + 10), text, PAPER, _font(12, bold=True), anchor="mm")
    return x0 if right else x0 + width


def _state(status: str) -> str:
    return status.partition(":")[0]


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The text, without its middle if it is too long: names of images differ at their ends."""
    keep = len(text)
    short = text
    while keep > 0 and font.getlength(short) > width:
        keep -= 1
        short = text[: keep // 2] + "…" + text[len(text) - (keep - keep // 2) :]
    return short


@lru_cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Font that comes with matplotlib: the same on every machine."""
    file = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / file), size)


def _stack(rows: Sequence[Image.Image]) -> Image.Image:
    """Rows below each other, with an empty margin at the end."""
    page = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows) + GAP), PAPER)
    y = 0
    for row in rows:
        page.paste(row, (0, y))
        y += row.height
    return page
