"""Glyphs: embedded few-shot data, characters of many scripts drawn from the fonts of matplotlib.

A class is a character; its drawings differ by face (regular, bold, oblique, serif, mono, as far as
a font of the DejaVu and STIX families covers it), by a random affine map, by a smooth random
displacement (Simard, Steinkraus, Platt 2003) and by stroke width. Splits are by script. No paper
reports this data: it is for trying things without a download.
"""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from metabench.contract.seeds import generator
from metabench.core.environment import drawing
from metabench.core.registry import task

from .data import derived
from .families.episodes.few_shot import FewShot
from .families.images.class_images import Classes

SCRIPTS = {
    "train": ("LATIN", "GREEK", "CYRILLIC", "CANADIAN", "ARABIC", "OLD", "NKO", "OGHAM"),
    "valid": ("HEBREW", "TIFINAGH"),
    "test": ("ARMENIAN", "GEORGIAN", "LAO"),
}
"""First words of the characters' Unicode names; no script is in two splits."""

DRAWINGS, SIZE = 20, 28
_RENDERED = 64  # pixels of a face before it is distorted
_GLYPH = 44  # longer side of its ink
_ALIKE = 0.85  # cosine of two regular renderings from which on they are one character


@task("glyphs")
@dataclass(frozen=True)
class Glyphs(FewShot):
    """Characters of many scripts, embedded: 20 distorted drawings of each, split by script."""

    filters: int = 16
    meta_batch: int = 8
    data_seed: int = 0
    """Draws the distortions; the characters and their split are always the same."""

    images_per_class: ClassVar[int] = DRAWINGS

    def classes(self, split: str) -> Classes:
        """uint8 [characters, 20, 1, 28, 28], 255 = full ink."""
        return Classes(_images(self.data_seed)[split])


@lru_cache(maxsize=2)
def _images(seed: int) -> dict[str, Tensor]:
    """The drawings of every split, from the cache where they are: they take seconds to draw."""
    kept = derived.kept("glyphs", _made_from(seed), lambda: _arrays(seed))
    return {split: torch.from_numpy(kept[split]) for split in SCRIPTS}


def _arrays(seed: int) -> derived.Arrays:
    return {split: _drawn(split, seed).numpy() for split in SCRIPTS}


def _made_from(seed: int) -> dict[str, object]:
    """What the drawings depend on: this file, the fonts, and the packages that draw."""
    files = [Path(__file__), *_fonts()]
    return {
        "seed": seed,
        "files": [[path.name, hashlib.sha256(path.read_bytes()).hexdigest()] for path in files],
        "packages": {name: version(name) for name in ("torch", "numpy", "pillow", "matplotlib")},
        "unicode": unicodedata.unidata_version,
    }


def _drawn(split: str, seed: int) -> Tensor:
    faces = _characters()[split]
    gen = generator(seed, "glyphs", split)
    n = len(faces)
    pick = torch.rand(n, DRAWINGS, generator=gen, dtype=torch.float32)
    images = torch.stack(
        [f[(p * len(f)).long()] for f, p in zip(faces, pick, strict=True)]
    ).flatten(0, 1)
    width = torch.rand(len(images), generator=gen, dtype=torch.float32)
    images[width < 0.25] = _thinner(images[width < 0.25])
    images[width > 0.75] = _thicker(images[width > 0.75])
    parts = []
    for part in torch.split(images, 512):
        grid = _affine(len(part), gen) + _displacement(len(part), gen)
        drawn = F.grid_sample(part[:, None], grid, align_corners=False)
        parts.append((F.avg_pool2d(drawn, 2) * 255).round().to(torch.uint8))
    return torch.cat(parts).view(n, DRAWINGS, 1, SIZE, SIZE)


def _affine(n: int, gen: torch.Generator) -> Tensor:
    """Sampling grids [n, 56, 56, 2] of random rotations, shears, scales and shifts."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=gen, dtype=torch.float32)

    turn, shear = uniform(-0.35, 0.35), uniform(-0.3, 0.3)
    wide, high = uniform(0.85, 1.35), uniform(0.85, 1.35)
    cos, sin = turn.cos(), turn.sin()
    rows = torch.stack(
        [
            torch.stack([cos * wide, (shear * cos - sin) * high, uniform(-0.15, 0.15)], 1),
            torch.stack([sin * wide, (shear * sin + cos) * high, uniform(-0.15, 0.15)], 1),
        ],
        1,
    )
    return F.affine_grid(rows, [n, 1, 2 * SIZE, 2 * SIZE], align_corners=False)


def _displacement(n: int, gen: torch.Generator) -> Tensor:
    """Smooth random displacements [n, 56, 56, 2], as if drawn by another hand."""
    coarse = torch.randn(n, 2, 5, 5, generator=gen, dtype=torch.float32) * 0.07
    smooth = F.interpolate(coarse, size=SIZE // 2, mode="bicubic", align_corners=True)
    fine = F.interpolate(smooth, size=2 * SIZE, mode="bilinear", align_corners=True)
    return fine.permute(0, 2, 3, 1)


def _thicker(x: Tensor) -> Tensor:
    return F.max_pool2d(F.max_pool2d(x, (1, 5), 1, (0, 2)), (5, 1), 1, (2, 0))


def _thinner(x: Tensor) -> Tensor:
    return 1 - F.max_pool2d(F.max_pool2d(1 - x, (1, 3), 1, (0, 1)), (3, 1), 1, (1, 0))


@lru_cache(maxsize=1)
def _characters() -> dict[str, list[Tensor]]:
    """Per split, each character's faces, float [faces, 64, 64] in [0, 1].

    A character that looks like one already taken (A, Alpha and Cyrillic A) is left out; the
    evaluation splits choose first, so that nothing like their classes is trained on.
    """
    fonts = {path: _coverage(path) for path in _fonts()}
    everything = sorted(set().union(*fonts.values()))
    taken, count = torch.zeros(len(everything), _RENDERED * _RENDERED, dtype=torch.float32), 0
    out: dict[str, list[Tensor]] = {}
    for split in ("test", "valid", "train"):
        out[split] = []
        for character in everything:
            if _script(character) not in SCRIPTS[split]:
                continue
            paths = [path for path, covered in fonts.items() if character in covered]
            first = _render(paths[0], character)
            look = F.normalize(_thicker(first[None]).flatten(1))[0]
            if count and float((taken[:count] @ look).max()) > _ALIKE:
                continue
            taken[count], count = look, count + 1
            rest = [_render(path, character) for path in paths[1:]]
            out[split].append(torch.stack([first, *rest]))
    return out


def _fonts() -> list[Path]:
    folder = Path(drawing.matplotlib().get_data_path()) / "fonts" / "ttf"
    chosen = [*folder.glob("DejaVuS*.ttf"), *folder.glob("STIXGeneral*.ttf")]
    # Upright sans first: the face that characters are compared by.
    chosen = [path for path in chosen if "Display" not in path.name]
    return sorted(chosen, key=lambda path: (path.stem != "DejaVuSans", path.name))


def _coverage(path: Path) -> frozenset[str]:
    from matplotlib.ft2font import FT2Font

    return frozenset(c for c in map(chr, FT2Font(str(path)).get_charmap()) if _script(c))


@cache
def _script(character: str) -> str:
    """First word of the name of a plain letter; "" for anything else."""
    if unicodedata.category(character) not in ("Lu", "Ll", "Lo"):
        return ""
    if unicodedata.normalize("NFKD", character) != character:
        return ""  # accented letters and presentation forms
    name = unicodedata.name(character, "")
    return "" if "LIGATURE" in name or "SMALL CAPITAL" in name else name.split(" ")[0]


def _render(path: Path, character: str) -> Tensor:
    """Ink [64, 64] in [0, 1], centred, its longer side 44 pixels."""
    font = _font(path)
    left, top, right, bottom = (round(side) for side in font.getbbox(character))
    ink = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(ink).text((-left, -top), character, 255, font)
    scale = _GLYPH / max(ink.size)
    ink = ink.resize([max(1, round(side * scale)) for side in ink.size], Image.Resampling.BOX)
    image = Image.new("L", (_RENDERED, _RENDERED))
    image.paste(ink, ((_RENDERED - ink.width) // 2, (_RENDERED - ink.height) // 2))
    return torch.from_numpy(np.array(image)).float() / 255


@cache
def _font(path: Path) -> ImageFont.FreeTypeFont:
    # The basic layout draws the isolated form and does not depend on what else is installed.
    return ImageFont.truetype(str(path), 96, layout_engine=ImageFont.Layout.BASIC)
