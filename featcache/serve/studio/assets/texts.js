// Every word of the page, in one file for each language.

const LANGUAGES = { en: "English", zh: "中文" };
const chosen = localStorage.getItem("language");
export const language = chosen in LANGUAGES ? chosen : navigator.language.startsWith("zh") ? "zh" : "en";
export const languages = LANGUAGES;
const texts = await (await fetch(`/assets/texts/${language}.json`)).json();
document.documentElement.lang = language;

/** As what a person sees what the data set holds, which the words for it go by: `picture` or `text`. */
export const shown = localStorage.getItem("shown") === "text" ? "text" : "picture";

/** Return the text called `key`, of `kind` where that has its own, with `{name}` replaced by the value of that name. */
export function t(key, values = {}, kind = shown) {
  const text = texts[`${key}@${kind}`] ?? texts[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (_, name) => String(values[name] ?? ""));
}

/** Change the language: the page is read anew. */
export function choose(name) {
  localStorage.setItem("language", name);
  location.reload();
}

/** Go on once the page speaks of what is shown as `kind`: else it is read anew, and this never ends. */
export async function speakOf(kind) {
  if (kind === shown) return;
  localStorage.setItem("shown", kind);
  location.reload();
  await new Promise(() => {});
}
