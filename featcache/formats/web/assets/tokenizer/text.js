// A text on its way to the model, and where in the original each part of it came from. Places are counted in UTF-16
// units. What is kept here of `tokenizers`' alignments is where a part begins: whether a text is the first of all.

const sizeAt = (text, at) => (text.codePointAt(at) > 0xffff ? 2 : 1);

export class Text {
  constructor(text, origins, start) {
    this.text = text;
    this.origins = origins; // of each unit
    this.start = start; // of this part in the original
  }

  static from(text) {
    return new Text(text, Array.from({ length: text.length }, (_, unit) => unit), 0);
  }

  slice(from, to) {
    return new Text(this.text.slice(from, to), this.origins.slice(from, to), this.origins[from]);
  }

  // Less at its ends, and still the same part of the original.
  strip(from, to) {
    return new Text(this.text.slice(from, to), this.origins.slice(from, to), this.start);
  }

  // Every character replaced by what `change` makes of it, a text of any length.
  map(change) {
    const origins = [];
    let text = "";
    let at = 0;
    for (const character of this.text) {
      const changed = change(character);
      for (let unit = 0; unit < changed.length; unit++) origins.push(this.origins[at]);
      text += changed;
      at += character.length;
    }
    return new Text(text, origins, this.start);
  }

  prepend(content) {
    if (this.text === "") return this;
    const origins = [...new Array(content.length).fill(this.origins[0]), ...this.origins];
    return new Text(content + this.text, origins, this.start);
  }

  // The matched spans replaced by a text.
  replace(spans, content) {
    const origins = [];
    let text = "";
    for (const { from, to, matched } of spans) {
      if (matched) {
        const origin = to === 0 ? this.start : this.origins[to - 1];
        for (let unit = 0; unit < content.length; unit++) origins.push(origin);
        text += content;
      } else {
        for (let at = from; at < to; at++) origins.push(this.origins[at]);
        text += this.text.slice(from, to);
      }
    }
    return new Text(text, origins, this.start);
  }

  // New characters with what changed at each: 0 where it replaces the next old one, 1 where it is added, -n where it
  // replaces the next one and n more after that.
  transform(changes) {
    const origins = [];
    let text = "";
    let at = 0;
    for (const [character, change] of changes) {
      const origin = change <= 0 ? this.origins[at] : at === 0 ? this.start : this.origins[at - 1];
      for (let skipped = change; skipped <= 0 && at < this.text.length; skipped++) at += sizeAt(this.text, at);
      for (let unit = 0; unit < character.length; unit++) origins.push(origin);
      text += character;
    }
    return new Text(text, origins, this.start);
  }

  // The parts that spans cut this into, by what becomes of the matched ones.
  split(spans, behavior) {
    return BEHAVIORS[behavior](spans).map(({ from, to }) => this.slice(from, to));
  }
}

const WHITE = /\p{White_Space}/u;

// The places where the white space at a place begins and ends.
export function whiteBefore(text, at) {
  while (at > 0 && WHITE.test(text[at - 1])) at--;
  return at;
}

export function whiteBehind(text, at) {
  while (at < text.length && WHITE.test(text[at])) at++;
  return at;
}

const isWithinPair = (text, at) => at > 0 && at < text.length && text.codePointAt(at - 1) > 0xffff;

// Return the spans of a text, those that a regular expression (with the flag g) matches and those between them.
export function spansOf(text, regex) {
  const spans = [];
  if (text === "") return spans;
  let last = 0; // end of the last span
  let matchedAt = -1; // end of the last match
  let at = 0;
  while (at <= text.length) {
    regex.lastIndex = at;
    const match = regex.exec(text);
    if (match === null) break;
    const from = match.index;
    const to = from + match[0].length;
    if (isWithinPair(text, from)) {
      at = from + 1; // engines look for empty matches there too
      continue;
    }
    if (from === to && to === matchedAt) {
      at = at < text.length ? at + sizeAt(text, at) : at + 1; // no empty match right behind another match
      continue;
    }
    if (last !== from) spans.push({ from: last, to: from, matched: false });
    spans.push({ from, to, matched: true });
    last = matchedAt = at = to;
  }
  if (last !== text.length) spans.push({ from: last, to: text.length, matched: false });
  return spans;
}

export const inverted = (spans) => spans.map((span) => ({ ...span, matched: !span.matched }));

// Spans joined to the one before them where `joins` says so, by whether each and the last before it matched.
function joined(spans, joins) {
  const parts = [];
  let before = false;
  for (const { from, to, matched } of spans) {
    if (parts.length > 0 && joins(matched, before)) {
      const last = parts[parts.length - 1];
      [last.from, last.to] = [Math.min(last.from, from), Math.max(last.to, to)];
    } else {
      parts.push({ from, to });
    }
    before = matched;
  }
  return parts;
}

const BEHAVIORS = {
  Removed: (spans) => spans.filter(({ matched }) => !matched),
  Isolated: (spans) => spans,
  Contiguous: (spans) => joined(spans, (matched, before) => matched === before),
  MergedWithPrevious: (spans) => joined(spans, (matched, before) => matched && !before),
  MergedWithNext: (spans) => joined([...spans].reverse(), (matched, before) => matched && !before).reverse(),
};

export const isBehavior = (name) => Object.hasOwn(BEHAVIORS, name);
