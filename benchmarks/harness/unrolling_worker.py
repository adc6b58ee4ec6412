"""One implementation of a hypergradient through inner steps in a process of its own; see
unrolling.py.

Its gradient is that of the validation loss in lam, one log decay a tensor, after steps of
gradient descent from a given theta; a step computes it once.
"""

from __future__ import annotations

import implicit_worker
from implicit_worker import Case
from turn import answer_orders


class Reference(Case):
    """Torch alone, the whole graph kept."""

    def gradient(self):
        import torch

        theta = [w.requires_grad_() for w in self.theta]
        lam = [c.requires_grad_() for c in self.lam]
        for _ in range(self.case["steps"]):
            g = torch.autograd.grad(self.inner(theta, lam), theta, create_graph=True)
            theta = [w - self.case["lr"] * d for w, d in zip(theta, g, strict=True)]
        return torch.autograd.grad(self.outer(theta, lam), lam)


class Higher(Case):
    def __init__(self, case, dtype):
        super().__init__(case, dtype)
        import torch
        from torch import nn

        layers = []
        for w in self.theta[::2]:
            layers += [nn.Linear(w.shape[1], w.shape[0], dtype=dtype), nn.Tanh()]
        self.net = nn.Sequential(*layers[:-1])
        with torch.no_grad():
            for p, w in zip(self.net.parameters(), self.theta, strict=True):
                p.copy_(w)

    def gradient(self):
        import higher
        import torch
        from torch.nn import functional as F

        lam = [c.requires_grad_() for c in self.lam]
        descent = torch.optim.SGD(self.net.parameters(), lr=self.case["lr"])
        with higher.innerloop_ctx(self.net, descent) as (net, stepper):
            for _ in range(self.case["steps"]):
                fit = F.cross_entropy(net(self.x), self.y)
                stepper.step(fit + self.decay(list(net.parameters()), lam))
            return torch.autograd.grad(F.cross_entropy(net(self.xv), self.yv), lam)


class Metabench(implicit_worker.Metabench):
    """The code that a run uses: method bilevel, with the row's way of remembering."""

    def chosen(self, method):
        return method("bilevel")(
            inner_steps=self.case["steps"], inner_lr=self.case["lr"], memory=self.memory()
        )

    def memory(self):
        return self.case["mode"]


class KeepingGraph(Metabench):
    def memory(self):
        return "graph"


IMPLEMENTATIONS = {
    "metabench": Metabench,
    "metabench-graph": KeepingGraph,
    "higher": Higher,
    "reference": Reference,
}


def unpack(case, arrays):
    """All of them, as they are named; the gate's case has fewer steps."""
    case["arrays"] = arrays
    case["gate_case"] = {**case, "steps": case["gate_steps"]}


if __name__ == "__main__":
    answer_orders(IMPLEMENTATIONS, unpack)
