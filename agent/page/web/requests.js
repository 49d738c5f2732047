// What the gateway serves now, by whom, and what it served last.

import { $, h, show, table, tell } from "./dom.js";
import { DASH, ago, count, span, tokensPerS } from "./format.js";

const NONE = "The agent serves this page; requests are what a gateway has. Its own page shows them.";

function live(gateway) {
  if (!gateway.live.length) {
    const waiting = Object.values(gateway.waiting).reduce((sum, n) => sum + n, 0);
    return h("p", { class: "empty" }, waiting ? `${waiting} wait.` : "No request runs.");
  }
  return table("Requests that run",
    [["Model"], ["State"], ["Replica"], ["Since", "num"], ["First byte", "num"], ["Key"]],
    gateway.live.map((one) => ({
      key: one.id,
      cells: [one.model || DASH,
        one.first_s !== null ? "answers" : one.replica ? "is computed" : "waits",
        one.replica || DASH, span(one.age_s), span(one.first_s), one.key || DASH],
    })));
}

function past(gateway) {
  if (!gateway.past.length) return h("p", { class: "empty" }, "None yet.");
  return table("Requests that have ended",
    [["Model"], ["Ended", "num"], ["Took", "num"], ["First byte", "num"], ["Speed", "num"], ["Tokens", "num"], ["Replica"], ["Key"], ["Result"]],
    gateway.past.map((one) => ({
      key: one.id,
      cells: [one.model || DASH, ago(one.ago_s), span(one.seconds), span(one.first_s),
        one.token_s ? tokensPerS(1 / one.token_s) : DASH,
        one.completion === null ? DASH : `${count(one.prompt ?? 0)} + ${count(one.completion)}`,
        one.replica || DASH, one.key || DASH,
        one.error ? h("span", { class: "badge bad" }, one.error) : String(one.status)],
    })));
}

function replicas(gateway) {
  if (!gateway.replicas.length) return h("p", { class: "empty" }, "None is known.");
  return table("Replicas and what their answers took",
    [["Replica"], ["Models", "wide"], ["State", "wide"], ["Running", "num"], ["Served", "num"], ["First byte", "num"], ["Speed", "num"], ["RTT", "num"]],
    gateway.replicas.map((one) => ({
      key: `${one.name} ${one.models.join(" ")}`,
      cells: [one.name, one.models.join(", ") || DASH,
        one.usable && !one.reason ? h("span", { class: "badge good" }, "ready")
          : h("span", { class: "badge warn" }, one.reason || "not ready"),
        count(one.in_flight), count(one.requests), span(one.first_s),
        one.token_s ? tokensPerS(1 / one.token_s) : DASH, span(one.rtt_s)],
    })));
}

export function update({ gateway }) {
  tell($("requests-none"), gateway ? "" : NONE);
  $("requests-cards").hidden = !gateway;
  const badge = $("count-requests");
  badge.hidden = !gateway?.in_flight;
  badge.textContent = gateway?.in_flight ? String(gateway.in_flight) : "";
  if (!gateway) return;
  show($("live"), live(gateway));
  show($("replicas"), replicas(gateway));
  show($("past"), past(gateway));
}
