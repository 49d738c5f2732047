// The mesh as a picture: who looks in the middle, the others around, paths as spokes, the ring as
// arrows from layer to layer. What it shows is in the table of nodes as well, in words.

import { h, s } from "./dom.js";
import { millis, rate } from "./format.js";
import { hues, layers } from "./rings.js";

const DIRECT = new Set(["lan", "ipv6", "public", "punched", "direct"]);
// Below it there is only what keeps a path open.
const TRAFFIC_BYTES_S = 5000;
const STEPS = 48;

export function routeKind(path) {
  if (!path) return "";
  if (DIRECT.has(path.route)) return "direct";
  return path.route === "relayed" || path.route === "asleep" ? path.route : "none";
}

/** Others in the order around the middle: the ring's nodes as a token passes them, then by name. */
function around(nodes, stages) {
  const order = [...hues(stages).keys()];
  const place = (node) => (order.includes(node.id) ? order.indexOf(node.id) : order.length);
  return nodes.filter((node) => !node.self)
    .sort((a, b) => place(a) - place(b) || a.name.localeCompare(b.name));
}

/** Where everything is, in pixels. */
function layout(width, nodes, stages) {
  const wide = width >= 560;
  const others = around(nodes, stages);
  const cards = others.length <= (wide ? 12 : 6);
  const box = cards ? { w: wide ? 156 : 106, h: 62 } : { w: 22, h: 22 };
  const middle = { w: wide ? 156 : 106, h: 62 };
  const few = others.length <= 2;
  const room = !others.length ? 110 : few && wide ? 210 : wide ? Math.min(330 + 14 * others.length, 520) : [3, 5].includes(others.length) ? 480 : 400;
  const centre = { x: width / 2, y: room / 2 };
  const margin = cards ? 6 : 70;
  const rx = Math.min((width - box.w) / 2 - margin, 400);
  const ry = room / 2 - box.h / 2 - (cards ? 8 : 26);
  const start = few && wide ? Math.PI : -Math.PI / 2;
  const places = new Map();
  const own = nodes.find((node) => node.self);
  if (own) places.set(own.id, { ...centre, ...middle, card: true, node: own });
  others.forEach((node, at) => {
    const angle = start + (at * 2 * Math.PI) / others.length;
    places.set(node.id, {
      x: centre.x + rx * Math.cos(angle), y: centre.y + ry * Math.sin(angle),
      ...box, card: cards, node,
    });
  });
  // Three around one leave room below, five above: take it away.
  const all = [...places.values()];
  const top = Math.min(...all.map((p) => p.y - p.h / 2)) - 8;
  const bottom = Math.max(...all.map((p) => p.y + p.h / 2)) + 8;
  return { width, top, height: bottom - top, centre, places, own, wide, others };
}

function inside(place, x, y, room) {
  return Math.abs(x - place.x) < place.w / 2 + room && Math.abs(y - place.y) < place.h / 2 + room;
}

/** A curve from node to node as points outside both, bulging away from the middle. */
function curve(from, to, centre) {
  const mid = { x: (from.x + to.x) / 2, y: (from.y + to.y) / 2 };
  const way = { x: to.x - from.x, y: to.y - from.y };
  const length = Math.hypot(way.x, way.y) || 1;
  const away = { x: mid.x - centre.x, y: mid.y - centre.y };
  const far = Math.hypot(away.x, away.y);
  // One of them is in the middle: keep off the spoke. Else bulge outwards, or aside where the
  // straight way leads through the middle.
  const spoke = [from, to].some((p) => Math.hypot(p.x - centre.x, p.y - centre.y) < 1);
  const aside = { x: -way.y / length, y: way.x / length };
  const push = spoke ? 72 : far < 60 ? 130 : Math.min(46, length / 4);
  const along = spoke || far < 60 ? aside : { x: away.x / far, y: away.y / far };
  const bend = { x: mid.x + along.x * push, y: mid.y + along.y * push };
  const points = [];
  for (let step = 0; step <= STEPS; step += 1) {
    const t = step / STEPS;
    const x = (1 - t) ** 2 * from.x + 2 * t * (1 - t) * bend.x + t ** 2 * to.x;
    const y = (1 - t) ** 2 * from.y + 2 * t * (1 - t) * bend.y + t ** 2 * to.y;
    if (!inside(from, x, y, 3) && !inside(to, x, y, 8)) points.push({ x, y });
  }
  return points;
}

function hop(points, busy) {
  const [tail, tip] = points.slice(-2);
  const angle = (Math.atan2(tip.y - tail.y, tip.x - tail.x) * 180) / Math.PI;
  const way = points.map((p, at) => `${at ? "L" : "M"}${p.x.toFixed(1)} ${p.y.toFixed(1)}`).join("");
  return s("g", {},
    s("path", { class: busy ? "hop busy" : "hop", d: way }),
    s("path", {
      class: "arrow", d: "M-3 -5.5 8 0 -3 5.5z",
      transform: `translate(${tip.x.toFixed(1)} ${tip.y.toFixed(1)}) rotate(${angle.toFixed(1)})`,
    }));
}

function spoke(place, view) {
  const { path, name } = place.node;
  const kind = routeKind(path);
  const flows = (path?.down_bytes_s ?? 0) + (path?.up_bytes_s ?? 0);
  const busy = flows >= TRAFFIC_BYTES_S;
  const at = view.wide ? 0.5 : 0.53;
  const x = view.centre.x + (place.x - view.centre.x) * at;
  const y = view.centre.y + (place.y - view.centre.y) * at;
  let label = path?.rtt_ms === null || !path ? kind : millis(path.rtt_ms);
  if (busy && view.wide) label += ` · ${rate(flows)}`;
  return s("g", { "data-key": `path ${place.node.id}` },
    s("title", {}, `${name}: ${path?.route ?? "no path"} ${label}`),
    s("line", {
      class: `path ${kind}`, "stroke-width": busy ? 3.5 : 1.75,
      x1: view.centre.x, y1: view.centre.y, x2: place.x, y2: place.y,
    }),
    place.card ? s("text", { class: "rtt", x, y: y + 4, "text-anchor": "middle" }, label) : null);
}

function cut(text, letters) {
  return text.length > letters ? `${text.slice(0, letters - 1)}…` : text;
}

function card(place, stages, colour) {
  const { node, x, y, w } = place;
  const left = x - w / 2;
  const top = y - place.h / 2;
  const own = stages.filter((stage) => stage.node === node.id);
  const letters = Math.floor((w - 30) / 7.6);
  const held = own.map((stage) => layers(stage).replace(/^layers? /, "")).join(", ");
  const sub = own.length ? `layers ${held}` : node.draining ? "draining" : node.roles.join(", ");
  const share = node.load ? Math.min(node.load.load / Math.max(node.load.cores, 1), 1) : 0;
  const classes = ["node", node.self ? "own" : "", ["gone", "unknown"].includes(node.presence) ? "away" : ""];
  return s("g", { class: classes.filter(Boolean).join(" "), "data-key": `node ${node.id}` },
    s("title", {}, `${node.name}: ${sub}`),
    s("rect", { class: "box", x: left, y: top, width: w, height: place.h, rx: 12 }),
    colour === undefined ? null
      : s("rect", { class: `strip c${colour}`, x: left + 5, y: top + 9, width: 4, height: place.h - 18, rx: 2 }),
    s("circle", { class: `dot ${node.presence}`, cx: x + w / 2 - 13, cy: top + 15, r: 4.5 }),
    s("text", { class: "name", x: left + 15, y: top + 20 }, cut(node.name, letters)),
    s("text", { class: "sub", x: left + 15, y: top + 37 }, cut(sub, Math.floor((w - 20) / 6))),
    node.load ? [
      s("rect", { class: "bar-room", x: left + 15, y: top + 47, width: w - 30, height: 4, rx: 2 }),
      s("rect", { class: "bar", x: left + 15, y: top + 47, width: Math.max((w - 30) * share, 2), height: 4, rx: 2 }),
    ] : null);
}

function spot(place, stages, colour, centre) {
  const { node, x, y } = place;
  const right = x >= centre.x - 1;
  return s("g", { class: "node", "data-key": `node ${node.id}` },
    s("title", {}, node.name),
    s("rect", { class: "box", x: x - 11, y: y - 11, width: 22, height: 22, rx: 11 }),
    colour === undefined
      ? s("circle", { class: `dot ${node.presence}`, cx: x, cy: y, r: 4.5 })
      : s("circle", { class: `strip c${colour}`, cx: x, cy: y, r: 7 }),
    s("text", { class: "sub", x: x + (right ? 16 : -16), y: y + 4, "text-anchor": right ? "start" : "end" }, cut(node.name, 11)));
}

/** Draw it, `width` pixels wide. `ring` is the one whose arrows are drawn, null for none. */
export function draw(nodes, ring, width, busy) {
  const stages = ring?.stages ?? [];
  const view = layout(width, nodes, stages);
  const colours = hues(stages);
  const hops = stages.map((stage, at) => [stage, stages[(at + 1) % stages.length]])
    .filter(([a, b]) => a.node !== b.node && view.places.has(a.node) && view.places.has(b.node))
    .map(([a, b]) => curve(view.places.get(a.node), view.places.get(b.node), view.centre))
    .filter((points) => points.length > 2);
  // Those between two on either side of the middle reach further up and down than any node.
  const heights = hops.flat().map((point) => point.y);
  const top = Math.min(view.top, ...heights.map((y) => y - 6));
  const bottom = Math.max(view.top + view.height, ...heights.map((y) => y + 6));
  const places = [...view.places.values()];
  const order = [...colours.keys()].map((id) => view.places.get(id)?.node.name ?? "another node");
  const said = `${nodes.length} nodes as ${view.own?.name ?? "this node"} sees them` +
    (ring && order.length ? `; a token of ${ring.name} goes ${[...order, order[0]].join(" → ")}` : "");
  return s("svg", {
    viewBox: `0 ${top} ${view.width} ${bottom - top}`, width: view.width, height: bottom - top,
    role: "img", "aria-label": `${said}. The table of nodes says the same.`,
  },
  places.filter((p) => !p.node.self).map((p) => spoke(p, view)),
  s("g", { "data-key": "hops" }, hops.map((points) => hop(points, busy))),
  places.map((p) => (p.card ? card(p, stages, colours.get(p.node.id))
    : spot(p, stages, colours.get(p.node.id), view.centre))));
}

/** What the lines mean; only of those that are drawn. */
export function legend(nodes, ring) {
  const line = (name, text) => h("span", { class: "map" },
    s("svg", { viewBox: "0 0 26 10", "aria-hidden": "true" },
      s("line", { class: name, x1: 1, y1: 5, x2: 25, y2: 5, "stroke-width": 2 })), text);
  const kinds = new Set(nodes.map((node) => routeKind(node.path)));
  const path = { direct: "direct path, with its round trip", relayed: "relayed", asleep: "asleep until something flows", none: "no path" };
  return [
    Object.entries(path).filter(([kind]) => kinds.has(kind)).map(([kind, text]) => line(`path ${kind}`, text)),
    ring?.stages.length ? line("hop", `a token's way through ${ring.name}`) : null,
    h("span", {}, "grey bar: load of the CPUs"),
  ];
}
