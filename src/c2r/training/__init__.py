"""Fine-tuning of constrained models."""

from c2r.training.callback import RoutingCallback
from c2r.training.data import DataSettings, TrainingData, collate, read_windows
from c2r.training.folder import describe_windows, is_finished, work_folder
from c2r.training.heldout import HeldOut, measure_held_out, split_windows
from c2r.training.metrics import routing_metrics
from c2r.training.progress import Progress
from c2r.training.settings import FinetuneSettings
from c2r.training.trainable import freeze_routers
from c2r.training.tuning import FinetuneResult, finetune

__all__ = [
    "DataSettings",
    "FinetuneResult",
    "FinetuneSettings",
    "HeldOut",
    "Progress",
    "RoutingCallback",
    "TrainingData",
    "collate",
    "describe_windows",
    "finetune",
    "freeze_routers",
    "is_finished",
    "measure_held_out",
    "read_windows",
    "routing_metrics",
    "split_windows",
    "work_folder",
]
