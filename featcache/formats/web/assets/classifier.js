// The classifier of this folder: model.onnx, run by onnxruntime-web from ./ort, with the preprocessing of model.json.
// Nothing is fetched from anywhere but this folder.

import * as ort from "./ort/ort.wasm.bundle.min.mjs";
import { Input } from "./input.js";

const HERE = new URL("./", import.meta.url);

// Threads need SharedArrayBuffer, which a page has only where its server isolates it; the file runs without.
ort.env.wasm.numThreads = globalThis.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;
ort.env.wasm.wasmPaths = { wasm: new URL("ort/ort-wasm-simd-threaded.wasm", HERE).href };
ort.env.logLevel = "error";

export class Classifier {
  constructor(session, description, input) {
    this.session = session;
    this.description = description;
    this.input = input;
  }

  // Return the classifier, loaded; `folder`: where model.json and model.onnx are.
  static async load(folder = HERE) {
    const answers = await Promise.all(["model.json", "model.onnx"].map((name) => fetch(new URL(name, folder))));
    for (const answer of answers) {
      if (!answer.ok) throw new Error(`${answer.url} must be there, the server says ${answer.status}`);
    }
    const [description, model] = [await answers[0].json(), await answers[1].arrayBuffer()];
    const session = await ort.InferenceSession.create(new Uint8Array(model), { executionProviders: ["wasm"] });
    return new Classifier(session, description, await Input.load(description, folder));
  }

  // Return the logits (count * classes) of `count` inputs of the network, one after another, as bytes.
  async logits(bytes, count = 1) {
    const results = await this.session.run(this.input.feeds(ort, bytes, count), ["logits"]);
    const logits = Float32Array.from(results.logits.data);
    results.logits.dispose();
    return logits;
  }

  // Return {label, unknown, entries: [{label, value}], milliseconds} of what `Input.prepare` takes, likeliest first.
  async classify(source) {
    const bytes = await this.input.prepare(source);
    const start = performance.now();
    const logits = await this.logits(bytes);
    return { ...this.describe(logits), milliseconds: performance.now() - start };
  }

  describe(logits) {
    const { labels, task, unknown } = this.description;
    const values = task === "regression" ? [...logits] : task === "multilabel" ? sigmoid(logits) : softmax(logits);
    const entries = labels.map((label, index) => ({ label, value: values[index] }));
    if (task !== "regression") entries.sort((a, b) => b.value - a.value);
    return {
      label: task === "regression" ? null : entries[0].label,
      unknown: unknown !== null && knownScore(logits, unknown.score) < unknown.threshold,
      entries,
    };
  }
}

function softmax(logits) {
  const top = Math.max(...logits);
  const powers = Array.from(logits, (value) => Math.exp(value - top));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((value) => value / sum);
}

function sigmoid(logits) {
  return Array.from(logits, (value) => 1 / (1 + Math.exp(-value)));
}

// Larger for images that look more like a known class.
function knownScore(logits, score) {
  const ordered = [...logits].sort((a, b) => b - a);
  const logSum = Math.log(ordered.reduce((sum, value) => sum + Math.exp(value - ordered[0]), 0));
  if (score === "max_logit") return ordered[0];
  if (score === "margin") return ordered[0] - ordered[1];
  if (score === "energy") return ordered[0] + logSum;
  return Math.exp(-logSum);
}
