"""The marks that lead from a number to its footnote."""

from __future__ import annotations


class FootnoteMarks:
    """Short marks for footnotes, one for each text: a, b, ..., z, aa, ab, ..., or 1, 2, ..."""

    def __init__(self, letters: str) -> None:
        self.letters = letters
        self._texts: dict[str, str] = {}

    def mark(self, text: str) -> str:
        """The mark of a footnote, a new one where the text is new."""
        if text not in self._texts:
            self._texts[text] = self._name(len(self._texts))
        return self._texts[text]

    def items(self) -> list[tuple[str, str]]:
        """(mark, text), in the order in which they were marked."""
        return [(mark, text) for text, mark in self._texts.items()]

    def _name(self, number: int) -> str:
        if self.letters[0].isdigit():
            return str(number + 1)
        name, base = "", len(self.letters)
        while number >= 0:
            name, number = self.letters[number % base] + name, number // base - 1
        return name
