// What a conversation looks like: questions, answers as they grow, calls of tools, their results.

import { preview } from "./composer.js";
import { byId, icon, iconButton, make, urlOf } from "./dom.js";
import { codeBlock, copyText, MarkdownView } from "./markdown.js";
import { careful } from "./say.js";

/** A person's turn. */
export function questionView(turn, edit) {
  const media = turn.media.map((medium) => make(`li.${medium.kind}`, {}, shownMedium(medium)));
  const list = media.length ? make("ul.media", { "aria-label": "Attached" }, media) : null;
  const text = turn.text ? make("p.said", {}, turn.text) : null;
  const actions = make("div.actions", {}, iconButton("edit", "Change this turn", edit), copyButton(turn));
  return make("article.question", { "aria-label": "You" }, list, text, actions);
}

function shownMedium(medium) {
  const small = preview(medium);
  if (medium.kind !== "image") return [small, make("span", {}, medium.name)];
  return make(
    "button",
    { type: "button", "aria-label": `Show ${medium.name} large`, onclick: () => showLarge(medium) },
    small,
  );
}

function showLarge(medium) {
  byId("picture-large").src = urlOf(medium.blob);
  byId("picture-large").alt = medium.name;
  byId("picture-dialog").showModal();
}

const copyButton = (turn) =>
  iconButton(
    "copy",
    "Copy the text",
    careful(() => copyText(turn.text)),
  );

/** The result of a tool that was called. */
export function resultView(turn) {
  return make(
    "article.result",
    { "aria-label": `Result of ${turn.name}` },
    make("p.label", {}, icon("tool"), `Result of ${turn.name}`),
    codeBlock(turn.text, ""),
  );
}

/** An answer that may still grow: `update` shows its turn as it is now. */
export class AnswerView {
  constructor(turn, { retry, give, ended }) {
    this.turn = turn;
    this.give = give;
    this.thought = make("p", {});
    this.thoughts = make("details.thoughts", { hidden: true }, make("summary", {}, "Thoughts"), this.thought);
    this.text = make("div.text");
    this.markdown = new MarkdownView(this.text);
    this.calls = make("div.calls");
    this.problem = make("p.problem", { hidden: true });
    this.facts = make("span.facts");
    this.actions = make(
      "div.actions",
      {},
      retry && iconButton("retry", "Try again", retry),
      copyButton(turn),
      this.facts,
    );
    this.element = make(
      "article.answer",
      { "aria-label": "Phi-4" },
      this.thoughts,
      this.text,
      this.calls,
      this.problem,
      this.actions,
    );
    this.draw(ended);
  }

  /** Show the turn as it is now, with the next frame; at once when it has ended. */
  update(ended) {
    if (ended) return this.draw(true);
    this.drawing ??= requestAnimationFrame(() => this.draw(false));
  }

  draw(ended) {
    cancelAnimationFrame(this.drawing);
    this.drawing = null;
    const { turn } = this;
    this.element.classList.toggle("growing", !ended);
    this.element.setAttribute("aria-busy", String(!ended));
    this.thoughts.hidden = !turn.thought;
    this.thought.textContent = turn.thought;
    if (turn.shaped) this.text.replaceChildren(...shapedText(turn.text));
    else this.markdown.show(turn.text);
    if (turn.calls.length) this.calls.replaceChildren(...turn.calls.map((call) => this.callView(call, ended)));
    this.problem.hidden = !turn.problem;
    this.problem.textContent = turn.problem;
    this.actions.hidden = !ended;
    this.facts.textContent = factsOf(turn);
  }

  callView(call, ended) {
    const label = make("p.label", {}, icon("tool"), "Calls ", make("code", {}, call.name));
    const answer = ended && !call.given && this.give ? this.resultForm(call) : null;
    return make(
      "section.call",
      { "aria-label": `Call of ${call.name}` },
      label,
      codeBlock(pretty(call.arguments), ""),
      answer,
    );
  }

  resultForm(call) {
    const result = make("textarea.code", {
      rows: 2,
      "aria-label": `Result of ${call.name}`,
      placeholder: "What it gives back",
      required: true,
    });
    const give = careful((event) => {
      event.preventDefault();
      return this.give(call, result.value);
    });
    return make("form", { onsubmit: give }, result, make("button.strong", { type: "submit" }, "Give the result"));
  }
}

function shapedText(text) {
  return text ? [make("p.label", {}, icon("tool"), "By the schema"), codeBlock(pretty(text), "json")] : [];
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text; // not whole yet
  }
}

const ENDS = { length: "cut: no room for more", stopped: "stopped", content_filter: "cut" };

function factsOf({ mode, tokens, pace, end }) {
  const parts = [mode, tokens && `${tokens} tokens`, pace && `${pace.toFixed(1)} tokens/s`, ENDS[end]];
  return parts.filter(Boolean).join(" · ");
}
