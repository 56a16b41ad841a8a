// A bundle's own classifier, running in a frame of its own that is handed images or texts and hands back what it says.

import { element } from "./dom.js";
import { t } from "./texts.js";

export class Frame {
  constructor() {
    this.place = element("div", { hidden: true });
    this.waiting = new Map(); // number of a question → what to do with its answer
    this.asked = 0;
    this.element = this.ready = this.loading = this.address = null;
    addEventListener("message", (event) => this.#hear(event));
  }

  /** Open a web export at its address, null for none, unless it is open: then there is an `element` that can be asked. */
  async open(address) {
    if (address !== this.address) {
      this.#end();
      this.address = address;
      if (address) this.loading = this.#load(address);
    }
    await this.loading;
  }

  #load(address) {
    return new Promise((resolve, reject) => {
      this.ready = { resolve, reject };
      this.element = element("iframe", { sandbox: "allow-scripts", src: address, title: t("try_page") });
      this.place.replaceChildren(this.element);
    });
  }

  /** Return {label, unknown, entries, milliseconds} of an image or text file, once what runs there is loaded. */
  async classify(input) {
    await this.loading;
    if (!this.element) throw new Error(t("try_closed"));
    return new Promise((resolve, reject) => {
      this.waiting.set(++this.asked, { resolve, reject });
      this.element.contentWindow.postMessage({ number: this.asked, input }, "*");
    });
  }

  #end() {
    this.ready?.resolve();
    for (const { reject } of this.waiting.values()) reject(new Error(t("try_closed")));
    this.waiting.clear();
    this.place.replaceChildren();
    this.element = this.ready = this.loading = this.address = null;
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
