// The server that the page came from: calls, its streams of events, and what its refusals mean.

import { askForKey, storedKey } from "./key.js";
import { Problem, sentence } from "./say.js";

export const MAX_BODY = Number(document.querySelector("meta[name=max-body]").content);
const AWAY = "The server cannot be reached. Is it still running?";
const GONE = "The server went away in the middle.";

export const addressOf = (path) => new URL(path, document.baseURI);

/** A response that is fine. Throws Problem; AbortError where `options.signal` says so. Asks for a key where needed. */
export async function call(path, options = {}) {
  for (let wrong = false; ; wrong = true) {
    const key = storedKey();
    const headers = { ...options.headers, ...(key && { authorization: `Bearer ${key}` }) };
    const response = await reach(addressOf(path), { ...options, headers });
    if (response.status !== 401) return checked(response);
    if (storedKey() === key) await askForKey(wrong || Boolean(key));
  }
}

async function reach(address, options) {
  try {
    return await fetch(address, options);
  } catch (error) {
    throw error.name === "AbortError" ? error : new Problem(AWAY);
  }
}

async function checked(response) {
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  throw refusal(response.status, body?.error?.message ?? "", response.headers.get("retry-after"));
}

/** What a status and the server's message mean to a person. */
export function refusal(status, message, wait = null) {
  const again = wait ? ` Try again in ${wait} s.` : " Try again in a moment.";
  if (status === 413) return new Problem(tooLarge("This"), status);
  if (status === 429) return new Problem(`The server is busy: ${message || "too many wait"}.${again}`, status);
  if (status === 503)
    return new Problem(`The server cannot answer now: ${message || "it is not ready"}.${again}`, status);
  return new Problem(sentence(message || `The server answered ${status}`), status);
}

export function tooLarge(what) {
  return `${what} is more than the server takes at once, ${Math.floor(MAX_BODY / 1e6)} MB.`;
}

/** The objects of a stream of server-sent events. Throws Problem where it ends too early. */
export async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await next(reader);
    if (done) throw new Problem(GONE);
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw refusal(400, event.error.message);
      yield event;
    }
  }
}

async function next(reader) {
  try {
    return await reader.read();
  } catch (error) {
    throw error.name === "AbortError" ? error : new Problem(GONE);
  }
}

/** A JSON body, posted. Throws Problem where it is too large to be sent. */
export async function post(path, body, signal) {
  const text = JSON.stringify(body);
  if (text.length > MAX_BODY) throw new Problem(tooLarge("All that this conversation holds"));
  return call(path, { method: "POST", body: text, headers: { "content-type": "application/json" }, signal });
}

/** Names of the served model and its adapters, the model's first. */
export async function modelNames() {
  const { data } = await (await call("v1/models")).json();
  return data.map((model) => model.id);
}

/** Wait until the model is loaded; `waiting` is told why it takes so long. */
export async function untilReady(waiting) {
  for (;;) {
    const { status } = await (await reach(addressOf("health"), {})).json();
    if (status === "ready") return;
    waiting(status === "loading" ? "The model is being loaded." : `The server is ${status}.`);
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}
