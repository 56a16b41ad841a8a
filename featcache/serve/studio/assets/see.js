// See: how accuracy grew, what is taken for what, where labels are doubtful, how the features lie, which head is better.

import { get } from "./api.js";
import { curve } from "./charts.js";
import { CompareCard } from "./compare.js";
import { ConfusionCard } from "./confusion.js";
import { button, card, complain, element, hueOf, percent, say } from "./dom.js";
import { MapCard } from "./map_card.js";
import { t } from "./texts.js";
import { view } from "./views.js";

export class See {
  /** `show(view)` opens images under Teach. */
  constructor(session, jobs, show) {
    Object.assign(this, { session, show });
    this.accuracy = element("div", {});
    this.counts = element("div", {});
    this.doubts = element("div", {});
    const images = (title) => (ids) => show({ order: "path", ids, title });
    this.cards = [new ConfusionCard(session, show), new MapCard(session, images(t("map"))), new CompareCard(session, images(t("compare")))];
    const [confusion, map, compare] = this.cards.map((one) => one.root);
    this.root = element(
      "section", { class: `page see ${view.tileClass}` },
      element("h1", { text: t("see") }),
      element("div", { class: "columns masonry" },
        card(t("accuracy_over_labels"), t("accuracy_hint"), this.accuracy),
        confusion,
        card(t("per_class"), "", this.counts),
        card(t("doubts"), t("doubts_hint"), this.doubts),
        map,
        compare,
        card(t("duplicates"), t("duplicates_hint"), this.#duplicates()),
      ),
    );
    for (const event of ["head", "opened"]) session.addEventListener(event, () => this.#later());
    jobs.addEventListener("done", () => this.#later());
  }

  #later() {
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => !this.root.hidden && this.enter(), 300);
  }

  enter() {
    if (!this.session.dataset) return;
    this.#showCounts();
    for (const work of [this.#showAccuracy(), this.#showDoubts(), ...this.cards.map((one) => one.refresh())]) work.catch(complain);
  }

  #from(path) {
    return get(`/datasets/${this.session.dataset.id}${path}`);
  }

  async #showAccuracy() {
    this.accuracy.replaceChildren(curve(await this.#from("/accuracy")));
  }

  #showCounts() {
    const { dataset } = this.session;
    const totals = dataset.classes.map((name) => this.session.total(name));
    const most = Math.max(...totals, 1);
    this.counts.replaceChildren(...dataset.classes.map((name, index) => {
      const bar = element("div", { class: "bar", style: { "--hue": hueOf(index) } }, element("span", { class: "name", text: name, title: name }), element("span", { class: "track" }, element("span", { class: "fill" })), element("span", { class: "value", text: totals[index] }));
      bar.querySelector(".fill").style.width = `${(totals[index] / most) * 100}%`;
      return bar;
    }));
  }

  async #showDoubts() {
    const doubts = await this.#from("/doubts");
    if (!doubts.length) {
      this.doubts.replaceChildren(element("p", { class: "quiet", text: t("doubts_none") }));
      return;
    }
    const first = doubts.slice(0, 12);
    await this.session.describe(first.map((doubt) => doubt.id));
    const all = () => this.show({ order: "path", ids: doubts.map((doubt) => doubt.id), title: t("doubts") });
    const entry = (one) => element("button", { type: "button", class: "doubt", on: { click: all } },
      view.small(this.session, one.id),
      element("span", { text: t("doubt", { label: one.label, likelier: one.likelier, own: percent(one.own_probability, 0), probability: percent(one.probability, 0) }) }));
    this.doubts.replaceChildren(element("div", { class: `doubts ${view.tileClass}` }, ...first.map(entry)), button(t("show_all", { count: doubts.length }), all));
  }

  #duplicates() {
    return button(t("find_duplicates"), async () => {
      try {
        const { groups } = await this.#from("/duplicates");
        if (groups.length) this.show({ order: "path", ids: groups.flat(), title: t("duplicates") });
        else say(t("duplicates_none"));
      } catch (error) {
        complain(error);
      }
    });
  }
}
