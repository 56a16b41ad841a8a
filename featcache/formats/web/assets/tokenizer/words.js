// Words with their values, to be found by their text or at a place of a longer one.

export class Words {
  constructor(entries) {
    this.values = new Map(entries);
    this.longest = new Map(); // by first unit: of the words that begin with it, the length
    for (const word of this.values.keys()) {
      if (word !== "") this.longest.set(word[0], Math.max(this.longest.get(word[0]) ?? 0, word.length));
    }
  }

  get(word) {
    return this.values.get(word);
  }

  // [end, value] of each word that the text has at a place, the shortest first.
  allAt(text, from) {
    const found = [];
    const end = Math.min(text.length, from + (this.longest.get(text[from]) ?? 0));
    for (let to = from + 1; to <= end; to++) {
      const value = this.values.get(text.slice(from, to));
      if (value !== undefined) found.push([to, value]);
    }
    return found;
  }
}
