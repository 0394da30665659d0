"""Trainers of others: the routing in their log, the plan in what they save, frozen routers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Trainer, TrainerCallback, TrainingArguments

import c2r
from c2r.errors import InputError, PlanError
from c2r.plans import Plan
from c2r.plans.model_folder import PLAN_FILE
from c2r.training.trainable import router_parameters
from tests.training.material import plan_of, text_bytes, tiny
from tests.training.test_tuning import SETTINGS, changed, examples, weights

FIGURES = {"copies_per_token", "rank_load_max_over_mean", "choices_changed"}


def windows(count=8, length=32):
    rows = [list(text_bytes()[start * length : (start + 1) * length]) for start in range(count)]
    return [{"input_ids": row, "labels": row} for row in rows]


def arguments(folder: Path, **options):
    given = {
        "output_dir": str(folder),
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "logging_steps": 1,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(**given | options)


class Reporter(TrainerCallback):
    """Stands among the callbacks as those of TensorBoard and W&B do."""

    def __init__(self):
        self.seen = []

    def on_log(self, args, state, control, logs=None, **_):
        self.seen.append((state.global_step, set(logs)))


def test_the_log_tells_what_was_routed(tmp_path: Path) -> None:
    model = tiny()
    plan, data = plan_of(model), windows()
    c2r.apply(model, plan)
    reporter = Reporter()
    options = arguments(tmp_path, learning_rate=0.0, train_sampling_strategy="sequential")
    trainer = Trainer(model, options, train_dataset=data, callbacks=[reporter])
    trainer.add_callback(c2r.RoutingCallback(trainer))
    chosen = [[] for _ in plan.layers]
    gates = [model.get_submodule(layer.name) for layer in plan.layers]
    handles = [
        gate.register_forward_hook(lambda _, args, out, own=own: own.append((args[0], out)))
        for gate, own in zip(gates, chosen, strict=True)
    ]
    trainer.train()
    for handle in handles:
        handle.remove()
    entries = [entry for entry in trainer.state.log_history if "copies_per_token" in entry]
    assert [entry["step"] for entry in entries] == [1, 2]
    assert all("loss" in entry for entry in entries)
    assert [step for step, logs in reporter.seen if logs >= FIGURES] == [1, 2]
    for index, entry in enumerate(entries):
        copies, changes, loads = [], [], []
        for layer, gate, own in zip(plan.layers, gates, chosen, strict=True):
            hidden, output = own[index]
            ids = next(part for part in output if not part.is_floating_point()).numpy()
            best = (hidden.reshape(-1, 128) @ gate.weight.T).topk(4).indices.numpy()
            copies.append(np.mean([len(set(layer.placement[row])) for row in ids]))
            changes.append(
                np.mean([1 - len({*a} & {*b}) / 4 for a, b in zip(ids, best, strict=True)])
            )
            rows = np.bincount(layer.placement[ids].ravel(), minlength=4)
            loads.append(rows.max() / rows.mean())
        assert entry["copies_per_token"] == pytest.approx(np.mean(copies))
        assert entry["choices_changed"] == pytest.approx(np.mean(changes), abs=1e-6)
        assert entry["rank_load_max_over_mean"] == pytest.approx(np.mean(loads))
        assert entry["choices_changed"] > 0.05


def test_what_a_trainer_saves_keeps_the_plan(tmp_path: Path) -> None:
    model = tiny()
    plan, ids = plan_of(model), torch.arange(24)[None]
    c2r.apply(model, plan)
    options = arguments(tmp_path, save_steps=2, learning_rate=1e-3, logging_steps=2)
    trainer = Trainer(model, options, train_dataset=windows())
    trainer.add_callback(c2r.RoutingCallback(trainer))
    trainer.train()
    trainer.save_model(tmp_path / "final")
    expected = model.eval()(input_ids=ids).logits
    for folder in ("checkpoint-2", "final"):
        again = c2r.from_pretrained(tmp_path / folder, dtype=torch.float32)
        assert torch.equal(again(input_ids=ids).logits, expected)
    assert sum("copies_per_token" in entry for entry in trainer.state.log_history) == 1


@pytest.mark.filterwarnings("ignore")  # of other libraries
def test_adapters_around_a_constrained_model(tmp_path: Path) -> None:
    model = tiny()
    plan = plan_of(model)
    c2r.apply(model, plan)
    assert c2r.freeze_routers(model) == 4 * 32 * 128
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    trainer = Trainer(adapted, arguments(tmp_path, save_steps=2), train_dataset=windows())
    trainer.add_callback(c2r.RoutingCallback(trainer))
    before = weights(model)
    trainer.train()
    assert changed(before, model) and all("lora" in name for name in changed(before, model))
    trainer.save_model(tmp_path / "final")
    for folder in ("checkpoint-2", "final"):
        assert (tmp_path / folder / "adapter_config.json").is_file()
        assert Plan.load(tmp_path / folder / PLAN_FILE).fingerprint == plan.fingerprint


def test_a_model_without_a_plan(tmp_path: Path) -> None:
    model = tiny()
    trainer = Trainer(model, arguments(tmp_path), train_dataset=windows())
    with pytest.raises(PlanError, match="call c2r"):
        c2r.RoutingCallback(trainer)
    trainer.add_callback(c2r.RoutingCallback(trainer, plan_of(model)))
    trainer.train()
    (first, *_) = (e for e in trainer.state.log_history if "choices_changed" in e)
    assert first["choices_changed"] == 0


def test_an_interrupted_training_leaves_no_recording(tmp_path: Path) -> None:
    def interrupt(*_):
        raise KeyboardInterrupt

    model = tiny()
    c2r.apply(model, plan_of(model))
    trainer = Trainer(model, arguments(tmp_path), train_dataset=windows())
    trainer.add_callback(c2r.RoutingCallback(trainer))
    handle = model.lm_head.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    handle.remove()
    c2r.measure(model, [{"input_ids": torch.arange(24)[None]}])
    trainer.train()
    assert sum("copies_per_token" in entry for entry in trainer.state.log_history) == 2


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_frozen_routers_do_not_train(mode) -> None:
    model = tiny()
    before, routers = weights(model), set(router_parameters(model))
    settings = replace(SETTINGS, mode=mode, freeze_routers=True, num_steps=1)
    c2r.finetune(model, examples(8), plan_of(model), settings)
    assert changed(before, model) and not changed(before, model) & routers
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_routers_alone_cannot_be_frozen() -> None:
    with pytest.raises(InputError, match="freeze_routers leaves it nothing"):
        replace(SETTINGS, mode="router", freeze_routers=True)


@pytest.mark.filterwarnings("ignore")  # of other libraries
def test_adapters_that_were_constrained(tmp_path: Path) -> None:
    model = tiny()
    plan, ids = plan_of(model), {"input_ids": torch.arange(24)[None]}
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    c2r.apply(adapted, plan)
    adapted.save_pretrained(tmp_path / "adapter")
    found = Plan.load(tmp_path / "adapter" / PLAN_FILE)
    assert found.fingerprint == plan.fingerprint
    with pytest.raises(InputError, match="holds adapters and no model"):
        c2r.from_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(tiny(), tmp_path / "adapter")
    c2r.apply(again, found)
    assert torch.equal(again(**ids).logits, adapted.eval()(**ids).logits)
    c2r.remove(adapted)
    adapted.save_pretrained(tmp_path / "free")
    assert not (tmp_path / "free" / PLAN_FILE).exists()


@pytest.mark.filterwarnings("ignore")  # of other libraries
def test_trls_trainer(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    from c2r.adapters.huggingface import load_tokenizer
    from c2r.assets import tiny_folder

    model, tokenizer = tiny(), load_tokenizer(tiny_folder())
    tokenizer.eos_token = tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    c2r.apply(model, plan_of(model))
    texts = [bytes(row["input_ids"]).decode(errors="ignore") for row in windows(8, 64)]
    options = arguments(tmp_path, save_steps=2).to_dict()
    names = ("output_dir", "max_steps", "per_device_train_batch_size", "logging_steps", "use_cpu")
    config = trl.SFTConfig(
        **{name: options[name] for name in names},
        report_to=[],
        disable_tqdm=True,
        max_length=64,
        bf16=False,
        save_steps=2,
    )
    trainer = trl.SFTTrainer(
        model,
        config,
        train_dataset=Dataset.from_dict({"text": texts}),
        processing_class=tokenizer,
    )
    trainer.add_callback(c2r.RoutingCallback(trainer))
    trainer.train()
    entries = trainer.state.log_history
    assert sum(entry.keys() >= FIGURES for entry in entries) == 2
    assert sum("loss" in entry for entry in entries) == 2
    trainer.save_model(tmp_path / "final")
    ids = torch.arange(24)[None]
    for folder in ("checkpoint-2", "final"):
        again = c2r.from_pretrained(tmp_path / folder, dtype=torch.float32)
        assert torch.equal(again(input_ids=ids).logits, model.eval()(input_ids=ids).logits)
