"""Derivatives by hand against elementary operations differentiated by the library."""

from __future__ import annotations

import os
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from conv_nets import (
    EXACT,
    by_features,
    draw,
    meta_gradient,
    relative_error,
    weights_of,
    whole_loss,
)
from torch import Tensor

from metabench.hypergradients.unrolled import load_forward_mode
from metabench.tasks.models.convnet import convolution, first_block, fused, strided
from metabench.tasks.models.networks import ConvNet

POOLED, STRIDED = convolution.Form(pool=True), convolution.Form(mean=True)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("loss", [whole_loss, by_features])
@pytest.mark.parametrize("signs", ["ones", "mixed"])
@pytest.mark.parametrize("unroll_rows", [0, 100, 10**9])
@pytest.mark.parametrize(
    "downsample, size, channels, blocks",
    [("stride", 28, 1, 4), ("stride", 21, 3, 3), ("pool", 28, 1, 4), ("pool", 21, 3, 3)],
)
def test_meta_gradient_equals_the_librarys(
    downsample, size, channels, blocks, unroll_rows, signs, loss, first_order, monkeypatch
):
    monkeypatch.setattr(convolution, "UNROLL_ROWS", unroll_rows)
    monkeypatch.setattr(first_block, "BUFFER_BYTES", 1 << 15)  # several pieces, the last one short
    nets = [
        ConvNet(
            channels,
            size,
            5,
            filters=6,
            blocks=blocks,
            downsample=downsample,
            elementary=elementary,
            dtype=torch.float64,
        )
        for elementary in (False, True)
    ]
    params = weights_of(nets[0], signs)
    support = draw(5, channels, size, size, seed=2), torch.arange(5)
    query = draw(11, channels, size, size, seed=3), torch.arange(11) % 5
    value, got = meta_gradient(nets[0], params, support, query, 3, loss, first_order)
    expected, want = meta_gradient(nets[1], params, support, query, 3, by_features, first_order)
    assert float((value - expected).abs()) < EXACT
    assert relative_error(got, want) < EXACT


@pytest.mark.parametrize("signs", ["ones", "mixed"])
@pytest.mark.parametrize("unroll_rows", [0, 10**9])
@pytest.mark.parametrize("downsample", ["stride", "pool"])
@pytest.mark.parametrize("size, channels, reduce", [(28, 1, "mean"), (21, 3, "flatten")])
def test_a_gradient_without_a_graph_is_the_librarys(
    size, channels, reduce, downsample, unroll_rows, signs, monkeypatch
):
    monkeypatch.setattr(convolution, "UNROLL_ROWS", unroll_rows)
    how = {"filters": 6, "blocks": 3, "reduce": reduce, "downsample": downsample}
    net, elementary = (
        ConvNet(channels, size, 5, elementary=e, dtype=torch.float64, **how) for e in (False, True)
    )
    params = {k: v.requires_grad_() for k, v in weights_of(net, signs).items()}
    before = {k: v.detach().clone() for k, v in params.items()}
    for n in (5, 11):
        images, labels = draw(n, channels, size, size, seed=n), torch.arange(n) % 5
        loss = elementary.loss(params, images, labels)
        want = torch.autograd.grad(loss, list(params.values()))
        for _ in range(2):  # the second time nothing of the first is left
            value, got = net.gradient(params, images, labels)
            assert list(got) == net.names
            assert not (value.requires_grad or any(g.requires_grad for g in got.values()))
            assert abs(float(value) - float(loss.detach())) < EXACT
            assert relative_error(list(got.values()), want) < EXACT
    assert all(torch.equal(before[k], v) for k, v in params.items())


def test_gradients_without_a_graph_under_vmap_are_those_of_each():
    net = ConvNet(1, 14, 5, filters=4, blocks=2, dtype=torch.float64)
    images, labels = draw(3, 10, 1, 14, 14), torch.stack([torch.randperm(10) % 5 for _ in range(3)])
    params = {
        k: v + 0.1 * draw(3, *v.shape, seed=4)
        for k, v in net.init_params(torch.Generator().manual_seed(0)).items()
    }
    values, found = torch.func.vmap(net.gradient)(params, images, labels)
    one = {k: v[0] for k, v in params.items()}
    _, shared = torch.func.vmap(lambda x, y: net.gradient(one, x, y))(images, labels)
    for i in range(3):
        value, want = net.gradient({k: v[i] for k, v in params.items()}, images[i], labels[i])
        torch.testing.assert_close(values[i], value, rtol=1e-12, atol=1e-12)
        assert relative_error([g[i] for g in found.values()], [*want.values()]) < EXACT
        _, want = net.gradient(one, images[i], labels[i])
        assert relative_error([g[i] for g in shared.values()], [*want.values()]) < EXACT


def test_where_there_is_no_gradient_without_a_graph():
    x, y = draw(5, 1, 14, 14), torch.arange(5)
    net = ConvNet(1, 14, 5, filters=4, blocks=2, dtype=torch.float64)
    params = net.init_params(torch.Generator().manual_seed(0))
    pooled, elementary = (
        ConvNet(1, 14, 5, filters=4, blocks=2, dtype=torch.float64, **other)
        for other in ({"downsample": "pool", "reduce": "mean"}, {"elementary": True})
    )

    def there(net, transform=None):
        found = []

        def f(p):
            found.append(net.gradient(p, x, y) is not None)
            return p["head.bias"].sum()

        if transform is None:
            f(params)
        else:
            stack = {k: v.expand(2, *v.shape) for k, v in params.items()}
            transform(f)(stack if transform is torch.func.vmap else params)
        return found[0]

    assert there(net) and there(pooled) and not there(elementary)
    assert there(net, torch.func.vmap) and not there(pooled, torch.func.vmap)
    assert not there(net, torch.func.grad)


def test_the_two_orders_differ():
    net = ConvNet(1, 14, 3, filters=4, blocks=2, dtype=torch.float64)
    data = draw(3, 1, 14, 14), torch.arange(3)
    params = weights_of(net, "ones")
    second = meta_gradient(net, params, data, data, 2)[1]
    first = meta_gradient(net, params, data, data, 2, first_order=True)[1]
    assert relative_error(first, second) > 1e-3


def test_gradient_of_a_scaled_loss_and_hessian_products():
    """The loss's own cotangent is differentiated too, and products can be repeated."""
    nets = [
        ConvNet(1, 12, 3, filters=4, blocks=2, downsample="pool", elementary=e, dtype=torch.float64)
        for e in (False, True)
    ]
    found = []
    for net in nets:
        params = {k: v.requires_grad_() for k, v in weights_of(net, "mixed").items()}
        a = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        value = (a * whole_loss(net, params, draw(6, 1, 12, 12), torch.arange(6) % 3)).square()
        inputs = list(params.values())
        grads = torch.autograd.grad(value, inputs, create_graph=True)
        for seed in (1, 2):
            along = [draw(*g.shape, seed=seed) for g in grads]
            found.append(torch.autograd.grad(grads, [a, *inputs], along, retain_graph=True))
    assert relative_error(found[0], found[2]) < EXACT
    assert relative_error(found[1], found[3]) < EXACT
    assert relative_error(found[0], found[1]) > 1e-3


def test_only_the_head_or_only_the_body_moves():
    """Frozen parameters get no gradient, and the others the right one."""
    for frozen in ("head", "conv1", "norm"):
        found = []
        for elementary in (False, True):
            net = ConvNet(1, 14, 3, filters=4, blocks=3, elementary=elementary, dtype=torch.float64)
            params = weights_of(net, "ones")
            moving = {k: v.requires_grad_() for k, v in params.items() if not k.startswith(frozen)}
            value = whole_loss(net, params, draw(6, 1, 14, 14), torch.arange(6) % 3)
            grads = torch.autograd.grad(value, list(moving.values()), create_graph=True)
            size = torch.stack([g.square().sum() for g in grads]).sum()
            second = torch.autograd.grad(size, list(moving.values()))
            found.append([*(g.detach() for g in grads), *second])
        assert relative_error(*found) < EXACT


def test_a_third_derivative_raises():
    net = ConvNet(1, 14, 3, filters=4, blocks=2, dtype=torch.float64)
    params = {k: v.requires_grad_() for k, v in weights_of(net, "ones").items()}
    inputs = list(params.values())
    value = whole_loss(net, params, draw(3, 1, 14, 14), torch.arange(3))
    for _ in range(2):
        grads = torch.autograd.grad(value, inputs, create_graph=True)
        value = torch.stack([g.square().sum() for g in grads]).sum()
    # allow_unused: a cut in the graph would give zeros in place of an error.
    with pytest.raises(RuntimeError, match="third derivatives"):
        torch.autograd.grad(value, inputs, allow_unused=True)


def test_no_graph_outlives_its_loss():
    import gc
    import weakref

    net = ConvNet(1, 14, 3, filters=4, blocks=2)
    params = {k: v.requires_grad_() for k, v in weights_of(net, "ones").items()}
    value = whole_loss(net, params, draw(3, 1, 14, 14, dtype=torch.float32), torch.arange(3))
    grads = torch.autograd.grad(value, list(params.values()), create_graph=True)
    kept = [weakref.ref(value.grad_fn), weakref.ref(grads[0].grad_fn)]
    gc.disable()  # a reference cycle would hold the maps until a collection
    try:
        del value, grads
        assert [r() for r in kept] == [None, None]
    finally:
        gc.enable()


def test_saved_tensors_hooks_see_what_the_graph_keeps():
    """The choice of a memory mode measures one step with these hooks."""
    net = ConvNet(1, 28, 5, filters=16)
    params = {k: v.requires_grad_() for k, v in weights_of(net, "ones").items()}
    seen: list[int] = []

    def pack(x: Tensor) -> Tensor:
        seen.append(x.untyped_storage().nbytes())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        value = whole_loss(net, params, draw(5, 1, 28, 28, dtype=torch.float32), torch.arange(5))
    first_map = 5 * 14 * 14 * 16 * 4
    assert value.requires_grad and sum(seen) > first_map


def test_changed_images_are_not_taken_for_the_remembered_ones():
    net = ConvNet(1, 14, 3, filters=4, blocks=2, dtype=torch.float64)
    params, y = weights_of(net, "ones"), torch.arange(3)
    x = draw(3, 1, 14, 14)
    before = whole_loss(net, params, x, y)
    x.mul_(-1.0)
    assert not torch.equal(before, whole_loss(net, params, x, y))
    assert torch.equal(whole_loss(net, params, x, y), whole_loss(net, params, x.clone(), y))


def test_of_remembered_batches_the_older_goes_before_another_is_made():
    """Or three of them would be held at once, the largest tensors of a step."""
    held = []

    def make(images):
        held.append(sum(table() is not None for table in tables))
        table = images.clone()
        tables.append(weakref.ref(table))
        return table, images

    tables: list = []
    for seed in range(4):
        convolution.remembered(make, draw(2, 1, 4, 4, seed=seed))
    assert held == [0, 1, 1, 1]


def test_inner_steps_of_several_networks_read_their_images_once(monkeypatch):
    calls = []
    source = strided._source
    monkeypatch.setattr(strided, "_source", lambda images: calls.append(1) or source(images))
    net, (stack, other) = (
        ConvNet(1, 14, 3, filters=4, blocks=2),
        (draw(2, 3, 1, 14, 14, seed=s, dtype=torch.float32) for s in range(2)),
    )
    params, y = weights_of(net, "ones"), torch.arange(3)

    def two_steps(x):
        one = torch.func.grad(lambda p: net.loss(p, x, y))
        first = one(params)
        return one({k: v - 0.1 * first[k] for k, v in params.items()})["norm1.bias"]

    found = torch.func.vmap(two_steps)(stack)
    assert len(calls) == 1
    torch.func.vmap(two_steps)(other)
    assert len(calls) == 2
    stack.mul_(0.5)
    assert not torch.equal(found, torch.func.vmap(two_steps)(stack)) and len(calls) == 3


def test_threads_agree_bit_for_bit_with_one_after_another():
    nets = [ConvNet(1, 28, 5, filters=8, downsample=d) for d in ("stride", "pool")]
    jobs = [
        (net, weights_of(net, "ones"), draw(5, 1, 28, 28, seed=s, dtype=torch.float32))
        for s in range(4)
        for net in nets
    ]

    def run(job):
        net, params, x = job
        data = x, torch.arange(5)
        return meta_gradient(net, params, data, data, 2)[1]

    want = [run(job) for job in jobs]
    got: dict[int, tuple[Tensor, ...]] = {}

    def worker(numbers):
        for i in numbers:
            got[i] = run(jobs[i])

    threads = [threading.Thread(target=worker, args=(range(k, 8, 3),)) for k in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for i, expected in enumerate(want):
        assert all(torch.equal(a, b) for a, b in zip(got[i], expected, strict=True))


def test_where_it_does_not_apply():
    x, w = torch.zeros(2, 1, 8, 8), [torch.zeros(1)]
    for form in (POOLED, STRIDED):
        assert fused.applies(x, w, form)
        assert not fused.applies(x.clone().requires_grad_(), w, form)
        assert not fused.applies(x.half(), [w[0].half()], form)
        assert not fused.applies(x, [w[0].double()], form)
        assert not fused.applies(x.to("meta"), w, form)


def test_under_which_transforms_it_applies():
    load_forward_mode()  # torch warns of its own doing when it is first used
    x, w = torch.zeros(2, 1, 8, 8), [torch.zeros(1)]
    vmap, grad = torch.func.vmap, torch.func.grad

    def inside(form, *transforms):
        found: list[bool] = []

        def f(a):
            found.append(fused.applies(x, w, form))
            return a.sum()

        for transform in transforms:
            f = transform(f)
        f(torch.zeros(2, 2))
        return found[0]

    def tangent(f):
        return lambda a: torch.func.jvp(f, (a,), (a,))[1]

    for transforms in ([vmap], [grad], [grad, vmap], [lambda f: grad(lambda a: grad(f)(a).sum())]):
        assert inside(STRIDED, *transforms)
        assert not inside(POOLED, *transforms)
    for transforms in ([vmap, vmap], [tangent], [tangent, vmap]):
        assert not inside(STRIDED, *transforms)


def stacked_meta_gradients(net, params, support, query, steps, first_order, frozen=()):
    """:func:`meta_gradient` of several episodes at once, by torch.func."""

    def one(support, query):
        def outer(lam):
            theta = lam
            for _ in range(steps):
                at = {k: v.detach() for k, v in theta.items()} if first_order else theta
                moving = {k: v for k, v in at.items() if not k.startswith(frozen)}
                g = torch.func.grad(lambda t, at=at: net.loss({**at, **t}, *support))(moving)
                theta = {k: v - 0.4 * g[k] if k in g else v for k, v in theta.items()}
            return net.loss(theta, *query)

        return torch.func.grad(outer)(params)

    return torch.func.vmap(one)(support, query)


@pytest.mark.parametrize("frozen", ["none", "head", "conv", "norm"])
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("mean", [False, True])
def test_several_episodes_at_once_equal_one_after_another(mean, first_order, frozen):
    reduce = "mean" if mean else "flatten"
    made = {"filters": 6, "blocks": 3, "reduce": reduce, "dtype": torch.float64}
    nets = [ConvNet(1, 14, 3, elementary=elementary, **made) for elementary in (False, True)]
    params = weights_of(nets[0], "mixed")
    support = draw(4, 3, 1, 14, 14), torch.arange(3).expand(4, 3)
    query = draw(4, 6, 1, 14, 14, seed=1), (torch.arange(6) % 3).expand(4, 6)
    got, want = (
        stacked_meta_gradients(net, params, support, query, 2, first_order, frozen).values()
        for net in nets
    )
    assert relative_error(list(got), list(want)) < EXACT
    if frozen == "none":
        for i, each in enumerate(zip(*got, strict=True)):
            data = (support[0][i], support[1][i]), (query[0][i], query[1][i])
            alone = meta_gradient(nets[0], params, *data, 2, first_order=first_order)[1]
            assert relative_error(each, alone) < EXACT


def test_what_is_common_to_a_stack_is_spread_over_it():
    """Images and weights of one network, a cotangent and a direction for each."""
    net = ConvNet(1, 14, 3, filters=4, blocks=2, dtype=torch.float64)
    plain = ConvNet(1, 14, 3, filters=4, blocks=2, dtype=torch.float64, elementary=True)
    params, x, y = weights_of(net, "ones"), draw(3, 1, 14, 14), torch.arange(3)
    directions = {k: draw(5, *v.shape, seed=3) for k, v in params.items()}

    def product(net, scale, v):
        def slope(p):
            g = torch.func.grad(lambda q: scale * net.loss(q, x, y))(p)
            return torch.stack([(g[k] * v[k]).sum() for k in g]).sum()

        return torch.func.grad(slope)(params)

    scales = draw(5)
    got, want = (
        torch.func.vmap(lambda s, v, net=net: product(net, s, v))(scales, directions)
        for net in (net, plain)
    )
    assert relative_error(list(got.values()), list(want.values())) < EXACT


def test_a_third_derivative_raises_under_torch_func():
    net = ConvNet(1, 14, 3, filters=4, blocks=2, dtype=torch.float64)
    params, x, y = weights_of(net, "ones"), draw(2, 3, 1, 14, 14), torch.arange(3)

    def size(f):
        return lambda p: torch.stack(
            [g.square().sum() for g in torch.func.grad(f)(p).values()]
        ).sum()

    def third(x):
        return torch.func.grad(size(size(lambda p: net.loss(p, x, y))))(params)

    with pytest.raises(RuntimeError, match="third derivatives"):
        torch.func.vmap(third)(x)


def strokes(n, seed=0):
    """Thin bright curves on exact black, [n, 1, 28, 28]."""
    gen = torch.Generator().manual_seed(seed)
    t = torch.linspace(0, 1, 60)[:, None]
    rows, columns = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    images = []
    for _ in range(n):
        ends = 4 + 20 * torch.rand(3, 2, generator=gen)
        curve = (1 - t) ** 2 * ends[0] + 2 * t * (1 - t) * ends[1] + t**2 * ends[2]
        far = (rows[..., None] - curve[:, 0]) ** 2 + (columns[..., None] - curve[:, 1]) ** 2
        images.append((1.3 - far.amin(-1).sqrt()).clamp(0, 1))
    return torch.stack(images)[:, None]


def omniglot(n):
    root = os.environ.get("METABENCH_DATA")
    path = Path(root or "") / "omniglot" / "omniglot28.npz"
    if not root or not path.is_file():
        pytest.skip("needs Omniglot: METABENCH_DATA does not hold omniglot/omniglot28.npz")
    with np.load(path) as data:
        images = torch.from_numpy(data["images"][:n, 0].astype(np.float32) / 255)
    return images[:, None]


@pytest.mark.parametrize("images", [strokes, omniglot])
@pytest.mark.parametrize("downsample", ["stride", "pool"])
def test_single_precision_on_strokes(images, downsample):
    """Random noise would hide it: on mostly equal values plain sums make poor statistics."""
    x = images(30)
    net = ConvNet(1, 28, 5, downsample=downsample)
    exact = ConvNet(1, 28, 5, downsample=downsample, dtype=torch.float64)
    params = weights_of(net, "ones")
    y = torch.arange(25) % 5

    def run(net, dtype):
        cast = {k: v.to(dtype) for k, v in params.items()}
        data = (x[:5].to(dtype), y[:5]), (x[5:].to(dtype), y)
        return meta_gradient(net, cast, *data, 1)[1]

    want = run(exact, torch.float64)
    got = run(net, torch.float32)
    scale = max(float(w.abs().max()) for w in want)
    error = max(float((g - w).abs().max()) for g, w in zip(got, want, strict=True)) / scale
    assert error < 2e-5
