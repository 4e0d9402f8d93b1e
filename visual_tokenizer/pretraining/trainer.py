"""MaskedImageTrainer: transformers' Trainer on masked pictures and a frozen tokenizer's indices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, TrainingArguments

from visual_tokenizer.hf_training.trainer import RunTrainer
from visual_tokenizer.pretraining.batches import HeldoutPictures, MaskedBatches
from visual_tokenizer.pretraining.objective import MaskedTokenMeter, masked_token_loss
from visual_tokenizer.pretraining.targets import TokenTargets
from visual_tokenizer.runs.manifest import CheckpointError

CURVES = {"loss": "loss", "masked_loss": "loss/masked", "eval_masked_loss": "loss/masked, held out"}
"""What is drawn of a line of the log, by the curve's name."""
UNDECAYED = ("cls_token", "position_embeddings")


class MaskedImageTrainer(RunTrainer):
    """Trains a BEiT of `build_beit` on batches of `pixel_values` (B, 3, H, W) and `bool_masked_pos` (B, N).

    The frozen tokenizer, `targets`, is not part of the model: it is in no checkpoint, gets no gradient and is not
    sharded. Logged beside `loss` are `masked_loss` and `masked_accuracy` of the model's own head, and the same with
    `eval_` for the held-out pictures, measured now and then. `args.ignore_data_skip` must be set: `batches`, this
    process's, begin where the run goes on. `kwargs` are as of `RunTrainer`.
    """

    module = "visual_tokenizer.pretrain"
    curve = staticmethod(CURVES.get)

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        *,
        targets: TokenTargets,
        batches: MaskedBatches,
        heldout: HeldoutPictures,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, args, eval_dataset=heldout, **kwargs)
        # compute_loss gives the mean of a pass, which Trainer divides by the number of passes.
        self.model_accepts_loss_kwargs = False
        self.targets, self.batches = targets, batches
        torch.nn.Module.to(targets.tokenizer, args.device)
        self.train_meter, self.evaluation_meter = MaskedTokenMeter(args.device), MaskedTokenMeter(args.device)

    def get_train_dataloader(self) -> DataLoader:
        """Return the batches, which know their process and the step the run goes on from."""
        batches: Any = self.batches
        return batches

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Return the names of what weight decay is for: all but vectors, biases, class token and positions."""
        return [
            name
            for name, parameter in model.named_parameters()
            if parameter.ndim > 1 and not name.endswith((".bias", *UNDECAYED))
        ]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the loss of a pass: the mean over its masked patches."""
        pixels, mask = inputs["pixel_values"], inputs["bool_masked_pos"]
        targets = self.targets(pixels)
        outputs = model(pixel_values=pixels, bool_masked_pos=mask)
        meter = self.train_meter if model.training else self.evaluation_meter
        meter.add(outputs.logits.detach(), targets, mask)
        loss = masked_token_loss(outputs, targets, mask)
        return (loss, outputs) if return_outputs else loss

    def measured(self, prefix: str) -> dict[str, float]:
        """Return loss and accuracy of the model's own head."""
        meter = self.evaluation_meter if prefix else self.train_meter
        return {f"{prefix}{name}": value for name, value in meter.flush(self.accelerator).items()}

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Write the weights by the names they have here.

        transformers writes a BEiT's by the names of old releases and turns them back in `from_pretrained`, but not
        where Trainer resumes, which would go on from random weights.
        """
        if self.args.should_save:
            model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
            folder = output_dir or self.args.output_dir
            model.save_pretrained(folder, state_dict=state_dict, save_original_format=False)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Refuse a checkpoint whose weights are not the model's, of which Trainer only warns.

        Raises:
            CheckpointError: weights are missing, or there are others.
        """
        wrong = [*load_result.missing_keys, *load_result.unexpected_keys]
        if wrong:
            raise CheckpointError(f"the checkpoint is of another model: {len(wrong)} weights differ, first {wrong[0]}")
