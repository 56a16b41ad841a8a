// Images on the page: tiles in a grid, a larger picture beside it.

import { element } from "./dom.js";

const GAP = 8;
const FOOT = 30; // of a tile, below its picture

const address = ({ dataset }, number, query = "") => `/api/datasets/${dataset.id}/samples/${number}/picture?at=${dataset.generation}${query}`;
const large = (session, number, sample, on = {}) => element("img", { src: address(session, number, "&side=1024"), alt: sample?.path ?? "", on });

export const pictures = {
  tileClass: "picture",
  sizes: { stored: "tile", min: 72, max: 260, step: 4, usual: 132 },
  searched: true, // whether smaller networks are searched for within a budget

  columns: (width, size) => Math.floor(width / (size + GAP)),
  height: (width) => width + FOOT,

  /** What a tile holds above its label. */
  tile: (session, number) =>
    element("img", {
      alt: "", loading: "lazy", decoding: "async", draggable: "false", src: address(session, number),
      on: { error: (event) => event.target.classList.add("broken") },
    }),

  /** Show in a tile what is known of its sample by now. */
  dress: () => {},
  name: (sample) => sample.path,
  small: (session, number) => element("img", { src: address(session, number), alt: "", loading: "lazy" }),
  detail: (session, number, sample, enlarge) => large(session, number, sample, { click: enlarge }),
  enlarged: (session, number, sample) => large(session, number, sample),
};
