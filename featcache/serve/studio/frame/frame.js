// The bundle's own classifier, in a frame that can reach nothing else: it is handed images or texts and hands back what it says.

const loading = import("./bundle/classifier.js").then(({ Classifier }) => Classifier.load());
const tell = (values) => parent.postMessage(values, "*"); // to the studio's page alone: no other may frame this one

addEventListener("message", async ({ source, data: { number, input } }) => {
  if (source !== parent) return;
  try {
    tell({ number, found: await (await loading).classify(input) });
  } catch (error) {
    tell({ number, error: String(error.message ?? error) });
  }
});
loading.then(() => tell({ ready: true }), (error) => tell({ ready: false, error: String(error.message ?? error) }));
