// The list of conversations that this browser keeps.

import { currentConversation, openConversation } from "./chat.js";
import { byId, iconButton, make } from "./dom.js";
import { careful, complain } from "./say.js";
import { allConversations, forgetConversation } from "./store.js";

export function setUpConversations() {
  byId("new-conversation").onclick = () => {
    leaveList();
    openConversation();
    listConversations();
  };
  listConversations();
}

export async function listConversations() {
  const found = await allConversations().catch((problem) => {
    complain(problem);
    return [];
  });
  byId("conversation-list").replaceChildren(...found.map(entry));
}

function entry(conversation) {
  const open = () => {
    leaveList();
    openConversation(conversation);
    listConversations();
  };
  const current = conversation.id === currentConversation() ? "true" : null;
  const name = make("button.title", { type: "button", onclick: open, "aria-current": current }, conversation.title);
  const remove = iconButton("bin", `Delete ${conversation.title}`, (event) =>
    confirmRemoval(event.currentTarget, conversation),
  );
  return make("li", {}, name, remove);
}

/** The first press asks, the second deletes. */
function confirmRemoval(button, conversation) {
  if (!button.classList.contains("sure")) {
    button.classList.add("sure");
    button.replaceChildren("Delete?");
    button.setAttribute("aria-label", `Delete ${conversation.title} for good`);
    button.onblur = listConversations;
    return;
  }
  button.onblur = null;
  remove(conversation.id);
}

const remove = careful(async (id) => {
  await forgetConversation(id);
  if (id === currentConversation()) openConversation();
  await listConversations();
});

function leaveList() {
  byId("conversations").hidePopover?.();
}
