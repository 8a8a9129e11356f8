// A recording as a picture: its wave, and below it each segment, as sure as the model was.

import { byId, clock } from "./dom.js";
import { surenessOf } from "./segments.js";

const PLOT_RATE = 8000; // samples a second, the lowest that every browser decodes to
const COLUMNS = 360;
const LARGEST = 400e6; // bytes of a file that is decoded for its picture
const WAVE_PART = 0.78; // of the height
let peaks = null; // loudest sample of each column

/** Read the wave of a recording; without one, of what the browser cannot read, only segments are drawn. */
export async function readWave(blob) {
  peaks = null;
  if (blob.size > LARGEST) return;
  try {
    const context = new OfflineAudioContext(1, 1, PLOT_RATE);
    const sound = await context.decodeAudioData(await blob.arrayBuffer());
    peaks = peaksOf(sound.getChannelData(0));
  } catch {
    peaks = null;
  }
}

export function forgetWave() {
  peaks = null;
}

function peaksOf(samples) {
  const step = Math.max(1, samples.length / COLUMNS);
  const found = new Float32Array(Math.ceil(samples.length / step));
  for (let i = 0; i < samples.length; i += 1) {
    const column = Math.floor(i / step);
    found[column] = Math.max(found[column], Math.abs(samples[i]));
  }
  return found;
}

/** Draw what is known; `now` is where the player stands. */
export function drawWave(segments, duration, now = 0) {
  const canvas = byId("wave");
  canvas.hidden = !duration || !(peaks || segments.length);
  if (canvas.hidden) return;
  const ratio = window.devicePixelRatio || 1;
  [canvas.width, canvas.height] = [canvas.clientWidth * ratio, canvas.clientHeight * ratio];
  canvas.setAttribute("aria-label", `Wave of ${clock(duration)}, ${segments.length} segments`);
  const [pen, style] = [canvas.getContext("2d"), getComputedStyle(canvas)];
  const across = canvas.width / duration;
  drawPeaks(pen, style, now * across);
  for (const segment of segments) drawSegment(pen, style, segment, across);
}

function drawPeaks(pen, style, heard) {
  if (!peaks) return;
  const { width, height } = pen.canvas;
  const [middle, step] = [(height * WAVE_PART) / 2, width / peaks.length];
  const loudest = peaks.reduce((most, peak) => Math.max(most, peak), 1e-4);
  peaks.forEach((peak, column) => {
    const half = Math.max(0.5, (peak / loudest) * middle * 0.95);
    pen.fillStyle = style.getPropertyValue(column * step < heard ? "--accent" : "--wave");
    pen.fillRect(column * step, middle - half, Math.max(1, step * 0.6), 2 * half);
  });
}

function drawSegment(pen, style, segment, across) {
  if (!segment.text.trim()) return;
  const { height } = pen.canvas;
  const top = height * (WAVE_PART + 0.08);
  pen.fillStyle = style.getPropertyValue(`--${surenessOf(segment)}`);
  pen.fillRect(segment.start * across, top, Math.max(2, (segment.end - segment.start) * across - 1), height - top);
}
