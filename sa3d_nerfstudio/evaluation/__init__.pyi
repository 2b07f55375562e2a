from .benchmark import evaluate_task, run_benchmark
from .metrics import boundary_iou, iou, pixel_accuracy, point_scores
from .nvos import nvos_tasks
from .options import BenchmarkOptions
from .report import BenchmarkReport
from .spin_nerf import spin_nerf_tasks
from .task import Target, Task

__all__ = [
    "BenchmarkOptions",
    "BenchmarkReport",
    "Target",
    "Task",
    "boundary_iou",
    "evaluate_task",
    "iou",
    "nvos_tasks",
    "pixel_accuracy",
    "point_scores",
    "run_benchmark",
    "spin_nerf_tasks",
]
