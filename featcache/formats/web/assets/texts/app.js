// The page: write something, and see what the classifier calls it. Texts never leave this page.

import { show } from "./answer.js";
import { Classifier } from "./classifier.js";

const PAUSE = 250; // milliseconds without a key before the text is looked at
const find = (name) => document.getElementById(name);
const [text, status] = ["text", "status"].map(find);

let classifier = null;
let last = 0; // number of the newest question: answers to older ones are dropped
let waiting = null;

function say(state, line) {
  document.body.dataset.state = state; // loading, ready, busy, done or failed
  status.textContent = line;
}

async function classify() {
  const question = ++last;
  if (text.value.trim() === "") {
    say("ready", "Write a text.");
    return;
  }
  try {
    const found = await classifier.classify(text.value);
    if (question !== last) return;
    show(found, classifier.description.task);
    say("done", `${found.milliseconds.toFixed(0)} ms in this browser`);
  } catch (error) {
    if (question === last) say("failed", `This text cannot be read (${error.message}).`);
  }
}

text.addEventListener("input", () => {
  say("busy", "reading …");
  clearTimeout(waiting);
  waiting = setTimeout(classify, PAUSE);
});

try {
  classifier = await Classifier.load();
  const { labels, name } = classifier.description;
  find("about").textContent = `${labels.length} classes on ${name}: ${labels.slice(0, 20).join(", ")}`;
  text.disabled = false;
  say("ready", "Write a text.");
  text.focus();
} catch (error) {
  say("failed", `The classifier could not be loaded: ${error.message}`);
}
