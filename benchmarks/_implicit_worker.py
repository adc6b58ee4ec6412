"""One implementation of an implicit hypergradient in a process of its own; see implicit.py.

Its gradient is that of the validation loss in lam at a given theta, by a Neumann series with a
given step and number of terms; a step computes it once.
"""

from __future__ import annotations

from _turn import answer_orders


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

    def inner(self, theta, lam):
        decay = sum((c.exp() * w.square()).sum() for c, w in zip(lam, theta, strict=True))
        return self.fit(theta, self.x, self.y) + 0.5 * decay

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
    """The code that a run uses: method ift on a problem."""

    def __init__(self, case, dtype):
        super().__init__(case, dtype)
        from metabench import method, registry
        from metabench.problem import GRADIENTS, Episode, Problem, Seeds
        from metabench.softmax import SoftmaxHessian

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
                if not case["closed"]:
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

        self.ift = registry.methods.get("ift")(
            inner_steps=0, terms=case["terms"], alpha=case["alpha"]
        )
        self.ctx = method.Context(
            problem=Given(),
            solver=registry.solvers.get("sgd")(),
            seeds=Seeds.of(0),
            offers=GRADIENTS | {"lam_in_inner_loss"},
        )

    def gradient(self):
        problem = self.ctx.problem
        found = self.ift.hypergradient(
            self.ctx, problem.init_outer(), None, problem.episode("train", 0)
        )
        return list(found.grad.values())


IMPLEMENTATIONS = {
    "metabench": Metabench,
    "hypergrad": Hypergrad,
    "torchopt": Torchopt,
    "reference": Reference,
}


def unpack(case, arrays):
    """All of them, as they are named."""
    case["arrays"] = arrays


if __name__ == "__main__":
    answer_orders(IMPLEMENTATIONS, unpack)
