"""SPG's temporary modules, masks and losses: the small case by hand, the start, the dead start."""

import importlib

import pytest
import torch
from oracles import F64
from torch.nn import functional as F

spg = importlib.import_module("metabench.tasks.models.temporary_modules")
LABELS = torch.tensor([0, 0, 1])
FIRST_CLASS = torch.tensor([[0.7, 0.4, 0.2], [0.6, 0.6, 0.3], [0.3, 0.5, 0.6]], dtype=F64)
LOGITS = torch.stack([FIRST_CLASS, 1 - FIRST_CLASS], -1).log()
LOSSES = -LOGITS[:, torch.arange(3), LABELS]
WEIGHTS = torch.tensor([0.4, 0.2], dtype=F64)


def close(found, expected, tolerance=1e-9):
    expected = torch.as_tensor(expected, dtype=F64)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_masks_of_the_small_case_end_with_the_first_failure():
    close(spg.episode_masks(LOGITS, LABELS), [[1, 1, 1], [1, 0, 1], [1, 0, 1]])
    close(spg.episode_masks(LOGITS, LABELS, top=2), torch.ones(3, 3))


def test_form_a_of_the_small_case():
    masks = spg.episode_masks(LOGITS, LABELS)
    means = (masks * LOSSES).sum(1) / (masks.sum(1) + 1e-6)
    close(means, [0.498702909, 0.433750067, 1.060131238])
    close(spg.form_a(LOSSES, masks, WEIGHTS), 0.884229184)


def test_form_b_of_the_small_case_by_hand():
    """-ln of .7, .6, .3 is .356674944, .510825624, 1.203972804: 2.071473372 for the first example,
    and so 2.120263537 (.4, .6, .5) and 1.496109227 (.8, .7, .4) for the others. Returns are 1 + .4
    + .2, 1, and 1.6: L = (3.314357395 + 2.120263537 + 2.393774763) / 3. Cut at the end of the
    episode the second example has its first loss alone, .916290732."""
    masks = spg.episode_masks(LOGITS, LABELS)
    close(spg.form_b(LOSSES, masks, WEIGHTS), 2.609465232)
    close(spg.form_b(LOSSES, masks, WEIGHTS, cut=True), 2.208140963)


def test_form_a_of_episodes_that_are_all_over_is_the_first_loss():
    masks = spg.episode_masks(LOGITS.flip(-1), torch.tensor([0, 1, 1]))
    masks = torch.cat([masks[:1], torch.zeros_like(masks[1:])])
    close(spg.form_a(LOSSES, masks, WEIGHTS), LOSSES[0].sum() / (3 + 1e-6))


def start(n=4, size=6, count=3, seed=0):
    gen = torch.Generator().manual_seed(seed)
    h = torch.rand(n, size, generator=gen, dtype=F64) + 0.5
    return (
        spg.first_modules(count, h, size),
        h,
        torch.rand(n, count, size, generator=gen, dtype=F64),
    )


@pytest.mark.parametrize("residual", ["linear", "linear_relu"])
def test_without_dropout_every_module_starts_as_the_identity(residual):
    theta, h, numbers = start()
    states = spg.trajectory(theta, h, torch.zeros(3, dtype=F64), numbers, residual)
    assert torch.equal(states, h.expand(4, *h.shape))


def test_rates_add_up_at_the_start():
    theta, _, numbers = start(n=2000, size=50)
    ones = torch.ones(2000, 50, dtype=F64)
    states = spg.trajectory(theta, ones, torch.full((3,), 0.2, dtype=F64), numbers, "linear")
    shares = (states == 0).double().mean((1, 2))
    torch.testing.assert_close(
        shares, torch.tensor([0, 0.2, 0.36, 0.488], dtype=F64), rtol=0, atol=0.005
    )
    close(states[1:].amax((1, 2)), [0.8**-1, 0.8**-2, 0.8**-3])


def gradient(theta, residual, numbers, h):
    theta = {k: v.clone().requires_grad_() for k, v in theta.items()}
    states = spg.trajectory(theta, h, torch.full((3,), 0.3, dtype=F64), numbers, residual)
    grads = torch.autograd.grad(states.square().sum(), list(theta.values()))
    return dict(zip(theta, grads, strict=True))


def test_linear_and_relu_from_zero_start_dead_and_linear_alone_does_not():
    theta, h, numbers = start()
    assert all(not g.any() for g in gradient(theta, "linear_relu", numbers, h).values())
    assert all(g.any() for g in gradient(theta, "linear", numbers, h).values())
    away = {k: v + 0.1 for k, v in theta.items()}
    assert all(g.any() for g in gradient(away, "linear_relu", numbers, h).values())


@pytest.mark.parametrize("residual", ["linear", "linear_relu"])
def test_a_trajectory_is_that_of_each_example_by_hand(residual):
    theta, h, numbers = start()
    gen = torch.Generator().manual_seed(3)
    theta = {k: torch.randn(v.shape, generator=gen, dtype=F64) for k, v in theta.items()}
    rates = torch.tensor([0.1, 0.5, 0.7], dtype=F64)
    found = spg.trajectory(theta, h, rates, numbers, residual)
    for i in range(len(h)):
        state = h[i]
        for t in range(1, 4):
            kept = [float(u >= rates[t - 1]) / float(1 - rates[t - 1]) for u in numbers[i, t - 1]]
            state = state * torch.tensor(kept, dtype=F64)
            r = theta[f"module{t}.weight"] @ state + theta[f"module{t}.bias"]
            state = state + (F.relu(r) if residual == "linear_relu" else r)
            close(found[t, i], state)
