// Draw a picture again in the browser: smaller, upright, or over white. Only when the user asks for it.

const QUALITY = 0.92, TRIES = 10, STEP = 0.8; // of JPEG; sizes that are tried, each so much smaller than the one before

// Draw `file` upright in this size. `under`: a colour for what is transparent. Returns { blob, width, height }
export async function redraw(file, width, height, under = null, type = file.type === "image/png" || under ? "image/png" : "image/jpeg") {
  const picture = await createImageBitmap(file, { resizeWidth: width, resizeHeight: height, resizeQuality: "high" });
  const canvas = new OffscreenCanvas(width, height), pen = canvas.getContext("2d");
  if (under) {
    pen.fillStyle = under;
    pen.fillRect(0, 0, width, height);
  }
  pen.drawImage(picture, 0, 0);
  picture.close();
  return { blob: await canvas.convertToBlob({ type, quality: QUALITY }), width, height };
}

// Draw `file` as large as `room` allows: { bytes, pixels }. Returns null where nothing fits
export async function fitted(file, { width, height, alpha }, room) {
  let scale = Math.min(1, Math.sqrt(room.pixels / (width * height)));
  let type = file.type === "image/png" ? "image/png" : "image/jpeg";
  for (let i = 0; i < TRIES; i++) {
    const size = [width, height].map(side => Math.floor(side * scale));
    if (Math.min(...size) < 1) return null;
    const drawn = await redraw(file, ...size, alpha && type === "image/jpeg" ? "#fff" : null, type);
    if (drawn.blob.size <= room.bytes) return drawn;
    if (type === "image/png") type = "image/jpeg";
    else scale *= Math.min(STEP, Math.sqrt(room.bytes / drawn.blob.size));
  }
  return null;
}

// Return whether any of the picture can be seen through
export async function seenThrough(file) {
  const side = 128, picture = await createImageBitmap(file, { resizeWidth: side, resizeHeight: side });
  const pen = new OffscreenCanvas(side, side).getContext("2d");
  pen.drawImage(picture, 0, 0);
  return pen.getImageData(0, 0, side, side).data.some((value, i) => i % 4 === 3 && value < 255);
}

export const dataUri = file => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result);
  reader.onerror = () => reject(new Error(reader.error.message));
  reader.readAsDataURL(file);
});
