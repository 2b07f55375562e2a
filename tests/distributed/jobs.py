"""What processes do in the tests of this folder; a module of its own, which they import."""

from __future__ import annotations

import os
import signal
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.models.splatfacto import SplatfactoModel

from sa3d_nerfstudio.distributed.ranks import Ranks
from sa3d_nerfstudio.exports.turntable import images_from_ranks
from sa3d_nerfstudio.fields.mask_grid import MaskGrid
from sa3d_nerfstudio.fields.splat_mask import SplatMask
from sa3d_nerfstudio.models.splats import MaskedSplatModel
from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.segmentation.session import SegmentationSession
from sa3d_nerfstudio.segmentation.settings import SessionSettings
from sa3d_nerfstudio.segmenters.base import Candidates, SegmenterImage
from sa3d_nerfstudio.traces.base import render_probability
from sa3d_nerfstudio.views.training_views import TrainingViews
from tests.analytic import BallSegmenter, BallViews
from tests.segmentation.test_session import point_on
from tests.segmentation.test_views_around import AnywhereBallViews, ShadeSegmenter
from tests.segmentation.test_windows import WindowedBallSegmenter, WindowedBallViews
from tests.small_models import masked, masked_splats, small_model
from tests.splat_scenes import desk
from tests.stand_ins import Forever, splats_on_cpu

SPLAT_SIZE = (24, 32)
"""Height and width of the views of splats: the rasteriser asks every splat of every pixel."""


def ball_session(ranks: Ranks, ball: int = 3, windows: bool = False, **settings: Any) -> SegmentationSession:
    """A session that has been prompted on one ball in view 0."""
    views = WindowedBallViews(height=48, width=64, count=15) if windows else BallViews(15)
    segmenter = (WindowedBallSegmenter if windows else BallSegmenter).of(views)
    session = SegmentationSession(views, segmenter, MaskGrid(48), SessionSettings(**settings), ranks=ranks)
    session.prompt(0, point_on(views, 0, ball))
    return session


class SolidSegmenter:
    """Answers the solid under the first point, by which of them each pixel's splats are of."""

    def __init__(self, views: TrainingViews, owners: torch.Tensor, field: SplatMask) -> None:
        self.views = views
        self.field = field
        self.channels = torch.nn.functional.one_hot(owners).float()

    def embed(self, image: SegmenterImage) -> torch.Tensor:
        trace = self.views.trace(int(image.name.removesuffix(".png")))
        return trace.render(self.field, self.channels).argmax(-1).reshape(trace.height, trace.width)

    def predict(self, embedding: torch.Tensor, prompt: Prompt) -> Candidates:
        x, y = prompt.positive[0].long().tolist()
        return Candidates((embedding == embedding[y, x])[None], torch.ones(1))


def splat_views(count: int, distance: float) -> tuple[MaskedSplatModel, TrainingViews, torch.Tensor]:
    """A desk of splats, views all around it, and the solid of each splat."""
    scene = desk(degree=0)
    values = scene.gaussians
    model = masked_splats(len(values.means), sh_degree=0)
    assert isinstance(model, SplatfactoModel)
    for name in ("means", "scales", "quats", "features_dc"):
        model.gauss_params[name].data = torch.from_numpy(getattr(values, name))
    model.gauss_params["opacities"].data = torch.from_numpy(values.opacities).reshape(-1, 1)
    model.gauss_params["features_rest"].data = torch.zeros(len(values.means), 0, 3)
    height, width = SPLAT_SIZE
    poses = BallViews(count, distance=distance).poses
    cameras = Cameras(poses, float(width), float(width), width / 2, height / 2, width, height)
    names = [Path(f"{view}.png") for view in range(count)]
    return model, TrainingViews(model, cameras, names, width), torch.from_numpy(scene.owner).long()


def segment_balls(ranks: Ranks) -> dict[str, Any]:
    """Two balls, one of them in windows, with all that the ranks must agree on."""
    found = {}
    unseen = BallViews(count=5, distance=2.5)
    for name, session in {
        "whole views": ball_session(ranks, 3),
        "windows": ball_session(ranks, 1, windows=True),
    }.items():
        sent = ranks.bytes_sent
        session.run()
        report, grid = session.report, session.grid
        assert report.likelihood is not None
        masks = [render_probability(unseen.trace(view), grid)[0] > 0.5 for view in range(len(unseen))]
        found[name] = {
            "masks": torch.stack(masks),
            "field": torch.cat([grid.hit, grid.seen, grid.probability(), grid.center]),
            "records": sorted((item.number_of_pass, item.name, item.state) for item in report.records),
            "changes": report.changes,
            "steps": (report.likelihood.begun, report.likelihood.steps),
            "rays": report.likelihood.num_rays,
            "grid bytes": 4 * grid.num_cells,
            "sent": ranks.bytes_sent - sent,
        }
    return found


def segment_splats(ranks: Ranks) -> dict[str, Any]:
    """The ball on a desk of splats, and which views this process has rendered."""
    splats_on_cpu(Forever())
    model, views, owners = splat_views(9, 3.0)
    field = model.new_field(0)
    assert isinstance(field, SplatMask)
    segmenter = SolidSegmenter(views, owners, field.fresh())
    settings = SessionSettings(windows=False, max_passes=3)
    session = SegmentationSession(views, segmenter, field, settings, ranks=ranks)
    ids = segmenter.embed(SegmenterImage(views.trace(0).rgb, "0.png")) if ranks.is_first else None
    y, x = ranks.share(lambda: (ids == 0).nonzero().float().mean(0).round().tolist() if ids is not None else [])
    session.prompt(0, Prompt.from_points(*SPLAT_SIZE, [(x, y)]))
    session.run()
    rendered = [view for view in range(len(views)) if views.is_rendered(view)]
    _, unseen, _ = splat_views(5, 2.6)
    masks = [render_probability(unseen.trace(view), field)[0] > 0.5 for view in range(len(unseen))]
    return {"masks": torch.stack(masks), "rendered": rendered, "truth": int((owners == 0).sum())}


def segment(ranks: Ranks) -> dict[str, Any]:
    """All of it, in one start of processes."""
    return {"balls": segment_balls(ranks), "splats": segment_splats(ranks)}


def exchange(ranks: Ranks) -> dict[str, Any]:
    """What ranks tell each other, by each way."""
    large = torch.full((3_000_000,), float(ranks.rank))
    images = images_from_ranks(
        range(0, 5, ranks.size), 5, lambda index: torch.full((2, 2, 3), index / 10).numpy(), ranks
    )
    return {
        "shared": ranks.share(lambda: f"by {ranks.rank}"),
        "gathered": [float(each.mean()) for each in ranks.gather(large)],
        "collected": ranks.collect(ranks.rank),
        "merged": ranks.merged([10 * item for item in ranks.every(range(5))]),
        "sum": [part.tolist() for part in ranks.sum(torch.tensor(1.0 + ranks.rank), torch.ones(2, 2))],
        "any": (ranks.any(ranks.rank == 1), ranks.any(False)),
        "own": ranks.own([4, 3, 2, 1, 0]),
        "images": [round(float(image.mean()), 1) for image in images],
        "size": (ranks.rank, ranks.size, ranks.local_rank, ranks.local_size),
    }


def render_together(ranks: Ranks) -> tuple[int, list[torch.Tensor]]:
    """A view that all render together: how many rays this process has traced of it, and on rank 0 what it shows."""
    model = masked(small_model("nerfacto"))
    cameras = Cameras(BallViews(3).poses, 30.0, 30.0, 15.0, 11.0, 30, 22)
    views = TrainingViews(model, cameras, [Path(f"{view}.png") for view in range(3)], 30)
    traced = []
    look = model.compressed_view

    def counted(*args: Any, **options: Any) -> Any:
        trace = look(*args, **options)
        traced.append(trace.height * trace.width)
        return trace

    model.compressed_view = counted  # type: ignore[method-assign]
    views.trace_together(1, ranks)
    if not ranks.is_first:
        return sum(traced), []
    trace = views.trace(1)
    return sum(traced), [trace.depth, trace.rgb, trace.accumulation]


def count_bytes(ranks: Ranks) -> tuple[int, float]:
    """Number of passes, and how many grids' bytes this process sends in those after the first."""
    session = ball_session(ranks, likelihood_steps=0, tolerance=-1.0, max_passes=3)
    sent, passes, grids = 0, 0, 0.0
    for record in session.steps():
        if record.number_of_pass > passes:
            passes = record.number_of_pass
            if passes == 2:
                sent = ranks.bytes_sent
    grids = (ranks.bytes_sent - sent) / (4 * session.grid.num_cells)
    return passes, grids


def keep_waiting(ranks: Ranks, timeout: timedelta, seconds: float) -> list[float]:
    """Rank 0 is busy for longer than collectives wait; then all sum."""
    dist.distributed_c10d._set_pg_timeout(timeout)
    if ranks.is_first:
        time.sleep(seconds)
    return [float(part) for part in ranks.sum(torch.tensor(1.0))]


def die(ranks: Ranks, folder: Path, after: int) -> None:
    """Rank 1 is killed in the first pass; rank 0 has saved something before."""
    if ranks.is_first:
        (folder / "saved").write_text("an object")
    session = ball_session(ranks)
    for count, _ in enumerate(session.steps()):
        if ranks.rank == 1 and count == after:
            os.kill(os.getpid(), signal.SIGKILL)


def be_terminated(ranks: Ranks, folder: Path) -> None:
    """Rank 1 is killed, and a launcher ends the other, as it may be where errors are handled."""
    ranks.gather(None)
    if ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.2)
    threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
    try:
        time.sleep(60)
    except Exception:
        (folder / "handled").touch()


class FullSegmenter(BallSegmenter):
    """Does not fit into the GPU's memory."""

    def embed(self, image: SegmenterImage) -> int:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def run_out_of_memory(ranks: Ranks) -> None:
    """The segmenter of rank 1 does not fit there."""
    session = ball_session(ranks)
    if ranks.rank == 1:
        views = session.views
        assert isinstance(views, BallViews)
        session.predictor.segmenter = FullSegmenter.of(views)
    session.run()


def be_wrong(ranks: Ranks) -> None:
    """A mistake of the user's, which is the same on all ranks."""
    session = ball_session(ranks)
    session.prompt(0, Prompt(48, 64, mask=torch.zeros(48, 64, dtype=torch.bool)))


def stop(ranks: Ranks, number_of_pass: int) -> tuple[bool, torch.Tensor, int]:
    """Rank 1 is asked to stop, as by Ctrl-C, after its second view of a pass."""
    session = ball_session(ranks, max_passes=9)
    count = 0
    for record in session.steps():
        count += record.number_of_pass == number_of_pass and session.ranks.owner(int(record.view)) == ranks.rank
        if ranks.rank == 1 and count == 2:
            ranks.stop()
    return session.stopped, session.grid.hit, max(item.number_of_pass for item in session.report.records)


def take_gradient_steps(ranks: Ranks) -> None:
    """The published update."""
    ball_session(ranks, lifting="gradient")


class Code:
    """Runs when it is read as a pickle."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def tell_code(ranks: Ranks, mark: Path) -> None:
    """Rank 0 tells the others what is no data."""
    ranks.share(lambda: Code(mark))


def look_around(ranks: Ranks) -> dict[str, Any]:
    """A ball, with four virtual views around it."""
    views = AnywhereBallViews(6)
    settings = SessionSettings(views_around=4)
    session = SegmentationSession(views, ShadeSegmenter(), MaskGrid(32), settings, ranks=ranks)
    session.prompt(0, point_on(views, 0, 1))
    session.run()
    unseen = BallViews(count=3, distance=2.5)
    masks = [render_probability(unseen.trace(view), session.grid)[0] > 0.5 for view in range(len(unseen))]
    records = sorted((item.number_of_pass, item.name, item.state) for item in session.report.records)
    return {"masks": torch.stack(masks), "records": records}
