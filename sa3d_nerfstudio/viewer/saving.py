"""The panel's folder of what leaves it: the run, the object's points, commands to copy."""

from __future__ import annotations

import re
from pathlib import Path

import torch
import viser

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.viewer.desk import Desk
from sa3d_nerfstudio.viewer.markdown import literal
from sa3d_nerfstudio.viewer.points import view_points, views_to_show, write_ply
from sa3d_nerfstudio.viewer.segmenting import Job


class Saving:
    """Save and export."""

    def __init__(self, desk: Desk, job: Job) -> None:
        self._desk = desk
        self._job = job
        gui = desk.gui
        with gui.add_folder("Save and export", expand_by_default=False):
            save = gui.add_button("Save the run", color="green", icon=viser.Icon.DEVICE_FLOPPY)
            save.on_click(lambda _: desk.do(self._write_run))
            self._points = gui.add_button("Write the object's points", color="gray", icon=viser.Icon.FILE_EXPORT)
            self._points.on_click(lambda _: desk.do(self._write_points))
            # In fields, which scroll: the panel would be as wide as the longest command.
            self._commands = {
                what: gui.add_text(what, initial_value="", hint=hint)
                for what, (hint, _) in desk.host.commands().items()
            }

    def refresh(self) -> None:
        """Show the commands, once there is a run for them."""
        desk = self._desk
        self._points.disabled = desk.bench.state.current is None
        saved = desk.host.config.exists() and not desk.bench.unsaved
        for label, (_, command) in desk.host.commands().items():
            self._commands[label].value = command if saved else "(save the run first)"

    def _write_run(self) -> None:
        self._desk.say("Saving ...")
        self._desk.say(f"Saved: {literal(_short(self._desk.save()))}")

    def _write_points(self) -> None:
        desk = self._desk
        name, model = desk.bench.state.selected, desk.bench.model
        if name is None or model.masks[name].is_empty:
            raise SA3DError("there is no object to write yet: segment one first.")
        path = desk.host.run_dir / "exports" / (re.sub(r"[^\w.-]+", "_", name) + ".ply")
        views = desk.bench.views
        chosen = views_to_show(views)
        with self._job.running():
            found = []
            for view in view_points(views, chosen, model.masks[name], model.mask_threshold):
                found.append(view)
                self._job.show(len(found), len(chosen), f"Writing points: view {len(found)} of {len(chosen)}.")
                if self._job.stopped:
                    desk.say("Stopped; nothing was written.")
                    return
        points, colors = (torch.cat(part) for part in zip(*found, strict=True))
        if len(points) == 0:
            raise SA3DError(f"no view shows {name}: lower the threshold, or segment it again.")
        write_ply(path, points, colors)
        desk.say(f"{len(points)} points written: {literal(_short(path))}")


def _short(path: Path) -> str:
    """The end of a path; the panel is narrow."""
    return "/".join(path.parts[-3:])
