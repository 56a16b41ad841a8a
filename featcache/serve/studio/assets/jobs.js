// Jobs: what runs, how far it has come, what it said.

import { get, post } from "./api.js";
import { button, complain, element, percent, say } from "./dom.js";
import { t } from "./texts.js";

export class Jobs extends EventTarget {
  constructor() {
    super();
    this.jobs = new Map();
    this.list = element("div", { class: "jobs" });
    this.pill = button("", () => location.assign("#bring"), { class: "pill", hidden: true });
  }

  async refresh() {
    this.jobs = new Map((await get("/jobs")).map((job) => [job.id, job]));
    this.render();
  }

  hear(event, values) {
    if (event === "open") this.refresh().catch(complain);
    if (event !== "job") return;
    const before = this.jobs.get(values.id)?.state;
    this.jobs.set(values.id, values);
    this.render();
    if (before !== values.state && values.state === "failed") say(values.error, { bad: true });
    if (before !== values.state && values.state === "done") {
      this.dispatchEvent(new CustomEvent("done", { detail: values }));
      say(t("job_done", { name: values.parameters.name }));
    }
  }

  render() {
    const jobs = [...this.jobs.values()].sort((one, other) => other.id - one.id);
    const running = jobs.find((job) => job.state === "running");
    this.pill.hidden = !running;
    if (running) this.pill.textContent = `${t(`kind_${running.kind}`)} ${running.progress ? percent(running.progress.done / Math.max(running.progress.total, 1), 0) : "…"}`;
    const opened = new Set([...this.list.querySelectorAll("details[open]")].map((one) => one.dataset.job));
    this.list.replaceChildren(...jobs.map((job) => this.#entry(job, opened.has(String(job.id)))));
    if (!jobs.length) this.list.append(element("p", { class: "quiet", text: t("jobs_none") }));
  }

  #entry(job, open) {
    const { progress } = job;
    const at = progress ? progress.done / Math.max(progress.total, 1) : 0;
    const bar = element("progress", { max: 1, "aria-label": t("progress"), ...(progress && { value: at }) });
    const said = element("pre", { class: "log" });
    const log = element("details", { "data-job": job.id, "aria-label": t("log"), on: { toggle: () => log.open && this.#log(job.id, said).catch(complain) } }, element("summary", { text: t("log") }), said);
    log.open = open;
    const step = job.state === "running" && job.doing && t("step", { step: job.step + 1, steps: job.steps, doing: job.doing });
    const line = [t(`kind_${job.kind}`), step, progress && `${progress.what} ${progress.done}/${progress.total}`, progress?.rate, progress?.seconds_left != null && t("seconds_left", { seconds: progress.seconds_left })];
    return element(
      "article", { class: `job ${job.state}` },
      element("div", { class: "row" },
        element("strong", { text: job.parameters.name }),
        element("span", { class: `state ${job.state}`, text: t(`state_${job.state}`) }),
        element("span", { class: "spread" }),
        job.state === "queued" || job.state === "running" ? button(t(job.state === "running" ? "stop" : "cancel"), () => post(`/jobs/${job.id}/cancel`).catch(complain), { "aria-label": `${t(job.state === "running" ? "stop" : "cancel")}: ${job.parameters.name}` }) : "",
      ),
      job.state === "running" ? bar : "",
      element("p", { class: "quiet", text: line.filter(Boolean).join(" · ") }),
      job.error ? element("p", { class: "bad", text: job.error }) : "",
      job.state === "done" && job.kind === "build" && job.result ? this.#built(job) : "",
      log,
    );
  }

  #built(job) {
    const { result } = job;
    const failures = result.failures ?? [];
    const kind = job.parameters.input === "text" ? "text" : "picture";
    const made = element("div", {}, element("p", { text: t("built", { images: result.images, extracted: result.extracted, reused: result.reused, seconds: result.wall_seconds.toFixed(1) }, kind) }));
    if (failures.length) {
      made.append(element("details", {}, element("summary", { text: t("broken", { count: failures.length }, kind) }),
        element("ul", {}, ...failures.slice(0, 200).map((one) => element("li", { text: `${one.path}: ${one.reason}` })))));
    }
    return made;
  }

  async #log(number, place) {
    const response = await fetch(`/api/jobs/${number}/log`);
    place.textContent = await response.text();
  }
}
