"""The study's real model: the mixture that `make_base.py` makes, and the text it keeps apart."""

import json

from base_model.settings import Settings
from base_model.texts import SHARES, Mixture, measured_windows
from make_base import Base, open_mixture
from study_base import as_batches, as_examples

_WINDOW = 512  # of calibration


class MixtureMaterial:
    """See `study_base.ByteMaterial`; every text here serves one purpose (`base_model/texts.py`)."""

    def __init__(self, folder, scale):
        settings = Settings(**json.loads((folder / "settings.json").read_text()))
        self.made, self.scale = Base(folder.parent, folder.name, settings), scale
        self.base = folder / "model"

    def open(self):
        """The mixture, in float32, experts computed as in its distillation."""
        return open_mixture(self.base, "masked")

    def calibration(self):
        """Batches of the text that experts are placed by."""
        rows = self.made.text("planning").flatten()
        return as_batches(rows[: len(rows) // _WINDOW * _WINDOW].view(-1, _WINDOW).split(4))

    def examples(self, count, seed):
        """Windows of the text that the mixture was distilled on, but for the dense model's own."""
        text = self.made.text_to_distil().sources
        del text["sampled"]
        return as_examples(Mixture(text, SHARES, 1000 + seed).batch(0, count))

    def heldout(self):
        """Batches of the measured text."""
        windows = measured_windows(self.made.tokenizer, self.scale.heldout_tokens)
        return as_batches(windows.split(4))
