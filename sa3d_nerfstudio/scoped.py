"""Values that hold while a function runs, and are gone however it ends."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar, copy_context
from typing import TypeVar

Value = TypeVar("Value")
Result = TypeVar("Result")


def scoped(variable: ContextVar[Value], value: Value, function: Callable[[], Result]) -> Result:
    """Call a function with a context variable set to a value.

    nerfstudio's viewer interrupts a render by an exception at any line of Python, those of ``finally`` and of the exit
    of a context manager included, so nothing may have to be put back. Here the variable is set in a copy of the
    context: that of the caller, and those of other threads, never see the value.

    Args:
        variable: What the function, or whatever it calls, reads.
        value: Its value meanwhile.
        function: Called without arguments.

    Returns:
        What the function returns.
    """

    def call() -> Result:
        variable.set(value)
        return function()

    return copy_context().run(call)
