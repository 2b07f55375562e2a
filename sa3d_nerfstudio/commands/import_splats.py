"""``sa3d import``: a nerfstudio run of Gaussians that another program has trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from sa3d_nerfstudio.terminal import say


@dataclass(kw_only=True)
class ImportSplats:
    """Make a nerfstudio run (splatfacto) of a splat file, to segment, view and export like any other."""

    splats: Annotated[Path, tyro.conf.Positional]
    """A 3DGS PLY of any program; or .spz, .sog, .splat, .ksplat, .lcc or a compressed PLY, which need
    splat-transform."""
    output_dir: Path = Path("outputs")
    """Folder of all runs."""
    name: str | None = None
    """Folder of the scene in --output-dir; by default the file's name."""
    timestamp: str | None = None
    """Folder of this run; by default the current time."""
    cameras: Path | None = None
    """Cameras of the scene: Inria's cameras.json, nerfstudio's transforms.json, or a COLMAP folder. By default,
    virtual cameras are placed so that several see each visible splat."""
    images: Path | None = None
    """Folder of the cameras' photos, if they are not where the cameras' files place them."""
    up: Literal["auto", "x", "-x", "y", "-y", "z", "-z"] = "auto"
    """Up direction: by default that of the file, the mean of the cameras, or z or -y, whichever more flat splats are
    perpendicular to."""
    placement: Literal["auto", "around", "inside"] = "auto"
    """Place of virtual cameras: around the scene, or inside a room; detected by default."""
    opacity: Literal["logit", "linear"] | None = None
    """Form of the opacities in the file, if it cannot be detected."""
    skip_invalid: bool = False
    """Leave out splats with values that are NaN or infinite, instead of refusing the file."""

    def main(self) -> None:
        """Write the run."""
        from nerfstudio.utils.rich_utils import CONSOLE
        from rich.progress import track

        from sa3d_nerfstudio.files import check_writable
        from sa3d_nerfstudio.splat_files.cameras import read_cameras
        from sa3d_nerfstudio.splat_files.load import check_cameras, read_splats, up_of
        from sa3d_nerfstudio.splat_files.run import run_name, write_run
        from sa3d_nerfstudio.splat_files.virtual_cameras import place_cameras

        check_writable(self.output_dir)
        cameras = [] if self.cameras is None else read_cameras(self.cameras, self.images, self.splats.parent)
        gaussians, left_out = read_splats(self.splats, self.opacity, self.skip_invalid)
        degree = gaussians.sh_degree
        say(f"splats      {len(gaussians)}, spherical harmonics of degree {degree}")
        if left_out:
            say(f"left out    {left_out} splats with invalid values")
        up = up_of(self.splats, gaussians, cameras, self.up)
        say(f"up          {' '.join(f'{value:.3g}' for value in up)}")
        if self.cameras is not None:
            seen = check_cameras(self.cameras, cameras, gaussians)
            photos = sum(camera.photo is not None for camera in cameras)
            say(f"cameras     {len(cameras)} of {self.cameras}, {photos} with photos; {100 * seen:.1f} % in an image")
        else:
            placed = place_cameras(gaussians, up, self.placement)
            cameras = placed.cameras
            where = "inside a room" if placed.inside else "around the scene"
            say(f"cameras     {len(cameras)} virtual ones {where}")
            say(
                f"seen        {100 * placed.seen:.1f} % of what can be seen of the dense part, "
                f"{100 * placed.seen_by_several:.1f} % by three or more"
            )
        path = write_run(
            gaussians, cameras, up, self.splats.name, self.output_dir, self.name or run_name(self.splats),
            self.timestamp, lambda items: track(items, "images", console=CONSOLE),
        )  # fmt: skip
        say(f"saved       {path}")
        say(f"look        ns-viewer --load-config {path}")
        say(f"next        ns-train sa3d --load-dir {path.parent / 'nerfstudio_models'}")
