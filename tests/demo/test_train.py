"""The demo's nerfacto."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from sa3d_nerfstudio.demo.train import small_nerfacto


def test_batches_are_made_in_one_process_whichever_nerfstudio_it_is(tmp_path: Path):
    """Setting an option that nerfstudio lacks has no effect, and four processes would share two cores."""
    manager: Any = small_nerfacto(tmp_path / "scene", tmp_path / "runs", "T", 10).pipeline.datamanager
    assert set(vars(manager)) <= {field.name for field in fields(manager)}
    processes = {name: getattr(manager, name, 1) for name in ("num_processes", "dataloader_num_workers")}
    assert set(processes.values()) == {1}
