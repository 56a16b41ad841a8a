// How what the data set holds is shown: a module for each way, all with the same parts.

import { pictures } from "./pictures.js";
import { shown } from "./texts.js";
import { words } from "./words.js";

export const views = { picture: pictures, text: words };

/** That of the data set which this page was read for. */
export const view = views[shown];
