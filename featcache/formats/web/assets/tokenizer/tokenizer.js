// Texts as token ids: a tokenizer.json with what a model's preprocessing says of length, prefix and case. The ids are
// those of the library `tokenizers`.

import { AddedTokens } from "./added.js";
import { makeModel } from "./models.js";
import { lowercase, makeNormalizer, sequence } from "./normalizers.js";
import { makePostProcessor } from "./postprocessors.js";
import { makePreTokenizer } from "./pretokenizers.js";

const VERSION = "1.0";
const SIDES = ["left", "right"];

export class Tokenizer {
  // `json` is what tokenizer.json holds, `preprocessing` has max_length, truncation_side, max_characters, prefix and
  // lowercase.
  constructor(json, preprocessing) {
    if (json?.version !== VERSION) {
      throw new Error(`a tokenizer.json must have the version ${VERSION}, got ${json?.version}`);
    }
    this.preprocessing = checked(preprocessing);
    const { max_length, prefix, lowercase: lower } = preprocessing;
    const normalizer = makeNormalizer(json.normalizer);
    this.preTokenize = makePreTokenizer(json.pre_tokenizer);
    this.model = makeModel(json.model);
    this.postProcessor = makePostProcessor(json.post_processor);
    const added = (normalize) => new AddedTokens(json.added_tokens ?? [], this.model, normalize);
    const asWritten = added(normalizer);
    this.added = lower ? added(sequence([lowercase, normalizer])) : asWritten;
    const special = this.postProcessor.added;
    const prefixed = this.tokens(prefix, asWritten, Infinity).length; // counted in its own case
    if (max_length <= special + prefixed) {
      const beside = `${special} special tokens and ${prefixed} of the prefix`;
      throw new Error(`max_length must leave room for a text beside ${beside}, got ${max_length}`);
    }
  }

  // Return the ids of a text, special tokens included, one to max_length of them.
  encode(text) {
    if (typeof text !== "string") throw new Error(`a text must be a string, got ${typeof text}`);
    const { max_length, truncation_side, max_characters, prefix } = this.preprocessing;
    const cut = keep(text, max_characters, truncation_side);
    requireWhole(cut);
    const room = max_length - this.postProcessor.added;
    return this.postProcessor.process(this.tokens(prefix + cut, this.added, room));
  }

  // At most `room` ids, those on the side that is kept: no more of the text is looked at than they need.
  tokens(text, added, room) {
    const fromLeft = this.preprocessing.truncation_side === "right";
    const parts = added.extract(text).flatMap(({ part, id }) =>
      id === null ? this.preTokenize(part).filter((word) => word.text !== "").map((word) => ({ word })) : [{ id }],
    );
    const pieces = [];
    let count = 0;
    for (let i = 0; i < parts.length && count < room; i++) {
      const { word, id } = parts[fromLeft ? i : parts.length - 1 - i];
      const ids = word === undefined ? [id] : this.model.encode(word.text);
      pieces.push(ids);
      count += ids.length;
    }
    const ids = (fromLeft ? pieces : pieces.reverse()).flat();
    return fromLeft ? ids.slice(0, room) : ids.slice(Math.max(0, ids.length - room));
  }
}

function checked(preprocessing) {
  const { max_length, truncation_side, max_characters, prefix, lowercase: lower } = preprocessing;
  for (const [name, value] of Object.entries({ max_length, max_characters })) {
    if (!Number.isInteger(value) || value < 1) throw new Error(`${name} must be a whole number above 0, got ${value}`);
  }
  if (!SIDES.includes(truncation_side)) {
    throw new Error(`truncation_side must be ${SIDES.join(" or ")}, got ${truncation_side}`);
  }
  if (typeof prefix !== "string") throw new Error(`prefix must be a text, got ${prefix}`);
  requireWhole(prefix);
  if (typeof lower !== "boolean") throw new Error(`lowercase must be true or false, got ${lower}`);
  return preprocessing;
}

function requireWhole(text) {
  if (/\p{Surrogate}/u.test(text)) throw new Error("a text must be whole characters, got half a surrogate pair");
}

// At most `most` code points of a text: its beginning where the right side is cut off, else its end.
function keep(text, most, side) {
  if (text.length <= most) return text;
  const characters = [...text];
  return (side === "right" ? characters.slice(0, most) : characters.slice(-most)).join("");
}
