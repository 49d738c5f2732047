// What a page must be for everybody: returns a line for each thing that is not so.
// Names, roles, references, headings, sizes of what is pressed, and contrast (WCAG 2.2 AA).
() => {
  const wrong = [];
  const seen = (e) => {
    const box = e.getBoundingClientRect();
    const style = getComputedStyle(e);
    return box.width > 1 && box.height > 1 && style.visibility === "visible" &&
      !e.closest("[hidden], [aria-hidden=true], .visually-hidden") && style.clipPath === "none";
  };
  const told = (e) => `${e.tagName.toLowerCase()}${e.id ? `#${e.id}` : ""} "${(e.textContent || "").trim().slice(0, 40)}"`;
  const byIds = (ids) => ids.split(/\s+/).map((id) => document.getElementById(id)?.textContent ?? "").join(" ");
  const name = (e) => (e.getAttribute("aria-label") || (e.hasAttribute("aria-labelledby") && byIds(e.getAttribute("aria-labelledby"))) ||
    [...(e.labels ?? [])].map((l) => l.textContent).join(" ") || e.getAttribute("alt") || e.textContent || "").trim();

  const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
  for (const id of new Set(ids)) if (ids.filter((other) => other === id).length > 1) wrong.push(`the id ${id} is there twice`);
  for (const attribute of ["aria-labelledby", "aria-describedby", "aria-controls", "for", "list"]) {
    for (const e of document.querySelectorAll(`[${attribute}]`)) {
      for (const id of e.getAttribute(attribute).split(/\s+/)) {
        if (!document.getElementById(id)) wrong.push(`${told(e)} names ${id}, which is not there`);
      }
    }
  }
  if (!document.documentElement.lang) wrong.push("the page says no language");
  if (document.querySelectorAll("main").length !== 1) wrong.push("there is not one main");
  if (document.querySelectorAll("h1").length !== 1) wrong.push("there is not one h1");
  let level = 0;
  for (const e of document.querySelectorAll("h1, h2, h3, h4")) {
    if (e.closest("[hidden], dialog:not([open])")) continue;
    const next = Number(e.tagName[1]);
    if (next > level + 1 && level) wrong.push(`${told(e)} skips a level`);
    level = next;
  }
  for (const e of document.querySelectorAll("a[href], button, input, select, textarea, summary, [tabindex='0'], [role=img], progress, meter")) {
    if (!seen(e)) continue;
    if (!name(e)) wrong.push(`${told(e)} has no name`);
    if (e.matches("a, button, select, textarea, summary, input")) {
      const box = e.getBoundingClientRect();
      const size = e.matches("input[type=checkbox]") ? e.closest("label").getBoundingClientRect() : box;
      if (size.width < 24 || size.height < 23.5) wrong.push(`${told(e)} is ${Math.round(size.width)} by ${Math.round(size.height)} px`);
    }
  }
  for (const e of document.querySelectorAll("img")) if (!e.hasAttribute("alt")) wrong.push(`${told(e)} has no alt`);
  for (const e of document.querySelectorAll("table")) {
    if (seen(e) && !e.caption) wrong.push(`a table has no caption: ${told(e)}`);
    for (const th of e.querySelectorAll("th")) if (!th.scope) wrong.push(`${told(th)} has no scope`);
  }
  for (const e of document.querySelectorAll("[tabindex]")) if (e.tabIndex > 0) wrong.push(`${told(e)} has a tabindex above 0`);

  // Colours as the screen has them, whatever words the style used.
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, below) => top.slice(0, 3).map((c, i) => c * top[3] + below[i] * (1 - top[3]));
  const ground = (e) => {
    const layers = [];
    for (let at = e; at; at = at.parentElement) {
      const colour = rgba(getComputedStyle(at).backgroundColor);
      if (colour[3] > 0) layers.push(colour);
      if (colour[3] === 1) break;
    }
    return layers.reduceRight((below, top) => over(top, below), [255, 255, 255]);
  };
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const contrast = (one, other) => {
    const [a, b] = [light(one), light(other)].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const e = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !seen(e) || e.closest("script, option, title, :disabled")) continue;
    const style = getComputedStyle(e);
    const drawn = e.closest("svg");
    const below = ground(drawn ? drawn.parentElement : e);
    const colour = over(rgba(drawn ? style.fill : style.color), below);
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && Number(style.fontWeight) >= 700);
    const found = contrast(colour, below);
    if (found < (large ? 3 : 4.5)) wrong.push(`${told(e)} has a contrast of ${found.toFixed(2)}`);
  }
  const wide = document.documentElement.scrollWidth - innerWidth;
  if (wide > 0) wrong.push(`the page is ${wide} px wider than the screen`);
  return [...new Set(wrong)];
}
