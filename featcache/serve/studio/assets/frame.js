// A bundle's own classifier, running in a frame of its own that is handed images and hands back what it says.

import { get } from "./api.js";
import { element } from "./dom.js";
import { t } from "./texts.js";

export class Frame {
  constructor() {
    this.place = element("div", { hidden: true });
    this.waiting = new Map(); // number of a question → what to do with its answer
    this.asked = 0;
    this.element = null;
    addEventListener("message", (event) => this.#hear(event));
  }

  /** Open the web export of a bundle; whether it has one. */
  async open(bundle) {
    this.#end();
    const { address } = bundle ? await get("/web", { bundle }) : { address: null };
    if (!address) return false;
    await new Promise((resolve, reject) => {
      this.ready = { resolve, reject };
      this.element = element("iframe", { sandbox: "allow-scripts", src: address, title: t("try_page") });
      this.place.replaceChildren(this.element);
    });
    return true;
  }

  /** Return {label, unknown, entries, milliseconds} of an image file. */
  classify(image) {
    return new Promise((resolve, reject) => {
      this.waiting.set(++this.asked, { resolve, reject });
      this.element.contentWindow.postMessage({ number: this.asked, image }, "*");
    });
  }

  #end() {
    const closed = new Error(t("try_closed"));
    this.ready?.reject(closed);
    for (const { reject } of this.waiting.values()) reject(closed);
    this.waiting.clear();
    this.place.replaceChildren();
    this.element = this.ready = null;
  }

  #hear({ source, data }) {
    if (!this.element || source !== this.element.contentWindow) return;
    const error = data.error === undefined ? null : new Error(String(data.error));
    const asked = "ready" in data ? this.ready : this.waiting.get(data.number);
    this.waiting.delete(data.number);
    if (error) asked?.reject(error);
    else asked?.resolve(data.found);
  }
}
