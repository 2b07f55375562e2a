"""What a later visit of a view costs a GPU, counted on a machine that has none: operations, round trips, bytes.

    python -m benchmarks.visits --scene ../shared/scenes/desk --run ../shared/runs/desk/nerfacto/cpu

A second object is segmented in views that are rendered already, on the pretended device of the tests: what says that it
is on CUDA takes the ways that are taken there, and each operation is counted. A round trip is a wait of the host for
the device: a value that is read, a copy to the host, an operation whose result's size depends on values. Of seconds
this says nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
"""Operations that the host waits for, whatever they are given."""
READS = frozenset({torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__})
"""Functions that read a tensor without an operation."""


@dataclass
class Options:
    """Count what a visit costs."""

    scene: Path
    """Scene folder with instances/ and prompts.json."""
    run: Path
    """Trained run on that scene."""
    objects: tuple[str, str] = ("mug", "moka_pot")
    """The object that is segmented first, and the one whose visits are counted."""
    views: int = 7
    """Views beside the prompted one."""
    working_size: int = 160
    """Longer side of the images."""
    cache_dir: Path | None = None
    """Folder of views that are rendered already."""
    output: Path | None = None
    """JSON file to write."""


class Count(TorchDispatchMode):
    """Counts operations of which any tensor is on the device."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.bytes = 0
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        if not any(tensor.is_cuda for tensor in (*given, *made)):
            return result
        name = func._schema.name.removeprefix("aten::").split(".")[0]
        views = any(each.alias_info is not None and not each.alias_info.is_write for each in func._schema.returns)
        if not views:
            self.operations += 1
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in (*given, *made))
        by_mask = name == "index" and any(tensor.dtype == torch.bool for tensor in given[1:])
        to_host = any(tensor.is_cuda for tensor in given) and any(not tensor.is_cuda for tensor in made)
        if name in WAITS or by_mask or to_host:
            self.waits[f"{name}, by a mask" if by_mask else name] += 1
        return result


class Reads(TorchFunctionMode):
    """Counts what is read without an operation."""

    def __init__(self, count: Count) -> None:
        super().__init__()
        self.count = count

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READS and args[0].is_cuda:
            self.count.waits[func.__name__] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def counted() -> Iterator[Count]:
    """Count what is done meanwhile."""
    count = Count()
    with Reads(count), count:
        yield count


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
        **settings,
    )
    views, found = run.pipeline.views, {}
    for name in options.objects:
        entry = prompts[name]
        view = views.find(Path(entry["frame"]).name)
        session = run.pipeline.session(name)
        session.prompt(view, Prompt.from_points(*views.image_size(view), entry["points"][:1]))
        for _ in range(2):  # at first, some of its views are rendered
            with counted() as count:
                visits = sum(1 for _ in session.steps())
        found = {
            "visits": visits,
            "operations a visit": count.operations / visits,
            "MB a visit": count.bytes / visits / 1e6,
            "round trips a visit": sum(count.waits.values()) / visits,
            "of these": {name: number / visits for name, number in count.waits.most_common()},
        }
    return found


def main(options: Options) -> None:
    """Count, print a table, and write JSON."""
    with ExitStack() as stack:
        stack.enter_context(a_cuda_device())
        found = measure(options)
    table = Table("a later visit", "")
    for name, value in found.items():
        if name == "of these":
            for each, number in value.items():
                table.add_row(f"  {each}", f"{number:.2f}")
        else:
            table.add_row(name, f"{value:.1f}")
    Console(width=90).print(table)
    if options.output is not None:
        options.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
