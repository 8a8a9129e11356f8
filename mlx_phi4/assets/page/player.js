// The player of a recording, and its picture, which follows it.

import { byId } from "./dom.js";
import { followPlayer } from "./segments.js";
import { drawWave } from "./wave.js";

let played = null; // the transcript whose recording it is

export function setUpPlayer() {
  const player = byId("player");
  player.ontimeupdate = () => {
    followPlayer(player.currentTime);
    drawPlayed();
  };
  player.onerror = () => (player.hidden = true);
  player.onloadedmetadata = drawPlayed;
  new ResizeObserver(drawPlayed).observe(byId("heard"));
  matchMedia("(prefers-color-scheme: dark)").onchange = drawPlayed;
  byId("wave").onclick = (event) => play((event.offsetX / byId("wave").clientWidth) * lengthOfPlayed());
}

export function setPlayed(transcript) {
  played = transcript;
}

/** A recording to be heard; without it, of what the browser cannot play, the segments still show. */
export function showPlayer(blob) {
  const player = byId("player");
  URL.revokeObjectURL(player.src);
  player.src = URL.createObjectURL(blob);
  player.hidden = false;
}

export function play(seconds) {
  const player = byId("player");
  if (player.hidden) return;
  player.currentTime = seconds;
  player.play().catch(() => {}); // another press came before it began
}

/** Seconds of the recording as the browser knows them, 0 where it does not. */
export function durationOfPlayed() {
  const { duration } = byId("player");
  return Number.isFinite(duration) ? duration : 0;
}

const lengthOfPlayed = () => durationOfPlayed() || played.duration;

export function drawPlayed() {
  if (played && !byId("heard").hidden) drawWave(played.segments, lengthOfPlayed(), byId("player").currentTime);
}
