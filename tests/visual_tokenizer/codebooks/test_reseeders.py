import pytest
import torch

from visual_tokenizer import build_quantizer
from visual_tokenizer.codebooks.liveness import Liveness
from visual_tokenizer.codebooks.reseeders.base import ReseederConfig, random_order

NAMES = ReseederConfig.family.names()


def vq(**fields):
    torch.manual_seed(0)
    return build_quantizer("vq", **{"codebook_size": 32, "code_dim": 4, "usage_decay": 0.5, **fields})


def one_live_code(name, every_steps=4, **fields):
    """A quantizer whose codes are far from all latents, but for number 0."""
    reseeder = {"type": name, "usage_below": 0.9, "every_steps": every_steps, **fields}
    quantizer = vq(update={"type": "gradient"}, reseeder=reseeder)
    quantizer.codebook.data.fill_(100.0)
    quantizer.codebook.data[0] = 0.0
    return quantizer


@pytest.mark.parametrize("name", NAMES)
def test_dead_codes_move_when_due_and_live_ones_stay(name):
    quantizer = one_live_code(name)
    latents = torch.randn(2, 40, 4)
    for _ in range(3):
        quantizer(latents)
    assert (quantizer.codebook.data[1:] == 100).all()
    quantizer(latents)
    assert (quantizer.codebook.data[0] == 0).all()
    moved = (quantizer.codebook.data[1:] != 100).any(dim=1)
    assert moved.sum() == (1 if name == "split" else 31)  # one live code can be split once
    assert (quantizer.liveness.shares[1:][moved] == 1 / 32).all()
    assert quantizer(latents).metrics["usage"] > 1 / 32


def test_random_codes_are_latents_of_the_step():
    quantizer = one_live_code("random", noise=0.0)
    for _ in range(4):
        latents = torch.randn(2, 40, 4)
        quantizer(latents)
    mode = "donot_use_mm_for_euclid_dist"
    distances = torch.cdist(quantizer.codebook.data[1:], latents.view(-1, 4), compute_mode=mode)
    assert distances.min(dim=1).values.max() == 0
    assert distances.argmin(dim=1).unique().numel() == 31


def test_split_codes_lie_beside_the_most_used():
    quantizer = vq(
        codebook_size=4,
        update={"type": "frozen"},
        reseeder={"type": "split", "usage_below": 0.2, "every_steps": 20, "noise": 0.01},
    )
    quantizer.codebook.data.copy_(torch.tensor([[0.0], [1.0], [50.0], [60.0]]).expand(4, 4))
    latents = torch.tensor([0.0] * 20 + [1.0] * 10)[None, :, None].expand(1, 30, 4)
    for _ in range(20):
        quantizer(latents)
    codes = quantizer.codebook.data.mean(dim=1)
    assert codes[2].item() == pytest.approx(0.0, abs=0.1)  # the most used code's copy
    assert codes[3].item() == pytest.approx(1.0, abs=0.1)  # the second most used one's


def test_reservoir_remembers_earlier_steps_and_forgets_the_oldest():
    quantizer = one_live_code("reservoir", size=30, latents_per_step=10)
    for step in range(4):
        quantizer(torch.full((1, 10, 4), float(step)) + 0.01 * torch.randn(1, 10, 4))
    steps = quantizer.codebook.data[1:].mean(dim=1).round()
    assert set(steps[steps < 50].tolist()) == {1.0, 2.0, 3.0}
    assert quantizer.reseeder.seen == 40


def test_reservoir_gives_only_what_it_holds():
    quantizer = one_live_code("reservoir", every_steps=1, size=100)
    quantizer(torch.randn(1, 5, 4))
    assert (quantizer.codebook.data[1:] != 100).any(dim=1).sum() == 5


def test_moving_averages_begin_anew_at_the_new_code():
    quantizer = vq(reseeder={"type": "random", "usage_below": 0.9, "every_steps": 2})
    quantizer.codebook.data[1:] = 100.0
    quantizer.update.reset(quantizer.codebook.data)
    for _ in range(2):
        quantizer(torch.randn(1, 60, 4))
    assert torch.equal(quantizer.update.sums[1:], quantizer.codebook.data[1:])
    assert (quantizer.update.counts[1:] == 1).all()


def test_random_order_draws_from_the_pool_first():
    order = random_order(10, torch.tensor(4), torch.zeros(()))
    assert order.sort().values.tolist() == list(range(10))
    assert set(order[:4].tolist()) == {0, 1, 2, 3}


def test_a_code_is_dead_by_usage_by_age_or_only_while_the_perplexity_is_low():
    liveness = Liveness(4, decay=0.0)
    liveness.observe(torch.tensor([6.0, 2.0, 0.0, 0.0]))
    liveness.observe(torch.tensor([7.0, 0.0, 1.0, 0.0]))
    assert liveness.ages.tolist() == [0, 1, 0, 2]
    assert liveness.dead(0.9, 0, 1.0).tolist() == [False, True, True, True]
    assert liveness.dead(0.0, 1, 1.0).tolist() == [False, True, False, True]
    assert liveness.dead(0.0, 2, 1.0).tolist() == [False, False, False, True]
    entropy = -(7 / 8 * torch.tensor(7 / 8).log() + 1 / 8 * torch.tensor(1 / 8).log())
    torch.testing.assert_close(liveness.perplexity(), entropy.exp())
    share = (entropy.exp() / 4).item()
    assert liveness.dead(0.9, 0, share * 1.01).any()
    assert not liveness.dead(0.9, 0, share * 0.99).any()
    before = liveness.shares.clone()
    liveness.observe(torch.zeros(4))  # a step without tokens
    assert torch.equal(liveness.shares, before)
    assert liveness.ages.tolist() == [0, 1, 0, 2]


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="no code would ever be dead"):
        vq(reseeder={"type": "random", "usage_below": 0.0})
    with pytest.raises(ValueError, match="perplexity_below"):
        vq(reseeder={"type": "random", "perplexity_below": 0.0})
