"""Networks of the transformers package, loaded from folders of its form or from the Hugging Face hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from sa3d_nerfstudio.errors import MissingWeightsError, SA3DError, one_line
from sa3d_nerfstudio.segmenters.weights import downloads_are_forbidden

OLDEST = (4, 57)
"""Of the transformers package: it holds SAM 2, and thresholds of detections go by the names used here."""


@dataclass(frozen=True)
class PretrainedKind:
    """A kind of model of the transformers package."""

    name: str
    """For messages."""
    model_class: str
    processor_class: str
    model_types: tuple[str, ...]
    """What ``model_type`` in its ``config.json`` may say."""
    published: str
    """The model that is taken if none is named: its name on the Hugging Face hub."""
    extra: str
    """The extra of this package that brings what it needs."""
    option: str = "--pipeline.sam-checkpoint"
    """How the user names another model."""
    otherwise: str = "choose --pipeline.segmenter grabcut, which works without weights"
    """What works without it, as the end of a sentence."""
    since: tuple[int, int] = (0, 0)
    """Version of the transformers package that has it, where that is newer than :data:`OLDEST`."""
    tied: tuple[tuple[str, str], ...] = ()
    """Pairs of tensors that are the same, of which folders written by transformers 4 hold one."""
    licence: str = ""
    """Of weights that are given on request only."""


def transformers_available(since: tuple[int, int] = (0, 0)) -> bool:
    """Whether the transformers package is installed, and recent enough."""
    try:
        numbers = re.findall(r"\d+", version("transformers"))
    except PackageNotFoundError:
        return False
    return tuple(int(part) for part in numbers[:2]) >= max(OLDEST, since)


def load_pretrained(kind: PretrainedKind, name: str | Path | None = None, download: bool = True) -> tuple[Any, Any]:
    """Load a model of the transformers package, on the CPU and frozen, and its processor.

    Args:
        kind: What it must be.
        name: A folder, or a name on the Hugging Face hub; by default the published one.
        download: Whether a model that is not there may be fetched; the environment may forbid it, too.

    Raises:
        MissingWeightsError: The weights are not there and could not be had.
        SA3DError: The transformers package is not there, or the weights are none of this kind or do not fit.
    """
    if not transformers_available(kind.since):
        oldest = max(OLDEST, kind.since)
        raise SA3DError(
            f"{kind.name} needs the package transformers {oldest[0]}.{oldest[1]} or newer: "
            f"pip install 'sa3d-nerfstudio[{kind.extra}]', or {kind.otherwise}."
        )
    import transformers
    from safetensors import SafetensorError

    remedy = f"name a folder with config.json and model.safetensors by {kind.option}, or {kind.otherwise}"
    name = kind.published if name is None else name
    folder = Path(name).expanduser()
    # What the hub knows has a name of one or two parts.
    if folder.is_file():
        raise SA3DError(f"{name} ({kind.option}) is a file: {remedy}.")
    if not folder.is_dir() and (folder.is_absolute() or folder.exists() or str(name).count("/") > 1):
        raise SA3DError(f"there is no folder {name} ({kind.option}): {remedy}.")
    name = str(folder if folder.is_dir() else name)
    offline = not download or downloads_are_forbidden()
    local = {"local_files_only": offline}
    try:
        config, _ = transformers.PretrainedConfig.get_config_dict(name, **local)
        if (model_type := config.get("model_type")) not in kind.model_types:
            held = (
                "does not say what it holds"
                if model_type is None
                else f"holds a {model_type} model, and no {kind.name}"
            )
            raise SA3DError(f"{name} {held}: {remedy}.")
        model, fit = getattr(transformers, kind.model_class).from_pretrained(
            name, use_safetensors=True, output_loading_info=True, dtype=torch.float32, **local
        )
        processor = getattr(transformers, kind.processor_class).from_pretrained(name, **local)
    except OSError as error:
        if folder.is_dir():
            raise SA3DError(f"{kind.name} in {name} cannot be read ({one_line(error)}): {remedy}.") from error
        if kind.licence:
            raise MissingWeightsError(
                f"the weights of {kind.name} are not there, and are given on request under the {kind.licence}: ask for "
                f"them at https://huggingface.co/{kind.published}, log in by `hf auth login`, and try again, or "
                f"{kind.otherwise}."
            ) from error
        reason = "are not there, and may not be downloaded" if offline else f"cannot be had ({one_line(error, 60)})"
        raise MissingWeightsError(
            f"the weights of {kind.name} {reason}: put model.safetensors and the .json and .txt files of "
            f"https://huggingface.co/{name} into a folder and name it by {kind.option}, or {kind.otherwise}."
        ) from error
    # What the package raises for damaged files and settings that contradict each other has no class of its own.
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, ImportError, SafetensorError) as error:
        raise SA3DError(f"{kind.name} in {name} cannot be read ({one_line(error)}): {remedy}.") from error
    missing = _without_tied(model, set(fit["missing_keys"]), kind.tied)
    if missing or fit["mismatched_keys"]:
        raise SA3DError(
            f"the weights in {name} do not fit together ({len(missing)} tensors are missing, "
            f"{len(fit['mismatched_keys'])} have another shape): {remedy}."
        )
    return model.eval().requires_grad_(False), processor


def _without_tied(model: Any, missing: set[str], tied: tuple[tuple[str, str], ...]) -> set[str]:
    """The tensors that are still missing once those are filled in whose twins are there."""
    state = model.state_dict()
    for pair in tied:
        for lacking, held in (pair, pair[::-1]):
            if lacking in missing and held in state and held not in missing:
                state[lacking].copy_(state[held])
                missing = missing - {lacking}
    return missing
