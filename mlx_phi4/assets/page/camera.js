// The camera's dialog: look, turn, take.

import { byId } from "./dom.js";
import { asPng } from "./media.js";
import { openDevice } from "./microphone.js";
import { Problem } from "./say.js";

let stream = null;
let facing = "environment";

/** Resolves to a picture, or to null where the dialog is closed. Throws Problem. */
export async function takePicture() {
  await look();
  const dialog = byId("camera-dialog");
  byId("wrong-camera").textContent = "";
  dialog.showModal();
  return new Promise((resolve) => {
    byId("take-picture").onclick = async () => {
      const blob = await asPng(byId("viewfinder"), "image/jpeg");
      dialog.close();
      resolve({ kind: "image", name: "camera.jpg", type: "image/jpeg", blob });
    };
    dialog.onclose = () => {
      closeCamera();
      resolve(null);
    };
  });
}

async function look() {
  stream = await openDevice({ video: { facingMode: facing, width: { ideal: 1920 } } }, "camera");
  const viewfinder = byId("viewfinder");
  viewfinder.srcObject = stream;
  stream.getVideoTracks()[0].onended = () => {
    byId("wrong-camera").textContent = "The camera went away; close this and try again.";
  };
  await viewfinder.play().catch(() => {
    throw new Problem("The camera shows no picture.");
  });
}

function closeCamera() {
  for (const track of stream?.getTracks() ?? []) track.stop();
  byId("viewfinder").srcObject = null;
}

export function setUpCamera() {
  byId("close-camera").onclick = () => byId("camera-dialog").close();
  byId("turn-camera").onclick = async () => {
    facing = facing === "user" ? "environment" : "user";
    closeCamera();
    await look().catch((problem) => (byId("wrong-camera").textContent = problem.message));
  };
}
