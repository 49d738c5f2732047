// Elements without HTML text: whatever a member calls itself ends up as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";

function built(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    element.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false || child === "") continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return element;
}

/** Make an HTML element; children are elements or text. */
export function h(tag, attributes, ...children) {
  return built(document.createElement(tag), attributes, children);
}

/** Make an SVG element. */
export function s(tag, attributes, ...children) {
  return built(document.createElementNS(SVG, tag), attributes, children);
}

/** Text in which `commands` are shown as such. */
export function prose(text) {
  return String(text).split("`").map((part, at) => (at % 2 ? h("code", {}, part) : part));
}

/** Put such text into an element, and take it away where there is none. */
export function tell(element, text) {
  element.hidden = !text;
  if (element.dataset.text === text) return;
  element.dataset.text = text;
  element.replaceChildren(...prose(text));
}

export const $ = (id) => document.getElementById(id);

/**
 * Make an element's children like `children`, changing as little as may be: what has the focus, is
 * selected, scrolled or folded open stays so while the numbers beside it change.
 */
export function show(element, ...children) {
  const wanted = document.createDocumentFragment();
  for (const child of children.flat(Infinity)) if (child) wanted.append(child);
  morph(element, wanted);
}

function alike(one, other) {
  return one.nodeType === other.nodeType && one.nodeName === other.nodeName &&
    (one.nodeType !== Node.ELEMENT_NODE ||
      one.getAttribute("data-key") === other.getAttribute("data-key"));
}

function morph(from, to) {
  let old = from.firstChild;
  for (const next of [...to.childNodes]) {
    let found = old;
    const key = next.nodeType === Node.ELEMENT_NODE && next.getAttribute("data-key");
    if (key) {
      while (found && !alike(found, next)) found = found.nextSibling;
      if (found && found !== old) from.insertBefore(found, old);
    }
    if (found && alike(found, next)) {
      if (found === old) old = old.nextSibling;
      become(found, next);
    } else {
      from.insertBefore(next, old);
    }
  }
  while (old) {
    const gone = old;
    old = old.nextSibling;
    gone.remove();
  }
}

function become(node, wanted) {
  if (node.nodeType !== Node.ELEMENT_NODE) {
    if (node.data !== wanted.data) node.data = wanted.data;
    return;
  }
  for (const { name } of [...node.attributes]) {
    if (name !== "open" && !wanted.hasAttribute(name)) node.removeAttribute(name);
  }
  for (const { name, value } of wanted.attributes) {
    if (node.getAttribute(name) !== value) node.setAttribute(name, value);
  }
  morph(node, wanted);
}

/** Make a table. `columns`: [title, kind] with kind "num", "wide" or ""; rows: {key, cells}. */
export function table(caption, columns, rows) {
  const cell = (content, at) => {
    const [title, kind] = columns[at];
    if (at === 0) return h("th", { scope: "row" }, content);
    return h("td", { class: kind || null, "data-label": title || null }, content);
  };
  return h("table", { class: "stack" },
    h("caption", { class: "visually-hidden" }, caption),
    h("thead", {}, h("tr", {}, columns.map(([title, kind]) => (title
      ? h("th", { scope: "col", class: kind || null }, title) : h("td", {}))))),
    h("tbody", {}, rows.map((row) => h("tr", { "data-key": row.key }, row.cells.map(cell)))));
}

let lastSaid = "";

/** Tell a screen reader something, once. */
export function announce(text) {
  if (!text || text === lastSaid) return;
  lastSaid = text;
  $("announcer").textContent = text;
}
