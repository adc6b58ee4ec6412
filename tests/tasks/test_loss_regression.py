"""Losses learned under outliers: parts, and the exact answers of small problems."""

import importlib

import numpy as np
import pytest
import torch
from oracles import F64, differences, given, hypergradient

from metabench.conformance.harness import Harness
from metabench.contract.problem import GRADIENTS
from metabench.contract.seeds import Seeds
from metabench.core.errors import DataMissing, MetabenchError, SettingError, UnknownName
from metabench.core.registry import methods, tasks

Task = tasks.get("loss_regression")
Problem = importlib.import_module("metabench.tasks.loss_regression").LossRegressionProblem
tables = importlib.import_module("metabench.tasks.data.uci_tables")
losses = importlib.import_module("metabench.tasks.models.losses")
CPU = torch.device("cpu")


def close(found, expected, tolerance=1e-10):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def table(n=60, d=3):
    gen = torch.Generator().manual_seed(0)
    x = 4 + torch.randn(n, d, generator=gen, dtype=F64)
    return x, x @ torch.tensor([1.0, -2.0, 0.5], dtype=F64)[:d] + 7


def made(x=None, y=None, **set_):
    small = {"n_valid": 15, "n_test": 10, "network": "linear", "l2": 0.0}
    task = Task(**{**small, **set_})
    parts, wrong = task.parts(Seeds.of(0), *(table() if x is None else (x, y)))
    return Problem(task, Seeds.of(0), CPU, parts, wrong)


def of_parts(train, valid, **set_):
    """A problem on given rows, (x, y) each."""
    parts = {k: {"x": x, "y": y} for k, (x, y) in
             {"train": train, "valid": valid, "test": valid}.items()}  # fmt: skip
    task = Task(**{"network": "linear", "l2": 0.0, "carried": False, **set_})
    return Problem(task, Seeds.of(0), CPU, parts, torch.zeros(len(train[1]), dtype=torch.bool))


def context(problem):
    return given(problem, *GRADIENTS, "lam_in_inner_loss")


def test_parts_are_apart_and_only_training_targets_move():
    moved, plain = made(outliers=0.4), made(outliers=0.0)
    sizes = {k: len(v["y"]) for k, v in moved.parts.items()}
    assert sizes == {"train": 35, "valid": 15, "test": 10}
    gap = moved.parts["train"]["y"] - plain.parts["train"]["y"]
    assert int(moved.wrong.sum()) == 14 and not gap[~moved.wrong].any()
    assert float(gap[moved.wrong].min()) >= 5.0  # one side, at least ``size`` deviations
    both = made(outliers=0.4, side="both")
    gap = both.parts["train"]["y"] - plain.parts["train"]["y"]
    assert set(gap[both.wrong].sign().tolist()) == {-1.0, 1.0}
    for split in ("valid", "test"):
        assert torch.equal(moved.parts[split]["y"], plain.parts[split]["y"])
    rows = {tuple(r) for part in moved.parts.values() for r in part["x"].tolist()}
    assert len(rows) == 60


def test_parts_are_standardised_by_clean_rows():
    parts = made(outliers=0.4).parts
    close(parts["train"]["x"].mean(0), torch.zeros(3, dtype=F64))
    close(parts["train"]["x"].std(0, correction=0), torch.ones(3, dtype=F64))
    close(parts["valid"]["y"].mean(), torch.zeros((), dtype=F64))
    x, y = table()
    x[:, 1] = 3.0
    assert not made(x, y).parts["train"]["x"][:, 1].any()  # constant, not 0 / 0


def test_bounds_train_on_what_is_right():
    right, valid = made(outliers=0.4, train_on="right"), made(outliers=0.4, train_on="valid")
    assert len(right.parts["train"]["y"]) == 21 and not right.wrong.any()
    assert float(right.parts["train"]["y"].abs().max()) < 5
    assert torch.equal(valid.parts["train"]["x"], valid.parts["valid"]["x"])
    with pytest.raises(SettingError, match="'right', and no target is"):
        made(outliers=1.0, train_on="right")
    with pytest.raises(SettingError, match="energy has 60 rows; n_valid = 15 and n_test = 10"):
        made(n_train=36)


def test_a_taylor_loss_at_its_start_has_the_path_of_squared_error():
    """Coefficients that reproduce the squared error give its very path."""
    paths = []
    for set_ in ({"form": "taylor", "bound": None}, {"form": "power", "smoothing": 0.0}):
        problem = made(network="mlp", width=5, **set_)
        ctx = context(problem)
        method = methods.get("fixed")(inner_steps=30, inner_lr=0.05)
        state = method.step(ctx, method.init(ctx))[0]
        paths.append(state.theta)
    for name, value in paths[0].items():
        close(value, paths[1][name])


def test_two_clusters_whose_mean_is_wanted():
    """Targets 0 (share 1 - p) and D (share p), weights s_c and s_d, clean mean 0:
    w* = p s_d D / W, W = (1 - p) s_c + p s_d, dL/ds_d = w* p (1 - p) s_c D / W^2,
    dL/ds_c = -w* p (1 - p) s_d D / W^2."""
    n, dirty, far = 20, 6, 3.0
    p = dirty / n
    x, y = torch.zeros(n, 1, dtype=F64), torch.zeros(n, dtype=F64)
    y[:dirty] = far
    clean = torch.zeros(4, 1, dtype=F64), torch.zeros(4, dtype=F64)
    ctx = context(of_parts((x, y), clean, form="examples"))
    is_dirty = torch.arange(n) < dirty
    lam = {"logit": torch.tensor([0.4] * dirty + [-0.3] * (n - dirty), dtype=F64)}
    s_d, s_c = (float(torch.tensor(v, dtype=F64).sigmoid()) for v in (0.4, -0.3))
    whole = (1 - p) * s_c + p * s_d
    best = p * s_d * far / whole
    for name, set_ in (
        ("bilevel", {"inner_lr": 0.8, "inner_steps": 120}),
        ("ift", {"inverse": "exact", "inner_lr": 0.8, "inner_steps": 120}),
    ):
        g = hypergradient(ctx, name, lam=lam, **set_)["logit"]
        found_d = g[is_dirty].sum() / (s_d * (1 - s_d))
        found_c = g[~is_dirty].sum() / (s_c * (1 - s_c))
        slope = best * p * (1 - p) * far / whole**2
        close(found_d, torch.tensor(slope * s_c, dtype=F64))
        close(found_c, torch.tensor(-slope * s_d, dtype=F64))
        assert float(g[is_dirty].min()) > 0 > float(g[~is_dirty].max())


def test_the_power_of_an_m_estimator_by_implicit_differentiation():
    """dw/dphi = -sum d psi / dphi / sum d psi / dw, psi = d|e|^phi / de; symmetric data and one
    outlier."""
    y = torch.tensor([-1.5, -0.7, 0.7, 1.5, 8.0], dtype=F64)
    x = torch.zeros(5, 1, dtype=F64)
    valid = torch.zeros(3, 1, dtype=F64), torch.zeros(3, dtype=F64)
    ctx = context(of_parts((x, y), valid, form="power", smoothing=0.0))
    phi = 1.5
    lam = {"power": torch.tensor(phi, dtype=F64)}
    w = torch.tensor(0.0, dtype=F64)
    for _ in range(60):  # Newton
        e = w - y
        w = w - (e.sign() * e.abs() ** (phi - 1)).sum() / ((phi - 1) * e.abs() ** (phi - 2)).sum()
    e = w - y
    size = e.abs()
    by_phi = (e.sign() * (size ** (phi - 1) * (1 + phi * size.log()))).sum()
    by_w = (phi * (phi - 1) * size ** (phi - 2)).sum()
    theta = ctx.problem.init_inner(lam, None) | {"head.bias": w[None]}
    g = hypergradient(ctx, "ift", lam=lam, theta=theta, inverse="exact", inner_steps=0)["power"]
    close(g, w * -by_phi / by_w)
    assert float(g) > 0  # a lower power leaves the outlier less to say


def test_the_closed_form_of_meta_weight_net():
    """-(alpha / n) sum_i [mean_j grad l_j(w') . grad l_i(w)] grad V(l_i), on a linear model."""
    problem = made(form="weight_net", outliers=0.3, carried=False)
    ctx, alpha = context(problem), 0.1
    lam = problem.init_outer()
    theta = problem.init_inner(lam, None)
    train, valid = problem.parts["train"], problem.parts["valid"]

    def rows(part):
        return torch.cat([part["x"], torch.ones(len(part["y"]), 1, dtype=F64)], 1)

    x, xv = rows(train), rows(valid)
    w = torch.cat([theta["head.weight"][0], theta["head.bias"]])
    e = x @ w - train["y"]
    slopes = 2 * e[:, None] * x
    v = losses.weight(lam, e.square())
    step = w - alpha * (v[:, None] * slopes).mean(0)
    ahead = ((xv @ step - valid["y"])[:, None] * xv).mean(0)
    similar = slopes @ ahead
    leaves = {k: u.clone().requires_grad_() for k, u in lam.items()}
    pulled = (losses.weight(leaves, e.square()) * similar).mean()
    expected = torch.autograd.grad(-alpha * pulled, list(leaves.values()))
    for name, set_ in (("one_step", {"inner_steps": 1}), ("bilevel", {"inner_steps": 1})):
        found = hypergradient(ctx, name, inner_lr=alpha, **set_)
        for k, g in zip(leaves, expected, strict=True):
            close(found[k], g)


@pytest.mark.parametrize("form", ["weight_net", "taylor", "network", "huber"])
def test_several_steps_against_differences(form):
    ctx = context(made(form=form, outliers=0.2, network="mlp", width=3, carried=False))
    lam = ctx.problem.init_outer()
    small = {k: v for k, v in lam.items() if v.numel() < 10}
    found = hypergradient(ctx, "bilevel", inner_steps=6, inner_lr=0.05)
    fixed = methods.get("fixed")(inner_steps=6, inner_lr=0.05)

    def after(part):
        full = {**lam, **part}
        episode = ctx.problem.episode("test", 0)
        state = fixed.init(ctx)
        state = type(state)(full, None)
        theta = fixed.adapt(ctx, state, episode)
        return ctx.problem.outer_loss(full, theta, ctx.problem.parts["valid"])

    if form == "network":  # no part is small: the last layer's first weights
        at = lam["loss.end"][:, :2].clone()
        end = lam["loss.end"]

        def after_end(part):
            return after({"loss.end": torch.cat([part["w"], end[:, 2:]], 1)})

        close(found["loss.end"][:, :2], differences(after_end, {"w": at})["w"], 1e-6)
        return
    assert small
    for k, g in differences(after, small).items():
        close(found[k], g, 1e-6)


def test_minibatches_carry_their_places():
    problem = made(form="examples", batch=8)
    batch = problem.episode("train", 2).batch(1)
    assert torch.equal(batch["y"], problem.parts["train"]["y"][batch["index"]])
    assert not torch.equal(batch["index"], problem.episode("train", 3).batch(1)["index"])
    assert problem.count("train") == 1
    assert made(batch=8, carried=False).count("train") is None


def test_a_learned_power_leaves_the_outliers_aside():
    problem = made(outliers=0.3, form="power", carried=True)
    at = Harness(methods.get("ift")(inner_steps=5, inner_lr=0.1, terms=10, outer_lr=0.05), None)
    ctx = context(problem)
    state = at.run(ctx, 60)
    plain = methods.get("fixed")(inner_steps=300, inner_lr=0.05)
    squares = plain.step(ctx, plain.init(ctx))[0]
    test = problem.episode("test", 0)
    learned, floor = (problem.metrics(s.lam, s.theta, test) for s in (state, squares))
    assert float(state.lam["power"]) < 1.2
    assert learned["rmse"] < 0.5 * floor["rmse"]
    assert learned["weight_wrong"] < learned["weight_right"]


@pytest.fixture
def a_table_of_our_own(tmp_path, monkeypatch):
    for name in ("METABENCH_DATA", "METABENCH_CACHE"):
        monkeypatch.setenv(name, str(tmp_path))
    return tmp_path / "uci_regression"


def test_tables_are_read_and_checked(a_table_of_our_own):
    with pytest.raises(DataMissing, match="uci_regression"):
        tables.load("yacht")
    with pytest.raises(UnknownName, match="near: yacht"):
        tables.load("yaht")
    a_table_of_our_own.mkdir()
    x, y = np.arange(308 * 6.0).reshape(308, 6), np.arange(308.0)
    file = a_table_of_our_own / "uci_regression.npz"
    np.savez(file, yacht_x=x, yacht_y=y, energy_x=x, energy_y=y)
    found = tables.load("yacht")
    assert found[0].tolist() == x.tolist() and found[1].tolist() == y.tolist()
    with pytest.raises(MetabenchError, match=r"energy as \[308, 6\] and \[308\] instead of \[768"):
        tables.load("energy")
    for body in (file.read_bytes()[:500], b"", b"<html>not found</html>"):
        file.write_bytes(body)
        with pytest.raises(MetabenchError, match=r"cannot be read .*verify uci_regression"):
            tables.load("concrete")


@pytest.mark.parametrize("name", tables.SIZES)
def test_the_real_tables(name):
    x, y = tables.load(name)
    assert x.shape == tables.SIZES[name] and bool(torch.isfinite(x).all() & torch.isfinite(y).all())
    problem = Task(dataset=name, n_train=40).build(Seeds.of(0), CPU)
    assert len(problem.parts["test"]["y"]) == 100
