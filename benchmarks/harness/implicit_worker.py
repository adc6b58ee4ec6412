"""One implementation of an implicit hypergradient in a process of its own; see implicit.py.

Its gradient is that of the validation loss in lam at a given theta, by a Neumann series with a
given step and number of terms; a step computes it once.
"""

from __future__ import annotations

from floors import Products
from turn import answer_orders


class Case:
    """The losses, on plain lists of tensors in the order w0, b0, w1, ..."""

    def __init__(self, case, dtype):
        import torch

        self.case = case
        arrays = case["arrays"]

        def tensors(prefix):
            return [
                torch.from_numpy(v).to(dtype) for k, v in arrays.items() if k.startswith(prefix)
            ]

        self.theta, self.lam = tensors("theta."), tensors("lam.")
        self.x, self.xv = (torch.from_numpy(arrays[k]).to(dtype) for k in ("x", "xv"))
        self.y, self.yv = (torch.from_numpy(arrays[k]) for k in ("y", "yv"))

    def fit(self, theta, x, y):
        from torch.nn import functional as F

        if len(theta) == 4:
            x = F.linear(x, theta[0], theta[1]).tanh()
        return F.cross_entropy(F.linear(x, theta[-2], theta[-1]), y)

    def decay(self, theta, lam):
        return 0.5 * sum((c.exp() * w.square()).sum() for c, w in zip(lam, theta, strict=True))

    def inner(self, theta, lam):
        return self.fit(theta, self.x, self.y) + self.decay(theta, lam)

    def outer(self, theta, lam):
        return self.fit(theta, self.xv, self.yv)

    def step(self):
        self.gradient()


class Reference(Case):
    """Torch alone: the series written out on a double backward."""

    def gradient(self):
        import torch

        theta = [w.requires_grad_() for w in self.theta]
        lam = [c.requires_grad_() for c in self.lam]
        v = total = torch.autograd.grad(self.outer(theta, lam), theta)
        for _ in range(self.case["terms"]):
            g = torch.autograd.grad(self.inner(theta, lam), theta, create_graph=True)
            hv = torch.autograd.grad(g, theta, v)
            v = [a - self.case["alpha"] * b for a, b in zip(v, hv, strict=True)]
            total = [a + b for a, b in zip(total, v, strict=True)]
        g = torch.autograd.grad(self.inner(theta, lam), theta, create_graph=True)
        mixed = torch.autograd.grad(g, lam, total)
        return [-self.case["alpha"] * m for m in mixed]


class Hypergrad(Case):
    def gradient(self):
        from hypergrad.approx_hypergrad import neumann

        return neumann(
            self.inner, self.outer, tuple(self.theta), tuple(self.lam),
            self.case["terms"], self.case["alpha"],
        )  # fmt: skip


class Hypertorch(Case):
    def gradient(self):
        import torch
        from hypergrad.hypergradients import neumann

        def step(theta, lam):
            g = torch.autograd.grad(self.inner(theta, lam), theta, create_graph=True)
            return [w - self.case["alpha"] * d for w, d in zip(theta, g, strict=True)]

        lam = [c.requires_grad_() for c in self.lam]
        return neumann(self.theta, lam, self.case["terms"], step, self.outer, set_grad=False)


class Betty(Case):
    """Its function alone, on as much of a problem as it asks for."""

    def gradient(self):
        from types import SimpleNamespace

        import torch
        from betty.hypergradient.neumann import neumann

        theta = [w.requires_grad_() for w in self.theta]
        lam = [c.requires_grad_() for c in self.lam]
        config = SimpleNamespace(
            neumann_iterations=self.case["terms"], neumann_alpha=self.case["alpha"]
        )
        inner = SimpleNamespace(
            paths=[], config=config, cur_batch=None, trainable_parameters=lambda: theta,
            training_step_exec=lambda batch: self.inner(theta, lam),
        )  # fmt: skip
        outer = SimpleNamespace(trainable_parameters=lambda: lam)
        v = torch.autograd.grad(self.outer(theta, lam), theta)
        return neumann(v, inner, outer, sync=False)


class Torchopt(Case):
    def gradient(self):
        import torch
        import torchopt

        series = torchopt.linear_solve.solve_inv(
            ns=True, maxiter=self.case["terms"], alpha=self.case["alpha"]
        )
        slope = torch.func.grad(self.inner)

        @torchopt.diff.implicit.custom_root(slope, argnums=1, solve=series)
        def solve(start, lam):
            return tuple(self.theta)

        lam = tuple(c.requires_grad_() for c in self.lam)
        found = solve(tuple(self.theta), lam)
        return torch.autograd.grad(self.outer(found, lam), lam)


class Metabench(Case):
    """The code that a run uses: a method, ift, on a problem."""

    def __init__(self, case, dtype):
        super().__init__(case, dtype)
        from metabench.contract import method
        from metabench.contract.problem import GRADIENTS, Episode, Problem
        from metabench.contract.seeds import Seeds
        from metabench.core import registry
        from metabench.tasks.models.softmax import SoftmaxHessian

        names = [f"w{i}" for i in range(len(self.theta))]
        whole = self

        class Given(Problem):
            def init_outer(self):
                return dict(zip(names, whole.lam, strict=True))

            def init_inner(self, lam, episode):
                return dict(zip(names, whole.theta, strict=True))

            def diagonal_penalty(self, lam):
                return {k: v.exp() for k, v in lam.items()}

            def unpenalised_loss(self, lam, theta, batch):
                return whole.fit(list(theta.values()), batch["x"], batch["y"])

            def inner_hessian(self, lam, theta, batch):
                if not case.get("closed"):
                    return None
                from torch.nn import functional as F

                p = F.linear(batch["x"], *theta.values()).softmax(1)
                return SoftmaxHessian(batch["x"], p, *names)

            def inner_loss(self, lam, theta, batch):
                return whole.inner(list(theta.values()), list(lam.values()))

            def outer_loss(self, lam, theta, batch):
                return whole.fit(list(theta.values()), batch["x"], batch["y"])

            def episode(self, split, index):
                inner = {"x": whole.x, "y": whole.y}
                return Episode(inner, {"x": whole.xv, "y": whole.yv}, index)

        self.method = self.chosen(registry.methods.get)
        self.ctx = method.Context(
            problem=Given(),
            solver=registry.solvers.get("sgd")(),
            seeds=Seeds.of(0),
            offers=GRADIENTS | {"lam_in_inner_loss"},
        )

    def chosen(self, method):
        return method("ift")(inner_steps=0, terms=self.case["terms"], alpha=self.case["alpha"])

    def gradient(self):
        problem = self.ctx.problem
        found = self.method.hypergradient(
            self.ctx, problem.init_outer(), None, problem.episode("train", 0)
        )
        return list(found.grad.values())


IMPLEMENTATIONS = {
    "metabench": Metabench,
    "products": Products,
    "hypergrad": Hypergrad,
    "hypertorch": Hypertorch,
    "betty": Betty,
    "torchopt": Torchopt,
    "reference": Reference,
}


def unpack(case, arrays):
    """All of them, as they are named."""
    case["arrays"] = arrays


if __name__ == "__main__":
    answer_orders(IMPLEMENTATIONS, unpack)
