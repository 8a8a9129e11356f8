// Live transcription over a WebSocket, in the form of OpenAI's realtime transcription sessions.

import { storedKey } from "./key.js";
import { asPcm, asWav, openMicrophone } from "./microphone.js";
import { Problem, sentence } from "./say.js";
import { addressOf } from "./server.js";
import { servedModel } from "./settings.js";

const LIVE_RATE = 16_000; // samples a second that the model hears
const LAST_WORDS = 1000; // milliseconds without an event after which nothing more comes
const PIECES_IN_MEMORY = 256; // of the recording, before they become a blob
const TEXT_OF = "conversation.item.input_audio_transcription";

/**
 * Hear the microphone until `stop()`. `level` gets the level and the seconds so far, `segment` what is final,
 * `provisional` what is not, `behind` by how many seconds the text lags, `lost` a Problem where the microphone goes
 * away. `ended` resolves to the recording as WAV.
 */
export function hearLive(options) {
  const session = new LiveSession(options);
  return { stop: () => session.stop(), ended: session.run() };
}

class LiveSession {
  items = new Map(); // those that are not completed: id -> seconds where they begin
  pieces = [];
  samples = 0;
  behind = 0; // seconds that wait in the server
  rate = LIVE_RATE;

  constructor(options) {
    this.options = options;
    this.ended = new Promise((resolve, reject) => Object.assign(this, { resolve, reject }));
  }

  async run() {
    try {
      this.microphone = await this.open();
      await this.connect();
      this.begin(this.microphone.rate);
      if (this.stopped) this.stop();
      await this.ended;
    } finally {
      this.microphone?.close();
      this.socket?.close();
    }
    return this.samples ? asWav(this.pieces, this.rate) : null;
  }

  open() {
    return openMicrophone({
      rate: LIVE_RATE,
      samples: (block) => this.hear(block),
      level: (level) => this.options.level(level, this.seconds),
      lost: (problem) => {
        this.options.lost(problem);
        this.stop();
      },
    });
  }

  get seconds() {
    return this.samples / this.rate;
  }

  connect() {
    const address = addressOf("v1/realtime?intent=transcription");
    address.protocol = address.protocol.replace("http", "ws");
    this.socket = openSocket(address);
    this.socket.onmessage = ({ data }) => this.receive(JSON.parse(data));
    this.socket.onclose = () => this.finish(new Problem("The server went away in the middle."));
    return new Promise((resolve, reject) => {
      this.socket.onopen = resolve;
      this.socket.onerror = () => reject(new Problem("The server does not take live sound now."));
    });
  }

  begin(rate) {
    this.rate = rate;
    const { language, terms } = this.options;
    const transcription = { model: servedModel(), ...(language && { language }), ...(terms && { prompt: terms }) };
    const input = { format: { type: "audio/pcm", rate }, transcription, turn_detection: { type: "server_vad" } };
    this.socket.send(JSON.stringify({ type: "session.update", session: { type: "transcription", audio: { input } } }));
    this.begun = true;
  }

  hear(block) {
    if (!this.begun || this.stopped || this.socket.readyState !== WebSocket.OPEN) return;
    const pcm = asPcm(block);
    this.samples += pcm.length;
    this.keep(pcm);
    this.socket.send(pcm);
  }

  /** An hour is 170 MB: blobs are the browser's to put on disk. */
  keep(pcm) {
    this.pieces.push(pcm);
    if (this.pieces.length >= PIECES_IN_MEMORY) this.pieces = [new Blob(this.pieces)];
  }

  /** Send no more, and wait for the last words. */
  stop() {
    this.stopped = true;
    if (!this.begun) return;
    this.microphone.close();
    if (this.socket.readyState !== WebSocket.OPEN) return this.finish();
    this.socket.send(JSON.stringify({ type: "input_audio_buffer.commit" }));
    this.expectMore();
  }

  expectMore() {
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => (this.items.size || this.behind ? this.expectMore() : this.finish()), LAST_WORDS);
  }

  receive(event) {
    const { item_id: id } = event;
    if (event.type === "input_audio_buffer.speech_started") this.items.set(id, event.audio_start_ms / 1000);
    if (event.type === "mlx_phi4.provisional") this.options.provisional(event.text);
    if (event.type === "mlx_phi4.behind") this.options.behind((this.behind = event.seconds));
    if (event.type === `${TEXT_OF}.completed`) this.complete(id, event);
    if (event.type === `${TEXT_OF}.failed`) this.items.delete(id);
    if (event.type === "error") this.finish(new Problem(sentence(event.error.message)));
    if (this.stopped) this.expectMore();
  }

  complete(id, { transcript, start = this.items.get(id), end = this.seconds, avg_logprob, no_speech, flags }) {
    this.items.delete(id);
    this.options.provisional("");
    this.options.segment({ start, end, text: transcript, avg_logprob, no_speech_prob: Number(no_speech), flags });
  }

  finish(problem = null) {
    clearTimeout(this.waiting);
    if (problem && !this.stopped) this.reject(problem);
    else this.resolve();
  }
}

/** A browser sends no headers here: the key is offered as a subprotocol, which not every key can be. */
function openSocket(address) {
  const key = storedKey();
  try {
    return new WebSocket(address, ["realtime", ...(key ? [`openai-insecure-api-key.${key}`] : [])]);
  } catch {
    throw new Problem("Live sound needs an API key of letters, digits, dots, dashes and underscores.");
  }
}
