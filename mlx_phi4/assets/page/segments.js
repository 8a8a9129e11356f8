// The segments of a transcript, each a button that plays it.

import { byId, clock, make } from "./dom.js";

const SURE = 0.8; // mean probability of a segment's tokens
const FAIR = 0.5;
const SURENESS = { sure: "sure", fair: "fairly sure", unsure: "in doubt" };
let current = null;

export function clearSegments() {
  current = null;
  byId("segments").replaceChildren();
  byId("provisional").hidden = true;
}

/** Show one more segment; `play` is called with its start when it is pressed. */
export function addSegment(segment, play) {
  if (!segment.text.trim()) return;
  const mark = make(`span.mark.${surenessOf(segment)}`, {
    role: "img",
    "aria-label": doubtsOf(segment),
    title: doubtsOf(segment),
  });
  const time = make("time", {}, clock(segment.start));
  const button = make(
    "button",
    { type: "button", onclick: () => play(segment.start) },
    time,
    make("span", {}, segment.text.trim()),
    mark,
  );
  byId("segments").append(make("li", { "data-start": segment.start, "data-end": segment.end }, button));
}

/** Mark the segment that is heard now. */
export function followPlayer(now) {
  const found = [...byId("segments").children].findLast((item) => Number(item.dataset.start) <= now + 0.05);
  if (found === current) return;
  current?.firstChild.removeAttribute("aria-current");
  found?.firstChild.setAttribute("aria-current", "true");
  current = found ?? null;
}

/** What may still change. */
export function showProvisional(text) {
  byId("provisional").hidden = !text;
  byId("provisional").textContent = text;
}

/** sure, fair or unsure; what was not measured counts as sure. */
export function surenessOf({ avg_logprob: logprob = null, flags = [] }) {
  if (flags.length) return "unsure";
  const probability = logprob === null ? 1 : Math.exp(logprob);
  return probability >= SURE ? "sure" : probability >= FAIR ? "fair" : "unsure";
}

function doubtsOf(segment) {
  const { avg_logprob: logprob = null, flags = [] } = segment;
  const probability = logprob === null ? null : `${Math.round(100 * Math.exp(logprob))} %`;
  const doubts = flags.map((flag) => flag.replaceAll("_", " "));
  return [SURENESS[surenessOf(segment)], probability, ...doubts].filter(Boolean).join(", ");
}
