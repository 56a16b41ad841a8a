// Every word of the page, in one file for each language.

const LANGUAGES = { en: "English", zh: "中文" };
const chosen = localStorage.getItem("language");
export const language = chosen in LANGUAGES ? chosen : navigator.language.startsWith("zh") ? "zh" : "en";
export const languages = LANGUAGES;
const texts = await (await fetch(`/assets/texts/${language}.json`)).json();
document.documentElement.lang = language;

/** Return the text called `key`, with `{name}` replaced by the value of that name. */
export function t(key, values = {}) {
  const text = texts[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (_, name) => String(values[name] ?? ""));
}

/** Change the language: the page is read anew. */
export function choose(name) {
  localStorage.setItem("language", name);
  location.reload();
}
