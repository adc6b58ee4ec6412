"""SAGA on the pieces of a joint step: exact where all blocks are known, unbiased, and its cost."""

import pytest
import torch
from finite_sum import FiniteSum
from oracles import F64, given

from metabench.contract import autodiff
from metabench.core.costs import Counts
from metabench.hypergradients.single_loop import saga, stochastic

EXAMPLES, SIZE = 20, 6  # blocks of 6, 6, 6 and 2


def setting(penalty=False):
    """A context, and a point (lam, theta, v)."""
    problem = FiniteSum(examples=EXAMPLES, m=4, n=2, penalty=penalty)
    v = torch.linspace(-1, 1, 4, dtype=F64)
    at = problem.init_outer(), {"w": problem.w0}, {"w": v}
    return given(problem, "carried", "example_losses"), at


def elsewhere(at, size=0.3):
    """Another point."""
    return tuple({k: x + size * torch.cos(3 * x) for k, x in part.items()} for part in at)


def whole(ctx, at):
    """The pieces of all examples."""
    lam, theta, v = at
    return stochastic.adjoint(ctx, lam, theta, v, ctx.problem.episode("train", 0), 0)


def close(found, expected, atol=1e-13):
    for a, b in zip(found, expected, strict=True):
        for k, x in b.items():
            torch.testing.assert_close(a[k], x, rtol=0, atol=atol)


def every_block(ctx, at, tables):
    """What a step at this point says, for each block that it may draw."""
    found = {}
    while len(found) < saga.Blocks(EXAMPLES, SIZE).count:
        direction, after = saga.adjoint(ctx, *at, 0, SIZE, tables)
        b = next(i for i, x in enumerate(after["stored"]) if x is not tables["stored"][i])
        found[b] = direction, after
        ctx.step += 1
        assert ctx.step < 200, f"blocks {sorted(found)} alone are drawn"
    return found


@pytest.mark.parametrize("penalty", [False, True])
def test_one_block_of_all_examples_is_the_whole_batch(penalty):
    ctx, at = setting(penalty)
    tables = saga.first_tables(ctx, *elsewhere(at), EXAMPLES + 5, full=True)
    direction, after = saga.adjoint(ctx, *at, 0, EXAMPLES + 5, tables)
    close(direction, whole(ctx, at))
    assert len(after["stored"]) == 1


@pytest.mark.parametrize("penalty", [False, True])
def test_with_all_blocks_known_at_the_point_each_says_the_whole(penalty):
    ctx, at = setting(penalty)
    tables = saga.first_tables(ctx, *at, SIZE, full=True)
    for direction, _ in every_block(ctx, at, tables).values():
        close(direction, whole(ctx, at))


@pytest.mark.parametrize("penalty", [False, True])
@pytest.mark.parametrize("full", [False, True])
def test_the_mean_over_blocks_is_the_whole(penalty, full):
    """Whatever the tables hold: zeros, or another point's pieces; unequal blocks too."""
    ctx, at = setting(penalty)
    tables = saga.first_tables(ctx, *elsewhere(at), SIZE, full=full)
    found = [direction for direction, _ in every_block(ctx, at, tables).values()]
    mean = [autodiff.mean(parts) for parts in zip(*found, strict=True)]
    close(mean, whole(ctx, at))
    apart = max(float((d.mixed["lam"] - mean[2]["lam"]).abs().max()) for d in found)
    assert apart > 1e-3, "every block says the same: nothing is tested"


def judged():
    """A context whose outer loss is the mean of three terms, and a point."""
    problem = FiniteSum(examples=EXAMPLES, m=4, n=2, judges=3)
    at = problem.init_outer(), {"w": problem.w0}, {"w": torch.linspace(-1, 1, 4, dtype=F64)}
    return given(problem, "carried", "example_losses"), at


@pytest.mark.parametrize("full", [False, True])
def test_the_mean_over_outer_batches_is_the_whole(full):
    """Whatever the tables hold; with all known at the point, each batch says the whole."""
    ctx, (lam, theta, v) = judged()
    whole = stochastic.outer(ctx, lam, theta, ctx.problem.episode("valid", 0))
    for known in (elsewhere((lam, theta, v)), (lam, theta, v)):
        tables, found = saga.first_tables(ctx, *known, SIZE, full=full), {}
        while len(found) < 3:
            before = ctx.meter.counts.outer_gradients
            direction, after = saga.outer(ctx, lam, theta, None, 0, tables)
            assert ctx.meter.counts.outer_gradients == before + 1
            held = zip(after["outer"]["stored"], tables["outer"]["stored"], strict=True)
            found[next(i for i, (a, b) in enumerate(held) if a is not b)] = direction
            ctx.step += 1
            assert ctx.step < 200, f"batches {sorted(found)} alone are drawn"
        each = zip(*(direction[1:] for direction in found.values()), strict=True)
        close([autodiff.mean(parts) for parts in each], whole[1:])
        apart = max(float((d.theta["w"] - whole.theta["w"]).abs().max()) for d in found.values())
        # F is quadratic with one Hessian: what two points differ by is the same for every term.
        assert apart < 1e-13 if full else apart > 1e-2


def test_outer_tables_follow_the_point():
    """new - stored[b] + mean(stored) by hand, over many steps; the inner tables stay."""
    ctx, (lam, theta, v) = judged()
    tables = saga.first_tables(ctx, lam, theta, v, SIZE, full=False)
    stored = torch.zeros(3, 4, dtype=F64)
    for ctx.step in range(20):
        theta = {"w": theta["w"] * 0.9}
        direction, after = saga.outer(ctx, lam, theta, None, 0, tables)
        held = zip(after["outer"]["stored"], tables["outer"]["stored"], strict=True)
        b = next(i for i, (x, y) in enumerate(held) if x is not y)
        new = theta["w"] - ctx.problem.each_c[b]
        expected = new - stored[b] + stored.mean(0)
        torch.testing.assert_close(direction.theta["w"], expected, rtol=0, atol=1e-13)
        stored[b], tables = new, after
    assert tables["seen"] == 0


def test_without_numbers_the_outer_batch_is_the_episodes():
    ctx, (lam, theta, v) = setting()
    tables = saga.first_tables(ctx, lam, theta, v, SIZE, full=True)
    episode = ctx.problem.episode("train", 0)
    found, after = saga.outer(ctx, lam, theta, episode, 0, tables)
    close(found[1:], stochastic.outer(ctx, lam, theta, episode)[1:], atol=0)
    assert after is tables


def test_the_step_by_hand():
    """new - stored[b] + mean(stored), and the mean is that of what is stored, also after many."""
    ctx, at = setting()
    lam, theta, v = at
    tables = saga.first_tables(ctx, *at, SIZE, full=False)
    stored = torch.zeros(4, 4, dtype=F64)
    for ctx.step in range(30):
        theta = {"w": theta["w"] * 0.9}
        direction, after = saga.adjoint(ctx, lam, theta, v, 0, SIZE, tables)
        b = next(i for i, x in enumerate(after["stored"]) if x is not tables["stored"][i])
        part = {k: x[6 * b : 6 * b + 6] for k, x in ctx.problem.data.items()}
        slopes = part["A"] * theta["w"] - part["B"] @ lam["lam"] - part["b"]
        new = slopes.sum(0) * 4 / EXAMPLES
        expected = new - stored[b] + stored.mean(0)
        torch.testing.assert_close(direction.slope["w"], expected, rtol=0, atol=1e-13)
        stored[b], tables = new, after
    held = torch.stack([x["slope"]["w"] for x in tables["stored"]])
    torch.testing.assert_close(held, stored, rtol=0, atol=1e-13)
    torch.testing.assert_close(tables["mean"]["slope"]["w"], held.mean(0), rtol=0, atol=1e-13)


def test_what_is_given_stays_as_it_is():
    ctx, at = setting()
    tables = saga.first_tables(ctx, *at, SIZE, full=True)
    held = [x["mixed"]["lam"].clone() for x in tables["stored"]]
    saga.adjoint(ctx, *elsewhere(at), 0, SIZE, tables)
    assert all(
        torch.equal(a, b["mixed"]["lam"]) for a, b in zip(held, tables["stored"], strict=True)
    )
    assert tables["seen"] == EXAMPLES


def test_blocks_are_drawn_uniformly_by_seed_step_and_place():
    ctx, at = setting()
    tables = saga.first_tables(ctx, *at, SIZE, full=False)

    def drawn(step, t):
        ctx.step = step
        after = saga.adjoint(ctx, *at, t, SIZE, tables)[1]
        return next(i for i, x in enumerate(after["stored"]) if x is not tables["stored"][i])

    first = [drawn(step, 0) for step in range(400)]
    counts = torch.tensor(first).bincount(minlength=4)
    assert counts.sum() == 400 and counts.min() > 70 and counts.max() < 130  # 100 +- 3.5 sigma
    assert first[:30] == [drawn(step, 0) for step in range(30)]
    assert first[:30] != [drawn(step, 1) for step in range(30)]


def test_examples_count_as_the_batches_that_become_full():
    """Blocks of 6, 6, 6 and 2 of 20: after k examples floor(k / 20) of each, whatever the order."""
    ctx, at = setting()
    tables = saga.first_tables(ctx, *at, SIZE, full=False)
    assert ctx.meter.counts == Counts()
    for ctx.step in range(50):
        _, tables = saga.adjoint(ctx, *at, 0, SIZE, tables)
        full = tables["seen"] // EXAMPLES
        assert ctx.meter.counts == Counts(inner_gradients=full, hvps=full, mixed_products=full)
    assert full >= 10
    ctx, at = setting()
    saga.first_tables(ctx, *at, SIZE, full=True)
    assert ctx.meter.counts == Counts(inner_gradients=1, hvps=1, mixed_products=1)


def test_a_count_is_an_inner_batch_where_those_are_parts():
    problem = FiniteSum(examples=24, m=4, n=2, batch=4)
    ctx = given(problem, "carried", "example_losses")
    lam, theta = problem.init_outer(), {"w": problem.w0}
    tables = saga.first_tables(ctx, lam, theta, theta, 6, full=False)
    for ctx.step in range(10):
        _, tables = saga.adjoint(ctx, lam, theta, theta, 0, 6, tables)
    assert ctx.meter.counts.inner_gradients == 15
