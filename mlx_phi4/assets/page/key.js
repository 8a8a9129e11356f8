// The API key, where the server wants one: asked for once, kept until the tab is closed.

import { byId } from "./dom.js";
import { Problem } from "./say.js";

const KEPT_KEY = "mlx_phi4.key";

export const storedKey = () => sessionStorage.getItem(KEPT_KEY) ?? "";
let asking = null; // of several calls at once only one asks

/** Resolves when there is a key to try; throws Problem where none is given. */
export function askForKey(wrong) {
  asking ??= showDialog(wrong).finally(() => (asking = null));
  return asking;
}

function showDialog(wrong) {
  const dialog = byId("key-dialog");
  byId("key").value = "";
  byId("wrong-key").textContent = wrong ? "The server did not accept this key." : "";
  dialog.showModal();
  return new Promise((resolve, reject) => {
    byId("key-form").onsubmit = () => {
      sessionStorage.setItem(KEPT_KEY, byId("key").value.trim());
      resolve();
    };
    dialog.onclose = () =>
      reject(new Problem("Without its key the server does not answer; load the page again to give it."));
  });
}
