// Byte pair encoding: a word's characters, of which the neighbours that were learnt first are joined first.

const encoder = new TextEncoder();

// The tokens that stand for the bytes of a text, or null where one of them is none.
export function byteIds(text, id) {
  const ids = [];
  for (const byte of encoder.encode(text)) {
    const found = id(`<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`);
    if (found === undefined) return null;
    ids.push(found);
  }
  return ids;
}

export class BytePairs {
  constructor(json) {
    if (json.dropout) throw new Error(`dropout must be null, for ids that do not change, got ${json.dropout}`);
    this.vocabulary = new Map(Object.entries(json.vocab));
    this.size = this.vocabulary.size;
    this.unknown = json.unk_token ?? null;
    this.prefix = json.continuing_subword_prefix ?? "";
    this.suffix = json.end_of_word_suffix ?? "";
    this.fusesUnknown = json.fuse_unk ?? false;
    this.fallsBackToBytes = json.byte_fallback ?? false;
    this.ignoresMerges = json.ignore_merges ?? false;
    this.base = 1 + [...this.vocabulary.values()].reduce((most, id) => Math.max(most, id), 0);
    this.merges = new Map(); // from a pair to its rank and what it becomes
    pairsOf(json.merges).forEach(([left, right], rank) => this.learn(left, right, rank));
  }

  learn(left, right, rank) {
    const joined = left + right.slice(this.prefix.length);
    const missing = [left, right, joined].find((token) => !this.vocabulary.has(token));
    if (missing !== undefined) throw new Error(`tokens that merges name must be in the vocabulary, got ${missing}`);
    this.merges.set(this.key(this.id(left), this.id(right)), { rank, id: this.id(joined) });
  }

  key(left, right) {
    return left * this.base + right;
  }

  id(token) {
    return this.vocabulary.get(token);
  }

  encode(word) {
    if (this.ignoresMerges && this.vocabulary.has(word)) return [this.id(word)];
    return this.join(this.symbols(word));
  }

  // The ids of the characters. An unknown one is put down when the next known one comes, behind bytes that come before
  // that, as the library does.
  symbols(word) {
    const ids = [];
    let pending = null;
    const characters = [...word];
    characters.forEach((character, at) => {
      const token = (at > 0 ? this.prefix : "") + character + (at === characters.length - 1 ? this.suffix : "");
      const id = this.id(token);
      const bytes = id === undefined && this.fallsBackToBytes ? byteIds(token, (byte) => this.id(byte)) : null;
      if (id !== undefined) {
        if (pending !== null) ids.push(pending);
        pending = null;
        ids.push(id);
      } else if (bytes !== null) {
        ids.push(...bytes);
      } else if (this.unknown !== null) {
        if (pending !== null && !this.fusesUnknown) ids.push(pending);
        pending = this.unknownId();
      }
    });
    if (pending !== null) ids.push(pending);
    return ids;
  }

  unknownId() {
    const id = this.id(this.unknown);
    if (id === undefined) throw new Error(`the token for unknown words must be in the vocabulary, got ${this.unknown}`);
    return id;
  }

  join(ids) {
    const next = ids.map((_, at) => (at + 1 < ids.length ? at + 1 : -1));
    const previous = ids.map((_, at) => at - 1);
    const gone = new Uint8Array(ids.length);
    const queue = new Queue();
    const offer = (at) => {
      if (at < 0 || next[at] < 0) return;
      const merge = this.merges.get(this.key(ids[at], ids[next[at]]));
      if (merge !== undefined) queue.push({ at, ...merge });
    };
    ids.forEach((_, at) => offer(at));
    for (let best = queue.pop(); best !== undefined; best = queue.pop()) {
      const { at } = best;
      const right = next[at];
      if (gone[at] || right < 0) continue;
      if (this.merges.get(this.key(ids[at], ids[right]))?.id !== best.id) continue; // one of them was joined already
      ids[at] = best.id;
      gone[right] = 1;
      next[at] = next[right];
      if (next[at] >= 0) previous[next[at]] = at;
      offer(previous[at]);
      offer(at);
    }
    return ids.filter((_, at) => !gone[at]);
  }
}

function pairsOf(merges) {
  if (merges.every((merge) => Array.isArray(merge))) return merges;
  return merges
    .filter((line) => !line.startsWith("#version"))
    .map((line) => {
      const pair = line.split(" ");
      if (pair.length !== 2) throw new Error(`a merge must be two tokens with a space between, got ${line}`);
      return pair;
    });
}

// A heap of merges: the lowest rank first, of the same rank the leftmost.
class Queue {
  constructor() {
    this.heap = [];
  }

  push(merge) {
    const heap = this.heap;
    let at = heap.length;
    for (let up = (at - 1) >> 1; at > 0 && before(merge, heap[up]); up = (at - 1) >> 1) {
      heap[at] = heap[up];
      at = up;
    }
    heap[at] = merge;
  }

  pop() {
    const heap = this.heap;
    const top = heap[0];
    const last = heap.pop();
    if (heap.length === 0) return top;
    let at = 0;
    for (;;) {
      let down = 2 * at + 1;
      if (down + 1 < heap.length && before(heap[down + 1], heap[down])) down++;
      if (down >= heap.length || !before(heap[down], last)) break;
      heap[at] = heap[down];
      at = down;
    }
    heap[at] = last;
    return top;
  }
}

const before = (one, other) => one.rank < other.rank || (one.rank === other.rank && one.at < other.at);
