// What the page's tokenizer makes of texts, asked in a browser or by node. `folder` is where it lies, as a URL.

const part = (folder, name) => import(new URL(name, new URL(folder, import.meta.url)));

function caught(work) {
  try {
    return work();
  } catch (error) {
    return `${error.name}: ${error.message}`;
  }
}

// The ids of each text, by each tokenizer with each of the settings; where something fails, what it says.
export async function encode({ folder, tokenizers, settings, texts }) {
  const { Tokenizer } = await part(folder, "tokenizer.js");
  const ids = (tokenizer, preprocessing) =>
    caught(() => {
      const made = new Tokenizer(tokenizer, preprocessing);
      return texts.map((text) => caught(() => made.encode(text)));
    });
  return { ids: tokenizers.map((tokenizer) => settings.map((preprocessing) => ids(tokenizer, preprocessing))) };
}

export async function normalize({ folder, normalizers, texts }) {
  const { makeNormalizer } = await part(folder, "normalizers.js");
  const { Text } = await part(folder, "text.js");
  const made = normalizers.map(makeNormalizer);
  return { texts: made.map((normalizer) => texts.map((text) => normalizer(Text.from(text)).text)) };
}

export async function preTokenize({ folder, preTokenizers, texts }) {
  const { makePreTokenizer } = await part(folder, "pretokenizers.js");
  const { Text } = await part(folder, "text.js");
  const words = (parts) => parts.map(({ text }) => text).filter((text) => text !== "");
  const made = preTokenizers.map(makePreTokenizer);
  return { words: made.map((preTokenizer) => texts.map((text) => words(preTokenizer(Text.from(text))))) };
}
