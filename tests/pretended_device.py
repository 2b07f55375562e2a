"""Pretended CUDA device: tensors in CPU memory that report ``cuda:0`` as their device, and do not mix with CPU tensors.

Operations run on the CPU; operands on different devices raise the same errors as on CUDA, in torch's words. Tests thus
find tensors on the wrong device on a machine without a GPU; they do not test kernels, memory, streams or speed.
Gradients of pretended tensors need ``autograd=True``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from types import FunctionType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

CUDA = torch.device("cuda", 0)
CPU = torch.device("cpu")
MEMORY = 16 << 30
"""Reported memory of the device, in bytes."""

aten = torch.ops.aten
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}
SOFTMAX = {aten._softmax, aten._log_softmax}
ACROSS = {aten.copy_, aten.copy, aten._copy_from, aten._to_copy, aten._foreach_copy_}
"""Operations that may read one device and write the other."""
DERIVATIVES = {torch.autograd.grad, torch.autograd.backward, torch.Tensor.backward}
TAKE_CPU_SCALARS = {aten.where, aten.masked_fill, aten.masked_fill_, aten.fill, aten.fill_}
"""Operations that accept CPU scalars beside CUDA tensors, as those that torch tags as pointwise do."""


class PretendedTensor(torch.Tensor):
    """Wrapper that reports ``cuda:0`` as its device, and holds a tensor on the CPU."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, real: torch.Tensor) -> PretendedTensor:
        wrapper = torch.Tensor._make_wrapper_subclass(
            cls,
            real.size(),
            strides=real.stride(),
            storage_offset=real.storage_offset(),
            dtype=real.dtype,
            layout=real.layout,
            # With CUDA, the autograd engine would start a thread for each of the machine's devices.
            device=CPU if _modes.autograd else CUDA,
        )
        wrapper.held = real
        return wrapper

    def __init__(self, real: torch.Tensor) -> None:
        super().__init__()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _on_call(func, args, kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs)

    def __repr__(self, **_: Any) -> str:
        return f"pretended on {CUDA}: {self.held!r}"

    def __format__(self, spec: str) -> str:
        return format(self.held, spec)

    def __deepcopy__(self, memo: dict[int, Any]) -> PretendedTensor:
        if id(self) not in memo:
            memo[id(self)] = _as(self, PretendedTensor(self.held.clone()))
        return memo[id(self)]

    def __copy__(self) -> PretendedTensor:
        return _as(self, PretendedTensor(self.held))

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The saved tensor is the one that a load to the CPU would return.
        held = self.held.detach()
        return (torch.nn.Parameter(held, self.requires_grad) if self._is_param else held).__reduce_ex__(protocol)

    _is_param = False


class _State(threading.local):
    inside = False
    """Whether a C++ function of torch with a pretended tensor among its arguments is running."""


_state = _State()
_modes = SimpleNamespace(autograd=False)


def _as(old: PretendedTensor, new: PretendedTensor) -> PretendedTensor:
    new.requires_grad_(old.requires_grad)
    if old._is_param:
        new._is_param = True
    return new


def device_of(tensor: torch.Tensor) -> torch.device:
    """Device of a tensor; ``cuda:0`` for pretended tensors."""
    return CUDA if isinstance(tensor, PretendedTensor) else tensor.device


def _different(*devices: torch.device) -> RuntimeError:
    names = " and ".join(dict.fromkeys(str(device) for device in devices))
    return RuntimeError(f"Expected all tensors to be on the same device, but found at least two devices, {names}!")


# -- calls from Python, before they reach operations ------------------------------------------------------------------


def _no_numpy(*_: Any, **__: Any) -> Any:
    raise TypeError(
        f"can't convert {CUDA} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first."
    )


def _move(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Replacement of ``Tensor.to``, whose C++ code does not see pretended devices."""
    target = args[0] if args else kwargs.get("other", kwargs.get("device"))
    positional = args[1:]
    if isinstance(target, torch.Tensor):
        device, kwargs = device_of(target), {"dtype": target.dtype, **{k: v for k, v in kwargs.items() if k != "other"}}
    elif isinstance(target, torch.dtype):
        device, positional = device_of(tensor), args
    else:
        device = device_of(tensor) if target is None else torch.device(target)
    kwargs.pop("device", None)
    non_blocking = kwargs.pop("non_blocking", False)
    positional = tuple(argument for argument in positional if not isinstance(argument, bool))
    if device.type == device_of(tensor).type:
        if device.type != "cuda":
            return torch.Tensor.to(tensor, *positional, **kwargs)
        dtype = kwargs.get("dtype") or (positional[0] if positional else tensor.dtype)
        if dtype == tensor.dtype and not kwargs.get("copy"):
            return tensor
        return aten._to_copy.default(tensor, dtype=dtype)
    dtype = kwargs.get("dtype") or (positional[0] if positional else tensor.dtype)
    return aten._to_copy.default(tensor, dtype=dtype, device=device, non_blocking=non_blocking)


def _are_numbers(index: Any) -> bool:
    return isinstance(index, list) and all(isinstance(item, int) for item in index)


def _indexed(function: Any) -> Any:
    """Replacement of an indexing method: lists of indices become tensors, which C++ would copy to the device."""

    def call(tensor: torch.Tensor, index: Any, *value: Any) -> Any:
        indices = index if isinstance(index, tuple) else (index,)
        indices = tuple(torch.tensor(item) if _are_numbers(item) else item for item in indices)
        return function(tensor, indices if isinstance(index, tuple) else indices[0], *value)

    return call


_CALLS: dict[Any, Any] = {
    torch.Tensor.numpy: _no_numpy,
    torch.Tensor.__array__: _no_numpy,
    torch.Tensor.tolist: lambda tensor: tensor.held.tolist(),
    torch.Tensor.to: _move,
    torch.Tensor.cpu: lambda tensor, **_: _move(tensor, CPU),
    torch.Tensor.cuda: lambda tensor, *_, **__: _move(tensor, CUDA),
    torch.Tensor.device.__get__: device_of,  # type: ignore[attr-defined]
    torch.Tensor.is_cuda.__get__: lambda tensor: isinstance(tensor, PretendedTensor),  # type: ignore[attr-defined]
    torch.Tensor.is_cpu.__get__: lambda tensor: not isinstance(tensor, PretendedTensor),  # type: ignore[attr-defined]
    torch.Tensor.get_device: lambda tensor: 0 if isinstance(tensor, PretendedTensor) else -1,
    torch.Tensor.type_as: _move,
    torch.Tensor.__getitem__: _indexed(torch.Tensor.__getitem__),
    torch.Tensor.__setitem__: _indexed(torch.Tensor.__setitem__),
    torch.Tensor.is_pinned: lambda tensor, *_: False,
}


def _on_call(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Any:
    """Handle a call from Python of a torch function with a pretended tensor among its arguments."""
    of_torch = not isinstance(function, FunctionType) or function in DERIVATIVES
    inside, _state.inside = _state.inside, of_torch and function not in _CALLS
    try:
        with torch._C.DisableTorchFunctionSubclass():
            return _CALLS.get(function, function)(*args, **(kwargs or {}))
    finally:
        _state.inside = inside


class _Makers(TorchFunctionMode):
    """Replacement of ``torch.tensor`` and its like, which copy to a device in C++, below the dispatch to Python."""

    MAKERS = (torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function not in self.MAKERS:
            return function(*args, **kwargs)
        device = kwargs.pop("device", None)
        if function is torch.Tensor.new_tensor:
            device = device_of(args[0]) if device is None else device
            kwargs.setdefault("dtype", args[0].dtype)
            function, args = torch.tensor, args[1:]
        data, *positional = args or (kwargs.pop("data", kwargs.pop("obj", None)),)
        if isinstance(data, PretendedTensor):
            # Whether torch.tensor copies the data does not affect the device.
            return _move(data, CUDA if device is None else device, **kwargs)
        held = tree_map_only(PretendedTensor, lambda each: each.held, data)
        tensor = function(held, *positional, **kwargs)
        return tensor if device is None else _move(tensor, device)


def _loading(original: Any) -> Any:
    def load(file: Any, map_location: Any = None, **kwargs: Any) -> Any:
        to_cuda = map_location is not None and torch.device(map_location).type == "cuda"
        loaded = original(file, map_location=CPU if to_cuda else map_location, **kwargs)
        return tree_map_only(torch.Tensor, PretendedTensor, loaded) if to_cuda else loaded

    return load


# -- operations -------------------------------------------------------------------------------------------------------


def _run(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Any:
    """Compute an operation on the CPU; operands on the wrong devices raise the error of CUDA."""
    kwargs = dict(kwargs or {})
    tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)]
    requested = kwargs.get("device")
    packet = function.overloadpacket
    if packet in ACROSS:
        target = device_of(args[0] if not isinstance(args[0], (list, tuple)) else args[0][0])
    elif packet in INDEXING:
        target = _check_indexing(args)
    else:
        target = _common_device(function, args, kwargs, tensors)
    if _modes.autograd and _state.inside and (not tensors or target.type == "cuda"):
        # C++ code allocates on its arguments' device, which wrappers report to it as the CPU: see PretendedTensor.
        target = CUDA
        if requested is not None:
            kwargs["device"] = CPU
    elif requested is not None:
        target = torch.device(requested)
        kwargs["device"] = CPU if target.type == "cuda" else target
    if target.type == "cuda" and kwargs.get("generator") is not None:
        raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
    if kwargs.get("pin_memory"):
        kwargs["pin_memory"] = False
    wrappers = {id(tensor.held): tensor for tensor in tensors if isinstance(tensor, PretendedTensor)}
    inner = tree_map_only(PretendedTensor, lambda each: each.held, (args, kwargs))
    if packet in SOFTMAX and inner[0][2]:
        # Half precision in, single precision out: CUDA's kernel alone supports this.
        inner = ((inner[0][0].float(), inner[0][1], False), inner[1])
    result = function(*inner[0], **inner[1])
    if target.type != "cuda":
        return result
    # Operations in place return the wrapper that was passed in.
    return tree_map_only(
        torch.Tensor, lambda each: wrappers[id(each)] if id(each) in wrappers else PretendedTensor(each), result
    )


def _check_indexing(args: tuple[Any, ...]) -> torch.device:
    """Device of the indexed tensor: CUDA tensors take indices on either device, CPU tensors those on the CPU."""
    device = device_of(args[0])
    if device.type == "cpu" and any(isinstance(index, PretendedTensor) for index in args[1]):
        raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
    for value in args[2:3]:
        if device_of(value).type != device.type and not (device_of(value).type == "cpu" and value.dim() == 0):
            raise _different(device, device_of(value))
    return device


def _common_device(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[torch.Tensor]
) -> torch.device:
    devices = [device_of(tensor) for tensor in tensors]
    if all(device.type != "cuda" for device in devices):
        return devices[0] if devices else CPU
    on_cpu = [tensor for tensor in tensors if not isinstance(tensor, PretendedTensor)]
    if on_cpu:
        scalars = torch.Tag.pointwise in function.tags or function.overloadpacket in TAKE_CPU_SCALARS
        written = [
            kwargs.get(argument.name, args[position] if position < len(args) else None)
            for position, argument in enumerate(function._schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        if not scalars or any(tensor.dim() > 0 or any(tensor is output for output in written) for tensor in on_cpu):
            raise _different(*devices)
    return CUDA


class _Factories(TorchDispatchMode):
    """Mode for operations without a pretended tensor among their arguments, such as those that make tensors."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs)


class PretendedEvent:
    """Event of the pretended device, which computes in step with the host."""

    def __init__(self, enable_timing: bool = False) -> None:
        self._at = 0.0

    def record(self) -> None:
        """Record the current time."""
        self._at = time.perf_counter()

    def synchronize(self) -> None:
        """Return at once: the device never lags behind the host."""

    def elapsed_time(self, end: PretendedEvent) -> float:
        """Milliseconds from this event to another."""
        return 1e3 * (end._at - self._at)


# -- the device -------------------------------------------------------------------------------------------------------


@contextmanager
def pretended_device(autograd: bool = False) -> Iterator[None]:
    """Provide ``cuda:0`` within the context, also in threads started there.

    Args:
        autograd: Whether to compute gradients of pretended tensors; ``torch.autocast`` then does nothing.
    """
    # Registers stand-ins for device guards on a machine without CUDA; with CUDA, this does nothing.
    torch._C._ensureCUDADeviceGuardSet()
    answers: dict[str, Any] = {
        "_lazy_init": None,
        "is_available": True,
        "is_initialized": True,
        "device_count": 1,
        "current_device": 0,
        "synchronize": None,
        "empty_cache": None,
        "manual_seed": None,
        "manual_seed_all": None,
        "mem_get_info": (MEMORY // 2, MEMORY),
        "memory_reserved": 0,
        "memory_allocated": 0,
        "get_device_name": "a pretended device",
        "get_device_capability": (8, 0),
        "get_device_properties": SimpleNamespace(total_memory=MEMORY, name="a pretended device", major=8, minor=0),
    }
    run = threading.Thread.run

    def run_with_device(thread: threading.Thread) -> None:
        with _Makers(), _Factories():
            run(thread)

    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    with ExitStack() as stack:
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrites)
        # A plain parameter cannot become a wrapper in place, so it is replaced.
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.enter_context(mock.patch.object(torch.cuda, "Event", PretendedEvent))
        for name, answer in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, mock.Mock(return_value=answer)))
        stack.enter_context(mock.patch.object(torch, "load", _loading(torch.load)))
        stack.enter_context(mock.patch.object(torch.Tensor, "pin_memory", lambda tensor, *_: tensor))
        stack.enter_context(mock.patch.object(threading.Thread, "run", run_with_device))
        stack.enter_context(mock.patch.object(_modes, "autograd", autograd))
        stack.enter_context(_Makers())
        stack.enter_context(_Factories())
        yield


def a_cuda_device(autograd: bool = False) -> AbstractContextManager[None]:
    """Context with the machine's CUDA device, or with a pretended one on a machine without."""
    return nullcontext() if torch.cuda.is_available() else pretended_device(autograd)
