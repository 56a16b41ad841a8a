// The card of what is taken for what: a cell opens its images.

import { get } from "./api.js";
import { button, card, complain, element } from "./dom.js";
import { t } from "./texts.js";

const SPLITS = ["val", "train", "test"];

export class ConfusionCard {
  /** `show(view)` opens images. */
  constructor(session, show) {
    Object.assign(this, { session, show });
    this.split = "val";
    this.buttons = SPLITS.map((split) => button(t(split), () => this.#turn(split)));
    this.place = element("div", { class: "scroll" });
    this.root = card(t("confusion"), t("confusion_hint"), element("div", { class: "segments", role: "group", "aria-label": t("split") }, ...this.buttons), this.place);
  }

  async refresh() {
    const found = await get(`/datasets/${this.session.dataset.id}/confusion`, { split: this.split });
    if (found.split !== this.split) return;
    this.buttons.forEach((one, index) => one.setAttribute("aria-pressed", String(SPLITS[index] === this.split)));
    this.place.replaceChildren(this.#table(found));
  }

  #turn(split) {
    this.split = split;
    this.refresh().catch(complain);
  }

  #table({ classes, counts, split }) {
    const used = classes.map((_, i) => i).filter((i) => counts[i].some(Boolean) || counts.some((row) => row[i]));
    if (!used.length) return element("p", { class: "quiet", text: t("confusion_empty") });
    const row = (i) => {
      const total = counts[i].reduce((sum, one) => sum + one, 0);
      return element("tr", {}, element("th", { scope: "row", text: classes[i], title: classes[i] }),
        ...used.map((j) => {
          const cell = element("td", { class: i === j ? "right" : counts[i][j] ? "wrong" : "" });
          cell.style.setProperty("--share", total ? counts[i][j] / total : 0);
          if (counts[i][j]) {
            const what = t("confusion_cell", { count: counts[i][j], label: classes[i], predicted: classes[j] });
            cell.append(button(String(counts[i][j]), () => this.show({ order: "disagreement", label: classes[i], predicted: classes[j], split }), { title: what, "aria-label": what }));
          }
          return cell;
        }));
    };
    return element("table", { class: "confusion" },
      element("thead", {}, element("tr", {}, element("td", {}), ...used.map((j) => element("th", { scope: "col", title: classes[j] }, element("span", { text: classes[j] }))))),
      element("tbody", {}, ...used.map(row)));
  }
}
