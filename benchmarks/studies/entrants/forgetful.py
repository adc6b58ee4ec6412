"""A method that is bad on purpose: unrolling that throws away what it has trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from metabench import Context, Episode, Hypergradient, Params, autodiff, method
from metabench.methods.bilevel import Bilevel


@method("forgetful")
@dataclass(frozen=True)
class Forgetful(Bilevel):
    """Unrolling whose theta stays at its first value."""

    space: ClassVar[dict[str, Any]] = {"outer_lr": {"choices": [1e-3]}}
    """The default alone, so that all trials are one: the first state is the best under every
    setting, and its score knows of none."""

    def hypergradient(
        self, ctx: Context, lam: Params, theta: Params | None, episode: Episode
    ) -> Hypergradient:
        """The right one, and the theta from before the inner steps."""
        found = super().hypergradient(ctx, lam, theta, episode)
        start = ctx.problem.init_inner(lam, episode) if theta is None else theta
        return found._replace(theta=autodiff.detach(start))
