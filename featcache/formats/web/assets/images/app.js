// The page: drop, choose or film something, and see what the classifier calls it. Images never leave this page.

import { show } from "./answer.js";
import { Classifier } from "./classifier.js";

const find = (name) => document.getElementById(name);
const [drop, file, camera, photo, video, status] = ["drop", "file", "camera", "photo", "video", "status"].map(find);

let classifier = null;
let stream = null;
let last = 0; // number of the newest question: answers to older ones are dropped

function say(state, text) {
  document.body.dataset.state = state; // loading, ready, busy, done or failed
  status.textContent = text;
}

function answer(found) {
  show(found, classifier.description.task);
  say("done", `${found.milliseconds.toFixed(0)} ms in this browser`);
}

async function classifyFile(blob) {
  const question = ++last;
  stopCamera();
  try {
    say("busy", "looking …");
    URL.revokeObjectURL(photo.src);
    photo.src = URL.createObjectURL(blob);
    photo.hidden = false;
    const found = await classifier.classify(blob);
    if (question === last) answer(found);
  } catch (error) {
    if (question === last) say("failed", `This file is no image that the browser can read (${error.message}).`);
  }
}

function stopCamera() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  video.hidden = true;
  camera.textContent = "Use the camera";
}

async function startCamera() {
  const question = ++last;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    video.srcObject = stream;
    await video.play();
  } catch (error) {
    stopCamera();
    say("failed", `The camera must be allowed and the page served over https or localhost (${error.message}).`);
    return;
  }
  photo.hidden = true;
  video.hidden = false;
  camera.textContent = "Stop the camera";
  while (stream !== null && question === last) {
    const found = await classifier.classify(video);
    if (stream !== null && question === last) answer(found);
    await new Promise((done) => setTimeout(done, 100));
  }
}

camera.addEventListener("click", () => (stream === null ? startCamera() : (last++, stopCamera())));
file.addEventListener("change", () => file.files.length && classifyFile(file.files[0]));
for (const kind of ["dragover", "drop"]) document.addEventListener(kind, (event) => event.preventDefault());
document.addEventListener("dragover", () => drop.classList.add("over"));
document.addEventListener("dragleave", () => drop.classList.remove("over"));
document.addEventListener("drop", (event) => {
  drop.classList.remove("over");
  if (classifier !== null && event.dataTransfer?.files.length) classifyFile(event.dataTransfer.files[0]);
});

try {
  classifier = await Classifier.load();
  const { labels, name } = classifier.description;
  find("about").textContent = `${labels.length} classes on ${name}: ${labels.slice(0, 20).join(", ")}`;
  file.disabled = camera.disabled = false;
  say("ready", "Drop a photo here.");
} catch (error) {
  say("failed", `The classifier could not be loaded: ${error.message}`);
}
