// What the page tells: problems in a line that is seen and heard, events to screen readers alone.

import { byId, iconButton, make } from "./dom.js";

/** What went wrong, in a sentence for a person; `status` is the server's. */
export class Problem extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/** Show a problem until it is closed or something else is done. */
export function complain(problem) {
  if (!(problem instanceof Problem)) console.error(problem);
  const text = problem instanceof Problem ? problem.message : `The page made a mistake: ${problem?.message ?? problem}`;
  byId("notice").replaceChildren(make("p", {}, text), iconButton("close", "Close the message", clearComplaint));
}

export function clearComplaint() {
  byId("notice").replaceChildren();
}

/** For screen readers; a text that was said already is said again. */
export function announce(text) {
  const place = byId("announcement");
  place.textContent = "";
  setTimeout(() => (place.textContent = text), 50);
}

/** A message as a sentence: a capital first, a full stop last. */
export function sentence(text) {
  const trimmed = text.trim();
  const begun = trimmed.charAt(0).toUpperCase() + trimmed.slice(1);
  return /[.!?]$/.test(begun) ? begun : `${begun}.`;
}

/** What the server says of a file that it knows by another name. */
export function aboutFile(name, text) {
  return new Problem(`${name}${text.startsWith("is ") ? " " : ": "}${text}`);
}

/** Wrap an event listener whose problems are to be shown. */
export function careful(listener) {
  return async (event) => {
    try {
      await listener(event);
    } catch (problem) {
      complain(problem);
    }
  };
}
