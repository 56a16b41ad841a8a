// What the rows of a cache fail on, or see otherwise than a browser does, is refused here: the page then never shows a
// label of another picture than the one the model would be given.

const text = (bytes, start, stop) => String.fromCharCode(...bytes.subarray(start, stop));

// Return why the bytes of an image file are refused, or null: a JPEG or PNG without its end mark, which a browser fills
// up with grey; a PNG of 16 bits, of which a browser cannot tell whether a camera used 12.
export function refusal(bytes) {
  if (bytes[0] === 0xff && bytes[1] === 0xd8) return jpegHasEnd(bytes) ? null : "truncated JPEG: it has no end mark";
  if (text(bytes, 0, 8) !== "\x89PNG\r\n\x1a\n") return null;
  if (!pngHasEnd(bytes)) return "truncated PNG: it has no end mark";
  return bytes[24] === 16 ? "a PNG must have 8 bits per channel here, it has 16: save it with 8" : null;
}

// Whether an end mark follows the header, whose previews have end marks of their own.
function jpegHasEnd(bytes) {
  let at = 2;
  while (at + 3 < bytes.length) {
    const kind = bytes[at + 1];
    if (bytes[at] !== 0xff || kind === 0xff) at += 1;
    else if (kind === 0 || kind === 0xc8 || (kind >= 0xd0 && kind < 0xda) || (kind >= 0xf0 && kind < 0xfe)) at += 2;
    else if (kind === 0xda) break;
    else at += 2 + Math.max(2, 256 * bytes[at + 2] + bytes[at + 3]);
  }
  for (; at + 1 < bytes.length; at += 1) if (bytes[at] === 0xff && bytes[at + 1] === 0xd9) return true;
  return false;
}

function pngHasEnd(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let at = 8; at + 12 <= bytes.length; ) {
    const kind = text(bytes, at + 4, at + 8);
    const stop = at + 12 + view.getUint32(at);
    if (stop > bytes.length || !/^[A-Za-z]{4}$/.test(kind)) return false;
    if (kind === "IEND") return true;
    at = stop;
  }
  return false;
}
