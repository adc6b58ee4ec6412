"""One implementation of MAML's outer step in a process of its own; see few_shot.py and turn.py.

Its gradients are the mean meta-gradients at the first weights; a step is an outer step.
"""

from __future__ import annotations

from collections import OrderedDict

from floors import Convolutions
from turn import answer_orders

OUTER_LR = 1e-3


def network(case, dtype):
    """The common network out of torch.nn; parameters are named as in metabench's."""
    import torch
    from torch import nn

    layers = []
    size, filters, pool = case["size"], case["filters"], case["net"] == "pool"
    for i in range(4):
        inputs = case["channels"] if i == 0 else filters
        conv = nn.Conv2d(inputs, filters, 3, 1 if pool else 2, 1, bias=False)
        layers.append((f"conv{i + 1}", conv))
        layers.append((f"norm{i + 1}", nn.BatchNorm2d(filters, track_running_stats=False)))
        layers.append((f"relu{i + 1}", nn.ReLU()))
        if pool:
            layers.append((f"pool{i + 1}", nn.MaxPool2d(2)))
        size = size // 2 if pool else -(-size // 2)
    if not pool:
        layers += [("mean", nn.AdaptiveAvgPool2d(1))]
    features = filters * size * size if pool else filters
    layers += [("flat", nn.Flatten()), ("head", nn.Linear(features, case["ways"]))]
    net = nn.Sequential(OrderedDict(layers)).to(dtype)
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.copy_(torch.from_numpy(case["first"][name]).to(dtype))
    return net


class Peer:
    """Shared by the peers: a module whose ``.grad`` the outer step fills, and Adam."""

    def __init__(self, case, dtype):
        import torch

        self.case = case
        self.net = self.wrap(network(case, dtype))
        self.params = list(self.net.parameters())
        self.optimiser = torch.optim.Adam(self.params, OUTER_LR)
        self.loss = torch.nn.CrossEntropyLoss()
        self.tasks = [
            tuple(
                torch.from_numpy(x).to(dtype) if x.dtype.kind == "f" else torch.from_numpy(x)
                for x in task
            )
            for task in case["tasks"]
        ]

    def wrap(self, net):
        return net

    def step(self):
        self.gradient()
        self.optimiser.step()

    def gradient(self):
        self.optimiser.zero_grad()
        for task in self.tasks:
            self.task(*task)
        return [p.grad / len(self.tasks) for p in self.params]


class Learn2learn(Peer):
    def wrap(self, net):
        import learn2learn

        first = self.case["first_order"]
        return learn2learn.algorithms.MAML(net, lr=self.case["inner_lr"], first_order=first)

    def task(self, xs, ys, xq, yq):
        learner = self.net.clone()
        for _ in range(self.case["steps"]):
            learner.adapt(self.loss(learner(xs), ys))
        self.loss(learner(xq), yq).backward()


class Higher(Peer):
    def task(self, xs, ys, xq, yq):
        import higher
        import torch

        first = self.case["first_order"]
        inner = torch.optim.SGD(self.net.parameters(), self.case["inner_lr"])
        with higher.innerloop_ctx(
            self.net, inner, copy_initial_weights=False, track_higher_grads=not first
        ) as (learner, optimiser):
            for _ in range(self.case["steps"]):
                optimiser.step(self.loss(learner(xs), ys))
            value = self.loss(learner(xq), yq)
            if not first:
                value.backward()
                return
            grads = torch.autograd.grad(value, list(learner.parameters()))
            for p, g in zip(self.params, grads, strict=True):
                p.grad = g.clone() if p.grad is None else p.grad.add_(g)


class Torchopt(Peer):
    def task(self, xs, ys, xq, yq):
        import torchopt

        inner = torchopt.MetaSGD(self.net, lr=self.case["inner_lr"])
        before = torchopt.extract_state_dict(self.net, by="reference", detach_buffers=True)
        optimiser_before = torchopt.extract_state_dict(inner, by="reference")
        for _ in range(self.case["steps"]):
            inner.step(self.loss(self.net(xs), ys))
        self.loss(self.net(xq), yq).backward()
        torchopt.recover_state_dict(self.net, before)
        torchopt.recover_state_dict(inner, optimiser_before)


class Reference(Peer):
    """Torch alone: what the others are checked against, in float64."""

    def task(self, xs, ys, xq, yq):
        import torch
        from torch.func import functional_call

        names = [k for k, _ in self.net.named_parameters()]
        theta = dict(zip(names, self.params, strict=True))
        for _ in range(self.case["steps"]):
            value = self.loss(functional_call(self.net, theta, (xs,)), ys)
            grads = torch.autograd.grad(
                value, list(theta.values()), create_graph=not self.case["first_order"]
            )
            theta = {
                k: v - self.case["inner_lr"] * g
                for (k, v), g in zip(theta.items(), grads, strict=True)
            }
        self.loss(functional_call(self.net, theta, (xq,)), yq).backward()


class Metabench:
    """The code that a run uses: the context, method maml's own outer step, and the engine that
    "auto" takes for such episodes in float32 (the gate in float64 goes the same way)."""

    by_hand = True

    def __init__(self, case, dtype):
        import torch

        from metabench.contract import method
        from metabench.contract.problem import GRADIENTS, Episode, Problem
        from metabench.contract.seeds import Seeds
        from metabench.core import registry
        from metabench.tasks.models.networks import ConvNet

        def convnet(dtype):
            return ConvNet(
                case["channels"],
                case["size"],
                case["ways"],
                filters=case["filters"],
                downsample=case["net"],
                dtype=dtype,
            )

        net = convnet(dtype)
        images = case["ways"] * (case["shots"] + case["queries"])
        at_once = len(case["tasks"]) > 1 and convnet(torch.float32).stacks_well(images)
        first = net.init_params(torch.Generator())
        for name, value in first.items():
            value.copy_(torch.from_numpy(case["first"][name]))
        episodes = []
        for i, task in enumerate(case["tasks"]):
            xs, ys, xq, yq = (torch.from_numpy(x) for x in task)
            episodes.append(Episode({"x": xs.to(dtype), "y": ys}, {"x": xq.to(dtype), "y": yq}, i))

        class Given(Problem):
            episodes_per_step = len(episodes)

            def init_outer(self):
                return first

            def init_inner(self, lam, episode):
                return dict(lam)

            def inner_loss(self, lam, theta, batch):
                return net.loss(theta, batch["x"], batch["y"])

            outer_loss = inner_loss
            descends_at_once = net.descends_at_once(images) if self.by_hand else 0

            def descended(self, lam, inner, outer, rate, second_order):
                steps = [(b["x"], b["y"]) for b in inner]
                return net.descended(lam, steps, (outer["x"], outer["y"]), rate, second_order)

            def episode(self, split, index):
                return episodes[index % len(episodes)]

        self.maml = registry.methods.get("maml")(
            inner_steps=case["steps"],
            inner_lr=case["inner_lr"],
            outer_lr=OUTER_LR,
            order="first" if case["first_order"] else "second",
        )
        self.ctx = method.Context(
            problem=Given(),
            solver=registry.solvers.get("sgd")(),
            seeds=Seeds.of(0),
            offers=GRADIENTS | {"lam_is_initialisation", "episodes"},
            engine="vmap" if at_once else "loop",
            workers=case["threads"],
        )
        self.episodes, self.state = episodes, self.maml.init(self.ctx)
        self.names = [name for name, _ in net.named_parameters()]

    def step(self):
        self.state, _ = self.maml.step(self.ctx, self.state)

    def gradient(self):
        from metabench.contract import autodiff

        found = self.maml.hypergradients(self.ctx, self.state, self.episodes)
        g = autodiff.mean([h.grad for h in found], [h.episodes for h in found])
        return [g[name] for name in self.names]


class Autograd(Metabench):
    """The same without the problem's own derivation of a step (:meth:`Problem.descended`): what
    other methods than plain MAML have."""

    by_hand = False


IMPLEMENTATIONS = {
    "metabench": Metabench,
    "autograd": Autograd,
    "learn2learn": Learn2learn,
    "higher": Higher,
    "torchopt": Torchopt,
    "reference": Reference,
    "convolutions": Convolutions,
}


def unpack(case, arrays):
    """First weights and episodes; the gate has a few of the episodes."""
    case["first"] = {
        k.removeprefix("first."): v for k, v in arrays.items() if k.startswith("first.")
    }
    case["tasks"] = [
        [arrays[f"{part}.{i}"] for part in ("xs", "ys", "xq", "yq")]
        for i in range(case["meta_batch"])
    ]
    case["gate_case"] = {**case, "tasks": case["tasks"][: case["gate_tasks"]]}


if __name__ == "__main__":
    answer_orders(IMPLEMENTATIONS, unpack)
