// The pictures of the next question: checked against the server's limits, shown, and changed only when the user asks.

import { action, by, make, Refused } from "./base.js";
import { readHeader } from "./header.js";
import { dataUri, fitted, redraw, seenThrough } from "./redraw.js";

let attached = []; // { url, name, width, height, notes, stored, file, actions }
let around = { model: () => null, used: () => ({ pictures: 0, pixels: 0, bytes: 0 }), complain: () => {}, ready: () => {} };

export const usePictures = given => { around = given; };
export const pictures = () => attached;

export function attach(given) {
  attached = given;
  by("attached").replaceChildren(...attached.map((picture, i) => {
    const remove = () => { attach(attached.filter((_, j) => j !== i)); around.ready(); };
    const figure = shown(picture), removing = make("button", { type: "button", textContent: "×", ariaLabel: `Remove ${picture.name}`, onclick: remove });
    figure.firstElementChild.append(removing);
    figure.append(...(picture.actions ?? []).map(([text, change]) => action(text, () => replace(picture, change))));
    return figure;
  }));
}

// Return a picture with the notes that stay with it; `stored`: as it lies in the file, as the model sees it
export function shown({ url, name, notes = [], stored }) {
  const unknown = text => make("span", { className: "unknown", textContent: text });
  const picture = url ? make("img", { src: url, alt: name, title: name, className: stored ? "stored" : "" }) : unknown(`${name}: not kept by this browser, so no longer part of the conversation`);
  picture.onerror = () => picture.replaceWith(unknown(name)); // not a picture; the server will say so
  return make("figure", {}, make("div", {}, picture), ...(notes.length ? [make("figcaption", { className: "note", textContent: notes.join(" · ") })] : []));
}

export async function add(files) {
  by("offers").replaceChildren();
  for (const file of [...files]) {
    try {
      const size = await readHeader(file), refused = overLimit(file, size);
      if (refused) await offer(file, size, refused);
      else attach([...attached, await picture(file, size)]);
    } catch (error) {
      around.complain(Object.assign(error, { code: error.code || "unread", file: file.name }));
    }
  }
  around.ready();
}

// What is left of the server's limits for one more picture
function room() {
  const { max_body = Infinity, max_images = Infinity, max_pixels = Infinity } = around.model()?.limits ?? {}; // the server judges what the page does not know
  const used = around.used();
  return {
    pictures: max_images - used.pictures - attached.length,
    pixels: max_pixels - used.pixels - attached.reduce((total, { width = 0, height = 0 }) => total + width * height, 0),
    bytes: Math.max(0, max_body - used.bytes - attached.reduce((total, { url }) => total + url.length, 0)) * 3 / 4, // a file is sent in base64
    most: max_images,
  };
}

// Return why the server would refuse this file with the rest of the conversation, or null
function overLimit({ size: bytes }, size) {
  const left = room(), pixels = size ? size.width * size.height : 0;
  if (left.pictures < 1) return new Refused({ code: "invalid_value", message: `one picture too many, this server takes ${left.most} in one conversation` });
  const problem = bytes > left.bytes ? `${megabytes(bytes)}, and this conversation has room for ${megabytes(left.bytes)}`
    : pixels > left.pixels ? `${size.width} × ${size.height} pixels, and this conversation has room for ${millions(left.pixels)}` : null;
  return problem ? new Refused({ code: "image_too_large", message: problem }) : null;
}

const megabytes = bytes => `${(bytes / 1e6).toFixed(bytes < 1e5 ? 3 : 1)} MB`;
const millions = count => (count < 1e5 ? `${Math.max(0, count)} pixels` : `${(count / 1e6).toFixed(1)} million pixels`);

// Refuse a file, and offer it scaled down where that would fit
async function offer(file, size, refused) {
  around.complain(Object.assign(refused, { file: file.name }));
  if (!size || refused.code !== "image_too_large") return;
  const upright = size.orientation >= 5 ? { ...size, width: size.height, height: size.width } : size;
  const drawn = await fitted(file, upright, room()).catch(() => null);
  if (!drawn) return;
  const done = change => { row.remove(); around.complain(null); change?.(); around.ready(); };
  const note = `scaled from ${upright.width} × ${upright.height} to ${drawn.width} × ${drawn.height} by this page${asWhat(drawn.blob, file)}`;
  const take = async () => attach([...attached, await remade(file, drawn, note)]);
  const row = make("p", {}, make("button", { type: "button", textContent: `Send it scaled to ${drawn.width} × ${drawn.height}`, onclick: () => done(take) }), " ", make("button", { type: "button", className: "quiet", textContent: "Leave it out", onclick: () => done() }));
  by("offers").append(row);
}

const asWhat = (blob, file) => (blob.type === file.type ? "" : `, as ${blob.type.replace("image/", "").toUpperCase()}`);

// Make an entry of what this page has drawn; `note` says what it did
async function remade({ name }, { blob }, note) {
  const file = new File([blob], name, { type: blob.type }), entry = await picture(file, await readHeader(file));
  entry.notes.unshift(note);
  return entry;
}

// Make an entry of a file, with what the user should know of it and may change
async function picture(file, size) {
  const { exif = "apply", alpha } = around.model() ?? {}, notes = [], actions = [];
  const entry = { url: await dataUri(file), name: unused(file.name), width: size?.width, height: size?.height, file, notes, actions };
  if (size && size.orientation > 1 && exif === "ignore") {
    entry.stored = true;
    notes.push(`the model ignores EXIF orientation ${size.orientation}, and sees it as shown here`);
    actions.push(["Turn it upright", () => changed(file, size, null, "turned upright by this page")]);
  }
  if (size?.alpha && await seenThrough(file).catch(() => false)) {
    notes.push(TRANSPARENT[alpha] ?? "parts of it are transparent");
    if (alpha !== "white") actions.push(["Lay it over white", () => changed(file, size, "#fff", "laid over white by this page")]);
  }
  return entry;
}

const UNDER = "instead of transparent parts the model sees the colours stored under them, often black";
const TRANSPARENT = { convert: UNDER, drop: UNDER, white: "transparent parts are white for the model" };

async function changed(file, size, under, note) {
  const [width, height] = size.orientation >= 5 ? [size.height, size.width] : [size.width, size.height];
  const drawn = await redraw(file, width, height, under), turned = under && size.orientation > 1 ? "turned upright and " : "";
  return remade(file, drawn, turned + note + asWhat(drawn.blob, file));
}

async function replace(picture, change) {
  try {
    const other = { ...(await change()), name: picture.name };
    attach(attached.map(one => (one === picture ? other : one)));
  } catch (error) {
    around.complain(Object.assign(error, { code: "unread", file: picture.name }));
  }
  around.ready();
}

function unused(name) { // pasted pictures are all called image.png
  const taken = attached.map(one => one.name);
  for (let n = 2, other = name; ; other = `${name} (${n++})`) if (!taken.includes(other)) return other;
}
