"""A small world of passages and a language model of random weights, in the real files' layout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

FACTS = {
    "Rivers": ("The Ob flows north. In 1900 it froze.", "Where does the Ob flow?", "north"),
    "Cities": ("Bern lies on the Aare. It has 9 towers.", "How many towers has Bern?", "9"),
    "Stones": ("Jade is green. Opal is not.", "What is green?", "Jade"),
    "Birds": ("An owl hunts at night.", "When does an owl hunt?", "at night"),
}
PARTS = [("train", "round0"), ("train", "round1"), ("train", ""), ("validation", "eval200"),
         ("validation", "")]  # fmt: skip


@contextmanager
def small_world(folder: Path) -> Iterator[str]:
    """The folder of the model, with ``folder`` as the place of data and cache, on one thread."""
    write_squad(folder)
    write_model(folder / "model")
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METABENCH_DATA", str(folder))
        patch.setenv("METABENCH_CACHE", str(folder))
        torch.set_num_threads(1)
        try:
            yield str(folder / "model")
        finally:
            torch.set_num_threads(threads)


def write_squad(folder: Path) -> None:
    """folder/squad/squad_seal.parquet: three passages a part, no article in both splits and no
    question in two parts."""
    import pandas as pd

    rows = []
    for split, subset in PARTS:
        more = " Say it." if split == "validation" else ""
        for i, (title, (text, question, answer)) in enumerate(FACTS.items()):
            if i == 3 and subset == "round1":
                continue
            rows.append({
                "split": split, "subset": subset, "title": f"{title} of the {split} set",
                "context": f"{text} {subset}",
                "questions": [f"{question}{more} {subset}", f"Again: {question}{more} {subset}"],
                "answers": [answer, answer],
            })  # fmt: skip
    (folder / "squad").mkdir(parents=True)
    pd.DataFrame(rows).to_parquet(folder / "squad" / "squad_seal.parquet")


def write_model(folder: Path) -> None:
    """A model of two layers and a tokenizer of single bytes, as save_pretrained writes them."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {w: i for i, w in enumerate(["<pad>", "<s>", "</s>", *letters])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(["<pad>", "<s>", "</s>"])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
        bos_token_id=1, eos_token_id=2, pad_token_id=0, tie_word_embeddings=True,
    )  # fmt: skip
    made = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for name, value in made.named_parameters():
            if not name.endswith("norm.weight"):
                value.mul_(4.0)
    made.save_pretrained(folder)
