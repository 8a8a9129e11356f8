// From a conversation's turns to a request, and from a stream of chunks to an answer.

import { partOf } from "./media.js";
import { aboutFile } from "./say.js";
import { eventsOf, post } from "./server.js";
import { requestSettings, systemText } from "./settings.js";

const SHORTEST = 0.05; // seconds between first and last token; what comes at once has no pace

/** An answer that has not begun. */
export function emptyAnswer() {
  return { role: "assistant", text: "", thought: "", calls: [], problem: "", end: null, mode: "", tokens: 0, pace: 0 };
}

/**
 * Ask for the answer to these turns and let `answer` grow; `grown` is called after each piece with the figures so far.
 * Throws Problem; AbortError where `signal` says so.
 */
export async function askModel(turns, answer, signal, grown) {
  const settings = requestSettings();
  answer.shaped = "response_format" in settings;
  const messages = await Promise.all(turns.filter(isSaid).map(messageOf));
  if (systemText()) messages.unshift({ role: "system", content: systemText() });
  const body = { ...settings, messages, stream: true, stream_options: { include_usage: true } };
  const pace = new Pace();
  const response = await post("v1/chat/completions", body, signal).catch((problem) => {
    throw named(problem, turns.filter(isSaid), systemText() ? 1 : 0);
  });
  answer.mode = response.headers.get("x-phi4-mode") ?? "";
  answer.adapter = decodeURIComponent(response.headers.get("x-phi4-adapter") ?? "");
  for await (const chunk of eventsOf(response)) {
    if (add(answer, chunk)) pace.count();
    if (answer.end) pace.ended(chunk.usage);
    Object.assign(answer, pace.figures);
    grown();
  }
}

/** An answer that never began says nothing to the model. */
function isSaid(turn) {
  return turn.role !== "assistant" || turn.text || turn.calls.length;
}

async function messageOf(turn) {
  if (turn.role === "tool") return { role: "tool", tool_call_id: turn.call, content: turn.text };
  if (turn.role === "assistant") return { role: "assistant", content: turn.text || null, ...callsOf(turn) };
  if (!turn.media.length) return { role: "user", content: turn.text };
  const parts = await Promise.all(turn.media.map(partOf));
  return { role: "user", content: turn.text ? [...parts, { type: "text", text: turn.text }] : parts };
}

function callsOf({ calls }) {
  if (!calls.length) return {};
  const wrapped = calls.map((call) => ({
    id: call.id,
    type: "function",
    function: { name: call.name, arguments: call.arguments },
  }));
  return { tool_calls: wrapped };
}

/** The server names a medium by its place; a person knows its file. */
function named(problem, turns, before) {
  const place = /^messages\[(\d+)\]\.content\[(\d+)\]\.\w+(?:\.\w+)?:? /i.exec(problem.message);
  const medium = place && turns[place[1] - before]?.media?.[place[2]];
  return medium ? aboutFile(medium.name, problem.message.slice(place[0].length)) : problem;
}

/** Whether the chunk brought a piece of the answer. */
function add(answer, chunk) {
  const [choice] = chunk.choices;
  if (!choice) return false;
  const { content, reasoning_content: thought, tool_calls: calls } = choice.delta;
  answer.text += content ?? "";
  answer.thought += thought ?? "";
  for (const piece of calls ?? []) addCall(answer.calls, piece);
  answer.end = choice.finish_reason ?? answer.end;
  return Boolean(content || thought || calls);
}

function addCall(calls, piece) {
  const call = (calls[piece.index] ??= { id: "", name: "", arguments: "", given: false });
  call.id ||= piece.id ?? "";
  call.name += piece.function?.name ?? "";
  call.arguments += piece.function?.arguments ?? "";
}

/** Seconds to the first token, and tokens a second after it. */
export class Pace {
  begun = performance.now();
  pieces = 0;

  count() {
    this.last = performance.now();
    this.first ??= this.last;
    this.pieces += 1;
  }

  /** The last token has no text; the usage knows all of them. */
  ended(usage) {
    if (usage) this.pieces = usage.completion_tokens;
    else this.last = performance.now();
  }

  /** { first, tokens, pace }, as far as they are known. */
  get figures() {
    if (this.first === undefined) return {};
    const seconds = (this.last - this.first) / 1000;
    return {
      first: (this.first - this.begun) / 1000,
      tokens: this.pieces,
      pace: seconds > SHORTEST ? (this.pieces - 1) / seconds : 0,
    };
  }
}
