"""Texts in many scripts, by a seeded generator: letters, marks, digits, emoji, white space, controls, anything."""

from __future__ import annotations

import random
from collections.abc import Sequence

SCRIPTS = {
    "Latin": "az AZ", "Latin with accents": "\u00c0\u024f \u1e00\u1eff", "Greek": "\u0391\u03c9 \u1f00\u1fff",
    "Cyrillic": "\u0400\u045f", "Armenian": "\u0531\u0587", "Georgian": "\u10a0\u10ff \u1c90\u1cbf",
    "Hebrew": "\u0591\u05ea", "Arabic": "\u0600\u06ff \ufb50\ufdfb \ufe70\ufefc", "Syriac": "\u0700\u074f",
    "Devanagari": "\u0900\u097f", "Bengali": "\u0980\u09ff", "Gurmukhi": "\u0a01\u0a76", "Tamil": "\u0b82\u0bfa",
    "Telugu": "\u0c00\u0c7f", "Malayalam": "\u0d00\u0d7f", "Sinhala": "\u0d81\u0df4", "Thai": "\u0e01\u0e5b",
    "Lao": "\u0e81\u0edf", "Tibetan": "\u0f00\u0fda", "Myanmar": "\u1000\u109f", "Ethiopic": "\u1200\u137c",
    "Cherokee": "\u13a0\u13fd \uab70\uabbf", "Khmer": "\u1780\u17f9", "Mongolian": "\u1800\u18aa",
    "Hangul": "\uac00\ud7a3", "Hangul letters": "\u1100\u11ff \u3131\u318e", "Hiragana": "\u3041\u309f",
    "Katakana": "\u30a0\u30ff \uff66\uff9f", "Han": "\u4e00\u9fff \u3400\u4dbf \U00020000\U0002a6df \uf900\ufad9",
    "Halfwidth and fullwidth": "\uff01\uffee", "Gothic": "\U00010330\U0001034a", "Deseret": "\U00010400\U0001044f",
    "Mathematical": "\U0001d400\U0001d7ff", "Adlam": "\U0001e900\U0001e959", "Kawi": "\U00011f00\U00011f59",
    "Garay": "\U00010d40\U00010d85", "Letterlike and enclosed": "\u2100\u214f \u2160\u2188 \u2460\u24ff \u3200\u33ff",
}  # fmt: skip
MARKS = "\u0300\u036f \u0483\u0489 \u20d0\u20f0 \ufe00\ufe0f \u1ab0\u1ace \u3099\u309a"
SPACES = " \t\n\r\x0b\x0c\x1c\x1f\x85\xa0\u1680\u180e\u2000\u2003\u2009\u200a\u200b"
SPACES += "\u2028\u2029\u202f\u205f\u2060\u3000\ufeff"
PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~¡§«¶·»¿‐–—‘’“”„…‰†•‹›⁄€£¥₹°±²³¹½×÷، ؟।॥。、「」・！？；：（）￥▁"
EMOJI = [
    "😀", "👍🏽", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪🇫🇷", "❤️", "☎️", "1️⃣", "🧑🏿‍🚀", "\U0001fae8", "🏴\U000e0067\U000e0062\U000e007f",
]  # fmt: skip
SPECIAL = [
    "[MASK]", "[CLS]", "[SEP] ", " [UNK]", "<s>", "</s>", "<unk>", "<|end|>", "<mask>", "don't", "I'LL", "it's", "we'ſ",
    "ΟΔΥΣΣΕΥΣ ΑΣ", "İstanbul", "ǅ", "ﬁnal ﬀ ﬆ", "ẞß", "Å Å Å", "e\u0301\u0323", "\u0344\u0301", "ｶﾞ", "각", "각",
    "\u0e33\u0e48", "\u0f73\u0f71", "क्षि", "\u0915\u094d\u200d\u0937", "ﷺ", "x\u0345\u0301", "\u1100\u1161\u11a8", "㍿",
    "1,234.56", "٣٤٥", "१२३", "Ⅷ", "①②", "http://a.b/c?d=e&f", "a@b.de", "\r\n", "\n\r\n", "word", "words", "Word",
    "new york", " new  york", "yesterday", "Yesterday", "\x00", "\x01", "\x7f", "\x9f", "\xad", "\ufffd", "\ufffe",
    "\U0010ffff", "\ue000", "\u0378", "\U000e0001", "\u061c", "\u200d", "\u200e", "⁠",
]  # fmt: skip
_LETTERS = {name: [(part[0], part[1]) for part in ranges.split()] for name, ranges in SCRIPTS.items()}


def _letter(rng: random.Random, ranges: Sequence[tuple[str, str]]) -> str:
    first, last = rng.choice(ranges)
    return chr(rng.randint(ord(first), ord(last)))


def _piece(rng: random.Random, scripts: Sequence[str]) -> str:
    kind = rng.random()
    if kind < 0.45:
        ranges = _LETTERS[rng.choice(scripts)]
        return "".join(_letter(rng, ranges) for _ in range(rng.randint(1, 9)))
    if kind < 0.65:
        return " " if rng.random() < 0.7 else "".join(rng.choice(SPACES) for _ in range(rng.randint(1, 3)))
    if kind < 0.72:
        return "".join(rng.choice(PUNCTUATION) for _ in range(rng.randint(1, 3)))
    if kind < 0.77:
        return str(rng.randint(0, 10 ** rng.randint(1, 8)))
    if kind < 0.80:
        return rng.choice(EMOJI)
    if kind < 0.84:
        return "".join(_letter(rng, [(p[0], p[1]) for p in MARKS.split()]) for _ in range(rng.randint(1, 3)))
    if kind < 0.95:
        return rng.choice(SPECIAL)
    if kind < 0.96:
        return _letter(rng, _LETTERS[rng.choice(scripts)]) * rng.randint(20, 130)
    code = rng.choice(
        [rng.randint(0, 0x2FF), rng.randint(0, 0xD7FF), rng.randint(0xE000, 0xFFFF), rng.randint(0x10000, 0x10FFFF)]
    )
    return chr(code)


def texts_in_many_scripts(count: int, *, seed: int = 0) -> list[str]:
    """Return texts that mix scripts, digits, emoji, white space, marks and whatever else Unicode has."""
    rng = random.Random(seed)
    names = list(SCRIPTS)
    found = []
    for i in range(count):
        scripts = [names[i % len(names)], *rng.sample(names, rng.choice([0, 0, 1, 2]))]
        found.append("".join(_piece(rng, scripts) for _ in range(rng.choice([0, 1, 2, 5, 10, 20, 40]))))
    return found


def every_character(*, between: str, size: int = 1024) -> list[str]:
    """Return texts that have each code point of planes 0 to 3 and 14 once (no half of a pair), some of all others."""
    codes = [*range(0xD800), *range(0xE000, 0x33500), *range(0xE0000, 0xE0200)]
    codes += [plane << 16 | last for plane in range(3, 17) for last in (0, 1, 0x7FFF, 0xFFFD, 0xFFFE, 0xFFFF)]
    everything = [chr(code) for code in codes]
    return [between.join(everything[i : i + size]) + between for i in range(0, len(everything), size)]
