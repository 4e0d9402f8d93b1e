"""The visual tokenizer: pixels → latents → codes and indices → pixels."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from visual_tokenizer.configuration import VisualTokenizerConfig
from visual_tokenizer.decoders.base import Decoder, DecoderConfig
from visual_tokenizer.encoders.base import Encoder, EncoderConfig, ResolutionError
from visual_tokenizer.errors import IndexOutOfRangeError, UserError
from visual_tokenizer.outputs import ABSENT, Selection, TokenizerOutput
from visual_tokenizer.quantizers.base import LatentsError, Quantizer, QuantizerConfig
from visual_tokenizer.registry import ConfigError
from visual_tokenizer.runs.saved_models import load_whole


def _linear_map(part: Encoder | Decoder, in_channels: int, out_channels: int) -> nn.Module:
    """Return the map between the channels of `part` and those of a code."""
    if not part.latents_are_codes:
        return nn.Linear(in_channels, out_channels)
    if in_channels != out_channels:
        raise ConfigError(
            f"{type(part).__name__} quantizes its {part.width} channels as they are: the quantizer's code_dim must be "
            f"{part.width}, got {in_channels + out_channels - part.width}"
        )
    return nn.Identity()


def _sides(pixels: Tensor) -> tuple[int, int, int]:
    """Return height, width and frames (0 for pictures) of (B, 3, H, W) or (B, 3, T, H, W)."""
    return pixels.shape[-2], pixels.shape[-1], pixels.shape[2] if pixels.ndim == 5 else 0


class VisualTokenizer(PreTrainedModel):
    """Any encoder, any quantizer, any decoder, joined by two linear maps to and from the code dimension."""

    config_class = VisualTokenizerConfig
    config: VisualTokenizerConfig
    main_input_name = "pixels"
    base_model_prefix = ""
    _no_split_modules: list[str] = []  # noqa: RUF012 - transformers' own attribute

    def __init__(self, config: VisualTokenizerConfig) -> None:
        super().__init__(config)
        self.encoder = EncoderConfig.family.build(config.encoder, image_size=config.image_size)
        self.quantizer: Quantizer = QuantizerConfig.family.build(config.quantizer)
        self.decoder = DecoderConfig.family.build(config.decoder, image_size=config.image_size)
        code_dim = self.quantizer.code_dim
        self.to_codes = _linear_map(self.encoder, self.encoder.width, code_dim)
        self.from_codes = _linear_map(self.decoder, code_dim, self.decoder.width)
        self.token_grid()  # refuses a quantizer made for another grid than the encoder's
        refuse_lengths_that_do_not_fit(self.encoder, self.quantizer, self.decoder)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Leave each layer as its own constructor drew it, but remake constants.

        `from_pretrained` builds the model without storage, so buffers that are not in the checkpoint come back empty.
        """
        if isinstance(module, Quantizer):
            for name, value in module.derived_buffers().items():
                getattr(module, name).copy_(value)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: Any, *, output_loading_info: bool = False, **kwargs: Any
    ) -> Any:
        """Load a folder or a hub name, as any transformers model; always safetensors.

        Raises:
            MissingFileError: a local folder that is not there, or lacks a file.
            CheckpointMismatchError: the weights are not those of the config's architecture.
            UserError: it holds another model, or a damaged file.
        """
        load, model_type = super().from_pretrained, cls.config_class.model_type
        model, info = load_whole(
            load, pretrained_model_name_or_path, "visual tokenizer", model_type=model_type, **kwargs
        )
        for module in model.modules():
            if isinstance(module, Quantizer):
                module.after_load()
        return (model, info) if output_loading_info else model

    @property
    def codebook_size(self) -> int:
        """Indices of one codebook are in [0, codebook_size)."""
        return self.quantizer.codebook_size

    @property
    def num_codebooks(self) -> int:
        """Indices a position."""
        return self.quantizer.num_codebooks

    @property
    def has_variable_length(self) -> bool:
        """Whether a picture has as many tokens as it needs: 1 to those of `token_grid()`, which is then (N,)."""
        return self.encoder.has_variable_length

    def latent_grid(
        self, height: int | None = None, width: int | None = None, frames: int | None = None
    ) -> tuple[int, ...]:
        """Return the shape of the latents of one picture or clip.

        Args:
            height: pixels; the nominal size by default.
            width: pixels; the nominal size by default.
            frames: of a clip, 0 for a picture; the nominal number by default.

        Raises:
            ResolutionError: a size that the encoder can't take.
        """
        size = self.config.image_size
        sides = (size if height is None else height, size if width is None else width)
        clip = self.config.num_frames if frames is None else frames
        if not clip:
            return self.encoder.token_grid(*sides)
        if not self.encoder.takes_video or not self.decoder.takes_video:
            raise ResolutionError(f"this tokenizer takes pictures only, got a clip of {clip} frames")
        encoder: Any = self.encoder
        return encoder.token_grid(*sides, clip)

    def token_grid(
        self, height: int | None = None, width: int | None = None, frames: int | None = None
    ) -> tuple[int, ...]:
        """Return the shape of the tokens of one picture, (h, w) or (n,), or clip, (t, h, w); see `latent_grid`.

        Raises:
            ResolutionError: a size that the encoder or the quantizer can't take.
        """
        try:
            return self.quantizer.token_grid(self.latent_grid(height, width, frames))
        except LatentsError as error:
            raise ResolutionError(str(error)) from error

    def latents(self, pixels: Tensor) -> Tensor:
        """Return what enters the quantizer: (B, 3, H, W) or (B, 3, T, H, W) in [-1, 1] → (B, N, code_dim).

        Of a variable-length tokenizer (M, 1, code_dim): the latents of all pictures in a row.

        Raises:
            UserError: another shape or kind.
            ResolutionError: a size that the encoder can't take.
        """
        latents, selection = self._select(pixels)
        return latents if selection is None else latents[selection.present][:, None]

    def _select(self, pixels: Tensor) -> tuple[Tensor, Selection | None]:
        """Return the latents (B, N, code_dim) and, where the encoder selects, what it selected."""
        if pixels.ndim not in (4, 5) or pixels.shape[1] != 3 or not pixels.is_floating_point():
            raise UserError(
                "pixels must be float (B, 3, H, W), or (B, 3, T, H, W) for clips, in [-1, 1], "
                f"got {tuple(pixels.shape)} {pixels.dtype}"
            )
        self.latent_grid(*_sides(pixels))
        encoded = self.encoder(pixels)
        if not self.has_variable_length:
            return self.to_codes(encoded), None
        return self.to_codes(encoded.latents), encoded

    def forward(self, pixels: Tensor, **_: Any) -> TokenizerOutput:
        """Encode, quantize and decode (B, 3, H, W) or (B, 3, T, H, W) pixels in [-1, 1]."""
        latents, selection = self._select(pixels)
        present = None if selection is None else selection.present
        quantized = self.quantizer(latents, present)
        metrics = quantized.metrics
        if present is not None:
            metrics = {**metrics, "tokens_per_picture": present.sum(1).float().mean()}
        output = self._decoded(quantized.codes, self.latent_grid(*_sides(pixels)), present)
        return TokenizerOutput(
            pixels=self.decoder.pixels(output),
            raw=output,
            indices=self._fold(quantized.indices, self.token_grid(*_sides(pixels))),
            latents=latents,
            codes=quantized.codes,
            losses=quantized.losses,
            metrics=metrics,
            present=present,
            decisions=None if selection is None else selection.decisions,
        )

    def _decoded(self, codes: Tensor, grid: tuple[int, ...], present: Tensor | None) -> Tensor:
        """Return what the decoder makes of (B, N, code_dim) codes."""
        return self.decoder(self.from_codes(codes), grid, *(() if present is None else (present,)))

    def _fold(self, indices: Tensor, grid: tuple[int, ...]) -> Tensor:
        return indices.reshape(indices.shape[0], *grid, *indices.shape[2:])

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Return indices (B, *token_grid[, num_codebooks]) int64 of pixels (B, 3, [T,] H, W) in [-1, 1].

        Of a variable-length tokenizer each row holds the picture's own indices, then `ABSENT`.
        """
        latents, selection = self._select(pixels)
        quantized = self.quantizer(latents, None if selection is None else selection.present)
        return self._fold(quantized.indices, self.token_grid(*_sides(pixels)))

    @torch.no_grad()
    def decode(self, indices: Tensor) -> Tensor:
        """Return pixels (B, 3, H, W), or (B, 3, T, H, W), in [-1, 1] of indices (B, *token_grid[, num_codebooks]).

        A variable-length tokenizer takes (B, n[, num_codebooks]) of any n up to its most, `ABSENT` behind a picture's
        own indices.

        Raises:
            IndexOutOfRangeError: an index that no code has, or a grid of the wrong number of dimensions.
            ResolutionError: a grid that the tokenizer does not have, or a picture without tokens.
        """
        if self.has_variable_length:
            return self._decode_own(indices)
        nominal = self.token_grid()
        shape = tuple(indices.shape[1:])
        if self.num_codebooks > 1:
            if not shape or shape[-1] != self.num_codebooks:
                raise IndexOutOfRangeError(
                    f"the last dimension must be {self.num_codebooks} (num_codebooks), got {tuple(indices.shape)}"
                )
            shape = shape[:-1]
        dimensions = (2, 3) if self.encoder.takes_video and len(nominal) > 1 else (len(nominal),)
        if len(shape) not in dimensions or (len(nominal) == 1 and shape != nominal):
            raise ResolutionError(
                f"indices must be (B, {', '.join(map(str, nominal))}) at {self.config.image_size} pixels, "
                f"got {tuple(indices.shape)}"
            )
        flat = indices.reshape(indices.shape[0], math.prod(shape), *indices.shape[1 + len(shape) :])
        codes = self.quantizer.indices_to_codes(flat).to(self.dtype)
        grid = shape if self.quantizer.latent_grid is None else self.latent_grid()
        return self.decoder.pixels(self.decoder(self.from_codes(codes), grid)).clamp(-1, 1)

    def _decode_own(self, indices: Tensor) -> Tensor:
        """Return pixels of (B, n[, num_codebooks]) indices of pictures of any lengths."""
        present = present_tokens(indices, self.token_grid()[0], self.num_codebooks)
        codes = self.quantizer.indices_to_codes(indices.clamp_min(0)).to(self.dtype)
        output = self._decoded(codes * present[..., None], (indices.shape[1],), present)
        return self.decoder.pixels(output).clamp(-1, 1)


def present_tokens(indices: Tensor, most: int, num_codebooks: int) -> Tensor:
    """Return which tokens are pictures' own, (B, n) bool.

    Args:
        indices: int64 (B, n), or (B, n, num_codebooks), of any n up to `most`.
        most: tokens that a picture can have.
        num_codebooks: indices a token.

    Raises:
        ResolutionError: another shape, a picture without tokens, or `ABSENT` before a picture's last token.
    """
    books = (num_codebooks,) if num_codebooks > 1 else ()
    if indices.ndim != 2 + len(books) or indices.shape[2:] != books or not 0 < indices.shape[1] <= most:
        wanted = ", ".join(map(str, ("B", f"1 to {most}", *books)))
        raise ResolutionError(f"indices must be ({wanted}), got {tuple(indices.shape)}")
    absent = (indices == ABSENT).flatten(2) if books else (indices == ABSENT)[..., None]
    present = ~absent.any(2)
    is_ordered = present[:, :1] & (present.long().diff(dim=1) <= 0).all(1, keepdim=True)
    if not bool((is_ordered & (absent.all(2) == ~present)).all()):
        raise ResolutionError(f"indices must hold one or more tokens a picture, and {ABSENT} only behind its last")
    return present


def refuse_lengths_that_do_not_fit(encoder: Encoder, quantizer: Quantizer, decoder: Decoder) -> None:
    """Raise `ConfigError` where a part would take absent latents for latents."""
    inner = [part for part in encoder.modules() if isinstance(part, Encoder) and part is not encoder]
    if any(part.has_variable_length for part in inner):
        raise ConfigError(f"{type(encoder).__name__} takes encoders of fixed length only within it")
    if not encoder.has_variable_length:
        return
    gives = f"{type(encoder).__name__} gives a picture as many latents as it needs"
    if quantizer.latent_grid is not None:
        raise ConfigError(f"{gives}: quantizer must take each by itself, but {type(quantizer).__name__} takes grids")
    if not decoder.takes_variable_length:
        raise ConfigError(f"{gives}: decoder must take any number, and {type(decoder).__name__} does not")
