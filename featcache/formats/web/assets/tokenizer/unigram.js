// The unigram model: of all ways to cut a text into tokens, the one whose scores add up to most.

import { byteIds } from "./bpe.js";
import { Words } from "./words.js";

const UNKNOWN_PENALTY = 10;

export class Unigram {
  constructor({ vocab, unk_id = null, byte_fallback = false }) {
    if (unk_id !== null && unk_id >= vocab.length) {
      throw new Error(`unk_id must be one of the ${vocab.length} tokens, got ${unk_id}`);
    }
    this.size = vocab.length;
    this.unknown = unk_id;
    this.fallsBackToBytes = byte_fallback;
    this.scores = Float64Array.from(vocab, ([, score]) => asRead(score));
    this.words = new Words(vocab.map(([token], id) => [token, id]));
    this.unknownScore = this.scores.reduce((least, score) => Math.min(least, score), Infinity) - UNKNOWN_PENALTY;
  }

  id(token) {
    return this.words.get(token);
  }

  encode(text) {
    return this.cut(text).flatMap((piece) => {
      const id = this.id(piece);
      if (id !== undefined) return [id];
      const bytes = this.fallsBackToBytes ? byteIds(piece, (byte) => this.id(byte)) : null;
      return bytes ?? [this.unknownId()];
    });
  }

  unknownId() {
    if (this.unknown === null) throw new Error("unk_id must be a token where a text has unknown characters, got null");
    return this.unknown;
  }

  // The best pieces, neighbouring unknown ones as one.
  cut(text) {
    const best = new Array(text.length + 1); // way to each place: its score, where its last piece begins, that one's id
    best[0] = { score: 0, from: 0, id: -1 };
    const offer = (from, to, id, score) => {
      const sum = score + best[from].score;
      if (best[to] === undefined || sum > best[to].score) best[to] = { score: sum, from, id: id ?? this.unknownId() };
    };
    for (let from = 0; from < text.length;) {
      const single = from + (text.codePointAt(from) > 0xffff ? 2 : 1);
      let isKnown = false;
      for (const [to, id] of this.words.allAt(text, from)) {
        offer(from, to, id, this.scores[id]);
        isKnown ||= to === single;
      }
      if (!isKnown) offer(from, single, null, this.unknownScore);
      from = single;
    }
    const pieces = [];
    let wasUnknown = false;
    for (let to = text.length; to > 0; to = best[to].from) {
      const piece = text.slice(best[to].from, to);
      const isUnknown = best[to].id === this.unknown;
      if (isUnknown && wasUnknown) pieces.push(piece + pieces.pop());
      else pieces.push(piece);
      wasUnknown = isUnknown;
    }
    return pieces.reverse();
  }
}

// The number that the library reads: its digits as a whole number, then a power of ten, each rounded.
function asRead(score) {
  const [, sign, whole, fraction = "", exponent = "0"] = String(score).match(/^(-?)(\d+)(?:\.(\d+))?(?:e([+-]\d+))?$/);
  const power = Number(exponent) - fraction.length;
  const digits = Number(whole + fraction);
  const value = power < 0 ? digits / Number(`1e${-power}`) : digits * Number(`1e${power}`);
  return sign === "-" ? -value : value;
}
