// The classifier of a bundle's web/ folder, asked for what a device file is asked for.

import { Classifier } from "../web/classifier.js";

let classifier = null;

export async function load() {
  classifier = await Classifier.load();
  return { agent: navigator.userAgent, threads: globalThis.crossOriginIsolated ? navigator.hardwareConcurrency : 1 };
}

export async function run({ count }, pixels) {
  return { payload: await classifier.logits(pixels, count) };
}

// Files of images or texts, one after another, through the page's own way from bytes to the network's input.
export async function runFiles({ sizes }, bytes) {
  const rows = [];
  let start = 0;
  for (const size of sizes) {
    const file = new Blob([bytes.subarray(start, start + size)]);
    start += size;
    const pixels = await classifier.input.prepare(file).catch(() => null); // the page cannot read it
    const classes = classifier.description.labels.length;
    rows.push(...(pixels === null ? new Array(classes).fill(NaN) : await classifier.logits(pixels)));
  }
  return { payload: Float32Array.from(rows) };
}

// The clock of a page goes in steps of 0.1 ms: runs too short for it are timed several together, as their mean.
const SHORTEST = 2; // milliseconds

export async function time({ seconds, least, warmUp }, pixels) {
  for (let i = 0; i < warmUp; i++) await classifier.logits(pixels);
  const times = [];
  const end = performance.now() + 1000 * seconds;
  while (times.length < least || performance.now() < end) {
    const start = performance.now();
    let runs = 0;
    let passed = 0;
    while (passed < SHORTEST) {
      await classifier.logits(pixels);
      runs += 1;
      passed = performance.now() - start;
    }
    times.push(passed / runs);
  }
  return { payload: Float64Array.from(times) };
}
