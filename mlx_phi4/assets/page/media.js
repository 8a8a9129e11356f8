// Pictures, recordings and videos as they are given: files, what is pasted, what camera and microphone made.

import { Problem } from "./say.js";
import { MAX_BODY, tooLarge } from "./server.js";

const TAKEN_PICTURES = ["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp"]; // others are drawn anew
const BASE64 = 4 / 3; // bytes of text for a byte
const SUFFIXES = {
  image: /\.(png|jpe?g|webp|gif|bmp|tiff?|avif|heic|svg)$/i,
  audio: /\.(wav|mp3|flac|ogg|opus|aiff?|m4a|aac|weba)$/i,
  video: /\.(mp4|m4v|mov|webm|mkv|avi)$/i,
};

/** A file -> { kind: image, audio or video; name, type, blob }. Throws Problem. */
export async function readMedium(file) {
  const kind = kindOf(file);
  if (!kind) throw new Problem(`${file.name} is neither a picture nor a recording.`);
  if (!file.size) throw new Problem(`${file.name} is empty.`);
  const medium = { kind, name: file.name, type: file.type, blob: file };
  const found = kind === "image" && !/tiff/.test(file.type) ? await asPicture(medium) : medium;
  if (found.blob.size * BASE64 > MAX_BODY) throw new Problem(tooLarge(file.name));
  return found;
}

export function kindOf(file) {
  const said = file.type.split("/")[0];
  if (said in SUFFIXES) return said;
  return Object.keys(SUFFIXES).find((kind) => SUFFIXES[kind].test(file.name)) ?? null;
}

/** A picture in a format that the server takes: what only the browser knows becomes PNG. */
async function asPicture(medium) {
  const bitmap = await createImageBitmap(medium.blob).catch(() => drawing(medium));
  if (!bitmap) throw new Problem(`${medium.name} cannot be read as a picture.`);
  const known = TAKEN_PICTURES.includes(medium.type);
  return known ? medium : { ...medium, type: "image/png", blob: await asPng(bitmap) };
}

/** What is drawn from lines, such as SVG, has no bitmap of its own. */
async function drawing(medium) {
  const image = new Image();
  image.src = URL.createObjectURL(medium.blob);
  try {
    await image.decode();
    return await createImageBitmap(image, { resizeWidth: image.naturalWidth || 896 });
  } catch {
    return null;
  } finally {
    URL.revokeObjectURL(image.src);
  }
}

/** A bitmap, or a video's picture of the moment, as a file's content. */
export function asPng(source, type = "image/png") {
  const canvas = document.createElement("canvas");
  canvas.width = source.videoWidth ?? source.width;
  canvas.height = source.videoHeight ?? source.height;
  canvas.getContext("2d").drawImage(source, 0, 0);
  return new Promise((resolve) => canvas.toBlob(resolve, type, 0.92));
}

/** A medium as a part of a message. */
export async function partOf(medium) {
  const url = await dataUrl(medium.blob);
  if (medium.kind === "image") return { type: "image_url", image_url: { url } };
  if (medium.kind === "video") return { type: "video_url", video_url: { url } };
  return { type: "input_audio", input_audio: { data: url.slice(url.indexOf(",") + 1), format: formatOf(medium) } };
}

function formatOf({ name, type }) {
  const said = (name.match(/\.(\w+)$/)?.[1] ?? type.split("/")[1] ?? "wav").toLowerCase();
  return { aif: "aiff", mpeg: "mp3", "x-wav": "wav", weba: "webm" }[said] ?? said;
}

function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Problem("A file cannot be read any more; attach it again."));
    reader.readAsDataURL(blob);
  });
}

/** The files that were dropped or pasted. */
export function filesOf(transfer) {
  return [...(transfer?.files ?? [])];
}
