// Bring: images of a folder on this machine, dropped files, folders and zips, the camera.

import { post, send } from "./api.js";
import { Camera } from "./camera.js";
import { button, complain, element, say } from "./dom.js";
import { t } from "./texts.js";

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
    this.name = element("input", { value: "photos", maxlength: 64, pattern: "[A-Za-z0-9_][A-Za-z0-9_.\\-]*", required: true, "aria-label": t("name") });
    this.path = element("input", { placeholder: t("path_example"), "aria-label": t("path"), class: "grow" });
    this.status = element("p", { class: "quiet", "aria-live": "polite" });
    const pick = (properties) => element("input", { type: "file", multiple: true, hidden: true, ...properties, on: { change: (event) => this.#picked(event.target) } });
    const files = pick({ accept: "image/*,.zip" });
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
      element("p", { class: "big", text: t("drop_here") }),
      element("p", { class: "quiet", text: t("drop_hint") }),
      element("div", { class: "row center" }, files, folder, button(t("choose_files"), () => files.click()), button(t("choose_folder"), () => folder.click())),
    );
    const byPath = element(
      "form", { class: "row", on: { submit: (event) => (event.preventDefault(), this.#build(this.path.value)) } },
      this.path, element("button", { text: t("bring_folder"), class: "main" }),
    );
    this.jobs = element("div", { class: "card" }, element("h2", { text: t("jobs") }));
    this.list = jobs.list;
    this.root = element(
      "section", { class: "page bring" },
      element("h1", { text: t("bring") }),
      element("p", { class: "quiet", text: t("bring_hint") }),
      element("div", { class: "columns" },
        element("div", { class: "card" },
          element("label", { class: "field" }, element("span", { text: t("name") }), this.name),
          element("h2", { text: t("from_path") }), byPath,
          element("h2", { text: t("from_browser") }), drop, this.status,
          element("h2", { text: t("camera") }), this.#camera(),
        ),
        this.jobs,
      ),
    );
  }

  enter() {
    this.jobs.append(this.list);
  }

  async #build(images) {
    if (!this.name.reportValidity()) return;
    try {
      await post("/jobs", { kind: "build", name: this.name.value, images: images || null });
    } catch (error) {
      complain(error);
    }
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
