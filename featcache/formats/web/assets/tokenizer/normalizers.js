// What is done to a text before it is cut into words. Each normalizer is a function from `Text` to `Text`.

import { CLEANED, COMBINING_MARKS, INERT, NONSPACING_MARKS } from "./characters.js";
import { precompiled } from "./precompiled.js";
import { patternOf } from "./regex.js";
import { whiteBefore, whiteBehind } from "./text.js";

const KINDS = {
  BertNormalizer: bert,
  ByteLevel: () => toBytes,
  Lowercase: () => lowercase,
  NFC: () => (text) => normalizeForm(text, "NFC", "NFD"),
  NFD: () => (text) => normalizeForm(text, "NFD", "NFD"),
  NFKC: () => (text) => normalizeForm(text, "NFKC", "NFKD"),
  NFKD: () => (text) => normalizeForm(text, "NFKD", "NFKD"),
  Nmt: () => nmt,
  Precompiled: ({ precompiled_charsmap }) => precompiled(precompiled_charsmap),
  Prepend: ({ prepend }) => (text) => text.prepend(prepend),
  Replace: replace,
  Sequence: ({ normalizers }) => sequence(normalizers.map(makeNormalizer)),
  Strip: strip,
  StripAccents: () => without(IS_COMBINING),
};

export function makeNormalizer(json) {
  if (json === null || json === undefined) return (text) => text;
  if (!Object.hasOwn(KINDS, json.type)) {
    throw new Error(`the normalizer must be one of ${Object.keys(KINDS).join(", ")}, got ${json.type}`);
  }
  return KINDS[json.type](json);
}

export const sequence = (steps) => (text) => steps.reduce((done, step) => step(done), text);

// --- letters --------------------------------------------------------------------------------------------------------

// Capitals that came with Unicode 16 and 17: first, last, distance to the small letters.
const NEWER_CAPITALS = [
  [0x1c89, 0x1c89, 1], [0xa7cb, 0xa7cb, 0x264 - 0xa7cb], [0xa7cc, 0xa7cc, 1], [0xa7ce, 0xa7ce, 1], [0xa7d2, 0xa7d2, 1],
  [0xa7d4, 0xa7d4, 1], [0xa7da, 0xa7da, 1], [0xa7dc, 0xa7dc, 0x19b - 0xa7dc], [0x10d50, 0x10d65, 0x20],
  [0x16ea0, 0x16eb8, 0x1b],
];

// Each character alone, so that no sigma is a final one.
export const lowercase = (text) => text.map(lowercaseCharacter);

function lowercaseCharacter(character) {
  const code = character.codePointAt(0);
  const newer = NEWER_CAPITALS.find(([first, last]) => first <= code && code <= last);
  return newer === undefined ? character.toLowerCase() : String.fromCodePoint(code + newer[2]);
}

// --- bytes ----------------------------------------------------------------------------------------------------------

// Every byte as a visible character: itself where it is one in Latin-1, else one of those after U+0100.
const BYTE_CHARACTERS = [];
for (let byte = 0, hidden = 0; byte < 256; byte++) {
  const visible = (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte !== 0xad);
  BYTE_CHARACTERS.push(String.fromCharCode(visible ? byte : 0x100 + hidden++));
}

export const toBytes = (text) => text.map(bytesOf);

function bytesOf(character) {
  const code = character.codePointAt(0);
  if (code < 0x80) return BYTE_CHARACTERS[code];
  const rest = (shift) => BYTE_CHARACTERS[0x80 | ((code >> shift) & 0x3f)];
  if (code < 0x800) return BYTE_CHARACTERS[0xc0 | (code >> 6)] + rest(0);
  if (code < 0x10000) return BYTE_CHARACTERS[0xe0 | (code >> 12)] + rest(6) + rest(0);
  return BYTE_CHARACTERS[0xf0 | (code >> 18)] + rest(12) + rest(6) + rest(0);
}

// --- Unicode normalization ------------------------------------------------------------------------------------------

const BETWEEN_INERT = new RegExp(`[${INERT}]|[^${INERT}]+`, "gu");
const IS_INERT = new RegExp(`^[${INERT}]`, "u");

function normalizeForm(text, form, decomposition) {
  const changes = [];
  let changed = false;
  for (const [piece] of text.text.matchAll(BETWEEN_INERT)) {
    const normal = IS_INERT.test(piece) ? piece : piece.normalize(form);
    if (normal === piece) {
      for (const character of piece) changes.push([character, 0]);
    } else {
      changed = true;
      for (const change of changesOf(piece, normal, decomposition)) changes.push(change);
    }
  }
  return changed ? text.transform(changes) : text;
}

// Old and new text have the same decomposition: a new character replaces the old ones whose parts it is made of. Marks
// that change places are counted in their old order; it shows nowhere unless a text is cut between a letter and them.
function changesOf(piece, normal, decomposition) {
  const parts = []; // of the decomposition: 0 for the first of an old character, 1 for each other
  for (const character of piece) {
    const size = [...character.normalize(decomposition)].length;
    for (let part = 0; part < size; part++) parts.push(part === 0 ? 0 : 1);
  }
  let at = 0;
  return Array.from(normal, (character) => {
    const size = [...character.normalize(decomposition)].length;
    let change = 1 - size;
    for (const end = at + size; at < end; at++) change += parts[at];
    return [character, change];
  });
}

// --- BERT -----------------------------------------------------------------------------------------------------------

const IS_CLEANED = new RegExp(`[${CLEANED}]`, "u");
const IS_NONSPACING = new RegExp(`[${NONSPACING_MARKS}]`, "u");
const IS_COMBINING = new RegExp(`[${COMBINING_MARKS}]`, "u");
const WHITE_SPACE = /\p{White_Space}/u;
const CHINESE = new RegExp(
  "[\\u4e00-\\u9fff\\u3400-\\u4dbf\\u{20000}-\\u{2a6df}\\u{2a700}-\\u{2b81f}\\u{2b920}-\\u{2ceaf}" +
    "\\uf900-\\ufaff\\u{2f800}-\\u{2fa1f}]",
  "u",
);

const without = (set) => (text) => text.map((character) => (set.test(character) ? "" : character));

function bert({ clean_text, handle_chinese_chars, strip_accents, lowercase: lower }) {
  const steps = [];
  if (clean_text) {
    steps.push(without(IS_CLEANED), (text) => text.map((character) => (WHITE_SPACE.test(character) ? " " : character)));
  }
  if (handle_chinese_chars) {
    steps.push((text) => text.map((character) => (CHINESE.test(character) ? ` ${character} ` : character)));
  }
  if (strip_accents ?? lower) steps.push(KINDS.NFD(), without(IS_NONSPACING));
  if (lower) steps.push(lowercase);
  return sequence(steps);
}

// --- others ---------------------------------------------------------------------------------------------------------

function strip({ strip_left, strip_right }) {
  return (text) => {
    const from = strip_left ? whiteBehind(text.text, 0) : 0;
    const to = strip_right ? whiteBefore(text.text, text.text.length) : text.text.length;
    return text.strip(from, Math.max(from, to));
  };
}

function replace({ pattern, content }) {
  const spans = patternOf(pattern);
  return (text) => text.replace(spans(text.text), content);
}

const NMT_REMOVED = /[\x01-\x08\x0b\x0e-\x1f\x7f\x8f\x9f]/;
const NMT_SPACE = /[\t\n\f\r\u1680\u200b-\u200f\u2028\u2029\u2581\ufeff\ufffd]/;

const nmt = sequence([
  without(NMT_REMOVED),
  (text) => text.map((character) => (NMT_SPACE.test(character) ? " " : character)),
]);
