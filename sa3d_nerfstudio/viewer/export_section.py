"""Section of the panel for exports: the run, the object's points, commands to copy."""

from __future__ import annotations

from pathlib import Path

import torch
import viser

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.files import unique_stems
from sa3d_nerfstudio.viewer.context import PanelContext
from sa3d_nerfstudio.viewer.segment_section import Job
from sa3d_nerfstudio.viewer.viser_compat import literal
from sa3d_nerfstudio.views.surface_points import view_points, views_to_show, write_view_points


class ExportSection:
    """Buttons that save the run and write points, and commands to copy."""

    def __init__(self, context: PanelContext, job: Job) -> None:
        self._context = context
        self._job = job
        gui = context.gui
        with gui.add_folder("Save and export", expand_by_default=False):
            save = gui.add_button("Save the run", color="green", icon=viser.Icon.DEVICE_FLOPPY)
            save.on_click(lambda _: context.do_once(self._write_run))
            self._points = gui.add_button("Write the object's points", color="gray", icon=viser.Icon.FILE_EXPORT)
            self._points.on_click(lambda _: context.do_once(self._write_points))
            # Text fields scroll; as plain text, the longest command would widen the panel.
            self._commands = {
                label: gui.add_text(label, initial_value="", hint=hint)
                for label, (hint, _) in context.viewer.commands().items()
            }

    def refresh(self) -> None:
        """Show the commands once the run is saved."""
        context = self._context
        self._points.disabled = context.editor.state.current is None
        saved = context.viewer.config.exists() and not context.editor.unsaved
        for label, (_, command) in context.viewer.commands().items():
            self._commands[label].value = command if saved else "(save the run first)"

    def _write_run(self) -> None:
        self._context.say("Saving ...")
        self._context.say(f"Saved: {self._named(self._context.save())}")

    def _write_points(self) -> None:
        context = self._context
        name, model = context.editor.state.selected, context.editor.model
        if name is None or model.masks[name].is_empty:
            raise SA3DError("there is no object to write yet: segment one first.")
        stems = dict(zip(model.masks.names, unique_stems(model.masks.names), strict=True))
        path = context.viewer.run_dir / "exports" / f"{stems[name]}.ply"
        views = context.editor.views
        chosen = views_to_show(views)
        with self._job.running():
            clouds = []
            for cloud in view_points(views, chosen, model.masks[name], model.mask_threshold):
                clouds.append(cloud)
                self._job.show(len(clouds), len(chosen), f"Writing points: view {len(clouds)} of {len(chosen)}.")
                if self._job.stopped:
                    context.say("Stopped; nothing was written.")
                    return
        clouds = [cloud for cloud in clouds if len(cloud[0])]
        if not clouds:
            raise SA3DError(f"no view shows {name}: lower the threshold, or segment it again.")
        points, colors = (torch.cat(tensors) for tensors in zip(*clouds, strict=True))
        write_view_points(path, points, colors)
        context.say(f"{len(points)} points written: {self._named(path)}")

    def _named(self, path: Path) -> str:
        """Markdown of a path's last three parts, since the panel is narrow; of all if the run is elsewhere."""
        return literal(path if self._context.viewer.is_elsewhere else "/".join(path.parts[-3:]))
