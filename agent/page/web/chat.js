// A chat by the gateway's own /v1/chat/completions, with what this browser measures of it.

import { $, announce, h, prose, show, tell } from "./dom.js";
import { count, span, tokensPerS } from "./format.js";
import { Refusal, headers, refusal } from "./net.js";

const PATH = "../v1/chat/completions";

let turns = [];
let running = null;
let usable = [];

/** Split a stream of server-sent events into the data of each. */
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let left = "";
  for (;;) {
    const { value, done } = await reader.read();
    left += value ?? "";
    const lines = left.split(/\r?\n/);
    left = done ? "" : lines.pop();
    for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
    if (done) return;
  }
}

/** What the browser saw of an answer: tokens after the first by the time that they took. */
export function figures({ begun, first, last, tokens, exact, replica }) {
  if (first === null) return "";
  const parts = [`first token after ${span((first - begun) / 1000)}`];
  if (tokens > 1 && last > first) parts.push(tokensPerS(((tokens - 1) * 1000) / (last - first)));
  parts.push(`${exact ? "" : "about "}${count(tokens)} ${tokens === 1 ? "token" : "tokens"}`);
  if (replica) parts.push(`by ${replica}`);
  return parts.join(" · ");
}

/** Text with what stands between ``` as code. */
function words(text) {
  return text.split("```").map((part, at) => (at % 2
    ? h("pre", { tabindex: "0" }, part.replace(/^[\w+-]*\n/, "")) : part));
}

function turn(one) {
  const answers = one.role === "assistant";
  const live = answers && one === running?.turn;
  return h("li", { class: one.role },
    h("div", { class: "who" }, answers ? one.model : "You"),
    h("div", { class: live ? "words cursor" : "words" }, words(one.content)),
    one.fault ? h("p", { class: "fault" }, prose(one.fault)) : null,
    one.figures ? h("p", { class: "figures", "data-figures": "" }, one.figures) : null);
}

function paint() {
  const log = $("chat-log");
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
  show(log, turns.length ? turns.map(turn)
    : h("li", { class: "empty" }, "The conversation is kept in this tab alone."));
  if (atEnd) log.scrollTop = log.scrollHeight;
  $("chat-send").textContent = running ? "Stop" : "Send";
  $("chat-send").disabled = !running && !usable.length;
}

async function answer(model) {
  const stop = new AbortController();
  const one = { role: "assistant", model, content: "", fault: "", figures: "" };
  const seen = { begun: performance.now(), first: null, last: 0, tokens: 0, exact: false, replica: "" };
  const messages = turns.filter((t) => t.content).map(({ role, content }) => ({ role, content }));
  running = { stop, turn: one };
  turns.push(one);
  paint();
  let due = false;
  const soon = () => {
    if (due) return;
    due = true;
    requestAnimationFrame(() => { due = false; paint(); });
  };
  try {
    const got = await fetch(PATH, {
      method: "POST", signal: stop.signal, credentials: "omit", cache: "no-store",
      headers: headers({ "Content-Type": "application/json" }),
      body: JSON.stringify({ model, messages, stream: true, stream_options: { include_usage: true } }),
    });
    if (!got.ok) throw await refusal(got);
    seen.replica = got.headers.get("x-covey-replica") ?? "";
    for await (const data of events(got.body)) {
      if (data === "[DONE]") break;
      const event = JSON.parse(data);
      if (event.error) throw new Refusal(String(event.error.message ?? "The answer broke off."), 0);
      const piece = event.choices?.[0]?.delta?.content ?? "";
      if (piece) {
        seen.last = performance.now();
        seen.first ??= seen.last;
        seen.tokens += 1;
        one.content += piece;
      }
      if (event.usage?.completion_tokens) {
        seen.tokens = event.usage.completion_tokens;
        seen.exact = true;
      }
      one.figures = figures(seen);
      soon();
    }
  } catch (error) {
    one.fault = error.name === "AbortError" ? "Stopped." : error.message || "The connection broke.";
  }
  one.figures = figures(seen);
  running = null;
  paint();
  announce(one.fault || `${model} answered: ${one.content.slice(0, 300)}`);
}

function send() {
  if (running) {
    running.stop.abort();
    return;
  }
  const text = $("chat-text").value.trim();
  const model = $("chat-model").value;
  if (!text || !model) return;
  $("chat-text").value = "";
  turns.push({ role: "user", content: text });
  answer(model);
}

export function update(state) {
  const gateway = state.gateway;
  usable = gateway ? gateway.models.filter((model) => model.usable).map((model) => model.id) : [];
  const none = !gateway
    ? "The agent serves this page for looking only. The chat is on the gateway's page, at http://127.0.0.1:8088/dashboard/ of the machine where `gateway serve` runs."
    : usable.length ? "" : "No model is ready to answer. Deploy one under Models, or by `agent deploy covey-mini`.";
  tell($("chat-none"), none);
  $("chat-card").hidden = !gateway;
  const select = $("chat-model");
  const before = select.value;
  show(select, usable.map((id) => h("option", { value: id, "data-key": id }, id)));
  if (usable.includes(before)) select.value = before;
  if (!running) $("chat-send").disabled = !usable.length;
}

export function begin() {
  $("chat-form").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  $("chat-text").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    if (!running) send();
  });
  $("chat-clear").addEventListener("click", () => {
    running?.stop.abort();
    turns = [];
    paint();
    $("chat-text").focus();
  });
  paint();
}
