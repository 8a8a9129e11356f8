// A conversation: asking, stopping, changing and trying again.

import { askModel, emptyAnswer } from "./asking.js";
import { attachFiles, clearComposer, loadIntoComposer, setBusy, setUpComposer } from "./composer.js";
import { byId } from "./dom.js";
import { announce, careful, clearComplaint, complain } from "./say.js";
import { showFigures, watchServer } from "./status.js";
import { keepConversation } from "./store.js";
import { AnswerView, questionView, resultView } from "./turns.js";

const NEAR_END = 80; // pixels from the end of a conversation that is followed
const LONGEST_TITLE = 60; // characters
let conversation = newConversation();
let controller = null; // of the answer that comes
let changed = () => {};
let following = true; // the end of the conversation

/** `kept` is called when the list of conversations may look different. */
export function setUpChat(kept) {
  changed = kept;
  setUpComposer({ asked: careful(ask), stopped: () => controller?.abort() });
  followEnd();
  byId("close-picture").onclick = () => byId("picture-dialog").close();
}

function newConversation() {
  return { id: crypto.randomUUID(), title: "", changed: Date.now(), turns: [] };
}

export const currentConversation = () => conversation.id;

/** Show a conversation, or begin a new one. */
export function openConversation(found = newConversation()) {
  controller?.abort();
  conversation = found;
  clearComposer();
  clearComplaint();
  showTurns();
  toEnd();
  byId("question").focus();
}

export const attachToChat = careful(attachFiles);

function showTurns() {
  byId("empty").hidden = conversation.turns.length > 0;
  byId("turns").replaceChildren(...conversation.turns.map((turn, index) => viewOf(turn, index).element));
}

function viewOf(turn, index, ended = true) {
  if (turn.role === "user") return { element: questionView(turn, () => edit(index)) };
  if (turn.role === "tool") return { element: resultView(turn) };
  const last = index === conversation.turns.length - 1;
  return new AnswerView(turn, { retry: careful(() => retry(index)), give: last ? giveResult : null, ended });
}

async function ask({ text, media, editing }) {
  if (editing !== null) conversation.turns.length = editing;
  conversation.turns.push({ role: "user", text, media });
  if (conversation.turns.length === 1) conversation.title = (text || media[0].name).slice(0, LONGEST_TITLE);
  await answer();
}

function edit(index) {
  controller?.abort();
  loadIntoComposer(conversation.turns[index], index);
}

async function retry(index) {
  if (controller) return;
  conversation.turns.length = index;
  await answer();
}

async function giveResult(call, text) {
  const { calls } = conversation.turns.at(-1);
  Object.assign(call, { given: true, text });
  if (calls.some((each) => !each.given)) return showTurns();
  conversation.turns.push(...calls.map((each) => ({ role: "tool", call: each.id, name: each.name, text: each.text })));
  await answer();
}

/** The model's turn, as it grows. */
async function answer() {
  const [here, before, turn] = [conversation, [...conversation.turns], emptyAnswer()];
  here.turns.push(turn);
  showTurns();
  const view = viewOf(turn, here.turns.length - 1, false);
  byId("turns").lastChild.replaceWith(view.element);
  toEnd();
  const mine = (controller = new AbortController());
  await withServerWatched(
    async () => {
      await askModel(before, turn, mine.signal, () => {
        view.update(false);
        showFigures(turn);
      });
    },
    turn,
    mine,
  );
  view.update(true);
  announce(turn.problem || turn.text || "The answer is empty.");
  await keep(here);
}

async function withServerWatched(work, turn, mine) {
  setBusy(true);
  const unwatch = watchServer();
  announce("Asked");
  try {
    await work();
  } catch (problem) {
    if (problem.name === "AbortError") turn.end = "stopped";
    else turn.problem = problem.message;
  } finally {
    if (controller === mine) {
      controller = null;
      setBusy(false);
    }
    showFigures(turn);
    unwatch();
  }
}

async function keep(which) {
  which.changed = Date.now();
  await keepConversation(which).catch(complain);
  changed();
}

/** Stay at the end, unless somebody reads further up. */
function followEnd() {
  const box = byId("scroller");
  box.onscroll = () => (following = box.scrollHeight - box.scrollTop - box.clientHeight < NEAR_END);
  new ResizeObserver(() => following && toEnd()).observe(byId("turns"));
}

function toEnd() {
  following = true;
  byId("scroller").scrollTop = byId("scroller").scrollHeight;
}
