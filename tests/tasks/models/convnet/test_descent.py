"""MAML's gradient by hand against elementary operations under autograd."""

from __future__ import annotations

import pytest
import torch
from conv_nets import EXACT, draw, meta_gradient, relative_error, weights_of

from metabench.tasks.models.convnet import convolution
from metabench.tasks.models.networks import ConvNet

EPISODES = 3


@pytest.fixture
def episodes():
    """Of each episode, two support sets and a query set: images [E, n, c, h, w], labels [E, n]."""

    def labels(n):
        return (torch.arange(n) % 5).repeat(EPISODES, 1)

    def made(channels, size):
        return [(draw(EPISODES, n, channels, size, size, seed=n), labels(n)) for n in (5, 10, 11)]

    return made


def nets_of(channels, size, blocks=3, **options):
    return [
        ConvNet(channels, size, 5, filters=6, blocks=blocks, elementary=e, dtype=torch.float64,
                **options)
        for e in (False, True)
    ]  # fmt: skip


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("signs", ["ones", "mixed"])
@pytest.mark.parametrize("unroll_rows", [0, 100, 10**9])
@pytest.mark.parametrize("downsample", ["stride", "pool"])
@pytest.mark.parametrize("size, channels, reduce", [(28, 1, "mean"), (21, 3, "flatten")])
def test_the_sum_of_meta_gradients_is_the_librarys(
    episodes, size, channels, reduce, downsample, unroll_rows, signs, steps, first_order,
    monkeypatch,
):  # fmt: skip
    monkeypatch.setattr(convolution, "UNROLL_ROWS", unroll_rows)
    net, elementary = nets_of(channels, size, reduce=reduce, downsample=downsample)
    params = weights_of(net, signs)
    support, _, query = episodes(channels, size)
    values, grads = net.descended(params, [support] * steps, query, 0.4, not first_order)
    assert list(grads) == list(params)
    total = [torch.zeros_like(p) for p in params.values()]
    for i in range(EPISODES):
        one, other = [x[i] for x in support], [x[i] for x in query]
        how = {"steps": steps, "first_order": first_order}
        value, want = meta_gradient(elementary, params, one, other, **how)
        assert float((values[i] - value).abs()) < EXACT
        total = [t + g for t, g in zip(total, want, strict=True)]
    assert relative_error(list(grads.values()), total) < EXACT


@pytest.mark.parametrize("downsample", ["stride", "pool"])
def test_each_step_has_a_batch_of_its_own(episodes, downsample):
    net, elementary = nets_of(1, 14, downsample=downsample)
    params = weights_of(net, "mixed")
    first, second, query = episodes(1, 14)
    _, grads = net.descended(params, [first, second], query, 0.2, True)
    lam = {k: v.requires_grad_() for k, v in params.items()}
    total = 0.0
    for i in range(EPISODES):
        theta = lam
        for images, labels in (first, second):
            value = elementary.loss(theta, images[i], labels[i])
            g = torch.autograd.grad(value, list(theta.values()), create_graph=True)
            theta = {k: v - 0.2 * x for (k, v), x in zip(theta.items(), g, strict=True)}
        total = total + elementary.loss(theta, query[0][i], query[1][i])
    want = torch.autograd.grad(total, [*lam.values()])
    assert relative_error(list(grads.values()), want) < EXACT


@pytest.mark.parametrize("downsample", ["stride", "pool"])
def test_an_episode_does_not_depend_on_those_beside_it(episodes, downsample):
    net, _ = nets_of(1, 28, downsample=downsample)
    params = weights_of(net, "ones")
    support, _, query = episodes(1, 28)
    together, several = net.descended(params, [support], query, 0.4, True)
    total = [torch.zeros_like(p) for p in params.values()]
    for i in range(EPISODES):
        inner, outer = ([x[i : i + 1] for x in some] for some in (support, query))
        value, alone = net.descended(params, [inner], outer, 0.4, True)
        assert float((together[i] - value[0]).abs()) < 1e-13
        total = [t + g for t, g in zip(total, alone.values(), strict=True)]
    assert relative_error(list(several.values()), total) < 1e-13


def test_where_it_is_there():
    assert ConvNet(1, 28, 5, filters=64).descends_at_once(10) > 2
    assert ConvNet(1, 28, 5, filters=64).descends_at_once(50) == 2
    assert ConvNet(1, 28, 5, filters=64).descends_at_once(1000) == 1
    assert ConvNet(1, 28, 5, filters=64, downsample="pool").descends_at_once(10) == 1
    for other in ({"elementary": True}, {"dtype": torch.bfloat16}):
        assert ConvNet(1, 28, 5, filters=64, **other).descends_at_once(10) == 0


@pytest.mark.parametrize("downsample", ["stride", "pool"])
@pytest.mark.parametrize("first_order", [False, True])
def test_parameters_and_images_stay_what_they_are(episodes, downsample, first_order):
    """Sweeps overwrite what they keep, where nothing reads it again."""
    net, _ = nets_of(1, 14, downsample=downsample)
    params, (support, _, query) = weights_of(net, "mixed"), episodes(1, 14)
    given = [*params.values(), *support, *query]
    before = [x.clone() for x in given]
    found = [net.descended(params, [support] * 2, query, 0.4, not first_order) for _ in range(2)]
    assert all(torch.equal(x, y) for x, y in zip(given, before, strict=True))
    (values, grads), (again, more) = found
    assert torch.equal(values, again) and all(torch.equal(grads[k], more[k]) for k in grads)
