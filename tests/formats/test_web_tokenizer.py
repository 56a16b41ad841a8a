"""The page's tokenizer gives the ids of the library `tokenizers`, in every script, or says what it cannot do."""

from __future__ import annotations

import base64
import csv
import functools
import io
import json
import tarfile
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from conftest import SHARED
from many_scripts import SCRIPTS, every_character, texts_in_many_scripts
from web_tokenizers import ASSETS, LLAMA3, PAGE, TOKENIZERS, ask_node, nmt_nfkc

from featcache.errors import InputError
from featcache.formats.web.browser import Browser, find_chromium
from featcache.recipe import TextPreprocessing

pytest.importorskip("tokenizers", reason="texts need the extra 'text'")

FEW, ALL = 400, 10_000
SETTINGS: tuple[dict[str, Any], ...] = (
    {"max_length": 512},
    {"max_length": 16, "prefix": "query: "},
    {"max_length": 17, "truncation_side": "left", "lowercase": True},
    {"max_length": 24, "truncation_side": "left", "max_characters": 11, "prefix": "Passage:  "},
    {"max_length": 2000, "max_characters": 7, "lowercase": True, "prefix": "Ｑ1 "},
)
_trained = functools.cache(lambda name: TOKENIZERS[name]())


def same(expected: Sequence[Any], found: Sequence[Any], texts: Sequence[str]) -> None:
    """Fail with the first text, and how many there are, of which two results differ."""
    assert len(expected) == len(found) == len(texts)
    differ = [i for i, (a, b) in enumerate(zip(expected, found, strict=True)) if a != b]
    if differ:
        first = differ[0]
        pytest.fail(
            f"{len(differ)} of {len(texts)} texts differ, first {texts[first]!a:.300}: "
            f"the library has {expected[first]!a:.500}, the page {found[first]!a:.500}"
        )


def librarys_ids(data: bytes, texts: Sequence[str], values: dict[str, Any]) -> list[list[int]]:
    from featcache.backbone.text.tokenizer import TextTokenizer, tokenizer_digest

    preprocessing = TextPreprocessing(tokenizer_sha256=tokenizer_digest(data), **values)
    return [row.tolist() for row in TextTokenizer(data, preprocessing).encode(texts)]


def pages_ids(tokenizers: Sequence[bytes], texts: Sequence[str], settings: Sequence[dict[str, Any]]) -> list[Any]:
    read = [json.loads(data) for data in tokenizers]
    written = [TextPreprocessing(tokenizer_sha256="0" * 64, **values).to_json() for values in settings]
    found: list[Any] = ask_node("encode", tokenizers=read, settings=written, texts=texts)["ids"]
    return found


def same_ids(tokenizers: Sequence[bytes], texts: Sequence[str], settings: Sequence[dict[str, Any]]) -> None:
    """Fail where the page's ids of a text differ from the library's, by any tokenizer under any of the settings."""
    for data, by_settings in zip(tokenizers, pages_ids(tokenizers, texts, settings), strict=True):
        for values, ids in zip(settings, by_settings, strict=True):
            assert not isinstance(ids, str), ids
            same(librarys_ids(data, texts, values), ids, texts)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_texts_in_many_scripts_get_the_librarys_ids(name: str) -> None:
    """Every kind of model gives the library's ids, cut on either side, with a prefix, and in lower case."""
    assert len(SCRIPTS) >= 20
    same_ids([_trained(name)], texts_in_many_scripts(FEW), SETTINGS)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("name", TOKENIZERS)
def test_ten_thousand_texts_get_the_librarys_ids(name: str) -> None:
    """Ten thousand other texts get the library's ids too."""
    same_ids([_trained(name)], texts_in_many_scripts(ALL, seed=1), SETTINGS)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["minilm", "gpt2", "xlm_roberta"])
def test_questions_of_bank_customers_get_the_librarys_ids(name: str) -> None:
    """Real texts get the library's ids."""
    place = SHARED / "datasets" / "banking77.tar.gz"
    if not place.exists():
        pytest.skip("the real texts banking77.tar.gz are not beside this checkout")
    with tarfile.open(place) as archive:
        file = archive.extractfile("banking77/test.csv")
        assert file is not None
        texts = [row["text"] for row in csv.DictReader(io.TextIOWrapper(file, encoding="utf-8", newline=""))]
    assert len(texts) == 3080
    same_ids([_trained(name)], texts, [{"max_length": 64}, {"max_length": 12, "truncation_side": "left"}])


# --- each part, for each character ----------------------------------------------------------------------------------

COMPOSED = [unicodedata.normalize("NFD", chr(c)) for c in range(0xC0, 0x1D1FF) if unicodedata.decomposition(chr(c))]
# letters that Unicode 16 made of others: the library knows none of them
COMPOSED += [f"{a}\u0307" for a in "\U000105d2\U000105da"] + [
    "\U00011382\U000113c9",
    "\U0001611e\U0001611e",
    "\U00016d67\U00016d67",
]


@pytest.mark.slow
def test_normalizers_change_every_character_as_the_library_does() -> None:
    """A normalizer makes of each character, alone or among others and marks, what the library makes of it."""
    from tokenizers import normalizers as n

    made = [
        n.NFC(), n.NFD(), n.NFKC(), n.NFKD(), n.BertNormalizer(), n.Precompiled(_charsmap()),
        n.Sequence([n.NFKD(), n.StripAccents(), n.Replace("a", ""), n.Lowercase(), n.NFC()]),
    ]  # fmt: skip
    contexts = [text for between in ("a\n", "", "e\u0345") for text in every_character(between=between)]
    same_texts(made, [*contexts, *COMPOSED, *texts_in_many_scripts(200, seed=2)])
    alone = [
        n.BertNormalizer(lowercase=False), n.BertNormalizer(strip_accents=False, clean_text=False), n.Lowercase(),
        n.BertNormalizer(lowercase=False, strip_accents=True, handle_chinese_chars=False), n.StripAccents(), n.Nmt(),
        n.ByteLevel(),
    ]  # fmt: skip
    same_texts(alone, every_character(between="a\n"))


def test_normalizers_change_texts_as_the_library_does() -> None:
    """Ends are stripped, and texts put before others or in place of them, as the library does it."""
    from tokenizers import Regex
    from tokenizers import normalizers as n

    patterns = ["", "^", "$", r"\s{2,}", r"\w+", r"(?=\p{L})", r"\B"]
    made = [
        n.Strip(True, False), n.Strip(False, True), n.Strip(), n.Replace("a", "$&\\1"), n.Replace("", "-"),
        n.Prepend("▁"), *(n.Replace(Regex(pattern), "<\u0301é>") for pattern in patterns),
    ]  # fmt: skip
    same_texts(made, [*texts_in_many_scripts(500, seed=8), "", " ", "\u3000\t ", " a\u2003", "a\n\nb\n"])


def same_texts(made: Sequence[Any], texts: Sequence[str]) -> None:
    asked = [json_of("normalizer", normalizer) for normalizer in made]
    found = ask_node("normalize", normalizers=asked, texts=texts)["texts"]
    for normalizer, written, normal in zip(made, asked, found, strict=True):
        kind = str(written)[:200]
        same([(kind, normalizer.normalize_str(text)) for text in texts], [(kind, text) for text in normal], texts)


def _charsmap() -> bytes:
    return base64.b64decode(nmt_nfkc())


def json_of(kind: str, part: Any) -> Any:
    """Return how a tokenizer.json writes a part."""
    from tokenizers import Tokenizer, models

    tokenizer = Tokenizer(models.BPE())
    setattr(tokenizer, kind, part)
    return json.loads(tokenizer.to_str())[kind]


@pytest.mark.slow
def test_pre_tokenizers_cut_at_every_character_as_the_library_does() -> None:
    """What is white, punctuation, a digit or a letter to the library is so to the page, whatever Unicode it knows."""
    from tokenizers import Regex
    from tokenizers import pre_tokenizers as p

    sets = [
        r"\p{L}",
        r"\p{N}",
        r"\p{P}",
        r"\p{S}",
        r"\p{M}",
        r"\p{Z}",
        r"\p{C}",
        r"\p{Lu}",
        r"\p{Ll}",
        r"\p{Lo}",
        r"\p{Han}",
    ]
    sets += [
        r"\s",
        r"\w",
        r"\d",
        r"\h",
        r"\W",
        ".",
        "[[:punct:]]",
        r"\p{Alpha}",
        r"\p{^Greek}",
        "(?i)[k-t]",
        r"(?i)[\p{L}]",
    ]
    cut: dict[str, Any] = {pattern: p.Split(Regex(pattern), "contiguous") for pattern in sets}
    cut |= {
        "bert": p.BertPreTokenizer(), "words": p.Whitespace(), "white": p.WhitespaceSplit(), "digits": p.Digits(True),
        "punctuation": p.Punctuation(), "bytes": p.ByteLevel(),
    }  # fmt: skip
    same_words(cut, every_character(between="a\n"))


def test_pre_tokenizers_cut_texts_as_the_library_does() -> None:
    """Every way to cut, and all that may become of a delimiter, makes the library's words."""
    from tokenizers import Regex
    from tokenizers import pre_tokenizers as p

    behaviors = ("removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous")
    cut: dict[str, Any] = {f"punctuation {b}": p.Punctuation(b) for b in behaviors}
    for pattern in (Regex(r"[aeé]|\d"), Regex(r"\b"), " "):
        cut |= {f"{pattern} {b} {i}": p.Split(pattern, b, i) for b in behaviors for i in (False, True)}
    cut |= {
        "bytes": p.ByteLevel(), "bytes, no space": p.ByteLevel(add_prefix_space=False), "numbers": p.Digits(False),
        "bytes, uncut": p.ByteLevel(use_regex=False), "always": p.Metaspace(), "delimiter": p.CharDelimiterSplit("d"),
        "first": p.Metaspace("_", prepend_scheme="first"), "never": p.Metaspace(prepend_scheme="never", split=False),
        "all": p.Sequence([p.WhitespaceSplit(), p.Punctuation("contiguous"), p.Metaspace(prepend_scheme="first")]),
    }  # fmt: skip
    same_words(cut, [*texts_in_many_scripts(500, seed=6), "", " ", "the-final--countdown", "--", "a-"])


def same_words(made: dict[str, Any], texts: Sequence[str]) -> None:
    asked = [json_of("pre_tokenizer", each) for each in made.values()]
    found = ask_node("preTokenize", preTokenizers=asked, texts=texts)["words"]
    for (name, pre_tokenizer), cut in zip(made.items(), found, strict=True):
        expected = [[name, *(word for word, _ in pre_tokenizer.pre_tokenize_str(text))] for text in texts]
        same(expected, [[name, *parts] for parts in cut], texts)


# Of published tokenizers, then what else the two kinds of regular expressions write differently.
PATTERNS = (
    LLAMA3,
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r" ?[^(\s|[.,!?…。，、।۔،])]+",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*",
    r"<\|end\|>|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    r"(?<=[a-z])(?=[A-Z])|(?<!\d)\.(?!\d)",
    r"\p{Han}+|[\p{Hiragana}\p{Katakana}]|\p{^L}{2}|\P{^N}+",
    r"(?i)'s|[^\s\p{L}\p{N}]+|[a-z]{2}|\p{L}",
    r"(?i:[k-t])|[[:punct:]]+|[[:alpha:]\d]{,3}x|[[:^space:]&&[^a-m]]",
    r"\bword\b|\B\w|\h{2}|[\h]",
    r"\Aa|^b|c$|\w\Z|\s\z|.\n",
    r"(?>a+)ab|a++|e{2}?|i{1,2}?|o{1,2}+|]|[]b]|[a-c-e]|\x41\x{42}|\u00e9|[\x00-\x1f]",
    r"(\p{L})+?|\p{N}*",
    "",
)


@pytest.mark.parametrize("number", range(len(PATTERNS)))
def test_regular_expressions_match_what_the_librarys_match(number: int) -> None:
    """Patterns of published tokenizers, and the rarer signs that are translated, cut texts where the library does."""
    from tokenizers import Regex
    from tokenizers import pre_tokenizers as p

    texts = [*texts_in_many_scripts(600, seed=3), "aaab aab ee eee iii ooo Word wordy\n\nb c\nABé"]
    same_words({PATTERNS[number]: p.Split(Regex(PATTERNS[number]), "isolated")}, texts)


def test_marks_of_the_first_word_stand_where_the_library_puts_them() -> None:
    """Whether a part is the first of a text holds through what was taken away, added and cut before it."""
    from tokenizers import AddedToken, Regex, Tokenizer, models
    from tokenizers import normalizers as n
    from tokenizers import pre_tokenizers as p

    before = [
        n.Strip(), n.Nmt(), n.NFD(), n.NFKC(), n.Prepend("…"), n.Replace(Regex(r"\s+"), "__"),
        n.Precompiled(_charsmap()), n.BertNormalizer(), n.Sequence([n.NFKD(), n.StripAccents(), n.NFC()]),
        n.Replace(Regex("^.|x"), ""),
    ]  # fmt: skip
    cutting = [p.Split(Regex(r"[\p{P}\p{M}…]"), "isolated"), p.Digits(), p.Split("", "isolated")]
    texts = [t[start:] for t in texts_in_many_scripts(120, seed=4) for start in (0, 1)]
    texts += [
        "\x01a",
        " a",
        "…a b",
        "\u0301a",
        "½ 3",
        "\r\na",
        "㍿ a",
        "x",
        "[MASK]a",
        "a[MASK] b",
        "\x01[MASK]x",
        "\u0958a",
    ]
    vocabulary = {chr(c): c for c in range(0x3000)} | {"<unk>": 0x3000}
    made = []
    for normalizer in before:
        for cut in cutting:
            tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
            tokenizer.normalizer = normalizer
            tokenizer.pre_tokenizer = p.Sequence([cut, p.Metaspace(prepend_scheme="first")])
            tokenizer.add_special_tokens([AddedToken("[MASK]", special=True)])
            made.append(tokenizer.to_str().encode())
    same_ids(made, texts, [{"max_length": 400}])


def test_models_of_the_first_versions_do_not_say_their_type() -> None:
    """A model without a type is read as what its other fields say."""
    untyped = []
    for name in ("cased_wordpiece", "gpt2", "unigram", "words"):
        tokenizer = json.loads(_trained(name))
        del tokenizer["model"]["type"]
        untyped.append(json.dumps(tokenizer).encode())
    same_ids(untyped, texts_in_many_scripts(40, seed=9), [{"max_length": 64}])


def test_scores_are_the_numbers_that_the_library_reads() -> None:
    """Where two ways to cut a text have nearly the same score, the library's rounding of what it reads decides."""
    pieces = [("<unk>", 0.0), ("a", -7.5560953793586005), ("b", -6.0), ("ab", -13.5560953793586)]
    tokenizer = json.loads(_trained("unigram"))
    tokenizer |= {"normalizer": None, "pre_tokenizer": None, "post_processor": None, "added_tokens": []}
    tokenizer["model"] = {"type": "Unigram", "unk_id": 0, "vocab": pieces, "byte_fallback": False}
    data = json.dumps(tokenizer).encode()
    assert pieces[1][1] + pieces[2][1] == pieces[3][1], "to Python, both ways have the same score"
    assert librarys_ids(data, ["ab"], {"max_length": 8}) == [[1, 2]]
    same_ids([data], ["ab", "aab", "bab", "b a"], [{"max_length": 8}])


def test_a_character_without_a_token_needs_none_where_a_longer_token_has_it() -> None:
    """A Unigram model without a token for what is unknown refuses only texts that need it."""
    tokenizer = json.loads(_trained("unigram"))
    tokenizer |= {"normalizer": None, "pre_tokenizer": None, "post_processor": None, "added_tokens": []}
    tokenizer["model"] = {
        "type": "Unigram",
        "unk_id": None,
        "vocab": [["a", -1.0], ["ab", -3.0]],
        "byte_fallback": False,
    }
    data = json.dumps(tokenizer).encode()
    ((found,),) = pages_ids([data], ["aab", "b"], [{"max_length": 8}])
    assert found[0] == librarys_ids(data, ["aab"], {"max_length": 8})[0] == [0, 1]
    assert "unk_id must be a token" in found[1]


# --- what cannot be had ---------------------------------------------------------------------------------------------


def changed(change: Callable[[dict[str, Any]], Any]) -> bytes:
    tokenizer = json.loads(_trained("words"))
    change(tokenizer)
    return json.dumps(tokenizer).encode()


def regex(pattern: str) -> Callable[[dict[str, Any]], None]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return lambda t: t.update(pre_tokenizer=split)


BPE = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"], "unk_token": None}
TEMPLATE = {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}], "special_tokens": {}}
TOKEN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
REFUSED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "version": (lambda t: t.update(version="2.0"), "must have the version 1.0, got 2.0"),
    "normalizer": (lambda t: t.update(normalizer={"type": "Odd"}), "the normalizer must be one of BertNormalizer, "),
    "pre-tokenizer": (lambda t: t.update(pre_tokenizer={"type": "UnicodeScripts"}), "got UnicodeScripts"),
    "model": (
        lambda t: t["model"].update(type="Odd"),
        "the model must be one of BPE, Unigram, WordLevel, WordPiece, got Odd",
    ),
    "post-processor": (lambda t: t.update(post_processor={"type": "Odd"}), "the post-processor must be one of"),
    "dropout": (
        lambda t: t.update(model=BPE | {"dropout": 0.1}),
        "dropout must be null, for ids that do not change, got 0.1",
    ),
    "merge": (lambda t: t.update(model=BPE | {"merges": ["a b c"]}), "with a space between, got a b c"),
    "merge of unknown": (lambda t: t.update(model=BPE | {"merges": [["b", "a"]]}), "must be in the vocabulary, got ba"),
    "unk_id": (
        lambda t: t.update(model={"type": "Unigram", "vocab": [["a", -1.0]], "unk_id": 1}),
        "the 1 tokens, got 1",
    ),
    "behavior": (
        lambda t: t.update(pre_tokenizer={"type": "Punctuation", "behavior": "Odd"}),
        "a known behavior, got Odd",
    ),
    "scheme": (
        lambda t: t.update(pre_tokenizer={"type": "Metaspace", "replacement": "_", "prepend_scheme": "odd"}),
        "prepend_scheme must be one of always, first, never, got odd",
    ),
    "pattern": (
        lambda t: t.update(normalizer={"type": "Replace", "pattern": {"Odd": ""}, "content": ""}),
        'must have a String or a Regex, got {"Odd":""}',
    ),
    "map": (lambda t: t.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "/wAAAA=="}), "got 4 bytes"),
    "template": (lambda t: t.update(post_processor=TEMPLATE | {"single": [{"SpecialToken": {"id": "x"}}]}), "got {"),
    "template of two": (lambda t: t.update(post_processor=TEMPLATE | {"single": [{"Sequence": {"id": "B"}}]}), "got {"),
    "two templates": (
        lambda t: t.update(post_processor={"type": "Sequence", "processors": [TEMPLATE, TEMPLATE]}),
        "must be the last that adds tokens",
    ),
    "added": (
        lambda t: t.update(added_tokens=[TOKEN | {"content": "ab", "id": 0}, TOKEN | {"content": "AB", "id": 1}]),
        "must differ once they are normalized, got two that are ab",
    ),
    "look behind": (regex(r"(?<=a++)b"), r"got an atomic group in a look behind in (?<=a++)b"),
    "back reference": (regex(r"(a)\1"), r"got \1 in (a)\1"),
    "options": (regex(r"a(?m)b"), "got (?m) in a(?m)b"),
    "letters of two": (regex(r"(?i:maSse)"), "got Ss in any case"),
    "case": (regex(r"(?i:ä)"), "got ä in any case"),
    "property": (regex(r"\p{Odd}"), r"got \p{Odd} in \p{Odd}"),
    "end": (regex(r"(a"), "got a missing ) in (a"),
    "bracket": (regex(r"[a"), "got an end too early in [a"),
    "nothing": (regex(r"*a"), "got * behind nothing in *a"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_known_is_refused_by_name(name: str) -> None:
    """A part that the page's tokenizer does not know is an error of one line that names it."""
    change, words_of_error = REFUSED[name]
    ((found,),) = pages_ids([changed(change)], ["a"], [{"max_length": 8}])
    assert isinstance(found, str), found
    assert words_of_error in found
    assert "\n" not in found


def test_settings_that_leave_no_room_or_make_no_sense_are_refused() -> None:
    """What `TextTokenizer` refuses, and settings that `TextPreprocessing` would not be made with, are errors."""
    data = _trained("xlm_roberta")
    tight = {"max_length": 3, "prefix": "a"}
    with pytest.raises(InputError, match="room for a text"):
        librarys_ids(data, ["a"], tight)
    ((found,),) = pages_ids([data], ["a"], [tight])
    assert "max_length must leave room for a text beside 2 special tokens and 2 of the prefix, got 3" in found
    usual = TextPreprocessing(tokenizer_sha256="0" * 64, max_length=8).to_json()
    odd = [("max_length", 0), ("max_characters", 1.5), ("truncation_side", "up"), ("prefix", None), ("lowercase", 1)]
    settings = [usual | {name: value} for name, value in odd]
    (said,) = ask_node("encode", tokenizers=[json.loads(data)], settings=settings, texts=["a"])["ids"]
    assert [
        isinstance(each, str) and f"{name} must be " in each for (name, _), each in zip(odd, said, strict=True)
    ] == [True] * len(odd), said


def test_half_a_surrogate_pair_is_refused_where_it_is_not_cut_off() -> None:
    """As in Python, the text that is left after cutting must be whole characters."""
    data, values = _trained("words"), {"max_length": 8, "max_characters": 3}
    texts = ["a\ud83d", "\ude00", "abc\ud83d", "\U0001f600bcd", "ab\U0001f600"]
    ((found,),) = pages_ids([data], texts, [values])
    assert all("half a surrogate pair" in said for said in found[:2]), found
    assert found[2:] == librarys_ids(data, texts[2:], values)
    with pytest.raises(InputError, match="half a surrogate pair"):
        librarys_ids(data, texts[:1], values)


@pytest.mark.target
def test_a_page_imports_the_tokenizer_and_gets_the_librarys_ids() -> None:
    """In Chromium, from files that a server sends, texts get the library's ids."""
    if find_chromium() is None:
        pytest.skip("the page is run in Chromium, which is not on this machine (nor named in FEATCACHE_CHROMIUM)")
    texts = texts_in_many_scripts(300, seed=5)
    tokenizers = [_trained(name) for name in ("cased_wordpiece", "llama3", "xlm_roberta")]
    settings = [TextPreprocessing(tokenizer_sha256="0" * 64, max_length=32).to_json()]
    asked = {"tokenizers": [json.loads(data) for data in tokenizers], "settings": settings, "texts": texts}
    with Browser({"assets": ASSETS.parent, "test": PAGE}) as browser:
        answer, _ = browser.call("test/tokenize.mjs", "encode", folder="../assets/tokenizer/", **asked)
    for data, (ids,) in zip(tokenizers, answer["ids"], strict=True):
        same(librarys_ids(data, texts, {"max_length": 32}), ids, texts)
