// What stays in the browser: conversations with their media (IndexedDB) and settings (local storage).

import { Problem } from "./say.js";

const DATABASE = "mlx_phi4";
const CONVERSATIONS = "conversations";
const SETTINGS = "mlx_phi4.settings";
let opened = null;

function database() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(DATABASE, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(CONVERSATIONS, { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opened;
}

async function inStore(mode, work) {
  try {
    const store = (await database()).transaction(CONVERSATIONS, mode).objectStore(CONVERSATIONS);
    const request = work(store);
    return await new Promise((resolve, reject) => {
      request.onsuccess = () => resolve(request.result);
      request.onerror = () => reject(request.error);
    });
  } catch (error) {
    const why = error?.name === "QuotaExceededError" ? "its storage is full" : "it allows no storage";
    throw new Problem(`This browser does not keep the conversation: ${why}.`);
  }
}

/** All conversations, the last one changed first. */
export async function allConversations() {
  const found = await inStore("readonly", (store) => store.getAll());
  return found.sort((one, other) => other.changed - one.changed);
}

const forgotten = new Set(); // ids; an answer that ends later does not bring its conversation back

export async function keepConversation(conversation) {
  if (!forgotten.has(conversation.id)) await inStore("readwrite", (store) => store.put(conversation));
}

export async function forgetConversation(id) {
  forgotten.add(id);
  await inStore("readwrite", (store) => store.delete(id));
}

/** What the person has set; an empty object at first. */
export function storedSettings() {
  try {
    return JSON.parse(localStorage.getItem(SETTINGS)) ?? {};
  } catch {
    return {};
  }
}

export function keepSettings(settings) {
  localStorage.setItem(SETTINGS, JSON.stringify(settings));
}
