// The first view: figures, the map, who holds which layers, and every node in words.

import { $, h, show, table } from "./dom.js";
import { DASH, millis, plural, rate, size } from "./format.js";
import { draw, legend } from "./map.js";
import { badge, bar, layers, title, why, words } from "./rings.js";

let chosen = "";
let last = null;

function tile(name, value, small) {
  return h("div", { class: "tile" }, h("dt", {}, name), h("dd", {}, value, " ", h("small", {}, small)));
}

function tiles(state) {
  const { mesh, gateway } = state;
  const others = mesh.nodes.filter((node) => !node.self);
  const reached = others.filter((node) => node.path.route !== "none" && node.presence !== "gone").length;
  const ready = mesh.rings.filter((ring) => ring.phase === "ready").length;
  const faults = mesh.health.filter((fault) => fault.severity === "error").length;
  const warnings = mesh.health.length - faults;
  const free = mesh.nodes.reduce((sum, node) => sum + (node.load?.free_bytes ?? 0), 0);
  return h("dl", { class: "tiles" },
    tile("Nodes", String(mesh.nodes.length), `${reached} of ${others.length} others reached`),
    tile("Rings", String(ready), `of ${mesh.rings.length} ready`),
    gateway ? tile("Requests", String(gateway.in_flight), "now")
      : tile("Memory", size(free), "free"),
    tile("Health", faults ? String(faults) : warnings ? String(warnings) : "Fine",
      faults ? plural(faults, "error").slice(2) + (warnings ? `, ${plural(warnings, "warning")}` : "")
        : warnings ? plural(warnings, "warning").slice(2) : ""));
}

function role(node, rings) {
  return rings.flatMap((ring) => {
    const own = ring.stages.filter((stage) => stage.node === node.id);
    return own.length ? [`${title(ring)}: ${own.map(layers).join(" and ")}`] : [];
  });
}

function nodeRow(node, mesh) {
  const path = node.path;
  const held = role(node, mesh.rings);
  const how = path === null ? "this node" : path.route + (path.relay ? ` by ${path.relay}` : "");
  const state = node.draining ? "draining" : node.self ? "" : node.presence;
  return {
    key: node.id,
    cells: [
      [node.name, state && state !== "alive" ? h("span", { class: "muted" }, ` ${state}`) : null],
      [how, path?.why && path.route !== "public" ? h("div", { class: "muted" }, path.why) : null],
      path ? millis(path.rtt_ms) : DASH,
      path ? `${rate(path.down_bytes_s)} / ${rate(path.up_bytes_s)}` : DASH,
      node.load ? size(node.load.free_bytes) : DASH,
      node.load ? `${node.load.load.toFixed(1)} of ${node.load.cores}` : DASH,
      held.length ? held.map((line) => h("div", {}, line)) : DASH,
    ],
  };
}

function picture() {
  if (!last?.mesh) return;
  const { mesh, gateway } = last;
  const ring = mesh.rings.find((one) => one.key === chosen) ??
    mesh.rings.find((one) => one.stages.length) ?? null;
  const width = Math.floor($("map").clientWidth);
  if (!width) return;
  const busy = Boolean(ring && gateway?.live.some((one) => one.model === ring.name && one.replica === ring.head));
  show($("map"), draw(mesh.nodes, ring, width, busy));
  show($("map-legend"), legend(mesh.nodes, ring));
  const rings = mesh.rings.filter((one) => one.stages.length);
  show($("ring-choice"), rings.length < 2 ? null : rings.map((one) => h("button", {
    type: "button", "data-key": one.key, "data-ring": one.key, "aria-pressed": String(one === ring),
  }, title(one))));
}

export function update(state) {
  last = state;
  const mesh = state.mesh;
  if (!mesh) return;
  show($("tiles"), [...tiles(state).children]);
  picture();
  show($("layers"), mesh.rings.length
    ? mesh.rings.map((ring) => h("div", { class: "ring", "data-key": ring.key },
      h("div", { class: "ring-head" }, h("span", { class: "name" }, title(ring)), badge(ring)),
      words(ring), bar(ring.stages), why(ring.reasons, "Why this split?")))
    : h("p", { class: "empty" }, "Nothing is deployed yet. Under Models you see what would fit."));
  show($("nodes"), table("Nodes of the mesh",
    [["Node"], ["Path", "wide"], ["RTT", "num"], ["Down / up", "num"], ["Memory free", "num"], ["CPU load", "num"], ["Layers", "wide"]],
    mesh.nodes.map((node) => nodeRow(node, mesh))));
}

export function begin() {
  $("ring-choice").addEventListener("click", (event) => {
    const button = event.target.closest("[data-ring]");
    if (!button) return;
    chosen = button.dataset.ring;
    picture();
  });
  new ResizeObserver(picture).observe($("map"));
}
