"""What every decoder has in common."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from annotated_types import Ge
from torch import Tensor, nn

from visual_tokenizer.layers.shape import QueryShape
from visual_tokenizer.registry import PartConfig


@dataclass(kw_only=True)
class DecoderConfig(PartConfig, package="visual_tokenizer.decoders"):
    """Fields that every decoder has (none)."""


class Decoder(nn.Module):
    """Turns a sequence of latents into pixels. A subclass sets `width`, the channels of a latent.

    One that sets `takes_video` gives (B, 3, T, H, W) for a grid of three sides.
    """

    Config: ClassVar[type[DecoderConfig]]
    width: int
    latents_are_codes: ClassVar[bool] = False
    """Whether it takes codes as they are, without a linear map from the code dimension."""

    takes_video: ClassVar[bool] = False
    """Whether it decodes clips as well as pictures."""

    takes_variable_length: bool = False
    """Whether `forward` has a third argument, `present` (B, N) bool: which latents are a picture's own. What stands
    behind them must not matter; None stands for all. N may be less than the encoder's most."""

    last_weight: ClassVar[str] = ""
    """Name of the parameter that `last_layer` gives."""

    def __init__(self, config: DecoderConfig, *, image_size: int) -> None:
        super().__init__()
        self.config: Any = config
        self.image_size = image_size

    def forward(self, latents: Tensor, grid: tuple[int, ...]) -> Tensor:
        """Decode: (B, N, width), N = product of `grid` → (B, 3, H, W), about [-1, 1], or more than pixels."""
        raise NotImplementedError

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight of the last learned layer before the pixels, at which adversarial training compares gradients.

        Raises:
            NotImplementedError: the decoder does not say which it is.
        """
        if not self.last_weight:
            raise NotImplementedError(
                f"{type(self).__name__} names no last_layer, which adversarial.adaptive needs: set "
                "adversarial.adaptive to false, or say its name as the class's last_weight"
            )
        return self.get_parameter(self.last_weight)

    def pixels(self, output: Tensor) -> Tensor:
        """Return the pixels, about [-1, 1], within what `forward` gave: all of it, unless it is a distribution."""
        return output


class OuterDecoder(Decoder):
    """One that ends in another decoder, its attribute `inner_name`, which gives the pixels."""

    inner_name: ClassVar[str] = "patches"

    @property
    def inner(self) -> Decoder:
        """The decoder at its end."""
        decoder: Decoder = getattr(self, self.inner_name)
        return decoder

    @property
    def last_layer(self) -> nn.Parameter:
        return self.inner.last_layer

    def pixels(self, output: Tensor) -> Tensor:
        return self.inner.pixels(output)


@dataclass(kw_only=True)
class GridDecoderConfig(QueryShape, DecoderConfig):
    """Fields of decoders of one-dimensional tokens."""

    grid_size: Annotated[int, Ge(1)] = 16
    """Side of the grid of positions, at the nominal picture size."""

    patches: DecoderConfig = field(default_factory=lambda: DecoderConfig.family.config({"type": "patch"}))
    """The decoder that turns the grid into pixels: `patch` is linear, `cnn` a hybrid."""


class GridDecoder(OuterDecoder):
    """A grid of positions reads the tokens, and another decoder draws it; a subclass builds both, in this order."""

    def __init__(self, config: GridDecoderConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        self.width = config.width
        self.grid = (config.grid_size, config.grid_size)


PART = Decoder
