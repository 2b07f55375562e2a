"""Build base models without nerfstudio's side effects: downloads, and setting the start method of processes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from nerfstudio.models import generfacto
from torch import multiprocessing, nn
from torchmetrics.functional.image import lpips as torchmetrics_lpips

_BACKBONE_BUILDERS = ("_get_tv_model_features", "_get_net")  # its name since and before torchmetrics 1.3

_skip_download: ContextVar[bool] = ContextVar("sa3d_skip_lpips_download", default=False)
_lpips_lock = threading.Lock()
_users = 0
_originals: dict[str, Callable[..., Any]] = {}


@contextmanager
def lpips_without_download() -> Iterator[None]:
    """Give LPIPS metrics built in this context a randomly initialised backbone instead of a downloaded one.

    Shapes and state-dict keys are those of the pretrained network, and the small linear layers that come with
    torchmetrics are loaded as always, so a checkpoint fits. Until it is loaded, the metric's values are meaningless.

    Contexts may be nested and used by several threads: a metric that a thread builds outside them is not affected.
    """
    token = _skip_download.set(True)
    _install()
    try:
        yield
    finally:
        _uninstall()
        _skip_download.reset(token)


def _install() -> None:
    global _users  # noqa: PLW0603
    with _lpips_lock:
        _users += 1
        if _users > 1:
            return
        for name in _BACKBONE_BUILDERS:
            original = getattr(torchmetrics_lpips, name, None)
            if original is not None:
                _originals[name] = original
                setattr(torchmetrics_lpips, name, _untrained_within_context(original))


def _uninstall() -> None:
    global _users  # noqa: PLW0603
    with _lpips_lock:
        _users -= 1
        if _users == 0:
            for name, original in _originals.items():
                setattr(torchmetrics_lpips, name, original)
            _originals.clear()


def _untrained_within_context(build_backbone: Callable[..., Any]) -> Callable[..., Any]:
    def build(net: str, pretrained: bool = False) -> Any:
        return build_backbone(net, pretrained=pretrained and not _skip_download.get())

    return build


_start_method_lock = threading.RLock()


@contextmanager
def any_start_method() -> Iterator[None]:
    """Keep data managers of nerfstudio's main branch from setting the start method of processes, in this context.

    Data managers require spawned processes, even if they start none, and cannot be built in a process that has used
    another start method before, for instance to load data in a notebook.
    """
    with _start_method_lock:
        original, thread = multiprocessing.set_start_method, threading.get_ident()

        def set_start_method(*args: Any, **kwargs: Any) -> None:
            if threading.get_ident() != thread:
                original(*args, **kwargs)

        multiprocessing.set_start_method = set_start_method  # type: ignore[assignment]
        try:
            yield
        finally:
            multiprocessing.set_start_method = original


GUIDANCE = "_diffusion_model."
"""Prefix of the diffusion model's tensors in a checkpoint."""

_GUIDES = ("StableDiffusion", "DeepFloyd", "PositionalTextEmbeddings")
_guidance_lock = threading.RLock()


class _Absent(nn.Module):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()


@contextmanager
def without_guidance() -> Iterator[None]:
    """Build models without their diffusion model in this context, so that they cannot be trained."""
    with _guidance_lock:
        originals = {name: getattr(generfacto, name) for name in _GUIDES}
        for name in _GUIDES:
            setattr(generfacto, name, _Absent)
        try:
            yield
        finally:
            for name, original in originals.items():
                setattr(generfacto, name, original)
