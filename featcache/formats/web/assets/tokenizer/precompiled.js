// The characters' map of sentencepiece: a double array of UTF-8 bytes, then the replacements, a zero byte after each.

import { graphemes } from "./graphemes.js";

const WHOLE_GRAPHEME = 6; // bytes: only shorter ones are looked up as a whole

export function precompiled(charsmap) {
  const map = new CharactersMap(charsmap);
  return (text) => {
    const changes = [];
    let changed = false;
    const put = (part, replacement) => {
      changed ||= replacement !== null;
      if (replacement === null) changes.push([part, 0]);
      else pushReplaced(changes, [...part].length, [...replacement]);
    };
    for (const grapheme of graphemes(text.text)) {
      const isShort = grapheme.length < WHOLE_GRAPHEME && encoder.encode(grapheme).length < WHOLE_GRAPHEME;
      const whole = isShort ? map.replacement(grapheme) : null;
      if (whole !== null) put(grapheme, whole);
      else for (const character of grapheme) put(character, map.replacement(character));
    }
    return changed ? text.transform(changes) : text;
  };
}

const encoder = new TextEncoder();

// As many as there were replace them, more are added; where they are fewer, the last of all so far stands for the rest.
function pushReplaced(changes, before, characters) {
  for (const character of characters) changes.push([character, 0]);
  const more = characters.length - before;
  for (let i = 0; i < more; i++) changes[changes.length - 1 - i][1] = 1;
  if (more < 0 && changes.length > 0) changes[changes.length - 1][1] += more;
}

class CharactersMap {
  constructor(base64) {
    const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
    const view = new DataView(bytes.buffer);
    const units = bytes.length < 4 ? Infinity : Math.floor(view.getUint32(0, true) / 4);
    if (4 + 4 * units > bytes.length) {
      throw new Error(`a precompiled_charsmap must hold the array that it announces, got ${bytes.length} bytes`);
    }
    this.units = Uint32Array.from({ length: units }, (_, unit) => view.getUint32(4 + 4 * unit, true));
    this.texts = bytes.subarray(4 + 4 * units);
    this.known = new Map();
  }

  // What replaces a text, or null: the shortest of its beginnings that the map has decides for all of it.
  replacement(text) {
    if (!this.known.has(text)) {
      const at = this.find(encoder.encode(text));
      this.known.set(text, at === null ? null : this.textAt(at));
    }
    return this.known.get(text);
  }

  find(key) {
    let at = offset(this.units[0]);
    for (const byte of key) {
      if (byte === 0) return null;
      at ^= byte;
      const unit = this.units[at];
      if ((unit & 0x800000ff) >>> 0 !== byte) return null;
      at ^= offset(unit);
      if ((unit >>> 8) & 1) return this.units[at] & 0x7fffffff;
    }
    return null;
  }

  textAt(from) {
    const end = this.texts.indexOf(0, from);
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(this.texts.subarray(from, end < 0 ? undefined : end));
  }
}

const offset = (unit) => (unit >>> 10) << ((unit & 0x200) >>> 6);
