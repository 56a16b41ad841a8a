// The page: its head, its four parts, and what the server tells to each of them.

import { get, listen } from "./api.js";
import { Bring } from "./bring.js";
import { button, complain, element } from "./dom.js";
import { Jobs } from "./jobs.js";
import { See } from "./see.js";
import { Session } from "./session.js";
import { Ship } from "./ship.js";
import { Teach } from "./teach.js";
import { choose, language, languages, t } from "./texts.js";

const session = new Session();
const jobs = new Jobs();
const teach = new Teach(session);
const parts = { bring: new Bring(jobs), teach, see: new See(session, jobs, show), ship: new Ship(session, jobs) };

const picker = element("select", { "aria-label": t("dataset"), class: "dataset", on: { change: () => open(Number(picker.value)) } });
const tabs = Object.keys(parts).map((name) => element("a", { href: `#${name}`, text: t(name) }));
const themes = ["auto", "light", "dark"];
const dark = matchMedia("(prefers-color-scheme: dark)");
const theme = button("◐", () => setTheme(themes[(themes.indexOf(chosenTheme()) + 1) % 3]), { class: "icon", title: t("theme"), "aria-label": t("theme") });
const words = element("select", { "aria-label": t("language"), class: "language", on: { change: () => choose(words.value) } },
  ...Object.entries(languages).map(([name, text]) => element("option", { value: name, text, selected: name === language })));
const lost = element("span", { class: "lost", hidden: true, text: t("lost") });

document.getElementById("studio").append(
  element("header", {},
    element("a", { class: "brand", href: "#teach" }, element("img", { src: "/assets/icon.svg", alt: "" }), element("span", { text: "featcache studio" })),
    picker, element("nav", { "aria-label": t("parts") }, ...tabs), element("span", { class: "spread" }), lost, jobs.pill, words, theme),
  element("main", {}, ...Object.values(parts).map((part) => part.root)),
);

for (const part of Object.values(parts)) part.root.hidden = true; // until it is known which one is asked for

function chosenTheme() {
  return localStorage.getItem("theme") ?? "auto";
}

function setTheme(name) {
  localStorage.setItem("theme", name);
  document.documentElement.dataset.theme = name === "auto" ? (dark.matches ? "dark" : "light") : name;
}

function route() {
  const asked = location.hash.slice(1);
  const name = asked in parts ? asked : session.dataset ? "teach" : "bring";
  for (const [one, part] of Object.entries(parts)) part.root.hidden = one !== name;
  for (const tab of tabs) {
    if (tab.hash === `#${name}`) tab.setAttribute("aria-current", "page");
    else tab.removeAttribute("aria-current");
  }
  document.title = `${t(name)} · featcache studio`;
  parts[name].enter?.();
  if (name === "teach") teach.grid.root.focus();
}

function show(view) {
  location.assign("#teach");
  teach.show(view);
}

async function open(number) {
  localStorage.setItem("dataset", number);
  try {
    await session.open(number);
  } catch (error) {
    complain(error);
  }
}

async function listDatasets({ prefer } = {}) {
  const datasets = await get("/datasets");
  picker.replaceChildren(...datasets.map((one) => element("option", { value: one.id, text: `${one.name} · ${one.images}`, title: one.cache })));
  picker.hidden = !datasets.length;
  const wanted = datasets.find((one) => one.cache === prefer) ?? datasets.find((one) => one.id === (session.dataset?.id ?? Number(localStorage.getItem("dataset")))) ?? datasets[0];
  if (!wanted) return;
  picker.value = wanted.id;
  if (session.dataset?.id !== wanted.id) await open(wanted.id);
}

jobs.addEventListener("done", async (event) => {
  if (event.detail.kind !== "build") return;
  location.assign("#teach"); // first: the page may be read anew for another kind of data set
  await listDatasets({ prefer: `caches/${event.detail.parameters.name}` }).catch(complain);
});
addEventListener("hashchange", route);
dark.addEventListener("change", () => setTheme(chosenTheme()));
setTheme(chosenTheme());
try {
  await listDatasets();
} catch (error) {
  complain(error);
}
route();
listen((event, values) => {
  if (event === "lost" || event === "open") lost.hidden = event === "open";
  jobs.hear(event, values);
  session.hear(event, values);
  if (event === "workspace") listDatasets().catch(complain);
});
