// Try a bundle on a photo, the camera or a text: what the server says, and beside it what its own web export says here.

import { get, send } from "./api.js";
import { Camera } from "./camera.js";
import { button, card, element, percent } from "./dom.js";
import { Frame } from "./frame.js";
import { t } from "./texts.js";

const SHOWN = 5;
const PAUSE = 250; // milliseconds without a key before a text is tried

export class TryCard {
  constructor() {
    this.frame = new Frame();
    this.opened = this.asked = 0; // numbers of the newest bundle and question: answers to older ones are dropped
    this.bundle = element("select", { "aria-label": t("bundle"), on: { change: () => this.#turn() } });
    this.server = this.#side(t("try_server"));
    this.page = this.#side(t("try_page"));
    this.none = element("p", { class: "quiet", text: t("bundles_none") });
    this.kinds = { picture: this.#pictures(), text: this.#texts() };
    this.ways = element("div", { hidden: true },
      element("label", { class: "field" }, element("span", { text: t("bundle") }), this.bundle),
      ...Object.values(this.kinds),
      element("div", { class: "answers", "aria-live": "polite" }, this.server.root, this.page.root), this.frame.place);
    this.root = card(t("try"), "", this.none, this.ways);
  }

  #pictures() {
    this.photo = element("canvas", { class: "photo", hidden: true, role: "img", "aria-label": t("try_photo") });
    const file = element("input", { type: "file", accept: "image/*", hidden: true, "aria-label": t("choose_image"), on: { change: () => this.#tryPicture(file.files[0]).then(() => (file.value = "")) } });
    const drop = element(
      "div",
      { class: "drop small", on: {
        dragover: (event) => (event.preventDefault(), drop.classList.add("over")),
        dragleave: () => drop.classList.remove("over"),
        drop: (event) => (event.preventDefault(), drop.classList.remove("over"), this.#tryPicture(event.dataTransfer.files[0])),
      } },
      element("p", { text: t("try_drop") }), file, button(t("choose_image"), () => file.click()),
    );
    const camera = new Camera({ hold: t("try_hold"), take: (image) => this.#tryPicture(image) });
    return element("div", { hidden: true }, drop, camera.video, element("div", { class: "row" }, camera.start, camera.record, camera.stop), this.photo);
  }

  #texts() {
    let waiting = 0;
    this.text = element("textarea", {
      rows: 4, class: "wide", dir: "auto", "aria-label": t("try_text"), placeholder: t("try_text"),
      on: { input: () => {
        clearTimeout(waiting);
        waiting = setTimeout(() => this.#tryText(), PAUSE);
      } },
    });
    return element("div", { hidden: true }, this.text);
  }

  /** Show the names of what there is to try. */
  list(names) {
    const before = this.bundle.value;
    this.bundle.replaceChildren(...names.map((name) => element("option", { value: name, text: name })));
    if (names.includes(before)) this.bundle.value = before;
    this.none.hidden = names.length > 0;
    this.ways.hidden = !names.length;
    if (this.bundle.value === before) this.#open();
    else this.#turn();
  }

  /** Turn to another bundle: what the one before it said goes. */
  #turn() {
    this.#forget();
    this.#open();
  }

  #forget() {
    this.asked += 1;
    this.server.root.hidden = this.page.root.hidden = true;
  }

  #side(title) {
    const answer = element("div", { class: "answer" });
    return { answer, root: element("div", { hidden: true }, element("h3", { text: title }), answer) };
  }

  /** Show what the bundle takes, and open its web export, anew where another is in its place since. */
  async #open() {
    const number = ++this.opened;
    try {
      const bundle = this.bundle.value;
      const { shown, address } = bundle ? await get("/web", { bundle }) : { shown: null, address: null };
      if (number !== this.opened) return;
      for (const [kind, way] of Object.entries(this.kinds)) way.hidden = kind !== shown;
      await this.frame.open(address);
    } catch (error) {
      if (number !== this.opened) return;
      this.page.root.hidden = false;
      this.page.answer.replaceChildren(element("p", { class: "bad", text: error.message }));
    }
  }

  async #tryPicture(image) {
    if (!image) return;
    await this.#show(image);
    await this.#try(image);
  }

  async #tryText() {
    const text = this.text.value;
    if (text.trim()) await this.#try(new Blob([text], { type: "text/plain" }));
    else this.#forget();
  }

  async #try(input) {
    const bundle = this.bundle.value;
    if (!bundle) return;
    const question = ++this.asked;
    const server = send("POST", "/classify", { bundle }, input).then((found) => ({ ...found, entries: found.top.map(({ label, probability }) => ({ label, value: probability })) }));
    const asked = [this.#tell(this.server, server, question)];
    if (this.frame.element) asked.push(this.#tell(this.page, this.frame.classify(input), question));
    await Promise.all(asked);
  }

  async #show(image) {
    try {
      const bitmap = await createImageBitmap(image, { resizeHeight: 240 });
      Object.assign(this.photo, { width: bitmap.width, height: bitmap.height, hidden: false });
      this.photo.getContext("2d").drawImage(bitmap, 0, 0);
      bitmap.close();
    } catch {
      this.photo.hidden = true; // no image of this browser's: the server says what it is
    }
  }

  async #tell({ root, answer }, asked, question) {
    let shown;
    try {
      const { unknown, label, entries, milliseconds } = await asked;
      const bars = entries.slice(0, SHOWN).map((entry) => {
        const bar = element("div", { class: "bar" }, element("span", { class: "name", text: entry.label, title: entry.label }), element("span", { class: "track" }, element("span", { class: "fill" })), element("span", { class: "value", text: percent(entry.value) }));
        bar.querySelector(".fill").style.width = `${entry.value * 100}%`;
        return bar;
      });
      shown = [element("p", { class: "figure", text: unknown ? t("unknown") : label ?? "" }), ...bars,
        milliseconds === undefined ? "" : element("p", { class: "quiet", text: t("try_took", { milliseconds: milliseconds.toFixed(0) }) })];
    } catch (error) {
      shown = [element("p", { class: "bad", text: error.message })];
    }
    if (question !== this.asked) return;
    root.hidden = false;
    answer.replaceChildren(...shown);
  }
}
