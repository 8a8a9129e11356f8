// A conversation: asking, stopping, changing and trying again.

import { askModel, emptyAnswer } from "./asking.js";
import { attachFiles, clearComposer, loadIntoComposer, setBusy, setUpComposer } from "./composer.js";
import { byId, forgetUrls } from "./dom.js";
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
let growing = null; // the turn that comes
let views = []; // of the turns that are shown: { turn, last, view }

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
  views = [];
  byId("turns").replaceChildren();
  forgetUrls();
  clearComposer();
  clearComplaint();
  showTurns();
  toEnd();
  byId("question").focus();
}

export const attachToChat = careful(attachFiles);

/** Show the turns as they are; those that are shown already stay, and what plays in them plays on. */
function showTurns() {
  const { turns } = conversation;
  const list = byId("turns");
  byId("empty").hidden = turns.length > 0;
  views.length = Math.min(views.length, turns.length);
  while (list.children.length > views.length) list.lastChild.remove();
  turns.forEach((turn, index) => {
    const last = turn.role === "assistant" && index === turns.length - 1;
    if (views[index]?.turn === turn && views[index].last === last) return;
    views[index] = { turn, last, view: viewOf(turn, index, last) };
    if (list.children[index]) list.children[index].replaceWith(views[index].view.element);
    else list.append(views[index].view.element);
  });
}

/** The last answer can be tried again, and is given the results of its calls; nothing comes after it that were lost. */
function viewOf(turn, index, last) {
  if (turn.role === "user") return { element: questionView(turn, () => edit(index)) };
  if (turn.role === "tool") return { element: resultView(turn) };
  const actions = last ? { retry: careful(() => retry(index)), give: giveResult } : {};
  return new AnswerView(turn, { ...actions, ended: turn !== growing });
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
  byId("question").focus(); // the button goes with the answer
  conversation.turns.length = index;
  await answer();
}

async function giveResult(call, text) {
  const { calls } = conversation.turns.at(-1);
  Object.assign(call, { given: true, text });
  if (calls.some((each) => !each.given)) return views.at(-1).view.update(true);
  byId("question").focus();
  conversation.turns.push(...calls.map((each) => ({ role: "tool", call: each.id, name: each.name, text: each.text })));
  await answer();
}

/** The model's turn, as it grows. */
async function answer() {
  const [here, before, turn] = [conversation, [...conversation.turns], emptyAnswer()];
  growing = turn;
  here.turns.push(turn);
  showTurns();
  const { view } = views.at(-1);
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
  if (growing === turn) growing = null;
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
  const observer = new ResizeObserver(() => following && toEnd());
  for (const each of [box, byId("turns")]) observer.observe(each);
}

function toEnd() {
  following = true;
  byId("scroller").scrollTop = byId("scroller").scrollHeight;
}
