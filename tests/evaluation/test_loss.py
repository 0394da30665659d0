import math
from types import SimpleNamespace

import pytest
import torch

from c2r.errors import InputError
from c2r.evaluation import heldout_loss


class Uniform(torch.nn.Module):
    """Gives every one of 8 tokens the same probability, but is sure of token 3 after token 2."""

    device = torch.device("cpu")

    def forward(self, input_ids, attention_mask, use_cache):
        logits = torch.zeros(*input_ids.shape, 8)
        logits[..., 3] = torch.where(input_ids == 2, 100.0, 0.0)
        return SimpleNamespace(logits=logits)


def batch(rows, masks):
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(masks)}


def test_padding_is_not_counted():
    found = heldout_loss(
        Uniform(), [batch([[1, 2, 3, 0], [1, 1, 0, 0]], [[1, 1, 1, 0], [1, 1, 0, 0]])]
    )
    assert found.num_tokens == 3  # 2 and 3 in the first row, 1 in the second
    assert found.loss == pytest.approx(math.log(8) * 2 / 3)
    assert found.perplexity == pytest.approx(8 ** (2 / 3))


def test_batches_weigh_by_their_tokens_and_training_mode_stays():
    model = Uniform().train()
    seen = []
    found = heldout_loss(
        model, [batch([[2, 3]], [[1, 1]]), batch([[1, 1, 1, 1]], [[1] * 4])], seen.append
    )
    assert found.loss == pytest.approx(math.log(8) * 3 / 4)
    assert model.training and seen == [2, 4]


def test_no_text():
    with pytest.raises(InputError, match="no token to predict"):
        heldout_loss(Uniform(), [batch([[1]], [[1]])])
