"""Context variables set for the duration of one function call, however it ends."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar, copy_context
from typing import TypeVar

Value = TypeVar("Value")
Result = TypeVar("Result")


def scoped(variable: ContextVar[Value], value: Value, function: Callable[[], Result]) -> Result:
    """Call a function with a context variable set to a value.

    nerfstudio's viewer interrupts a render by an exception at any line of Python, those of ``finally`` and of the exit
    of a context manager included, so no value can be restored reliably. The variable is therefore set in a copy of the
    context: the contexts of the caller and of other threads never hold the value.

    Args:
        variable: Variable that the function, or a function called by it, reads.
        value: Value during the call.
        function: Called without arguments.

    Returns:
        Result of the function.
    """

    def call() -> Result:
        variable.set(value)
        return function()

    return copy_context().run(call)
