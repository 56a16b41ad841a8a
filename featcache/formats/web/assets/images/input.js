// Images before the network: RGB bytes, decoded by the browser, resized here.

import { refusal } from "./file.js";
import { resizeCrop } from "./resize.js";

// Return {data, width, height}: RGBA bytes of an image file (a Blob) turned upright, or of a video frame, over white.
export async function decode(source) {
  const reason = source instanceof Blob ? refusal(new Uint8Array(await source.arrayBuffer())) : null;
  if (reason !== null) throw new Error(reason);
  const options = { imageOrientation: "from-image", colorSpaceConversion: "none" };
  const bitmap = await createImageBitmap(source, options);
  const { width, height } = bitmap;
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return { data: context.getImageData(0, 0, width, height).data, width, height };
}

export class Input {
  constructor(preprocessing) {
    this.preprocessing = preprocessing;
  }

  static async load(description) {
    return new Input(description.preprocessing);
  }

  // Return the network's input (height, width, 3) bytes of an image file or a video frame.
  async prepare(source) {
    const { data, width, height } = await decode(source);
    return resizeCrop(data, width, height, 4, this.preprocessing);
  }

  feeds(ort, pixels, count) {
    const { height, width } = this.preprocessing;
    const bytes = new Uint8Array(pixels.buffer, pixels.byteOffset, pixels.byteLength);
    return { image: new ort.Tensor("uint8", bytes, [count, height, width, 3]) };
  }
}
