// Texts before the network: token ids, by the tokenizer that lies beside the model.

import { Tokenizer } from "./tokenizer/tokenizer.js";

export class Input {
  constructor(tokenizer) {
    this.tokenizer = tokenizer;
  }

  static async load(description, folder) {
    const answer = await fetch(new URL("tokenizer.json", folder));
    if (!answer.ok) throw new Error(`${answer.url} must be there, the server says ${answer.status}`);
    return new Input(new Tokenizer(await answer.json(), description.preprocessing));
  }

  // Return the ids, eight bytes each, of a text or of a file (a Blob) of one, which must be UTF-8 and not empty.
  async prepare(source) {
    const bytes = source instanceof Blob ? await source.arrayBuffer() : new TextEncoder().encode(source);
    const text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    if (text.trim() === "") throw new Error("the text is empty");
    return new Uint8Array(BigInt64Array.from(this.tokenizer.encode(text), BigInt).buffer);
  }

  feeds(ort, bytes, count) {
    const ids = new BigInt64Array(bytes.slice().buffer);
    return { input_ids: new ort.Tensor("int64", ids, [count, ids.length / count]) };
  }
}
