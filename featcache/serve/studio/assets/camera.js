// A camera: turned on and off, and a button that takes pictures as long as it is held, one after another.

import { button, complain, element } from "./dom.js";
import { t } from "./texts.js";

const PAUSE = 150; // milliseconds between pictures

export class Camera {
  /** `take(blob)` is awaited for each JPEG; `off()` is called when the camera has been turned off. */
  constructor({ hold, take, off = () => {} }) {
    Object.assign(this, { take, off });
    this.stream = null;
    this.held = 0; // number of the press that holds
    this.video = element("video", { muted: true, playsinline: true, hidden: true, class: "camera", "aria-label": t("camera") });
    this.video.muted = true; // the attribute alone counts only for what a page is loaded with
    this.start = button(t("camera_on"), () => this.#start());
    this.record = button(hold, () => {}, { hidden: true, class: "main hold" });
    this.stop = button(t("camera_off"), () => this.#stop(), { hidden: true });
    const release = () => (this.held = 0);
    this.record.addEventListener("pointerdown", (event) => {
      this.record.setPointerCapture(event.pointerId); // what the page shows meanwhile may move the button away
      this.#shoot();
    });
    for (const event of ["pointerup", "pointercancel", "keyup", "blur"]) this.record.addEventListener(event, release);
    this.record.addEventListener("contextmenu", (event) => event.preventDefault()); // of a long touch
    this.record.addEventListener("keydown", (event) => {
      if (event.key !== " " && event.key !== "Enter") return;
      event.preventDefault();
      if (!event.repeat) this.#shoot();
    });
  }

  async #start() {
    try {
      this.stream = await navigator.mediaDevices.getUserMedia({ video: { width: 640, height: 480 } });
      this.video.srcObject = this.stream;
      this.#show(true);
      await this.video.play();
      this.record.focus();
    } catch (error) {
      complain(error);
    }
  }

  #show(on) {
    this.video.hidden = this.record.hidden = this.stop.hidden = !on;
    this.start.hidden = on;
  }

  async #shoot() {
    const press = (this.held = performance.now());
    const canvas = element("canvas", { width: this.video.videoWidth, height: this.video.videoHeight });
    try {
      while (this.held === press) {
        canvas.getContext("2d").drawImage(this.video, 0, 0);
        await this.take(await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.9)));
        await new Promise((resolve) => setTimeout(resolve, PAUSE));
      }
    } catch (error) {
      this.held = 0;
      complain(error);
    }
  }

  #stop() {
    this.held = 0;
    this.stream?.getTracks().forEach((track) => track.stop());
    this.#show(false);
    this.start.focus();
    this.off();
  }
}
