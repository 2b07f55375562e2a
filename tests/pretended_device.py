"""A pretended CUDA device: tensors that lie on the CPU, say that they are on ``cuda:0``, and do not mix with others.

Operations are computed on the CPU, and refused where their operands lie on different devices as CUDA refuses them, in
torch's words. So it finds tensors on the wrong device on a machine that has no GPU; of kernels, memory, streams and
speed it says nothing. Gradients of pretended tensors need ``autograd=True``.
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
"""Bytes of memory that the device says it has."""

aten = torch.ops.aten
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}
SOFTMAX = {aten._softmax, aten._log_softmax}
ACROSS = {aten.copy_, aten.copy, aten._copy_from, aten._to_copy, aten._foreach_copy_}
"""Operations that may read one device and write the other."""
DERIVATIVES = {torch.autograd.grad, torch.autograd.backward, torch.Tensor.backward}
TAKE_CPU_SCALARS = {aten.where, aten.masked_fill, aten.masked_fill_, aten.fill, aten.fill_}
"""As those that torch itself calls pointwise."""


class PretendedTensor(torch.Tensor):
    """A tensor that says it is on ``cuda:0``; what it holds is a tensor on the CPU."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, real: torch.Tensor) -> PretendedTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            real.size(),
            strides=real.stride(),
            storage_offset=real.storage_offset(),
            dtype=real.dtype,
            layout=real.layout,
            # The engine of gradients would start a thread for each device of the machine's.
            device=CPU if _modes.autograd else CUDA,
        )
        made.held = real
        return made

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
        # On disk it is what it would be after a load that maps to the CPU.
        held = self.held.detach()
        return (torch.nn.Parameter(held, self.requires_grad) if self._is_param else held).__reduce_ex__(protocol)

    _is_param = False


class _State(threading.local):
    inside = False
    """Whether a function of torch that is written in C++, with a pretended tensor among its arguments, is at work."""


_state = _State()
_modes = SimpleNamespace(autograd=False)


def _as(old: PretendedTensor, new: PretendedTensor) -> PretendedTensor:
    new.requires_grad_(old.requires_grad)
    if old._is_param:
        new._is_param = True
    return new


def device_of(tensor: torch.Tensor) -> torch.device:
    """Where a tensor is, or says that it is."""
    return CUDA if isinstance(tensor, PretendedTensor) else tensor.device


def _different(*devices: torch.device) -> RuntimeError:
    names = " and ".join(dict.fromkeys(str(device) for device in devices))
    return RuntimeError(f"Expected all tensors to be on the same device, but found at least two devices, {names}!")


# -- what torch does before it comes to operations --------------------------------------------------------------------


def _no_numpy(*_: Any, **__: Any) -> Any:
    raise TypeError(
        f"can't convert {CUDA} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first."
    )


def _move(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """``Tensor.to``, which in C++ compares devices that are not the pretended ones."""
    other = args[0] if args else kwargs.get("other", kwargs.get("device"))
    rest = args[1:]
    if isinstance(other, torch.Tensor):
        device, kwargs = device_of(other), {"dtype": other.dtype, **{k: v for k, v in kwargs.items() if k != "other"}}
    elif isinstance(other, torch.dtype):
        device, rest = device_of(tensor), args
    else:
        device = device_of(tensor) if other is None else torch.device(other)
    kwargs.pop("device", None)
    kwargs.pop("non_blocking", None)
    rest = tuple(each for each in rest if not isinstance(each, bool))
    if device.type == device_of(tensor).type:
        if device.type != "cuda":
            return torch.Tensor.to(tensor, *rest, **kwargs)
        dtype = kwargs.get("dtype") or (rest[0] if rest else tensor.dtype)
        if dtype == tensor.dtype and not kwargs.get("copy"):
            return tensor
        return aten._to_copy.default(tensor, dtype=dtype)
    dtype = kwargs.get("dtype") or (rest[0] if rest else tensor.dtype)
    return aten._to_copy.default(tensor, dtype=dtype, device=device)


def _are_numbers(index: Any) -> bool:
    return isinstance(index, list) and all(isinstance(each, int) for each in index)


def _indexed(function: Any) -> Any:
    """C++ copies lists of indices to the device by itself."""

    def call(tensor: torch.Tensor, index: Any, *value: Any) -> Any:
        parts = index if isinstance(index, tuple) else (index,)
        parts = tuple(torch.tensor(part) if _are_numbers(part) else part for part in parts)
        return function(tensor, parts if isinstance(index, tuple) else parts[0], *value)

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
    """Every call from Python of a function of torch that has a pretended tensor among its arguments."""
    of_torch = not isinstance(function, FunctionType) or function in DERIVATIVES
    inside, _state.inside = _state.inside, of_torch and function not in _CALLS
    try:
        with torch._C.DisableTorchFunctionSubclass():
            return _CALLS.get(function, function)(*args, **(kwargs or {}))
    finally:
        _state.inside = inside


class _Makers(TorchFunctionMode):
    """``torch.tensor`` and its like copy to a device in C++, beneath everything that Python sees of operations."""

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
        data, *rest = args or (kwargs.pop("data", kwargs.pop("obj", None)),)
        if isinstance(data, PretendedTensor):
            # A copy, if torch.tensor is asked for one, is of no matter to where it lies.
            return _move(data, CUDA if device is None else device, **kwargs)
        held = tree_map_only(PretendedTensor, lambda each: each.held, data)
        made = function(held, *rest, **kwargs)
        return made if device is None else _move(made, device)


def _loading(original: Any) -> Any:
    def load(file: Any, map_location: Any = None, **kwargs: Any) -> Any:
        there = map_location is not None and torch.device(map_location).type == "cuda"
        found = original(file, map_location=CPU if there else map_location, **kwargs)
        return tree_map_only(torch.Tensor, PretendedTensor, found) if there else found

    return load


# -- operations -------------------------------------------------------------------------------------------------------


def _run(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Any:
    """Compute an operation on the CPU, if its operands lie where CUDA would want them."""
    kwargs = dict(kwargs or {})
    tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, torch.Tensor)]
    asked = kwargs.get("device")
    packet = function.overloadpacket
    if packet in ACROSS:
        target = device_of(args[0] if not isinstance(args[0], (list, tuple)) else args[0][0])
    elif packet in INDEXING:
        target = _check_indexing(args)
    else:
        target = _common_device(function, args, kwargs, tensors)
    if _modes.autograd and _state.inside and (not tensors or target.type == "cuda"):
        # What C++ makes for itself where its arguments are, and it was told that this is the CPU: see PretendedTensor.
        target = CUDA
        if asked is not None:
            kwargs["device"] = CPU
    elif asked is not None:
        target = torch.device(asked)
        kwargs["device"] = CPU if target.type == "cuda" else target
    if target.type == "cuda" and kwargs.get("generator") is not None:
        raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
    if kwargs.get("pin_memory"):
        kwargs["pin_memory"] = False
    known = {id(each.held): each for each in tensors if isinstance(each, PretendedTensor)}
    inner = tree_map_only(PretendedTensor, lambda each: each.held, (args, kwargs))
    if packet in SOFTMAX and inner[0][2]:
        # Half precision in, single precision out, which is in CUDA's kernel alone.
        inner = ((inner[0][0].float(), inner[0][1], False), inner[1])
    result = function(*inner[0], **inner[1])
    if target.type != "cuda":
        return result
    # What was written in place is the tensor that was handed over.
    return tree_map_only(
        torch.Tensor, lambda each: known[id(each)] if id(each) in known else PretendedTensor(each), result
    )


def _check_indexing(args: tuple[Any, ...]) -> torch.device:
    """The device of what is indexed: on CUDA by indices on either device, on the CPU by those on the CPU."""
    device = device_of(args[0])
    if device.type == "cpu" and any(isinstance(each, PretendedTensor) for each in args[1]):
        raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
    for value in args[2:3]:
        if device_of(value).type != device.type and not (device_of(value).type == "cpu" and value.dim() == 0):
            raise _different(device, device_of(value))
    return device


def _common_device(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[torch.Tensor]
) -> torch.device:
    devices = [device_of(each) for each in tensors]
    if all(device.type != "cuda" for device in devices):
        return devices[0] if devices else CPU
    others = [each for each in tensors if not isinstance(each, PretendedTensor)]
    if others:
        scalars = torch.Tag.pointwise in function.tags or function.overloadpacket in TAKE_CPU_SCALARS
        written = [
            kwargs.get(argument.name, args[place] if place < len(args) else None)
            for place, argument in enumerate(function._schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        if not scalars or any(each.dim() > 0 or any(each is item for item in written) for each in others):
            raise _different(*devices)
    return CUDA


class _Factories(TorchDispatchMode):
    """Calls that make tensors on the device, and all others that no pretended tensor hears of."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs)


class PretendedEvent:
    """A moment on the device, which is not behind the host."""

    def __init__(self, enable_timing: bool = False) -> None:
        self._at = 0.0

    def record(self) -> None:
        """It is now."""
        self._at = time.perf_counter()

    def synchronize(self) -> None:
        """Wait for it."""

    def elapsed_time(self, end: PretendedEvent) -> float:
        """Milliseconds until another event."""
        return 1e3 * (end._at - self._at)


# -- the device -------------------------------------------------------------------------------------------------------


@contextmanager
def pretended_device(autograd: bool = False) -> Iterator[None]:
    """``cuda:0`` is there while the context lasts, in threads that are started meanwhile too.

    Args:
        autograd: Whether gradients of pretended tensors are to be computed. ``torch.autocast`` then does nothing.
    """
    # Stands in for the guards of a device of which there is none; where there is one, this does nothing.
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
        # A parameter that is no wrapper cannot become one in place.
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
    """The machine's own CUDA device, or where there is none a pretended one."""
    return nullcontext() if torch.cuda.is_available() else pretended_device(autograd)
