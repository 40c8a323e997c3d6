"""The training loop, from top to bottom.

    for each step: batches (read ahead) -> device -> forward -> sum of losses -> backward -> / count -> clip -> AdamW -> average

Losses are sums, and gradients are divided by the number of what counted in the whole step: over all processes and all
parts that a step is accumulated from, so that neither changes what a step is. Loss and gradient are judged before each update,
which costs one wait for the device, so that no weights that are not numbers are ever saved.

The learning rate, the hidden and dropped tokens and the order of the sequences are functions of (seed, step): no state could be
lost. All that a run is stands in its checkpoint. On one CPU a run that stopped and resumed is bit for bit the run that did not.
"""

import dataclasses
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from patchpack.schemas import read_manifest
from patchpack.trainer import checkpoint
from patchpack.trainer.budgets import draw
from patchpack.trainer.checks import absolute, check_finite, check_later_steps, check_same_dataset, interruption, named
from patchpack.trainer.config import Config, resumed, taken_over
from patchpack.trainer.data import PackedShards
from patchpack.trainer.dropping import draw_ranks
from patchpack.trainer.evaluate import evaluate, evaluation_dataset, judged
from patchpack.trainer.metrics import Meter, peak_flops
from patchpack.trainer.mixed import MixedShards
from patchpack.trainer.model import Model
from patchpack.trainer.models import layouts_of, make_model
from patchpack.trainer.optimisation import averaged, follow, learning_rate, make_optimizer
from patchpack.trainer.parallel import World, distributed, inner, started, without_sync
from patchpack.trainer.runlog import RunLog
from patchpack.trainer.slots import Batch
from patchpack.trainer.stop import Interrupted, Stop, noted_signals

Log = Callable[[Mapping[str, object]], None]


def train(typed: dict[str, Any], log: Log) -> dict[str, object]:
    """Trains and evaluates as the options say, and returns the summary.

    Args:
        typed: options of `Config` by name; those left out have their defaults, or the resumed run's values.
        log: called with each log line's values, by the first process.

    Raises:
        ValueError: the options do not fit each other, the dataset or the checkpoint; or a step has nothing to learn from.
        FormatError: the dataset or the checkpoint is missing, unfinished or broken.
        FloatingPointError: loss, gradient or weights are no longer numbers.
        Interrupted: a signal came; the last whole step is saved.
    """
    saved, path = None, None
    if typed.get("resume"):
        path = checkpoint.find(typed["resume"])
        saved = checkpoint.read(path)
    config = Config(**typed) if saved is None or path is None else resumed(typed, saved["config"], path)
    if config.checkpoint and config.steps:
        check_later_steps(config, None if saved is None else saved["step"])
    kept = "" if saved is None else taken_over(typed, saved["config"], config)
    with started(config.device) as world:
        # what is distributed is gone before the group of processes is
        return _summary(config, world, log if world.rank == 0 else _silent, saved, path, kept)


def _summary(
    config: Config, world: World, log: Log, saved: checkpoint.RunRecord | None, path: str | None, kept: str
) -> dict[str, object]:
    """Returns what a run says at its end; nothing for all processes but the first."""
    run = Run(config, world, log)
    if saved is not None and path is not None:
        run.go_on(saved, path, kept)
    summary = run.to_the_end()
    return summary if world.rank == 0 else {}


class Run:
    """A run of the trainer: what it trains, on what, and where it stands."""

    def __init__(self, config: Config, world: World, log: Log) -> None:
        """Opens the datasets and makes the model.

        Raises:
            ValueError: as `train`.
            FormatError: as `train`.
        """
        self.config, self.world, self.log = config, world, log
        self.loader = open_loader(config, world, lambda batch: self.net.check(batch))
        self.manifest = self.loader.manifest
        self.evaluated = evaluation_dataset(self.loader, config.eval, config, world) if config.eval else None
        self.budgets = [evaluation_dataset(self.loader, path, config, world) for path in config.budget]
        torch.manual_seed(config.seed)
        others = [each.limits for each in (self.evaluated, *self.budgets) if each is not None]
        made = make_model(config, self.manifest, layouts_of(config, self.manifest), world.device, others)
        if config.compile:
            made.compile(fullgraph=True)
        self.model = distributed(made, world, config.parallel)
        self.optimizer = make_optimizer(self.model, config)
        # of the weights, with --ema; by the model's own names, which are those of any number of processes
        self.average = {name: p.detach().clone() for name, p in self.net.named_parameters()} if config.ema else {}
        self.step = self._begun = 0
        self.best_loss: float | None = None
        self._saved_at: int | None = None
        self._run_log: RunLog | None = None

    @property
    def net(self) -> Model:
        """The model itself."""
        net = inner(self.model)
        if not isinstance(net, Model):
            raise AssertionError(f"{type(net)} is no model of ours")
        return net

    def go_on(self, saved: checkpoint.RunRecord, path: str, kept: str) -> None:
        """Takes over what a checkpoint holds.

        Raises:
            ValueError: it is of another dataset, or there is nothing left to do.
            FormatError: it is broken.
        """
        config = self.config
        check_same_dataset(saved, self.loader, config)
        checkpoint.restore(path, self._weights(), self.world)
        self.step = self._begun = saved["step"]
        self.best_loss = saved["best_loss"]
        if self.step < config.steps:
            self.loader.load_state_dict(saved["loader"])
            self.log({"step": self.step, "resumed": path, "taken_over": kept or None})
        elif self.evaluated is None and not self.budgets:
            raise ValueError(
                f"--resume {config.resume}: done with step {self.step} of {config.steps}; nothing is left to do; give more --steps, "
                "or --eval"
            )

    def to_the_end(self) -> dict[str, object]:
        """Trains, evaluates, and returns the summary."""
        config = self.config
        summary: dict[str, object] = {}
        if config.checkpoint and self.step < config.steps and self.world.rank == 0:
            checkpoint.check_folder(config.checkpoint)
            self._run_log = RunLog(config.checkpoint, tensorboard=config.tensorboard, step=self.step)
        self.world.wait()
        try:
            if self.step < config.steps:
                meter = self._train()
                summary = {"loss": meter.last_loss} | meter.whole()
            if self.evaluated is not None:
                found = self._evaluate()
                self._note({"step": self.step} | found)
                summary |= found
            if self.budgets:
                summary |= self._judge_budgets()
        finally:
            if self._run_log is not None:
                self._run_log.close()
        self._save()
        skipped = int(self.world.summed(torch.tensor(float(len(self.loader.skipped)), device=self.world.device)))
        summary |= {"skipped": skipped} if skipped else {}
        return {"steps": self.step, "device": str(self.world.device), "attention": self.net.backend} | summary

    def _train(self) -> Meter:
        """Makes the steps that are left."""
        config, peak = self.config, peak_flops(self.world.device, self.config.peak_tflops)
        layout = self.manifest.layouts[0]
        meter = Meter(config.batch_size * layout.sequence_length, None if peak is None else peak * self.world.size)
        self.model.train()
        steps = self._steps(meter)
        with noted_signals() as stop:
            while self.step < config.steps:
                is_stopped = self._make_step(next(steps), meter, stop)
                if self.step % config.log_every == 0 or self.step == config.steps:
                    self._log_step(meter)
                if is_stopped:
                    raise Interrupted(interruption(self.step, self._save()), stop.number or signal.SIGTERM)
                if config.eval_every and self.step % config.eval_every == 0 and self.step < config.steps:
                    self._say({"step": self.step} | self._evaluate())
                if self.step % config.checkpoint_every == 0 and self.step < config.steps:
                    self._save()
        return meter

    def _steps(self, meter: Meter) -> Iterator[list[Batch]]:
        """Yields the batches of each step, epoch after epoch, of which a step has one or --accumulate; with --overfit the same again."""
        batches, first = self._batches(), []
        while True:
            begun = time.perf_counter()
            taken = [next(batches) for _ in range(self.config.accumulate)]
            meter.waited(time.perf_counter() - begun)
            if not self.config.overfit:
                yield taken
                continue
            first.append(taken)
            while len(first) == self.config.overfit:
                yield from first

    def _batches(self) -> Iterator[Batch]:
        while True:
            yield from self.loader

    def _make_step(self, batches: list[Batch], meter: Meter, stop: Stop) -> bool:
        """Makes one step; returns whether a signal has come to any process. Waits for the device once."""
        self.optimizer.zero_grad(set_to_none=True)
        sums = self._add_gradients(batches, stop.number or 0)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        total, count, tokens, examples, flops, stopped, norm_value = torch.cat([sums, norm.double()[None]]).tolist()
        self._judge(total, count, norm_value, batches)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.config)
        self.optimizer.step()
        follow(self.average, self.net, self.config.ema)
        self.step += 1
        meter.add(total / count, norm_value, tokens, examples, flops)
        return bool(stopped)

    def _add_gradients(self, batches: list[Batch], signal_number: int) -> torch.Tensor:
        """Leaves the gradients of the mean loss over all that counts in a step, and returns the step's sums over all processes.

        These are: loss, what counts, real tokens, examples, FLOPs, and the signals.
        """
        device, config = self.world.device, self.config
        if self.net.drop_share:
            batches = [batch | {"ranks": draw_ranks(batch, config.seed, self.step)} for batch in batches]
        count = self.world.summed(torch.stack([self.net.count(batch) for batch in batches]).sum())
        # what backward leaves is the mean over processes
        factor = self.world.size / torch.where(count > 0, count, 1)
        sums = torch.zeros(6, dtype=torch.float64, device=device)
        for number, batch in enumerate(batches):
            with without_sync(self.model, last=number == len(batches) - 1):
                with torch.autocast(device.type, torch.bfloat16, enabled=config.is_bf16(device)):
                    output = self.model(batch)
                loss = self.net.loss(output, batch)
                (loss.total * factor).backward()
            real = (batch["num_tokens"].sum(), batch["num_segments"].sum(), self.net.flops(batch))
            parts = (loss.total.detach(), loss.count, *real)
            sums[:5] += torch.stack([part.double() for part in parts])
        sums[5] = signal_number
        return self.world.summed(sums)

    def _judge(self, total: float, count: float, norm: float, batches: list[Batch]) -> None:
        """Checks a step before the weights are changed.

        Raises:
            ValueError: nothing in it counts.
            FloatingPointError: loss or gradient is not finite.
        """
        config, step = self.config, self.step + 1
        if not count:
            raise ValueError(
                f"{config.shards}: {self.net.nothing} in the {config.batch_size} sequences of step {step}, so there is nothing to learn; a "
                "step needs one; use a larger --batch-size, or build the dataset with labels for all inputs"
            )
        if not math.isfinite(total) or not math.isfinite(norm):
            indices = torch.cat([batch["index"] for batch in batches]).tolist()
            raise FloatingPointError(
                f"step {step}: loss is {total / count}, its gradient {norm}, on {named(self.loader.sources(indices))}; training needs finite "
                "ones, so the step was not made; lower --lr and resume an earlier checkpoint"
            )

    def _evaluate(self) -> dict[str, object]:
        """Returns what the evaluation says, by the average where there is one, and notes whether it is the best so far."""
        if self.evaluated is None:
            raise AssertionError("only called with something to evaluate on")
        with averaged(self.net, self.average):
            found = evaluate(self.net, self.evaluated, self.config, self.world)
        loss = found["eval_loss"]
        if isinstance(loss, float) and (self.best_loss is None or loss < self.best_loss):
            self.best_loss = loss
            self._save(best=True)
        return found

    def _judge_budgets(self) -> dict[str, object]:
        """Returns what is found on each dataset of --budget, and draws it beside the checkpoints, if there are any."""
        with averaged(self.net, self.average):
            found = [judged(self.net, each, self.config, self.world) for each in self.budgets]
        folder = self.config.checkpoint
        drawn = draw(found, folder) if folder and os.path.isdir(folder) and self.world.rank == 0 else None
        return {"budgets": found, "drawn": drawn}

    def _save(self, best: bool = False) -> str | None:
        """Saves the run, unless it has no folder, is saved already, or has made no step: judging alone changes nothing."""
        if not self.config.checkpoint or self.step == self._begun:
            return None
        if self._saved_at == self.step and not best:
            return None
        record: checkpoint.RunRecord = {
            "step": self.step,
            "config": dataclasses.asdict(self.config) | {"eval": absolute(self.config.eval)},
            "dataset_digest": self.manifest.dataset_digest,
            "loader": self.loader.state_dict(),
            "best_loss": self.best_loss,
        }
        check_finite(self.model, self.step)
        self._saved_at = self.step
        folder, keep = self.config.checkpoint, self.config.keep
        return checkpoint.save(folder, record, self._weights(), self.world, keep=keep, best=best)

    def _weights(self) -> checkpoint.Weights:
        return {"model": self.model, "optimizer": self.optimizer, "average": self.average}

    def _say(self, values: Mapping[str, object]) -> None:
        self.log(values)
        self._note(values)

    def _note(self, values: Mapping[str, object]) -> None:
        """Writes a line to the run's own log."""
        if self._run_log is not None:
            self._run_log.add(values)

    def _log_step(self, meter: Meter) -> None:
        rate = learning_rate(self.step - 1, self.config)
        left = (self.config.steps - self.step) * meter.seconds_a_step()
        self._say({"step": self.step} | meter.window() | {"lr": rate, "left_s": left})


def open_loader(config: Config, world: World, check: Callable[[Batch], None]) -> PackedShards | MixedShards:
    """Returns the loader of this process' part of each step, whose batches are checked, and on the device when they are taken.

    Raises:
        ValueError: processes or --accumulate do not divide the batch, or the loader refuses it.
        FormatError: the dataset is unfinished or broken.
    """
    parts = world.size * config.accumulate
    if config.batch_size % parts:
        raise ValueError(
            f"--batch-size {config.batch_size}: the sequences of a step, shared by {world.size} processes and cut into --accumulate "
            f"{config.accumulate} parts; it is a multiple of {parts}; choose one"
        )
    layouts = layouts_of(config, read_manifest(config.shards))
    options: dict[str, Any] = {
        "batch_size": config.batch_size // parts,
        "seed": config.seed,
        "last": "drop",  # every step weighs the same number of sequences; another order leaves out others
        "verify": config.verify,
        "cache": config.cache,
        "cache_bytes": config.cache_bytes,
        "window": config.window,
        "on_corrupt": config.on_corrupt,
        "device": world.device,
        "check": check,
        "rank": world.rank,
        "world_size": world.size,
    }
    if len(layouts) == 1:
        return PackedShards(config.shards, layout=layouts[0], **options)
    return MixedShards(config.shards, layouts, **options)


def _silent(values: Mapping[str, object]) -> None:
    """Says nothing: the first process speaks for all."""
