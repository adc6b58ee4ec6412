"""Data hyper-cleaning: parts, pollution, losses, and the hypergradient against a dense solve."""

import importlib
import struct

import numpy as np
import pytest
import torch
from oracles import F64, context, hypergradient

from metabench.conformance.harness import Harness
from metabench.conformance.kit import method_checks
from metabench.contract import autodiff
from metabench.contract.problem import Episode
from metabench.core.capabilities import why_not
from metabench.core.cell import make_cell
from metabench.core.errors import SettingError
from metabench.core.registry import methods, tasks
from metabench.hypergradients import reference

cleaning = importlib.import_module("metabench.tasks.hyper_cleaning")
images = importlib.import_module("metabench.tasks.data.images")
Task = tasks.get("hyper_cleaning")
NEW = {"carried": False, "fresh": True}
TINY = {"n_train": 40, "n_valid": 30, "n_test": 50, "shrink": 4}


@pytest.fixture(scope="module", autouse=True)
def digits(tmp_path_factory):
    """A small MNIST of our own where the real one is not: classes are bright patches."""
    folder = tmp_path_factory.mktemp("data") / "MNIST" / "raw"
    folder.mkdir(parents=True)
    gen = np.random.default_rng(0)
    patch = pytest.MonkeyPatch()
    patch.setitem(images.SIZES, ("mnist", "torchvision"), (400, 20, (1, 28, 28)))
    for prefix, n in (("train", 400), ("t10k", 20)):
        y = np.arange(n, dtype=np.uint8) % 10
        x = gen.integers(0, 120, (n, 28, 28), dtype=np.uint8)
        for i, k in enumerate(y):
            x[i, 7 * (k // 4) : 7 * (k // 4) + 7, 7 * (k % 4) : 7 * (k % 4) + 7] += 130
        for kind, a in (("images-idx3", x), ("labels-idx1", y)):
            head = struct.pack(f">I{a.ndim}I", 0x800 + a.ndim, *a.shape)
            (folder / f"{prefix}-{kind}-ubyte").write_bytes(head + a.tobytes())
    patch.setenv("METABENCH_DATA", str(folder.parents[1]))
    patch.setenv("METABENCH_CACHE", str(folder.parents[1]))
    yield
    patch.undo()


def tiny(**more):
    return context(Task(**{**TINY, "dtype": "float64", **more}))


def close(found, expected, tolerance=1e-10):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_parts_share_no_image_and_come_from_the_training_images():
    problem = context(Task(n_train=100, n_valid=100, n_test=200, polluted=0.0)).problem
    seen = {bytes(row) for row in _bytes(images.load("mnist")["train"][0].flatten(1))}
    drawn = [bytes(row) for part in problem.parts.values() for row in _bytes(part["x"])]
    assert len(set(drawn)) == 400 and set(drawn) <= seen
    for part in problem.parts.values():  # nothing polluted: patches say the labels
        bright = part["x"].view(-1, 4, 7, 4, 7).mean((2, 4)).flatten(1).argmax(1)
        assert torch.equal(bright, part["y"])


def _bytes(x):
    return (x * 255).round().to(torch.uint8).numpy()


def test_other_seeds_draw_other_parts():
    one, two = (Harness(None, Task(**TINY), seeds=_seeds(i)).problem() for i in (0, 1))
    assert not torch.equal(one.parts["train"]["x"], two.parts["train"]["x"])
    assert not torch.equal(one.start["head.weight"], two.start["head.weight"])


def _seeds(i):
    from metabench.contract.seeds import Seeds

    return Seeds.of(i)


def test_half_of_the_labels_are_redrawn_from_all_ten():
    polluted = context(Task(n_train=300, n_valid=10, n_test=10)).problem
    spared = context(Task(n_train=300, n_valid=10, n_test=10, polluted=0.0)).problem
    now, true = polluted.parts["train"]["y"], spared.parts["train"]["y"]
    assert torch.equal(polluted.parts["train"]["x"], spared.parts["train"]["x"])
    assert int(polluted.clean.sum()) == 150
    assert torch.equal(now[polluted.clean], true[polluted.clean])
    assert torch.equal(polluted.right, now == true)
    chance = polluted.right[~polluted.clean].double().mean()
    assert 0.03 < float(chance) < 0.2  # one in ten, 150 draws
    for split in ("valid", "test"):
        assert torch.equal(polluted.parts[split]["y"], spared.parts[split]["y"])
    assert spared.clean.all() and spared.right.all()


def test_losses_by_hand():
    for network in ("linear", "mlp"):
        problem = tiny(network=network, hidden=7, l2=0.3).problem
        theta = problem.init_inner({}, problem.episode("train", 0))
        lam = {"logit": torch.linspace(-2, 2, 40, dtype=F64)}
        batch = problem.episode("train", 0).batch(0)
        x = batch["x"]
        if network == "mlp":
            x = torch.sigmoid(x @ theta["hidden.weight"].T + theta["hidden.bias"])
        scores = x @ theta["head.weight"].T + theta["head.bias"]
        ce = torch.logsumexp(scores, 1) - scores[torch.arange(40), batch["y"]]
        norm = sum(v.square().sum() for v in theta.values())
        expected = (ce / (1 + torch.exp(-lam["logit"]))).mean() + 0.15 * norm
        close(problem.inner_loss(lam, theta, batch), expected)
        close(problem.outer_loss(lam, theta, batch), ce.mean())
        close(problem.module(batch["x"]), scores)


@pytest.mark.slow
def test_the_hypergradient_against_a_dense_solve():
    """dF/dx_i = -sigma'(x_i)/n grad l_i(w*)' H^-1 grad f(w*), 170 weights."""
    problem = tiny(l2=0.05, shrink=7, carried=False).problem
    lam = {"logit": torch.linspace(-1.5, 1.5, 40, dtype=F64)}
    train, valid = problem.parts["train"], problem.parts["valid"]
    shapes = {k: v.shape for k, v in problem.start.items()}
    sizes = [s.numel() for s in shapes.values()]

    def unflat(w):
        parts = zip(shapes.items(), w.split(sizes), strict=True)
        return {k: v.view(shape) for (k, shape), v in parts}

    def inner(w):
        return problem.inner_loss(lam, unflat(w), train)

    w = torch.zeros(sum(sizes), dtype=F64)
    for _ in range(12):  # Newton
        g, h = torch.func.grad(inner)(w), torch.func.jacrev(torch.func.grad(inner))(w)
        w = w - torch.linalg.solve(h, g)
    assert float(torch.func.grad(inner)(w).norm()) < 1e-13

    def example_losses(w):
        scores = problem.logits(unflat(w), train["x"])
        return torch.nn.functional.cross_entropy(scores, train["y"], reduction="none")

    jacobian = torch.func.jacrev(example_losses)(w)
    v = torch.linalg.solve(
        h, torch.func.grad(lambda w: problem.outer_loss(lam, unflat(w), valid))(w)
    )
    s = lam["logit"].sigmoid()
    exact = -(s * (1 - s)) / 40 * (jacobian @ v)

    ctx = tiny(l2=0.05, shrink=7, carried=False)
    set_ = {"inner_steps": 4000, "inner_lr": 1.0, "memory": "states"}
    found = hypergradient(ctx, "bilevel", lam=lam, **set_)["logit"]
    close(found, exact, 1e-10)
    gamma = 1e5
    penalty = {"gamma_first": gamma, "gamma_max": gamma, "inner_lr": 1.0, "theta_lr": 1.0}
    found = hypergradient(ctx, "pbgd", lam=lam, inner_steps=4000, **penalty)["logit"]
    assert float((found - exact).norm() / exact.norm()) < 1e-3


def test_lam_starts_even_or_at_the_bound():
    even, clean = (tiny(weights=w).problem for w in ("even", "clean"))
    assert not even.init_outer()["logit"].any()
    weight = clean.init_outer()["logit"].float().sigmoid()
    assert (weight[clean.clean] == 1).all() and (weight[~clean.clean] < 1e-12).all()
    episode = clean.episode("valid", 0)
    metrics = clean.metrics(clean.init_outer(), clean.start, episode)
    assert metrics["f1"] == metrics["precision"] == metrics["recall"] == 1.0
    assert metrics["f1_right"] <= 1.0
    metrics = even.metrics(even.init_outer(), even.start, episode)
    assert (metrics["precision"], metrics["recall"]) == (0.5, 1.0)
    assert metrics["f1"] == pytest.approx(2 / 3)


def test_detection():
    found = torch.tensor([True, True, True, False, False])
    true = torch.tensor([True, True, False, True, False])
    assert cleaning.detection(found, true) == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    assert cleaning.detection(~true, true) == (0.0, 0.0, 0.0)
    assert cleaning.detection(found & False, true) == (0.0, 0.0, 0.0)


def test_metrics_look_at_the_split_that_is_asked():
    problem = tiny().problem
    lam, theta = problem.init_outer(), problem.start
    for split in ("valid", "test"):
        part = problem.parts[split]
        right = (problem.module(part["x"]).argmax(1) == part["y"]).double().mean()
        found = problem.metrics(lam, theta, problem.episode(split, 0))
        assert found["accuracy"] == float(right.detach())
    assert problem.episode("train", 0).outer is problem.parts["valid"]  # never the test part


def test_minibatches_weigh_the_examples_that_they_hold():
    problem = tiny(batch=15).problem
    episode = problem.episode("train", 3)
    batch = episode.batch(2)
    again = tiny(batch=15).problem.episode("train", 3).batch(2)
    assert torch.equal(batch["index"], again["index"]) and len(set(batch["index"].tolist())) == 15
    assert not torch.equal(batch["index"], episode.batch(3)["index"])
    assert torch.equal(batch["x"], problem.parts["train"]["x"][batch["index"]])
    lam = {"logit": torch.zeros(40, dtype=F64)}
    g = autodiff.grad(lambda p: problem.inner_loss(p, problem.start, batch), lam)[1]["logit"]
    assert set(g.nonzero().flatten().tolist()) == set(batch["index"].tolist())
    assert problem.count("train") is None and problem.count("valid") == 1


def test_a_new_network_every_outer_step_and_the_same_one_at_evaluation():
    problem = tiny(carried=False, fresh=True, network="mlp", hidden=5).problem
    lam = problem.init_outer()

    def first(split, index):
        return problem.init_inner(lam, problem.episode(split, index))

    one, again, two = (first("train", i) for i in (3, 3, 4))
    for name, value in one.items():
        assert torch.equal(value, again[name])
        assert value.shape == two[name].shape and not torch.equal(value, two[name])
        assert torch.equal(first("test", 0)[name], first("valid", 0)[name])
    assert problem.count("train") is None
    assert "best_response" not in Task(carried=False, fresh=True).offers


def test_reverse_mode_with_the_authors_rule_descends_from_each_new_network():
    """lam after two steps of SGD by hand, through three inner steps each from other weights."""
    ctx = tiny(carried=False, fresh=True, shrink=7)
    set_ = {"inner_steps": 3, "inner_lr": 0.5, "outer_lr": 1e-3, "outer_solver": "sgd"}
    method = methods.get("bilevel")(**set_)
    state = method.init(ctx)
    for ctx.step in range(2):
        state, _ = method.step(ctx, state)
    problem, lam = ctx.problem, torch.zeros(40, dtype=F64)
    for step in range(2):
        episode, x = problem.episode("train", step), lam.clone().requires_grad_()
        theta = {k: v.clone().requires_grad_() for k, v in problem.init_inner({}, episode).items()}
        for _ in range(3):
            loss = problem.inner_loss({"logit": x}, theta, episode.batch(0))
            grads = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
            theta = {k: v - 0.5 * g for (k, v), g in zip(theta.items(), grads, strict=True)}
        (g,) = torch.autograd.grad(problem.outer_loss({}, theta, episode.outer), x)
        lam = lam - 1e-3 * g
    close(state.lam["logit"], lam, 1e-15)


def run(method, steps, **task):
    ctx = tiny(**task)
    state = method.init(ctx)
    for ctx.step in range(steps):
        state, _ = method.step(ctx, state)
    theta = method.adapt(ctx, state, ctx.problem.episode("test", 0))
    return ctx.problem.metrics(state.lam, theta, ctx.problem.episode("test", 0))


@pytest.mark.parametrize("batch", [None, 60])
def test_cleaning_finds_the_polluted_examples(batch):
    size = {"n_train": 200, "n_valid": 60, "n_test": 100, "batch": batch}
    ramp = {"gamma_max": 0.5, "ramp_steps": 150, "outer_lr": 50.0, "theta_lr": 1.0}
    learned = run(methods.get("pbgd")(**ramp, inner_lr=1.0, inner_steps=1), 300, **size)
    assert learned["f1"] > 0.85
    plain = run(methods.get("fixed")(inner_steps=1, inner_lr=1.0), 300, **size)
    bound = run(methods.get("fixed")(inner_steps=1, inner_lr=1.0), 300, **size, weights="clean")
    assert plain["f1"] == pytest.approx(2 / 3)
    assert learned["accuracy"] >= plain["accuracy"] and bound["f1"] == 1.0


def test_settings_that_cannot_be():
    with pytest.raises(SettingError, match=r"two sizes: set source to torchvision"):
        make_cell("hyper_cleaning", "fixed", set={"task": {"dataset": "cifar10"},
                                                  "budget": {"outer_steps": 1}})  # fmt: skip
    with pytest.raises(SettingError, match="a batch of 41 from 40"):
        make_cell("hyper_cleaning", "fixed", set={"task": {**TINY, "batch": 41},
                                                  "budget": {"outer_steps": 1}})  # fmt: skip
    with pytest.raises(SettingError, match="fresh starts a new network every time"):
        make_cell("hyper_cleaning", "fixed", set={"task": {**TINY, "fresh": True},
                                                  "budget": {"outer_steps": 1}})  # fmt: skip
    with pytest.raises(SettingError, match="n_test is 15010; mnist has 400 training images"):
        context(Task(n_train=10))


def test_crossings_that_theory_does_not_allow_have_a_reason():
    assert "a weight for every training example" in why_not(Task(), methods.get("random")())
    assert "initial value of theta" in why_not(Task(), methods.get("maml")())
    for name in ("fixed", "bilevel", "pbgd"):
        assert why_not(Task(), methods.get(name)()) is None


def test_it_keeps_the_contract_on_the_small_images():
    from metabench.conformance.kit import task_checks

    for set_ in ({}, {"network": "mlp", "hidden": 5, "batch": 20}, {"carried": False}, NEW):
        for _, check in task_checks(Task(**{**TINY, "dtype": "float64", **set_})):
            check()


@pytest.mark.parametrize("set_", [{}, {"network": "mlp", "hidden": 5, "carried": False}])
def test_a_self_tuning_network_of_low_rank_keeps_the_contract(set_):
    method = methods.get("stn")(rank=3, squash=False)
    for _, check in method_checks(method, [Task(**{**TINY, "dtype": "float64", **set_})]):
        check()


@pytest.mark.parametrize("dataset", ["mnist", "cifar10"])
def test_the_real_data(dataset, monkeypatch, real_data):
    monkeypatch.setenv("METABENCH_DATA", real_data)
    source = "metabench"
    size = {"n_train": 1000, "n_valid": 1000, "n_test": 1000}
    problem = context(Task(dataset=dataset, source=source, **size)).problem
    x = problem.parts["train"]["x"]
    assert x.shape == (1000, 784 if dataset == "mnist" else 3072)
    assert float(x.max()) == 1.0
    assert problem.head == ("head.weight", "head.bias")


@pytest.fixture
def real_data():
    return REAL_DATA


REAL_DATA = __import__("os").environ.get("METABENCH_DATA", "")


def test_hypergradient_square_is_that_of_the_outer_loss_at_the_minimum():
    """By differentiation alone, where weights differ; 49 pixels and a bias for each of ten."""
    ctx = tiny(exact=True, l2=0.1, batch=8, outer_batch=10)
    problem = ctx.problem
    lam = {"logit": torch.linspace(-2, 2, 40, dtype=F64)}
    whole = Episode(problem.parts["train"], problem.parts["valid"])
    known = reference.exact(problem, lam, problem.start, whole)
    square = float(known.grad["logit"].square().sum())
    found = problem.metrics(lam, problem.start, problem.episode("test", 0))
    assert found["hypergradient_square"] == pytest.approx(square, rel=1e-9) and square > 0
    assert "hypergradient_square" not in tiny().problem.metrics(lam, problem.start, whole)
    with pytest.raises(ValueError, match="l2 above 0"):
        Task(**TINY, exact=True, dtype="float64")


def test_outer_batches_are_drawn_in_training_and_have_numbers():
    problem = tiny(outer_batch=10).problem
    one, again, other = (problem.episode("train", i).outer["x"] for i in (0, 0, 1))
    valid = problem.parts["valid"]["x"]
    assert torch.equal(one, again) and not torch.equal(one, other) and one.shape == (10, 49)
    assert bool((one[:, None] == valid[None]).all(2).any(1).all())
    assert problem.episode("valid", 0).outer is problem.parts["valid"]
    assert problem.count("train") is None and "best_response" not in problem.task.offers
    blocks = [problem.outer_block(b)["x"] for b in range(problem.outer_blocks)]
    assert torch.equal(torch.cat(blocks), valid)
    assert tiny(outer_batch=7).problem.outer_blocks == tiny().problem.outer_blocks == 0
    with pytest.raises(ValueError, match="outer_batch = 31 of 30"):
        Task(**TINY, outer_batch=31)
