import pytest
import torch

from visual_tokenizer import build_quantizer


def relaxed(**fields):
    return build_quantizer("relaxed_binary", codebook_size=64, **fields)


@pytest.mark.parametrize("relaxation", ["tanh", "sigmoid"])
def test_training_codes_and_gradient_are_those_of_the_relaxation(relaxation):
    """Closed form: s, and (1 − s²)/τ for tanh, 2σ(1 − σ)/τ for the sigmoid."""
    latents = torch.randn(2, 5, 6, requires_grad=True)
    output = relaxed(relaxation=relaxation, temperature=0.7, final_temperature=0.7)(latents)
    values = latents.detach() / 0.7
    sigmoid = torch.sigmoid(values)
    expected = torch.tanh(values) if relaxation == "tanh" else 2 * sigmoid - 1
    slope = (1 - expected**2) / 0.7 if relaxation == "tanh" else 2 * sigmoid * (1 - sigmoid) / 0.7
    weights = torch.randn(2, 5, 6)
    (output.codes * weights).sum().backward()
    torch.testing.assert_close(output.codes, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(latents.grad, weights * slope, atol=1e-6, rtol=1e-5)
    assert output.losses == {}


@pytest.mark.parametrize("relaxation", ["tanh", "sigmoid"])
def test_at_temperature_zero_it_is_lfq(relaxation):
    """Property: codes and indices are LFQ's in the limit, and in eval mode at any temperature."""
    latents = torch.randn(2, 50, 6)
    expected = build_quantizer("lfq", codebook_size=64)(latents)
    cold = relaxed(relaxation=relaxation, temperature=1e-30, final_temperature=1e-30)
    warm = relaxed(relaxation=relaxation).eval()
    assert torch.equal(cold(latents).codes, expected.codes)
    for quantizer in (cold, warm):
        output = quantizer.eval()(latents)
        assert torch.equal(output.indices, expected.indices)
        assert torch.equal(output.codes, expected.codes)
    assert torch.equal(relaxed(relaxation=relaxation)(latents).indices, expected.indices)


def test_the_temperature_falls_by_the_same_factor_and_then_stays():
    """Closed form: 8, 4, 2, 1, 1, 1 over three steps; eval passes are no steps."""
    quantizer = relaxed(temperature=8.0, final_temperature=1.0, anneal_steps=3)
    found = []
    for _ in range(6):
        found.append(quantizer(torch.randn(1, 2, 6)).metrics["temperature"].item())
        quantizer.eval()(torch.randn(1, 2, 6))
        quantizer.train()
    assert found == pytest.approx([8, 4, 2, 1, 1, 1])
    assert quantizer.steps.dtype == torch.int64
    assert quantizer.steps == 6


def test_a_loaded_quantizer_goes_on_at_its_temperature():
    quantizer, twin = (relaxed(anneal_steps=10) for _ in range(2))
    latents = torch.randn(1, 4, 6)
    for _ in range(4):
        quantizer(latents)
    twin.load_state_dict(quantizer.state_dict())
    assert set(quantizer.state_dict()) == {"steps"}
    assert torch.equal(twin(latents).codes, quantizer(latents).codes)


def test_the_gap_is_the_distance_of_soft_from_hard_codes():
    output = relaxed(temperature=0.5, final_temperature=0.5)(torch.full((1, 3, 6), 0.2))
    assert output.metrics["relaxation_gap"].item() == pytest.approx(1 - torch.tanh(torch.tensor(0.4)).item())


def test_a_latent_of_zero_is_minus_one_and_order_is_declared():
    latents = torch.tensor([[[1.0, 1.0, 0.0, -1.0, -1.0, -1.0]]])
    for order, index in (("most_significant_first", 0b110000), ("least_significant_first", 0b000011)):
        output = relaxed(index_order=order).eval()(latents)
        assert output.indices.item() == index
        assert output.codes.tolist() == [[[1, 1, -1, -1, -1, -1]]]


def test_bad_fields():
    for field, wrong in (
        ("temperature", 0.0),
        ("final_temperature", 0.0),
        ("final_temperature", 2.0),
        ("anneal_steps", 0),
        ("codebook_size", 63),
    ):
        with pytest.raises(ValueError, match=f"{field} must be"):
            build_quantizer("relaxed_binary", **{field: wrong})
