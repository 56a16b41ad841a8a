// The card of a comparison: two heads, or two backbones, on the same labelled val images.

import { get } from "./api.js";
import { button, card, complain, element, percent } from "./dom.js";
import { t } from "./texts.js";

export class CompareCard {
  /** `show(ids)` opens images. */
  constructor(session, show) {
    Object.assign(this, { session, show });
    this.sides = ["first", "second"].map((side) => element("select", { "aria-label": t(`compare_${side}`), on: { change: () => this.result.replaceChildren() } }));
    this.button = button(t("compare"), () => this.#compare());
    this.result = element("div", { "aria-live": "polite" });
    this.root = card(t("compare"), t("compare_hint"), element("div", { class: "row" }, ...this.sides, this.button), this.result);
    this.root.classList.add("compare");
    session.addEventListener("opened", () => this.result.replaceChildren());
  }

  async refresh() {
    const found = await get(`/datasets/${this.session.dataset.id}/contenders`);
    const title = ({ kind, name }) => t(`contender_${kind}`, { name });
    this.sides.forEach((side, index) => {
      const before = side.value;
      side.replaceChildren(...found.map((one) => element("option", { value: one.id, text: title(one) })));
      side.value = found.some(({ id }) => id === before) ? before : (found[index] ?? found[0]).id;
    });
    this.button.disabled = found.length < 2;
  }

  async #compare() {
    const [first, second] = this.sides;
    this.button.disabled = true;
    try {
      const found = await get(`/datasets/${this.session.dataset.id}/comparison`, { first: first.value, second: second.value });
      this.result.replaceChildren(...this.#told(found, [first, second].map((side) => side.selectedOptions[0].textContent)));
    } catch (error) {
      complain(error);
    }
    this.button.disabled = false;
  }

  #told(found, names) {
    const row = (side, name, only) => {
      const { correct, held_out, low, high } = found[side];
      const count = only.length ? button(String(only.length), () => this.show(only), { "aria-label": t("compare_open", { count: only.length, name }) }) : element("span", { text: "0" });
      return element("tr", {},
        element("th", { scope: "row", text: name, title: name }),
        element("td", { text: percent(correct / held_out) }),
        element("td", { text: `${percent(low)} – ${percent(high)}` }),
        element("td", {}, count));
    };
    const head = ["compare_head", "compare_accuracy", "compare_interval", "compare_only"].map((key) => element("th", { scope: "col", text: t(key) }));
    const p = found.p < 0.001 ? "< 0.001" : `= ${found.p.toFixed(3)}`;
    return [
      element("div", { class: "scroll" }, element("table", { class: "compared" },
        element("thead", {}, element("tr", {}, ...head)),
        element("tbody", {}, row("first", names[0], found.only_first), row("second", names[1], found.only_second)))),
      element("p", { class: "quiet", text: t(found.p < 0.05 ? "compare_differ" : "compare_chance", { p, images: found.first.held_out }) }),
    ];
  }
}
