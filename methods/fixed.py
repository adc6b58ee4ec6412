"""No outer learning: lam stays at its first value. The floor that every method must beat."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from metabench.contract import autodiff
from metabench.contract.method import Context, InnerTraining, State, inner_loop
from metabench.core.registry import method


@method("fixed")
@dataclass(frozen=True)
class Fixed(InnerTraining):
    r"""No outer learning: lam stays at its first value, theta is trained as usual; the floor.

    Formula:
        \lambda_k = \lambda_0

    Loop:
        lam = lam
    """

    by_examples: ClassVar[bool] = True

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
        theta, solver = inner_loop(
            ctx, state.lam, state.theta, episode, steps=self.inner_steps, lr=self.inner_lr,
            solver_state=state.memory.get("solver"),
        )  # fmt: skip
        # Any other solver starts anew with every outer step, as under methods that move lam.
        memory = {"solver": solver} if ctx.solver.by_examples else {}
        return replace(state, theta=autodiff.detach(theta), memory=memory), {}
