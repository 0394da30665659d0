"""transformers' Trainer with our own checkpoints, from which a training resumes exactly."""

import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from transformers import Trainer, TrainerCallback

from c2r.adapters.huggingface import (
    expert_parameters,
    held_rows,
    is_parallel,
    mesh_of,
    reduce_gradients,
    refresh_replicas,
)
from c2r.errors import InputError
from c2r.interrupts import handling
from c2r.parallel import Comm, do_together, is_sharded, join_world, named_failure, own_part
from c2r.training.checkpoint import (
    SHARED,
    STATE_FILE,
    Part,
    check_whole,
    checkpoints,
    forget_older,
    newest_checkpoint,
    pack_random_state,
    pack_weights,
    process_file,
    rank_file,
    read_facts,
    unpack_random_state,
    unpack_weights,
)


class ResumableTrainer(Trainer):  # type: ignore[misc]
    """A Trainer whose checkpoints hold what trains, random states, and counters.

    `base` is the transformers model, inside the `model` that trains. Where its experts are spread
    over processes, each keeps its own in its file of a checkpoint, and gradients are completed by
    `reduce_gradients` instead of DDP. With `writes_beside` a thread writes a copy of a checkpoint
    while the training goes on.
    """

    def __init__(self, base: Any, writes_beside: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.base = base
        self._writes_beside = writes_beside
        self._writing: Writing | None = None
        # Keeps the Trainer from wrapping the model in DDP, which would sum experts of unlike ids.
        self.is_distributed_loading_by_transformers = is_parallel(base)
        self.parts: dict[str, Tensor] = {}
        """Parts of the loss, added up since the last entry of the log."""
        self._log_state: dict[str, Any] | None = None
        self._stopping = Stopping()
        self.add_callback(_StopAfterStep(self))

    def run(self, out: Path | None) -> None:
        """Trains to the end, from the newest checkpoint where `out` has one.

        Raises:
            KeyboardInterrupt: at the first Ctrl-C or SIGTERM after a checkpoint, at the second at
                once; without `out` at the first.
        """
        newest = None if out is None else self._newest(out)
        try:
            with self._stopping.watching(out is not None):
                self.train(resume_from_checkpoint=None if newest is None else str(newest))
                self._finish_writing()
        except RuntimeError as error:
            raise named_failure(f"step {self.state.global_step + 1}", error) or error from None
        finally:
            self._forget_writing()  # nothing but after an error
        if self.state.global_step < self.state.max_steps:
            self._stopping.pass_on()
            raise KeyboardInterrupt

    def _newest(self, out: Path) -> Path | None:
        """The newest checkpoint that is whole, as the first process sees it; all see that one.

        Raises:
            InputError: on all processes.
        """
        if self.processes is None:
            return newest_checkpoint(out)
        what = "the search for a checkpoint"
        name = do_together(
            lambda: str(newest_checkpoint(out) or ""), self.processes, what, only_first=True
        )
        do_together(lambda: check_whole(Path(name)) if name else None, self.processes, what)
        return Path(name) if name else None

    @property
    def processes(self) -> Comm | None:
        """Those that train together, where they are several."""
        return None if self.accelerator.num_processes == 1 else join_world()

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._finish_writing()
        refresh_replicas(self.base)  # the last step made them stale
        writing = self._writing = Writing(Path(self.args.output_dir), self.state.global_step)
        try:
            self.on_all(lambda: writing.begin(self.state), only_first=True)
            writing.start(self._parts(), beside=self._writes_beside)
        except BaseException:
            self._forget_writing()
            raise
        if not self._writes_beside:
            self._finish_writing()

    def _finish_writing(self) -> None:
        """Waits for the checkpoint that is being written, if there is one, and makes it appear."""
        if self._writing is not None:
            writing = self._writing
            try:
                self.on_all(writing.finish, step=writing.step)
                self.on_all(writing.publish, only_first=True, step=writing.step)
            finally:
                self._forget_writing()

    def _forget_writing(self) -> None:
        if self._writing is not None and self.is_world_process_zero():
            shutil.rmtree(self._writing.partial, ignore_errors=True)
        self._writing = None

    def on_all(
        self, write: Callable[[], None], only_first: bool = False, step: int | None = None
    ) -> None:
        """Runs `write` on every process, or on the first; an error anywhere is one everywhere.

        Raises:
            InputError: it could not write, after `step` steps, or those that were taken.
        """
        step = self.state.global_step if step is None else step

        def checked() -> None:
            try:
                write()
            except (OSError, SafetensorError) as error:
                raise InputError(
                    f"cannot write to {self.args.output_dir} after step {step} ({error}); "
                    f"{self.last_checkpoint()}; make room, then run the same again"
                ) from error

        if self.processes is None:
            checked()
        else:
            what = f"the writing after step {step}"
            do_together(checked, self.processes, what, only_first=only_first)

    def last_checkpoint(self) -> str:
        """Which checkpoint there is, in words."""
        made = checkpoints(Path(self.args.output_dir))
        return f"the last checkpoint is {made[-1]}" if made else "there is no checkpoint"

    def _parts(self) -> dict[str, Part]:
        """What this process writes of a checkpoint, by the names of its files."""
        held = held_rows(self.base)
        shared, own, sharded = pack_weights(self.model, self._inner_optimizer(), held)
        random_state = pack_random_state()
        process = Part(
            tensors={**random_state.tensors, **sharded.tensors},
            facts={**random_state.facts, **self._pack_log(), **sharded.facts},
        )
        parts = {process_file(self.args.process_index): process}
        mesh = mesh_of(self.base) if is_parallel(self.base) else None
        # Unless they are sharded, every group holds the same experts; the groups take turns.
        if mesh is not None and own.tensors and mesh.group == mesh.ranks.rank % mesh.num_groups:
            parts[rank_file(mesh.ranks.rank)] = own
        if self.is_world_process_zero():
            facts = {
                "scheduler": self.lr_scheduler.state_dict(),
                "num_processes": self.args.world_size,
                "num_ranks": mesh.ranks.size if mesh is not None and own.tensors else 0,
            }
            parts[SHARED] = replace(shared, facts=facts)
        return parts

    def _inner_optimizer(self) -> Any:
        return getattr(self.optimizer, "optimizer", self.optimizer)

    def _pack_log(self) -> dict[str, Any]:
        """Sums that the next entry of the log is made of."""
        return {
            "loss": self._tr_loss.item(),
            "last_logged": self._globalstep_last_logged,
            "parts": {name: float(total) for name, total in self.parts.items()},
        }

    def wants_to_stop(self) -> bool:
        """Whether any process was interrupted; the same on all. Ends a writing that is through."""
        is_writing = self._writing is not None and not self._writing.is_through
        told = torch.tensor([self._stopping.is_asked, is_writing], dtype=torch.float32)
        if self.args.world_size > 1:
            told = self.accelerator.reduce(told.to(self.args.device), "sum")
        is_asked, is_writing = (bool(number) for number in told.tolist())
        if not is_writing:
            self._finish_writing()
        return is_asked

    def _sync_replicated_trainable_parameters(self, model: nn.Module) -> None:
        """Nothing: `_clip_grad_norm` does, once a step."""

    def _defer_fsdp_gradient_reduction(self) -> Any:
        """Nothing is put off to a step's last pass: until then all gradients would be whole."""
        return nullcontext()

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """The norm of all gradients, with other processes' experts; then clips them."""
        if not is_parallel(self.base):
            return super()._clip_grad_norm(model)
        reduce_gradients(self.base, average=True)
        experts = expert_parameters(self.base)
        trained = {p: p.grad for p in model.parameters() if p.grad is not None}
        kinds: tuple[list[Tensor], ...] = ([], [], [])
        for parameter, gradient in trained.items():
            kind = 0 if is_sharded(parameter) else 1 if parameter in experts else 2
            kinds[kind].append(own_part(gradient))
        sharded, own, shared = (
            get_total_norm(kind).to(self.args.device).square() for kind in kinds
        )
        sharded, own = self.accelerator.reduce(torch.stack([sharded, own]), "sum")
        # Every expert counts once, though each group has it, and so do weights that all hold.
        norm = (sharded + own / mesh_of(self.base).num_groups + shared).sqrt()
        scale = (self.args.max_grad_norm / (norm + 1e-6)).clamp(max=1)  # as torch clips
        for gradient in chain(*kinds):
            gradient.mul_(scale)
        return norm

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Nothing yet: weights come with the optimizer, when both exist."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Puts back weights, optimizer, schedule and log: the first moment when all exist."""
        if checkpoint is None:
            return
        folder = Path(checkpoint)
        facts = read_facts(folder / SHARED)
        unpack_weights(self.model, self._inner_optimizer(), folder, held_rows(self.base))
        self.lr_scheduler.load_state_dict(dict(facts["scheduler"]))
        # The scheduler knows the rate of the next step, the optimizer's groups still the first.
        for group, rate in zip(
            self.optimizer.param_groups, self.lr_scheduler.get_last_lr(), strict=True
        ):
            group["lr"] = rate
        self._log_state = self._unfinished_entry(folder, facts["num_processes"])

    def _unfinished_entry(self, folder: Path, num_processes: int) -> dict[str, Any]:
        """What `_pack_log` gave; where other processes gave it, their mean, which the log shows."""
        if num_processes == self.args.world_size:
            return dict(read_facts(folder / process_file(self.args.process_index)))
        found = [read_facts(folder / process_file(index)) for index in range(num_processes)]
        parts = {
            name: sum(entry["parts"][name] for entry in found) / num_processes
            for name in found[0]["parts"]
        }
        loss = sum(entry["loss"] for entry in found) / num_processes
        return {**found[0], "loss": loss, "parts": parts}

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        folder = Path(checkpoint)
        # Of other processes none could go on as if nothing had happened.
        if read_facts(folder / SHARED)["num_processes"] == self.args.world_size:
            process = folder / process_file(self.args.process_index)
            unpack_random_state(Part.read(process, "random/"))

    def unpack_log(self) -> None:
        """After a resumption, continues the sums of the unfinished log entry."""
        if self._log_state is not None:
            self._tr_loss += self._log_state["loss"]
            self._total_loss_scalar -= self._log_state["loss"]  # the mean of this run's own steps
            self._globalstep_last_logged = self._log_state["last_logged"]
            self.parts = {
                name: torch.tensor(total, device=self.args.device)
                for name, total in self._log_state["parts"].items()
            }
            self._log_state = None


class Writing:
    """A checkpoint of a step that is being written: whole, it gets its name."""

    def __init__(self, out: Path, step: int) -> None:
        self.step = step
        self.partial, self._final = out / f".checkpoint-{step}", out / f"checkpoint-{step}"
        self._parts: Mapping[str, Part] = {}
        self._beside: Future[None] | None = None

    def begin(self, state: Any) -> None:
        """Makes its folder with the Trainer's state, once for all processes."""
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(parents=True)
        state.save_to_json(str(self.partial / STATE_FILE))

    def start(self, parts: Mapping[str, Part], beside: bool) -> None:
        """Takes the parts of this process; `beside` writes copies of them at once, in a thread."""
        self._parts = {name: part.copied() for name, part in parts.items()} if beside else parts
        if beside:
            thread = ThreadPoolExecutor(1)
            self._beside = thread.submit(self._write)
            thread.shutdown(wait=False)

    def _write(self) -> None:
        for name, part in self._parts.items():
            part.write(self.partial / name)

    @property
    def is_through(self) -> bool:
        """Whether this process has written all of its parts, or failed to."""
        return self._beside is None or self._beside.done()

    def finish(self) -> None:
        """Waits until all parts of this process are written. Raises the error of the writing."""
        if self._beside is None:
            self._write()
        else:
            self._beside.result()

    def publish(self) -> None:
        """Gives the folder its name, when all processes have written, and removes older ones."""
        shutil.rmtree(self._final, ignore_errors=True)
        self.partial.rename(self._final)
        forget_older(self._final.parent)


class Stopping:
    """Holds back Ctrl-C and SIGTERM until a step has ended."""

    def __init__(self) -> None:
        self._number: int | None = None

    @property
    def is_asked(self) -> bool:
        """Whether one has come."""
        return self._number is not None

    @contextmanager
    def watching(self, is_wanted: bool) -> Iterator[None]:
        """Notes the first signal inside the block; only the main thread can."""
        with handling(self._ask) if is_wanted else nullcontext():
            yield

    def pass_on(self) -> None:
        """Gives the signal to whoever handled it before."""
        if self._number is not None:
            signal.raise_signal(self._number)

    def _ask(self, number: int, _: Any) -> None:
        if self.is_asked:  # a second one is of someone who will not wait
            raise KeyboardInterrupt
        self._number = number


class _StopAfterStep(TrainerCallback):  # type: ignore[misc]
    def __init__(self, trainer: ResumableTrainer) -> None:
        self._trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        if self._trainer.wants_to_stop():
            control.should_save = control.should_training_stop = True
        return control
