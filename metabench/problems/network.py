"""A user's module as a pure function of its parameters, and what is found out about it first."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import UninitializedParameter

from metabench.contract import autodiff
from metabench.contract.per_example_weights import Gated
from metabench.contract.problem import Params
from metabench.core.errors import SettingError
from metabench.core.text import type_of

SOME = 3
"""Examples that a module is tried on."""
Loss = Callable[[Tensor, Tensor], Tensor]
"""Predictions [n, ...] and targets [n, ...] to the loss of each example [n]."""


class Network:
    """f(theta, x) [n, ...] of a copy of a module; theta has the parameters that it trains.

    Frozen parameters and buffers stay what they are. Every thread has a shell of its own around
    them: calling a module with other parameters changes it while it runs.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.module = copied(module).to(device)
        moving = self.module.named_parameters()
        self.start = {k: v.detach().clone() for k, v in moving if v.requires_grad}
        self._still = copied(self.module).requires_grad_(False)
        self._shells = threading.local()

    def __call__(self, theta: Params, x: Tensor) -> Tensor:
        """Predictions of inputs ``x`` [n, ...]; theta may have more names."""
        mine: nn.Module | None = getattr(self._shells, "module", None)
        if mine is None:
            mine = self._shells.module = _shell(self._still)
        used = {k: theta[k] for k in self.start}
        out: Tensor = functional_call(mine, used, (x,))
        return out


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
        found = model()
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
    rate = part.p if isinstance(part, _DropoutNd) else 0.0
    if isinstance(part, nn.RNNBase | nn.MultiheadAttention):
        rate = float(part.dropout)
    if rate > 0:
        return (
            f"draws what it drops (p = {rate:g}) from torch's global generator, which no seed of a "
            "run decides: set it to 0, call .eval() on it, or learn 'weight_decays' in its place"
        )
    return ""


def check_pure(network: Network, x: Tensor) -> Tensor:
    """Predictions of a few inputs. Raises SettingError where the module gives others for other
    states of torch's generator, or changes a buffer."""
    theta, few = network.start, x[:SOME]
    held = {k: v.clone() for k, v in network.module.named_buffers()}
    found = []
    for seed in (1, 2):
        with seeded(seed), torch.no_grad():
            try:
                found.append(network(theta, few))
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
    if not torch.equal(out, again):
        raise SettingError(
            "model: it predicts something else when it is called again, as with F.dropout: what is "
            "random has to be left out (.eval() where it looks at self.training)"
        )
    after = dict(network._still.named_buffers())
    moved = [k for k, v in held.items() if not torch.equal(v, after[k])]
    if moved:
        raise SettingError(
            f"model: calling it changes its buffer {moved[0]!r}, which is neither lam nor theta: "
            "make it a function of parameters and inputs (.eval() where it looks at self.training)"
        )
    return out


def by_itself(network: Network, x: Tensor) -> bool:
    """Whether the prediction of an example does not depend on the others of its batch."""
    few = x[:SOME]
    with torch.no_grad():
        whole = network(network.start, few)
        try:
            alone = torch.cat([network(network.start, one[None]) for one in few])
        except Exception:  # batch norm refuses a single example
            return False
    return near(alone, whole)


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
            found = network(dict(theta), few)
        except Exception:  # an operation that has no rule for them
            return False
        each = [{k: v.of(i) for k, v in theta.items()} for i in range(len(few))]
        expected = [network(one, few[i : i + 1]) for i, one in enumerate(each)]
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
