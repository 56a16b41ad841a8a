// Ship: labels to a bundle, through the commands; read what was made, try it, take it away.

import { get, post } from "./api.js";
import { card, complain, element } from "./dom.js";
import { t } from "./texts.js";
import { TryCard } from "./try.js";
import { view } from "./views.js";

export class Ship {
  constructor(session, jobs) {
    this.session = session;
    this.name = element("input", { value: "first", maxlength: 64, pattern: "[A-Za-z0-9_][A-Za-z0-9_.\\-]*", required: true });
    this.formats = element("fieldset", { class: "formats" }, element("legend", { text: t("formats") }));
    this.compress = element("input", { type: "checkbox", on: { change: () => this.#showBudget() } });
    this.drop = element("input", { type: "number", min: 0, max: 100, step: 0.1, value: 1, class: "short" });
    this.minutes = element("input", { type: "number", min: 0.1, max: 600, step: "any", value: 5, class: "short" });
    const field = (text, ...children) => element("label", { class: "field" }, element("span", { text }), ...children);
    this.budget = element("div", { class: "row budget" }, field(t("max_drop"), this.drop), field(t("max_minutes"), this.minutes));
    this.button = element("button", { text: t("make_bundle"), class: "main wide" });
    const form = element("form", { class: "card", on: { submit: (event) => (event.preventDefault(), this.#ship()) } },
      element("h2", { text: t("make_bundle") }), element("p", { class: "quiet", text: t("ship_hint") }),
      field(t("name"), this.name), this.formats,
      element("label", { class: "check" }, this.compress, element("span", { text: t("compress") })),
      this.budget, this.button);
    this.try = new TryCard();
    this.made = element("ul", { class: "made" });
    this.jobs = card(t("jobs"), "");
    this.list = jobs.list;
    this.root = element(
      "section", { class: "page ship" },
      element("h1", { text: t("ship") }),
      element("div", { class: "columns" },
        element("div", { class: "stack" }, form, card(t("made"), "", this.made)), this.try.root, this.jobs),
    );
    this.#showBudget();
    this.#offer([{ name: "onnx", missing: null }]); // which every machine can export: the others are asked for later
    this.formatsKnown = false;
    jobs.addEventListener("done", (event) => event.detail.kind === "ship" && this.enter());
  }

  async enter() {
    if (this.root.hidden) return;
    this.jobs.append(this.list);
    try {
      const [bundles, reports] = await Promise.all([get("/bundles"), get("/reports")]);
      this.try.list(bundles.map(({ name }) => name));
      this.#list(bundles, reports);
      if (!this.formatsKnown) {
        this.#offer(await get("/formats"));
        this.formatsKnown = true;
      }
    } catch (error) {
      complain(error);
    }
  }

  #list(bundles, reports) {
    const link = (text, address, query, more = {}) => element("li", {}, element("a", { text, href: `${address}?${new URLSearchParams(query)}`, ...more }));
    this.made.replaceChildren(
      ...bundles.map(({ name }) => link(t("download_bundle", { name }), "/api/bundle.zip", { name })),
      ...reports.map(({ name }) => link(t("report", { name }), "/api/report", { name }, { target: "_blank", rel: "noopener" })),
    );
    const { dataset } = this.session;
    if (dataset) this.made.append(link(t("labels_csv", { name: dataset.name }), `/api/datasets/${dataset.id}/labels.csv`, {}, { download: "labels.csv" }));
  }

  #offer(formats) {
    const before = new Set(this.#chosen());
    const box = ({ name, missing }) => element("label", { class: missing ? "check missing" : "check", title: missing ?? "" },
      element("input", { type: "checkbox", value: name, checked: before.size ? before.has(name) : name === "onnx", disabled: missing !== null }), element("span", { text: name }));
    this.formats.replaceChildren(this.formats.firstChild, ...formats.map(box), element("p", { class: "quiet", text: t("formats_hint") }));
  }

  #chosen() {
    return [...this.formats.querySelectorAll("input:checked")].map((one) => one.value);
  }

  #showBudget() {
    this.budget.hidden = !this.compress.checked || !view.searched;
  }

  async #ship() {
    if (!this.session.dataset) return;
    this.button.disabled = true;
    try {
      await post("/jobs", {
        kind: "ship", name: this.name.value, dataset: this.session.dataset.id, formats: this.#chosen(), compress: this.compress.checked,
        max_drop: Number(this.drop.value) / 100, max_minutes: Number(this.minutes.value),
      });
    } catch (error) {
      complain(error);
    }
    this.button.disabled = false;
  }
}
