// Pictures in and out: what a browser can decode -> plain RGB -> a BMP file for llama.cpp.

/**
 * A file's upright pixels as {width, height, rgb}, transparent ones over white, as the pipeline reads pictures.
 * Throws an Error with one line if it is not a picture that this browser can read.
 */
export async function decoded(file) {
  let bitmap;
  try {
    // No colour conversion: Pillow, which read the training pictures, ignores colour profiles too.
    bitmap = await createImageBitmap(file, { colorSpaceConversion: "none", imageOrientation: "from-image" });
  } catch {
    throw new Error(`${file.name || "That"} is not a picture that this browser can read.`);
  }
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const { width, height, data } = context.getImageData(0, 0, canvas.width, canvas.height);
  const rgb = new Uint8ClampedArray(width * height * 3);
  for (let from = 0, to = 0; from < data.length; from += 4) {
    rgb[to++] = data[from];
    rgb[to++] = data[from + 1];
    rgb[to++] = data[from + 2];
  }
  return { width, height, rgb };
}

/** The picture as an uncompressed BMP file (ArrayBuffer): exact, and cheaper to write and read than PNG. */
export function bmp({ width, height, rgb }) {
  const rowBytes = Math.ceil((width * 3) / 4) * 4;
  const file = new ArrayBuffer(54 + rowBytes * height);
  const header = new DataView(file);
  header.setUint16(0, 0x424d); // "BM"
  header.setUint32(2, file.byteLength, true);
  header.setUint32(10, 54, true); // where the pixels begin
  header.setUint32(14, 40, true); // size of the second header
  header.setInt32(18, width, true);
  header.setInt32(22, -height, true); // negative: the top row comes first
  header.setUint16(26, 1, true); // colour planes
  header.setUint16(28, 24, true); // bits a pixel
  const pixels = new Uint8Array(file, 54);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      for (let colour = 0; colour < 3; colour++) {
        pixels[y * rowBytes + 3 * x + colour] = rgb[3 * (y * width + x) + 2 - colour]; // blue, green, red
      }
    }
  }
  return file;
}
