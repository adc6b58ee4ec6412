"""The functional language model against transformers and peft; its derivatives; many deltas."""

import warnings

import pytest
import torch
from language_models import CPU, model, moved, tiny, tokens
from optional import needs

from metabench.contract import autodiff
from metabench.core.errors import MetabenchError, UnknownName
from metabench.core.registry import solvers
from metabench.tasks.models.language import lora

transformers = needs("transformers")

LONG_CONTEXT = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 16}  # fmt: skip


@pytest.mark.parametrize("more", [
    {}, {"tie_word_embeddings": True}, {"rope_parameters": LONG_CONTEXT}, {"kind": "qwen2"},
])  # fmt: skip
def test_logits_are_those_of_transformers(more):
    its, ids = model(**more), tokens(3, 20)
    with torch.no_grad():
        expected = its(ids).logits
    found = lora.decoder_of(its, torch.float32, CPU).logits(ids)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert float(expected.std()) > 0.3  # far from a constant


def test_deltas_are_those_of_peft():
    peft = needs("peft")
    its = model()
    decoder = lora.decoder_of(its, torch.float32, CPU)
    deltas = moved(decoder)
    names = [n.partition(".")[2] for n in lora.TARGETS.values()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=names)
        wrapped = peft.get_peft_model(its, config).eval()
    parts = dict(wrapped.named_parameters())
    with torch.no_grad():
        for key, value in deltas.items():
            i, name, side = key.split(".")
            at = (
                f"base_model.model.model.layers.{i}.{lora.TARGETS[name]}.lora_{side}.default.weight"
            )
            parts[at].copy_(value)
        expected = wrapped(tokens(2, 9)).logits
    found = decoder.logits(tokens(2, 9), [decoder.adapter(deltas, 3.0)])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_two_adapters_add_and_a_fresh_one_does_nothing():
    decoder, ids = tiny(), tokens(2, 7)
    one, two = moved(decoder, 1), moved(decoder, 2)
    both = {k: torch.cat([one[k], two[k]], 0 if k.endswith("A") else 1) for k in one}
    torch.testing.assert_close(
        decoder.logits(ids, [decoder.adapter(one, 2.0), decoder.adapter(two, 2.0)]),
        decoder.logits(ids, [decoder.adapter(both, 2.0)]), rtol=1e-10, atol=1e-10,
    )  # fmt: skip
    fresh = decoder.deltas(2, ["q", "down"], torch.Generator().manual_seed(0))
    assert torch.equal(decoder.logits(ids, [lora.Adapter(fresh, 2.0)]), decoder.logits(ids))
    with pytest.raises(UnknownName, match="no target of LoRA 'qq'; near: q"):
        decoder.deltas(2, ["qq"], torch.Generator())


def test_padding_on_the_right_changes_nothing_before_it():
    decoder, ids = tiny(), tokens(2, 9)
    padded = torch.cat([ids, torch.zeros(2, 4, dtype=torch.int64)], 1)
    torch.testing.assert_close(decoder.logits(padded)[:, :9], decoder.logits(ids),
                               rtol=1e-10, atol=1e-10)  # fmt: skip


def test_surprise_is_cross_entropy_of_the_next_token():
    decoder, ids = tiny(), tokens(3, 8)
    logits = decoder.logits(ids)
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    ).view(3, 7)
    torch.testing.assert_close(lora.surprise(logits, ids), expected)


def test_second_derivatives_are_there_and_agree_with_differences():
    decoder, ids = tiny(), tokens(2, 6)
    theta = moved(decoder, targets=("q", "v", "up"))
    v = moved(decoder, 5, targets=("q", "v", "up"))

    def loss(t):
        return lora.surprise(decoder.logits(ids, [lora.Adapter(t, 2.0)]), ids).mean()

    def slope(t, again=False):
        return autodiff.grad(loss, t, create_graph=again)[1]

    hv = autodiff.grad(lambda t: autodiff.dot(slope(t, True), v), theta)[1]
    h = 1e-5
    up, down = (slope(autodiff.axpy(s * h, v, theta)) for s in (1, -1))
    for k in theta:
        torch.testing.assert_close(hv[k], (up[k] - down[k]) / (2 * h), rtol=1e-6, atol=1e-7)
    assert float(autodiff.norm(hv)) > 1e-3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own, when forward mode is first used
        forward = torch.func.jvp(loss, (theta,), (v,))[1]
    torch.testing.assert_close(forward, autodiff.dot(slope(theta), v), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("solver", ["sgd", "adam"])
@pytest.mark.parametrize("same_text", [False, True])
def test_a_batch_of_deltas_is_adapted_as_one_after_another(solver, same_text):
    decoder, rule = tiny(), solvers.get(solver)()
    ids = tokens(2, 8) if same_text else tokens(3, 2, 8)
    starts = [moved(decoder, i, ("q", "o", "gate", "down")) for i in range(3)]

    def loss(text):
        def f(t):
            nll = lora.surprise(decoder.logits(text, [lora.Adapter(t, 1.5)]), text)
            return nll.mean((-2, -1))

        return f

    whole = lora.adapt(loss(ids), lora.stacked(starts), steps=4, lr=0.05, solver=rule)
    for i, start in enumerate(starts):
        text = ids if same_text else ids[i]
        alone = lora.adapt(loss(text), start, steps=4, lr=0.05, solver=rule)
        assert max(float((alone[k] - start[k]).abs().max()) for k in start) > 1e-3
        for k, expected in alone.items():
            torch.testing.assert_close(whole[k][i], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("solver", ["sgd", "adam", "momentum"])
def test_trainings_of_different_length_end_where_each_ends_alone(solver):
    decoder, rule = tiny(), solvers.get(solver)()
    ids, lengths = tokens(3, 4, 8), (4, 2, 3)
    starts = [moved(decoder, i, ("q", "down")) for i in range(3)]

    def term(rows, t):
        def f(theta):
            text = ids[rows, t].unsqueeze(-2)
            return decoder.surprise(text, [lora.Adapter(theta, 1.5)]).mean((-2, -1))

        return f

    steps = []
    for t in range(4):
        rows = [i for i, n in enumerate(lengths) if t < n]
        steps.append(lora.Step([term(rows, t)], None if len(rows) == 3 else rows))
    whole = lora.adapt_by(steps, lora.stacked(starts), lr=0.05, solver=rule)
    for i, (start, n) in enumerate(zip(starts, lengths, strict=True)):
        alone = lora.adapt_by(
            [lora.Step([term([i], t)]) for t in range(n)], lora.stacked([start]), lr=0.05,
            solver=rule,
        )  # fmt: skip
        for k, expected in alone.items():
            assert float((expected[0] - start[k]).abs().max()) > 1e-3
            torch.testing.assert_close(whole[k][i], expected[0], rtol=1e-10, atol=1e-10)


def test_vmap_over_deltas_gives_the_same():
    decoder, ids = tiny(), tokens(3, 2, 8)
    deltas = lora.stacked([moved(decoder, i) for i in range(3)])
    found = torch.func.vmap(lambda d, x: decoder.logits(x, [lora.Adapter(d, 1.0)]))(deltas, ids)
    whole = decoder.logits(ids, [lora.Adapter(deltas, 1.0)])
    torch.testing.assert_close(found, whole, rtol=1e-10, atol=1e-10)


def test_greedy_continuations_are_those_of_transformers():
    its = model()
    decoder, prompt = lora.decoder_of(its, torch.float32, CPU), tokens(5).tolist()
    ids, counts = decoder.sample(prompt, 2, 6, torch.Generator(), temperature=0)
    expected = list(prompt)
    for _ in range(6):
        with torch.no_grad():
            expected.append(int(its(torch.tensor([expected])).logits[0, -1].argmax()))
    assert ids.tolist() == [expected[5:]] * 2 and bool(counts.all())


def test_samples_follow_the_model_and_end_at_the_stop():
    decoder, prompt = tiny(), tokens(5).tolist()
    gen = torch.Generator().manual_seed(0)
    ids, _ = decoder.sample(prompt, 4000, 1, gen)
    shares = torch.bincount(ids[:, 0], minlength=40) / 4000
    expected = decoder.logits(torch.tensor([prompt]))[0, -1].softmax(-1)
    assert float((shares - expected).abs().max()) < 4 * 0.5 / 4000**0.5
    stop = int(expected.argmax())
    ids, counts = decoder.sample(prompt, 50, 5, gen, stop=stop)
    for row, kept in zip(ids.tolist(), counts.tolist(), strict=True):
        end = row.index(stop) + 1 if stop in row else 5
        assert kept == [1.0] * end + [0.0] * (5 - end)
    assert 0 < float(counts.mean()) < 1
    again, _ = decoder.sample(prompt, 3, 5, torch.Generator().manual_seed(1))
    assert torch.equal(again, decoder.sample(prompt, 3, 5, torch.Generator().manual_seed(1))[0])


def test_other_architectures_are_refused_by_name():
    with pytest.raises(MetabenchError, match=r"type 'mistral'.* llama, qwen2"):
        tiny(kind="mistral")


def test_continuations_of_prompts_of_other_lengths_are_those_of_each_alone():
    decoder = tiny()
    prompts = [tokens(n, seed=n).tolist() for n in (3, 8, 5)]
    deltas = [moved(decoder, seed=s, targets=("v", "down")) for s in range(2)]
    many = [lora.Adapter(lora.stacked(deltas), 2.0)]
    found, counts = decoder.continued(prompts, 6, adapters=many)
    stop = int(found[0, 0, 2])
    stopped, kept = decoder.continued(prompts, 6, adapters=many, stops=[stop])
    assert found.shape == (2, 3, 6) and bool(counts.all())
    for j, delta in enumerate(deltas):
        for i, prompt in enumerate(prompts):
            alone, _ = decoder.sample(prompt, 1, 6, torch.Generator(), temperature=0,
                                      adapters=[lora.Adapter(delta, 2.0)])  # fmt: skip
            expected = alone[0].tolist()
            assert found[j, i].tolist() == expected
            end = expected.index(stop) + 1 if stop in expected else 6
            assert kept[j, i].tolist() == [1.0] * end + [0.0] * (6 - end)
            assert stopped[j, i].tolist() == expected[:end] + [0] * (6 - end)


def test_what_is_not_asked_for_is_left_out_and_the_rest_is_the_same():
    decoder, ids = tiny(), tokens(2, 3, 9)
    delta = lora.stacked([moved(decoder, seed=s) for s in range(2)])
    wanted = (torch.rand(3, 8, generator=torch.Generator().manual_seed(1)) > 0.6).double()
    whole, likeliest = decoder.read(ids, [lora.Adapter(delta, 1.0)])
    torch.testing.assert_close(whole, lora.surprise(decoder.logits(ids, [lora.Adapter(delta, 1.0)]),
                                                    ids), rtol=1e-10, atol=1e-10)  # fmt: skip
    found, right = decoder.read(ids, [lora.Adapter(delta, 1.0)], wanted)
    torch.testing.assert_close(found, whole * wanted, rtol=1e-10, atol=1e-10)
    assert torch.equal(right, likeliest & (wanted > 0)) and 0 < float(wanted.sum()) < 24

    def slope(mask):
        def loss(t):
            return (decoder.surprise(ids, [lora.Adapter(t, 1.0)], mask) * wanted).sum()

        return autodiff.grad(loss, delta)[1]

    for k, expected in slope(None).items():
        torch.testing.assert_close(slope(wanted)[k], expected, rtol=1e-10, atol=1e-10)


def test_a_loss_in_terms_is_trained_on_as_their_sum():
    decoder, ids = tiny(), tokens(2, 4, 8)
    start = lora.stacked([moved(decoder, seed=s) for s in range(2)])

    def part(ids):
        return lambda t: decoder.surprise(ids, [lora.Adapter(t, 1.0)]).sum((-2, -1))

    adam = solvers.get("adam")()
    whole = lora.adapt(part(ids), start, steps=3, lr=0.05, solver=adam)
    terms = lora.adapt([part(x) for x in ids.split([1, 3], 1)], start, steps=3, lr=0.05,
                       solver=adam)  # fmt: skip
    for k, expected in whole.items():
        torch.testing.assert_close(terms[k], expected, rtol=1e-10, atol=1e-10)
