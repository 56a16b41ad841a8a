// Runs a TensorFlow.js graph model: what protocol.py says, spoken by Node.js.
// Started with the paths of TensorFlow.js and of its WebAssembly backend, beside which its .wasm files are.

"use strict";

const fs = require("fs");
const path = require("path");
const readline = require("readline");
const vm = require("vm");

const WARM_UP = 5;
const [TFJS, BACKEND] = process.argv.slice(2);
const BEFORE = process.memoryUsage().rss;

console.log = console.info = console.error; // answers alone go to stdout

// Return what the script `file` exports; `given`: the packages it asks for that lie elsewhere, by name.
function load(file, given = {}) {
  const names = ["module", "exports", "require", "__filename", "__dirname"];
  const script = vm.compileFunction(fs.readFileSync(file, "utf8"), names, { filename: file });
  const module = { exports: {} };
  script(module, module.exports, (name) => given[name] ?? require(name), file, path.dirname(file));
  return module.exports;
}

// Return {data, shape} of an npy file of bytes in C order.
function readImages(file) {
  const bytes = fs.readFileSync(file);
  const start = 10 + bytes.readUInt16LE(8);
  const header = bytes.toString("latin1", 10, start);
  if (bytes[6] !== 1 || !header.includes("'|u1'") || !header.includes("'fortran_order': False")) {
    throw new Error(`${file} must hold bytes in C order, it says ${header}`);
  }
  const shape = header.match(/'shape': \(([^)]*)\)/)[1].split(",").map(Number);
  return { data: bytes.subarray(start), shape };
}

function writeRows(file, rows) {
  const text = `{'descr': '<f4', 'fortran_order': False, 'shape': (${rows.length}, ${rows[0].length}), }`;
  const header = `${text.padEnd(Math.ceil((text.length + 11) / 64) * 64 - 11)}\n`;
  const head = Buffer.alloc(10);
  head.write("\x93NUMPY\x01\x00", "latin1");
  head.writeUInt16LE(header.length, 8);
  const parts = rows.map((row) => Buffer.from(row.buffer, row.byteOffset, row.byteLength));
  fs.writeFileSync(file, Buffer.concat([head, Buffer.from(header, "latin1"), ...parts]));
}

class Program {
  async load({ files }) {
    this.tf = load(TFJS);
    const wasm = load(BACKEND, { "@tensorflow/tfjs-core": this.tf });
    wasm.setWasmPaths(path.dirname(BACKEND) + path.sep);
    if (!(await this.tf.setBackend("wasm"))) throw new Error("the WebAssembly backend must start, it did not");
    const [model, ...pieces] = files;
    const { modelTopology, weightsManifest, ...described } = JSON.parse(fs.readFileSync(model, "utf8"));
    const bytes = Buffer.concat(pieces.map((piece) => fs.readFileSync(piece)));
    const weightData = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
    const weightSpecs = weightsManifest.flatMap((group) => group.weights);
    const artifacts = { ...described, modelTopology, weightSpecs, weightData };
    this.model = await this.tf.loadGraphModel({ load: async () => artifacts });
  }

  // Return the logits of one image.
  infer(pixels, shape) {
    return this.tf.tidy(() => {
      const image = this.tf.tensor(Int32Array.from(pixels), shape, "int32");
      return Float32Array.from(this.model.execute({ image }, "logits").dataSync());
    });
  }

  run({ images, out }) {
    const { data, shape } = readImages(images);
    const size = data.length / shape[0];
    const one = [1, ...shape.slice(1)];
    const rows = Array.from({ length: shape[0] }, (_, i) => this.infer(data.subarray(i * size, (i + 1) * size), one));
    writeRows(out, rows);
  }

  time({ image, seconds, least }) {
    const { data, shape } = readImages(image);
    for (let i = 0; i < WARM_UP; i++) this.infer(data, shape);
    const times = [];
    const end = performance.now() + 1000 * seconds;
    while (times.length < least || performance.now() < end) {
      const start = performance.now();
      this.infer(data, shape);
      times.push(performance.now() - start);
    }
    return times;
  }

  // Return by how many bytes the process grew at most since before the model was opened; null off Linux. The peak that
  // process.resourceUsage tells is that of the process it was started from, where that one was larger.
  resident() {
    if (process.platform !== "linux") return null;
    const peak = fs.readFileSync("/proc/self/status", "latin1").match(/^VmHWM:\s+(\d+) kB$/m);
    return peak === null ? null : Number(peak[1]) * 1024 - BEFORE;
  }
}

async function main() {
  const program = new Program();
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const request = JSON.parse(line);
    const value = (await program[request.call](request.arguments)) ?? null;
    fs.writeSync(1, `${JSON.stringify({ value })}\n`);
  }
}

main().catch((error) => {
  console.error(`${error?.name ?? "Error"}: ${error?.message ?? error}`);
  process.exit(1);
});
