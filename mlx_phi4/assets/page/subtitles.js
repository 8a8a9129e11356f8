// A transcript as a file, as mlx_phi4.transcribe writes it.

const CONTROL = /[\x00-\x08\x0e-\x1b\x7f]/g; // neither seen nor allowed in subtitles
const SPACES = /[^\S\u00a0\u2007\u202f\u3000]+/g; // others belong to the text: French has one before "!"
const TYPES = { srt: "application/x-subrip", vtt: "text/vtt", txt: "text/plain", json: "application/json" };
const WRITERS = { srt: asSrt, vtt: asVtt, txt: asText, json: asJson };

/** { text, segments, duration, task, language, source, warnings } -> a file of one of the formats. */
export function asFile(transcript, format) {
  return new Blob([WRITERS[format](transcript)], { type: `${TYPES[format]};charset=utf-8` });
}

export const oneLine = (text) => text.replace(CONTROL, "").replace(SPACES, " ").trim();

function asSrt({ segments }) {
  const cue = ({ start, end, text }, index) => `${index + 1}\n${stamp(start, ",")} --> ${stamp(end, ",")}\n${text}\n\n`;
  return cuesOf(segments).map(cue).join("");
}

function asVtt({ segments }) {
  const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const cue = ({ start, end, text }) => `\n${stamp(start, ".")} --> ${stamp(end, ".")}\n${escaped(text)}\n`;
  return `WEBVTT\n${cuesOf(segments).map(cue).join("")}`;
}

function asText({ segments }) {
  return segments
    .map(({ text }) => oneLine(text))
    .filter(Boolean)
    .map((line) => `${line}\n`)
    .join("");
}

/** What ``Transcript.from_json`` reads. */
function asJson({ segments, ...whole }) {
  const rows = segments.map(
    ({
      start,
      end,
      text,
      avg_logprob = null,
      compression_ratio = null,
      temperature = 0,
      no_speech_prob = 0,
      flags = [],
      tokens = null,
    }) =>
      JSON.stringify({
        start,
        end,
        text,
        avg_logprob,
        compression_ratio,
        temperature,
        no_speech: no_speech_prob === 1,
        flags,
        tokens,
      }),
  );
  return `${JSON.stringify(whole).slice(0, -1)},"segments":[\n${rows.join(",\n")}\n]}\n`;
}

/** In milliseconds. No cue is empty, and none begins before the last one ends. */
function cuesOf(segments) {
  const cues = [];
  for (const segment of [...segments].sort((one, other) => one.start - other.start)) {
    const text = oneLine(segment.text);
    if (!text) continue;
    const start = Math.max(Math.round(segment.start * 1000), cues.at(-1)?.end ?? 0);
    cues.push({ start, end: Math.max(Math.round(segment.end * 1000), start + 1), text });
  }
  return cues;
}

function stamp(milliseconds, mark) {
  const two = (number) => String(Math.floor(number)).padStart(2, "0");
  const [seconds, rest] = [Math.floor(milliseconds / 1000), milliseconds % 1000];
  const clockTime = [seconds / 3600, (seconds / 60) % 60, seconds % 60].map(two).join(":");
  return clockTime + mark + String(rest).padStart(3, "0");
}
