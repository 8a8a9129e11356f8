// The tab that transcribes: a file, or the microphone as one speaks.

import { byId, clock, download } from "./dom.js";
import { hearLive } from "./live.js";
import { copyText } from "./markdown.js";
import { kindOf } from "./media.js";
import { aboutFile, announce, careful, clearComplaint, complain, Problem } from "./say.js";
import { addSegment, clearSegments, followPlayer, showProvisional } from "./segments.js";
import { call, eventsOf, MAX_BODY, tooLarge } from "./server.js";
import { requestSettings } from "./settings.js";
import { watchServer } from "./status.js";
import { asFile } from "./subtitles.js";
import { drawWave, forgetWave, readWave } from "./wave.js";

const FORM_ROOM = 10_000; // bytes of an upload beside the file
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
  if (file.size + FORM_ROOM > MAX_BODY) throw new Problem(tooLarge(file.name));
  begin(file.name);
  showPlayer(file);
  readWave(file).then(draw);
  await hearFile(file);
}

async function hearFile(file) {
  const controller = new AbortController();
  await hearing(() => controller.abort(), async () => {
    byId("progress-text").textContent = "The recording is on its way";
    const path = `v1/audio/${byId("task").value}`;
    const response = await call(path, { method: "POST", body: uploadOf(file), signal: controller.signal });
    await readEvents(response).catch((problem) => {
      throw /^File: /.test(problem.message) ? aboutFile(file.name, problem.message.slice("File: ".length)) : problem;
    });
  });
}

async function readEvents(response) {
  for await (const event of eventsOf(response)) {
    if (event.type === "transcript.text.segment") heard(event);
    if (event.type === "transcript.text.done") finish(event);
  }
}

function uploadOf(file) {
  const fields = { model: requestSettings().model.split(":")[0], response_format: "verbose_json", stream: "true", prompt: byId("terms").value.trim() };
  if (byId("task").value === "transcriptions") fields.language = byId("language").value;
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) if (value) form.append(name, value);
  form.append("file", file, file.name);
  return form;
}

async function transcribeLive() {
  clearComplaint();
  begin("Live from the microphone");
  byId("live-level").hidden = false;
  byId("progress").hidden = true;
  let behind = "";
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
async function hearing(stop, work) {
  stopHearing = stop;
  const unwatch = watchServer();
  try {
    await work();
    announce(transcript.segments.length ? "The transcript is ready" : "No speech was found");
  } catch (problem) {
    if (problem.name !== "AbortError") complain(problem);
  } finally {
    stopHearing = null;
    unwatch();
    end();
  }
}

function begin(name) {
  const task = byId("task").value === "translations" ? "translate" : "transcribe";
  const language = byId("language").selectedOptions[0];
  transcript = { text: "", duration: 0, language: language.value ? language.textContent : null, task, source: name, warnings: [], segments: [] };
  forgetWave();
  clearSegments();
  for (const id of ["hear", "player", "wave", "downloads", "doubts", "another-recording", "live-level"]) byId(id).hidden = true;
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
  draw();
}

function showProgress(seconds) {
  const { duration } = byId("player");
  const known = Number.isFinite(duration) && duration > 0;
  if (known) byId("progress").value = seconds / duration;
  byId("progress-text").textContent = known ? `${clock(seconds)} of ${clock(duration)}` : `${clock(seconds)} heard`;
}

function finish({ text, duration, warnings = [] }) {
  Object.assign(transcript, { text, duration, warnings });
}

function end() {
  const any = transcript.segments.some((segment) => segment.text.trim());
  transcript.text ||= transcript.segments.map((segment) => segment.text.trim()).join(" ");
  for (const id of ["hearing", "stop-hearing"]) byId(id).hidden = true;
  for (const id of ["downloads", "doubts"]) byId(id).hidden = !any;
  byId("another-recording").hidden = false;
  if (!any && !byId("notice").textContent) showProvisional("No speech was found.");
  draw();
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

function setUpPlayer() {
  const player = byId("player");
  player.ontimeupdate = () => {
    followPlayer(player.currentTime);
    draw();
  };
  player.onerror = () => (player.hidden = true);
  player.onloadedmetadata = draw;
  new ResizeObserver(draw).observe(byId("heard"));
  matchMedia("(prefers-color-scheme: dark)").onchange = draw;
  byId("wave").onclick = (event) => play((event.offsetX / byId("wave").clientWidth) * lengthOf());
}

function showPlayer(blob) {
  const player = byId("player");
  URL.revokeObjectURL(player.src);
  player.src = URL.createObjectURL(blob);
  player.hidden = false;
}

function play(seconds) {
  const player = byId("player");
  if (player.hidden) return;
  player.currentTime = seconds;
  player.play();
}

function lengthOf() {
  const { duration } = byId("player");
  return Number.isFinite(duration) && duration > 0 ? duration : (transcript?.duration ?? 0);
}

function draw() {
  if (transcript && !byId("heard").hidden) drawWave(transcript.segments, lengthOf(), byId("player").currentTime);
}
