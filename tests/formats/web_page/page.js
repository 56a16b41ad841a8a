// What a person does on the page of a bundle's web/ folder, and what they then see.

// A page of texts has no pixels.
const { decode } = await import("../web/input.js");
const { resizeCrop } = await import("../web/resize.js").catch(() => ({}));

let frame = null;

async function until(condition, what, seconds = 60) {
  const end = performance.now() + 1000 * seconds;
  while (!condition()) {
    if (performance.now() > end) throw new Error(`no ${what} within ${seconds} s: ${seen().status}`);
    await new Promise((done) => setTimeout(done, 20));
  }
}

function seen() {
  const page = frame.contentDocument;
  const entries = [...page.querySelectorAll("#result li")].map((row) => ({
    label: row.querySelector("span").textContent,
    text: row.querySelector("b").textContent,
  }));
  return {
    state: page.body.dataset.state,
    label: page.body.dataset.label ?? null,
    status: page.getElementById("status").textContent,
    about: page.getElementById("about").textContent,
    entries,
  };
}

export async function open() {
  frame = document.createElement("iframe");
  frame.allow = "camera";
  frame.src = new URL("../web/index.html", import.meta.url).href;
  document.body.append(frame);
  await new Promise((done) => frame.addEventListener("load", done, { once: true }));
  await until(() => ["ready", "failed"].includes(seen().state), "page");
  return seen();
}

export async function drop({ file }, bytes) {
  const view = frame.contentWindow;
  const dropped = new view.DataTransfer();
  dropped.items.add(new view.File([bytes], file));
  frame.contentDocument.body.dataset.state = "";
  const event = new view.DragEvent("drop", { dataTransfer: dropped, bubbles: true, cancelable: true });
  frame.contentDocument.getElementById("drop").dispatchEvent(event);
  await until(() => ["done", "failed"].includes(seen().state), "answer");
  return seen();
}

export async function write({ text }) {
  const page = frame.contentDocument;
  page.body.dataset.state = "";
  page.getElementById("text").value = text;
  page.getElementById("text").dispatchEvent(new frame.contentWindow.Event("input", { bubbles: true }));
  await until(() => ["ready", "done", "failed"].includes(seen().state), "answer");
  return seen();
}

export async function film() {
  frame.contentDocument.body.dataset.state = "";
  frame.contentDocument.getElementById("camera").click();
  await until(() => ["done", "failed"].includes(seen().state), "answer");
  const found = { ...seen(), filming: !frame.contentDocument.getElementById("video").hidden };
  frame.contentDocument.getElementById("camera").click();
  await until(() => frame.contentDocument.getElementById("video").hidden, "end of filming");
  return found;
}

export function resize({ width, height, stride, preprocessing }, bytes) {
  return { payload: resizeCrop(bytes, width, height, stride, preprocessing) };
}

export async function input({ preprocessing }, bytes) {
  const { data, width, height } = await decode(new Blob([bytes]));
  return { width, height, payload: resizeCrop(data, width, height, 4, preprocessing) };
}

export async function reach({ address }) {
  try {
    await fetch(address, { mode: "no-cors" });
  } catch {
    return { reached: false };
  }
  return { reached: true };
}
