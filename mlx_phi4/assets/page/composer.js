// Where a turn is made: text, files, the camera, the microphone.

import { takePicture } from "./camera.js";
import { byId, clock, icon, iconButton, make, urlOf } from "./dom.js";
import { filesOf, readMedium } from "./media.js";
import { asPcm, asWav, openMicrophone } from "./microphone.js";
import { announce, careful, clearComplaint, complain, Problem } from "./say.js";

const SPEECH_RATE = 16_000; // samples a second that the model hears
let attachments = [];
let editing = null; // index of the turn that is changed
let recorder = null;
let busy = false;

/** `asked` gets { text, media, editing }, `stopped` nothing. */
export function setUpComposer({ asked, stopped }) {
  const submit = careful(async (event) => {
    event?.preventDefault();
    await send(asked);
  });
  byId("composer").onsubmit = submit;
  byId("question").onkeydown = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) submit(event);
  };
  byId("stop").onclick = stopped;
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && busy && !document.querySelector("dialog[open]")) stopped();
  });
  byId("question").oninput = grow;
  byId("attach").onclick = byId("start-picture").onclick = () => byId("files").click();
  byId("files").onchange = careful(() => attachFiles([...byId("files").files]));
  byId("camera").onclick = byId("start-camera").onclick = careful(attachPicture);
  byId("microphone").onclick = byId("start-microphone").onclick = careful(record);
  byId("keep-recording").onclick = () => endRecording(true);
  byId("discard-recording").onclick = () => endRecording(false);
  byId("cancel-editing").onclick = clearComposer;
  byId("composer").addEventListener(
    "paste",
    careful((event) => paste(event)),
  );
}

async function send(asked) {
  if (busy) return;
  if (recorder) endRecording(true);
  const text = byId("question").value.trim();
  if (!text && !attachments.length) return;
  const turn = { text, media: attachments, editing };
  clearComposer();
  clearComplaint();
  await asked(turn);
}

/** While an answer comes, the button that sends is the one that stops. */
export function setBusy(now) {
  busy = now;
  const held = document.activeElement === byId(now ? "send" : "stop");
  byId("send").hidden = now;
  byId("stop").hidden = !now;
  if (held) byId(now ? "stop" : "question").focus();
}

/** An earlier turn to be changed. */
export function loadIntoComposer(turn, index) {
  byId("question").value = turn.text;
  attachments = [...turn.media];
  editing = index;
  showAttachments();
  byId("question").focus();
}

export function clearComposer() {
  byId("question").value = "";
  attachments = [];
  editing = null;
  showAttachments();
}

/** Files as media of the next turn. Those that cannot be read are said, the others kept. */
export async function attachFiles(files) {
  clearComplaint();
  byId("files").value = "";
  const read = await Promise.allSettled(files.map(readMedium));
  attach(read.filter((each) => each.status === "fulfilled").map((each) => each.value));
  const failed = read.find((each) => each.status === "rejected");
  if (failed) throw failed.reason;
}

function attach(media) {
  attachments.push(...media);
  showAttachments();
  if (media.length) announce(`${media.map((medium) => medium.name).join(", ")} attached`);
  byId("question").focus();
}

async function paste(event) {
  const files = filesOf(event.clipboardData);
  if (!files.length) return;
  event.preventDefault();
  await attachFiles(files);
}

async function attachPicture() {
  clearComplaint();
  const picture = await takePicture();
  if (picture) attach([picture]);
}

function grow() {
  const box = byId("question");
  box.style.height = "auto";
  box.style.height = `${Math.min(box.scrollHeight, window.innerHeight / 3)}px`;
}

function showAttachments() {
  grow();
  byId("editing").hidden = editing === null;
  byId("attached").hidden = !attachments.length;
  byId("attached").replaceChildren(...attachments.map(chip));
}

function chip(medium, index) {
  const remove = iconButton("close", `Remove ${medium.name}`, () => {
    attachments.splice(index, 1);
    showAttachments();
    byId("question").focus();
  });
  return make(`li.${medium.kind}`, {}, preview(medium), make("span", {}, medium.name), remove);
}

/** A medium small: the picture itself, or a recording to listen to. */
export function preview(medium) {
  const url = urlOf(medium.blob);
  if (medium.kind === "audio") return make("audio", { controls: true, src: url, "aria-label": medium.name });
  if (medium.kind === "video") return make("video", { controls: true, src: url, "aria-label": medium.name });
  const picture = make("img", { src: url, alt: medium.name });
  picture.onerror = () => picture.replaceWith(icon("picture"));
  return picture;
}

async function record() {
  clearComplaint();
  if (recorder) return endRecording(true);
  const pieces = [];
  const begun = Date.now();
  recorder = { pieces, rate: SPEECH_RATE, close: () => {} };
  try {
    const opened = await openMicrophone({
      rate: SPEECH_RATE,
      samples: (block) => pieces.push(asPcm(block)),
      level: (level) => {
        byId("recording-level").value = level;
        byId("recording-time").textContent = clock((Date.now() - begun) / 1000);
      },
      lost: (problem) => {
        endRecording(true);
        complain(problem);
      },
    });
    Object.assign(recorder, opened);
  } catch (problem) {
    recorder = null;
    throw problem;
  }
  byId("recording").hidden = false;
  byId("keep-recording").focus();
  announce("Recording");
}

function endRecording(kept) {
  const { pieces, rate, close } = recorder;
  close();
  recorder = null;
  byId("recording").hidden = true;
  byId("question").focus();
  if (!kept) return;
  if (pieces.length) attach([{ kind: "audio", name: "recording.wav", type: "audio/wav", blob: asWav(pieces, rate) }]);
  else complain(new Problem("Nothing was recorded."));
}
