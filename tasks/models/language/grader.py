"""A language model that says whether an answer is right, given the question and the gold answer.

SEAL has GPT-4.1 grade answers yes or no. Here any causal model that can be loaded does, by which of
the two words it finds likelier, or by what it writes. The prompt's wording is a reconstruction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from .pretrained import LanguageModel

PROMPT = """You are a grading assistant. Decide whether a student's answer to a question is right, \
by the gold answer alone and not by what you know yourself. More detail than the gold answer has, \
another style or other words do no harm; the student's answer must say all that the gold answer \
says, and must not contradict it. Reply with yes or no.

Question: {question}
Gold answer: {gold}
Student's answer: {answer}
Is the student's answer right? Reply with yes or no:"""
"""What a grader is asked; a reconstruction."""

AT_ONCE = 16
"""Prompts in one pass."""

Asked = tuple[str, str, str]
"""Question, gold answer, answer."""
Verdict = Literal["likelihood", "text"]
Template = Literal["plain", "chat"]


@dataclass
class Grader:
    """A frozen judge; it asks its model about the same answer once."""

    lm: LanguageModel
    prompt: str = PROMPT
    template: Template = "plain"
    verdict: Verdict = "likelihood"
    tokens: int = 8
    """Of a verdict that is written, at most."""
    known: dict[Asked, bool] = field(default_factory=dict)

    def right(self, asked: Sequence[Asked]) -> list[bool]:
        """Whether each answer is right; an empty one is not."""
        new = [a for a in dict.fromkeys(asked) if a not in self.known and a[2]]
        judge = self._likelier if self.verdict == "likelihood" else self._written
        for at in range(0, len(new), AT_ONCE):
            some = new[at : at + AT_ONCE]
            self.known.update(zip(some, judge([self._before(a) for a in some]), strict=True))
        return [self.known.get(a, False) for a in asked]

    def _before(self, asked: Asked) -> list[int]:
        """Tokens after which the verdict comes."""
        text = self.prompt
        for name, value in zip(("question", "gold", "answer"), asked, strict=True):
            text = text.replace(f"{{{name}}}", value)
        if self.template == "chat":
            return self.lm.encode(self.lm.chat(text))
        return self.lm.begin + self.lm.encode(text)

    @torch.no_grad()
    def _likelier(self, prompts: list[list[int]]) -> list[bool]:
        """log p(yes) > log p(no)."""
        space = "" if self.template == "chat" else " "
        words = [self.lm.encode(f"{space}{word}") for word in ("yes", "no")]
        # Where both are one token, the prompt is read once and not again for each word.
        short = len(words[0]) == len(words[1]) == 1
        rows = [(before, word) for before in prompts for word in (words[:1] if short else words)]
        longest = max(len(before) + len(word) for before, word in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.int64)
        wanted = torch.zeros(len(rows), longest, dtype=torch.float32)
        for i, (before, word) in enumerate(rows):
            end = len(before) + len(word)
            ids[i, :end] = torch.tensor(before + word)
            wanted[i, len(before) : end] = 1.0
        lm = self.lm.decoder
        if short:
            ends = torch.tensor([len(before) - 1 for before in prompts], device=lm.device)
            x = lm.hidden(ids.to(lm.device))
            logits = lm.head(x[torch.arange(len(rows), device=x.device), ends.to(x.device)])
            return (logits[:, words[0][0]] > logits[:, words[1][0]]).tolist()
        wanted = wanted[:, 1:].to(lm.device)
        lost = lm.surprise(ids.to(lm.device), wanted=wanted).sum(1).view(-1, 2)
        return (lost[:, 0] < lost[:, 1]).tolist()

    def _written(self, prompts: list[list[int]]) -> list[bool]:
        """Whether what is written begins with yes; anything else is a no."""
        ids, counts = self.lm.decoder.continued(prompts, self.tokens, stops=self.lm.line_ends)
        texts = [self.lm.decode(i[c > 0].tolist()) for i, c in zip(ids, counts, strict=True)]
        return [text.strip(" \t\n\"'*.").lower().startswith("yes") for text in texts]
