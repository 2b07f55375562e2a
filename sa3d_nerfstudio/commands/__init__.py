"""The ``sa3d`` command: subcommands for work that nerfstudio's own commands do not cover."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Union

import tyro

from sa3d_nerfstudio.commands.demo import Demo
from sa3d_nerfstudio.commands.doctor import Doctor
from sa3d_nerfstudio.commands.evaluate import Evaluate
from sa3d_nerfstudio.commands.export import Export
from sa3d_nerfstudio.commands.import_splats import ImportSplats
from sa3d_nerfstudio.commands.masks import Masks
from sa3d_nerfstudio.commands.turntable import Turntable
from sa3d_nerfstudio.errors import end_in_a_sentence

Commands = Union[
    Annotated[ImportSplats, tyro.conf.subcommand(name="import")],
    Annotated[Masks, tyro.conf.subcommand(name="masks")],
    Annotated[Export, tyro.conf.subcommand(name="export")],
    Annotated[Turntable, tyro.conf.subcommand(name="turntable")],
    Annotated[Evaluate, tyro.conf.subcommand(name="evaluate")],
    Annotated[Demo, tyro.conf.subcommand(name="demo")],
    Annotated[Doctor, tyro.conf.subcommand(name="doctor")],
]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``sa3d`` and end the process: status 0, 1 with an error in one sentence, or that of ``sa3d doctor``.

    Args:
        arguments: Command line after ``sa3d``; by default, that of the process.
    """
    end_in_a_sentence()
    # Commands import nerfstudio and other packages when they run: help is quick, and doctor works where imports fail.
    command = tyro.cli(
        Commands,  # type: ignore[arg-type]
        prog="sa3d",
        args=arguments,
        description="Import splats, export segmented objects, run benchmarks, try and check the installation.",
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
    )
    try:
        status = command.main()
    except KeyboardInterrupt:
        print("stopped by Ctrl-C; finished files are whole.", file=sys.stderr)
        status = 130
    sys.exit(status or 0)
