// The special tokens around a text. Each post-processor has `added`, how many it adds, and `process`.

const KINDS = {
  BertProcessing: ({ cls, sep }) => around([cls[1]], [sep[1]]),
  ByteLevel: () => NOTHING,
  RobertaProcessing: ({ cls, sep }) => around([cls[1]], [sep[1]]),
  Sequence: sequence,
  TemplateProcessing: template,
};
const NOTHING = { added: 0, process: (ids) => ids };

export function makePostProcessor(json) {
  if (json === null || json === undefined) return NOTHING;
  if (!Object.hasOwn(KINDS, json.type)) {
    throw new Error(`the post-processor must be one of ${Object.keys(KINDS).join(", ")}, got ${json.type}`);
  }
  return KINDS[json.type](json);
}

function around(before, after) {
  return { added: before.length + after.length, process: (ids) => [...before, ...ids, ...after] };
}

function template({ single, special_tokens }) {
  const pieces = single.map((piece) => {
    if (piece.Sequence?.id === "A") return null; // the text
    const special = special_tokens[piece.SpecialToken?.id];
    if (special === undefined) {
      throw new Error(`a template must be made of the text A and known special tokens, got ${JSON.stringify(piece)}`);
    }
    return special.ids;
  });
  return {
    added: pieces.reduce((sum, piece) => sum + (piece?.length ?? 0), 0),
    process: (ids) => pieces.flatMap((piece) => piece ?? ids),
    ends: true,
  };
}

function sequence({ processors }) {
  const steps = processors.map(makePostProcessor);
  // behind a template the library has several texts, of which others make something else
  const ended = steps.findIndex(({ ends }) => ends);
  if (ended >= 0 && steps.slice(ended + 1).some((step) => step !== NOTHING)) {
    throw new Error("a TemplateProcessing must be the last that adds tokens, got another behind it");
  }
  return {
    added: steps.reduce((sum, { added }) => sum + added, 0),
    process: (ids) => steps.reduce((done, { process }) => process(done), ids),
    ends: ended >= 0,
  };
}
