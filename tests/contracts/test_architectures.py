"""What holds for every encoder and every decoder there is, those of plugins included.

Each part has an entry in a table here, small enough to run in a moment; a part without one fails.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from visual_tokenizer import VisualTokenizer, VisualTokenizerConfig
from visual_tokenizer.decoders.base import DecoderConfig
from visual_tokenizer.encoders.base import EncoderConfig, ResolutionError
from visual_tokenizer.outputs import Selection

SIZE = 16
CNN = {
    "channels": 8,
    "channel_multipliers": [1, 2],
    "blocks_per_level": 1,
    "groups": 4,
    "latent_channels": 12,
    "attention_resolutions": [8],
}
TINY_VIT = {"width": 16, "depth": 2, "heads": 2}
PATCH = {"type": "patch", "patch_size": 4, "width": 8}


@dataclass
class Case:
    """A small part, and the sizes of pictures in pixels that it takes and does not take."""

    fields: dict[str, Any]
    grid: tuple[int, ...]
    """Token grid of a picture of 16 × 16, or of `size`."""
    others: dict[tuple[int, ...], tuple[int, ...]] = field(default_factory=dict)
    """Grids of more sizes: (height, width) of pictures or (frames, height, width) of clips."""
    refused: list[tuple[int, ...]] = field(default_factory=list)
    channels: int = 3
    """Of a decoder: channels of what `forward` gives."""
    pixels_per_output: int = 1
    """Of a decoder: side in pixels of a position of what `forward` gives."""
    size: tuple[int, ...] = (SIZE, SIZE)
    """What all tests but those of sizes run on; (frames, height, width) for a part that takes clips only."""


def halved(times: int) -> dict[str, Any]:
    """Sizes that are taken and not taken by an encoder with that downsampling, square and not."""
    others = {(SIZE, 2 * SIZE): (SIZE // times, 2 * SIZE // times), (3 * times, times): (3, 1)}
    refused = [(SIZE + 1, SIZE), (SIZE, SIZE - 1), (0, SIZE)]
    return {"grid": (SIZE // times, SIZE // times), "others": others, "refused": refused}


FIXED: dict[str, Any] = {"refused": [(SIZE, 2 * SIZE), (2 * SIZE, 2 * SIZE), (SIZE + 1, SIZE)]}
HALVES = {"mean": [0.5] * 3, "std": [0.5] * 3}
TRANSFORMER = {
    "model_type": "vit", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "image_size": 16, "patch_size": 4, "qkv_bias": False,
}  # fmt: skip
LATENT_QUERY = {"type": "latent_query", "num_latents": 4, **TINY_VIT, "patches": PATCH}

LEVELS = {"channels": 8, "channel_multipliers": [1, 2], "blocks_per_level": 1, "latent_channels": 6, "groups": 4}
TITOK = {"num_latents": 4, **TINY_VIT, "patch_size": 4}

ENCODERS = {
    "backbone": Case({"level": 1}, grid=(4, 4), others={(16, 32): (4, 8)}, refused=[(0, 16)]),
    "branches": Case(
        {"branches": [LATENT_QUERY, {**LATENT_QUERY, "depth": 1}], "branch_dim": 3},
        grid=(4,),
        **FIXED,
    ),
    "causal_q_former": Case({"num_latents": 4, **TINY_VIT, "patches": PATCH}, grid=(4,), **FIXED),
    "cnn": Case(CNN, **halved(2)),
    "dvae": Case({"channels": 8, "blocks_per_group": 1}, **halved(8)),
    "hybrid_vit": Case(
        {**TINY_VIT, "patches": PATCH}, grid=(4, 4), others={(8, 20): (2, 5)}, refused=[(SIZE + 1, SIZE)]
    ),
    "latent_query": Case({"num_latents": 4, **TINY_VIT, "patches": PATCH}, grid=(4,), **FIXED),
    "lavit": Case({**TINY_VIT, "patches": PATCH}, grid=(16,), **FIXED),
    "open_magvit2": Case(LEVELS, **halved(2)),
    "patch": Case({"patch_size": 4, "width": 8}, **halved(4)),
    "perceiver": Case({"num_latents": 4, **TINY_VIT, "patches": PATCH}, grid=(4,), **FIXED),
    "pixels": Case({}, grid=(16, 16), others={(3, 5): (3, 5)}),
    "q_former": Case({"num_latents": 8, **TINY_VIT, "patches": {"type": "cnn", **CNN}}, grid=(8,), **FIXED),
    "titok": Case(TITOK, grid=(4,), **FIXED),
    "transformers_vision": Case({"architecture": TRANSFORMER, **HALVES}, grid=(4, 4), **FIXED),
    "vit": Case(
        {"patch_size": [8, 4], **TINY_VIT},
        grid=(2, 4),
        others={(8, 20): (1, 5)},
        refused=[(SIZE + 1, SIZE), (SIZE, 18), (4, 4)],
    ),
    "vqvae": Case({"channels": 8, "residual_channels": 4}, **halved(4)),
}
DECODERS = {
    "cnn": Case(CNN, **halved(2)),
    "dvae": Case({"channels": 8, "blocks_per_group": 1, "code_channels": 6}, **halved(8), channels=6),
    "latent_query": Case({"num_latents": 4, "grid_size": 4, **TINY_VIT, "patches": PATCH}, grid=(4,)),
    "lavit": Case({"num_latents": 6, "grid_size": 4, **TINY_VIT, "patches": PATCH}, grid=(6,)),
    "maskgit": Case(LEVELS, **halved(2)),
    "open_magvit2": Case(LEVELS, **halved(2)),
    "patch": Case({"patch_size": 4, "width": 8}, **halved(4)),
    "perceiver": Case({"num_latents": 4, "grid_size": 4, **TINY_VIT, "patches": PATCH}, grid=(4,)),
    "pixels": Case({}, grid=(16, 16), others={(3, 5): (3, 5)}),
    "probe": Case({"code_channels": 6, "decoder": PATCH}, **halved(4)),
    "proxy_codes": Case(
        {"width": 8, "codebook_size": 12, "proxy": PATCH}, **halved(4), channels=12, pixels_per_output=4
    ),
    "q_former": Case(
        {"num_latents": 8, "grid_size": 8, **TINY_VIT, "patches": {"type": "cnn", **CNN}},
        grid=(8,),
    ),
    "titok": Case(
        {**TITOK, "patches": {"type": "proxy_codes", "width": TINY_VIT["width"], "codebook_size": 12, "proxy": PATCH}},
        grid=(4,),
        channels=12,
        pixels_per_output=4,
    ),
    "unit_sphere": Case({"code_channels": 6, "decoder": PATCH}, **halved(4)),
    "vit": Case({"patch_size": [8, 4], **TINY_VIT}, grid=(2, 4), others={(8, 20): (1, 5)}),
    "vqvae": Case({"channels": 8, "residual_channels": 4}, **halved(4)),
}
TIME = {"time_halvings": 1, "time_blocks": 1}
CAUSAL_CNN = {
    "channels": 8,
    "channel_multipliers": [1, 2, 2],
    "temporal_downsampling": [False, True],
    "blocks_per_level": 1,
    "groups": 4,
    "latent_channels": 6,
}
COSMOS = {
    "channels": 8,
    "channel_multipliers": [1, 2],
    "spatial_downsampling": [True],
    "temporal_downsampling": [True],
    "wavelet_levels": 1,
    "blocks_per_level": 1,
    "attention_resolutions": [8],
    "latent_channels": 6,
}
OMNITOKENIZER = {
    "patch_size": 4,
    "temporal_patch_size": 2,
    "width": 16,
    "heads": 2,
    "window_size": 2,
    "temporal_blocks": 1,
    "spatial_blocks": ["full", "window"],
}


def causal(frames: int) -> dict[str, Any]:
    """Sizes of a causal network with 4 × 4 pixels a token and that many frames after the first."""
    others = {(8, 24): (2, 6), (1, 8, 8): (1, 2, 2), (1 + 2 * frames, 8, 16): (3, 2, 4)}
    return {"grid": (4, 4), "others": others, "refused": [(SIZE + 1, SIZE), (frames, SIZE, SIZE)]}


CLIPS: dict[str, Any] = {
    "size": (4, SIZE, SIZE),
    "grid": (2, 4, 4),
    "others": {(2, 8, 24): (1, 2, 6)},
    "refused": [(SIZE + 1, SIZE), (3, SIZE, SIZE)],
}
# It has a patch embedding for the first frame and one for the rest: gradient reaches both in clips.
OMNITOKENIZER_SIZES = {**causal(2), "size": (3, SIZE, SIZE), "grid": (2, 4, 4)}
# Those that take clips as well. The tests run them on `size`; sizes of three numbers are clips.
VIDEO_ENCODERS: dict[str, Case] = {
    "causal_cnn": Case(CAUSAL_CNN, **causal(2)),
    "cosmos": Case(COSMOS, **causal(4)),
    "omnitokenizer": Case(OMNITOKENIZER, **OMNITOKENIZER_SIZES),
    "tats": Case({"channels": 4, "groups": 4, "downsampling": [2, 4, 4]}, **CLIPS),
    "vqvae_3d": Case({"width": 8, "blocks": 1, "downsampling": [2, 4, 4]}, **CLIPS),
    "movq": Case(
        {"frames": {"type": "cnn", **CNN}, **TIME},
        grid=(8, 8),
        others={(8, 20): (4, 10), (4, 8, 4): (2, 4, 2)},
        refused=[(SIZE + 1, SIZE), (3, SIZE, SIZE)],
    ),
}
VIDEO_DECODERS: dict[str, Case] = {
    "causal_cnn": Case(CAUSAL_CNN, **causal(2)),
    "cosmos": Case(COSMOS, **causal(4)),
    "omnitokenizer": Case(OMNITOKENIZER, **OMNITOKENIZER_SIZES),
    "tats": Case({"channels": 4, "groups": 4, "downsampling": [2, 4, 4]}, **CLIPS),
    "vqvae_3d": Case({"width": 8, "blocks": 1, "downsampling": [2, 4, 4]}, **CLIPS),
    "movq": Case({**CNN, "latent_channels": 4, **TIME}, grid=(8, 8), others={(8, 20): (4, 10), (4, 8, 4): (2, 4, 2)}),
}
DECODES_NOTHING = {"absent"}
BEFORE_BATCH_NORM = re.compile(r"time_blocks\.\d+\.conv\d\.conv\.bias")
"""Parameters whose effect a batch norm takes away: their gradient is rounding noise."""

PASSES_NO_GRADIENT = {"probe"}

FAMILIES = {"encoder": (EncoderConfig, ENCODERS, VIDEO_ENCODERS), "decoder": (DecoderConfig, DECODERS, VIDEO_DECODERS)}
PARTS = [
    (kind, name)
    for kind, (config, _, _) in FAMILIES.items()
    for name in config.family.names()
    if name not in DECODES_NOTHING
]


def case_of(kind: str, name: str) -> Case:
    """Return the table's entry of a part, or fail."""
    config, pictures, video = FAMILIES[kind]
    table = video if config.family.get(name).takes_video else pictures
    if name not in table:
        missing = f"{'VIDEO_' if table is video else ''}{kind.upper()}S"
        pytest.fail(f"{kind} '{name}' has no entry in {missing} of this file")
    return table[name]


def built(kind: str, name: str) -> Any:
    """Build the table's small part."""
    torch.manual_seed(0)
    section = {"type": name, **case_of(kind, name).fields}
    return FAMILIES[kind][0].family.build(section, image_size=SIZE)


def inputs(part: Any, kind: str, case: Case, size: tuple[int, ...] | None = None, batch: int = 2) -> tuple[Any, ...]:
    """Draw what the part takes: pixels, or latents and their grid."""
    size = size or case.size
    generator = torch.Generator().manual_seed(1)
    if kind == "encoder":
        return (torch.rand(batch, 3, *size, generator=generator) * 2 - 1,)
    grid = case.grid if size == case.size else case.others[size]
    return torch.randn(batch, math.prod(grid), part.width, generator=generator), grid


def run(part: Any, *arguments: Any) -> torch.Tensor:
    """Return what a part gives: the latents of an encoder that selects some; every draw is the same."""
    torch.manual_seed(2)
    output = part(*arguments)
    return output.latents if isinstance(output, Selection) else output


def shape(part: Any, kind: str, case: Case, size: tuple[int, ...], batch: int = 2) -> tuple[int, ...]:
    """Return the shape that the part should give."""
    if kind == "decoder":
        return batch, case.channels, *(side // case.pixels_per_output for side in size)
    grid = case.grid if size == case.size else case.others[size]
    return batch, math.prod(grid), part.width


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(params=PARTS, ids=[" ".join(pair) for pair in PARTS])
def subject(request):
    kind, name = request.param
    return built(kind, name), kind, case_of(kind, name)


@pytest.mark.parametrize("kind", FAMILIES)
def test_no_entry_is_left_of_a_part_that_is_gone(kind):
    config, *tables = FAMILIES[kind]
    assert {name for table in tables for name in table} <= set(config.family.names())


def test_shapes_at_every_size(subject):
    part, kind, case = subject
    for size in [case.size, *case.others]:
        output = run(part, *inputs(part, kind, case, size))
        assert output.shape == shape(part, kind, case, size), size
        assert torch.isfinite(output).all()
        if kind == "decoder":
            assert part.pixels(output).shape == (2, 3, *size)
        else:
            assert part.token_grid(*size[-2:], *size[:-2]) == (case.grid if size == case.size else case.others[size])


def test_sizes_that_do_not_fit_are_refused(subject):
    part, kind, case = subject
    if kind == "decoder":
        pytest.skip("decoders take any grid of their encoder")
    for size in case.refused:
        with pytest.raises(ResolutionError, match=f"{size[0]} × {size[1]}" if len(size) == 2 else f"{size[0]}"):
            part.token_grid(*size[-2:], *size[:-2])


def test_gradient_reaches_every_parameter_and_the_input(subject):
    part, kind, case = subject
    first, *rest = inputs(part, kind, case)
    first.requires_grad_(True)
    output = run(part.train(), first, *rest)
    (output * torch.randn(output.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    if part.config.type in PASSES_NO_GRADIENT:
        assert first.grad is None
    else:
        assert first.grad is not None
        assert first.grad.abs().sum() > 0
    learned = [(name, value) for name, value in part.named_parameters() if value.requires_grad]
    assert not [name for name, value in learned if value.grad is None]
    without = [name for name, value in learned if not value.grad.abs().sum() > 1e-6]
    assert not [name for name in without if not BEFORE_BATCH_NORM.fullmatch(name)]


def test_pictures_do_not_see_one_another(subject):
    part, kind, case = subject
    first, *rest = inputs(part.eval(), kind, case)
    both, alone = run(part, first, *rest), run(part, first[1:], *rest)
    torch.testing.assert_close(both[1:], alone, atol=1e-5, rtol=1e-4)


def test_bfloat16_autocast_is_near_float32(subject):
    part, kind, case = subject
    arguments = inputs(part.eval(), kind, case)
    with torch.no_grad():
        exact = run(part, *arguments)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = run(part, *arguments).float()
    assert torch.isfinite(rough).all()
    assert (rough - exact).norm() < 0.05 * exact.norm()


def test_bfloat16_weights(subject):
    part, kind, case = subject
    first, *rest = inputs(part.eval(), kind, case)
    with torch.no_grad():
        output = run(part.bfloat16(), first.bfloat16(), *rest)
    assert output.dtype == torch.bfloat16
    assert torch.isfinite(output).all()


def test_deterministic_in_eval_mode(subject):
    part, kind, case = subject
    arguments = inputs(part.eval(), kind, case)
    assert torch.equal(run(part, *arguments), run(part, *arguments))


def test_compiles_into_one_graph(subject):
    part, kind, case = subject
    arguments = inputs(part, kind, case)
    torch._dynamo.reset()
    compiled = torch.compile(part, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(run(compiled, *arguments), run(part, *arguments), atol=1e-5, rtol=1e-4)


def test_config_round_trips(subject):
    part, kind, _ = subject
    assert FAMILIES[kind][0].family.config(part.config.to_dict()) == part.config


def partner(kind: str, part: Any, case: Case) -> dict[str, dict[str, Any]]:
    """Return an encoder for a decoder or a decoder for an encoder, and a quantizer, as sections."""
    code_dim = part.width if part.latents_are_codes else 4
    quantizer = {"type": "vq", "codebook_size": 8, "code_dim": code_dim}
    if len(case.size) == 3:
        section = part.config.to_dict()  # the other of its name has the same fields
    elif len(case.grid) == 1:
        name = "lavit" if kind == "encoder" and part.has_variable_length else "latent_query"
        section = {"type": name, "num_latents": case.grid[0], **TINY_VIT, "patches": PATCH}
        if kind == "encoder":
            section["grid_size"] = 4
    elif kind == "encoder":
        section = dict(PATCH)
    else:
        patch_size = [SIZE // case.grid[0], SIZE // case.grid[1]]
        section = {"type": "vit", "patch_size": patch_size, **TINY_VIT}
    return {"quantizer": quantizer, ("decoder" if kind == "encoder" else "encoder"): section}


def test_a_saved_tokenizer_loads_with_the_same_weights(subject, tmp_path):
    part, kind, case = subject
    sections = {kind: part.config.to_dict(), **partner(kind, part, case)}
    torch.manual_seed(0)
    tokenizer = VisualTokenizer(
        VisualTokenizerConfig(image_size=SIZE, num_frames=sum(case.size[:-2]), **sections)
    ).eval()
    tokenizer.save_pretrained(tmp_path)
    loaded = VisualTokenizer.from_pretrained(tmp_path).eval()
    assert tokenizer.state_dict().keys() == loaded.state_dict().keys()
    pixels = torch.rand(2, 3, *case.size) * 2 - 1
    with torch.no_grad():
        before, after = tokenizer(pixels), loaded(pixels)
    assert torch.equal(before.indices, after.indices)
    assert torch.equal(before.raw, after.raw)
    assert before.pixels.shape[:2] == (2, 3)
    assert torch.equal(loaded.decode(after.indices), after.pixels.clamp(-1, 1))
