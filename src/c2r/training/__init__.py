"""Fine-tuning of constrained models."""

from c2r.training.settings import FinetuneSettings
from c2r.training.tuning import FinetuneResult, finetune

__all__ = ["FinetuneResult", "FinetuneSettings", "finetune"]
