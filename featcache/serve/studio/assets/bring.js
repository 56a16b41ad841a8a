// Bring: images or texts of a folder or table on this machine, dropped files, folders and zips, the camera.

import { post, send } from "./api.js";
import { Camera } from "./camera.js";
import { button, complain, element, say } from "./dom.js";
import { shown, t } from "./texts.js";

const AT_ONCE = 4;

/** Yield [path, File] of everything below a dropped entry. */
async function* walk(entry, path = "") {
  const here = path ? `${path}/${entry.name}` : entry.name;
  if (entry.isFile) {
    yield [here, await new Promise((resolve, reject) => entry.file(resolve, reject))];
  } else {
    const reader = entry.createReader();
    let entries;
    do {
      entries = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      for (const one of entries) yield* walk(one, here);
    } while (entries.length);
  }
}

export class Bring {
  constructor(jobs) {
    this.name = element("input", { maxlength: 64, pattern: "[A-Za-z0-9_][A-Za-z0-9_.\\-]*", required: true, "aria-label": t("name") });
    this.status = element("p", { class: "quiet", "aria-live": "polite" });
    this.ways = { picture: this.#pictures(), text: this.#texts() };
    this.turns = Object.keys(this.ways).map((kind) => button(t("images", {}, kind), () => this.#turn(kind)));
    this.jobs = element("div", { class: "card" }, element("h2", { text: t("jobs") }));
    this.list = jobs.list;
    this.hint = element("p", { class: "quiet" });
    this.root = element(
      "section", { class: "page bring" },
      element("h1", { text: t("bring") }), this.hint,
      element("div", { class: "columns" },
        element("div", { class: "card" },
          element("div", { class: "segments", role: "group", "aria-label": t("bring_what") }, ...this.turns),
          element("label", { class: "field" }, element("span", { text: t("name") }), this.name),
          ...Object.values(this.ways), this.status,
        ),
        this.jobs,
      ),
    );
    this.#turn(shown);
  }

  /** Bring in images, or texts. */
  #turn(kind) {
    const before = this.kind;
    this.kind = kind;
    for (const [one, way] of Object.entries(this.ways)) way.hidden = one !== kind;
    this.turns.forEach((one, index) => one.setAttribute("aria-pressed", String(Object.keys(this.ways)[index] === kind)));
    this.hint.textContent = t("bring_hint", {}, kind);
    if (!before || this.name.value === t("name_usual", {}, before)) this.name.value = t("name_usual", {}, kind);
  }

  #pictures() {
    return element("div", {}, ...this.#fromPath("picture"), ...this.#fromBrowser("picture", "image/*,.zip"),
      element("h2", { text: t("camera") }), this.#camera());
  }

  #texts() {
    const remembered = (key) => element("input", { value: localStorage.getItem(key) ?? "", maxlength: 1000, on: { change: (event) => localStorage.setItem(key, event.target.value) } });
    const field = (name, input) => element("label", { class: "field" }, element("span", { text: t(name) }), input);
    this.encoder = remembered("encoder");
    this.encoder.placeholder = t("encoder_example");
    this.columns = { text_column: element("input", { maxlength: 1000 }), label_column: element("input", { maxlength: 1000 }) };
    return element("div", {}, field("encoder", this.encoder),
      element("details", { class: "more", "aria-label": t("columns") }, element("summary", { text: t("columns") }),
        element("div", { class: "row budget" }, ...Object.entries(this.columns).map(([name, input]) => field(name, input)))),
      ...this.#fromPath("text"), ...this.#fromBrowser("text", ".csv,.tsv,.jsonl,.ndjson,.parquet,.txt,.zip"));
  }

  #fromPath(kind) {
    const path = element("input", { placeholder: t("path_example", {}, kind), "aria-label": t("path", {}, kind), class: "grow" });
    return [element("h2", { text: t("from_path", {}, kind) }), element(
      "form", { class: "row", on: { submit: (event) => (event.preventDefault(), this.#build(path.value)) } },
      path, element("button", { text: t("bring_folder"), class: "main" }),
    )];
  }

  #fromBrowser(kind, accept) {
    const pick = (properties) => element("input", { type: "file", multiple: true, hidden: true, ...properties, on: { change: (event) => this.#picked(event.target) } });
    const files = pick({ accept });
    const folder = pick({ webkitdirectory: true });
    const drop = element(
      "div",
      {
        class: "drop",
        on: {
          dragover: (event) => (event.preventDefault(), drop.classList.add("over")),
          dragleave: () => drop.classList.remove("over"),
          drop: (event) => (drop.classList.remove("over"), this.#dropped(event)),
        },
      },
      element("p", { class: "big", text: t("drop_here", {}, kind) }),
      element("p", { class: "quiet", text: t("drop_hint", {}, kind) }),
      element("div", { class: "row center" }, files, folder, button(t("choose_files"), () => files.click()), button(t("choose_folder"), () => folder.click())),
    );
    return [element("h2", { text: t("from_browser") }), drop];
  }

  enter() {
    this.jobs.append(this.list);
  }

  async #build(images) {
    if (!this.name.reportValidity()) return;
    try {
      await post("/jobs", { kind: "build", name: this.name.value, images: images || null, ...this.#ofTexts() });
    } catch (error) {
      complain(error);
    }
  }

  /** Return what `build` has to be told of texts besides. */
  #ofTexts() {
    if (this.kind !== "text") return {};
    const columns = Object.entries(this.columns).map(([name, input]) => [name, input.value || null]);
    return { input: "text", backbone: this.encoder.value.trim() || null, ...Object.fromEntries(columns) };
  }

  async #dropped(event) {
    event.preventDefault();
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
    const found = [];
    for (const entry of entries) for await (const one of walk(entry)) found.push(one);
    // one dropped folder is the data set itself: its folders are the classes
    const whole = entries.length === 1 && entries[0].isDirectory;
    await this.#upload(found.map(([path, file]) => [whole ? path.slice(path.indexOf("/") + 1) : path, file]));
  }

  async #picked(input) {
    const found = [...input.files].map((file) => [file.webkitRelativePath.split("/").slice(1).join("/") || file.name, file]);
    input.value = "";
    await this.#upload(found);
  }

  async #upload(found) {
    if (!found.length || !this.name.reportValidity()) return;
    const folder = encodeURIComponent(this.name.value);
    const refused = [];
    let done = 0;
    const waiting = found.filter(([path]) => !path.split("/").some((part) => part.startsWith(".")));
    const total = waiting.length;
    const work = async () => {
      for (let one = waiting.shift(); one; one = waiting.shift()) {
        const [path, file] = one;
        try {
          if (/\.zip$/i.test(path)) {
            const { left_out } = await send("PUT", `/images/${folder}/zip`, {}, file);
            refused.push(...left_out.map((entry) => `${entry.path}: ${entry.reason}`));
          } else await send("PUT", `/images/${folder}/file`, { path }, file);
        } catch (error) {
          refused.push(`${path}: ${error.message}`);
        }
        this.status.textContent = t("uploaded", { done: ++done, total });
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, work));
    if (refused.length) say(`${t("refused", { count: refused.length })} ${refused[0]}`, { bad: true });
    await this.#build("");
  }

  #camera() {
    const label = element("input", { placeholder: t("camera_class"), "aria-label": t("camera_class"), maxlength: 100 });
    let taken = 0;
    const camera = new Camera({
      hold: t("camera_hold"),
      take: async (image) => {
        const path = `${label.value.trim() ? `${label.value.trim()}/` : ""}camera-${Date.now()}.jpg`;
        await send("PUT", `/images/${encodeURIComponent(this.name.value)}/file`, { path }, image);
        this.status.textContent = t("taken", { count: ++taken });
      },
      off: () => {
        if (taken) this.#build("");
        taken = 0;
      },
    });
    return element("div", {}, camera.video, element("div", { class: "row" }, label, camera.start, camera.record, camera.stop));
  }
}
