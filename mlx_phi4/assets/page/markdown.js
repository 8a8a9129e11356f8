// A model's Markdown as elements. The library reads it into tokens; no text ever becomes markup, no address is fetched.

import { iconButton, make } from "./dom.js";
import { announce, careful, Problem } from "./say.js";

const TOP_HEADING = 2; // levels above a model's first heading belong to the page
const SAFE_ADDRESS = /^(https?|mailto):/i;
const ENTITIES = {
  amp: "&",
  lt: "<",
  gt: ">",
  quot: '"',
  apos: "'",
  nbsp: "\u00a0",
  hellip: "…",
  mdash: "—",
  ndash: "–",
};

/** Shows a text that grows: only what changed is made anew, so that a selection in the rest stays. */
export class MarkdownView {
  constructor(element) {
    this.element = element;
    this.shown = [];
  }

  show(text) {
    const tokens = marked.lexer(text, { gfm: true, breaks: true }).filter((token) => token.type !== "space");
    let same = 0;
    while (same < tokens.length && this.shown[same] === tokens[same].raw) same += 1;
    while (this.element.childNodes.length > same) this.element.lastChild.remove();
    this.element.append(...tokens.slice(same).map(blockOf));
    this.shown = tokens.map((token) => token.raw);
  }
}

const BLOCKS = {
  heading: (token) => make(`h${Math.min(token.depth + TOP_HEADING, 6)}`, {}, inlines(token.tokens)),
  paragraph: (token) => make("p", {}, inlines(token.tokens)),
  text: (token) => make("p", {}, inlines(token.tokens ?? [token])),
  code: (token) => codeBlock(token.text, token.lang?.split(/\s/)[0] ?? ""),
  blockquote: (token) => make("blockquote", {}, token.tokens.map(blockOf)),
  list: (token) => make(token.ordered ? "ol" : "ul", { start: token.start || null }, token.items.map(listItem)),
  table: (token) => table(token),
  hr: () => make("hr"),
  checkbox: (token) => checkbox(token),
  space: () => document.createTextNode(""),
};

function blockOf(token) {
  return BLOCKS[token.type]?.(token) ?? make("p", {}, token.raw);
}

const checkbox = ({ checked }) => document.createTextNode(checked ? "☑ " : "☐ ");

function listItem(item) {
  const children = item.tokens.map((token) =>
    token.type === "text" && !item.loose ? inlines(token.tokens ?? [token]) : blockOf(token),
  );
  return make("li", {}, children.flat());
}

function table(token) {
  const cell = (tag) => (each) => make(tag, { class: each.align && `to-${each.align}` }, inlines(each.tokens));
  const head = make("thead", {}, make("tr", {}, token.header.map(cell("th"))));
  const body = make(
    "tbody",
    {},
    token.rows.map((row) => make("tr", {}, row.map(cell("td")))),
  );
  return make("div.scrolls", { tabindex: 0, role: "region", "aria-label": "Table" }, make("table", {}, head, body));
}

/** Code with its language and a button that copies it. */
export function codeBlock(text, language) {
  const copy = iconButton(
    "copy",
    "Copy the code",
    careful(() => copyText(text)),
  );
  const head = make("figcaption", {}, make("span", {}, language), copy);
  const code = make(
    "pre",
    { tabindex: 0, role: "region", "aria-label": language ? `Code, ${language}` : "Code" },
    make("code", {}, text),
  );
  return make("figure.code", {}, head, code);
}

export async function copyText(text) {
  if (!navigator.clipboard) throw new Problem("Browsers let pages of this machine or of https addresses copy only.");
  await navigator.clipboard.writeText(text);
  announce("Copied");
}

const INLINES = {
  text: (token) => (token.tokens ? inlines(token.tokens) : withoutEntities(token.text)),
  escape: (token) => token.text,
  strong: (token) => make("strong", {}, inlines(token.tokens)),
  em: (token) => make("em", {}, inlines(token.tokens)),
  del: (token) => make("del", {}, inlines(token.tokens)),
  codespan: (token) => make("code", {}, token.text),
  br: () => make("br"),
  checkbox: (token) => checkbox(token),
  link: (token) => link(token.href, inlines(token.tokens)),
  image: (token) => link(token.href, [token.text || token.href]),
};

function inlines(tokens) {
  return tokens.map((token) => INLINES[token.type]?.(token) ?? token.raw).flat();
}

/** Elsewhere only where a person follows it; other schemes than those of pages and mail stay text. */
function link(address, children) {
  if (!SAFE_ADDRESS.test(address)) return [...children, ` (${address})`];
  return make("a", { href: address, target: "_blank", rel: "noopener noreferrer" }, children);
}

function withoutEntities(text) {
  return text.replace(/&(#\d{1,6}|#x[\da-f]{1,6}|\w{2,6});/gi, (whole, name) => {
    if (!name.startsWith("#")) return ENTITIES[name] ?? whole;
    const code = /^#x/i.test(name) ? parseInt(name.slice(2), 16) : Number(name.slice(1));
    return code > 0 && code <= 0x10ffff ? String.fromCodePoint(code) : whole;
  });
}
