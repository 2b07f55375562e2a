"""The GPU benchmark, at a small size on a CPU: ``python -m benchmarks.gpu --tiny``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import Options, Part, Run, click, write_table
from tests.subprocesses import run

pytestmark = pytest.mark.slow


def test_all_parts_pass(tmp_path: Path):
    options = Options(tmp_path / "gpu.md", work=tmp_path / "work", tiny=True)
    words = ("-m", "benchmarks.gpu", "--tiny", "--output", options.output, "--work", options.work)
    # A separate process, because the benchmark forks its parts and this process has threads.
    done = run(sys.executable, *words, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    table = options.output.read_text()
    rows = [line for line in table.splitlines() if "| passed |" in line]
    for words in ("nerfacto train", "splatfacto segment", "instant-ngp exports", "visits", "tests marked gpu"):
        assert any(words in row for row in rows), words
    exported = {path.name for path in (options.work / "runs").rglob("exports/*/*")}
    assert {"point_cloud.ply", "splat.ply", "tsdf_mesh.ply", "object.ply"} <= exported
    assert json.loads((options.work / "visits.json").read_text())["operations a visit"] > 10


@pytest.mark.parametrize("tiny", [False, True])
def test_what_has_passed_is_not_done_again_and_what_fails_is_told(tiny: bool, tmp_path: Path):
    options = Options(tmp_path / "gpu.md", work=tmp_path / "work", tiny=tiny, minutes=0.05)
    mark = tmp_path / "mark"
    parts = [
        Part("once", [sys.executable, "-c", f"open({str(mark)!r}, 'x')"]),
        Part("bad", [sys.executable, "-c", "raise SystemExit('out of | luck')"], after=("once",)),
        Part("after", [sys.executable, "-c", ""], after=("bad",)),
        Part("slow", [sys.executable, "-c", "import time; time.sleep(60)"]),
    ]
    for _ in range(2):
        runner = Run(options)
        for part in parts:
            runner.carry_out(part)
    assert {name: result.state for name, result in runner.results.items()} == {
        "once": "passed", "bad": "failed", "after": "left out", "slow": "too slow",
    }  # fmt: skip
    write_table(runner, options.output)
    table = options.output.read_text()
    assert "out of / luck" in table
    assert "needs bad" in table


def test_a_scene_without_truth_is_clicked_in_its_middle(shared_dir: Path):
    prompt, segmenter = click(shared_dir / "scenes" / "fern")
    assert prompt[-2:] == [504, 378]
    assert segmenter == ["--pipeline.segmenter", "grabcut"]
    prompt, segmenter = click(shared_dir / "scenes" / "desk")
    assert "oracle" in segmenter
