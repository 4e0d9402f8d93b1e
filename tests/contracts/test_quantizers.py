"""What holds for every quantizer there is, those of plugins included."""

import pytest
import torch

from visual_tokenizer import QuantizerOutput, build_quantizer, list_quantizers
from visual_tokenizer.quantizers.base import IndexOutOfRangeError, LatentsError, QuantizerConfig

NAMES = list_quantizers()


@pytest.fixture(params=NAMES)
def quantizer(request):
    torch.manual_seed(0)
    return build_quantizer(request.param)


def latents_for(quantizer, batch=2, length=24, requires_grad=False):
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(batch, length, quantizer.code_dim, generator=generator)
    return latents.requires_grad_(requires_grad)


def test_output_shapes_and_kinds(quantizer):
    latents = latents_for(quantizer)
    output = quantizer(latents)
    expected = (2, 24) if quantizer.num_codebooks == 1 else (2, 24, quantizer.num_codebooks)
    assert isinstance(output, QuantizerOutput)
    assert output.codes.shape == latents.shape
    assert output.indices.shape == expected
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
    if quantizer.num_codebooks == 1:
        codes = quantizer.indices_to_codes(some[None])[0]
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
        first, second = quantizer(latents), twin(latents)
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
    output = quantizer(latents_for(quantizer, batch, length))
    assert output.codes.shape == (batch, length, quantizer.code_dim)
    assert all(torch.isfinite(value) for value in output.metrics.values())
    assert torch.isfinite(quantizer.indices_to_codes(torch.zeros_like(output.indices))).all()
    assert all(torch.isfinite(tensor).all() for tensor in quantizer.state_dict().values())


def test_bad_latents_are_refused(quantizer):
    with pytest.raises(LatentsError, match=rf"\(B, N, {quantizer.code_dim}\)"):
        quantizer(torch.zeros(2, 3, quantizer.code_dim + 1))
    with pytest.raises(LatentsError, match="int64"):
        quantizer(torch.zeros(2, 3, quantizer.code_dim, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="NaN"):
        quantizer(torch.full((1, 2, quantizer.code_dim), float("nan")))


def test_indices_out_of_range_are_refused(quantizer):
    shape = (1, 1) if quantizer.num_codebooks == 1 else (1, 1, quantizer.num_codebooks)
    for wrong in (-1, quantizer.codebook_size):
        with pytest.raises(IndexOutOfRangeError, match=str(wrong)):
            quantizer.indices_to_codes(torch.full(shape, wrong))
    with pytest.raises(IndexOutOfRangeError, match="integers"):
        quantizer.indices_to_codes(torch.zeros(shape))


def test_config_round_trips(quantizer):
    assert QuantizerConfig.family.config(quantizer.config.to_dict()) == quantizer.config
