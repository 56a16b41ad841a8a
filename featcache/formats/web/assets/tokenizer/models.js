// From a word to the ids of its tokens. Each model has `size`, how many tokens it knows, `id` of a token, and `encode`.

import { BytePairs } from "./bpe.js";
import { Unigram } from "./unigram.js";

export function makeModel(json) {
  const kind = json?.type ?? untyped(json);
  if (!Object.hasOwn(KINDS, kind)) {
    throw new Error(`the model must be one of ${Object.keys(KINDS).join(", ")}, got ${kind}`);
  }
  return new KINDS[kind](json);
}

// Files of the first versions do not say it.
function untyped(json) {
  if (json?.merges !== undefined) return "BPE";
  if (json?.continuing_subword_prefix !== undefined) return "WordPiece";
  if (json?.unk_token !== undefined) return "WordLevel";
  return Array.isArray(json?.vocab) ? "Unigram" : undefined;
}

class WordLevel {
  constructor({ vocab, unk_token }) {
    this.vocabulary = new Map(Object.entries(vocab));
    this.size = this.vocabulary.size;
    this.unknown = unk_token;
  }

  id(token) {
    return this.vocabulary.get(token);
  }

  encode(word) {
    return [this.id(word) ?? this.unknownId()];
  }

  unknownId() {
    const id = this.id(this.unknown);
    if (id === undefined) throw new Error(`the token for unknown words must be in the vocabulary, got ${this.unknown}`);
    return id;
  }
}

class WordPiece extends WordLevel {
  constructor(json) {
    super(json);
    this.prefix = json.continuing_subword_prefix;
    this.longest = json.max_input_chars_per_word;
  }

  // The longest token that the word begins with, then the longest that the rest begins with, and so on.
  encode(word) {
    const characters = [...word];
    if (characters.length > this.longest) return [this.unknownId()];
    const ids = [];
    for (let from = 0; from < characters.length;) {
      let to = characters.length;
      let id;
      for (; to > from; to--) {
        id = this.id((from > 0 ? this.prefix : "") + characters.slice(from, to).join(""));
        if (id !== undefined) break;
      }
      if (id === undefined) return [this.unknownId()];
      ids.push(id);
      from = to;
    }
    return ids;
  }
}

const KINDS = { BPE: BytePairs, Unigram, WordLevel, WordPiece };
