"""Muon and Newton-Schulz: known numbers in float64, torch's Muon, and derivatives."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import F64, differences

from metabench.core.errors import SettingError
from metabench.core.registry import solvers
from metabench.solvers.muon import EPS, polar, triples

Muon, Adam, AdamW = (solvers.get(name) for name in ("muon", "adam", "adamw"))


def mapped(form, s, iterations=None):
    """A singular value after each step."""
    out = []
    for a, b, c in triples(form, iterations or 5):
        s = a * s + b * s**3 + c * s**5
        out.append(s)
    return out


@pytest.mark.parametrize(
    ("s", "expected"),
    [
        (1.0, [0.701, 1.11362, 0.720706, 1.089974, 0.696436]),
        (0.1, [0.339695, 0.992097, 0.70708, 1.106565, 0.71212]),
    ],
)
def test_muons_map_of_a_singular_value(s, expected):
    assert mapped("muon", s) == pytest.approx(expected, abs=5e-6)


@pytest.mark.parametrize(
    ("s", "five", "four"),
    [(1.0, 0.978346, 0.994146), (0.5, 0.985869, 0.984557), (0.1, 1.01905, 1.007872),
     (0.01, 1.018025, 0.97267)],
)  # fmt: skip
def test_muon_pluss_map_of_a_singular_value(s, five, four):
    assert mapped("plus", s)[-1] == pytest.approx(five, abs=5e-6)
    assert mapped("plus", s, 4)[-1] == pytest.approx(four, abs=5e-6)
    assert mapped("turbo", s, 4) == mapped("plus", s, 4)


def test_row_scaling_of_a_diagonal_matrix_is_its_polar_factor():
    x = torch.tensor([[3.0, 0.0], [0.0, 0.2]], dtype=F64)
    expected = mapped("turbo", 1.0, 4)[-1] * torch.eye(2, dtype=F64)
    torch.testing.assert_close(polar(x, "turbo"), expected, rtol=1e-12, atol=1e-12)
    assert (polar(x, "plus", 4) - expected).abs().max() > 1e-3


def test_singular_values_after_the_two_scalings():
    x = torch.tensor([[2.0, 1.0], [0.0, 1.0]], dtype=F64)
    gram = x @ x.T
    s = gram.abs().sum(1).rsqrt()
    torch.testing.assert_close(s, torch.tensor([0.4082482905, 0.7071067812], dtype=F64))
    scaled = torch.linalg.svdvals(s[:, None] * x)
    torch.testing.assert_close(scaled, torch.tensor([1.0, 0.5773502692], dtype=F64))
    start = torch.linalg.svdvals(x / x.norm())
    torch.testing.assert_close(start, torch.tensor([0.9341723590, 0.3568220898], dtype=F64))
    u, _, v = torch.linalg.svd(s[:, None] * x)
    found = polar(x, "turbo", 1)
    singular = torch.tensor([mapped("turbo", float(t), 1)[0] for t in scaled], dtype=F64)
    torch.testing.assert_close(found, u @ singular.diag() @ v, rtol=1e-12, atol=1e-12)


@given(st.integers(1, 6), st.integers(1, 6), st.sampled_from(["muon", "plus", "turbo"]),
       st.integers(0, 10**6))  # fmt: skip
def test_orthonormal_rows_transposes_and_zero(rows, columns, form, seed):
    gen = torch.Generator().manual_seed(seed)
    m = torch.randn(rows, columns, generator=gen, dtype=F64)
    if form != "turbo" or rows != columns:  # of a square matrix turbo scales the rows it is given
        torch.testing.assert_close(polar(m.T, form), polar(m, form).T, rtol=1e-12, atol=1e-12)
    assert not polar(torch.zeros_like(m), form).any()
    q = torch.linalg.qr(torch.randn(6, rows, generator=gen, dtype=F64))[0].T
    start = 1.0 if form == "turbo" else 1 / (rows**0.5 + EPS)
    expected = mapped(form, start, 4 if form == "turbo" else 5)[-1] * q
    torch.testing.assert_close(polar(q, form), expected, rtol=1e-9, atol=1e-9)
    # The scaled rows never pass a spectral norm of 1.
    gram = m @ m.T
    s = gram.abs().sum(1).clamp(min=EPS).rsqrt()
    assert torch.linalg.matrix_norm(s[:, None] * m, 2) <= 1 + 1e-12


def theta():
    gen = torch.Generator().manual_seed(0)
    shapes = {"a.weight": (3, 5), "b.weight": (4, 2), "a.bias": (3,), "head.weight": (2, 3)}
    return {k: torch.randn(s, generator=gen, dtype=F64) for k, s in shapes.items()}


def gradient(at):
    return {k: v**3 - 1.0 + v.sum() for k, v in at.items()}


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon is newer")
@pytest.mark.parametrize("nesterov", [True, False])
def test_same_numbers_as_torchs_muon(nesterov, monkeypatch):
    # It knows no other type, and asks for it in one of two ways (from torch 2.15 on, the second).
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    monkeypatch.setattr(torch, "bfloat16", F64)
    ours = Muon(weight_decay=0.1, nesterov=nesterov)
    here = {k: v for k, v in theta().items() if k in ("a.weight", "b.weight")}
    memory, params = ours.init(here), {k: v.clone().requires_grad_() for k, v in here.items()}
    theirs = torch.optim.Muon([*params.values()], lr=0.02, weight_decay=0.1, nesterov=nesterov)
    for _ in range(5):
        for k, g in gradient(here).items():
            params[k].grad = g
        here, memory = ours.update(here, gradient(here), memory, 0.02)
        theirs.step()
        for k in here:  # theirs divides by |D|, ours by |D| + 1e-7
            torch.testing.assert_close(here[k], params[k].detach(), rtol=0, atol=1e-7)


def test_bfloat16_moves_nearly_as_far():
    here = {k: v.float() for k, v in theta().items()}
    moved = [
        made.update(here, gradient(here), made.init(here), 1.0)[0]["a.weight"] - here["a.weight"]
        for made in (Muon(), Muon(bfloat16=True))
    ]
    torch.testing.assert_close(moved[1], moved[0], rtol=0, atol=0.05)
    assert not torch.equal(*moved)


def test_adamw_is_torchs():
    ours, here = AdamW(beta1=0.7, weight_decay=0.3), theta()
    memory, params = ours.init(here), [v.clone().requires_grad_() for v in here.values()]
    theirs = torch.optim.AdamW(params, lr=0.07, betas=(0.7, 0.999), weight_decay=0.3)
    for _ in range(6):
        for p, g in zip(params, gradient(here).values(), strict=True):
            p.grad = g
        here, memory = ours.update(here, gradient(here), memory, 0.07)
        theirs.step()
        for one, other in zip(here.values(), params, strict=True):
            torch.testing.assert_close(one, other.detach(), rtol=1e-12, atol=1e-12)


def test_what_is_no_matrix_goes_to_the_other_solver():
    ours, here = Muon(apart=("head",), others="adam", others_rate=0.5), theta()
    found, memory = ours.update(here, gradient(here), ours.init(here), 0.1)
    rest = {k: v for k, v in here.items() if k in ("a.bias", "head.weight")}
    expected, held = Adam().update(rest, gradient(here), Adam().init(rest), 0.05)
    for k in rest:
        assert torch.equal(found[k], expected[k])
    assert memory["others/mean"].keys() == held["mean"].keys() and list(found) == list(here)
    assert ours.products(here) == 2 * 15 and Muon(form="turbo").products(here) == 3 * 12


def test_a_name_apart_that_nothing_has_is_told_with_the_nearest():
    with pytest.raises(
        SettingError, match=r"apart cannot be 'haed'.*; near: head.*known: a\."
    ) as e:
        Muon(apart=("a", "haed")).init(theta())
    assert "head.weight" in str(e.value)
    with pytest.raises(SettingError, match=r"begins so; known"):
        Muon(apart=("zzz",)).init(theta())
    assert Muon(apart=("a.bias", "head")).init(theta())


def test_kernels_are_matrices_of_first_and_rest():
    gen = torch.Generator().manual_seed(1)
    kernel, g = torch.randn(2, 8, 3, 2, 2, generator=gen, dtype=F64)
    flat, _ = Muon().update({"k": kernel.flatten(1)}, {"k": g.flatten(1)},
                            Muon().init({"k": kernel.flatten(1)}), 0.1)  # fmt: skip
    found, _ = Muon().update({"k": kernel}, {"k": g}, Muon().init({"k": kernel}), 0.1)
    assert torch.equal(found["k"].flatten(1), flat["k"])


@pytest.mark.parametrize("form", ["muon", "plus", "turbo"])
def test_differentiable_in_all_that_comes_in(form):
    ours = Muon(form=form, weight_decay=0.1, apart=("head",))
    at, memory = ours.update(theta(), gradient(theta()), ours.init(theta()), 0.1)
    flat = {"lr/lr": torch.tensor(0.1, dtype=F64)}
    for part, params in (("theta", at), ("grad", gradient(at)), *memory.items()):
        flat |= {f"{part}|{k}": v for k, v in params.items()}

    def f(flat):
        parts = {}
        for name, v in flat.items():
            part, _, k = name.partition("|")
            parts.setdefault(part, {})[k] = v
        held = {k: parts[k] for k in memory}
        new, after = ours.update(parts["theta"], parts["grad"], held, flat["lr/lr"])
        return sum((v * v).sum() for x in (new, *after.values()) for v in x.values())

    leaves = {k: v.clone().requires_grad_() for k, v in flat.items()}
    found = torch.autograd.grad(f(leaves), [*leaves.values()], materialize_grads=True,
                                allow_unused=True)  # fmt: skip
    for (k, expected), g in zip(differences(f, flat, h=1e-5).items(), found, strict=True):
        torch.testing.assert_close(
            g, expected, rtol=1e-6, atol=1e-7, msg=lambda m, k=k: f"{k}: {m}"
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"form": "turbo", "iterations": 5}, "turbo has triples for 4 iterations at most: 5"),
        ({"others": "muon"}, "others is 'muon'"),
        ({"others": "langevin"}, "others is 'langevin'"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        Muon(**settings)
