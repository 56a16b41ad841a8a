"""Write the sets of characters that the page's tokenizer needs, as the installed `tokenizers` has them.

Its parts have Unicode tables of different ages, and none of them is the browser's. Run it again when
tests/formats/test_web_tokenizer.py says that a set differs: python scripts/make_character_sets.py > FILE, where FILE is
featcache/formats/web/assets/tokenizer/characters.js. Needs node, of a Unicode version no older than the library's, and
Python 3.11 or 3.12, of a version that every browser has.
"""

from __future__ import annotations

import json
import subprocess
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence

from tokenizers import Regex, normalizers, pre_tokenizers

CHARACTERS = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
CATEGORIES = {"L": "ultmo", "M": "nce", "N": "dlo", "P": "cdseifo", "S": "mcko", "Z": "slp", "C": "cfo"}
SCRIPTS = ("Latin", "Greek", "Cyrillic", "Arabic", "Hebrew", "Devanagari", "Bengali", "Thai", "Hangul", "Hiragana")
SCRIPTS += ("Katakana", "Han")
HEAD = """\
// Sets of characters as `tokenizers` has them, whose parts know Unicode 8, 9 and 16, whatever the browser knows.
// Written by scripts/make_character_sets.py.

// The inside of a regular expression's brackets.
const inside = (ranges) => ranges.trim().replace(/[0-9a-f]+/g, "\\\\u{$&}").replace(/\\s+/g, "");
"""
NODE = """
const all = [];
for (let c = 0; c < 0x110000; c++) if (c < 0xd800 || c > 0xdfff) all.push(String.fromCodePoint(c));
console.log(JSON.stringify({
  assigned: all.filter((c) => !/\\p{Cn}/u.test(c)),
  canonical: all.map((c) => c.normalize("NFD")),
  compatible: all.map((c) => c.normalize("NFKD")),
  moved: all.filter((c) => `a\\u0345${c}`.normalize("NFD")[1] !== "\\u0345"),
}));
"""


def constant(name: str, characters: Iterable[str], comment: str) -> str:
    """Return an exported constant with a set of characters."""
    return f"\n// {comment}\nexport const {name} = {inside(characters)};"


def inside(characters: Iterable[str]) -> str:
    """Return a set of characters: ranges of code points in hexadecimal digits."""
    ranges: list[list[int]] = []
    for code in sorted(map(ord, characters)):
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    lines = [" "]
    for first, last in ranges:
        word = f"{first:x}" if first == last else f"{first:x}-{last:x}"
        if len(lines[-1]) + len(word) > 116:
            lines.append(" ")
        lines[-1] += f" {word}"
    return (
        f'inside("{lines[0].strip()}")'
        if len(lines[0]) < 90 and len(lines) == 1
        else "\n".join(["inside(`", *lines, "`)"])
    )


def matched(pattern: str) -> set[str]:
    """Return the characters that a regular expression of the library matches."""
    return set(CHARACTERS) - set(normalizers.Replace(Regex(pattern), "").normalize_str("".join(CHARACTERS)))


def older_ones() -> dict[str, str]:
    """Return, for each character that some browsers do not know, an older one that is in the same sets."""
    names = [f"\\p{{{first}{second}}}" for first, all_second in CATEGORIES.items() for second in all_second]
    sets = [matched(name) for name in (*names, r"\p{Alphabetic}", *(f"\\p{{{script}}}" for script in SCRIPTS))]
    known = [c for c in CHARACTERS if unicodedata.category(c) != "Cn"]
    stands: dict[tuple[bool, ...], str] = {}
    for c in (c for c in known if ord(c) >= 0x100):  # patterns name those before
        stands.setdefault(traits(c, sets), c)
    for c in (c for c in known if ord(c) >= 0x900):
        stands.setdefault(traits(c, sets[: -len(SCRIPTS)]), c)
    newer = set(CHARACTERS) - set(known) - matched(r"\p{Cn}")
    return {c: stands.get(traits(c, sets)) or stands[traits(c, sets[: -len(SCRIPTS)])] for c in newer}


def traits(character: str, sets: Sequence[set[str]]) -> tuple[bool, ...]:
    """Return whether a character is two units of UTF-16, and which sets it is in."""
    return (character > "\uffff", *(character in each for each in sets))


def older() -> str:
    """Return the constant that says which older characters stand for newer ones."""
    groups = defaultdict(set)
    for c, stand in older_ones().items():
        groups[stand].add(c)
    lines = []
    for stand in sorted(groups):
        lines.append(f'  ["\\u{{{ord(stand):x}}}", {inside(groups[stand])}],')
    return "\n".join(
        [
            "",
            "// Characters of Unicode 15 and 16, which some browsers do not know, behind an older one of their kind.",
            "export const OLDER = [",
            *lines,
            "];",
        ]
    )


def main() -> None:
    """Print the module."""
    node = json.loads(subprocess.run(["node", "-e", NODE], capture_output=True, check=True, text=True).stdout)
    everything = "".join(CHARACTERS)
    pieces = pre_tokenizers.Punctuation("removed").pre_tokenize_str(everything)
    unpunctuated = {c for piece, _ in pieces for c in piece}
    unmarked = set(normalizers.StripAccents().normalize_str(everything))
    stable = [c for c in CHARACTERS if normalizers.NFD().normalize_str(c) == c]
    options = {"handle_chinese_chars": False, "lowercase": False}
    accents = normalizers.BertNormalizer(clean_text=False, strip_accents=True, **options)
    cleaning = normalizers.BertNormalizer(clean_text=True, strip_accents=False, **options)
    compatible = [normalizers.NFKD().normalize_str(c) for c in CHARACTERS]
    canonical = [normalizers.NFD().normalize_str(c) for c in CHARACTERS]
    moved = {c for c in CHARACTERS if normalizers.NFD().normalize_str(f"a\u0345{c}")[1] != "\u0345"}
    inert = moved ^ set(node["moved"])
    for ours, its in ((compatible, node["compatible"]), (canonical, node["canonical"])):
        inert |= {c for c, a, b in zip(CHARACTERS, ours, its, strict=True) if a != b}
    # what the browser would put together to a character that the library does not know: letters of the same block
    for c, parts in zip(CHARACTERS, node["canonical"], strict=True):
        if c in inert:
            inert |= {part for part in parts if ord(part) >> 8 == ord(c) >> 8}
    print(HEAD.rstrip())
    print(constant("PUNCTUATION", set(CHARACTERS) - unpunctuated, "What is split off as punctuation."))
    gone = [c for c in stable if accents.normalize_str(f"a{c}") == "a"]
    print(constant("NONSPACING_MARKS", gone, "What BertNormalizer strips as accents, after NFD."))
    print(constant("COMBINING_MARKS", set(CHARACTERS) - unmarked, "What StripAccents strips."))
    gone = [c for c in CHARACTERS if cleaning.normalize_str(f"a{c}a") == "aa"]
    print(constant("CLEANED", gone, "What BertNormalizer cleans away."))
    print(constant("INERT", inert, "What the browser normalises (NFC and so on) and the library leaves alone."))
    pieces = pre_tokenizers.Digits(False).pre_tokenize_str("a".join(CHARACTERS))
    numbers = {c for piece, _ in pieces if "a" not in piece for c in piece if unicodedata.category(c) == "Cn"}
    print(constant("NEWER_NUMBERS", numbers, "Numbers that some browsers do not know."))
    unknown = matched(r"\p{Cn}") & set(node["assigned"])
    print(
        constant(
            "UNKNOWN",
            unknown,
            "What is unassigned to regular expressions of the library, and to newer browsers is not.",
        )
    )
    print(older())


if __name__ == "__main__":
    main()
