// A grid, or list, of any number of samples, of which only those in sight are in the page.

import { complain, element, hueOf, percent } from "./dom.js";
import { t } from "./texts.js";
import { view } from "./views.js";

const GAP = 8;
const MARGIN_ROWS = 2;

export class Grid {
  /** `session` knows the samples; `onSelect`, `onOpen`, `onEnter` are told what a person does, `onDescribed` what is known. */
  constructor(session, { onSelect, onOpen, onEnter, onDescribed }) {
    Object.assign(this, { session, onSelect, onOpen, onEnter, onDescribed });
    this.order = new Int32Array(0);
    this.selected = new Set();
    this.current = 0; // place of the tile with the focus
    this.anchor = 0; // where a range begins
    this.size = Number(localStorage.getItem(view.sizes.stored)) || view.sizes.usual; // of a tile, as its view counts
    this.tiles = new Map(); // place → element
    this.canvas = element("div", { class: "tiles" });
    this.root = element(
      "div",
      {
        class: "grid", tabindex: "0", role: "listbox", "aria-multiselectable": "true", "aria-label": t("images"),
        on: {
          scroll: () => this.#later(),
          keydown: (event) => this.#key(event),
          pointerdown: (event) => this.#pointer(event),
          dblclick: (event) => this.#open(event),
          dragstart: (event) => this.#drag(event),
        },
      },
      this.canvas,
    );
    this.waiting = false;
    new ResizeObserver(() => this.#later()).observe(this.root);
  }

  show(order) {
    this.order = order;
    const kept = new Set(order);
    this.selected = new Set([...this.selected].filter((number) => kept.has(number)));
    this.current = this.anchor = 0;
    this.root.scrollTop = 0;
    this.#forget();
    this.render();
    this.onSelect(this.chosen());
  }

  resize(size) {
    this.size = size;
    localStorage.setItem(view.sizes.stored, size);
    this.#forget();
    this.render();
    this.#reveal();
  }

  /** What a label would go to: the selected images, or the one with the focus. */
  chosen() {
    if (this.selected.size) return [...this.selected];
    return this.order.length ? [this.order[this.current]] : [];
  }

  selectAll() {
    this.selected = new Set(this.order);
    this.#selectionChanged();
  }

  clear() {
    this.selected.clear();
    this.#selectionChanged();
  }

  /** Go on to the next image after what was labelled. */
  advance() {
    let last = this.current;
    if (this.selected.size) {
      last = this.order.length - 1;
      while (last > 0 && !this.selected.has(this.order[last])) last--;
    }
    this.selected.clear();
    this.current = this.anchor = Math.min(last + 1, Math.max(this.order.length - 1, 0));
    this.#reveal();
    this.#selectionChanged();
  }

  #forget() {
    this.tiles.clear();
    this.canvas.replaceChildren();
  }

  #later() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.render();
    });
  }

  #measure() {
    const width = Math.max(this.root.clientWidth - GAP, 1);
    const columns = Math.max(view.columns(width, this.size), 1);
    const tile = Math.floor(width / columns) - GAP;
    const height = view.height(tile, this.size);
    return { columns, width: tile, height, step: height + GAP };
  }

  #range() {
    const { columns, step } = this.#measure();
    const first = Math.max(Math.floor(this.root.scrollTop / step) - MARGIN_ROWS, 0) * columns;
    const rows = Math.ceil(this.root.clientHeight / step) + 2 * MARGIN_ROWS + 1;
    return [first, Math.min(first + rows * columns, this.order.length)];
  }

  visible() {
    const [first, last] = this.#range();
    return Array.from(this.order.slice(first, last));
  }

  render() {
    const { columns, width, height, step } = this.#measure();
    this.canvas.style.height = `${Math.ceil(this.order.length / columns) * step + GAP}px`;
    const [first, last] = this.#range();
    for (const [place, tile] of this.tiles) {
      if (place < first || place >= last) {
        tile.remove();
        this.tiles.delete(place);
      }
    }
    for (let place = first; place < last; place++) {
      const tile = this.tiles.get(place) ?? this.#make(place);
      tile.style.width = `${width}px`;
      tile.style.height = `${height}px`;
      tile.style.transform = `translate(${GAP + (place % columns) * (width + GAP)}px, ${GAP + Math.floor(place / columns) * step}px)`;
      this.#dress(tile, place, width);
    }
    this.root.setAttribute("aria-activedescendant", `tile-${this.current}`);
    this.#describe();
  }

  async #describe() {
    if (this.describing) return;
    this.describing = true;
    try {
      while (await this.session.describe(this.visible())) {
        this.#dressAll();
        this.onDescribed();
      }
    } catch (error) {
      complain(error);
    } finally {
      this.describing = false;
    }
  }

  #make(place) {
    const tile = element(
      "div",
      { class: `tile ${view.tileClass}`, role: "option", id: `tile-${place}`, draggable: "true", "aria-setsize": this.order.length, "aria-posinset": place + 1 },
      view.tile(this.session, this.order[place]),
      element("span", { class: "chip" }),
      element("span", { class: "mark", "aria-hidden": "true" }),
    );
    tile.dataset.place = place;
    this.tiles.set(place, tile);
    this.canvas.append(tile);
    return tile;
  }

  #dressAll() {
    const { width } = this.#measure();
    for (const [place, tile] of this.tiles) this.#dress(tile, place, width);
  }

  #dress(tile, place, width) {
    const number = this.order[place];
    const sample = this.session.samples.get(number);
    const selected = this.selected.has(number);
    tile.classList.toggle("selected", selected);
    tile.classList.toggle("current", place === this.current);
    tile.setAttribute("aria-selected", selected);
    const chip = tile.querySelector(".chip");
    const shown = sample?.label ?? sample?.predicted ?? null;
    chip.textContent = !sample ? "" : sample.label ?? (sample.predicted ? `${sample.predicted} ${percent(sample.probability, 0)}` : "·");
    chip.className = !sample ? "chip" : sample.label !== null ? "chip given" : sample.predicted ? "chip guess" : "chip none";
    tile.classList.toggle("against", Boolean(sample?.label && sample.predicted && sample.predicted !== sample.label));
    tile.dataset.split = sample?.split ?? "";
    if (shown !== null) tile.style.setProperty("--hue", hueOf(this.session.dataset.classes.indexOf(shown)));
    view.dress(tile, sample, { width, size: this.size });
    if (sample) tile.setAttribute("aria-label", `${view.name(sample)}. ${chip.textContent}`);
    tile.title = sample ? `${sample.path} · ${t(sample.split)}` : "";
  }

  #place(event) {
    const tile = event.target.closest(".tile");
    return tile ? Number(tile.dataset.place) : null;
  }

  #pointer(event) {
    const place = this.#place(event);
    if (place === null || event.button !== 0) return;
    const number = this.order[place];
    if (event.shiftKey) this.#span(place);
    else if (event.ctrlKey || event.metaKey || event.pointerType === "touch") {
      if (!this.selected.delete(number)) this.selected.add(number);
      this.anchor = place;
    } else if (!this.selected.has(number)) {
      this.selected = new Set([number]);
      this.anchor = place;
    }
    this.current = place;
    this.root.focus({ preventScroll: true });
    this.#selectionChanged();
  }

  #span(place) {
    const [from, to] = [Math.min(this.anchor, place), Math.max(this.anchor, place)];
    this.selected = new Set(this.order.slice(from, to + 1));
  }

  #open(event) {
    const place = this.#place(event);
    if (place !== null) this.onOpen(this.order[place]);
  }

  #drag(event) {
    const place = this.#place(event);
    if (place === null) return;
    if (!this.selected.has(this.order[place])) this.selected = new Set([this.order[place]]);
    event.dataTransfer.setData("text/x-featcache-samples", JSON.stringify([...this.selected]));
    event.dataTransfer.effectAllowed = "move";
  }

  #key(event) {
    const { columns } = this.#measure();
    const page = Math.max(Math.floor(this.root.clientHeight / this.#measure().step), 1) * columns;
    const moves = {
      ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, PageUp: -page, PageDown: page,
      Home: -this.order.length, End: this.order.length,
    };
    if (event.key in moves && !event.altKey) {
      this.current = Math.min(Math.max(this.current + moves[event.key], 0), Math.max(this.order.length - 1, 0));
      if (event.shiftKey) this.#span(this.current);
      else {
        this.anchor = this.current;
        if (!event.ctrlKey && !event.metaKey) this.selected.clear();
      }
      this.#reveal();
      this.#selectionChanged();
    } else if (event.key === " ") {
      const number = this.order[this.current];
      if (number !== undefined && !this.selected.delete(number)) this.selected.add(number);
      this.#selectionChanged();
    } else if (event.key === "Enter") this.onEnter(this.chosen());
    else return;
    event.preventDefault();
  }

  #reveal() {
    const { columns, step } = this.#measure();
    const top = Math.floor(this.current / columns) * step;
    if (top < this.root.scrollTop) this.root.scrollTop = top;
    else if (top + step + GAP > this.root.scrollTop + this.root.clientHeight) {
      this.root.scrollTop = top + step + GAP - this.root.clientHeight;
    }
  }

  #selectionChanged() {
    this.render();
    this.onSelect(this.chosen());
  }
}
