import pytest
import torch
from torch.nn import functional as F

from visual_tokenizer import build_quantizer


def dual(**fields):
    torch.manual_seed(0)
    return build_quantizer("dual", **{"codebook_size": 16, "semantic_dim": 4, "pixel_dim": 3, **fields})


@pytest.mark.parametrize("weight", [0.25, 1.0, 4.0])
def test_index_losses_and_gradients_are_tokenflows(weight):
    """The published formula, written out with a distance matrix for each part."""
    quantizer = dual(distance_weight=weight, commitment_weight=0.5)
    latents = torch.randn(3, 11, 7)
    mine, theirs = latents.clone().requires_grad_(), latents.clone().requires_grad_()
    table = quantizer.codebook.detach().clone().requires_grad_()
    output = quantizer(mine)

    semantic, pixel = (F.normalize(part, dim=-1) for part in theirs.flatten(0, 1).split([4, 3], dim=1))
    semantic_codes, pixel_codes = (F.normalize(part, dim=-1) for part in table.split([4, 3], dim=1))
    distances = torch.cdist(semantic, semantic_codes).square() + weight * torch.cdist(pixel, pixel_codes).square()
    indices = distances.argmin(dim=1)
    found = torch.cat([semantic, pixel], dim=1)
    codes = torch.cat([semantic_codes, pixel_codes], dim=1)[indices]
    codebook_loss = (codes - found.detach()).square().mean()
    commitment = 0.5 * (codes.detach() - found).square().mean()
    straight_through = found + (codes - found).detach()

    assert torch.equal(output.indices.flatten(), indices)
    torch.testing.assert_close(output.codes.flatten(0, 1), codes)
    torch.testing.assert_close(output.losses, {"commitment": commitment, "codebook": codebook_loss})
    weights = torch.randn(33, 7)
    (sum(output.losses.values()) + (output.codes.flatten(0, 1) * weights).sum()).backward()
    (codebook_loss + commitment + (straight_through * weights).sum()).backward()
    torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(quantizer.codebook.grad, table.grad)
    torch.testing.assert_close(output.metrics["semantic_error"], (codes - found)[:, :4].detach().square().sum() / 33)


def test_the_weight_decides_which_part_chooses():
    latents = torch.randn(1, 200, 7)
    for weight, part in ((1e-6, slice(0, 4)), (1e6, slice(4, 7))):
        quantizer = dual(distance_weight=weight).eval()
        cosines = F.normalize(latents[0, :, part], dim=-1) @ quantizer.code_pairs[:, part].T
        assert torch.equal(quantizer(latents).indices[0], cosines.argmax(dim=1))


def test_moving_averages_stay_on_both_spheres():
    quantizer = dual(update={"type": "ema", "decay": 0.5})
    before = quantizer.codebook.data.clone()
    output = quantizer(torch.randn(2, 30, 7))
    assert list(output.losses) == ["commitment"]
    assert not torch.equal(before, quantizer.codebook.data)
    for part in quantizer.codebook.data.split([4, 3], dim=1):
        torch.testing.assert_close(part.norm(dim=1), torch.ones(16))


def test_first_codes_are_centres_of_both_parts_and_survive_saving():
    quantizer = dual(initializer={"type": "kmeans", "samples": 100}, distance_weight=2.0)
    pool = torch.randn(100, 7)
    assert quantizer.samples_wanted == 100
    before = quantizer.eval()(pool[None]).metrics["quantization_error"]
    quantizer.train()(pool[None])
    assert quantizer.samples_wanted == 0
    assert quantizer.eval()(pool[None]).metrics["quantization_error"] < before
    twin = dual(initializer={"type": "kmeans", "samples": 100}, distance_weight=2.0)
    twin.load_state_dict(quantizer.state_dict())
    assert twin.samples_wanted == 0
    twin.train()(torch.randn(1, 50, 7))
    assert torch.equal(twin.codebook.data, quantizer.codebook.data)


def test_compiles_in_one_graph():
    torch.compiler.reset()
    quantizer, twin = dual(), dual()
    latents = torch.randn(2, 9, 7)
    expected = quantizer(latents)
    found = torch.compile(twin, fullgraph=True, backend="aot_eager")(latents)
    assert torch.equal(expected.indices, found.indices)
    torch.testing.assert_close(expected.losses, found.losses)


def test_bad_fields():
    for fields, message in (
        ({"codebook_size": 1}, "codebook_size must be 2 or more"),
        ({"pixel_dim": 0}, "pixel_dim must be 1 or more"),
        ({"distance_weight": 0.0}, "distance_weight must be above 0"),
        ({"commitment_weight": -1.0}, "commitment_weight must be 0 or more"),
        ({"initializer": {"type": "streaming"}}, "initializer must not set codes step by step"),
    ):
        with pytest.raises(ValueError, match=message):
            dual(**fields)
