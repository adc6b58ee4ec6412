"""Two-stage pre-training: hypergradients in closed form and against a dense reference, tasks."""

import importlib
import os

import numpy as np
import pytest
import torch
from oracles import F64, context, differences, given, hypergradient

from metabench.conformance.kit import task_checks
from metabench.contract import autodiff
from metabench.contract.problem import Episode, Problem
from metabench.contract.seeds import Seeds
from metabench.core.capabilities import why_not
from metabench.core.errors import DataMissing, MetabenchError, SettingError
from metabench.core.registry import methods, tasks

finetune = importlib.import_module("metabench.tasks.families.pretraining.two_stage")
curves = importlib.import_module("metabench.tasks.families.auroc")
encoders = importlib.import_module("metabench.tasks.models.encoders")
ecg = importlib.import_module("metabench.tasks.data.ecg")
views = importlib.import_module("metabench.tasks.families.pretraining.warped_views")

TINY = {
    "n_tasks": 4, "inputs": 4, "hidden": 5, "features": 3, "n_pretrain": 30, "n_tune": 8,
    "n_valid": 10, "n_test": 60, "tune_steps": 3, "final_steps": 5, "dtype": "float64",
}  # fmt: skip


def close(found, expected, tolerance=1e-10):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# --- the scalar problem: everything in closed form -----------------------------------------------

A, B, C, D, K_LINK = 2.0, 1.5, 0.7, 0.3, 0.8
ETA, ALPHA, PSI0, THETA, LAM = 0.25, 0.1, -0.4, 0.9, 0.4


class Scalars(Problem):
    """L_PT = a/2 (theta - b lam)^2; L_FT = 1/2 (psi - k theta)^2, K steps of size eta from psi_0;
    F = 1/2 (psi_K + d theta - c)^2. With ``weights`` L_PT = sum_t w_t a_t/2 (theta - b_t)^2."""

    carried = True

    def __init__(self, steps=3, direct=0.0, full=False, weights=None):
        self.steps, self.direct, self.full, self.weights = steps, direct, full, weights

    def init_outer(self):
        n = () if self.weights is None else (len(self.weights),)
        return {"lam": torch.full(n, LAM if self.weights is None else 0.0, dtype=F64)}

    def init_inner(self, lam, episode):
        return {"theta": torch.tensor(THETA, dtype=F64)}

    def inner_loss(self, lam, theta, batch):
        x = theta["theta"]
        if self.weights is None:
            return 0.5 * A * (x - B * lam["lam"]).square()
        a, b = torch.tensor(self.weights, dtype=F64).T
        return (2 * lam["lam"].sigmoid() * 0.5 * a * (x - b).square()).sum()

    def outer_loss(self, lam, theta, batch):
        x = theta["theta"]
        psi = {"psi": x if self.full else torch.full_like(x, PSI0)}
        end = finetune.fine_tune(
            lambda p: 0.5 * (p["psi"] - K_LINK * x).square(), psi, steps=self.steps, lr=ETA
        )
        return 0.5 * (end["psi"] + self.direct * x - C).square()

    def episode(self, split, index):
        return Episode({}, {}, index)

    def v1(self, theta):
        """dF/dtheta: (psi_K + d theta - c) (k (1 - r) + d), and + r where psi_0 = theta."""
        r = (1 - ETA) ** self.steps
        start = theta if self.full else PSI0
        end = K_LINK * theta + r * (start - K_LINK * theta)
        slope = K_LINK * (1 - r) + (r if self.full else 0.0) + self.direct
        return (end + self.direct * theta - C) * slope


def scalar(name, problem, **set_):
    ctx = given(problem, "outer_gradient", "second_order", "lam_in_inner_loss")
    theta = {"theta": torch.tensor(THETA, dtype=F64)}
    return hypergradient(ctx, name, theta=theta, **set_)["lam"]


VARIANTS = [{}, {"direct": D}, {"full": True}, {"full": True, "direct": D}]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("terms", [0, 1, 4])
def test_neumann_terms_through_pretraining_and_steps_through_fine_tuning(terms, steps, variant):
    problem = Scalars(steps, **variant)
    series = B * (1 - (1 - ALPHA * A) ** (terms + 1))
    found = scalar("ift", problem, inner_steps=0, terms=terms, alpha=ALPHA)
    close(found, torch.tensor(problem.v1(THETA) * series, dtype=F64))


@pytest.mark.parametrize("variant", VARIANTS)
def test_unrolling_pretraining_too(variant):
    problem, steps = Scalars(4, **variant), 5
    rho = (1 - ALPHA * A) ** steps
    end = B * LAM + rho * (THETA - B * LAM)
    found = scalar("bilevel", problem, inner_steps=steps, inner_lr=ALPHA)
    close(found, torch.tensor(problem.v1(end) * B * (1 - rho), dtype=F64))
    found = scalar("one_step", problem, inner_steps=steps, inner_lr=ALPHA)
    close(found, torch.tensor(problem.v1(end) * B * ALPHA * A, dtype=F64))


def test_both_limits():
    """N and K to infinity: k b (k b lam - c)."""
    problem = Scalars(steps=150)
    found = scalar("ift", problem, inner_steps=200, inner_lr=ALPHA, terms=200)
    close(found, torch.tensor(K_LINK * B * (K_LINK * B * LAM - C), dtype=F64))


def test_each_tasks_weight_moves_by_its_own_gradient():
    """g_t = -w_t' grad l_t v2, w_t' = 1/2 at 0: none for a task that is at its minimum; the task
    whose minimum fine-tuning wants is raised, the one that pulls away lowered."""
    wanted = C / K_LINK
    given_tasks = [(1.0, THETA), (0.5, THETA + 0.7), (1.5, wanted), (1.0, 2 * THETA - wanted)]
    problem = Scalars(steps=40, weights=given_tasks)
    terms = 2
    hessian = sum(a for a, _ in given_tasks)
    v2 = problem.v1(THETA) * (1 - (1 - ALPHA * hessian) ** (terms + 1)) / hessian
    expected = [-0.5 * a * (THETA - b) * v2 for a, b in given_tasks]
    found = scalar("ift", problem, inner_steps=0, terms=terms, alpha=ALPHA)
    close(found, torch.tensor(expected, dtype=F64))
    assert found[0] == 0
    assert problem.v1(THETA) > 0 and wanted < THETA
    assert found[2] < 0 < found[3]  # descent raises the third, lowers the fourth


def test_fine_tuning_is_the_solver_it_names():
    target = torch.tensor([1.0, -2.0], dtype=F64)
    for rule, kind in (("sgd", torch.optim.SGD), ("adam", torch.optim.Adam)):
        psi = {"a": torch.zeros(2, dtype=F64)}
        end = finetune.fine_tune(
            lambda p: (p["a"] - target).square().sum(), psi, steps=5, lr=0.1, rule=rule
        )
        a = torch.zeros(2, dtype=F64, requires_grad=True)
        library = kind([a], lr=0.1)
        for _ in range(5):
            library.zero_grad()
            (a - target).square().sum().backward()
            library.step()
        close(end["a"].detach(), a.detach())
        assert not psi["a"].any()
        plain = finetune.fine_tune(
            lambda p: (p["a"] - target).square().sum(), psi, steps=5, lr=0.1, rule=rule,
            create_graph=False,
        )  # fmt: skip
        assert not plain["a"].requires_grad
        close(plain["a"], a.detach())


# --- the composite hypergradient of a network against a dense reference --------------------------


def dense(problem, lam, theta, batch, outer, solve):
    """-(d2 L_PT / dlam dtheta) solve(H) grad F with whole matrices, fine-tuning written out.

    H is d(inner update direction)/dtheta as the paper's code has it: no block across where the
    warm head is. No code in common with the task but the encoder.
    """
    task = problem.settings
    names, sizes = list(theta), [v.numel() for v in theta.values()]

    def unflat(w):
        parts = zip(theta.items(), w.split(sizes), strict=True)
        return {k: x.view(v.shape) for (k, v), x in parts}

    def ce(w, b, f, y):
        scores = f @ w.T + b
        return (torch.logsumexp(scores, 1) - scores[torch.arange(len(y)), y]).mean()

    def encode(p, x):
        for i in range(2):
            x = torch.tanh(x @ p[f"encoder.layer{i}.weight"].T + p[f"encoder.layer{i}.bias"])
        return x

    def pretrain(logit, w):
        p = unflat(w)
        z = encode(p, batch["x"]) @ p["pretrain.weight"].T + p["pretrain.bias"]
        y = batch["y"]
        each = torch.log1p(torch.exp(-z.abs())) + z.clamp(min=0) - z * y
        return (2 / (1 + torch.exp(-logit)) * each).mean()

    def inner(logit, w, frozen):
        value = pretrain(logit, w)
        if "head.weight" in theta:
            p, q = unflat(w), unflat(frozen)
            f = encode(q if task.head == "warm" else p, outer["support_x"])
            value = value + ce(p["head.weight"], p["head.bias"], f, outer["support_y"])
        return value

    def fine_tuned(w):
        p = unflat(w)
        psi = {k: p[k] for k in names if k.startswith("head.")}
        if not psi:
            psi = {"head.weight": torch.zeros(2, 3, dtype=F64)}
            psi["head.bias"] = torch.zeros(2, dtype=F64)
        if task.transfer == "full":
            psi |= {k: p[k] for k in names if k.startswith("encoder.")}

        def tune(psi):
            f = encode({**p, **psi}, outer["support_x"])
            return ce(psi["head.weight"], psi["head.bias"], f, outer["support_y"])

        for _ in range(task.tune_steps):
            g = torch.func.grad(tune)(psi)
            psi = {k: v - task.tune_lr * g[k] for k, v in psi.items()}
        f = encode({**p, **psi}, outer["x"])
        return ce(psi["head.weight"], psi["head.bias"], f, outer["y"])

    w = torch.cat([v.reshape(-1) for v in theta.values()])
    slope = torch.func.grad(inner, argnums=1)
    h = torch.func.jacrev(slope, argnums=1)(lam, w, w)  # frozen is held: no block across
    mixed = torch.func.jacrev(slope, argnums=0)(lam, w, w)  # [theta, lam]
    return -mixed.T @ solve(h) @ torch.func.grad(fine_tuned)(w)


NETWORKS = [
    {},
    {"transfer": "full"},
    {"head": "warm"},
    {"head": "warm", "transfer": "full", "tune_steps": 1},
    {"head": "cotrained"},
]


@pytest.mark.parametrize("set_", NETWORKS)
def test_the_composite_hypergradient_against_a_dense_reference(set_):
    ctx = context(tasks.get("pretrain_synthetic")(**{**TINY, **set_}))
    problem = ctx.problem
    gen = torch.Generator().manual_seed(0)
    lam = {"logit": torch.randn(4, generator=gen, dtype=F64)}
    episode = problem.episode("train", 0)
    theta = {
        k: v + 0.3 * torch.randn(v.shape, generator=gen, dtype=F64)
        for k, v in problem.init_inner(lam, episode).items()
    }
    terms, alpha = 6, 0.2

    def neumann(h):
        step = torch.eye(len(h), dtype=F64) - alpha * h
        return alpha * sum(torch.linalg.matrix_power(step, j) for j in range(terms + 1))

    given_ = (problem, lam["logit"], theta, episode.batch(0), episode.outer)
    expected = dense(*given_, neumann)
    found = hypergradient(
        ctx, "ift", lam=lam, theta=theta, inner_steps=0, terms=terms, alpha=alpha, growth_limit=1e9
    )
    assert float(expected.norm()) > 1e-5
    close(found["logit"], expected)
    damping = 5.0
    found = hypergradient(
        ctx, "ift", lam=lam, theta=theta, inner_steps=0, inverse="exact", damping=damping
    )
    expected = dense(*given_, lambda h: torch.linalg.inv(h + damping * torch.eye(len(h))))
    close(found["logit"], expected, 1e-9)


@pytest.mark.parametrize("head", ["fresh", "cotrained"])
def test_unrolled_through_both_stages_against_differences(head):
    ctx = context(tasks.get("pretrain_synthetic")(**{**TINY, "head": head, "carried": False}))
    problem, steps, lr = ctx.problem, 4, 0.3
    episode = problem.episode("train", 0)
    lam = {"logit": torch.linspace(-1, 1, 4, dtype=F64)}

    def f(lam):
        theta = problem.init_inner(lam, episode)
        for _ in range(steps):
            g = autodiff.grad(lambda t: problem.inner_loss(lam, t, episode.batch(0)), theta)[1]
            theta = {k: v - lr * g[k] for k, v in theta.items()}
        return problem.outer_loss(lam, theta, episode.outer)

    found = hypergradient(ctx, "bilevel", lam=lam, inner_steps=steps, inner_lr=lr)
    close(found["logit"], differences(f, lam)["logit"], 1e-8)
    forward = hypergradient(ctx, "bilevel", lam=lam, inner_steps=steps, inner_lr=lr, mode="forward")
    close(forward["logit"], found["logit"])


@pytest.mark.parametrize("rule", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("transfer", ["linear", "full"])
def test_the_outer_gradient_in_theta_against_differences(rule, transfer):
    set_ = {"tune_rule": rule, "transfer": transfer, "tune_lr": 0.05, "head": "warm"}
    problem = context(tasks.get("pretrain_synthetic")(**{**TINY, **set_})).problem
    episode = problem.episode("train", 0)
    gen = torch.Generator().manual_seed(3)
    theta = {
        k: v + 0.3 * torch.randn(v.shape, generator=gen, dtype=F64)
        for k, v in problem.init_inner({}, episode).items()
    }

    def f(t):
        return problem.outer_loss({}, t, episode.outer)

    found, expected = autodiff.grad(f, theta)[1], differences(f, theta)
    for k in theta:
        close(found[k], expected[k], 1e-7)
    assert not found["pretrain.weight"].any() and found["head.weight"].any()
    assert not f(theta).requires_grad


def test_a_warm_head_leaves_the_encoder_alone_and_a_cotrained_one_does_not():
    slopes = {}
    for head in ("fresh", "warm", "cotrained"):
        ctx = context(tasks.get("pretrain_synthetic")(**{**TINY, "head": head}))
        problem, lam = ctx.problem, ctx.problem.init_outer()
        episode = problem.episode("train", 0)
        theta = problem.init_inner(lam, episode)
        if head != "fresh":  # a zero head passes nothing back
            theta["head.weight"] = theta["head.weight"] + 1.0 * torch.eye(2, 3, dtype=F64)
        slopes[head] = ctx.inner_grad(lam, theta, episode.batch(0))
    for k, v in slopes["fresh"].items():
        close(slopes["warm"][k], v)
    assert slopes["warm"]["head.weight"].any()
    assert not torch.allclose(
        slopes["cotrained"]["encoder.layer0.weight"], slopes["fresh"]["encoder.layer0.weight"]
    )


# --- tasks -----------------------------------------------------------------------------------


def test_area_under_the_curve_by_pairs():
    gen = np.random.default_rng(0)
    for _ in range(5):
        scores = torch.from_numpy(gen.integers(0, 6, 30).astype(float))  # with ties
        positive = torch.from_numpy(gen.random(30) < 0.4)
        pairs = [
            1.0 if a > b else 0.5 if a == b else 0.0
            for a in scores[positive]
            for b in scores[~positive]
        ]
        assert curves.auroc(scores, positive) == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
    with pytest.raises(ValueError, match="30 positives and 0 negatives"):
        curves.auroc(scores, positive | True)


def test_macro_area_is_the_mean_over_classes_that_are_there():
    logits = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    labels = torch.arange(40) % 2
    chances = logits.softmax(1)
    expected = sum(curves.auroc(chances[:, k], labels == k) for k in range(2)) / 2
    assert curves.macro_auroc(logits, labels) == pytest.approx(expected)
    with pytest.raises(ValueError, match="all labels are of one class"):
        curves.macro_auroc(logits, labels * 0)


def synthetic(seed=0, **set_):
    task = tasks.get("pretrain_synthetic")(**{**TINY, **set_})
    return task.build(Seeds.of(seed), torch.device("cpu"))


def test_useful_labels_follow_one_angle_and_useless_ones_nothing():
    problem = synthetic(n_pretrain=4000, n_tasks=6, n_test=4000, spread=0.1)
    y, useless = problem.examples["y"], problem.useless
    assert useless.tolist() == [False] * 3 + [True] * 3
    agreement = torch.corrcoef(y.T)
    assert (agreement[:3, :3] > 0.55).all()  # phases at most a tenth of a turn apart
    off = agreement[3:] - torch.eye(6)[3:].to(agreement)
    assert off.abs().max() < 0.08
    assert 0.45 < float(y.mean()) < 0.55
    other = synthetic(1, n_pretrain=4000, n_tasks=6)
    assert not torch.equal(other.examples["x"], problem.examples["x"])


def test_fine_tuning_examples_have_three_roles():
    problem = synthetic()
    (tune, valid), (again, same), (every, test) = (
        problem.roles[split] for split in ("train", "valid", "test")
    )
    assert tune is again and valid is same
    assert torch.equal(every["x"], torch.cat([tune["x"], valid["x"]]))
    seen = {row.numpy().tobytes() for row in every["x"]}
    assert len(seen) == 18 and not seen & {row.numpy().tobytes() for row in test["x"]}
    outer = problem.episode("test", 0).outer
    assert torch.equal(outer["x"], test["x"]) and torch.equal(outer["support_x"], every["x"])


def test_outer_batches_are_drawn_anew_for_training_only():
    problem = synthetic(outer_batch=5, head="warm")
    one, two = (problem.episode("train", i).outer for i in range(2))
    assert one["x"].shape == (5, 4) and not torch.equal(one["support_x"], two["support_x"])
    assert torch.equal(one["x"], problem.episode("train", 0).outer["x"])
    assert len(problem.episode("valid", 0).outer["x"]) == 10
    batches = [problem.episode("train", 0).batch(t) for t in (0, 1, 0)]
    assert batches[0]["support_x"].shape == (5, 4) and len(batches[0]["x"]) == 30
    assert not torch.equal(batches[0]["support_x"], batches[1]["support_x"])
    assert torch.equal(batches[0]["support_x"], batches[2]["support_x"])


def test_the_oracle_knows_and_metrics_say_so():
    problem = synthetic(weights="oracle")
    lam, episode = problem.init_outer(), problem.episode("test", 0)
    found = problem.metrics(lam, problem.init_inner(lam, episode), episode)
    assert found["auroc_weights"] == 1.0
    assert found["weight_useful"] == 1.0 and found["weight_useless"] < 0.006
    even = synthetic()
    lam = even.init_outer()
    found = even.metrics(lam, even.init_inner(lam, episode), even.episode("test", 0))
    assert found["auroc_weights"] == 0.5 and found["weight_useless"] == 1.0


def test_which_crossings_the_theory_allows():
    task = tasks.get("pretrain_synthetic")()
    applies = {
        name: why_not(task, methods.get(name)()) is None
        for name in ("fixed", "ift", "bilevel", "one_step", "pbgd", "sgld", "random", "optuna_tpe",
                     "stn", "delta_stn", "maml", "reptile")
    }  # fmt: skip
    assert [name for name, yes in applies.items() if not yes] == ["maml", "reptile"]


def test_a_residual_network_by_hand():
    for space in (1, 2):
        net = encoders.ResNet(space, 3, width=4, stages=2, blocks=2)
        gen = torch.Generator().manual_seed(0)
        params = encoders.first_values(net.shapes(), gen, F64)
        assert all((v == 1).all() for k, v in params.items() if "scale" in k)
        x = torch.randn(5, 3, *[16] * space, generator=gen, dtype=F64)
        conv = torch.nn.functional.conv1d if space == 1 else torch.nn.functional.conv2d

        def norm(y, s, t, space=space):
            groups = y.reshape(len(y), y.shape[1] // 4, -1)
            mean, var = groups.mean(2, keepdim=True), groups.var(2, unbiased=False, keepdim=True)
            view = (-1, *[1] * space)
            return ((groups - mean) / (var + 1e-5).sqrt()).view_as(y) * s.view(view) + t.view(view)

        def p(name, params=params):
            return params[name]

        pad = 3 if space == 1 else 1
        y = norm(
            conv(x, p("first.conv"), stride=2, padding=pad), p("first.scale"), p("first.shift")
        )
        y = y.clamp(min=0)
        for at, stride in (("stage0.block0.", 1), ("stage0.block1.", 1), ("stage1.block0.", 2),
                           ("stage1.block1.", 1)):  # fmt: skip
            z = conv(y, p(at + "conv1"), stride=stride, padding=1)
            z = norm(z, p(at + "scale1"), p(at + "shift1")).clamp(min=0)
            z = norm(conv(z, p(at + "conv2"), padding=1), p(at + "scale2"), p(at + "shift2"))
            skip = conv(y, p(at + "skip"), stride=2) if at + "skip" in params else y
            y = (z + skip).clamp(min=0)
        assert net.feature_size == 8
        close(net.features({"a." + k: v for k, v in params.items()}, x, "a."), y.flatten(2).mean(2))
        alone = net.features(params, x[:1])
        close(alone, net.features(params, x)[:1])  # an example's features are its own


# --- CIFAR-100's superclasses ----------------------------------------------------------------


FEW = {
    "n_tasks": 4, "n_pretrain": 8, "n_tune": 2, "n_valid": 3, "n_test": 4, "batch": 2, "width": 4,
    "stages": 2, "shrink": 2, "tune_steps": 2, "final_steps": 3, "dtype": "float64",
}  # fmt: skip


@pytest.fixture
def photographs(monkeypatch):
    """Twelve images of each class of our own: the first pixel says the class, the second which."""
    cifar = importlib.import_module("metabench.tasks.data.cifar100")
    gen = np.random.default_rng(0)
    made = torch.from_numpy(gen.integers(0, 256, (100, 12, 3, 32, 32), dtype=np.uint8))
    made[:, :, 0, 0, 0] = torch.arange(100, dtype=torch.uint8)[:, None]
    made[:, :, 0, 0, 1] = torch.arange(12, dtype=torch.uint8)

    def images(source, split, part):
        assert split == {part: cifar.NAMES}
        return made

    monkeypatch.setattr(cifar, "images", images)
    return cifar


def superclasses(seed=0, **set_):
    task = tasks.get("pretrain_multitask")(**{**FEW, "shrink": 1, **set_})
    return task.build(Seeds.of(seed), torch.device("cpu"))


def marks(x):
    """(class, number) of images [..., 3, size, size], from their first two pixels."""
    seen = ((x.flatten(0, -4)[:, 0, 0, :2] + 1) * 127.5).round().long()
    return list(map(tuple, seen.tolist()))


def test_superclasses_are_tasks_and_the_held_out_one_has_three_parts(photographs):
    problem = superclasses()
    assert len(problem.superclasses) == 4 and len(problem.held_out) == 1
    assert not set(problem.superclasses) & set(problem.held_out)
    for t, name in enumerate(problem.superclasses):
        members = photographs.SUPERCLASSES[name].split()
        for (kind, _), y, right in zip(
            marks(problem.x[t]), problem.y[t], problem.right[t], strict=True
        ):
            assert photographs.NAMES[kind] in members
            assert bool(right) == (photographs.NAMES[kind] == members[int(y)])
    tune, valid = problem.roles["train"]
    every, test = problem.roles["test"]
    found = [marks(part["x"]) for part in (tune, valid, test)]
    assert list(map(len, found)) == [10, 15, 20]
    assert len({one for part in found for one in part}) == 45  # no image twice
    assert marks(every["x"]) == found[0] + found[1]
    members = photographs.SUPERCLASSES[problem.held_out[0]].split()
    for (kind, _), y in zip(found[2], test["y"], strict=True):
        assert photographs.NAMES[kind] == members[int(y)]
    assert superclasses(1).held_out + superclasses(1).superclasses != (
        problem.held_out + problem.superclasses
    )


def test_labels_of_useless_tasks_alone_are_redrawn(photographs):
    problem = superclasses(n_tasks=10, n_pretrain=12)
    assert problem.useless.tolist() == [False] * 5 + [True] * 5
    assert problem.right[~problem.useless].all()
    assert 0.1 < float(problem.right[problem.useless].double().mean()) < 0.3  # one in five
    half = superclasses(n_tasks=10, n_pretrain=12, redrawn=0.5)
    assert 0.45 < float(half.right[half.useless].double().mean()) < 0.75


def test_on_an_unseen_superclass_lam_is_learned_for_another(photographs):
    problem = superclasses(unseen=True)
    one, two = (
        {photographs.NAMES.index(k) for k in photographs.SUPERCLASSES[name].split()}
        for name in problem.held_out
    )
    assert {kind for kind, _ in marks(problem.roles["valid"][1]["x"])} == one
    for part in problem.roles["test"]:
        assert {kind for kind, _ in marks(part["x"])} == two
    with pytest.raises(ValueError, match="n_tasks is at most 18"):
        tasks.get("pretrain_multitask")(n_tasks=19, unseen=True)


def test_the_weighed_loss_by_hand(photographs):
    problem = superclasses()
    gen = torch.Generator().manual_seed(0)
    lam = {"logit": torch.randn(4, generator=gen, dtype=F64)}
    episode = problem.episode("train", 0)
    theta, batch = problem.init_inner(lam, episode), episode.batch(1)
    assert batch["x"].shape == (4, 2, 3, 32, 32)
    total = 0.0
    for t in range(4):
        f = problem.encode(theta, batch["x"][t])
        scores = f @ theta["pretrain.weight"][t].T + theta["pretrain.bias"][t]
        ce = torch.logsumexp(scores, 1) - scores[torch.arange(2), batch["y"][t]]
        total = total + 2 / (1 + torch.exp(-lam["logit"][t])) * ce.mean() / 4
    close(problem.inner_loss(lam, theta, batch), total)


def test_too_many_images_are_refused(photographs):
    with pytest.raises(SettingError, match=r"n_tune \+ n_valid \+ n_test 13; a class has 12"):
        superclasses(n_test=8)


SOME = ("fixed", "ift", "bilevel", methods.get("random")(inner_steps=5))


@pytest.mark.parametrize("set_", [{}, {"unseen": True, "head": "warm", "dtype": "float32"}])
def test_superclasses_keep_the_contract(photographs, set_):
    for _, check in task_checks(tasks.get("pretrain_multitask")(**{**FEW, **set_}), SOME):
        check()


# --- ECGs ------------------------------------------------------------------------------------


ECG = {
    "batch": 4, "n_tune": 8, "n_valid": 8, "window": 32, "width": 4, "stages": 2, "projection": 4,
    "tune_steps": 2, "final_steps": 3, "dtype": "float64",
}  # fmt: skip
BEATS = 60


def write_recordings(folder, **wrong):
    """48 recordings of noise with a beat every 50 samples, as tall as its class says."""
    gen = np.random.default_rng(0)
    signal = gen.integers(-20, 20, (48, 2, 50 * BEATS), dtype=np.int16)
    record = np.repeat(np.arange(48, dtype=np.uint8), BEATS)
    sample = np.tile(25 + 50 * np.arange(BEATS, dtype=np.int32), 48)
    aami = np.tile(np.arange(BEATS, dtype=np.uint8) % 5, 48)
    signal[record, :, sample] += (100 * (1 + aami))[:, None].astype(np.int16)
    made = {
        "signal": signal, "split": np.arange(48, dtype=np.uint8) % 3, "beat_record": record,
        "beat_sample": sample, "beat_aami": aami, "fs": np.int64(100),
    }  # fmt: skip
    (folder / "mitbih").mkdir()
    np.savez(folder / "mitbih" / "mitbih_100hz.npz", **{**made, **wrong})
    return made


@pytest.fixture
def recordings(tmp_path, monkeypatch):
    monkeypatch.setenv("METABENCH_DATA", str(tmp_path))
    monkeypatch.setenv("METABENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(ecg, "SHAPE", (48, 2, 50 * BEATS))
    return write_recordings(tmp_path)


def hearts(seed=0, **set_):
    task = tasks.get("pretrain_ecg")(**{**ECG, **set_})
    return task.build(Seeds.of(seed), torch.device("cpu"))


def test_beats_are_read_with_patients_apart(recordings):
    beats = ecg.load()
    assert set(beats.label.tolist()) == {0, 1, 2, 3}  # Q is left out
    assert torch.equal(beats.part, beats.record % 3 + 1)  # and so are paced recordings
    assert set(beats.part.tolist()) == {1, 2}
    close(beats.signal.mean(2), torch.zeros(48, 2), 1e-4)
    close(beats.signal.std(2), torch.ones(48, 2), 1e-4)
    whole = beats.whole(64)
    assert not whole[0] and whole.sum() < len(whole)
    chosen = whole.nonzero()[[0, 7], 0]
    x = beats.windows(chosen, 64)
    assert x.shape == (2, 2, 64)
    for row, i in zip(x, chosen.tolist(), strict=True):
        at = int(beats.sample[i])
        assert torch.equal(row, beats.signal[beats.record[i], :, at - 32 : at + 32])
        assert float(row[0, 32]) > 1


def test_a_file_of_something_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("METABENCH_DATA", str(tmp_path))
    write_recordings(tmp_path)
    with pytest.raises(MetabenchError, match=r"holds int16 \[48, 2, 3000\], not int16 .*180556"):
        ecg.load()
    (tmp_path / "mitbih" / "mitbih_100hz.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(MetabenchError, match="metabench data verify mitbih"):
        ecg.load()
    (tmp_path / "mitbih" / "mitbih_100hz.npz").unlink()
    monkeypatch.setenv("METABENCH_CACHE", str(tmp_path))
    with pytest.raises(DataMissing, match="METABENCH_DATA"):
        ecg.load()


def test_labels_are_few_and_test_patients_unseen(recordings):
    problem = hearts(n_test=40)
    tune, valid = problem.roles["train"]
    every, test = problem.roles["test"]
    for part in (tune, valid):
        assert torch.bincount(part["y"]).tolist() == [2, 2, 2, 2]
    rows = [row.numpy().tobytes() for row in torch.cat([every["x"], test["x"]])]
    assert len(set(rows)) == len(rows) and len(every["y"]) == 16
    assert 40 <= len(test["y"]) <= 48 and set(test["y"].tolist()) == {0, 1, 2, 3}
    beats = problem.beats
    assert set(beats.part[problem.unlabelled].tolist()) == {1}
    everyone = hearts().roles["test"][1]
    assert len(everyone["y"]) == int(((beats.part == 2) & beats.whole(32)).sum())
    with pytest.raises(SettingError, match=r"take 1002 beats of class N; DS1 has 192"):
        hearts(n_tune=4000)


def test_a_warp_moves_along_its_curve():
    gen = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, 40, generator=gen, dtype=F64)
    still = views.warp(x, torch.zeros(3, 4, dtype=F64))
    close(still, x)
    weights = 0.03 * torch.randn(3, 4, generator=gen, dtype=F64)
    found = views.warp(x, weights)
    grid = np.arange(40)
    for i in range(3):
        curve = sum(
            float(weights[i, k - 1]) * np.sin(np.pi * k * grid / 39) / k for k in range(1, 5)
        )
        for c in range(2):
            close(found[i, c], torch.from_numpy(np.interp(grid + 39 * curve, grid, x[i, c])))
    assert torch.equal(found[..., 0], x[..., 0])
    close(found[..., -1], x[..., -1])
    point = {"w": weights}
    slope = autodiff.grad(lambda p: views.warp(x, p["w"]).square().sum(), point)[1]
    expected = differences(lambda p: views.warp(x, p["w"]).square().sum(), point, 1e-7)
    close(slope["w"], expected["w"], 1e-5)


def test_the_contrast_by_hand():
    gen = torch.Generator().manual_seed(0)
    z = torch.randn(6, 4, generator=gen, dtype=F64)
    unit = z / z.norm(dim=1, keepdim=True)
    total = 0.0
    for i in range(6):
        others = [j for j in range(6) if j != i]
        near = torch.exp(unit[others] @ unit[i] / 0.5)
        total += -torch.log(torch.exp(unit[(i + 3) % 6] @ unit[i] / 0.5) / near.sum()) / 6
    close(views.contrast(z, 0.5), total)


@pytest.mark.parametrize("strength", ["numbers", "network"])
def test_strengths_start_at_the_scale_and_views_differ_by_their_noise(recordings, strength):
    problem = hearts(strength=strength, first_scale=0.05)
    lam, batch = problem.init_outer(), problem.episode("train", 0).batch(0)
    size = problem.amplitude(lam, batch["x"])
    if strength == "numbers":
        close(size, torch.full((4,), 0.05, dtype=F64))
    else:
        assert size.shape == (4, 4) and (size > 0).all() and (size < 0.1).all()
        assert not torch.allclose(size[0], size[1])  # an example has its own
    one, two = (problem.view(lam, batch, which) for which in ("one", "two"))
    assert not torch.allclose(one, two)
    plain = {**lam, "scale": lam["scale"] * 0}
    close(problem.view(plain, batch, "one"), batch["x"] + 0.1 * batch["jitter_one"])
    found = problem.judge(lam)["warp_ms"]
    assert problem.judge(plain)["warp_ms"] == 0.0 and 0 < found < 1000 * 32 / 100 * 0.3


def test_the_hypergradient_of_the_warp_against_differences(recordings):
    ctx = context(tasks.get("pretrain_ecg")(**{**ECG, "carried": False, "first_scale": 0.05}))
    problem, lr = ctx.problem, 0.1
    episode, lam = problem.episode("train", 0), problem.init_outer()
    theta = problem.init_inner(lam, episode)

    def f(lam):
        g = autodiff.grad(lambda t: problem.inner_loss(lam, t, episode.batch(0)), theta)[1]
        return problem.outer_loss(lam, autodiff.axpy(-lr, g, theta), episode.outer)

    found = hypergradient(ctx, "bilevel", lam=lam, inner_steps=1, inner_lr=lr)
    expected = differences(f, lam, 1e-7)
    for k in lam:
        close(found[k], expected[k], 1e-5)


@pytest.mark.parametrize(
    "set_",
    [
        {"n_test": 40},
        {"strength": "network", "dtype": "float32"},
        {"head": "cotrained", "transfer": "full", "carried": False},
    ],
)
def test_hearts_keep_the_contract(recordings, set_):
    some = SOME if set_.get("strength") != "network" else SOME[:3]
    for _, check in task_checks(tasks.get("pretrain_ecg")(**{**ECG, **set_}), some):
        check()


def test_a_network_of_strengths_cannot_be_searched():
    task = tasks.get("pretrain_ecg")
    assert "every weight of the network" in why_not(
        task(strength="network"), methods.get("random")()
    )
    assert why_not(task(), methods.get("random")()) is None


def test_the_real_data(monkeypatch):
    monkeypatch.setenv("METABENCH_DATA", REAL_DATA)
    problem = tasks.get("pretrain_ecg")().build(Seeds.of(0), torch.device("cpu"))
    images = tasks.get("pretrain_multitask")(source="metabench", n_test=20)
    many = images.build(Seeds.of(0), torch.device("cpu"))
    every, test = problem.roles["test"]
    assert torch.bincount(every["y"]).tolist() == [75] * 4
    for n, whole in zip(torch.bincount(test["y"]).tolist(), (44259, 1837, 3221, 388), strict=True):
        assert whole - 50 < n <= whole
    assert many.x.shape == (16, 600, 3, 32, 32)


REAL_DATA = os.environ.get("METABENCH_DATA", "")
