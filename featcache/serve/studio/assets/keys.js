// Which key gives which class: 1 to 9, then letters.

const KEYS = [..."123456789abcdefghijklmnopqrstuvwxyz"];

export const keyOf = (index) => KEYS[index] ?? "";
export const classOf = (key) => KEYS.indexOf(key);
