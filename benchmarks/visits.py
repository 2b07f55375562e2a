"""Cost of a later visit of a view on a GPU, counted on a machine without one: operations, round trips, bytes.

    python -m benchmarks.visits --scene ../shared/scenes/desk --run ../shared/runs/desk/nerfacto/cpu

A second object is segmented in views that are rendered already, on the pretended device of the tests: tensors
that claim to be on CUDA take the code paths of CUDA, and each operation is counted. A round trip is a wait of the host
for the device: a value that is read, a copy to the host, an operation whose result's size depends on values. Copies to
the device for which the host waits as well, such as those of a camera, are counted apart. Seconds are not measured.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import sa3d_nerfstudio as sa3d
from sa3d_nerfstudio.prompts.prompt import Prompt
from tests.pretended_device import a_cuda_device

WAITS = frozenset(
    {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "bincount", "repeat_interleave"}
    | {"unique_dim", "_unique", "_unique2", "unique_consecutive"}
)
"""Operations that the host always waits for."""
READS = frozenset({torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__})
"""Functions that read a tensor without an operation."""


@dataclass
class Options:
    """Count the cost of a visit."""

    scene: Path
    """Scene folder with instances/ and prompts.json."""
    run: Path
    """Trained run on that scene."""
    objects: tuple[str, str] = ("mug", "moka_pot")
    """The object that is segmented first, and the one whose visits are counted."""
    views: int = 7
    """Number of views beside the prompted one."""
    working_size: int = 160
    """Longer side of the images, in pixels."""
    threshold: float = 0.5
    """Probability above which a pixel is on the object."""
    cache_dir: Path | None = None
    """Folder of cached views that are rendered already."""
    output: Path | None = None
    """JSON file to write."""


class Count(TorchDispatchMode):
    """Counter of operations with any tensor on the device."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.bytes = 0
        self.copies = 0
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        if not any(tensor.is_cuda for tensor in (*inputs, *outputs)):
            return result
        name = func._schema.name.removeprefix("aten::").split(".")[0]
        views = any(item.alias_info is not None and not item.alias_info.is_write for item in func._schema.returns)
        if not views:
            self.operations += 1
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in (*inputs, *outputs))
        by_mask = name == "index" and any(tensor.dtype == torch.bool for tensor in inputs[1:])
        to_host = any(tensor.is_cuda for tensor in inputs) and any(not tensor.is_cuda for tensor in outputs)
        from_host = any(tensor.is_cuda for tensor in outputs) and not any(tensor.is_cuda for tensor in inputs)
        if name == "_to_copy" and from_host and not (kwargs or {}).get("non_blocking"):
            self.copies += 1
        if name in WAITS or by_mask or to_host:
            self.waits[f"{name}, by a mask" if by_mask else name] += 1
        return result


class Reads(TorchFunctionMode):
    """Counter of tensor reads without an operation."""

    def __init__(self, count: Count) -> None:
        super().__init__()
        self.count = count

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READS and args[0].is_cuda:
            self.count.waits[func.__name__] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def counted() -> Iterator[Count]:
    """Count operations, bytes and round trips within the context."""
    count = Count()

    def synchronize(*_: Any) -> None:
        count.waits["synchronize"] += 1

    with mock.patch.object(torch.cuda, "synchronize", synchronize), Reads(count), count:
        yield count


@dataclass
class Cost:
    """Cost of some steps of a session."""

    steps: int = 0
    operations: int = 0
    bytes: int = 0
    copies: int = 0
    waits: Counter[str] = field(default_factory=Counter)

    def add(self, count: Count, before: tuple[int, int, int, Counter[str]], steps: int = 1) -> None:
        """Add the operations counted since ``before``."""
        self.steps += steps
        self.operations += count.operations - before[0]
        self.bytes += count.bytes - before[1]
        self.copies += count.copies - before[2]
        self.waits += count.waits - before[3]

    def each(self, number: int | None = None) -> dict[str, Any]:
        """Averages per step, or per unit of ``number``."""
        number = max(1, self.steps if number is None else number)
        return {
            "visits": self.steps,
            "operations a visit": self.operations / number,
            "MB a visit": self.bytes / number / 1e6,
            "copies to the device a visit": self.copies / number,
            "round trips a visit": self.waits.total() / number,
            "of these": {name: waits / number for name, waits in self.waits.most_common()},
        }


def costs_of(session: Any) -> dict[str, Cost]:
    """Run a session's steps, and count their cost by kind: the user's prompted views, each with the start of a pass;
    visits in the first pass; visits in later passes; and the fit of the field to the masks at the end."""
    costs: dict[str, Cost] = {}
    with counted() as count:
        steps = session.steps()
        while True:
            before = count.operations, count.bytes, count.copies, Counter(count.waits)
            record = next(steps, None)
            if record is None:
                costs.setdefault("fit", Cost()).add(count, before, steps=0)
                return costs
            passed = "first pass" if record.number_of_pass == 1 else "later passes"
            costs.setdefault("passes" if record.state == "prompt" else passed, Cost()).add(count, before)


def measure(options: Options) -> dict[str, Any]:
    """Segment two objects, and count the visits of the second."""
    entries = json.loads((options.scene / "prompts.json").read_text())["objects"]
    prompts = {entry["name"]: entry for entry in entries}
    settings: dict[str, Any] = {} if options.cache_dir is None else {"cache_dir": options.cache_dir}
    run = sa3d.load(
        options.run,
        segmenter="oracle",
        oracle_instances=options.scene / "instances",
        working_size=options.working_size,
        num_views=options.views,
        threshold=options.threshold,
        **settings,
    )
    views, costs = run.pipeline.views, {}
    for name in options.objects:
        entry = prompts[name]
        view = views.find(Path(entry["frame"]).name)
        session = run.pipeline.session(name)
        session.prompt(view, Prompt.from_points(*views.image_size(view), entry["points"][:1]))
        for _ in range(2):  # the first run still renders some of the views
            costs = costs_of(session)
    visits = Cost()
    for name in ("first pass", "later passes"):
        part = costs.get(name, Cost())
        visits.steps += part.steps
        visits.operations += part.operations
        visits.bytes += part.bytes
        visits.copies += part.copies
        visits.waits += part.waits
    return visits.each() | {name: cost.each() for name, cost in costs.items()}


def rows(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Rows of the table: names and figures."""
    for name, value in found.items():
        if not isinstance(value, dict):
            yield name, f"{value:.1f}" if isinstance(value, float) else str(value)
        elif name == "of these":
            yield from ((f"  {label}", f"{number:.2f}") for label, number in value.items())
        else:
            yield "", ""
            yield f"[bold]{name}", ""
            yield from rows(value)


def main(options: Options) -> None:
    """Count, print a table, and write JSON."""
    with ExitStack() as stack:
        stack.enter_context(a_cuda_device())
        figures = measure(options)
    table = Table("all later visits", "")
    for row in rows(figures):
        table.add_row(*row)
    Console(width=90).print(table)
    if options.output is not None:
        options.output.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
