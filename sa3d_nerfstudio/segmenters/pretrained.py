"""Networks of the transformers package, loaded from folders in its format or from the Hugging Face hub."""

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
"""Oldest version of the transformers package: it has SAM 2, and its detection thresholds have the names used here."""


@dataclass(frozen=True)
class PretrainedKind:
    """A kind of model of the transformers package."""

    name: str
    """Name in messages."""
    model_class: str
    processor_class: str
    model_types: tuple[str, ...]
    """Accepted values of ``model_type`` in its ``config.json``."""
    published: str
    """Default model, by its name on the Hugging Face hub."""
    extra: str
    """Extra of this package that installs its dependencies."""
    option: str = "--pipeline.sam-checkpoint"
    """Option that names another model."""
    otherwise: str = "choose --pipeline.segmenter grabcut, which works without weights"
    """Alternative without it, as the end of a sentence."""
    since: tuple[int, int] = (0, 0)
    """First version of the transformers package that has it, if newer than :data:`OLDEST`."""
    tied: tuple[tuple[str, str], ...] = ()
    """Pairs of equal tensors, of which folders written by transformers 4 hold one."""
    licence: str = ""
    """Licence of weights that are given on request only; else empty."""


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
        kind: The kind of model.
        name: A folder, or a name on the Hugging Face hub; by default the published model.
        download: Whether a missing model may be downloaded; the environment may forbid it, too.

    Raises:
        MissingWeightsError: The weights are missing and could not be downloaded.
        SA3DError: The transformers package is missing or too old, or the weights are of another kind or do not fit.
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
    # Names on the hub have one or two parts.
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
            problem = (
                "does not say what it holds"
                if model_type is None
                else f"holds a {model_type} model, and no {kind.name}"
            )
            raise SA3DError(f"{name} {problem}: {remedy}.")
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
    # The package has no exception class for damaged files and contradictory settings.
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
    """Fill missing tensors from the tensors that they are tied to; return the names of those still missing."""
    state = model.state_dict()
    for pair in tied:
        for target, source in (pair, pair[::-1]):
            if target in missing and source in state and source not in missing:
                state[target].copy_(state[source])
                missing = missing - {target}
    return missing
