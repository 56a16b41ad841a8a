// What a reader takes for one character, as the browser has it.

const WINDOW = 256; // units: the time that a browser takes for a long text grows with its square

export function* graphemes(text) {
  if (Intl.Segmenter === undefined) throw new Error("the browser must have Intl.Segmenter for this tokenizer");
  const segmenter = new Intl.Segmenter("en", { granularity: "grapheme" });
  let size = WINDOW;
  for (let at = 0; at < text.length;) {
    const found = Array.from(segmenter.segment(text.slice(at, at + size)), ({ segment }) => segment);
    const isEnd = at + size >= text.length;
    if (!isEnd) found.pop(); // it may go on
    size = found.length === 0 ? 2 * size : WINDOW;
    for (const each of found) {
      at += each.length;
      yield each;
    }
  }
}
