// Ship: labels to a bundle, through the commands; try it on an image.

import { get, post, send } from "./api.js";
import { button, complain, element, percent } from "./dom.js";
import { t } from "./texts.js";

export class Ship {
  constructor(session, jobs) {
    this.session = session;
    this.name = element("input", { value: "first", maxlength: 64, "aria-label": t("name"), required: true });
    this.formats = element("input", { value: "onnx", "aria-label": t("formats") });
    this.compress = element("input", { type: "checkbox" });
    this.drop = element("input", { type: "number", min: 0, max: 100, step: 0.1, value: 1, class: "short" });
    this.minutes = element("input", { type: "number", min: 0.1, max: 600, step: "any", value: 5, class: "short" });
    this.bundle = element("select", { "aria-label": t("bundle"), on: { change: () => this.#showDownload() } });
    this.download = element("a", { class: "button", text: t("download_bundle") });
    this.table = element("a", { class: "button", text: t("labels_csv"), download: "labels.csv" });
    this.answer = element("div", { class: "answer", "aria-live": "polite" });
    const file = element("input", { type: "file", accept: "image/*", hidden: true, on: { change: () => this.#try(file.files[0]) } });
    const drop = element(
      "div",
      { class: "drop small", on: {
        dragover: (event) => (event.preventDefault(), drop.classList.add("over")),
        dragleave: () => drop.classList.remove("over"),
        drop: (event) => (event.preventDefault(), drop.classList.remove("over"), this.#try(event.dataTransfer.files[0])),
      } },
      element("p", { text: t("try_drop") }), file, button(t("choose_image"), () => file.click()),
    );
    const field = (text, ...children) => element("label", { class: "field" }, element("span", { text }), ...children);
    this.jobs = element("div", { class: "card" }, element("h2", { text: t("jobs") }));
    this.list = jobs.list;
    this.root = element(
      "section", { class: "page ship" },
      element("h1", { text: t("ship") }),
      element("div", { class: "columns" },
        element("form", { class: "card", on: { submit: (event) => (event.preventDefault(), this.#ship()) } },
          element("h2", { text: t("make_bundle") }),
          element("p", { class: "quiet", text: t("ship_hint") }),
          field(t("name"), this.name),
          field(t("formats"), this.formats),
          element("label", { class: "check" }, this.compress, element("span", { text: t("compress") })),
          field(t("max_drop"), this.drop), field(t("max_minutes"), this.minutes),
          element("button", { text: t("make_bundle"), class: "main wide" }),
        ),
        element("div", { class: "card" },
          element("h2", { text: t("try") }), field(t("bundle"), this.bundle), drop, this.answer,
          element("div", { class: "row" }, this.download, this.table)),
        this.jobs,
      ),
    );
    jobs.addEventListener("done", (event) => event.detail.kind === "ship" && this.enter());
  }

  async enter() {
    if (!this.root.hidden) this.jobs.append(this.list);
    try {
      const bundles = await get("/bundles");
      const before = this.bundle.value;
      this.bundle.replaceChildren(...bundles.map(({ name }) => element("option", { value: name, text: name })));
      if (bundles.some(({ name }) => name === before)) this.bundle.value = before;
      this.#showDownload();
    } catch (error) {
      complain(error);
    }
  }

  #showDownload() {
    this.download.hidden = !this.bundle.value;
    this.download.href = `/api/bundle.zip?${new URLSearchParams({ name: this.bundle.value })}`;
    this.table.hidden = !this.session.dataset;
    if (this.session.dataset) this.table.href = `/api/datasets/${this.session.dataset.id}/labels.csv`;
  }

  async #ship() {
    if (!this.session.dataset) return;
    try {
      await post("/jobs", {
        kind: "ship", name: this.name.value, dataset: this.session.dataset.id,
        formats: this.formats.value.split(/[\s,]+/).filter(Boolean), compress: this.compress.checked,
        max_drop: Number(this.drop.value) / 100, max_minutes: Number(this.minutes.value),
      });
    } catch (error) {
      complain(error);
    }
  }

  async #try(file) {
    if (!file || !this.bundle.value) return;
    try {
      const found = await send("POST", "/classify", { bundle: this.bundle.value }, file);
      const bars = found.top.map(({ label, probability }) => {
        const bar = element("div", { class: "bar" }, element("span", { class: "name", text: label }), element("span", { class: "track" }, element("span", { class: "fill" })), element("span", { class: "value", text: percent(probability) }));
        bar.querySelector(".fill").style.width = `${probability * 100}%`;
        return bar;
      });
      this.answer.replaceChildren(element("p", { class: "figure", text: found.unknown ? t("unknown") : found.label ?? "" }), ...bars);
    } catch (error) {
      this.answer.replaceChildren(element("p", { class: "bad", text: error.message }));
    }
  }
}
