"""Means and worst scenes, counted by hand, in the table and in JSON."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from sa3d_nerfstudio.evaluation.report import BenchmarkReport, ImageScore, SceneScore


def scene(name: str, ious: list[float], reference: bool) -> SceneScore:
    images = [
        ImageScore(f"{name}{place}", value, 0.5 + value / 2, value / 2, reference and place == 0, place > 0)
        for place, value in enumerate(ious)
    ]
    return SceneScore(name, "config.yml", images, f"{name}0", {"mask pixels": 9}, {"used": 3, "prompt": 1}, 160, 2.0)


def report(reference: bool = True) -> BenchmarkReport:
    whole = BenchmarkReport("Mini", ("a", "b"), ("rule",), 777, {"segmenter": "oracle"})
    whole.scenes = [scene("a", [1.0, 0.5, 0.6], reference), scene("b", [0.8, 0.2], reference)]
    return whole


def test_scenes_count_alike_however_many_images_they_have() -> None:
    summary = report().summary()
    assert summary["mean"]["iou"] == pytest.approx((0.7 + 0.5) / 2)
    assert summary["mean"]["accuracy"] == pytest.approx(0.5 + 0.6 / 2)
    assert summary["mean"]["boundary_iou"] == pytest.approx(0.3)
    assert summary["mean_without_reference"]["iou"] == pytest.approx((0.55 + 0.2) / 2)
    assert summary["worst"] == {"scene": "b", "iou": pytest.approx(0.5)}
    assert summary["worst_without_reference"] == {"scene": "b", "iou": pytest.approx(0.2)}


def test_without_a_scored_reference_there_is_one_mean() -> None:
    assert set(report(reference=False).summary()) == {"mean", "worst"}


def test_a_scene_of_the_reference_alone_has_no_other_figure() -> None:
    alone = scene("a", [0.9], reference=True)
    assert alone.mean() is not None
    assert alone.mean(with_reference=False) is None


def test_the_file_tells_how_it_was_made(tmp_path: Path) -> None:
    whole = report()
    whole.write(tmp_path / "new" / "scores.json")
    content = json.loads((tmp_path / "new" / "scores.json").read_text())
    assert content["complete"] is True
    assert content["seed"] == 777
    assert content["settings"] == {"segmenter": "oracle"}
    assert {"python", "torch", "nerfstudio", "device"} <= set(content["versions"])
    assert content["command"]
    assert content["scenes"][0]["mean"]["iou"] == pytest.approx(0.7)
    assert content["scenes"][0]["mean_without_reference"]["iou"] == pytest.approx(0.55)
    assert [image["iou"] for image in content["scenes"][1]["images"]] == [0.8, 0.2]


def test_the_table_has_every_scene_and_says_what_is_missing() -> None:
    whole = report()
    whole.published = ("a", "b", "c", "d")
    whole.missing, whole.failed = {"c": "there is no run of it"}, {"d": "the mask is empty"}
    printed = io.StringIO()
    whole.print(Console(file=printed, width=200))
    text = printed.getvalue()
    row = next(line for line in text.splitlines() if line.startswith("│ a "))
    for cell in ("70.0", "85.0", "35.0", "55.0", "50.0 a1"):
        assert cell in row
    assert "60.0" in next(line for line in text.splitlines() if "mean of 2" in line)
    for sentence in ("missing c: there is no run", "failed  d: the mask is empty", "2 of the 4 scenes", "seed 777"):
        assert sentence in text
    assert not whole.is_complete
