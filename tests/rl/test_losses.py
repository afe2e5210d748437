"""Losses: by hand, against another formula on random inputs, and their gradients."""

from __future__ import annotations

import pytest
import torch

from stepmark.rl.losses import adapted, divergence, policy_loss, value_loss


def random(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_clipped_loss_by_hand():
    old = torch.log(torch.tensor([0.5, 0.5, 0.5, 0.5]))
    new = torch.log(torch.tensor([0.75, 0.75, 0.25, 0.25]))  # ratios 1.5, 1.5, 0.5, 0.5
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0])
    # Gains end at 1.2 and 0.8; losses don't: -1.2 + 1.5 - 0.5 + 0.8
    loss, held = policy_loss(new, old, advantages, 0.2)
    assert float(loss) == pytest.approx(0.6)
    assert int(held) == 2


@pytest.mark.parametrize("seed", range(20))
def test_the_clipped_loss_against_its_cases(seed):
    new, old, advantages = (random(seed + 100 * i, 200) * 0.3 for i in range(3))
    loss, held = policy_loss(new, old, advantages, 0.2)
    expected = count = 0.0
    for n, o, a in zip(new.tolist(), old.tolist(), advantages.tolist(), strict=True):
        ratio = torch.exp(torch.tensor(n - o, dtype=torch.float64)).item()
        if a > 0 and ratio > 1.2:
            expected, count = expected - 1.2 * a, count + 1
        elif a < 0 and ratio < 0.8:
            expected, count = expected - 0.8 * a, count + 1
        else:
            expected -= ratio * a
    assert float(loss) == pytest.approx(expected)
    assert int(held) == count


def test_where_the_policy_is_unchanged_the_gradient_is_the_policy_gradient():
    new, advantages = random(1, 50).requires_grad_(), random(2, 50)
    policy_loss(new, new.detach(), advantages, 0.2)[0].backward()
    assert new.grad == pytest.approx(-advantages.numpy())


def test_what_is_held_back_has_no_gradient():
    new = torch.log(torch.tensor([0.9])).requires_grad_()
    policy_loss(new, torch.log(torch.tensor([0.5])), torch.tensor([1.0]), 0.2)[0].backward()
    assert new.grad.item() == 0.0


def test_the_value_loss_by_hand():
    # Within the clip: 0.5 * 0.1^2. Beyond it, towards the return: the clipped error, 0.5 * (0.2 - 1)^2, is the larger.
    new, old, returns = torch.tensor([0.1, 0.9]), torch.zeros(2), torch.tensor([0.0, 1.0])
    assert float(value_loss(new, old, returns, 0.2)) == pytest.approx(0.005 + 0.32)


def test_the_gradient_of_the_value_loss_is_the_error():
    new, returns = random(3, 40).requires_grad_(), random(4, 40)
    value_loss(new, new.detach(), returns, 0.2).backward()
    assert new.grad == pytest.approx((new - returns).detach().numpy())


def test_the_divergence_is_that_of_the_distributions():
    """Its mean under the policy, summed over the whole vocabulary, is exactly KL(policy || reference)."""
    p, q = random(5, 7).softmax(0), random(6, 7).softmax(0)
    mean = sum(float(w * divergence(a.log(), b.log())) for w, a, b in zip(p, p, q, strict=True))
    assert mean == pytest.approx(float((p * (p / q).log()).sum()))
    assert all(float(divergence(a.log(), b.log())) >= 0 for a, b in zip(p, q, strict=True))
    assert float(divergence(p.log(), p.log())) == 0.0


def test_the_weight_follows_its_target():
    assert adapted(0.1, 0.5, 0.5) == 0.1
    assert adapted(0.1, 100.0, 0.5) == pytest.approx(0.102)
    assert adapted(0.1, 0.0, 0.5) == pytest.approx(0.098)
    assert adapted(0.1, 0.55, 0.5) == pytest.approx(0.101)
