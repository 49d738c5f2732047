// The dashboard: which view is in sight, the state that is polled for all of them, and the key.

import * as chat from "./chat.js";
import { $, announce, tell } from "./dom.js";
import { span } from "./format.js";
import * as health from "./health.js";
import * as mesh from "./mesh.js";
import * as models from "./models.js";
import { ask, keep, key } from "./net.js";
import * as requests from "./requests.js";
import { moving } from "./rings.js";
import * as usage from "./usage.js";

const VIEWS = ["mesh", "models", "chat", "requests", "usage", "health"];
const POLL_MS = 2000;
// While a ring is built or an answer comes, one wants to see it.
const SOON_MS = 700;
const LOST_MS = 5000;

let view = "";
let state = null;
let etag = null;
let timer = 0;
let asking = false;
let lost = false;

function link(kind, text) {
  $("link").dataset.state = kind;
  const words = $("link").firstElementChild;
  if (words.textContent !== text) words.textContent = text;
}

const banner = (text) => tell($("banner"), text);

function show(next) {
  state = next;
  const name = next.mesh?.mesh;
  document.title = name ? `${name} · Covey` : "Covey";
  $("mesh-name").textContent = name ?? "Covey";
  $("seen-from").textContent = next.mesh
    ? `seen from ${next.mesh.name}` : "no agent";
  $("seen-from").title = next.mesh ? `Its agent is up for ${span(next.mesh.uptime_s)}` : "";
  $("key-button").hidden = !next.gateway;
  $("key-button").textContent = next.you.key ? `${next.you.key}${next.you.admin ? " (admin)" : ""}` : "Key…";
  banner(next.mesh ? "" : next.missing);
  for (const part of [mesh, models, chat, requests, health]) part.update(next);
  looked();
}

/** What the view in sight asks for beside the state. */
function looked() {
  if (!state) return;
  if (view === "models") models.look();
  if (view === "usage") usage.look(state);
}

function pause() {
  if (lost) return LOST_MS;
  const busy = state?.mesh?.rings.some(moving) || state?.gateway?.in_flight;
  return busy ? SOON_MS : POLL_MS;
}

async function poll() {
  clearTimeout(timer);
  if (asking || document.hidden) return;
  asking = true;
  try {
    const answer = await ask("state", { etag });
    lost = false;
    link("live", "live");
    if (answer.body) {
      etag = answer.etag;
      show(answer.body);
    }
  } catch (error) {
    etag = null;
    lost = true;
    link("lost", error.status === 401 ? "key needed" : "no answer");
    banner(error.message);
    if (error.status === 401 && !$("key-dialog").open) openKey(key() ? error.message : "");
  } finally {
    asking = false;
    timer = setTimeout(poll, pause());
  }
}

// ---------------------------------------------------------------------- key

let asked = false;

function openKey(words) {
  // Whoever closed it need not be asked again and again.
  if (asked) return;
  asked = true;
  tell($("key-said"), words);
  $("key-text").value = "";
  $("key-dialog").showModal();
}

function use(secret) {
  keep(secret);
  etag = null;
  $("key-dialog").close();
  announce(secret ? "The key is used from now on." : "The key is forgotten.");
  poll();
}

function beginKey() {
  $("key-button").addEventListener("click", () => {
    asked = false;
    openKey("");
  });
  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    asked = false;
    const secret = $("key-text").value.trim();
    if (secret) use(secret);
  });
  $("key-forget").addEventListener("click", () => use(""));
  $("key-close").addEventListener("click", () => $("key-dialog").close());
}

// ---------------------------------------------------------------------- views

function turn(focus) {
  const named = location.hash.slice(1);
  view = VIEWS.includes(named) ? named : "mesh";
  for (const one of VIEWS) $(`view-${one}`).hidden = one !== view;
  for (const tab of document.querySelectorAll(".tabs a")) {
    if (tab.hash === `#${view}`) tab.setAttribute("aria-current", "page");
    else tab.removeAttribute("aria-current");
  }
  if (focus) {
    $("main").focus({ preventScroll: true });
    scrollTo(0, 0);
    announce(view);
  }
  looked();
}

addEventListener("hashchange", () => {
  if (location.hash === "#main") return;
  turn(true);
});
document.addEventListener("visibilitychange", poll);
for (const part of [mesh, chat]) part.begin();
models.begin(poll);
beginKey();
turn(false);
poll();
