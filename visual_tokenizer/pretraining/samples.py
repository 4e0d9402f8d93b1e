"""Pictures that a transformer completes while it is pre-trained."""

from __future__ import annotations

from PIL import Image
from torch import Tensor, nn

from visual_tokenizer.evaluation.plots import grid_of_rows
from visual_tokenizer.hf_training.log_files import SamplePictures
from visual_tokenizer.pretraining.masked_pictures import prediction_rows
from visual_tokenizer.pretraining.targets import TokenTargets


class PredictedSamples(SamplePictures):
    """Predictions by the frozen `targets` of fixed held-out pictures (B, 3, H, W) in [-1, 1] with `mask` (B, N).

    `grid` is the patches of a column and of a row; `every_steps` and `output_dir` are as of `SamplePictures`.
    """

    def __init__(
        self,
        targets: TokenTargets,
        pixels: Tensor,
        mask: Tensor,
        grid: tuple[int, int],
        every_steps: int,
        output_dir: str,
    ) -> None:
        super().__init__(every_steps, output_dir)
        self.targets, self.pixels, self.mask, self.grid = targets, pixels, mask, grid

    def draw(self, model: nn.Module) -> Image.Image:
        """Return a row a picture."""
        device = self.trainer.args.device
        pixels, mask = self.pixels.to(device), self.mask.to(device)
        return grid_of_rows(prediction_rows(model, self.targets, pixels, mask, self.grid))
