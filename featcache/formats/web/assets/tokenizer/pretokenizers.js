// What cuts a normalized text into words. Each pre-tokenizer is a function from a `Text` to its parts.

import { NEWER_NUMBERS, PUNCTUATION } from "./characters.js";
import { toBytes } from "./normalizers.js";
import { asKnown, patternOf, regexSpans, translate } from "./regex.js";
import { inverted, isBehavior, spansOf } from "./text.js";

const KINDS = {
  BertPreTokenizer: () => sequence([splitter(white, "Removed"), splitter(punctuation, "Isolated")]),
  ByteLevel: byteLevel,
  CharDelimiterSplit: ({ delimiter }) => splitter(patternOf({ String: delimiter }), "Removed"),
  Digits: ({ individual_digits }) => splitter(numbers, individual_digits ? "Isolated" : "Contiguous"),
  Metaspace: metaspace,
  Punctuation: ({ behavior = "Isolated" }) => splitter(punctuation, behavior),
  Sequence: ({ pretokenizers }) => sequence(pretokenizers.map(makePreTokenizer)),
  Split: ({ pattern, behavior, invert }) => {
    const spans = patternOf(pattern);
    return splitter(invert ? (text) => inverted(spans(text)) : spans, behavior);
  },
  Whitespace: () => splitter((text) => inverted(words(text)), "Removed"),
  WhitespaceSplit: () => splitter(white, "Removed"),
};

export function makePreTokenizer(json) {
  if (json === null || json === undefined) return (text) => [text];
  if (!Object.hasOwn(KINDS, json.type)) {
    throw new Error(`the pre-tokenizer must be one of ${Object.keys(KINDS).join(", ")}, got ${json.type}`);
  }
  return KINDS[json.type](json);
}

const sequence = (steps) => (text) =>
  steps.reduce((parts, step) => parts.flatMap(step).filter((part) => part.text !== ""), [text]);

function splitter(spans, behavior) {
  if (!isBehavior(behavior)) throw new Error(`what becomes of a delimiter must be a known behavior, got ${behavior}`);
  return (text) => text.split(spans(text.text), behavior);
}

const IS_WHITE = /\p{White_Space}/gu;
const IS_PUNCTUATION = new RegExp(`[${PUNCTUATION}]`, "gu");
const white = (text) => spansOf(text, IS_WHITE);
const punctuation = (text) => spansOf(text, IS_PUNCTUATION);

const IS_NUMBER = new RegExp(`[\\p{N}${NEWER_NUMBERS}]`, "gu");
const numbers = (text) => spansOf(text, IS_NUMBER);

const WORD = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}";
const words = regexSpans(new RegExp(`[${WORD}]+|[^${WORD}\\p{White_Space}]+`, "gu"));
const ENDS_WITH_WORD = new RegExp(`[${WORD}]$`, "u");
const STARTS_WITH_WORD = new RegExp(`^[${WORD}]`, "u");

// Whether a part of a text has no letter of a word right before or behind it.
export const isSingleWord = (text, from, to) =>
  !ENDS_WITH_WORD.test(asKnown(text.slice(Math.max(0, from - 2), from))) &&
  !STARTS_WITH_WORD.test(asKnown(text.slice(to, to + 2)));

const GPT2 = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

function byteLevel({ add_prefix_space, use_regex = true }) {
  const spans = use_regex ? regexSpans(translate(GPT2)) : null;
  return (text) => {
    const begun = add_prefix_space && !text.text.startsWith(" ") ? text.prepend(" ") : text;
    const parts = spans === null ? [begun] : begun.split(spans(begun.text), "Isolated");
    return parts.map(toBytes);
  };
}

const SCHEMES = ["always", "first", "never"];

function metaspace({ replacement, prepend_scheme = "always", add_prefix_space, split }) {
  if (!SCHEMES.includes(prepend_scheme)) {
    throw new Error(`prepend_scheme must be one of ${SCHEMES.join(", ")}, got ${prepend_scheme}`);
  }
  if (add_prefix_space === false && prepend_scheme !== "never") {
    throw new Error(`prepend_scheme must be never where add_prefix_space is false, got ${prepend_scheme}`);
  }
  const spaces = patternOf({ String: " " });
  const spans = patternOf({ String: replacement });
  return (text) => {
    let marked = text.replace(spaces(text.text), replacement);
    const prepends = prepend_scheme === "always" || (prepend_scheme === "first" && marked.start === 0);
    if (prepends && !marked.text.startsWith(replacement)) marked = marked.prepend(replacement);
    return split ?? true ? marked.split(spans(marked.text), "MergedWithNext") : [marked];
  };
}
