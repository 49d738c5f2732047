// Numbers for people. Unknown is a dash; digits are as many as are worth reading.

export const DASH = "–";

const known = (value) => value !== null && value !== undefined && Number.isFinite(value);

function digits(value) {
  return value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2);
}

/** Seconds: 12 ms, 1.24 s, 3 min, 2.1 h, 4 d. */
export function span(seconds) {
  if (!known(seconds)) return DASH;
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 100) return `${digits(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${(seconds / 3600).toFixed(1)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

/** How long ago, in whole seconds at least: who looks twice sees it move. */
export function ago(seconds) {
  return known(seconds) ? `${seconds < 100 ? `${Math.round(seconds)} s` : span(seconds)} ago` : DASH;
}

export function millis(ms) {
  return known(ms) ? `${ms < 10 ? ms.toFixed(1) : ms.toFixed(0)} ms` : DASH;
}

/** Bytes in powers of 1024. */
export function size(bytes) {
  if (!known(bytes)) return DASH;
  for (const [unit, one] of [["TiB", 2 ** 40], ["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]]) {
    if (bytes >= one) return `${digits(bytes / one)} ${unit}`;
  }
  return `${Math.round(bytes)} B`;
}

/** Bytes a second in powers of 1000. */
export function rate(bytes) {
  if (!known(bytes)) return DASH;
  for (const [unit, one] of [["GB/s", 1e9], ["MB/s", 1e6], ["kB/s", 1e3]]) {
    if (bytes >= one) return `${bytes / one < 10 ? (bytes / one).toFixed(1) : Math.round(bytes / one)} ${unit}`;
  }
  return `${Math.round(bytes)} B/s`;
}

export function tokensPerS(value) {
  return known(value) ? `${value >= 100 ? value.toFixed(0) : value.toFixed(1)} tokens/s` : DASH;
}

export function count(value) {
  return known(value) ? Math.round(value).toLocaleString("en") : DASH;
}

/** Parameters of a model: 8.0 B, 2.3 M. */
export function parameters(value) {
  if (!known(value)) return DASH;
  for (const [unit, one] of [["T", 1e12], ["B", 1e9], ["M", 1e6]]) {
    if (value >= one) return `${(value / one).toFixed(value / one < 10 ? 1 : 0)} ${unit}`;
  }
  return count(value);
}

export function plural(number, one, many = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : many}`;
}

export function clock(unix) {
  return new Date(unix * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
}
