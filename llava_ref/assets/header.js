// Read from a file what the server reads before it decodes: size, EXIF orientation, and whether there may be transparency.

const MOST = 2 ** 26; // bytes that are looked through: WebP has its EXIF data at the end

const says = (view, at, text) => [...text].every((c, i) => view.getUint8(at + i) === c.charCodeAt(0));
const plain = (width, height, alpha = false, orientation = 1) => ({ width, height, alpha, orientation });

// Return { width, height, alpha, orientation }, as stored; null for what is in none of the five formats, or damaged
export async function readHeader(file) {
  const view = new DataView(await file.slice(0, MOST).arrayBuffer());
  try {
    return (png(view) ?? jpeg(view) ?? webp(view) ?? gif(view) ?? bmp(view)) || null;
  } catch {
    return null; // it ends too early
  }
}

function png(view) {
  if (!says(view, 1, "PNG\r\n")) return null;
  const found = plain(view.getUint32(16), view.getUint32(20), [4, 6].includes(view.getUint8(25)));
  for (let at = 8; at + 12 <= view.byteLength; at += 12 + view.getUint32(at)) {
    if (says(view, at + 4, "tRNS")) found.alpha = true;
    if (says(view, at + 4, "eXIf")) found.orientation = oriented(view, at + 8);
  }
  return found;
}

function jpeg(view) {
  if (view.getUint16(0) !== 0xffd8) return null;
  let orientation = 1;
  for (let at = 2; ; at += 2 + view.getUint16(at + 2)) {
    while (view.getUint8(at + 1) === 0xff) at++; // fill bytes
    const marker = view.getUint8(at + 1);
    if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker)) return plain(view.getUint16(at + 7), view.getUint16(at + 5), false, orientation);
    if (marker === 0xe1 && says(view, at + 4, "Exif\0\0")) orientation = oriented(view, at + 10);
  }
}

function webp(view) {
  if (!says(view, 0, "RIFF") || !says(view, 8, "WEBP")) return null;
  const three = at => view.getUint16(at, true) + (view.getUint8(at + 2) << 16);
  if (says(view, 12, "VP8 ")) return plain(view.getUint16(26, true) & 0x3fff, view.getUint16(28, true) & 0x3fff);
  if (says(view, 12, "VP8L")) {
    const bits = view.getUint32(21, true);
    return plain((bits & 0x3fff) + 1, ((bits >> 14) & 0x3fff) + 1, Boolean(bits & (1 << 28)));
  }
  const found = plain(three(24) + 1, three(27) + 1, Boolean(view.getUint8(20) & 0x10));
  for (let at = 12; at + 8 <= view.byteLength; at += 8 + view.getUint32(at + 4, true) + (view.getUint32(at + 4, true) & 1)) {
    if (says(view, at, "EXIF")) found.orientation = oriented(view, at + 8);
  }
  return found;
}

function gif(view) {
  return says(view, 0, "GIF8") ? plain(view.getUint16(6, true), view.getUint16(8, true), true) : null;
}

function bmp(view) {
  return says(view, 0, "BM") ? plain(Math.abs(view.getInt32(18, true)), Math.abs(view.getInt32(22, true))) : null;
}

// Return the orientation, 1 to 8, of the EXIF data at `start`; a damaged one is 1
function oriented(view, start) {
  const at = says(view, start, "Exif\0\0") ? start + 6 : start, little = says(view, at, "II");
  const first = at + view.getUint32(at + 4, little);
  for (let i = 0; i < view.getUint16(first, little); i++) {
    const entry = first + 2 + 12 * i;
    if (view.getUint16(entry, little) === 0x0112) {
      const value = view.getUint16(entry + 8, little);
      return value >= 1 && value <= 8 ? value : 1;
    }
  }
  return 1;
}
