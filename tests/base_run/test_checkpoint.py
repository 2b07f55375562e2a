"""nerfstudio's checkpoints are read weights-only; damaged and foreign files raise one-sentence errors."""

from __future__ import annotations

import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nerfstudio.engine.optimizers import AdamOptimizerConfig, Optimizers, RAdamOptimizerConfig
from nerfstudio.engine.schedulers import (
    CosineDecaySchedulerConfig,
    ExponentialDecaySchedulerConfig,
    MultiStepSchedulerConfig,
)

from sa3d_nerfstudio.base_run.checkpoint import allow_nerfstudio_checkpoints, checkpoints_in, load_checkpoint
from sa3d_nerfstudio.errors import SA3DError

RUNS = Path(__file__).resolve().parents[3] / "shared" / "runs"
SCHEDULERS = {
    "exponential": ExponentialDecaySchedulerConfig(lr_final=1e-4, max_steps=10),
    "warm-up": ExponentialDecaySchedulerConfig(lr_final=1e-4, max_steps=10, warmup_steps=5),
    "cosine": CosineDecaySchedulerConfig(warm_up_end=1, max_steps=10),
    "multi-step": MultiStepSchedulerConfig(milestones=(2, 4)),
}


def trained_checkpoint() -> dict[str, Any]:
    """Checkpoint as nerfstudio's Trainer.save_checkpoint stores it after three steps, with each of its schedules."""
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({name: torch.nn.Linear(3, 2) for name in SCHEDULERS})
    optimizer_types = [AdamOptimizerConfig, RAdamOptimizerConfig]
    optimizers = Optimizers(
        {
            name: {"optimizer": optimizer_types[i % 2](lr=1e-2), "scheduler": scheduler}
            for i, (name, scheduler) in enumerate(SCHEDULERS.items())
        },
        {name: list(layer.parameters()) for name, layer in model.items()},
    )
    for _ in range(3):
        torch.stack([layer(torch.ones(3)).sum() for layer in model.values()]).sum().backward()
        for name in SCHEDULERS:
            optimizers.optimizer_step(name)
            optimizers.scheduler_step(name)
    return {
        "step": 2,
        "pipeline": {f"_model.{name}": value for name, value in model.state_dict().items()},
        "optimizers": {k: v.state_dict() for k, v in optimizers.optimizers.items()},
        "schedulers": {k: v.state_dict() for k, v in optimizers.schedulers.items()},
        "scalers": torch.amp.GradScaler("cpu", enabled=False).state_dict(),  # pyright: ignore
    }


@pytest.fixture
def checkpoint(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    saved = trained_checkpoint()
    path = tmp_path / "step-000000002.ckpt"
    torch.save(saved, path)
    return path, saved


def assert_equal(left: Any, right: Any) -> None:
    assert type(left) is type(right)
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_equal(left[key], right[key])
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right)
        for left_item, right_item in zip(left, right, strict=True):
            assert_equal(left_item, right_item)
    else:
        assert left == right


def assert_one_sentence(error: SA3DError, path: Path) -> None:
    message = str(error)
    assert str(path) in message
    assert "\n" not in message
    assert message.endswith(".") and not message.endswith("..")


def test_numpy_numbers_are_the_ones_that_need_it(checkpoint: tuple[Path, dict[str, Any]]) -> None:
    schedulers = checkpoint[1]["schedulers"]
    assert any(isinstance(lr, np.floating) for state in schedulers.values() for lr in state["_last_lr"])


def test_torch_load_reads_nerfstudio_checkpoints(checkpoint: tuple[Path, dict[str, Any]]) -> None:
    path, saved = checkpoint
    allow_nerfstudio_checkpoints()
    assert_equal(torch.load(path, map_location="cpu", weights_only=True), saved)


def test_refuses_without_the_declaration_and_anything_else_with_it(checkpoint: tuple[Path, dict[str, Any]]) -> None:
    path, _ = checkpoint
    safe = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        with pytest.raises(Exception, match="numpy"):
            torch.load(path, weights_only=True)
        torch.save({"step": 1, "pipeline": {}, "surprise": Path("x")}, path)
        with pytest.raises(SA3DError, match="cannot be read as plain weights"):
            load_checkpoint(path)
    finally:
        # Restore the classes that other modules have declared safe.
        torch.serialization.add_safe_globals(safe)


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_reads_what_the_other_numpy_wrote(tmp_path: Path, module: str) -> None:
    path = tmp_path / "step-000000001.ckpt"
    installed_module = np.float64(0).__reduce__()[0].__module__.encode()
    unzipped = tmp_path / "other"
    torch.save({"step": 1, "pipeline": {}, "lr": np.float64(0.25)}, path)
    with OpenedTorchFile(path, unzipped) as pickle:
        pickle.write_bytes(pickle.read_bytes().replace(installed_module, module.encode()))
    assert load_checkpoint(path)["lr"] == 0.25


class OpenedTorchFile:
    """Context manager that unpacks a torch file's data.pkl for editing, and repacks the file."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.path, self.folder = path, folder

    def __enter__(self) -> Path:
        with zipfile.ZipFile(self.path) as archive:
            self.names = archive.namelist()
            archive.extractall(self.folder)
        return next(self.folder.glob("*/data.pkl"))

    def __exit__(self, *_: object) -> None:
        with zipfile.ZipFile(self.path, "w") as archive:
            for name in self.names:
                archive.write(self.folder / name, name)


def test_round_trip(checkpoint: tuple[Path, dict[str, Any]]) -> None:
    path, saved = checkpoint
    assert_equal(load_checkpoint(path), saved)


def test_reads_a_trained_run() -> None:
    paths = sorted(RUNS.glob("desk/nerfacto/cpu/nerfstudio_models/step-*.ckpt"))
    if not paths:
        pytest.skip(f"no trained run at {RUNS}")
    loaded = load_checkpoint(paths[-1])
    assert loaded["step"] == int(paths[-1].stem.removeprefix("step-"))
    assert all(value.isfinite().all() for value in loaded["pipeline"].values())


def test_reads_a_checkpoint_without_checksums(checkpoint: tuple[Path, dict[str, Any]]) -> None:
    path, saved = checkpoint
    set_crc32 = getattr(torch.serialization, "set_crc32_options", None)
    if set_crc32 is None:
        pytest.skip("this torch always writes checksums")
    set_crc32(False)
    try:
        torch.save(saved, path)
    finally:
        set_crc32(True)
    assert_equal(load_checkpoint(path), saved)


def test_truncated_anywhere(checkpoint: tuple[Path, dict[str, Any]]) -> None:
    path, _ = checkpoint
    content = path.read_bytes()
    for length in [*range(200), *range(200, len(content), 61), *range(len(content) - 200, len(content))]:
        path.write_bytes(content[:length])
        with pytest.raises(SA3DError, match="incomplete or damaged") as caught:
            load_checkpoint(path)
        assert_one_sentence(caught.value, path)


def test_flipped_bytes(checkpoint: tuple[Path, dict[str, Any]]) -> None:
    path, saved = checkpoint
    content = path.read_bytes()
    rng = random.Random(0)
    refused = 0
    for _ in range(2500):
        damaged = bytearray(content)
        for position in rng.sample(range(len(content)), rng.choice([1, 1, 1, 4])):
            damaged[position] ^= rng.randrange(1, 256)
        path.write_bytes(damaged)
        try:
            loaded = load_checkpoint(path)
        except SA3DError as error:
            assert_one_sentence(error, path)
            refused += 1
        else:
            assert_equal(loaded, saved)  # the damage was in padding or in a date
    assert refused > 500


def test_damage_within_the_weights_of_a_trained_run(tmp_path: Path) -> None:
    paths = sorted(RUNS.glob("desk/nerfacto/cpu/nerfstudio_models/step-*.ckpt"))
    if not paths:
        pytest.skip(f"no trained run at {RUNS}")
    content = bytearray(paths[-1].read_bytes())
    content[len(content) // 2] ^= 1
    path = tmp_path / paths[-1].name
    path.write_bytes(content)
    with pytest.raises(SA3DError, match="checksum"):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [{"state_dict": {}}, [1, 2], {"step": "1", "pipeline": {}}, {"step": 1}])
def test_foreign_torch_file(tmp_path: Path, content: object) -> None:
    path = tmp_path / "step-000000001.ckpt"
    torch.save(content, path)
    with pytest.raises(SA3DError, match="not a nerfstudio checkpoint") as caught:
        load_checkpoint(path)
    assert_one_sentence(caught.value, path)


def test_names_the_other_checkpoints(checkpoint: tuple[Path, dict[str, Any]]) -> None:
    path, _ = checkpoint
    newer = path.with_name("step-000000007.ckpt")
    newer.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(SA3DError, match="--load-step 2"):
        load_checkpoint(newer)
    with pytest.raises(SA3DError, match=r"no checkpoint .*--load-step 2 or 7"):
        load_checkpoint(path.with_name("step-000000009.ckpt"))


def test_missing_and_not_a_file(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere" / "step-000000001.ckpt", tmp_path):
        with pytest.raises(SA3DError, match="no checkpoint"):
            load_checkpoint(path)


def test_checkpoints_in_ignores_other_files(tmp_path: Path) -> None:
    for name in ["step-000000010.ckpt", "step-000000009.ckpt", "step-000000011.ckpt.tmp", "notes.txt", "step-1.ckpt"]:
        (tmp_path / name).touch()
    (tmp_path / "step-000000099.ckpt").mkdir()
    assert list(checkpoints_in(tmp_path)) == [9, 10]
