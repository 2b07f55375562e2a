"""Several gloo processes on a CPU against one: the same masks, and the same end for all of them."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from sa3d_nerfstudio.distributed.ranks import Ranks
from tests.distributed import jobs
from tests.processes import run_ranks


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """What one process finds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "Forever", lambda: patch)
        return jobs.segment(Ranks())


@pytest.mark.parametrize("size", [2, 3])
def test_several_processes_find_what_one_does(size: int, alone: dict[str, Any], tmp_path: Path):
    ended = run_ranks(jobs.segment, size, tmp_path)
    assert ended.codes == [0] * size, ended.printed
    first = ended.results[0]
    for name, one in alone["balls"].items():
        several = first["balls"][name]
        assert one["masks"].float().mean() > 0.02
        assert (several["masks"] == one["masks"]).float().mean() >= 0.999
        # In the first pass less is known where views are visited at a time; in the last, all views are used by both.
        assert last_pass(several["records"]) == last_pass(one["records"])
        assert several["steps"] == one["steps"]
        assert several["changes"][-1] == pytest.approx(one["changes"][-1], abs=1e-6)
        assert several["rays"] == pytest.approx(one["rays"], rel=0.05)
        # All ranks hold the same, bit by bit, of which what is decided is made.
        for other in ended.results[1:]:
            assert torch.equal(other["balls"][name]["field"], several["field"])
            assert other["balls"][name]["records"] == several["records"]
    one, several = alone["splats"], first["splats"]
    assert one["masks"].float().mean() > 0.02
    assert (several["masks"] == one["masks"]).float().mean() >= 0.999
    # Each has rendered its own views; the prompted one is rank 0's in any case.
    for rank, result in enumerate(ended.results):
        assert result["splats"]["rendered"] == [view for view in range(9) if view % size == rank]


def last_pass(records: list[tuple[int, str, str]]) -> list[tuple[str, str]]:
    """Name and state of each view in the last pass."""
    last = max(number for number, _, _ in records)
    return [(name, state) for number, name, state in records if number == last]


def test_a_prompted_view_is_rendered_by_all(tmp_path: Path):
    _, expected = jobs.render_together(Ranks())
    ended = run_ranks(jobs.render_together, 3, tmp_path)
    assert ended.codes == [0, 0, 0], ended.printed
    rays = [count for count, _ in ended.results]
    assert sum(rays) == 30 * 22
    assert max(rays) < 0.45 * 30 * 22
    for image, alone in zip(ended.results[0][1], expected, strict=True):
        assert torch.allclose(image, alone, atol=1e-3)


def test_a_pass_sends_two_grids(tmp_path: Path):
    ended = run_ranks(jobs.count_bytes, 2, tmp_path)
    assert ended.codes == [0, 0], ended.printed
    for passes, grids in ended.results:
        assert passes > 1
        assert grids == pytest.approx(2 * (passes - 1), abs=0.1)


def test_what_ranks_tell_each_other(tmp_path: Path):
    ended = run_ranks(jobs.exchange, 3, tmp_path)
    assert ended.codes == [0, 0, 0], ended.printed
    for rank, told in enumerate(ended.results):
        assert told["shared"] == "by 0"
        assert told["gathered"] == [0.0, 1.0, 2.0]
        assert told["collected"] == ([0, 1, 2] if rank == 0 else [])
        assert told["merged"] == [0, 10, 20, 30, 40]
        assert told["sum"] == [6.0, [[3.0, 3.0], [3.0, 3.0]]]
        assert told["any"] == (True, False)
        assert told["own"] == [view for view in (4, 3, 2, 1, 0) if view % 3 == rank]
        assert told["images"] == ([0.0, 0.1, 0.2, 0.3, 0.4] if rank == 0 else [])
        assert told["size"] == (rank, 3, rank, 3)


def test_what_ranks_are_told_is_read_as_data(tmp_path: Path):
    ended = run_ranks(jobs.tell_code, 2, tmp_path, tmp_path / "mark")
    assert ended.codes[1] != 0
    assert "Weights only load failed" in ended.printed[0] + ended.printed[1]
    assert not (tmp_path / "mark").exists()


def test_views_around_are_the_first_ranks(tmp_path: Path):
    expected = jobs.look_around(Ranks())
    ended = run_ranks(jobs.look_around, 2, tmp_path)
    assert ended.codes == [0, 0], ended.printed
    # Their names stand for their poses, which follow from sums in another order.
    expected_states = sorted(state for _, state in last_pass(expected["records"]))
    for result in ended.results:
        around = [state for name, state in last_pass(result["records"]) if "around" in name]
        assert around == ["used"] * 4
        assert sorted(state for _, state in last_pass(result["records"])) == expected_states
        assert (result["masks"] == expected["masks"]).float().mean() > 0.99


def test_waiting_ranks_outlast_the_timeout_of_collectives(tmp_path: Path):
    ended = run_ranks(jobs.keep_waiting, 2, tmp_path, timedelta(seconds=2), 6.0)
    assert ended.codes == [0, 0], ended.printed
    assert ended.results == [[2.0], [2.0]]


@pytest.mark.parametrize("after", [1, 9])
def test_a_killed_rank_ends_all_with_one_sentence(after: int, tmp_path: Path):
    begun = time.monotonic()
    ended = run_ranks(jobs.die, 3, tmp_path, tmp_path, after)
    assert time.monotonic() - begun < 60
    assert ended.codes == [1, -9, 1]
    told = ended.printed[0] + ended.printed[2]
    assert "error: rank 1 of 3, on " in told
    assert "was killed" in told
    assert "the same command goes on from there with --load-dir RUN" in told
    assert told.count("error: ") == 1
    assert (tmp_path / "saved").read_text() == "an object"


def test_a_launcher_that_ends_the_others_has_them_tell_why(tmp_path: Path):
    ended = run_ranks(jobs.be_terminated, 2, tmp_path, tmp_path)
    assert ended.codes == [1, -9]
    assert ended.printed[0].count("error: rank 1 of 2, on ") == 1
    assert not (tmp_path / "handled").exists()


def test_a_rank_without_memory_ends_all_with_one_sentence(tmp_path: Path):
    begun = time.monotonic()
    ended = run_ranks(jobs.run_out_of_memory, 2, tmp_path)
    assert time.monotonic() - begun < 60
    assert ended.codes == [1, 1]
    assert "error: rank 1 of 2, on " in ended.printed[1]
    assert "the GPU's memory is full" in ended.printed[1]
    assert "error: " not in ended.printed[0]


def test_a_mistake_of_all_is_told_once(tmp_path: Path):
    ended = run_ranks(jobs.be_wrong, 2, tmp_path)
    assert ended.codes == [1, 1]
    assert "error: the prompt selects nothing in 000.png" in ended.printed[0]
    assert "error: " not in ended.printed[1]


@pytest.mark.parametrize("number_of_pass", [1, 2])
def test_all_stop_where_one_is_asked_to(number_of_pass: int, tmp_path: Path):
    ended = run_ranks(jobs.stop, 2, tmp_path, number_of_pass)
    assert ended.codes == [0, 0], ended.printed
    (stopped, hit, last), other = ended.results
    assert stopped
    assert other[0]
    assert last == other[2] == number_of_pass
    assert hit.sum() > 0
    assert torch.equal(hit, other[1])


def test_the_published_update_is_refused(tmp_path: Path):
    ended = run_ranks(jobs.take_gradient_steps, 2, tmp_path)
    assert ended.codes == [1, 1]
    assert "error: --pipeline.lifting gradient takes the views one after another" in ended.printed[0]
    assert "error: " not in ended.printed[1]
