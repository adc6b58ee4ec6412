"""A user's module as a pure function of its parameters, and what is found out about it first."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.parameter import UninitializedParameter

from metabench.contract import autodiff
from metabench.contract.by_examples.per_example_weights import Gated
from metabench.contract.problem import Params
from metabench.core.errors import SettingError
from metabench.core.text import type_of
from metabench.problems.dropout import Dropout

SOME = 3
"""Examples that a module is tried on."""
Loss = Callable[[Tensor, Tensor], Tensor]
"""Predictions [n, ...] and targets [n, ...] to the loss of each example [n]."""


class Network:
    """f(theta, x) [n, ...] of a copy of a module; theta has the parameters that it trains.

    Frozen parameters and buffers stay what they are. Every thread has shells of its own around
    them: calling a module with other parameters changes it while it runs. ``drops``: it has
    dropout (:func:`check_pure`), and is in ``eval`` mode wherever nothing is dropped.
    """

    def __init__(self, module: nn.Module, device: torch.device, drops: bool = False) -> None:
        self.module, self.drops = copied(module).to(device), drops
        moving = self.module.named_parameters()
        self.start = {k: v.detach().clone() for k, v in moving if v.requires_grad}
        self._still = copied(self.module).requires_grad_(False)
        self._shells = threading.local()

    def __call__(self, theta: Params, x: Tensor, dropout: Dropout | None = None) -> Tensor:
        """Predictions of inputs ``x`` [n, ...]; theta may have more names. ``dropout`` drops, in
        training; None: nothing does."""
        judging = self.drops and dropout is None
        name = "judging" if judging else "training"
        mine: nn.Module | None = getattr(self._shells, name, None)
        if mine is None:
            mine = _shell(self._still)
            setattr(self._shells, name, mine.eval() if judging else mine)
        used = {k: theta[k] for k in self.start}
        with dropout or nullcontext():
            out: Tensor = functional_call(mine, used, (x,))
        return out

    def trial(self, few: Tensor, at: slice = slice(None)) -> Dropout | None:
        """What drops half in a trial on some of a few inputs; None where there is no dropout."""
        number = torch.arange(len(few), device=few.device)
        return Dropout(number[at], rate=0.5) if self.drops else None


def copied(module: nn.Module) -> nn.Module:
    """A copy to keep. Raises SettingError where there can be none."""
    try:
        return copy.deepcopy(module)
    except Exception as error:
        raise SettingError(
            f"model: {type_of(module)} cannot be copied ({error}); give a function that makes it"
        ) from None


def _shell(module: nn.Module) -> nn.Module:
    """A copy that shares every tensor: no operation on tensors, which vmap would see."""
    inside = [v for part in module.modules() for v in vars(part).values()]
    held = [*module.parameters(), *module.buffers(), *(v for v in inside if isinstance(v, Tensor))]
    return copy.deepcopy(module, {id(v): v for v in held})


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, torch's global generator starts from a seed; what it was comes back."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def made(model: nn.Module | Callable[[], nn.Module], seed: int) -> nn.Module:
    """The module: as it is, or from a function that makes it under a seed. Raises SettingError for
    anything else."""
    if isinstance(model, nn.Module):
        return model
    if not callable(model):
        raise SettingError(
            f"model cannot be {type_of(model)}: give a torch.nn.Module, or a function that "
            "makes one"
        )
    with seeded(seed):
        try:
            found = model()
        except Exception as error:
            raise SettingError(
                f"model: the function that makes it raises {type(error).__name__}: {error} (it is "
                "called without arguments, after torch.manual_seed of the run)"
            ) from error
    if not isinstance(found, nn.Module):
        raise SettingError(f"model: the function makes {type_of(found)}, no nn.Module")
    return found


def check_module(module: nn.Module) -> torch.dtype:
    """The type of a module's numbers. Raises SettingError, with the module's name and the nearest
    one that will do, where it is no function of its parameters and inputs alone."""
    params = dict(module.named_parameters())
    lazy = [k for k, v in params.items() if isinstance(v, UninitializedParameter)]
    if lazy:
        raise SettingError(f"model: {lazy[0]!r} has no shape yet; call the model on a batch first")
    if not any(v.requires_grad for v in params.values()):
        raise SettingError(
            "model: it has no parameter to train; give one with requires_grad = True"
            if params
            else "model: it has no parameter"
        )
    kinds = {v.dtype: k for k, v in params.items()}
    if len(kinds) > 1 or not next(iter(kinds)).is_floating_point:
        told = ", ".join(f"{k!r} {dtype}" for dtype, k in kinds.items())
        raise SettingError(f"model: its parameters are of one floating type, not {told}: .float()")
    for name, part in module.named_modules():
        if part.training and (why := _impure(part)):
            raise SettingError(f"model: module {name!r} ({type(part).__name__}) {why}")
    return next(iter(kinds))


def _impure(part: nn.Module) -> str:
    """Why a module in training mode is no function of parameters and inputs; "" where it is."""
    if isinstance(part, _NormBase) and part.track_running_stats:
        return (
            "writes running statistics, which are neither lam nor theta: build it with "
            "track_running_stats=False (the statistics of each batch), take nn.GroupNorm, or call "
            ".eval() on it (statistics as they are)"
        )
    if isinstance(part, nn.RNNBase) and part.dropout > 0:
        return (
            f"draws what it drops (p = {part.dropout:g}) inside of one operation of torch, from "
            "its global generator, which no seed of a run decides: set it to 0, with nn.Dropout "
            f"between several {type(part).__name__} of one layer, or call .eval() on it"
        )
    return ""


def check_pure(network: Network, x: Tensor) -> Tensor:
    """Predictions of a few inputs without dropout; whether there is some becomes ``network.drops``.
    Raises SettingError where the module gives others for other states of torch's generator, or
    changes a buffer."""
    few = x[:SOME]
    held = {k: v.clone() for k, v in network.module.named_buffers()}
    number = torch.arange(len(few), device=few.device)
    first = Dropout(number)
    out = _predicted_twice(network, few, (first, Dropout(number)), (
        "with the same dropout: leave out what else is random (.eval() where it looks at "
        "self.training)"
    ))  # fmt: skip
    network.drops = first.calls > 0
    if network.drops:
        out = _predicted_twice(network, few, (None, None), (
            "in .eval() mode: write F.dropout(x, p, self.training), which drops in training alone"
        ))  # fmt: skip
    after = dict(network._still.named_buffers())
    moved = [k for k, v in held.items() if not torch.equal(v, after[k])]
    if moved:
        raise SettingError(
            f"model: calling it changes its buffer {moved[0]!r}, which is neither lam nor theta: "
            "make it a function of parameters and inputs (.eval() where it looks at self.training)"
        )
    return out


def _predicted_twice(
    network: Network, few: Tensor, dropouts: tuple[Dropout | None, ...], when: str
) -> Tensor:
    """Predictions, compared under two states of torch's generator."""
    found = []
    for seed, dropout in enumerate(dropouts):
        with seeded(seed), torch.no_grad():
            try:
                found.append(network(network.start, few, dropout))
            except Exception as error:
                raise SettingError(
                    f"model: it cannot take x {list(few.shape)} {few.dtype}: "
                    f"{type(error).__name__}: {error}"
                ) from error
    out, again = found
    if not isinstance(out, Tensor) or not out.dim() or len(out) != len(few):
        shown = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise SettingError(
            f"model: of {len(few)} examples it makes {shown}; give one that makes a tensor with "
            f"the examples first, [{len(few)}, ...]"
        )
    if not bool(out.isfinite().all()):
        raise SettingError("model: at its first parameters it predicts what is not finite")
    if not torch.equal(out, again):
        raise SettingError(f"model: it predicts something else when it is called again, {when}")
    return out


def by_itself(network: Network, x: Tensor) -> bool:
    """Whether the prediction of an example does not depend on the others of its batch."""
    few = x[:SOME]
    with torch.no_grad():
        whole = network(network.start, few, network.trial(few))
        try:
            alone = [network(network.start, few[at], network.trial(few, at)) for at in each(few)]
        except Exception:  # batch norm refuses a single example
            return False
    return near(torch.cat(alone), whole)


def row_by_row(network: Network, x: Tensor) -> bool:
    """Whether torch.func takes the derivatives of each example's prediction, all at once: recurrent
    modules have no rule for that."""
    few = x[:SOME]

    def one(example: Tensor) -> Params:
        def predicted(theta: Params) -> Tensor:
            out: Tensor = network(theta, example[None])
            return out.sum()

        return torch.func.grad(predicted)(network.start)  # type: ignore[no-any-return]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is slow so: nobody has asked for it yet
        try:
            torch.func.vmap(one)(few)
        except Exception:
            return False
    return True


def each(few: Tensor) -> list[slice]:
    """Where every one of a few inputs stands."""
    return [slice(i, i + 1) for i in range(len(few))]


def takes_gated(network: Network, x: Tensor) -> bool:
    """Whether the module can be called with weights that differ from example to example."""
    few = x[:SOME]
    theta = {}
    for i, (k, v) in enumerate(network.start.items()):
        if not v.dim():
            return False
        gate = torch.linspace(-0.1, 0.1, len(few) * len(v), dtype=torch.float64).to(v)
        theta[k] = Gated(v, torch.full_like(v, 0.1 * (i + 1)), gate.view(len(few), len(v)))
    with torch.no_grad():
        try:
            found = network(dict(theta), few, network.trial(few))
        except Exception:  # an operation that has no rule for them
            return False
        expected = [
            network({k: v.of(i) for k, v in theta.items()}, few[at], network.trial(few, at))
            for i, at in enumerate(each(few))
        ]
    return near(found, torch.cat(expected))


def why_not_twice(loss: Callable[[Params], Tensor], theta: Params) -> str:
    """Why a loss cannot be differentiated twice, in torch's words; "" where it can."""

    leaves = autodiff.leaf(theta)
    try:
        first = torch.autograd.grad(
            loss(leaves), list(leaves.values()), create_graph=True, allow_unused=True
        )
        parts = [g.sum() for g in first if g is not None and g.requires_grad]
        if parts:
            # Not by autograd.grad: it goes round nodes that only say that they cannot.
            torch.stack(parts).sum().backward()
    except (RuntimeError, NotImplementedError) as error:
        return str(error).partition("\n")[0]
    return ""


def near(a: Tensor, b: Tensor) -> bool:
    """Whether two ways to compute the same have come to the same."""
    allowed = 1e-9 if a.dtype == torch.float64 else 1e-4
    return a.shape == b.shape and bool(((a - b).abs() <= allowed * (1 + b.abs())).all())


def is_affine(module: nn.Module) -> bool:
    """Whether predictions are affine in the parameters: one linear layer, whatever reshapes its
    input."""
    if isinstance(module, nn.Sequential):
        *before, last = [*module.children()] or [nn.Identity()]
        plain = all(type(part) in (nn.Flatten, nn.Identity, nn.Unflatten) for part in before)
        return plain and type(last) is nn.Linear
    return type(module) is nn.Linear


def norms_of(module: nn.Module) -> tuple[str, ...]:
    """Names of the scales and shifts of its batch norms that are trained."""
    parts = [(k, part) for k, part in module.named_modules() if isinstance(part, _BatchNorm)]
    each = [part.named_parameters(prefix) for prefix, part in parts]
    return tuple(k for some in each for k, v in some if v.requires_grad)


def head_of(module: nn.Module, named: str | None) -> tuple[str, ...]:
    """Names of the parameters of the last layer: of the submodule ``named``, else of the last one
    of a Sequential that has some; () where nobody says. Raises SettingError."""
    if named is None:
        children = list(module.named_children()) if isinstance(module, nn.Sequential) else []
        with_some = [name for name, part in children if any(True for _ in part.parameters())]
        if len(with_some) < 2:
            return ()
        named = with_some[-1]
    parts = dict(module.named_modules())
    if not named or named not in parts:
        raise SettingError(
            f"head cannot be {named!r}: name a submodule ({', '.join(n for n in parts if n)})"
        )
    own = [f"{named}.{k}" for k, v in parts[named].named_parameters() if v.requires_grad]
    if not own:
        raise SettingError(f"head: module {named!r} has no parameter to train")
    return tuple(own)
