// The microphone: samples as they come, their level, and recordings as WAV.

import { Problem } from "./say.js";

const BLOCK = 2048; // samples that the audio thread hands over at once
const QUIETEST = -60; // dB that the meter shows as nothing
// runs in the audio thread, which has no other way to be given lines
const CAPTURE = `
registerProcessor("capture", class extends AudioWorkletProcessor {
  block = new Float32Array(${BLOCK});
  filled = 0;
  process([[samples]]) {
    for (const sample of samples ?? []) {
      this.block[this.filled++] = sample;
      if (this.filled === ${BLOCK}) {
        this.port.postMessage(this.block);
        this.filled = 0;
      }
    }
    return true;
  }
});`;

/**
 * Listen until `close()`. `samples` gets Float32Array after Float32Array of `rate` samples a second, `level` numbers
 * from 0 to 1, `lost` a Problem when the microphone goes away. Throws Problem.
 */
export async function openMicrophone({ rate, samples, level, lost }) {
  const stream = await openDevice(
    { audio: { channelCount: 1, echoCancellation: false, noiseSuppression: false } },
    "microphone",
  );
  const context = contextFor(stream, rate);
  const [track] = stream.getAudioTracks();
  const url = URL.createObjectURL(new Blob([CAPTURE], { type: "text/javascript" }));
  await context.audioWorklet.addModule(url);
  URL.revokeObjectURL(url);
  const capture = new AudioWorkletNode(context, "capture", { numberOfOutputs: 0 });
  capture.port.onmessage = ({ data }) => {
    level(levelOf(data));
    samples(data);
  };
  context.createMediaStreamSource(stream).connect(capture);
  track.onended = () => lost(new Problem("The microphone went away; what was heard until then is kept."));
  return { rate: context.sampleRate, close: () => close(stream, context) };
}

/** Browsers that cannot change a device's rate give its own. */
function contextFor(stream, rate) {
  const wanted = new AudioContext({ sampleRate: rate });
  try {
    wanted.createMediaStreamSource(stream);
    return wanted;
  } catch {
    wanted.close();
    return new AudioContext();
  }
}

function close(stream, context) {
  for (const track of stream.getTracks()) {
    track.onended = null;
    track.stop();
  }
  if (context.state !== "closed") context.close();
}

/** Camera or microphone as a stream. Throws Problem, which says what a person can do. */
export async function openDevice(wanted, noun) {
  if (!navigator.mediaDevices) {
    throw new Problem(`Browsers give the ${noun} to pages of this machine or of https addresses only.`);
  }
  try {
    return await navigator.mediaDevices.getUserMedia(wanted);
  } catch (error) {
    throw new Problem(deviceSentence(error.name, noun));
  }
}

function deviceSentence(name, noun) {
  const reasons = {
    NotAllowedError: `The ${noun} may not be used: allow it for this page in the browser, then try again.`,
    NotFoundError: `No ${noun} was found.`,
    OverconstrainedError: `No such ${noun} was found.`,
    NotReadableError: `The ${noun} cannot be used now; another program may hold it.`,
  };
  return reasons[name] ?? `The ${noun} cannot be used: ${name}.`;
}

/** The loudest of the samples, from 0 at -60 dB to 1 at full scale. */
function levelOf(block) {
  const peak = block.reduce((most, sample) => Math.max(most, Math.abs(sample)), 0);
  return Math.min(1, Math.max(0, 1 - (20 * Math.log10(peak)) / QUIETEST));
}

/** Samples from -1 to 1 as 16 bits. */
export function asPcm(samples) {
  const found = new Int16Array(samples.length);
  for (let i = 0; i < found.length; i += 1) found[i] = Math.round(Math.min(1, Math.max(-1, samples[i])) * 32767);
  return found;
}

/** Pieces of 16-bit samples, or blobs of them, as a WAV file. */
export function asWav(pieces, rate) {
  const bytes = pieces.reduce((sum, piece) => sum + (piece.byteLength ?? piece.size), 0);
  const header = new DataView(new ArrayBuffer(44));
  const text = (at, letters) => [...letters].forEach((letter, i) => header.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF");
  header.setUint32(4, 36 + bytes, true);
  text(8, "WAVEfmt ");
  header.setUint32(16, 16, true);
  header.setUint16(20, 1, true); // whole numbers
  header.setUint16(22, 1, true); // channels
  header.setUint32(24, rate, true);
  header.setUint32(28, 2 * rate, true);
  header.setUint16(32, 2, true);
  header.setUint16(34, 16, true); // bits
  text(36, "data");
  header.setUint32(40, bytes, true);
  return new Blob([header, ...pieces], { type: "audio/wav" });
}
