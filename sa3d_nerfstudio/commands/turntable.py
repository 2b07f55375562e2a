"""``sa3d turntable``: a video of a camera that circles objects."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sa3d_nerfstudio.commands.common import RunOptions
from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.terminal import say

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sa3d_nerfstudio.distributed.ranks import Ranks


@dataclass(kw_only=True)
class Turntable(RunOptions):
    """Render a video of a camera that circles the objects, and write its path for ns-render."""

    output_path: Path = Path("turntable.mp4")
    """The video; the camera path goes beside it, as JSON."""
    rendered_output_names: tuple[str, ...] = ("object_rgb",)
    """Outputs of the model, side by side: object_rgb (the object alone), background_rgb (the scene without it), rgb,
    mask_overlay, mask, object_depth, and the base model's own."""
    frames: int = 120
    """Images of one full circle."""
    fps: float = 24
    """Images per second."""
    size: tuple[int, int] = (480, 480)
    """Width and height of each output, pixels."""
    elevation: float | None = None
    """Degrees of the camera above the horizon; by default the median of the training cameras."""
    path_only: bool = False
    """Write the camera path alone, and render nothing."""

    def main(self) -> None:
        """Render the video."""
        width, height = self.size
        if self.frames < 2 or self.fps <= 0 or min(width, height) < 16:
            raise SA3DError("a video needs at least 2 --frames, a positive --fps, and a --size of 16 x 16 or more.")
        if self.output_path.suffix.lower() != ".mp4":
            raise SA3DError(f"{self.output_path} is to be a video in MP4: call it {self.output_path.stem}.mp4.")
        from sa3d_nerfstudio.distributed.launch import joined

        with joined(self.device) as ranks:
            self._render(ranks)

    def _render(self, ranks: Ranks) -> None:
        """Render this rank's images; the first rank writes the video."""
        pipeline, objects = self.load(self.output_path.parent)
        from collections import deque

        from nerfstudio.cameras.camera_paths import get_path_from_json
        from nerfstudio.utils.rich_utils import CONSOLE
        from rich.progress import track

        from sa3d_nerfstudio.exports import turntable
        from sa3d_nerfstudio.exports.boxes import object_box
        from sa3d_nerfstudio.exports.object_view import RenderedRays
        from sa3d_nerfstudio.exports.objects import listed, only
        from sa3d_nerfstudio.files import write_json

        threshold = pipeline.config.threshold
        boxes = [object_box(item.field, threshold) for item in objects]
        trained = pipeline.training_cameras().camera_to_worlds
        poses = turntable.orbit(boxes, trained, self.frames, self.elevation)
        path = turntable.camera_path(poses, *self.size, self.fps)
        path_file = self.output_path.with_suffix(".json")
        if ranks.is_first:
            write_json(path_file, path)
        say(f"saved       {path_file}")
        names = " ".join(self.rendered_output_names)
        say(
            f"as well     ns-render camera-path --load-config {self.load_config} --camera-path-filename {path_file} "
            f"--rendered-output-names {names} --output-path {self.output_path}"
        )
        shown = [name for name in pipeline.model.masks.names if name not in pipeline.model.masks.hidden]
        if self.object and {item.name for item in objects} != set(shown):
            say(f"note        ns-render takes no --object: it shows {listed(shown) or 'no object'}")
        if self.path_only:
            return
        cameras = get_path_from_json(path)
        model, rays = pipeline.model, RenderedRays()
        with only(model.masks, objects):
            turntable.check_outputs(model, cameras[0:1], self.rendered_output_names)

            def image(index: int) -> NDArray[np.floating]:
                return turntable.render(model, cameras[index : index + 1], self.rendered_output_names, rays)

            rounds = track(range(0, len(cameras), ranks.size), "turntable", console=CONSOLE)
            images = turntable.images_from_ranks(rounds, len(cameras), image, ranks)
            if ranks.is_first:
                turntable.write_video(self.output_path, images, self.fps)
            else:
                # Rendering happens on iteration; the images go to the first rank.
                deque(images, maxlen=0)
        rays.summed(ranks).tell()
        say(f"saved       {self.output_path}")
