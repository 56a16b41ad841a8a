// Try a bundle on a photo or the camera: what the server says of it, and beside it what its own web export says here.

import { send } from "./api.js";
import { Camera } from "./camera.js";
import { button, card, complain, element, percent } from "./dom.js";
import { Frame } from "./frame.js";
import { t } from "./texts.js";

const SHOWN = 5;

export class TryCard {
  constructor() {
    this.frame = new Frame();
    this.bundle = element("select", { "aria-label": t("bundle"), on: { change: () => this.#turn() } });
    this.photo = element("canvas", { class: "photo", hidden: true, role: "img", "aria-label": t("try_photo") });
    this.server = this.#side(t("try_server"));
    this.page = this.#side(t("try_page"));
    this.none = element("p", { class: "quiet", text: t("bundles_none") });
    const file = element("input", { type: "file", accept: "image/*", hidden: true, "aria-label": t("choose_image"), on: { change: () => this.#try(file.files[0]).then(() => (file.value = "")) } });
    const drop = element(
      "div",
      { class: "drop small", on: {
        dragover: (event) => (event.preventDefault(), drop.classList.add("over")),
        dragleave: () => drop.classList.remove("over"),
        drop: (event) => (event.preventDefault(), drop.classList.remove("over"), this.#try(event.dataTransfer.files[0])),
      } },
      element("p", { text: t("try_drop") }), file, button(t("choose_image"), () => file.click()),
    );
    const camera = new Camera({ hold: t("try_hold"), take: (image) => this.#try(image) });
    this.ways = element("div", { hidden: true },
      element("label", { class: "field" }, element("span", { text: t("bundle") }), this.bundle),
      drop, camera.video, element("div", { class: "row" }, camera.start, camera.record, camera.stop), this.photo,
      element("div", { class: "answers", "aria-live": "polite" }, this.server.root, this.page.root), this.frame.place);
    this.root = card(t("try"), "", this.none, this.ways);
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
    this.server.root.hidden = this.page.root.hidden = true;
    this.#open();
  }

  #side(title) {
    const answer = element("div", { class: "answer" });
    return { answer, root: element("div", { hidden: true }, element("h3", { text: title }), answer) };
  }

  /** Open the bundle's web export, anew where another is in its place since. */
  async #open() {
    try {
      await this.frame.open(this.bundle.value);
    } catch (error) {
      this.page.root.hidden = false;
      this.page.answer.replaceChildren(element("p", { class: "bad", text: error.message }));
    }
  }

  async #try(image) {
    const bundle = this.bundle.value;
    if (!image || !bundle) return;
    await this.#show(image);
    const server = send("POST", "/classify", { bundle }, image).then((found) => ({ ...found, entries: found.top.map(({ label, probability }) => ({ label, value: probability })) }));
    const asked = [this.#tell(this.server, server)];
    if (this.frame.element) asked.push(this.#tell(this.page, this.frame.classify(image)));
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

  async #tell({ root, answer }, asked) {
    root.hidden = false;
    try {
      const { unknown, label, entries, milliseconds } = await asked;
      const bars = entries.slice(0, SHOWN).map((entry) => {
        const bar = element("div", { class: "bar" }, element("span", { class: "name", text: entry.label, title: entry.label }), element("span", { class: "track" }, element("span", { class: "fill" })), element("span", { class: "value", text: percent(entry.value) }));
        bar.querySelector(".fill").style.width = `${entry.value * 100}%`;
        return bar;
      });
      answer.replaceChildren(element("p", { class: "figure", text: unknown ? t("unknown") : label ?? "" }), ...bars,
        milliseconds === undefined ? "" : element("p", { class: "quiet", text: t("try_took", { milliseconds: milliseconds.toFixed(0) }) }));
    } catch (error) {
      answer.replaceChildren(element("p", { class: "bad", text: error.message }));
    }
  }
}
