"""Kernel ridge regression against scikit-learn, dense algebra and differences."""

from __future__ import annotations

import pytest
import torch
from optional import needs
from oracles import F64, given

from metabench.conformance.kit import build
from metabench.contract.seeds import Seeds
from metabench.core.errors import SettingError
from metabench.hypergradients.inexact.inner_solve import to_accuracy
from metabench.methods.hoag import HOAG
from metabench.tasks.kernel_ridge import KernelRidge, KernelRidgeProblem

CPU = torch.device("cpu")
SMALL = {"n_train": 30, "n_valid": 20, "n_test": 20}


def few(**settings):
    """The problem on 70 invented rows of three inputs, and those rows."""
    gen = torch.Generator().manual_seed(3)
    x = torch.randn(70, 3, dtype=F64, generator=gen)
    y = (2 * x[:, 0]).sin() + x[:, 1] + 0.1 * torch.randn(70, dtype=F64, generator=gen)
    return KernelRidgeProblem(KernelRidge(**SMALL, **settings), Seeds.of(0), CPU, x, y)


def at(gamma, penalty):
    return {
        "log_gamma": torch.tensor(gamma, dtype=F64),
        "log_penalty": torch.tensor(penalty).to(F64),
    }


def solved(problem, lam):
    """w by dense algebra, differentiable in lam."""
    part = problem.parts["train"]
    eye = torch.eye(len(part["y"]), dtype=F64)
    return torch.linalg.solve(
        (-lam["log_gamma"].exp() * part["d2"]).exp() + lam["log_penalty"].exp() * eye, part["y"]
    )


@pytest.mark.parametrize(("gamma", "penalty"), [(0.0, 0.0), (-2.0, -3.0), (1.5, -1.0)])
def test_the_minimiser_is_scikit_learns_and_moduli_bound_the_hessian(gamma, penalty):
    needs("sklearn")
    from sklearn.kernel_ridge import KernelRidge as Theirs

    problem, lam = few(), at(gamma, penalty)
    ctx = given(problem, *KernelRidge(**SMALL).offers)
    episode = problem.episode("train", 0)
    found = to_accuracy(ctx, lam, problem.init_inner(lam, episode), episode, norm=1e-10)
    assert found.reached and found.certified
    part = problem.parts["train"]
    kernel = (-lam["log_gamma"].exp() * part["d2"]).exp().numpy()
    theirs = Theirs(alpha=lam["log_penalty"].exp().item(), kernel="precomputed")
    theirs.fit(kernel, part["y"].numpy())
    expected = torch.from_numpy(theirs.dual_coef_)
    torch.testing.assert_close(found.theta["w"], expected, rtol=1e-7, atol=1e-8)
    assert torch.linalg.vector_norm(found.theta["w"] - expected) <= found.distance + 1e-9
    bends = torch.linalg.eigvalsh(
        torch.func.hessian(lambda w: problem.inner_loss(lam, {"w": w}, episode.inner))(expected)
    )
    moduli = problem.moduli(lam)
    assert moduli.mu <= bends[0] + 1e-12 and bends[-1] <= moduli.smooth


def test_the_hypergradient_has_the_direct_part():
    problem, lam = few(), at(-1.0, -2.0)
    exact = {k: v.clone().requires_grad_() for k, v in lam.items()}
    value = problem.outer_loss(exact, {"w": solved(problem, exact)}, problem.parts["valid"])
    whole = torch.autograd.grad(value, list(exact.values()))
    held = problem.outer_loss(exact, {"w": solved(problem, lam)}, problem.parts["valid"])
    direct = torch.autograd.grad(held, exact["log_gamma"])[0]
    assert direct.abs() > 0.01 * whole[0].abs()

    method = HOAG(schedule="exact")
    ctx = given(problem, *KernelRidge(**SMALL).offers)
    problem.init_outer = lambda: lam  # where the run starts
    state = method.init(ctx)
    after, log = method.step(ctx, state)
    size = torch.stack(whole).norm()
    assert log["hypergradient_norm"] == pytest.approx(float(size), rel=1e-7)
    moved = torch.stack([after.lam[k] - lam[k] for k in lam])
    torch.testing.assert_close(moved / moved.norm(), -torch.stack(whole) / size)


def test_parts_are_apart_and_sizes_are_held_to_the_table():
    problem = few()
    assert [len(problem.parts[s]["y"]) for s in ("train", "valid", "test")] == [30, 20, 20]
    assert problem.parts["test"]["d2"].shape == (20, 30)
    with pytest.raises(SettingError, match=r"yacht has 308 rows; n_train .* is 700"):
        build("task", "kernel_ridge", dataset="yacht").build(Seeds.of(0), CPU)
