"""UnifiedTrainer: transformers' Trainer with a loss for each kind of token and whole checkpoints."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from peft.utils.other import TrainableTokensWrapper
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler, SequentialSampler
from transformers import PreTrainedModel, Trainer, TrainingArguments

from mmlm.losses.cross_entropy import IGNORED_LABEL
from mmlm.losses.head_loss import HeadLoss
from mmlm.losses.modality_loss import ModalityMeter, TokenWeights, shift_left
from mmlm.training.freezing import FreezeSchedule
from mmlm.training.model_flops import ModelFlops
from mmlm.training.output_norms import OutputNorms
from mmlm.training.resharding import checkpoint_facts, part_step_counts, prepare_checkpoint
from mmlm.training.samples import loss_curve
from mmlm.vocabulary import PADDING
from visual_tokenizer.errors import UserError
from visual_tokenizer.hf_training.stopping import let_workers_live
from visual_tokenizer.hf_training.trainer import RunTrainer


class UnifiedTrainer(RunTrainer):
    """Trains any causal LM of transformers on batches of `input_ids`, `labels`, `token_kinds`, each (B, L).

    Rows that hold several documents have `position_ids` (B, L) too, which begin at 0 with each document.

    The loss is the weighted mean over all trained tokens of an optimizer step: of every accumulated part and
    every process. Rows of the vocabulary that stand for no token stay in the softmax, so that training
    drives them down and tools that sample the whole vocabulary do not meet them. `HeadLoss` says when logits exist.

    Logged beside `loss`, which includes z-loss: `loss_image`, `loss_text`, `loss_structure` (unweighted means, nats a
    token), `z_loss` (its share of the loss, if it has a factor), and the same with `eval_` for the held-out set;
    `tokens_per_second` (tokens without padding, over all processes, without the time of evaluation, samples and
    checkpoints), `model_tflops_per_second` (see `ModelFlops`, over all processes), `mfu`, its share of the peak, and
    `output_norm_image`, `output_norm_text`, `output_norm_structure` (see `OutputNorms`; by the kind that is predicted).

    Args:
        model: the language model, or a peft model of it.
        args: of `training_arguments`.
        train_dataset: read in order; `DocumentSequences` shuffle by themselves.
        max_steps: optimizer steps.
        token_weights: weight of each kind of token.
        z_loss: factor of the squared log normalizer in the loss.
        peak_tflops: of one device, for `mfu`; None: it is not logged.
        freeze: what stands still when.
        **kwargs: as of `RunTrainer`.

    Raises:
        UserError: FSDP in a version, on a device or with adapters that it is not for; or as of `RunTrainer`.
    """

    module = "mmlm.train"
    curve = staticmethod(loss_curve)

    def __init__(
        self,
        model: PreTrainedModel | nn.Module,
        args: TrainingArguments,
        train_dataset: Dataset,
        *,
        max_steps: int,
        token_weights: Mapping[str, float],
        z_loss: float = 0.0,
        peak_tflops: float | None = None,
        freeze: FreezeSchedule | None = None,
        **kwargs: Any,
    ) -> None:
        self.freeze = FreezeSchedule(model, [], []) if freeze is None else freeze
        args.max_steps = max_steps  # theirs from here on: the data says how long an epoch is
        super().__init__(model, args, train_dataset=train_dataset, callbacks=[self.freeze], **kwargs)
        check_fsdp(self)
        # Tells Trainer that compute_loss divides by num_items_in_batch, so that it need not do so by parts.
        self.model_accepts_loss_kwargs = True
        self.token_weights = TokenWeights(token_weights)
        self.head_loss = HeadLoss(model, z_loss)
        self.output_norms = OutputNorms(model)
        self.flops = ModelFlops.of(model)
        self.peak_tflops = peak_tflops
        self.train_meter = ModalityMeter(args.device)
        self.evaluation_meter = ModalityMeter(args.device)

    def train(self, resume_from_checkpoint: Path | None = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """Train as usual, until the end or a signal; a checkpoint may be of another number of processes."""
        if resume_from_checkpoint is not None:
            prepare_checkpoint(self, resume_from_checkpoint)
        return super().train(resume_from_checkpoint, **kwargs)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Create it as usual and note its weight decays."""
        optimizer = super().create_optimizer(*args, **kwargs)
        # DeepSpeed's own optimizer, which its file may name, has one group; it is not there yet.
        self.freeze.weight_decays = [group["weight_decay"] for group in getattr(optimizer, "param_groups", [])]
        return optimizer

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run a part forward and backward as usual; what is frozen gets no gradient."""
        loss = super().training_step(*args, **kwargs)
        if self.is_fsdp_enabled and self.model is not None:
            self.freeze.mask_sharded(self.model)
        return loss

    def get_train_dataloader(self) -> DataLoader:
        """Return the loader as usual; a signal does not end its workers."""
        loader = super().get_train_dataloader()
        let_workers_live(loader)
        return loader

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler:
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        return SequentialSampler(rows)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | None]:
        """Return the parts of one optimizer step and the weight of their tokens over all processes, and share the
        signals that have come."""
        batches = []
        for _ in range(num_batches):
            try:
                batches.append(next(epoch_iterator))
            except StopIteration:
                break
        if not batches:
            return batches, None
        weight = torch.stack([self._weights(batch).sum() for batch in batches]).sum().view(1)
        return batches, self.sum_over_processes(weight, device)[0]

    def _weights(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the weight of each prediction of a batch, (B, L); place i predicts token i + 1."""
        return self.token_weights(shift_left(batch["labels"], IGNORED_LABEL), shift_left(batch["token_kinds"], PADDING))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return this part's share of the weighted mean loss; in evaluation, the mean of the batch."""
        targets = shift_left(inputs["labels"], IGNORED_LABEL)
        kinds = shift_left(inputs["token_kinds"], PADDING)
        weights = self.token_weights(targets, kinds)
        positions = inputs.get("position_ids")
        arguments: dict[str, Any] = {name: inputs[name] for name in ("input_ids", "position_ids") if name in inputs}
        is_training = model.training and num_items_in_batch is not None
        found, outputs = self.head_loss(model, arguments, targets, weights)
        if is_training:
            self.train_meter.add(found, targets, kinds, positions, self.output_norms.take())
            # Gradients are averaged over processes, the loss is a sum over them: hence the factor.
            loss = found.total * (self.accelerator.num_processes / num_items_in_batch.clamp_min(1e-8))
        else:
            self.evaluation_meter.add(found, targets, kinds, positions)
            loss = found.total / weights.sum().clamp_min(1e-8)
        return (loss, outputs) if return_outputs else loss

    def measured(self, prefix: str) -> dict[str, float]:
        """Return the losses by kind, and of the training its rates and norms.

        Raises:
            DivergedError: the loss of a kind is not finite.
        """
        meter = self.evaluation_meter if prefix else self.train_meter
        found = meter.flush(self.accelerator, self.token_weights)
        values = {f"{prefix}loss_{kind}": value for kind, value in found.means.items()}
        if self.head_loss.z_loss:
            values[f"{prefix}z_loss"] = self.head_loss.z_loss * found.squared_normalizer
        if prefix:
            return {**values, f"{prefix}loss": found.mean}  # over tokens; Trainer's is over batches
        values |= {f"output_norm_{kind}": value for kind, value in found.output_norms.items()}
        values["tokens_per_second"] = round(found.tokens_per_second, 1)
        tflops = self.flops.per_second(found.tokens_per_second, found.pairs_per_second) / 1e12
        values["model_tflops_per_second"] = tflops
        if self.peak_tflops is not None:
            values["mfu"] = tflops / (self.peak_tflops * self.accelerator.num_processes)
        return values

    def checkpoint_facts(self, folder: Path) -> dict[str, Any]:
        """Return how the run shards its state."""
        return checkpoint_facts(self, folder)

    @contextmanager
    def off_the_clock(self) -> Iterator[None]:
        """Leave what happens inside out of `tokens_per_second`."""
        begin = time.perf_counter()
        yield
        self.train_meter.pause(time.perf_counter() - begin)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as usual, off the clock."""
        with self.off_the_clock():
            return super().evaluate(*args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.is_deepspeed_enabled:
            part_step_counts(self.optimizer)


def check_fsdp(trainer: Trainer) -> None:
    """Raise `UserError` where FSDP was asked for and cannot shard this model here."""
    if trainer.is_fsdp_enabled:
        version = trainer.accelerator.state.fsdp_plugin.fsdp_version
        if version != 2:
            raise UserError(
                f"fsdp_version must be 2, got {version}: launch with recipes/accelerate/fsdp2.yaml, or --fsdp_version 2"
            )
        some: Any = trainer.model
        table, head = some.get_input_embeddings(), some.get_output_embeddings()
        shared = {id(weight) for weight in table.parameters()} & {id(weight) for weight in head.parameters()}
        if isinstance(table, TrainableTokensWrapper) and shared:
            # accelerate takes them for two tables, as peft makes their weight anew at each look, and PyTorch refuses
            # parameters that two units share.
            raise UserError(
                "lora.rank must be 0 under FSDP2 for a model whose head is tied to its table: train adapters beside it "
                "data-parallel, with recipes/accelerate/multi_gpu.yaml"
            )
    elif parse_flag_from_env("ACCELERATE_USE_FSDP"):
        raise UserError(
            "FSDP was asked for, but accelerate shards on accelerators only and this run is on the CPU, where it would "
            "be plain data-parallel: launch with recipes/accelerate/cpu_2_processes.yaml"
        )
