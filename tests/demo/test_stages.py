"""Stages run commands, follow their progress, and name the one that failed."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

from sa3d_nerfstudio.demo.stages import Stages, counted_share, training_share
from sa3d_nerfstudio.errors import SA3DError


def python(program: str) -> list[str]:
    return [sys.executable, "-c", program]


@pytest.fixture
def output() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def stages(tmp_path: Path, output: io.StringIO) -> Stages:
    return Stages(Console(file=output, width=100), tmp_path / "logs", number=2)


def test_a_command_leaves_its_output_in_a_log_and_its_name_on_the_screen(
    stages: Stages, tmp_path: Path, output: io.StringIO
) -> None:
    stages.run("say hello", python("print('hello')"))
    stages.run("say more", python("import sys; print('more', file=sys.stderr)"))
    logs = {path.name: path.read_text() for path in (tmp_path / "logs").iterdir()}
    assert logs.keys() == {"1-say-hello.log", "2-say-more.log"}
    assert logs["1-say-hello.log"].splitlines()[1:] == ["hello"]
    assert logs["2-say-more.log"].splitlines()[1:] == ["more"]
    assert "1/2 say hello" in output.getvalue() and "2/2 say more" in output.getvalue()
    assert "hello\n" not in output.getvalue().replace("say hello", "")


def test_a_failure_names_stage_log_and_last_lines_in_one_message(stages: Stages, tmp_path: Path) -> None:
    program = "import sys\nfor i in range(100): print('line', i)\nsys.exit(3)"
    with pytest.raises(SA3DError) as error:
        stages.run("break things", python(program))
    message = str(error.value)
    assert "'break things'" in message and "exit code 3" in message
    assert str(tmp_path / "logs" / "1-break-things.log") in message
    assert message.endswith("line 99") and "line 90" in message and "line 50" not in message


def test_progress_is_read_while_the_command_runs(stages: Stages) -> None:
    shares: list[float] = []

    def read(line: str) -> float | None:
        share = counted_share(line)
        if share is not None:
            shares.append(share)
        return share

    stages.run("count", python("for i in range(4): print(f'{i + 1}/4 file')\nprint('done')"), read)
    assert shares == [0.25, 0.5, 0.75, 1.0]


def test_an_interrupted_command_is_ended(stages: Stages) -> None:
    def interrupt(line: str) -> float | None:
        raise KeyboardInterrupt

    # The command would sleep for longer than the test may take.
    with pytest.raises(KeyboardInterrupt):
        stages.run("wait", python("import time; print('x', flush=True); time.sleep(1000)"), interrupt)


def test_threads_are_few_unless_the_user_says_otherwise(
    stages: Stages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    show = python("import os; print(os.environ['OMP_NUM_THREADS'])")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    stages.run("default", show)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    stages.run("own", show)
    logs = tmp_path / "logs"
    assert 1 <= int((logs / "1-default.log").read_text().splitlines()[-1]) <= 4
    assert (logs / "2-own.log").read_text().splitlines()[-1] == "7"


@pytest.mark.parametrize(
    ("line", "share"),
    [
        ("120 (40.00%)        81.231 ms            23 s, 412 ms", 0.4),
        ("0 (0.00%)", 0.0),
        ("Step (% Done)       Train Iter (time)", None),
        ("Saving checkpoints to: 1 (2.00%)", None),
    ],
)
def test_share_of_a_training_line(line: str, share: float | None) -> None:
    assert training_share(line) == share


def test_share_of_a_counted_line() -> None:
    assert counted_share("3/4 frame_0001.png\n") == 0.75
    assert counted_share("frame 3/4 done") is None
