// Teach: look at images, or texts, in an order that pays, label them, see what the head makes of it.

import { intervalBar } from "./charts.js";
import { button, complain, element, hueOf, percent } from "./dom.js";
import { Grid } from "./grid.js";
import { classOf, keyOf } from "./keys.js";
import { t } from "./texts.js";
import { view } from "./views.js";

const ORDERS = ["path", "uncertainty", "disagreement", "class"];

export class Teach {
  constructor(session) {
    this.session = session;
    this.view = { order: "path" };
    this.grid = new Grid(session, {
      onSelect: (chosen) => this.#selected(chosen),
      onOpen: (number) => this.#enlarge(number),
      onEnter: (chosen) => this.#accept(chosen),
      onDescribed: () => this.#selected(this.grid.chosen()),
    });
    this.#build();
    session.addEventListener("opened", () => this.show({ order: "path" }));
    session.addEventListener("changed", () => this.#refresh());
    session.addEventListener("head", () => this.#refresh());
    addEventListener("keydown", (event) => this.#key(event));
  }

  #build() {
    this.order = element(
      "select",
      { "aria-label": t("order"), on: { change: () => this.show({ ...this.view, order: this.order.value, ids: undefined, similar_to: undefined }) } },
      ...ORDERS.map((name) => element("option", { value: name, text: t(`order_${name}`) })),
    );
    this.split = element(
      "select",
      { "aria-label": t("split"), on: { change: () => this.show({ ...this.view, split: this.split.value || undefined, ids: undefined }) } },
      element("option", { value: "", text: t("split_all") }),
      ...["train", "val", "test"].map((name) => element("option", { value: name, text: t(name) })),
    );
    this.search = element("input", {
      type: "search", placeholder: t("search"), "aria-label": t("search"), class: "search",
      on: { change: () => this.show({ ...this.view, search: this.search.value || undefined, ids: undefined }) },
    });
    this.size = element("input", {
      type: "range", min: view.sizes.min, max: view.sizes.max, step: view.sizes.step, value: this.grid.size, "aria-label": t("tile_size"), class: "size",
      on: { input: () => this.grid.resize(Number(this.size.value)) },
    });
    this.count = element("span", { class: "quiet count" });
    this.undo = button("↶", () => this.session.step("undo"), { title: `${t("undo")} (Ctrl+Z)`, "aria-label": t("undo"), class: "icon" });
    this.redo = button("↷", () => this.session.step("redo"), { title: `${t("redo")} (Ctrl+Y)`, "aria-label": t("redo"), class: "icon" });
    this.filter = element("div", { class: "filters" });
    const bar = element(
      "div", { class: "toolbar" },
      this.order, this.split, this.search,
      element("span", { class: "spread" }), this.count, this.size, element("span", { class: "pair" }, this.undo, this.redo),
    );
    this.classes = element("div", { class: "classes" });
    this.adding = element("input", { class: "adding", placeholder: t("new_class"), "aria-label": t("new_class"), maxlength: 100 });
    const form = element(
      "form",
      { class: "row add", on: { submit: (event) => this.#addClass(event) } },
      this.adding, element("button", { text: "+", class: "icon", "aria-label": t("add_class"), title: t("add_class") }),
    );
    this.worth = element("div", { class: "card worth" });
    this.threshold = element("input", { type: "range", min: 50, max: 100, value: 95, "aria-label": t("threshold"), on: { input: () => this.#showThreshold() } });
    this.thresholdText = element("output", {});
    this.acceptAll = button(t("accept_all"), () => this.session.accept(Number(this.threshold.value) / 100), { class: "wide" });
    const suggestions = element(
      "div", { class: "card" },
      element("h2", { text: t("suggestions") }),
      element("p", { class: "quiet", text: t("suggestions_hint") }),
      element("div", { class: "row" }, this.threshold, this.thresholdText),
      this.acceptAll,
    );
    this.detail = element("div", { class: "card detail" });
    this.root = element(
      "section", { class: `teach ${view.tileClass}` },
      element("aside", { class: "left" }, element("h2", { text: t("classes") }), this.classes, form, element("p", { class: "quiet hint", text: t("label_hint") })),
      element("div", { class: "middle" }, bar, this.filter, this.grid.root),
      element("aside", { class: "right" }, this.worth, this.detail, suggestions),
    );
    this.#showThreshold();
  }

  /** Show the images of `view`: an order and filters, or `ids`. */
  async show(view) {
    this.view = view;
    this.order.value = ORDERS.includes(view.order) ? view.order : "path";
    this.split.value = view.split ?? "";
    this.search.value = view.search ?? "";
    try {
      this.grid.show(await this.session.order(view));
    } catch (error) {
      complain(error);
    }
    this.#showFilters();
    this.#refresh();
  }

  #showFilters() {
    const chips = [];
    const chip = (text, key) => chips.push(button(`${text} ✕`, () => this.show({ ...this.view, [key]: undefined, ...(key === "similar_to" && { order: "path" }) }), { class: "filter", "aria-label": `${text}, ${t("remove_filter")}` }));
    const { label, predicted, similar_to, ids } = this.view;
    if (label !== undefined) chip(label ? t("filter_label", { name: label }) : t("filter_unlabelled"), "label");
    if (predicted !== undefined) chip(t("filter_predicted", { name: predicted }), "predicted");
    if (similar_to !== undefined) chip(t("filter_similar"), "similar_to");
    if (ids) chip(this.view.title ?? t("filter_selection"), "ids");
    this.filter.replaceChildren(...chips);
  }

  #refresh() {
    if (!this.session.dataset) return;
    const { dataset } = this.session;
    this.undo.disabled = !dataset.undo;
    this.redo.disabled = !dataset.redo;
    const entry = (name, index) => {
      const shown = name === null ? t("unlabelled") : name;
      const made = element(
        "div",
        {
          class: "class", style: { "--hue": name === null ? 0 : hueOf(index) },
          on: {
            dragover: (event) => event.dataTransfer.types.includes("text/x-featcache-samples") && event.preventDefault(),
            drop: (event) => this.#dropped(event, name),
          },
        },
        button("", () => this.#give(name), { class: "give", title: t("give", { name: shown }), "aria-label": t("give", { name: shown }) }),
        button(String(this.session.total(name)), () => this.show({ order: this.view.order, label: name ?? "" }), { class: "number", title: t("show_class", { name: shown }), "aria-label": t("show_class", { name: shown }) }),
      );
      made.firstChild.append(
        element("kbd", { text: name === null ? "0" : keyOf(index) }),
        element("span", { class: "colour", "aria-hidden": "true" }),
        element("span", { class: "name", text: shown }),
      );
      if (name === null) made.classList.add("nothing");
      return made;
    };
    this.classes.replaceChildren(...dataset.classes.map(entry), entry(null, -1));
    this.#showWorth();
    this.#selected(this.grid.chosen());
    this.grid.render();
  }

  #showWorth() {
    const { head } = this.session;
    const known = head && head.accuracy !== null;
    const figure = element("div", { class: "figure", text: known ? percent(head.accuracy) : "–" });
    const said = !head?.labels ? t("worth_none") : known
      ? t("worth", { low: percent(head.low), high: percent(head.high), held_out: head.held_out })
      : t("worth_no_val");
    this.worth.replaceChildren(
      element("h2", { text: t("held_out_accuracy") }),
      figure,
      known ? intervalBar(head.low, head.high, head.accuracy) : "",
      element("p", { class: "quiet", text: said }),
      element("p", { class: "quiet", text: head?.labels ? t("trained_on", { labels: head.labels, milliseconds: Math.round(head.milliseconds), l2: Number(head.l2.toPrecision(2)), by: t(`l2_by_${head.l2_by ?? "none"}`) }) : "" }),
    );
    this.worth.dataset.revision = head?.revision ?? -1;
  }

  #selected(chosen) {
    const { session, grid } = this;
    this.count.textContent = grid.selected.size > 1
      ? t("count_selected", { selected: grid.selected.size, all: grid.order.length })
      : t("count", { all: grid.order.length });
    const number = chosen.length ? chosen[chosen.length - 1] : undefined;
    const sample = session.samples.get(number);
    if (!sample) {
      this.detail.replaceChildren(element("p", { class: "quiet", text: t("nothing_selected") }));
      return;
    }
    const bars = sample.top.map(([name, probability]) => {
      const bar = element("div", { class: "bar", style: { "--hue": hueOf(session.dataset.classes.indexOf(name)) } },
        element("span", { class: "name", text: name }), element("span", { class: "track" }, element("span", { class: "fill" })), element("span", { class: "value", text: percent(probability) }));
      bar.querySelector(".fill").style.width = `${probability * 100}%`;
      return bar;
    });
    const source = `${session.dataset.id} ${session.dataset.generation} ${number}`;
    if (this.detail.dataset.source !== source) {
      this.seen = view.detail(session, number, sample, () => this.#enlarge(number));
      this.detail.dataset.source = source;
    }
    this.detail.replaceChildren(
      this.seen,
      element("p", { class: "path", text: sample.path }),
      element("p", { class: "quiet", text: t(`split_${sample.split}`) }),
      ...bars,
      element("div", { class: "row" },
        button(t("find_similar"), () => this.show({ order: "similarity", similar_to: number }), {}),
        sample.predicted && sample.label !== sample.predicted ? button(t("accept"), () => this.#accept([number]), { title: "Enter" }) : ""),
    );
  }

  #give(name, numbers = this.grid.chosen()) {
    if (!numbers.length) return;
    this.session.label(numbers, name);
    this.grid.advance();
  }

  #accept(numbers) {
    const wanted = numbers.map((number) => this.session.samples.get(number)).filter((sample) => sample?.predicted);
    for (const name of new Set(wanted.map((sample) => sample.predicted))) {
      this.session.label(wanted.filter((sample) => sample.predicted === name).map((sample) => sample.id), name);
    }
    if (wanted.length) this.grid.advance();
  }

  #dropped(event, name) {
    event.preventDefault();
    this.#give(name, JSON.parse(event.dataTransfer.getData("text/x-featcache-samples")));
  }

  async #addClass(event) {
    event.preventDefault();
    const name = this.adding.value.trim();
    if (!name) return;
    try {
      await this.session.addClass(name);
      this.adding.value = "";
      this.grid.root.focus();
    } catch (error) {
      complain(error);
    }
  }

  #showThreshold() {
    this.thresholdText.textContent = `≥ ${this.threshold.value} %`;
  }

  #key(event) {
    if (this.root.hidden || !this.session.dataset || document.querySelector("dialog[open]")) return;
    if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) {
      if (event.key === "Escape") this.grid.root.focus();
      return;
    }
    const control = event.ctrlKey || event.metaKey;
    if (control && event.key.toLowerCase() === "z") this.session.step(event.shiftKey ? "redo" : "undo");
    else if (control && event.key.toLowerCase() === "y") this.session.step("redo");
    else if (control && event.key.toLowerCase() === "a") this.grid.selectAll();
    else if (control || event.altKey) return;
    else if (event.key === "Escape") this.grid.clear();
    else if (event.key === "/") this.search.focus();
    else if (["0", "Backspace", "Delete"].includes(event.key)) this.#give(null);
    else {
      const name = this.session.dataset.classes[classOf(event.key)];
      if (name === undefined) return;
      this.#give(name);
    }
    event.preventDefault();
  }

  #enlarge(number) {
    const sample = this.session.samples.get(number);
    const dialog = element(
      "dialog", { class: "large", "aria-label": sample?.path ?? "", on: { close: () => dialog.remove(), click: () => dialog.close() } },
      view.enlarged(this.session, number, sample),
      element("p", { class: "quiet", text: sample?.path ?? "" }),
    );
    document.body.append(dialog);
    dialog.showModal();
  }
}
