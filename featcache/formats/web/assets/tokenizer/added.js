// The tokens that are looked for in a text before all else, such as [MASK].

import { isSingleWord } from "./pretokenizers.js";
import { Text, whiteBefore, whiteBehind } from "./text.js";
import { Words } from "./words.js";

export class AddedTokens {
  constructor(tokens, model, normalize) {
    this.normalize = normalize;
    this.known = new Map();
    const byId = new Map();
    let next = model.size;
    for (const token of tokens) {
      if (token.content === "") continue;
      const id = this.known.get(token.content) ?? model.id(token.content) ?? next++;
      this.known.set(token.content, id);
      byId.set(id, token);
    }
    const all = [...byId].map(([id, token]) => ({ ...token, id }));
    const text = (token) => (token.normalized ? normalize(Text.from(token.content)).text : token.content);
    this.written = patterns(all.filter((token) => !token.normalized), text);
    this.normalized = patterns(all.filter((token) => token.normalized), text);
  }

  // Cut a text into parts that are normalized, each a `Text` with the id of a token, or null.
  extract(text) {
    return split(Text.from(text), this.written).flatMap(({ part, id }) =>
      id === null ? split(this.normalize(part), this.normalized) : [{ part, id }],
    );
  }
}

function patterns(tokens, text) {
  const entries = tokens.map((token) => [text(token), token]).filter(([content]) => content !== "");
  const words = new Words(entries);
  if (words.values.size < entries.length) {
    const [content] = entries.find(([each, token]) => words.get(each) !== token);
    throw new Error(`added tokens must differ once they are normalized, got two that are ${content}`);
  }
  return words;
}

function split(text, words) {
  return cuts(text.text, words)
    .map(({ from, to, id }) => ({ part: text.slice(from, to), id }))
    .filter(({ part }) => part.text !== "");
}

// The leftmost tokens, of those at one place the longest; a token that may not stand there hides others in it.
function cuts(text, words) {
  const found = [];
  let last = 0; // end of the last token, with the white space that it took
  for (let at = 0; at < text.length;) {
    const match = words.allAt(text, at).pop();
    if (match === undefined) {
      at++;
      continue;
    }
    const [end, token] = match;
    if (!token.single_word || isSingleWord(text, at, end)) {
      const from = token.lstrip ? Math.max(last, whiteBefore(text, at)) : at;
      const to = token.rstrip ? whiteBehind(text, end) : end;
      if (last < from) found.push({ from: last, to: from, id: null });
      found.push({ from, to, id: token.id });
      last = to;
    }
    at = end;
  }
  if (last !== text.length) found.push({ from: last, to: text.length, id: null });
  return found;
}
