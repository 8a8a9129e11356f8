// Where the page begins: tabs, what is dropped, and waiting for the model.

import { setUpCamera } from "./camera.js";
import { attachToChat, openConversation, setUpChat } from "./chat.js";
import { listConversations, setUpConversations } from "./conversations.js";
import { byId } from "./dom.js";
import { filesOf } from "./media.js";
import { careful, clearComplaint, complain, Problem } from "./say.js";
import { modelNames, untilReady } from "./server.js";
import { setUpSettings } from "./settings.js";
import { lookAtServer } from "./status.js";
import { setUpTranscription, transcribeFiles } from "./transcribe.js";

const TABS = ["chat", "transcribe"];

function setUpTabs() {
  for (const name of TABS) {
    byId(`tab-${name}`).onclick = () => showTab(name);
    byId(`tab-${name}`).onkeydown = (event) => {
      if (event.key === "ArrowLeft" || event.key === "ArrowRight") showTab(TABS[1 - TABS.indexOf(name)], true);
    };
  }
  byId("start-transcribe").onclick = () => showTab("transcribe", true);
}

function showTab(shown, focus = false) {
  clearComplaint();
  for (const name of TABS) {
    const [tab, chosen] = [byId(`tab-${name}`), name === shown];
    byId(name).hidden = !chosen;
    tab.setAttribute("aria-selected", String(chosen));
    tab.tabIndex = chosen ? 0 : -1;
    if (chosen && focus) tab.focus();
  }
  document.body.dataset.tab = shown;
}

/** Files may be dropped anywhere; without this the browser would leave the page for them. */
function setUpDropping() {
  const holdsFiles = (event) => event.dataTransfer?.types.includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dropping");
  });
  document.addEventListener(
    "drop",
    careful(async (event) => {
      if (!holdsFiles(event)) return;
      event.preventDefault();
      document.body.classList.remove("dropping");
      await (byId("chat").hidden ? transcribeFiles : attachToChat)(filesOf(event.dataTransfer));
    }),
  );
}

/** A model that reads texts alone has no use for what brings media. */
function showAbilities([served, ...adapters]) {
  byId("model").textContent = served;
  const multimodal = adapters.some((name) => name.endsWith(":vision") || name.endsWith(":speech"));
  document.body.classList.toggle("text-only", !multimodal);
  byId("tab-transcribe").hidden = !multimodal;
}

async function start() {
  setUpTabs();
  setUpDropping();
  setUpCamera();
  setUpChat(listConversations);
  setUpTranscription();
  setUpConversations();
  await untilReady((why) => complain(new Problem(why)));
  clearComplaint();
  const names = await modelNames();
  showAbilities(names);
  setUpSettings(names);
  openConversation();
  await lookAtServer();
}

start().catch(complain);
