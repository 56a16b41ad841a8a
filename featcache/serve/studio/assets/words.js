// Texts on the page: a list to read, the whole text when it is enlarged.

import { getText } from "./api.js";
import { complain, element } from "./dom.js";

const LINE = 21;
const ROOM = 22; // above and below the lines
const FOOT = 28; // of a narrow tile, below its text
const NARROW = 520; // pixels below which the label stands under the text
const COLUMN = 720;

const said = (sample, more = {}) =>
  element("p", { dir: "auto", ...more, class: `said ${more.class ?? ""} ${sample?.failure ? "bad" : ""}`, text: sample?.text ?? sample?.failure ?? "" });

export const words = {
  tileClass: "words",
  sizes: { stored: "lines", min: 1, max: 8, step: 1, usual: 2 },
  searched: false,

  columns: (width) => Math.floor(width / COLUMN),
  height: (width, lines) => lines * LINE + ROOM + (width < NARROW ? FOOT : 0),

  tile: () => said(null),

  dress: (tile, sample, { width, size }) => {
    tile.classList.toggle("narrow", width < NARROW);
    tile.style.setProperty("--lines", size);
    const place = tile.querySelector(".said");
    const text = sample?.text ?? sample?.failure ?? "";
    if (place.textContent !== text) place.textContent = text;
    place.classList.toggle("bad", Boolean(sample?.failure));
  },
  name: (sample) => sample.text ?? sample.path,
  small: (session, number) => said(session.samples.get(number), { class: "short" }),
  detail: (session, number, sample, enlarge) => said(sample, { on: { click: enlarge } }),
  enlarged: (session, number, sample) => {
    // somebody who marks words in it does not want it closed
    const place = said(sample, { tabindex: "0", on: { click: (event) => event.stopPropagation() } });
    getText(`/datasets/${session.dataset.id}/samples/${number}/picture`).then((whole) => (place.textContent = whole), complain);
    return place;
  },
};
