import pytest
import torch
import torch.nn.functional as F

import c2r
from c2r.adapters.huggingface import load_model
from c2r.assets import heldout_files, tiny_folder
from c2r.errors import InputError


@pytest.fixture(scope="module")
def model():
    return load_model(tiny_folder(), dtype=torch.float32)


def rows(num_rows=3, seq_len=48):
    content = heldout_files()[0].read_bytes()[: num_rows * seq_len]
    return torch.tensor(list(content)).view(num_rows, seq_len)


def test_agrees_with_the_loss_of_each_row_alone_and_leaves_padding_out(model):
    ids = rows()
    lengths = [48, 20, 1]
    mask = (torch.arange(48) < torch.tensor(lengths)[:, None]).long()
    seen = []
    found = c2r.evaluate(model, [{"input_ids": ids, "attention_mask": mask}], seen.append)
    with torch.no_grad():
        losses = [
            F.cross_entropy(model(ids[i : i + 1, :n]).logits[0, :-1], ids[i, 1:n], reduction="sum")
            for i, n in enumerate(lengths)
        ]
    assert found.num_tokens == 47 + 19
    assert found.loss == pytest.approx(float(sum(losses)) / 66, rel=1e-5)
    assert found.perplexity == pytest.approx(torch.tensor(found.loss).exp().item())
    assert found.profile.num_tokens == sum(lengths) == seen[0]


def test_batches_weigh_by_their_tokens_and_training_mode_stays(model):
    ids = rows(4)
    whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    parts = [{key: value[a:b] for key, value in whole.items()} for a, b in ((0, 3), (3, 4))]
    model.train()
    split = c2r.evaluate(model, parts)
    assert model.training
    model.eval()
    assert split.loss == pytest.approx(c2r.evaluate(model, [whole]).loss, rel=1e-5)


def test_no_text(model):
    ids = rows(1)[:, :1]
    with pytest.raises(InputError, match="no token to predict"):
        c2r.evaluate(model, [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}])
    with pytest.raises(InputError, match="no token to predict"):
        c2r.evaluate(model, [])
