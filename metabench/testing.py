"""Does a task or a method keep the contract? For tests of your own, with pytest or without.

>>> from metabench import testing
>>> testing.check_method("fixed", tasks=["ridge"])  # a name, a class, or an instance

or, one test a promise:

    @pytest.mark.parametrize("name, check", testing.method_checks("mine"))
    def test_contract(name, check):
        check()

A broken promise raises :class:`ContractError`. The kit knows nothing of your mathematics: test that
against a closed form. :func:`context` and :func:`build` give what such a test needs.

>>> ctx = testing.context("ridge", seed=1)
>>> episode = ctx.problem.episode("train", 0)
>>> method = testing.build("method", "bilevel", inner_steps=3)
>>> found = method.hypergradient(ctx, ctx.problem.init_outer(), None, episode)
>>> found.grad["log_penalty"].shape
torch.Size([10])
"""

from metabench.conformance.kit import (
    ContractError,
    build,
    check_method,
    check_task,
    context,
    method_checks,
    task_checks,
)

__all__ = [
    "ContractError",
    "build",
    "check_method",
    "check_task",
    "context",
    "method_checks",
    "task_checks",
]
