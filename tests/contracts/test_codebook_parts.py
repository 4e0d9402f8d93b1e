"""What holds for `vq` with each part of each codebook family there is, those of plugins included."""

import pytest
import torch
from safetensors.torch import save_file

from visual_tokenizer import build_quantizer
from visual_tokenizer.codebooks.estimators.base import EstimatorConfig
from visual_tokenizer.codebooks.initializers.base import InitializerConfig
from visual_tokenizer.codebooks.parametrizations.base import ParametrizationConfig
from visual_tokenizer.codebooks.regularizers.base import RegularizerConfig
from visual_tokenizer.codebooks.reseeders.base import ReseederConfig
from visual_tokenizer.codebooks.updates.base import UpdateConfig
from visual_tokenizer.quantizers.base import QuantizerConfig

FAMILIES = {
    "estimator": EstimatorConfig,
    "update": UpdateConfig,
    "parametrization": ParametrizationConfig,
    "initializer": InitializerConfig,
    "reseeder": ReseederConfig,
    "regularizers": RegularizerConfig,
}
PARTS = [(family, name) for family, config in FAMILIES.items() for name in config.family.names()]


@pytest.fixture(params=PARTS, ids=lambda part: "-".join(part))
def build(request, tmp_path):
    family, name = request.param
    section = {"type": name}
    if (family, name) == ("initializer", "features"):
        save_file({"features": torch.randn(64, 6)}, tmp_path / "features.safetensors")
        section["path"] = str(tmp_path / "features.safetensors")
    if family == "reseeder":
        section |= {"every_steps": 2, "usage_below": 0.5}
    fields = {"codebook_size": 32, "code_dim": 4, family: [section] if family == "regularizers" else section}
    if family in ("parametrization", "regularizers") or name == "index_backpropagation":
        fields["update"] = {"type": "gradient"}
    return lambda: build_quantizer("vq", **fields)


def batches(count, shape=(2, 20, 4)):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def train_step(quantizer, batch):
    latents = batch.clone().requires_grad_()
    output = quantizer(latents)
    (output.codes.square().mean() + sum(output.losses.values())).backward()
    return output, latents.grad


def test_indices_give_the_codes_of_eval_mode_exactly(build):
    quantizer = build()
    for batch in batches(3):
        quantizer(batch)
    output = quantizer.eval()(batches(1)[0])
    assert torch.equal(quantizer.indices_to_codes(output.indices), output.codes)
    latents = batches(1)[0].requires_grad_()
    assert torch.equal(quantizer(latents).codes, output.codes)


def test_gradient_reaches_latents_and_what_learns_by_it(build):
    quantizer = build()
    _, gradient = train_step(quantizer, batches(1)[0])
    assert gradient.abs().sum() > 0
    for name, parameter in quantizer.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None, name


def test_compiles_to_one_graph_with_the_same_result(build):
    torch._dynamo.reset()
    eager = build()
    for batch in batches(10, (4, 50, 4)):  # past what happens in the first steps only
        eager(batch)
    twin = build()
    twin.load_state_dict(eager.state_dict())
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for step, batch in enumerate(batches(4)):
        state = torch.get_rng_state()
        first, gradient = train_step(eager, batch)
        torch.set_rng_state(state)
        second, twin_gradient = train_step(compiled, batch)
        assert torch.equal(first.indices, second.indices), step
        torch.testing.assert_close(first.codes, second.codes, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(gradient, twin_gradient, atol=1e-5, rtol=1e-4)
    for name, value in eager.state_dict().items():
        torch.testing.assert_close(value, twin.state_dict()[name], atol=1e-5, rtol=1e-4, msg=name)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs + 1


def test_saved_and_loaded_it_goes_on_alike(build):
    quantizer = build()
    for batch in batches(3):
        quantizer(batch)
    twin = QuantizerConfig.family.build(quantizer.config.to_dict())
    twin.load_state_dict(quantizer.state_dict())
    for step, batch in enumerate(batches(3)):
        state = torch.get_rng_state()
        first = quantizer(batch)
        torch.set_rng_state(state)
        second = twin(batch)
        assert torch.equal(first.indices, second.indices), step
        assert torch.equal(first.codes, second.codes), step


def test_deterministic_under_seed(build):
    def run():
        torch.manual_seed(3)
        quantizer = build()
        return [quantizer(batch) for batch in batches(3)][-1]

    first, second = run(), run()
    assert torch.equal(first.indices, second.indices)
    assert torch.equal(first.codes, second.codes)


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (2, 0)])
def test_single_token_and_empty_input(build, batch, length):
    quantizer = build()
    for latents in [torch.randn(batch, length, 4, requires_grad=True) for _ in range(2)]:
        output = quantizer(latents)
        loss = output.codes.sum() + sum(output.losses.values())
        assert torch.isfinite(loss)
        loss.backward()
    assert output.codes.shape == (batch, length, 4)
    assert all(torch.isfinite(value) for value in output.metrics.values())
    assert all(torch.isfinite(tensor).all() for tensor in quantizer.state_dict().values())


def test_bfloat16_autocast_changes_no_index(build):
    quantizer = build()
    for batch in batches(3):
        quantizer(batch)
    quantizer.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        indices = quantizer(batches(1)[0]).indices
    assert torch.equal(indices, quantizer(batches(1)[0]).indices)


def test_config_round_trips(build):
    config = build().config
    assert QuantizerConfig.family.config(config.to_dict()) == config
