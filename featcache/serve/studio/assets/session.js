// The data set that is open, as this window knows it; every change goes through here, one after another.

import { get, post } from "./api.js";
import { complain, say } from "./dom.js";
import { speakOf, t } from "./texts.js";

export class Session extends EventTarget {
  constructor() {
    super();
    this.dataset = null;
    this.head = null;
    this.samples = new Map(); // number of a sample → what is known of it
    this.stale = new Set(); // of these, the ones whose prediction is of an earlier head
    this.tail = Promise.resolve();
    this.changes = 0; // made in this window so far
    this.pending = 0; // of these, shown and not answered yet
    this.outdated = false; // whether what is shown has to be read again once they are
  }

  #tell(name) {
    this.dispatchEvent(new Event(name));
  }

  async open(number) {
    const dataset = await get(`/datasets/${number}`);
    await speakOf(dataset.shown);
    this.dataset = dataset;
    this.head = await get(`/datasets/${number}/head`, { revision: this.dataset.revision, seconds: 1 });
    this.samples.clear();
    this.stale.clear();
    this.#tell("opened");
  }

  /** Read again what another window, or a build, has changed: after the changes that are shown here, if there are any. */
  async refresh() {
    if (!this.dataset) return;
    this.outdated = true;
    if (this.pending) return;
    const { id, generation: before } = this.dataset;
    const made = this.changes;
    const found = await get(`/datasets/${id}`);
    if (this.changes !== made || this.dataset.id !== id) return; // of before a change that is shown by now
    this.dataset = found;
    this.outdated = false;
    this.samples.clear();
    this.stale.clear();
    this.#tell(this.dataset.generation === before ? "changed" : "opened");
  }

  async order(view) {
    const { ids, ...query } = view;
    if (ids) return Int32Array.from(ids);
    return Int32Array.from((await get(`/datasets/${this.dataset.id}/samples`, query)).samples);
  }

  /** Read what is not known yet, or of an earlier head, of these samples; whether there was any. */
  async describe(numbers) {
    const wanted = numbers.filter((number) => !this.samples.has(number) || this.stale.has(number)).slice(0, 2000);
    if (!wanted.length) return false;
    const made = this.changes;
    const found = await post(`/datasets/${this.dataset.id}/samples`, { samples: wanted });
    if (this.changes !== made) {
      this.#queue(() => this.refresh());
      return false;
    }
    for (const sample of found) {
      this.samples.set(sample.id, sample);
      this.stale.delete(sample.id);
    }
    return true;
  }

  /** Do `work` after what is queued; one that fails is told of, and those behind it are done all the same. */
  #queue(work) {
    this.tail = this.tail.then(work).catch(complain);
    return this.tail;
  }

  /** Queue a change: it is shown at once, and sent when those before it have been answered. */
  change(path, values, show = () => {}) {
    show();
    this.changes += 1;
    this.pending += 1;
    const number = this.dataset.id;
    return this.#queue(async () => {
      try {
        const answer = await post(`/datasets/${number}${path}`, { ...values, revision: this.dataset.revision });
        if (this.dataset.id !== number) return;
        Object.assign(this.dataset, { revision: answer.revision, undo: answer.undo, redo: answer.redo });
        this.#tell("changed");
      } catch (error) {
        say(error.status === 409 ? t("conflict") : error.message, { bad: true });
        this.outdated = true;
      } finally {
        this.pending -= 1;
      }
      if (this.outdated) await this.refresh();
    });
  }

  label(numbers, label) {
    return this.change("/labels", { samples: numbers, label }, () => {
      for (const number of numbers) {
        const sample = this.samples.get(number);
        if (!sample) this.outdated = true; // how it counts is not known yet
        if (!sample || sample.label === label) continue;
        this.#count(sample, -1);
        sample.label = label;
        this.#count(sample, 1);
      }
      this.#tell("changed");
    });
  }

  #count(sample, by) {
    const counts = this.dataset.counts[sample.split];
    const place = sample.label === null ? counts.length - 1 : this.dataset.classes.indexOf(sample.label);
    counts[place] += by;
  }

  step(direction) {
    this.change(`/${direction}`, {});
    return this.#queue(() => this.refresh());
  }

  accept(threshold) {
    this.change("/suggestions/accept", { threshold });
    return this.#queue(() => this.refresh());
  }

  async addClass(name) {
    this.dataset = await post(`/datasets/${this.dataset.id}/classes`, { name });
    this.#tell("changed");
  }

  /** Take in what the server tells. */
  hear(event, values) {
    if (!this.dataset || (values.dataset !== undefined && values.dataset !== this.dataset.id)) return;
    if (event === "head") {
      this.head = values;
      for (const number of this.samples.keys()) this.stale.add(number);
      this.#tell("head");
    } else if (event === "labels" || event === "classes") {
      // what is queued here will be answered first: then it is known whether this came from another window
      this.#queue(() => (event === "classes" || values.revision > this.dataset.revision ? this.refresh() : undefined));
    } else if (event === "open" || event === "workspace") {
      this.#queue(() => this.refresh());
    }
  }

  total(label) {
    const place = label === null ? this.dataset.classes.length : this.dataset.classes.indexOf(label);
    return Object.values(this.dataset.counts).reduce((sum, counts) => sum + counts[place], 0);
  }
}
