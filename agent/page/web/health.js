// What is wrong, what it means, what to do; and what happened lately.

import { $, h, prose, show } from "./dom.js";
import { clock } from "./format.js";

const BADGE = { error: "bad", warning: "warn", note: "busy", ok: "good" };

function finding(fault, own) {
  const known = fault.title !== "";
  return h("article", { class: "finding", "data-key": `${fault.node} ${fault.code}` },
    h("div", { class: "ring-head" },
      h("span", { class: `badge ${BADGE[fault.severity] ?? "warn"}` }, fault.severity),
      h("strong", {}, known ? fault.title : fault.code),
      h("span", { class: "muted" }, fault.node === own ? `on ${own}, code ${fault.code}` : `on ${fault.node}`)),
    known ? h("p", {}, prose(fault.text))
      : h("p", { class: "muted" }, prose(`${fault.node} says so of itself; \`agent doctor\` there says more.`)),
    fault.details.map((line) => h("p", { class: "muted" }, line)),
    fault.what_to_do ? h("p", { class: "do" }, prose(fault.what_to_do)) : null);
}

export function update({ mesh }) {
  const badge = $("count-health");
  const faults = mesh?.health ?? [];
  badge.hidden = !faults.length;
  badge.textContent = String(faults.length || "");
  badge.className = `count ${faults.some((f) => f.severity === "error") ? "bad" : "warn"}`;
  if (!mesh) return;
  show($("findings"), faults.length ? faults.map((fault) => finding(fault, mesh.name))
    : h("p", { class: "empty" }, prose("Nothing is wrong that the members know of. `agent doctor` looks closer.")));
  const events = [...mesh.events].reverse();
  show($("events"), events.length ? h("ol", { class: "events" }, events.map((event) => h("li", { "data-key": String(event.number) },
    h("time", { datetime: new Date(event.at * 1000).toISOString() }, clock(event.at)),
    h("span", {}, h("strong", {}, event.subject), ` ${event.text} `, h("span", { class: "muted" }, event.kind)))))
    : h("p", { class: "empty" }, "Nothing yet."));
}
