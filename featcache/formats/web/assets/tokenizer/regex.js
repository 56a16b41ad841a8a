// Regular expressions of Oniguruma, which tokenizer.json is written in, as JavaScript's. What the two do not share, or
// what nobody writes there, is refused.

import { OLDER, UNKNOWN } from "./characters.js";
import { spansOf } from "./text.js";

// Return the function from a text to its spans that a pattern of tokenizer.json stands for.
export function patternOf(pattern) {
  if (typeof pattern?.String === "string") {
    const regex = new RegExp(pattern.String.replace(/[\^$\\.*+?()[\]{}|/]/g, "\\$&"), "gu");
    return (text) => spansOf(text, regex);
  }
  if (typeof pattern?.Regex === "string") return regexSpans(translate(pattern.Regex));
  throw new Error(`a pattern must have a String or a Regex, got ${JSON.stringify(pattern)}`);
}

// A text that is to the regular expressions here what the given one is to the library's, with the same places.
export const asKnown = (text) => text.replace(NEWER, asOlder);

const NEWER = new RegExp(`[\\u0295${UNKNOWN}${OLDER.map(([, newer]) => newer).join("")}]`, "gu");
const IS_UNKNOWN = new RegExp(`[${UNKNOWN}]`, "u");
const IS_UNASSIGNED = /\p{Cn}/u;
const GROUPS = OLDER.map(([older, newer]) => ({ older, newer: new RegExp(`[${newer}]`, "u") }));

function asOlder(character) {
  if (character === "\u0295") return "\u0250"; // a small letter until Unicode 17
  if (IS_UNKNOWN.test(character)) return character.length === 1 ? "\uffff" : "\u{10ffff}";
  return IS_UNASSIGNED.test(character) ? GROUPS.find(({ newer }) => newer.test(character)).older : character;
}

export const regexSpans = (regex) => (text) => spansOf(asKnown(text), regex);

const ALPHABETIC = "\\p{Alphabetic}\\u{363}-\\u{36f}\\u{1dd3}-\\u{1de6}"; // the ranges are so since Unicode 16
const WORD = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\xb2\\xb3\\xb9\\xbc-\\xbe";
const ANCHORS = {
  A: "^",
  z: "$",
  Z: "(?=\\n?$)",
  b: `(?:(?<=[${WORD}])(?![${WORD}])|(?<![${WORD}])(?=[${WORD}]))`,
  B: `(?:(?<=[${WORD}])(?=[${WORD}])|(?<![${WORD}])(?![${WORD}]))`,
};
const LINE_START = "(?:^|(?<=\\n)(?=[^]))";
const LINE_END = "(?=\\n|$)";
const CONTROLS = { t: "\t", n: "\n", v: "\v", f: "\f", r: "\r", a: "\x07", e: "\x1b" };
const SETS = { s: "\\p{White_Space}", d: "\\p{Nd}", h: "0-9a-fA-F", w: WORD };
const CODES = { x: /^(?:\{([0-9a-fA-F]{1,6})\}|([0-9a-fA-F]{2}))/, u: /^([0-9a-fA-F]{4})/ };
const POSIX = new Map([
  ["alnum", `${ALPHABETIC}\\p{Nd}`],
  ["alpha", ALPHABETIC],
  ["digit", "\\p{Nd}"],
  ["space", "\\p{White_Space}"],
  ["word", WORD],
]);
const LOOKS = ["?:", "?=", "?!", "?<=", "?<!"];

// Where case does not matter: what else is a capital of a small letter, sets that know no case, and the one mark that
// is an iota in another case.
const OTHER_CASES = { k: "\\u{212a}", s: "\\u{17f}" };
const CASELESS = /^(\\p\{(gc=[LNPSZ]|White_Space|Nd)\}|0-9a-fA-F|.*\\p\{Pc\}.*)$/;
const YPOGEGRAMMENI = "\\u{345}";

const code = (character) => `\\u{${character.codePointAt(0).toString(16)}}`;

function isSet(source) {
  try {
    return new RegExp(source, "u") !== null;
  } catch {
    return false;
  }
}

export const translate = (pattern) => new RegExp(new Translation(pattern).source(), "gv");

class Translation {
  constructor(pattern) {
    this.pattern = pattern;
    this.characters = [...pattern];
    this.at = 0;
    this.atomic = 0; // groups that are matched as a whole or not at all
  }

  source() {
    const anyCase = this.take("(?i)");
    const source = this.alternatives(anyCase);
    if (this.at < this.characters.length) this.refuse("an unmatched )");
    return source;
  }

  refuse(what) {
    throw new Error(`a regular expression must be one that JavaScript can do, got ${what} in ${this.pattern}`);
  }

  get next() {
    return this.characters[this.at];
  }

  take(text) {
    const length = [...text].length;
    if (this.characters.slice(this.at, this.at + length).join("") !== text) return false;
    this.at += length;
    return true;
  }

  // Take what a regular expression matches here, and return the match or null.
  takeMatch(regex) {
    const match = this.characters.slice(this.at).join("").match(regex);
    if (match !== null) this.at += [...match[0]].length;
    return match;
  }

  alternatives(anyCase) {
    let source = "";
    let before = ""; // the letter before, where case does not matter: some letters are two others in small
    while (this.at < this.characters.length && this.next !== ")") {
      if (this.take("|")) {
        source += "|";
        before = "";
        continue;
      }
      const letter = this.next;
      if (anyCase && /^(ss|st|ff|fi|fl)$/i.test(before + letter)) this.refuse(`${before}${letter} in any case`);
      source += this.quantified(this.atom(anyCase));
      before = letter;
    }
    return source;
  }

  quantified(atom) {
    for (;;) {
      const match = this.takeMatch(/^(?:([*+?])([+?]?)|(\{\d+\})|(\{(?:\d+,\d*|,\d+)\})(\??))/);
      if (match === null) return atom;
      const [, sign, mode = "", fixed, interval, lazy = ""] = match;
      const count = sign ?? fixed ?? interval.replace("{,", "{0,");
      const repeated = `(?:${atom})${count}`;
      atom = mode === "+" ? this.whole(repeated) : repeated + mode + lazy;
    }
  }

  // Matched at once, with no way back into it.
  whole(source) {
    const name = `whole${this.atomic++}`;
    return `(?:(?=(?<${name}>${source}))\\k<${name}>)`;
  }

  atom(anyCase) {
    if (this.next === "[") return this.set(anyCase);
    if (this.take("(")) return this.group(anyCase);
    if (this.take(".")) return "[^\\n]";
    if (this.take("^")) return LINE_START;
    if (this.take("$")) return LINE_END;
    if (/^[*+?]$/.test(this.next)) this.refuse(`${this.next} behind nothing`);
    if (this.next !== "\\") return `[${this.cases(this.takeCharacter(), anyCase)}]`;
    const letter = this.characters[this.at + 1];
    if (Object.hasOwn(ANCHORS, letter)) {
      this.at += 2;
      return ANCHORS[letter];
    }
    const { set, negated, character } = this.escape();
    return set === undefined ? `[${this.cases(character, anyCase)}]` : `[${negated ? "^" : ""}${set}]`;
  }

  takeCharacter() {
    if (this.at >= this.characters.length) this.refuse("an end too early");
    return this.characters[this.at++];
  }

  group(anyCase) {
    let open = "(?:";
    let inside = anyCase;
    let whole = false;
    if (this.next === "?") {
      const look = LOOKS.find((sign) => this.take(sign));
      if (look !== undefined) open = `(${look}`;
      else if (this.take("?>")) whole = true;
      else if (this.take("?i:")) inside = true;
      else if (this.take("?-i:")) inside = false;
      else this.refuse(`(${this.characters.slice(this.at, this.at + 3).join("")}`);
    }
    const before = this.atomic;
    const source = this.alternatives(inside);
    if (open.startsWith("(?<") && this.atomic > before) this.refuse("an atomic group in a look behind");
    if (!this.take(")")) this.refuse("a missing )");
    return whole ? this.whole(source) : `${open}${source})`;
  }

  // A backslash and what it stands for: a character, or a set of them that may be negated.
  escape(bracketed = false) {
    this.take("\\");
    const letter = this.takeCharacter();
    const small = letter.toLowerCase();
    if (small === "p") return this.property(letter === "P");
    if (Object.hasOwn(SETS, small)) return { set: SETS[small], negated: letter !== small };
    if (Object.hasOwn(CONTROLS, letter)) return { character: CONTROLS[letter] };
    if (bracketed && letter === "b") return { character: "\b" };
    const digits = CODES[letter] && this.takeMatch(CODES[letter]);
    if (digits) return { character: String.fromCodePoint(parseInt(digits[1] ?? digits[2], 16)) };
    if (/[0-9A-Za-z]/.test(letter)) this.refuse(`\\${letter}`);
    return { character: letter };
  }

  property(outer) {
    const match = this.takeMatch(/^\{(\^?)(\w+)\}/);
    if (match === null) this.refuse("\\p without a name");
    const [, inner, name] = match;
    const posix = POSIX.get(name.toLowerCase());
    const set = posix ?? [`\\p{gc=${name}}`, `\\p{sc=${name}}`].find(isSet);
    if (set === undefined) this.refuse(`\\p{${name}}`);
    return { set, negated: outer !== (inner === "^") };
  }

  // What stands in brackets: characters, ranges, sets in sets, and && between them.
  set(anyCase) {
    this.take("[");
    const negated = this.take("^");
    const sides = [""];
    for (let first = true; first || this.next !== "]"; first = false) {
      if (this.take("&&")) sides.push("");
      else sides[sides.length - 1] += this.member(anyCase);
    }
    this.take("]");
    const inside = sides.length === 1 ? sides[0] : sides.map((side) => `[${side}]`).join("&&");
    return `[${negated ? "^" : ""}${inside}]`;
  }

  member(anyCase) {
    const posix = this.takeMatch(/^\[:(\^?)(\w+):\]/);
    if (posix !== null) {
      const set = posix[2] === "punct" ? "\\p{P}\\p{S}" : POSIX.get(posix[2]);
      if (set === undefined) this.refuse(posix[0]);
      return `[${posix[1]}${set}]`;
    }
    if (this.next === "[") return this.set(anyCase);
    const { set, negated, character: first } = this.memberEnd();
    if (set !== undefined) {
      if (anyCase && !CASELESS.test(set)) this.refuse(`${set} in brackets in any case`);
      return `[${negated ? "^" : ""}${set}${anyCase && set === "\\p{gc=L}" ? YPOGEGRAMMENI : ""}]`;
    }
    if (this.next !== "-" || this.characters[this.at + 1] === "]") return this.cases(first, anyCase);
    this.take("-");
    const last = this.memberEnd().character;
    if (last === undefined) this.refuse("a range that ends in a set");
    if (!anyCase) return `${code(first)}-${code(last)}`;
    let source = "";
    for (let each = first.codePointAt(0); each <= last.codePointAt(0); each++) {
      source += this.cases(String.fromCodePoint(each), anyCase);
    }
    return source;
  }

  memberEnd() {
    return this.next === "\\" ? this.escape(true) : { character: this.takeCharacter() };
  }

  // The character, and where case does not matter those that differ from it in case alone.
  cases(character, anyCase) {
    if (!anyCase) return code(character);
    const [small, capital] = [character.toLowerCase(), character.toUpperCase()];
    if (small === capital) return code(character);
    if (!/[a-z]/.test(small)) this.refuse(`${character} in any case`);
    return code(small) + code(capital) + (OTHER_CASES[small] ?? "");
  }
}
