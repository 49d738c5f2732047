// What keys used: one's own, or everybody's for an admin key.

import { $, h, s, show, table, tell } from "./dom.js";
import { count } from "./format.js";
import { ask, key } from "./net.js";

const AGAIN_MS = 10_000;
const DAY_MS = 86_400_000;

let askedAt = -Infinity;
let askedWith = null;

/** Tokens of each day up to today (UTC), days without use too. */
export function byDay(rows, days, today) {
  const sums = new Map();
  for (let at = days - 1; at >= 0; at -= 1) {
    sums.set(new Date(today - at * DAY_MS).toISOString().slice(0, 10), 0);
  }
  for (const row of rows) {
    if (sums.has(row.day)) sums.set(row.day, sums.get(row.day) + row.prompt_tokens + row.completion_tokens);
  }
  return [...sums];
}

function chart(days) {
  const most = Math.max(...days.map(([, tokens]) => tokens), 1);
  const [width, height] = [720, 120];
  const step = width / days.length;
  return h("div", {}, s("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": `Tokens a day; the most was ${count(most)}.` },
    s("line", { x1: 0, x2: width, y1: height - 1, y2: height - 1 }),
    days.map(([day, tokens], at) => {
      const tall = ((height - 5) * tokens) / most;
      return s("rect", { class: "bar", x: at * step + 2, width: step - 4, y: height - 1 - tall, height: tall, rx: 2 },
        s("title", {}, `${day}: ${count(tokens)} tokens`));
    })), h("p", { class: "ends muted" }, h("span", {}, days[0][0]), h("span", {}, `most ${count(most)}`), h("span", {}, days.at(-1)[0])));
}

function totals(rows) {
  const sums = new Map();
  for (const row of rows) {
    const at = `${row.key_id} ${row.model}`;
    const sum = sums.get(at) ?? { key: row.key, id: row.key_id, model: row.model, requests: 0, prompt: 0, completion: 0 };
    sum.requests += row.requests;
    sum.prompt += row.prompt_tokens;
    sum.completion += row.completion_tokens;
    sums.set(at, sum);
  }
  return [...sums.values()].sort((a, b) => b.prompt + b.completion - a.prompt - a.completion);
}

function none(text) {
  tell($("usage-none"), text);
  $("usage-cards").hidden = Boolean(text);
}

/** Ask again, if that is due; called while this view is in sight. */
export async function look(state) {
  if (!state.gateway) return none("Usage is counted by a gateway; its own page shows it.");
  if (!key()) return none("Usage is counted by key. Type yours (Key…, above) to see what it used; an admin key sees all.");
  if (askedWith === key() && performance.now() - askedAt < AGAIN_MS) return undefined;
  askedAt = performance.now();
  askedWith = key();
  try {
    const { body } = await ask("usage");
    none("");
    $("usage-title").textContent = `Tokens a day, ${body.all ? "all keys" : "this key"}, ${body.days} days`;
    show($("usage-chart"), chart(byDay(body.usage, body.days, Date.now())));
    const rows = totals(body.usage);
    show($("usage-table"), rows.length ? table("Usage by key and model",
      [["Key"], ["Model", "wide"], ["Requests", "num"], ["Prompt tokens", "num"], ["Answer tokens", "num"]],
      rows.map((row) => ({ key: `${row.id} ${row.model}`, cells: [row.key || row.id, row.model, count(row.requests), count(row.prompt), count(row.completion)] })))
      : h("p", { class: "empty" }, "Nothing yet."));
  } catch (error) {
    none(error.message);
  }
  return undefined;
}
