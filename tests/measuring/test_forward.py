import pytest
import torch
import torch.nn.functional as F

import c2r
from c2r.adapters.huggingface import load_model
from c2r.assets import heldout_files, tiny_folder
from c2r.errors import InputError
from c2r.measuring import next_token_targets, observing


@pytest.fixture(scope="module")
def model():
    return load_model(tiny_folder(), dtype=torch.float32)


def rows(num_rows=3, seq_len=48):
    content = heldout_files()[0].read_bytes()[: num_rows * seq_len]
    return torch.tensor(list(content)).view(num_rows, seq_len)


def test_a_token_is_predicted_from_the_one_before_it_unless_one_is_padding():
    batch = {
        "input_ids": torch.tensor([[0, 7, 8, 9]]),
        "attention_mask": torch.tensor([[0, 1, 1, 0]]),
    }
    assert next_token_targets(batch).tolist() == [[-100, 8, -100, -100]]
    del batch["attention_mask"]
    assert next_token_targets(batch).tolist() == [[7, 8, 9, -100]]


def test_labels_say_which_tokens_are_predicted():
    labels = torch.tensor([[-100, 1, 2], [3, -100, 5]])
    assert next_token_targets({"labels": labels}).tolist() == [[1, 2, -100], [-100, 5, -100]]


def test_agrees_with_the_loss_of_each_row_alone_and_leaves_padding_out(model):
    ids = rows()
    lengths = [48, 20, 1]
    mask = (torch.arange(48) < torch.tensor(lengths)[:, None]).long()
    with observing(model) as observe:
        passed, trace = observe({"input_ids": ids, "attention_mask": mask})
    seen = []
    batches = [{"input_ids": ids, "attention_mask": mask}]
    found = c2r.measure(model, batches, on_batch=seen.append)
    with torch.no_grad():
        losses = [
            F.cross_entropy(model(ids[i : i + 1, :n]).logits[0, :-1], ids[i, 1:n], reduction="sum")
            for i, n in enumerate(lengths)
        ]
    assert found.num_tokens == len(passed.losses) == 47 + 19
    assert found.loss == pytest.approx(float(sum(losses)) / 66, rel=1e-5)
    assert float(passed.losses.mean()) == pytest.approx(found.loss, rel=1e-6)
    assert found.perplexity == pytest.approx(torch.tensor(found.loss).exp().item())
    assert trace.layers[0].num_tokens == sum(lengths) and seen == [3 * 48]


def test_batches_weigh_by_their_tokens_and_every_mode_stays(model):
    ids = rows(4)
    whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    parts = [{key: value[a:b] for key, value in whole.items()} for a, b in ((0, 3), (3, 4))]
    model.train()
    model.model.norm.eval()
    split = c2r.measure(model, parts)
    assert model.training and model.model.layers.training and not model.model.norm.training
    model.eval()
    assert split.loss == pytest.approx(c2r.measure(model, [whole]).loss, rel=1e-5)


def test_a_caller_between_two_batches_still_has_gradients(model):
    ids = rows(2)
    with observing(model) as observe:
        observe({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        assert torch.is_grad_enabled()


def test_no_text(model):
    ids = rows(1)[:, :1]
    with pytest.raises(InputError, match="no token to predict"):
        c2r.measure(model, [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}])
    with pytest.raises(InputError, match="no token to predict"):
        c2r.measure(model, [])
