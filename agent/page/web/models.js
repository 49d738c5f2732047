// What runs, what could, and how: plans, deployments and their end.

import { $, announce, h, show, table, tell } from "./dom.js";
import { parameters, plural, size, span, tokensPerS } from "./format.js";
import { Refusal, ask } from "./net.js";
import { badge, bar, measured, title, why, words } from "./rings.js";

// The catalogue asks every worker: not more often, while one looks.
const SHELF_MS = 20_000;

let state = null;
let shelf = null;
let shelfAt = -Infinity;
let ending = "";
let busy = false;
const phases = new Map();
// What runs when the page is opened is no news.
let looked = false;
let refresh = () => {};

function running(mesh, gateway, may) {
  if (!mesh.rings.length) return h("p", { class: "empty" }, "Nothing is deployed.");
  return mesh.rings.map((ring) => h("div", { class: "ring", "data-key": ring.key },
    h("div", { class: "ring-head" },
      h("span", { class: "name" }, title(ring)), badge(ring),
      ring.number === 1 && gateway ? h("button", {
        type: "button", class: "small danger end", "data-end": ring.name, disabled: !may,
        "aria-label": `Undeploy ${ring.name}`,
      }, "Undeploy") : null),
    words(ring), bar(ring.stages), measured(ring, gateway?.replicas),
    why(ring.reasons, "How fast, and why this split?")));
}

/** Say what became of each deployment since the last look, for those who do not see the page. */
function follow(rings) {
  for (const ring of rings) {
    const now = ring.phase === "ready" ? "ready" : `${ring.phase}: ${ring.error?.message ?? ring.progress}`;
    if (looked && phases.get(ring.key) !== now) announce(`${title(ring)}: ${now}`);
    phases.set(ring.key, now);
  }
  for (const key of phases.keys()) {
    if (!rings.some((ring) => ring.key === key)) {
      announce(`${key} is ended.`);
      phases.delete(key);
    }
  }
  looked = true;
}

function mayAct() {
  return Boolean(state?.gateway) && state.you.needs === "";
}

function buttons() {
  const may = mayAct() && !busy;
  $("plan-button").disabled = !may;
  $("deploy-button").disabled = !may;
  const needs = state?.gateway ? state.you.needs
    : "This page is the agent's, which is for looking: deploy by the gateway's dashboard, or by `agent deploy`.";
  tell($("act-needs"), needs);
}

export function update(next) {
  state = next;
  buttons();
  if (!next.mesh) return;
  follow(next.mesh.rings);
  show($("running"), running(next.mesh, next.gateway, mayAct()));
}

// ---------------------------------------------------------------------- what fits

function fitting() {
  if (!shelf) return;
  const only = $("fits-only").checked;
  const free = shelf.workers.reduce((sum, worker) => sum + worker.free, 0);
  $("room").textContent = `${plural(shelf.workers.length, "worker")} with ${size(free)} of free memory together.`;
  const kept = shelf.kept.map((model) => ({
    key: `kept ${model.name}`,
    cells: [
      model.name, "", size(model.size),
      model.used_by ? `runs as ${model.used_by}` : model.here ? "stored here"
        : `stored on ${model.elsewhere.join(", ")}`,
      use(model.name),
    ],
  }));
  const known = shelf.known.flatMap((model) => model.files
    .filter((file) => !only || file.nodes.length)
    .map((file) => ({
      key: `${model.name} ${file.quantisation}`,
      cells: [
        [model.title, h("div", { class: "muted" }, `${model.name}:${file.quantisation}`)],
        parameters(model.parameters), size(file.size),
        [file.fit, model.uncut ? h("div", { class: "muted" }, model.uncut) : null],
        use(`${model.name}:${file.quantisation}`, model.name === "covey-mini" ? model.name : null),
      ],
    })));
  const rows = [...kept, ...known];
  show($("fits"), rows.length
    ? table("Models and how they fit", [["Model"], ["Parameters", "num"], ["Size", "num"], ["Fits", "wide"], [""]], rows)
    : h("p", { class: "empty" }, "Nothing that Covey knows fits the free memory."));
  show($("place-models"), [...shelf.kept.map((m) => m.name), ...shelf.known.map((m) => m.name)]
    .map((name) => h("option", { value: name, "data-key": name })));
}

function use(model, plain) {
  return h("button", {
    type: "button", class: "small", "data-use": plain ?? model, "aria-label": `Choose ${model}`,
  }, "Choose");
}

/** Ask which models there are, if that is due; called while this view is in sight. */
export async function look() {
  if (performance.now() - shelfAt < SHELF_MS || !state?.mesh) return;
  shelfAt = performance.now();
  try {
    shelf = (await ask("catalogue")).body;
    fitting();
  } catch (error) {
    $("room").textContent = error.message;
  }
}

// ---------------------------------------------------------------------- plan and deploy

function wanted() {
  const number = (id) => ($(id).value === "" ? null : Number($(id).value));
  const body = { model: $("place-model").value.trim(), objective: $("place-objective").value };
  if ($("place-name").value.trim()) body.name = $("place-name").value.trim();
  if (number("place-nodes") !== null) body.nodes = number("place-nodes");
  if (number("place-rings") !== null) body.rings = number("place-rings");
  if (number("place-context") !== null) body.context = number("place-context");
  return body;
}

function say(text, bad = false) {
  tell($("place-said"), text);
  $("place-said").classList.toggle("bad", bad);
}

async function act(words, call) {
  if (busy || !$("place").reportValidity()) return;
  busy = true;
  buttons();
  say(words);
  try {
    say(await call());
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    say(error.message, true);
  } finally {
    busy = false;
    buttons();
    refresh();
  }
}

function figures(plan) {
  const fact = (name, value) => h("div", {}, h("dt", {}, name), h("dd", {}, value));
  return h("dl", { class: "facts" },
    fact("one answer", tokensPerS(1 / plan.token_s)),
    fact("all answers", tokensPerS(plan.tokens_s)),
    fact("first token of a prompt of 512", span(plan.first_s)),
    plan.moved ? fact("to be moved", size(plan.moved)) : null);
}

function planned(plan, heading) {
  return h("div", { class: "plan" },
    h("h4", {}, heading), figures(plan),
    h("div", {}, bar(plan.stages.map((stage) => ({ ...stage, runs_on: "" })))),
    why(plan.reasons, "Why this split?"),
    plan.memory.length ? table("Memory that the plan needs", [["Node"], ["Needs", "num"], ["Free", "num"], ["Share"]],
      plan.memory.map((one) => ({
        key: one.node,
        cells: [one.name, size(one.needed), size(one.free),
          h("meter", { min: 0, max: 1, value: Math.min(one.needed / Math.max(one.free, 1), 1), high: 0.9, "aria-label": `Share of ${one.name}'s free memory` })],
      }))) : null,
    plan.alternatives.length ? table("Otherwise", [["Otherwise"], ["Nodes", "wide"], ["One answer", "num"], ["All answers", "num"]],
      plan.alternatives.map((one) => ({
        key: one.title,
        cells: [one.title, one.names.join(", "), tokensPerS(1 / one.token_s), tokensPerS(one.tokens_s)],
      }))) : null);
}

function showPlan(plan) {
  const context = plural(plan.context, "token");
  if (!plan.rings) {
    show($("plan"), planned(plan, `${plan.model}, ${context} of context`));
    return;
  }
  show($("plan"),
    h("p", {}, `${plural(plan.rings.length, "ring")} of ${plan.model}: ${tokensPerS(plan.tokens_s)} in all, for ${plural(plan.streams, "answer")} at once.`),
    plan.rings.map((ring, at) => planned(ring, `Ring ${at + 1} of ${plan.rings.length}`)));
}

async function plan() {
  await act("Planning; links that are not measured yet are measured now, which takes up to a minute.", async () => {
    const { body } = await ask("plan", { method: "POST", body: wanted() });
    showPlan(body);
    return "Nothing was moved or started.";
  });
}

async function deploy() {
  // Before it is asked: what becomes of it may be seen before the answer is here.
  announce("The agent is asked to deploy it.");
  await act("Asking the agent…", async () => {
    const { body } = await ask("deployments", { method: "POST", body: wanted() });
    show($("plan"));
    return `${body.name} is on its way; its progress is above.`;
  });
}

async function undeploy(name) {
  announce(`Ending ${name}.`);
  try {
    const { body } = await ask(`deployments/${encodeURIComponent(name)}`, { method: "DELETE" });
    say(body.phase === "ended" ? `${name} is ended.` : `${name} will end when its head hears of it.`);
  } catch (error) {
    say(error.message, true);
  }
  refresh();
}

export function begin(again) {
  refresh = again;
  $("plan-button").addEventListener("click", plan);
  $("place").addEventListener("submit", (event) => {
    event.preventDefault();
    deploy();
  });
  $("fits-only").addEventListener("change", fitting);
  $("fits").addEventListener("click", (event) => {
    const button = event.target.closest("[data-use]");
    if (!button) return;
    $("place-model").value = button.dataset.use;
    $("place-model").focus();
    $("place").scrollIntoView({ block: "center" });
  });
  $("running").addEventListener("click", (event) => {
    const button = event.target.closest("[data-end]");
    if (!button) return;
    ending = button.dataset.end;
    $("end-title").textContent = `Undeploy ${ending}?`;
    $("end-text").textContent = "Its rings end on all nodes, and answers that run break off. The model's file stays.";
    $("end-dialog").showModal();
  });
  $("end-close").addEventListener("click", () => $("end-dialog").close());
  $("end-form").addEventListener("submit", (event) => {
    event.preventDefault();
    $("end-dialog").close();
    undeploy(ending);
  });
}

