// A recording in parts that the server takes: one, or for a long WAV several, cut where it is quiet.

import { asPcm, asWav } from "./microphone.js";
import { Problem } from "./say.js";
import { MAX_BODY, tooLarge } from "./server.js";

const PART_RATE = 16_000; // samples a second that the model hears
const BESIDE_FILE = 10_000; // bytes of an upload that are not the file
const QUIET_LOOK = 15 * PART_RATE; // samples before a part's longest end in which it is cut
const QUIET_LENGTH = PART_RATE / 5; // samples of silence that are looked for

/** { blob, start }, start in seconds. Throws Problem where the file is too large and the browser cannot read it. */
export async function* partsOf(file) {
  if (file.size + BESIDE_FILE <= MAX_BODY) {
    yield { blob: file, start: 0 };
    return;
  }
  const samples = await decoded(file);
  const longest = Math.floor((MAX_BODY - BESIDE_FILE) / 2); // two bytes each
  for (let start = 0; start < samples.length;) {
    const end = start + longest < samples.length ? quietest(samples, start + longest, longest / 2) : samples.length;
    yield { blob: asWav([asPcm(samples.subarray(start, end))], PART_RATE), start: start / PART_RATE };
    start = end;
  }
}

async function decoded(file) {
  try {
    const sound = await new OfflineAudioContext(1, 1, PART_RATE).decodeAudioData(await file.arrayBuffer());
    const [first, ...others] = Array.from({ length: sound.numberOfChannels }, (_, i) => sound.getChannelData(i));
    return others.length ? first.map((sample, i) => (sample + others[0][i]) / 2) : first;
  } catch {
    throw new Problem(tooLarge(file.name));
  }
}

/** The middle of the quietest stretch before the latest place to cut, at most so many samples before it. */
function quietest(samples, latest, most) {
  const begin = latest - Math.min(QUIET_LOOK, Math.floor(most));
  let [best, least] = [latest, Infinity];
  for (let at = begin; at + QUIET_LENGTH <= latest; at += QUIET_LENGTH / 4) {
    const loud = samples.subarray(at, at + QUIET_LENGTH).reduce((sum, sample) => sum + sample * sample, 0);
    if (loud < least) [best, least] = [at + QUIET_LENGTH / 2, loud];
  }
  return best;
}
