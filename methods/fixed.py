"""No outer learning: lam stays at its first value. The floor that every method must beat."""

from __future__ import annotations

from dataclasses import dataclass, replace

from metabench.contract import autodiff
from metabench.contract.method import Context, InnerTraining, State, inner_loop
from metabench.core.registry import method


@method("fixed")
@dataclass(frozen=True)
class Fixed(InnerTraining):
    """No outer learning: lam stays at its first value, theta is trained as usual; the floor."""

    @property
    def needs(self) -> frozenset[str]:
        """Nothing."""
        return frozenset()

    def init(self, ctx: Context) -> State:
        """The first lam."""
        lam = ctx.problem.init_outer()
        return State(lam, self.first_theta(ctx, lam))

    def step(self, ctx: Context, state: State) -> tuple[State, dict[str, float]]:
        """Train a carried theta; where every episode starts anew there is nothing to do."""
        if state.theta is None:
            return state, {}
        episode = ctx.training_episodes()[0]
        theta, _ = inner_loop(
            ctx, state.lam, state.theta, episode, steps=self.inner_steps, lr=self.inner_lr
        )
        return replace(state, theta=autodiff.detach(theta)), {}
