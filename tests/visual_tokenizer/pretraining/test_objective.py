import math
from types import SimpleNamespace

import torch

from visual_tokenizer.pretraining.objective import MaskedTokenMeter, masked_token_loss


def example(codebooks=1, size=5):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 6, codebooks * size, generator=generator, requires_grad=True)
    targets = torch.randint(size, (2, 6, codebooks), generator=generator)
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[0, [1, 4]] = mask[1, 3] = True
    return logits, targets, mask


def by_hand(logits, targets, mask, size):
    """Equation 3: the mean of −log softmax over masked places and codebooks."""
    terms = []
    for picture, place in mask.nonzero().tolist():
        for book in range(targets.shape[-1]):
            scores = logits.detach()[picture, place, book * size : (book + 1) * size].double()
            terms.append(math.log(scores.exp().sum()) - scores[targets[picture, place, book]].item())
    return sum(terms) / len(terms)


def test_the_loss_is_the_cross_entropy_of_masked_patches_only():
    for codebooks in (1, 3):
        logits, targets, mask = example(codebooks)
        loss = masked_token_loss(SimpleNamespace(logits=logits), targets, mask)
        assert math.isclose(loss.item(), by_hand(logits, targets, mask, 5), rel_tol=1e-6)
        loss.backward()
        assert torch.all(logits.grad[~mask] == 0)
        assert torch.all(logits.grad[mask].abs().sum(-1) > 0)


def test_two_predictions_add_up():
    logits, targets, mask = example()
    other = torch.randn_like(logits)
    both = masked_token_loss(SimpleNamespace(logits=logits, aggregated_logits=other), targets, mask)
    expected = by_hand(logits, targets, mask, 5) + by_hand(other, targets, mask, 5)
    assert math.isclose(both.item(), expected, rel_tol=1e-6)


def test_the_meter_gives_means_over_tokens_of_all_batches():
    logits, targets, mask = example()
    meter = MaskedTokenMeter(torch.device("cpu"))
    alone = SimpleNamespace(reduce=lambda values, reduction: values)
    meter.add(logits, targets, mask)
    one = torch.zeros_like(mask)
    one[0, 0] = True
    meter.add(logits, targets, one)
    found = meter.flush(alone)
    assert math.isclose(found["masked_loss"], by_hand(logits, targets, mask | one, 5), rel_tol=1e-6)
    right = (logits.argmax(-1) == targets[..., 0])[mask | one].double().mean().item()
    assert found["masked_accuracy"] == right
    assert meter.flush(alone)["masked_loss"] == 0
