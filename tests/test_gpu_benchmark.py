"""The command for the day a GPU is there, in small on a CPU: ``python -m benchmarks.gpu --tiny``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import Options, Part, Run, click, main, write_table

pytestmark = pytest.mark.slow


@pytest.mark.timeout(1800)
def test_all_parts_pass(tmp_path: Path):
    options = Options(tmp_path / "gpu.md", work=tmp_path / "work", tiny=True)
    assert main(options) == 0, (tmp_path / "gpu.md").read_text()
    table = options.output.read_text()
    rows = [line for line in table.splitlines() if "| passed |" in line]
    for words in ("nerfacto train", "splatfacto segment", "instant-ngp exports", "visits", "tests marked gpu"):
        assert any(words in row for row in rows), words
    exported = {path.name for path in (options.work / "runs").rglob("exports/*/*")}
    assert {"point_cloud.ply", "splat.ply", "tsdf_mesh.ply", "object.ply"} <= exported
    assert json.loads((options.work / "visits.json").read_text())["operations a visit"] > 10


def test_what_has_passed_is_not_done_again_and_what_fails_is_told(tmp_path: Path):
    options = Options(tmp_path / "gpu.md", work=tmp_path / "work", tiny=True, minutes=0.05)
    mark = tmp_path / "mark"
    parts = [
        Part("once", [sys.executable, "-c", f"open({str(mark)!r}, 'x')"]),
        Part("bad", [sys.executable, "-c", "raise SystemExit('out of | luck')"], after=("once",)),
        Part("after", [sys.executable, "-c", ""], after=("bad",)),
        Part("slow", [sys.executable, "-c", "import time; time.sleep(60)"]),
    ]
    for _ in range(2):
        run = Run(options)
        for part in parts:
            run.carry_out(part)
    assert {name: result.state for name, result in run.results.items()} == {
        "once": "passed", "bad": "failed", "after": "left out", "slow": "too slow",
    }  # fmt: skip
    write_table(run, options.output)
    table = options.output.read_text()
    assert "out of / luck" in table
    assert "needs bad" in table


def test_a_scene_without_truth_is_clicked_in_its_middle(shared_dir: Path):
    prompt, segmenter = click(shared_dir / "scenes" / "fern")
    assert prompt[-2:] == [504, 378]
    assert segmenter == ["--pipeline.segmenter", "grabcut"]
    prompt, segmenter = click(shared_dir / "scenes" / "desk")
    assert "oracle" in segmenter
