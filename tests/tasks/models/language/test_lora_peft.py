"""Models under peft against the functional form: the same features, gradients, trainings, texts."""

import inspect

import pytest
import torch
from language_models import CPU, model, moved, tokens
from optional import needs

from metabench.contract import autodiff
from metabench.core.errors import MetabenchError
from metabench.core.registry import solvers
from metabench.tasks.models.language import lora
from metabench.tasks.models.language.causal import Adapter
from metabench.tasks.models.language.lora_peft import PeftDecoder

CLOSE = {"rtol": 1e-4, "atol": 2e-5}


@pytest.fixture(scope="module", autouse=True)
def peft():
    """Imported where these tests run alone: it takes seconds, and every worker collects them."""
    return needs("peft")


def pair(dtype=torch.float32):
    return lora.decoder_of(model(), dtype, CPU), PeftDecoder(model().to(dtype))


def test_two_adapters_of_other_shapes_do_what_the_functional_form_does():
    ours, its = pair()
    ids, one = tokens(3, 9), moved(ours)
    two = moved(ours, seed=1, targets=("q", "down"), rank=3)
    plain = its.logits(ids)
    for given in ([Adapter(one, 2.0)], [Adapter(one, 2.0), Adapter(two, 0.5)], []):
        torch.testing.assert_close(its.logits(ids, given), ours.logits(ids, given), **CLOSE)
    torch.testing.assert_close(its.logits(ids), plain, rtol=0, atol=0)
    assert float((its.logits(ids, [Adapter(one, 2.0)]) - plain).abs().max()) > 0.1


def test_a_training_ends_in_the_same_deltas():
    ours, its = pair()
    start = lora.stacked([moved(ours, seed=s) for s in range(2)])
    base = Adapter(moved(ours, seed=7, targets=("v",)), 1.0)
    ids = tokens(2, 3, 10)
    ends = [
        lora.adapt(
            lambda t, form=form: form.surprise(ids, [base, Adapter(t, 2.0)]).mean((-2, -1)),
            start, steps=4, lr=0.05, solver=solvers.get("sgd")(),
        )
        for form in (ours, its)
    ]  # fmt: skip
    for k, expected in ends[0].items():
        torch.testing.assert_close(ends[1][k], expected, **CLOSE)
        assert float((expected - start[k]).abs().max()) > 1e-3


def test_float64_agrees_as_far_as_the_norms_of_transformers_allow():
    """Its RMS norms work in float32 whatever the model's type is."""
    ours, its = pair(torch.float64)
    ids, delta = tokens(2, 8), moved(ours)
    slopes = [
        autodiff.grad(lambda t, form=form: form.surprise(ids, [Adapter(t, 2.0)]).mean(), delta)[1]
        for form in (ours, its)
    ]
    for k, expected in slopes[0].items():
        assert expected.dtype == torch.float64
        torch.testing.assert_close(slopes[1][k], expected, rtol=1e-4, atol=1e-6)


def test_starts_samples_and_continuations_are_the_same():
    ours, its = pair()
    one, two = (moved(ours, seed=s) for s in (0, 1))
    starts = [form.deltas(2, ["q", "up"], torch.Generator().manual_seed(3)) for form in (ours, its)]
    assert all(torch.equal(v, starts[1][k]) for k, v in starts[0].items())
    prompt, prompts = tokens(5).tolist(), [tokens(n, seed=n).tolist() for n in (3, 7, 5)]
    many = [Adapter(lora.stacked([one, two]), 2.0)]
    drawn, written = [], []
    for form in (ours, its):
        gen = torch.Generator().manual_seed(0)
        drawn.append(form.sample(prompt, 4, 6, gen, adapters=[Adapter(one, 2.0)])[0])
        written.append(form.continued(prompts, 6, adapters=many)[0])
    assert torch.equal(*drawn) and torch.equal(*written)
    assert written[0].shape == (2, 3, 6) and not torch.equal(*written[0].unbind(0))


def test_an_architecture_without_a_functional_form_runs_and_names_are_checked():
    its = PeftDecoder(model("mistral"))
    ids = tokens(2, 6)
    start = its.deltas(2, ["q"], torch.Generator())
    assert torch.equal(its.logits(ids, [Adapter(start, 2.0)]), its.logits(ids))
    with pytest.raises(MetabenchError, match=r"no linear map .self_attn\.q_proj. in layer 9"):
        its.linear(9, "q")
    with pytest.raises(MetabenchError, match="no vmap"), autodiff.functional():
        its.logits(ids)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_the_cache_has_the_name_that_the_model_takes(name, monkeypatch):
    """transformers renamed it in 5.24, and warns of the old name."""
    _, its = pair()
    signature = inspect.Signature([inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY)])
    real, given = type(its.model.get_decoder()).forward, []

    def forward(body, ids, **more):
        given.append(name in more)
        ours = inspect.signature(real).parameters
        there = "cache" if "cache" in ours else "past_key_values"
        held = more.pop(name)
        return real(body, ids, **more, **{there: held})

    forward.__signature__ = signature.replace(parameters=[
        inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY), *signature.parameters.values()
    ])  # fmt: skip
    monkeypatch.setattr(type(its.model.get_decoder()), "forward", forward)
    ids, cache = tokens(2, 6), []
    whole = its.hidden(ids, cache=[])
    parts = [its.hidden(part, cache=cache) for part in (ids[:, :4], ids[:, 4:])]
    torch.testing.assert_close(torch.cat(parts, 1), whole, **CLOSE)
    assert given == [True] * 3
