// The line at the bottom: how the last answer came, and how the server is.

import { byId } from "./dom.js";
import { call } from "./server.js";

const EVERY = 2000; // milliseconds between two looks at the server while it works
const NOTHING = "–";

/** Mode, adapter and pace of an answer, whole or not. */
export function showFigures({ mode, adapter, pace, first }) {
  show("mode", mode);
  show("adapter", adapter);
  show("pace", pace && pace.toFixed(1));
  show("first", first !== undefined && `${first.toFixed(2)} s`);
}

function show(name, text) {
  byId(`status-${name}`).textContent = text || NOTHING;
}

/** Look at memory and queue until the function that is returned is called. */
export function watchServer() {
  lookAtServer();
  const timer = setInterval(lookAtServer, EVERY);
  return () => {
    clearInterval(timer);
    lookAtServer();
  };
}

/** What cannot be had is not shown: whoever asks something is told why. */
export async function lookAtServer() {
  const text = await call("metrics")
    .then((response) => response.text())
    .catch(() => "");
  const figure = (name) => Number(new RegExp(`^mlx_phi4_${name} (\\S+)`, "m").exec(text)?.[1] ?? NaN);
  const [memory, running, waiting] = [figure("active_bytes"), figure("running_rows"), figure("waiting_requests")];
  show("memory", memory >= 0 && bytes(memory));
  show("queue", running + waiting ? `${running} running, ${waiting} waiting` : running === 0 && "empty");
}

function bytes(number) {
  return number < 1e9 ? `${(number / 1e6).toFixed(0)} MB` : `${(number / 1e9).toFixed(1)} GB`;
}
