// The tab that transcribes: a file, or the microphone as one speaks.

import { Pace } from "./asking.js";
import { byId, clock, download } from "./dom.js";
import { hearLive } from "./live.js";
import { copyText } from "./markdown.js";
import { kindOf } from "./media.js";
import { partsOf } from "./parts.js";
import { drawPlayed, durationOfPlayed, play, setPlayed, setUpPlayer, showPlayer } from "./player.js";
import { aboutFile, announce, careful, clearComplaint, complain, Problem } from "./say.js";
import { addSegment, clearSegments, showProvisional } from "./segments.js";
import { call, eventsOf } from "./server.js";
import { servedModel } from "./settings.js";
import { showFigures, watchServer } from "./status.js";
import { asFile } from "./subtitles.js";
import { forgetWave, readWave } from "./wave.js";

const SPEECH_ROUTE = { mode: "speech", adapter: "speech" }; // of whatever is transcribed
let transcript = null;
let stopHearing = null; // a function while something is heard

export function setUpTranscription() {
  byId("choose-recording").onclick = () => byId("recording-file").click();
  byId("recording-file").onchange = careful(() => transcribeFiles([...byId("recording-file").files]));
  byId("start-live").onclick = careful(transcribeLive);
  byId("stop-hearing").onclick = () => stopHearing?.();
  byId("another-recording").onclick = showChoice;
  byId("copy-transcript").onclick = careful(() => copyText(transcript.text));
  for (const button of byId("downloads").querySelectorAll("[data-format]")) {
    button.onclick = () => save(button.dataset.format);
  }
  setUpPlayer();
}

/** A file that was chosen or dropped. Throws Problem. */
export async function transcribeFiles(files) {
  byId("recording-file").value = "";
  clearComplaint();
  if (!files.length) return;
  const [file] = files;
  if (files.length > 1) throw new Problem("One recording at a time, please.");
  if (stopHearing) throw new Problem("Another recording is being heard; stop it first.");
  if (kindOf(file) === "image" || !kindOf(file)) throw new Problem(`${file.name} is no recording.`);
  begin(file.name);
  showPlayer(file);
  readWave(file).then(drawPlayed);
  await hearFile(file);
}

async function hearFile(file) {
  const controller = new AbortController();
  await hearing(
    () => controller.abort(),
    async () => {
      byId("progress-text").textContent = "The recording is on its way";
      for await (const part of partsOf(file)) await hearPart(part, controller.signal);
    },
    (problem) =>
      /^File: /.test(problem.message) ? aboutFile(file.name, problem.message.slice("File: ".length)) : problem,
  );
}

async function hearPart(part, signal) {
  const pace = new Pace();
  const response = await call(`v1/audio/${byId("task").value}`, { method: "POST", body: uploadOf(part.blob), signal });
  for await (const event of eventsOf(response)) {
    if (event.type === "transcript.text.segment") {
      heard({ ...event, start: part.start + event.start, end: part.start + event.end });
      pace.count();
    }
    if (event.type === "transcript.text.done") {
      finish(event, part.start);
      pace.ended({ completion_tokens: event.usage.output_tokens });
    }
    showFigures({ ...SPEECH_ROUTE, ...pace.figures });
  }
}

function uploadOf(file) {
  const fields = {
    model: servedModel(),
    response_format: "verbose_json",
    stream: "true",
    prompt: byId("terms").value.trim(),
  };
  if (byId("task").value === "transcriptions") fields.language = byId("language").value;
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) if (value) form.append(name, value);
  form.append("file", file, file.name ?? "part.wav");
  return form;
}

async function transcribeLive() {
  clearComplaint();
  begin("Live from the microphone");
  byId("live-level").hidden = false;
  byId("progress").hidden = true;
  let behind = "";
  showFigures(SPEECH_ROUTE);
  const ears = hearLive({
    language: byId("language").value,
    terms: byId("terms").value.trim(),
    level: (level, seconds) => {
      byId("live-level").value = level;
      byId("progress-text").textContent = clock(seconds) + behind;
      transcript.duration = seconds;
    },
    segment: heard,
    provisional: showProvisional,
    behind: (seconds) => (behind = seconds ? `, the text is ${Math.round(seconds)} s behind` : ""),
    lost: complain,
  });
  await hearing(ears.stop, async () => {
    const recording = await ears.ended;
    showProvisional("");
    if (!recording) return;
    showPlayer(recording);
    await readWave(recording);
  });
}

/** Something is heard until `work` ends; what was heard stays, whatever happens. */
async function hearing(stop, work, named = (problem) => problem) {
  stopHearing = stop;
  const unwatch = watchServer();
  try {
    await work();
    announce(transcript.segments.length ? "The transcript is ready" : "No speech was found");
  } catch (problem) {
    if (problem.name !== "AbortError") complain(named(problem));
  } finally {
    stopHearing = null;
    unwatch();
    end();
  }
}

function begin(name) {
  const task = byId("task").value === "translations" ? "translate" : "transcribe";
  const language = byId("language").selectedOptions[0];
  transcript = {
    text: "",
    duration: 0,
    language: language.value ? language.textContent : null,
    task,
    source: name,
    warnings: [],
    segments: [],
  };
  setPlayed(transcript);
  forgetWave();
  clearSegments();
  for (const id of ["hear", "player", "wave", "downloads", "doubts", "another-recording", "live-level"])
    byId(id).hidden = true;
  for (const id of ["heard", "hearing", "stop-hearing", "progress"]) byId(id).hidden = false;
  byId("progress").removeAttribute("value");
  byId("progress-text").textContent = "";
  byId("heard-name").textContent = name;
  byId("heard-name").focus();
}

function heard(segment) {
  transcript.segments.push(segment);
  addSegment(segment, play);
  if (!byId("progress").hidden) showProgress(segment.end);
  drawPlayed();
}

function showProgress(seconds) {
  const duration = durationOfPlayed();
  if (duration) byId("progress").value = seconds / duration;
  byId("progress-text").textContent = duration ? `${clock(seconds)} of ${clock(duration)}` : `${clock(seconds)} heard`;
}

function finish({ text, duration, warnings = [] }, start) {
  transcript.text = [transcript.text, text].filter(Boolean).join(" ");
  transcript.duration = start + duration;
  transcript.warnings.push(...warnings);
}

function end() {
  const any = transcript.segments.some((segment) => segment.text.trim());
  transcript.text ||= transcript.segments.map((segment) => segment.text.trim()).join(" ");
  for (const id of ["hearing", "stop-hearing"]) byId(id).hidden = true;
  for (const id of ["downloads", "doubts"]) byId(id).hidden = !any;
  byId("another-recording").hidden = false;
  if (!any && !byId("notice").textContent) showProvisional("No speech was found.");
  drawPlayed();
}

function showChoice() {
  clearComplaint();
  byId("player").pause();
  byId("heard").hidden = true;
  byId("hear").hidden = false;
  byId("choose-recording").focus();
}

function save(format) {
  const stem = transcript.source.replace(/\.\w+$/, "");
  download(`${stem}.${format}`, asFile(transcript, format));
}
