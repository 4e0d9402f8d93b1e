"""What holds for every quantizer there is, those of plugins included."""

import math

import pytest
import torch

from visual_tokenizer import QuantizerOutput, build_quantizer, list_quantizers
from visual_tokenizer.errors import IndexOutOfRangeError
from visual_tokenizer.quantizers.base import LatentsError, QuantizerConfig

NAMES = list_quantizers()


@pytest.fixture(params=NAMES)
def quantizer(request):
    torch.manual_seed(0)
    return build_quantizer(request.param)


def latents_for(quantizer, batch=2, length=24, requires_grad=False):
    """Draw latents; of whole pictures, whatever the length, where the quantizer takes those only."""
    if quantizer.latent_grid is not None:
        length = math.prod(quantizer.latent_grid)
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(batch, length, quantizer.code_dim, generator=generator)
    return latents.requires_grad_(requires_grad)


def indices_shape(quantizer, batch, length):
    """Return what the indices of (batch, length) positions, or of whole pictures, should look like."""
    if quantizer.latent_grid is not None:
        length = quantizer.token_grid(quantizer.latent_grid)[0]
    return (batch, length) if quantizer.num_codebooks == 1 else (batch, length, quantizer.num_codebooks)


def test_output_shapes_and_kinds(quantizer):
    latents = latents_for(quantizer)
    output = quantizer(latents)
    assert isinstance(output, QuantizerOutput)
    assert output.codes.shape == latents.shape
    assert output.indices.shape == indices_shape(quantizer, 2, 24)
    assert output.indices.dtype == torch.int64
    assert 0 <= output.indices.min() <= output.indices.max() < quantizer.codebook_size
    assert all(loss.ndim == 0 for loss in output.losses.values())
    assert all(metric.ndim == 0 and not metric.requires_grad for metric in output.metrics.values())


def test_indices_give_the_codes_of_eval_mode_exactly(quantizer):
    quantizer(latents_for(quantizer))
    quantizer.eval()
    output = quantizer(latents_for(quantizer))
    assert torch.equal(quantizer.indices_to_codes(output.indices), output.codes)


def test_every_index_has_a_code_of_its_own(quantizer):
    quantizer(latents_for(quantizer))
    quantizer.eval()
    some = torch.randperm(quantizer.codebook_size)[:512]
    indices = torch.zeros(indices_shape(quantizer, some.numel(), 1), dtype=torch.int64)
    indices[:, -1] = some if quantizer.num_codebooks == 1 else some[:, None]
    codes = quantizer.indices_to_codes(indices)
    assert codes.unique(dim=0).shape[0] == some.numel()


def test_gradient_reaches_the_latents(quantizer):
    latents = latents_for(quantizer, requires_grad=True)
    output = quantizer(latents)
    (output.codes.square().mean() + sum(output.losses.values())).backward()
    assert latents.grad is not None
    assert latents.grad.abs().sum() > 0


def test_bfloat16_autocast_gives_the_same_indices(quantizer):
    quantizer(latents_for(quantizer))
    quantizer.eval()
    latents = latents_for(quantizer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        indices = quantizer(latents).indices
    assert torch.equal(indices, quantizer(latents).indices)
    half = quantizer(latents.bfloat16())
    assert half.codes.dtype == torch.bfloat16


def test_save_and_load(quantizer, tmp_path):
    quantizer(latents_for(quantizer))
    twin = QuantizerConfig.family.build(quantizer.config.to_dict())
    twin.load_state_dict(quantizer.state_dict())
    latents = latents_for(quantizer)
    for step in range(2):
        torch.manual_seed(step)
        first = quantizer(latents)
        torch.manual_seed(step)
        second = twin(latents)
        assert torch.equal(first.indices, second.indices), step
        assert torch.equal(first.codes, second.codes), step


def test_deterministic_under_seed(quantizer):
    def run():
        torch.manual_seed(3)
        fresh = build_quantizer(quantizer.config.type)
        for _ in range(3):
            output = fresh(latents_for(fresh))
        return output

    first, second = run(), run()
    assert torch.equal(first.indices, second.indices)
    assert torch.equal(first.codes, second.codes)


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (2, 0), (0, 3)])
@pytest.mark.parametrize("training", [True, False])
def test_single_token_and_empty_input(quantizer, batch, length, training):
    quantizer.train(training)
    latents = latents_for(quantizer, batch, length)
    output = quantizer(latents)
    assert output.codes.shape == latents.shape
    assert output.indices.shape == indices_shape(quantizer, batch, length)
    assert all(torch.isfinite(value) for value in output.metrics.values())
    assert torch.isfinite(quantizer.indices_to_codes(torch.zeros_like(output.indices))).all()
    assert all(torch.isfinite(tensor).all() for tensor in quantizer.state_dict().values())


def test_bad_latents_are_refused(quantizer):
    latents = latents_for(quantizer)
    with pytest.raises(LatentsError, match=rf"\(B, N, {quantizer.code_dim}\)"):
        quantizer(torch.cat([latents, latents[..., :1]], dim=2))
    with pytest.raises(LatentsError, match="int64"):
        quantizer(latents.long())
    with pytest.raises(RuntimeError, match="NaN"):
        quantizer(torch.full_like(latents, float("nan")))
    if quantizer.latent_grid is not None:
        with pytest.raises(LatentsError, match="takes a grid of"):
            quantizer(latents[:, 1:])


def test_indices_out_of_range_are_refused(quantizer):
    shape = indices_shape(quantizer, 1, 1)
    for wrong in (-1, quantizer.codebook_size):
        with pytest.raises(IndexOutOfRangeError, match=str(wrong)):
            quantizer.indices_to_codes(torch.full(shape, wrong))
    with pytest.raises(IndexOutOfRangeError, match="integers"):
        quantizer.indices_to_codes(torch.zeros(shape))
    if quantizer.latent_grid is not None:
        with pytest.raises(IndexOutOfRangeError, match=rf"\(B, {shape[1]}"):
            quantizer.indices_to_codes(torch.zeros(1, shape[1] + 1, dtype=torch.int64))


def test_config_round_trips(quantizer):
    assert QuantizerConfig.family.config(quantizer.config.to_dict()) == quantizer.config
