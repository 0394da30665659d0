"""Fine-tuning under a plan, on transformers' Trainer."""

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainingArguments, set_seed

from c2r.adapters.huggingface import (
    apply,
    check_ids,
    freeing_at_once,
    is_offloaded,
    is_parallel,
    is_sharded_model,
    load_model,
    load_parallel,
    parallelize,
    placement_of,
    prepare,
    save_parallel,
    save_pretrained,
    shard,
)
from c2r.errors import InputError
from c2r.measuring import unconstrained
from c2r.parallel import agree, do_together, join_world
from c2r.plans import Plan
from c2r.training.data import Window, collate
from c2r.training.folder import (
    Request,
    claim,
    finished_state,
    make_request,
    model_folder,
    new_folder,
    publish,
    work_folder,
)
from c2r.training.progress import tensorboard_callbacks
from c2r.training.settings import FinetuneSettings
from c2r.training.trainable import Teacher, router_parameters, save_adapter, training_only
from c2r.training.trainer import ConstrainedTrainer, Constraint, ShuffledWindows


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneResult:
    """What a fine-tuning did.

    Attributes:
        num_steps: optimizer steps, with the steps before a resumption.
        num_trainable: parameters that trained; of spread experts, only this process's.
        seconds: of this run.
        log: entries of the Trainer's log, each with its step.
        was_finished: an earlier run of the same had finished, so that nothing was trained now.
    """

    num_steps: int
    num_trainable: int
    seconds: float
    log: tuple[Mapping[str, float], ...]
    was_finished: bool = False


def finetune(  # noqa: PLR0913 - the public door: every choice that a user may leave out
    model: Any,
    windows: Sequence[Window],
    plan: Plan,
    settings: FinetuneSettings,
    out: Path | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    tokenizer: Any = None,
) -> FinetuneResult:
    """Trains `model` in place under the routing of `plan`, which stays applied.

    With `out`, the tuned model is saved there with its plan, and can be loaded with
    `c2r.from_pretrained`; the folder appears whole or not at all. The work is done in
    `<out>.partial`: an interrupted run resumes from its newest checkpoint there when it is called
    again with the same arguments, to the same weights; on other processes to the same but for
    rounding, where nothing is drawn at random. Where such a run has finished, its weights are taken
    from `out`, and nothing is trained.

    Args:
        model: a transformers causal language model; it is trained on the device where it is.
        windows: what `read_windows` gave, or dicts of your own: `input_ids`, `labels` (-100: no
            loss) and `position_ids` (from 0 in each packed piece), `[tokens]` int64 each.
        plan: made for a model of this structure; with `settings.control`, of its placement only.
        settings: what to train, how long and how fast.
        out: folder for the tuned model; default: nothing is written.
        callbacks: of transformers' Trainer.
        tokenizer: saved beside the model, if given.

    Raises:
        InputError: no windows, a setting that does not fit, or `out` is another run's or cannot
            be written.
        PlanMismatchError: the plan was made for another model.
        TrainingError: the loss is not finite; the model holds the last weights that were.
        KeyboardInterrupt: after a checkpoint, where there is `out`.
    """
    _check(model, windows)
    plan = unconstrained(plan) if settings.control else plan
    apply(model, plan, strict=False)
    start = time.perf_counter()
    # What is gathered for a layer would leave holes of its size.
    freeing = freeing_at_once() if settings.fsdp else nullcontext()
    with freeing, _restoring(model), _folder(out) as folder:
        arguments = _arguments(settings, len(windows), folder, str(model.device))
        if settings.expert_parallel and not is_parallel(model):
            parallelize(model, plan.folded(arguments.world_size))
        was_finished = False
        if out is not None:
            request = make_request(model, windows, plan, settings)
            was_finished = _claim_together(out, request, arguments.world_size)
        if settings.fsdp and not was_finished:
            shard(model)
        set_seed(settings.seed)  # adapters begin at random
        given = settings.mode, settings.lora_rank, not settings.freeze_routers
        with training_only(model, *given) as trained:
            num_trainable = sum(p.numel() for p in trained.parameters() if p.requires_grad)
            if not was_finished:
                trainer = ConstrainedTrainer(
                    _constraint(model, trained, plan, settings),
                    settings,
                    base=model,
                    writes_beside=settings.async_save,
                    model=trained,
                    args=arguments,
                    train_dataset=ShuffledWindows(windows, settings),
                    data_collator=collate,
                    callbacks=[*_boards(settings, out, arguments.should_log), *callbacks],
                )
                _train(trainer, trained, out)
        if out is not None and was_finished:
            state = finished_state(out)
            _take_weights(model, out)
        else:
            state = trainer.state
            if out is not None:
                _save(trainer, model, out, tokenizer)
    return FinetuneResult(
        num_steps=state.global_step,
        num_trainable=num_trainable,
        seconds=time.perf_counter() - start,
        log=tuple(state.log_history),
        was_finished=was_finished,
    )


def _boards(
    settings: FinetuneSettings, out: Path | None, is_first: bool
) -> Iterator[TrainerCallback]:
    final = None if out is None else model_folder(out)
    return tensorboard_callbacks(settings.report_to, final, is_first)


def _train(trainer: ConstrainedTrainer, trained: Any, out: Path | None) -> None:
    """Trains to the end; writes the adapters where there are some."""
    settings, plan = trainer.settings, trainer.constraint.plan
    trainer.run(None if out is None else work_folder(out))
    trainer.enforce_at(settings.anneal_steps)  # the whole plan, however early it ended
    if out is not None and settings.mode == "lora":
        folder = model_folder(out) / "adapter"
        trainer.on_all(partial(save_adapter, trained, trainer.base, plan, folder), only_first=True)


def _take_weights(model: Any, out: Path) -> None:
    """Gives a model those of a finished run; where its experts are spread, each process its own."""
    tuned = (
        load_parallel(out, placement_of(model), model.dtype, fsdp=is_sharded_model(model))
        if is_parallel(model)
        else load_model(out, dtype=model.dtype)
    )
    model.load_state_dict(tuned.state_dict())


def _save(trainer: ConstrainedTrainer, model: Any, out: Path, tokenizer: Any) -> None:
    """Makes `out` of the tuned model; of spread experts every process writes its own."""

    new = new_folder(out)
    left = partial(shutil.rmtree, new, ignore_errors=True)  # of a run that was killed here
    trainer.on_all(left, only_first=True)
    if is_parallel(model):
        save_parallel(model, new, tokenizer)
    else:
        trainer.on_all(partial(save_pretrained, model, new, tokenizer), only_first=True)
    trainer.on_all(partial(publish, out, trainer.state), only_first=True)


def _check(model: Any, windows: Sequence[Window]) -> None:
    if not len(windows):
        raise InputError("there are no windows to train on; give at least one")
    for window in windows:
        check_ids(model, torch.as_tensor(window["input_ids"]))
    if is_offloaded(model):
        raise InputError(
            "some weights of the model are offloaded, and cannot be trained where they are; give "
            "devices with more memory, or spread the experts by --expert-parallel"
        )
    if any(_is_reentrant(module) for module in model.modules()):
        raise InputError(
            "the model recomputes its layers with use_reentrant=True, by which the balance loss "
            "would lose its gradient; set gradient_checkpointing in the settings instead"
        )


def _is_reentrant(module: nn.Module) -> bool:
    function = getattr(module, "_gradient_checkpointing_func", None)
    return bool(
        getattr(module, "gradient_checkpointing", False)
        and getattr(function, "keywords", {}).get("use_reentrant", False)
    )


def _claim_together(out: Path, request: Request, num_processes: int) -> bool:
    """The first process begins the folder, the others find it begun. Gives whether it is whole."""
    if num_processes == 1:
        return claim(out, request)
    processes = join_world()
    agree(request, processes)

    def begin() -> str:
        return "finished" if claim(out, request) else ""

    what = "the beginning of the folder"
    do_together(begin, processes, what, only_first=True)
    return bool(do_together(begin, processes, what))


def _constraint(model: Any, trained: Any, plan: Plan, settings: FinetuneSettings) -> Constraint:
    """What training is held to, its weights and the teacher taken from the model before it."""
    weight = settings.aux_weight
    if weight is None:
        is_used = getattr(model.config, "output_router_logits", False)
        weight = getattr(model.config, "router_aux_loss_coef", 0.0) if is_used else 0.0
    teacher = None
    if settings.kl_weight:
        routers = router_parameters(model).values() if settings.mode != "full" else ()
        teacher = Teacher(
            model=model,
            free=prepare(model, unconstrained(plan), strict=False),
            adapted=trained if settings.mode == "lora" else None,
            originals={parameter: parameter.detach().clone() for parameter in routers},
        )
    return Constraint(plan=plan, aux_weight=weight, teacher=teacher)


def _arguments(
    settings: FinetuneSettings, num_windows: int, folder: Path, device: str
) -> TrainingArguments:
    """The Trainer's own settings; what it would do besides is switched off."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=settings.steps(num_windows),
        gradient_accumulation_steps=settings.accumulation,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        seed=settings.seed,
        bf16=settings.bf16,
        use_cpu=device == "cpu",  # where the model is, though there be a GPU
        activation_checkpointing=settings.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        logging_steps=settings.log_every,
        logging_nan_inf_filter=False,  # it would hide a loss that is not finite
        disable_tqdm=True,
        # TensorBoard's callback of the Trainer takes no folder; ours is added beside the others.
        report_to=[name for name in settings.report_to if name != "tensorboard"],
        save_strategy="steps" if settings.save_every else "no",
        save_steps=settings.save_every or 500,
        remove_unused_columns=False,
        train_sampling_strategy="sequential",  # `ShuffledWindows` is in order already
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    # The number of processes is known only once there are arguments.
    arguments.per_device_train_batch_size = settings.batch_per_pass(arguments.world_size)
    return arguments


@contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    """The Trainer wants a folder even where it is to write nothing."""
    if out is not None:
        yield work_folder(out)
        return
    with TemporaryDirectory() as folder:
        yield Path(folder)


@contextmanager
def _restoring(model: Any) -> Iterator[None]:
    """Restores what training changes of a model besides its weights."""
    was_training, use_cache = model.training, model.config.use_cache
    forward = model.__dict__.get("forward")
    recomputes = model.is_activation_checkpointing
    try:
        yield
    finally:
        if forward is None:
            model.__dict__.pop("forward", None)
        else:
            model.forward = forward
        if not recomputes:
            model.activation_checkpointing_disable()
        model.config.use_cache = use_cache
        model.train(was_training)
