// The card of the map: two principal components at once, neighbours by t-SNE once a job has laid them out.

import { get, post } from "./api.js";
import { button, card, complain, element } from "./dom.js";
import { featureMap } from "./map.js";
import { t } from "./texts.js";
import { view } from "./views.js";

const KINDS = ["components", "neighbours"];

export class MapCard {
  /** `show(ids)` opens images. */
  constructor(session, show) {
    Object.assign(this, { session, show });
    this.kind = "components";
    this.buttons = KINDS.map((kind) => button(t(`map_${kind}`), () => this.#turn(kind)));
    this.hint = element("p", { class: "quiet" });
    this.state = element("p", { class: "quiet map-state", role: "status" });
    this.make = button(t("map_make"), () => this.#make(), { hidden: true });
    this.place = element("div", {});
    this.pointed = element("div", { class: `pointed ${view.tileClass}`, "aria-live": "polite" });
    this.asked = null; // the sample that is pointed at
    this.root = card(t("map"), "", element("div", { class: "segments", role: "group", "aria-label": t("map") }, ...this.buttons), this.hint, this.place, this.pointed, element("div", { class: "row" }, this.state, this.make));
  }

  async refresh() {
    const { id } = this.session.dataset;
    const [plane, { labels }] = await Promise.all([get(`/datasets/${id}/map`, { kind: this.kind }), get(`/datasets/${id}/labels`)]);
    if (plane.kind !== this.kind || id !== this.session.dataset.id) return;
    this.buttons.forEach((one, index) => one.setAttribute("aria-pressed", String(KINDS[index] === this.kind)));
    this.hint.textContent = t(`map_hint_${this.kind}`);
    const outdated = plane.made && plane.missing + plane.gone > 0;
    this.state.textContent = !plane.made ? t("map_none") : outdated ? t("map_outdated", { missing: plane.missing, gone: plane.gone }) : "";
    this.make.hidden = plane.made && !outdated;
    const shown = JSON.stringify([plane, labels]);
    if (shown === this.shown) return; // a ring that somebody moves stays
    this.shown = shown;
    this.place.replaceChildren(plane.made ? featureMap(plane.points, labels, this.show, (number) => this.#point(number).catch(complain)) : "");
    this.asked = null;
    this.pointed.replaceChildren();
  }

  /** Show the sample that is pointed at; the last one stays until another is. */
  async #point(number) {
    if (number === null || number === this.asked) return;
    this.asked = number;
    await this.session.describe([number]);
    const sample = this.session.samples.get(number);
    if (number !== this.asked || !sample) return;
    const label = sample.label ?? sample.predicted;
    this.pointed.replaceChildren(view.small(this.session, number), element("p", { class: "quiet", text: [sample.path, label].filter(Boolean).join(" · ") }));
  }

  #turn(kind) {
    this.kind = kind;
    this.refresh().catch(complain);
  }

  async #make() {
    this.make.disabled = true;
    try {
      await post("/jobs", { kind: "map", dataset: this.session.dataset.id });
      this.state.textContent = t("map_asked");
    } catch (error) {
      complain(error);
    }
    this.make.disabled = false;
  }
}
