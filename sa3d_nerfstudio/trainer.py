"""``ns-train sa3d``: restore the base run, segment, save, or keep the viewer open."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import shlex
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
import yaml
from nerfstudio.configs.base_config import MachineConfig
from nerfstudio.engine.optimizers import Optimizers
from nerfstudio.engine.trainer import Trainer, TrainerConfig
from nerfstudio.utils import comms, writer
from nerfstudio.utils.rich_utils import CONSOLE
from rich.text import Text

from sa3d_nerfstudio.base_run.checkpoint import load_checkpoint
from sa3d_nerfstudio.base_run.find import BaseRun, find_run
from sa3d_nerfstudio.distributed.launch import check_launch, join, rank_in_environment
from sa3d_nerfstudio.distributed.ranks import Ranks, tell_as_data
from sa3d_nerfstudio.errors import EmptyObjectError, MissingWeightsError, SA3DError, one_line
from sa3d_nerfstudio.files import atomic_path, check_writable, unique_stems
from sa3d_nerfstudio.jobs import job_digest, print_progress_so_far, run_in_folder, run_scene_job
from sa3d_nerfstudio.overview import Overview, overview_of, write_overview
from sa3d_nerfstudio.pipeline import BaseReference, SA3DPipeline, SA3DPipelineConfig
from sa3d_nerfstudio.prompts.config import ObjectPrompts
from sa3d_nerfstudio.segmentation.everything import SceneReport
from sa3d_nerfstudio.segmentation.progress import print_report, run_with_progress
from sa3d_nerfstudio.segmentation.session import NO_SUM, SegmentationSession
from sa3d_nerfstudio.segmentation.settings import SessionSettings
from sa3d_nerfstudio.segmenters.base import Segmenter
from sa3d_nerfstudio.terminal import confirm, say

tell_as_data(ObjectPrompts)

LOCAL = "127.0.0.1"
"""Default address of the viewer of ``ns-train sa3d``: reachable from this machine only."""
QUICK_ON_A_CPU = ("mobile-sam", "grabcut", "oracle")
"""Segmenters that are fast enough on a CPU: 1.5 s a view for MobileSAM, and 18 s for sam-vit-b."""


def _default_machine() -> MachineConfig:
    return MachineConfig(device_type="cuda" if torch.cuda.is_available() else "cpu")


@dataclass
class SA3DTrainerConfig(TrainerConfig):
    """Segment objects in a trained run.

    ``--load-dir`` names the run: its folder, its checkpoint folder, or its config.yml. Everything else about it,
    data set and model included, is read from there.
    """

    _target: type = field(default_factory=lambda: SA3DTrainer)
    pipeline: SA3DPipelineConfig = field(default_factory=SA3DPipelineConfig)  # type: ignore[assignment]
    """Prompt, segmenter and lifting"""
    machine: MachineConfig = field(default_factory=_default_machine)
    """Machine configuration"""
    resumed: Annotated[bool, tyro.conf.Suppress] = False
    """Whether the loaded run is a sa3d run with objects."""

    def set_timestamp(self) -> None:
        """Read the base run, then set the timestamp as nerfstudio does.

        ``ns-train`` calls this first, before the configuration is shown or saved; it is complete from here on.
        """
        if self.pipeline.everything_text.strip(" ."):
            self.pipeline.everything = True
        restored = self.load_dir is not None or self.pipeline.base is None
        started = rank_in_environment()
        CONSOLE.quiet = CONSOLE.quiet or (started is not None and started[0] > 0)
        if restored:
            self.restore_base()
        super().set_timestamp()
        if restored:
            self._continue_in_place()

    def restore_base(self) -> None:
        """Take model, data and checkpoint from the run that ``load_dir`` names.

        Raises:
            SA3DError: The run or a CUDA device is missing, or several processes cannot share the job.
        """
        if check_launch(self.machine) > 1:
            self._check_several()
        if self.machine.device_type == "cuda" and not torch.cuda.is_available():
            raise SA3DError("CUDA was asked for, but torch finds no CUDA device: use --machine.device-type cpu.")
        if self.load_dir is None:
            raise SA3DError("there is no run to segment: give one with --load-dir outputs/SCENE/METHOD/TIME.")
        run = find_run(self.load_dir, self.load_step, self.data)
        if run.is_sa3d and self.pipeline.threshold == SessionSettings.threshold:
            # No other threshold was given: keep the run's.
            self.pipeline.threshold = run.config.pipeline.threshold  # type: ignore[attr-defined]
        self.pipeline.base = _reference(run)
        self.pipeline.datamanager = run.config.pipeline.datamanager
        self.pipeline.model = run.config.pipeline.model
        self.pipeline.datamanager._target = self.pipeline.base.datamanager_target
        self.data = self.pipeline.datamanager.data
        self.load_dir, self.load_step = run.checkpoint_path.parent, run.step
        self.resumed = run.is_sa3d

    def _check_several(self) -> None:
        """Check that several processes can share the job.

        Raises:
            SA3DError: They cannot.
        """
        if self.pipeline.lifting != "evidence":
            raise SA3DError(NO_SUM)
        if self.pipeline.everything:
            raise SA3DError(
                "--pipeline.everything is for one process: leave out --machine.num-devices and --machine.num-machines, "
                "and start it without torchrun."
            )

    def _continue_in_place(self) -> None:
        """Continue an unfinished run of the same base in the folder that this run will write to."""
        assert self.pipeline.base is not None
        run = None if self.resumed else run_in_folder(self.get_base_dir(), self.pipeline.base.checkpoint)
        if run is not None:
            self.load_dir, self.load_step = run.checkpoint_path.parent, run.step
            self.resumed = True

    def print_to_terminal(self) -> None:
        """Print the run, the data and the segmenter; the whole configuration is in config.yml."""
        base = self.pipeline.base
        assert base is not None
        CONSOLE.rule("sa3d")
        say(f"run         {base.method}, step {base.step}: {base.config}")
        if self.resumed:
            say(f"continued   {self.load_dir}")
        say(f"data        {self.data or 'no images'}")
        slow = self.machine.device_type == "cpu" and self.pipeline.segmenter not in QUICK_ON_A_CPU
        hint = " (slow there: --pipeline.segmenter mobile-sam embeds a view ten times as fast)" if slow else ""
        say(f"segmenter   {self.pipeline.segmenter} on {self.machine.device_type}{hint}")

    def save_config(self) -> None:
        """Do nothing: ``ns-train`` calls this before the job; :meth:`SA3DTrainer.save` writes config.yml."""

    def write(self, folder: Path) -> None:
        """Write config.yml, as nerfstudio's tools read it."""
        saved = copy.copy(self)
        # Options of this process only: they must not apply when the run is loaded.
        saved.load_config = saved.load_checkpoint = None
        saved.resumed = False
        with atomic_path(folder / "config.yml") as path:
            path.write_text(yaml.dump(saved), "utf8")


def _reference(run: BaseRun) -> BaseReference:
    """Reference to a run; for a sa3d run, its own reference to the base run."""
    if run.is_sa3d:
        return run.config.pipeline.base  # type: ignore[attr-defined]
    return BaseReference(
        method=str(run.config.method_name),
        config=run.config_path.absolute(),
        checkpoint=run.checkpoint_path.absolute(),
        step=run.step,
        datamanager_target=run.config.pipeline.datamanager._target,
    )


class SA3DTrainer(Trainer):
    """Restores the base run and segments in it. There are no training steps."""

    config: SA3DTrainerConfig
    pipeline: SA3DPipeline  # type: ignore[assignment]

    def __init__(self, config: SA3DTrainerConfig, local_rank: int = 0, world_size: int = 1) -> None:
        CONSOLE.quiet = CONSOLE.quiet or comms.get_rank() > 0
        super().__init__(config, local_rank, world_size)
        self.ranks = Ranks()
        """The processes that segment together."""

    def setup(self, test_mode: Literal["test", "val", "inference"] = "val") -> None:
        """Join the other processes, if there are any, and restore the run."""
        machine = self.config.machine
        self.ranks = join(machine.device_type, machine.dist_url, self.local_rank)
        if self.ranks.size > 1 and machine.device_type == "cuda":
            self.device = f"cuda:{torch.cuda.current_device()}"
        with self.ranks.guarded():
            self._set_up(test_mode)

    def _set_up(self, test_mode: Literal["test", "val", "inference"]) -> None:
        if not self.config.is_viewer_enabled() and not self._has_job:
            raise SA3DError(
                "there is nothing to do: give a prompt (--pipeline.prompt.view IMAGE --pipeline.prompt.points X Y), "
                "take the whole scene apart (--pipeline.everything True), or open the viewer with --vis viewer."
            )
        self.restore(test_mode)

    def restore(self, test_mode: Literal["test", "val", "inference"] = "val") -> None:
        """Build the pipeline and load the base run's checkpoint, or that of a sa3d run with its objects."""
        self.pipeline = self.config.pipeline.setup(device=self.device, test_mode=test_mode, world_size=1, local_rank=0)
        self.pipeline.ranks = self.ranks
        assert self.config.load_dir is not None
        loaded = load_checkpoint(self.config.load_dir / f"step-{self.config.load_step:09d}.ckpt")
        self.pipeline.load_pipeline(loaded["pipeline"], loaded["step"])
        self.pipeline.cache_folder = self.base_dir.parent / "cache"
        self.step = self._start_step = loaded["step"]
        self.optimizers = Optimizers({}, {})
        self.callbacks = []
        self.viewer_state = None

    def _open_viewer(self) -> None:
        from nerfstudio.viewer.viewer import Viewer

        assert self.config.data is not None
        self.base_dir.mkdir(parents=True, exist_ok=True)
        self.viewer_state = Viewer(
            self.config.viewer,
            log_filename=self.base_dir / self.config.viewer.relative_log_filename,
            datapath=self.config.data,
            pipeline=self.pipeline,
            trainer=self,
            train_lock=self.train_lock,
            share=self.config.viewer.make_share_url,
        )
        logging = copy.deepcopy(self.config.logging)
        logging.local_writer.enable = False
        writer.setup_local_writer(logging, max_iter=1, banner_messages=self.viewer_state.viewer_info)

    def train(self) -> None:
        """Segment the objects that the configuration prompts, save, and return when the viewer is left.

        Only the first of several processes saves, prints and has the viewer; the others wait for it to end.
        """
        with self.ranks.guarded():
            self._train()
            self.ranks.close()

    def _train(self) -> None:
        self.training_state = "completed"
        if self.config.pipeline.prompt.is_given:
            self.segment()
        if self.config.pipeline.everything:
            self.segment_everything()
        if self._has_job and self.config.viewer.quit_on_train_completion:
            return
        # After the job, which changes masks that a viewer would be rendering.
        if self.config.is_viewer_enabled() and self.ranks.is_first:
            self._open_viewer()
            self._init_viewer_state()
            self._update_viewer_state(self.step)
            try:
                # Ctrl-C is the usual way to leave, but nerfstudio would print a traceback.
                with contextlib.suppress(KeyboardInterrupt):
                    self._train_complete_viewer()
            finally:
                # A running segmentation stops at the next view, and its result is saved.
                self.pipeline.segment_panel.close()

    @property
    def _has_job(self) -> bool:
        """Whether the configuration gives objects to segment before a viewer is opened."""
        return self.config.pipeline.prompt.is_given or self.config.pipeline.everything

    def segment_everything(self) -> SceneReport | None:
        """Segment all objects of the scene, or those that remain; the run is saved as they are finished.

        Returns:
            Report of the job; None if it had been finished before.

        Raises:
            SA3DError: The run cannot be saved, or the segmenter's weights are missing.
        """
        check_writable(self.base_dir, self.pipeline.checkpoint_bytes())
        report = run_scene_job(self.pipeline, self._segmenter, lambda: self.save(last=False), CONSOLE)
        self.save()
        if not self.pipeline.model.masks.scene.get("done"):
            say(f"unfinished  the same command goes on from here with --load-dir {shlex.quote(str(self.base_dir))}")
        return report

    def segment(self) -> dict[str, SegmentationSession]:
        """Segment the objects that the configuration prompts, one after another, each with a progress bar.

        Each is saved when it is finished. Objects finished before with the same prompts and settings are unchanged, and
        so is an object whose new segmentation is empty.

        Returns:
            Session of each object that has been segmented, by name.

        Raises:
            SA3DError: A prompt is invalid, the run cannot be saved, or objects are empty; all others are saved then.
        """
        masks, ranks = self.pipeline.model.masks, self.ranks
        prompts = {prompted.name: prompted for prompted in ranks.share(self.pipeline.prompts_from_config)}
        jobs, kept = self._finished(prompts)
        sessions: dict[str, SegmentationSession] = {}
        # The segmenter is built once, and only if an object remains; all prompts are tried before the first long loop
        # begins.
        segmenter = None
        if len(kept) < len(prompts):
            segmenter = self._segmenter()
            # The user may have accepted another segmenter, by which some objects are finished.
            jobs, by_this = self._finished(prompts)
            kept = [name for name in prompts if name in kept or name in by_this]
        for name in (name for name in prompts if name not in kept):
            sessions[name] = self.pipeline.session(name, segmenter, register=False, ranks=ranks)
            for view, prompt in prompts[name].views.items():
                sessions[name].prompt(view, prompt)
        if self.config.resumed:
            print_progress_so_far(kept, list(sessions), masks.names)
        # The loop must not begin if its result cannot be saved.
        if ranks.is_first:
            check_writable(self.base_dir, self.pipeline.checkpoint_bytes())
        empty: list[str] = []
        for name, session in sessions.items():
            if len(prompts) > 1:
                CONSOLE.rule(Text(name))
            try:
                complete = run_with_progress(session, CONSOLE)
            except EmptyObjectError as error:
                if len(prompts) == 1:
                    raise
                say(f"warning: {name}: {error}")
                empty.append(name)
                continue
            masks[name] = session.grid
            self.pipeline.remember(name, session)
            if complete:
                masks.finished[name] = jobs[name]
            self.save({name: session}, several=len(prompts) > 1, last=False)
            print_report(session, CONSOLE)
            remaining = list(sessions)[list(sessions).index(name) + 1 :]
            if not complete and remaining:
                self._print_saved()
                raise SA3DError(
                    f"stopped before {', '.join(remaining)}: segment the rest with --load-dir {self.base_dir} and the "
                    "same prompts."
                )
        if not sessions:
            self.save()
        elif len(empty) < len(sessions):
            self._print_saved()
        if empty:
            raise SA3DError(
                f"{len(empty)} of {len(prompts)} objects are empty, with no surface behind their prompted pixels: "
                f"prompt another view of {', '.join(empty)}."
            )
        return sessions

    def _finished(self, prompts: Mapping[str, ObjectPrompts]) -> tuple[dict[str, str], list[str]]:
        """Checksum of each object's prompts and settings, and names of the objects that are finished with them."""
        config, finished = self.config.pipeline, self.pipeline.model.masks.finished
        size = self.pipeline.views.long_side
        jobs = {name: job_digest(prompted, config, size) for name, prompted in prompts.items()}
        kept = [name for name in jobs if finished.get(name) == jobs[name] and not config.redo]
        return jobs, self.ranks.share(partial(list, kept))

    def _segmenter(self) -> Segmenter:
        """The configured segmenter, or another that the user accepts where its weights are unavailable."""
        # Rank 0 downloads missing weights, and asks the user.
        self.config.pipeline.segmenter = self.ranks.share(self._agreed_segmenter)
        return self.pipeline.make_segmenter()

    def _agreed_segmenter(self) -> str:
        """Name of a segmenter that can be built: the configured one, or another that the user accepts."""
        try:
            self.pipeline.make_segmenter()
            return self.config.pipeline.segmenter
        except MissingWeightsError as error:
            if not confirm(f"{error}\nSegment with grabcut instead?", CONSOLE, sys.stdin):
                raise
        say("segmenter   grabcut")
        return "grabcut"

    def save(
        self, sessions: dict[str, SegmentationSession] | None = None, several: bool = False, last: bool = True
    ) -> None:
        """Write the run: checkpoint, data parser transform and config.yml, and then an overview of each object.

        Without room for all of it, the base weights are left out; without room for the masks either, the run goes to
        the system's folder for temporary files.

        Args:
            sessions: Sessions of segmented objects, by name, whose overviews are written.
            several: Whether the file names of overviews contain the object's name.
            last: Whether the saved run and the command for the next step are printed.

        Raises:
            SA3DError: The run cannot be written to its folder; the message names the folder that holds it instead.
        """
        sessions = sessions or {}
        several = several or len(sessions) > 1
        if self.ranks.is_first:
            self._write_or_rescue()
        # Overviews come last: the run is whole without them.
        for name, session in sessions.items():
            overview = overview_of(session)
            if self.ranks.is_first:
                self._write_overview(name, overview, several)
        self.pipeline.views.cache.flush()
        if last:
            self._print_saved()

    def _print_saved(self) -> None:
        """Print the saved run and the command for the next step, once for all processes."""
        if not self.ranks.is_first:
            return
        config = self.base_dir / "config.yml"
        say(f"saved       {config}")
        export = f"ns-export {self.pipeline.model.EXPORT} --load-config {shlex.quote(str(config))}"
        say(f"next        {export} --output-dir exports")

    def _write_or_rescue(self) -> None:
        """Write the run; without room for it, leave out the base weights, or use the folder for temporary files.

        Raises:
            SA3DError: The run is not in its folder; the message names the folder that holds it.
        """
        config, base = self.config, self.config.pipeline.base
        assert base is not None
        try:
            return self._write()
        except SA3DError as error:
            reason = error
        save_base, output_dir = config.pipeline.save_base, config.output_dir
        folders = self.base_dir, self.checkpoint_dir
        if save_base:
            config.pipeline.save_base = False
            try:
                self._write()
            except SA3DError as error:
                reason = error
            else:
                say(
                    f"note        saved without the base weights, for which there was no room: leave {base.checkpoint} "
                    "where it is"
                )
                return None
        try:
            config.output_dir = Path(tempfile.mkdtemp(prefix="sa3d-"))
            self.base_dir, self.checkpoint_dir = config.get_base_dir(), config.get_checkpoint_dir()
            rescued = self.base_dir
            self._write()
        finally:
            # The next save goes to the run's folder again, where there may be room by then.
            config.pipeline.save_base, config.output_dir = save_base, output_dir
            self.base_dir, self.checkpoint_dir = folders
        sentence = str(reason).split(": make room", maxsplit=1)[0]
        raise SA3DError(f"{sentence}: make room there; the objects are safe for now in {rescued}.") from reason

    def _write(self) -> None:
        self.save_checkpoint(self.step)
        outputs = getattr(self.pipeline.datamanager, "train_dataparser_outputs", None)
        if outputs is not None:
            with atomic_path(self.base_dir / "dataparser_transforms.json") as path:
                outputs.save_dataparser_transform(path)
        self.config.write(self.base_dir)

    def _write_overview(self, name: str, overview: Overview, several: bool) -> None:
        """Write an object's overview, or print why there is none."""
        names = self.pipeline.model.masks.names
        suffix = f"-{unique_stems(names)[names.index(name)]}" if several else ""
        try:
            write_overview(self.base_dir / f"overview{suffix}.png", *overview)
        except (SA3DError, OSError, ValueError) as error:
            say(f"warning: there is no overview of {name!r} ({one_line(error)}).")

    def save_checkpoint(self, step: int) -> None:
        """Save masks and base weights, as nerfstudio's tools read them."""
        self.pipeline.save_checkpoint(self.checkpoint_dir / f"step-{step:09d}.ckpt", step)


def default_config() -> SA3DTrainerConfig:
    """Default configuration of ``ns-train sa3d``."""
    config = SA3DTrainerConfig(method_name="sa3d", vis="viewer", optimizers={})
    # By default, prompts and scenes stay on this machine.
    config.viewer = dataclasses.replace(config.viewer, websocket_host=LOCAL, quit_on_train_completion=False)
    return config
