"""Fine-tuning of constrained models."""

from c2r.training.data import DataSettings, TrainingData, collate, read_examples
from c2r.training.settings import FinetuneSettings
from c2r.training.tuning import FinetuneResult, finetune

__all__ = [
    "DataSettings",
    "FinetuneResult",
    "FinetuneSettings",
    "TrainingData",
    "collate",
    "finetune",
    "read_examples",
]
