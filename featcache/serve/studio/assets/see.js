// See: how accuracy grew, what is taken for what, where labels are doubtful, how the features lie.

import { get } from "./api.js";
import { curve } from "./charts.js";
import { button, complain, element, hueOf, percent, say } from "./dom.js";
import { featureMap } from "./map.js";
import { t } from "./texts.js";

export class See {
  /** `show(view)` opens images under Teach. */
  constructor(session, show) {
    this.session = session;
    this.show = show;
    this.split = "val";
    this.root = element("section", { class: "page see" });
    session.addEventListener("head", () => !this.root.hidden && this.#later());
    session.addEventListener("opened", () => !this.root.hidden && this.#later());
  }

  #later() {
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => this.enter(), 300);
  }

  async enter() {
    const { dataset } = this.session;
    if (!dataset) return;
    const from = (path, query) => get(`/datasets/${dataset.id}${path}`, query);
    try {
      const [points, confusion, doubts, plane, table] = await Promise.all([
        from("/accuracy"), from("/confusion", { split: this.split }), from("/doubts"), from("/map"), from("/labels"),
      ]);
      this.#render(points, confusion, doubts, plane, table);
    } catch (error) {
      complain(error);
    }
  }

  #render(points, confusion, doubts, plane, labels) {
    const card = (title, hint, ...children) => element("div", { class: "card" }, element("h2", { text: title }), hint ? element("p", { class: "quiet", text: hint }) : "", ...children);
    this.root.replaceChildren(
      element("h1", { text: t("see") }),
      element("div", { class: "columns" },
        card(t("accuracy_over_labels"), t("accuracy_hint"), curve(points)),
        card(t("confusion"), t("confusion_hint"), this.#splits(), this.#confusion(confusion)),
        card(t("per_class"), "", this.#counts()),
        card(t("doubts"), t("doubts_hint"), ...this.#doubts(doubts)),
        card(t("map"), t("map_hint"), featureMap(plane.points, labels.labels, (ids) => this.show({ order: "path", ids, title: t("map") }))),
        card(t("duplicates"), t("duplicates_hint"), this.#duplicates()),
      ),
    );
  }

  #splits() {
    return element("div", { class: "segments", role: "group", "aria-label": t("split") },
      ...["val", "train", "test"].map((name) => button(t(name), () => ((this.split = name), this.enter()), { "aria-pressed": String(this.split === name) })));
  }

  #confusion({ classes, counts, split }) {
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
    return element("div", { class: "scroll" },
      element("table", { class: "confusion" },
        element("thead", {}, element("tr", {}, element("td", {}), ...used.map((j) => element("th", { scope: "col", title: classes[j] }, element("span", { text: classes[j] }))))),
        element("tbody", {}, ...used.map(row))));
  }

  #counts() {
    const { dataset } = this.session;
    const totals = dataset.classes.map((name) => this.session.total(name));
    const most = Math.max(...totals, 1);
    return element("div", {}, ...dataset.classes.map((name, index) => {
      const bar = element("div", { class: "bar", style: { "--hue": hueOf(index) } }, element("span", { class: "name", text: name, title: name }), element("span", { class: "track" }, element("span", { class: "fill" })), element("span", { class: "value", text: totals[index] }));
      bar.querySelector(".fill").style.width = `${(totals[index] / most) * 100}%`;
      return bar;
    }));
  }

  #doubts(doubts) {
    const { dataset } = this.session;
    if (!doubts.length) return [element("p", { class: "quiet", text: t("doubts_none") })];
    const entry = (one) => element("button", { type: "button", class: "doubt", on: { click: () => this.show({ order: "path", ids: doubts.map((doubt) => doubt.id), title: t("doubts") }) } },
      element("img", { src: `/api/datasets/${dataset.id}/samples/${one.id}/picture`, alt: "", loading: "lazy" }),
      element("span", { text: t("doubt", { label: one.label, likelier: one.likelier, own: percent(one.own_probability, 0), probability: percent(one.probability, 0) }) }));
    return [
      element("div", { class: "doubts" }, ...doubts.slice(0, 12).map(entry)),
      button(t("show_all", { count: doubts.length }), () => this.show({ order: "path", ids: doubts.map((doubt) => doubt.id), title: t("doubts") })),
    ];
  }

  #duplicates() {
    return button(t("find_duplicates"), async () => {
      try {
        const { groups } = await get(`/datasets/${this.session.dataset.id}/duplicates`);
        if (groups.length) this.show({ order: "path", ids: groups.flat(), title: t("duplicates") });
        else say(t("duplicates_none"));
      } catch (error) {
        complain(error);
      }
    });
  }
}
