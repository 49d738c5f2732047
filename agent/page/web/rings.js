// A ring as people see it: whose layers are where, in the order in which a token passes them.

import { h, prose } from "./dom.js";
import { DASH, plural, span, tokensPerS } from "./format.js";

const HUES = 8;
const SETTLED = { ready: "good", failed: "bad", broken: "bad", waiting: "warn", unknown: "warn" };

/** A deployment's ring in words; with its number where there are several. */
export function title(ring) {
  return ring.rings > 1 ? `${ring.name} ${ring.number}/${ring.rings}` : ring.name;
}

/** Each node of a ring, by id, with the number of its colour. The head is the first. */
export function hues(stages) {
  const found = new Map();
  for (const stage of stages) if (!found.has(stage.node)) found.set(stage.node, found.size % HUES);
  return found;
}

export function layers(stage) {
  if (stage.last - stage.first === 1) return `layer ${stage.first}`;
  return `layers ${stage.first}–${stage.last - 1}`;
}

/** Whether it is on its way to something, so that one looks again soon. */
export function moving(ring) {
  return !(ring.phase in SETTLED);
}

export function badge(ring) {
  return h("span", { class: `badge ${SETTLED[ring.phase] ?? "busy"}` }, ring.phase);
}

/** The layers as a bar, and below it which node has which. */
export function bar(stages) {
  if (!stages.length) return h("p", { class: "empty" }, "No node has layers of it yet.");
  const colours = hues(stages);
  const total = Math.max(...stages.map((stage) => stage.last));
  const strip = h("ol", { class: "stages", "aria-hidden": "true" }, stages.map((stage) => {
    const part = h("li", {}, h("span", { class: `run c${colours.get(stage.node)}` },
      (stage.last - stage.first) / total > 0.07 ? stage.last - stage.first : ""));
    part.style.flex = `${stage.last - stage.first} 1 0`;
    return part;
  }));
  const names = [...colours].map(([node, colour]) => {
    const own = stages.filter((stage) => stage.node === node);
    const runs = own[0].runs_on ? ` on ${own[0].runs_on}` : "";
    return h("li", { class: `c${colour}` },
      h("span", {}, h("strong", {}, own[0].name), colour === 0 && node === stages[0].node ? " (head)" : "",
        `: ${own.map(layers).join(" and ")}${runs}`));
  });
  return [strip, h("ul", { class: "stage-names" }, names)];
}

/** Progress, trouble and what else there is to say of a ring. */
export function words(ring) {
  const said = [];
  if (moving(ring)) {
    const percent = /(\d+) %/.exec(ring.progress);
    said.push(h("progress", {
      max: 100, value: percent ? percent[1] : null, "aria-label": `Progress of ${title(ring)}`,
    }));
  }
  if (ring.phase !== "ready") said.push(h("p", {}, prose(ring.progress)));
  if (ring.error) {
    said.push(h("p", { class: "trouble" }, prose(ring.error.message)),
      ring.error.hint ? h("p", { class: "do" }, prose(ring.error.hint)) : null);
  }
  if (ring.gain) said.push(h("p", { class: "muted" }, ring.gain));
  return said;
}

/** Why it is as it is; the first reason stays in sight. */
export function why(reasons, summary) {
  if (!reasons.length) return null;
  return h("details", {}, h("summary", {}, summary),
    h("ul", { class: "reasons" }, reasons.map((reason) => h("li", {}, reason))));
}

/** What the ring's answers took, as the gateway measured it. */
export function measured(ring, replicas) {
  const its = (replicas ?? []).filter((r) => r.source === "mesh" && r.models.includes(ring.name) && r.name === ring.head);
  const one = its.find((r) => r.requests > 0);
  const fact = (name, value) => h("div", {}, h("dt", {}, name), h("dd", {}, value));
  return h("dl", { class: "facts" },
    fact("model", ring.model),
    ring.context ? fact("context", plural(ring.context, "token")) : null,
    ring.draft ? fact("draft", ring.draft) : null,
    ring.engine === "ring" ? null : fact("engine", ring.engine),
    fact("measured", one && one.token_s ? tokensPerS(1 / one.token_s) : DASH),
    one ? fact("first token", span(one.first_s)) : null);
}
