// The drawer: system text, adapter, sampling, tools and the form of answers.

import { byId, make } from "./dom.js";
import { Problem } from "./say.js";
import { keepSettings, storedSettings } from "./store.js";

const NUMBERS = ["temperature", "top_p", "top_k", "seed", "max_tokens"];
const SET_FIELDS = [...NUMBERS, "system", "model", "tools", "schema"];
const setting = (name) => byId(`set-${name}`);

/** `names` are those of the server, the model itself first. */
export function setUpSettings(names) {
  const [served, ...adapters] = names;
  const options = adapters.map((name) => make("option", { value: name }, `always ${name.slice(served.length + 1)}`));
  setting("model").replaceChildren(make("option", { value: served }, "as the question needs"), ...options);
  const stored = storedSettings();
  for (const name of SET_FIELDS) {
    if (stored[name] && (name !== "model" || names.includes(stored[name]))) setting(name).value = stored[name];
    setting(name).addEventListener("input", keepAll);
  }
  byId("advanced").open = Boolean(stored.tools || stored.schema);
  byId("show-settings").onclick = () => byId("settings").showModal();
  byId("show-settings").disabled = false; // not before what was set is there
}

function keepAll() {
  keepSettings(Object.fromEntries(SET_FIELDS.map((name) => [name, setting(name).value])));
  for (const [name, read] of [
    ["tools", askedTools],
    ["schema", askedSchema],
  ]) {
    byId(`wrong-${name}`).textContent = problemOf(read);
  }
}

function problemOf(read) {
  try {
    read();
    return "";
  } catch (problem) {
    return problem.message;
  }
}

/** What of it goes into each request. Throws Problem. */
export function requestSettings() {
  const numbers = NUMBERS.filter((name) => setting(name).value !== "").map((name) => [
    name,
    setting(name).valueAsNumber,
  ]);
  return { model: setting("model").value, ...Object.fromEntries(numbers), ...askedTools(), ...askedSchema() };
}

/** The model itself, whatever adapter is chosen. */
export const servedModel = () => setting("model").options[0]?.value ?? "";

export const systemText = () => setting("system").value.trim();

/** Functions as they are, or each in OpenAI's wrapping. */
function askedTools() {
  const given = parsed("tools");
  if (given === null) return {};
  const list = Array.isArray(given) ? given : [given];
  const wrapped = list.map((each) => (each?.function ? each : { type: "function", function: each }));
  if (wrapped.some((tool) => !tool.function?.name))
    throw new Problem("Each of the tools in the settings needs a name.");
  return { tools: wrapped };
}

function askedSchema() {
  const schema = parsed("schema");
  if (schema === null) return {};
  return { response_format: { type: "json_schema", json_schema: { name: "answer", strict: true, schema } } };
}

function parsed(name) {
  const text = setting(name).value.trim();
  if (!text) return null;
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Problem(`The ${name} in the settings: no JSON (${error.message}).`);
  }
}
