// Text into the document. Whatever comes from records is shown as text and never read as markup.

const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2066-\u2069]/g;

/** Text without characters that steer a terminal or turn the direction of writing. */
function shown(value) {
  return String(value).replace(UNSEEN, "\ufffd");
}

/** An element. `given`: attributes, `on` followed by an event for a listener; children as text. */
function el(tag, given = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") made.addEventListener(name, value);
    else made.setAttribute(name, value === true ? "" : shown(value));
  }
  put(made, ...children);
  return made;
}

/** Append children; strings and numbers become text. */
function put(parent, ...children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === "") continue;
    parent.append(child instanceof Node ? child : shown(child));
  }
  return parent;
}

const byId = (id) => document.getElementById(id);

/** A number in a few digits. */
function short(x, digits = 3) {
  if (x === null || x === undefined) return "";
  if (typeof x !== "number" || !Number.isFinite(x)) return String(x);
  if (x !== 0 && (Math.abs(x) >= 1e6 || Math.abs(x) < 1e-3)) {
    return x.toExponential(2).replace("e+", "e").replace(/\.?0+e/, "e");
  }
  if (Number.isInteger(x)) return x.toLocaleString("en");
  return Number(x.toPrecision(digits)).toLocaleString("en", { maximumFractionDigits: 6 });
}

/** Two decimals; halves to even, as Python has them. Only odd eighths are halves, and of these
 * toFixed sends 1 and 5 of eight up. */
function hundredths(x) {
  const eighths = Math.abs(8 * x) % 4;
  return (eighths === 1 ? x - Math.sign(x) * 1e-9 : x).toFixed(2);
}

/** A whole number of at least 0; halves to even. */
const whole = (x) => (x % 1 === 0.5 ? 2 * Math.round(x / 2) : Math.round(x));

const fixed2 = (x) => (x === null ? "" : hundredths(x).replace("-0.00", "0.00").replace("-", "\u2212"));
const percent = (x) => (x === null ? "" : `${whole(100 * x)} %`);
const many = (n, what) => `${n.toLocaleString("en")} ${what}${n === 1 ? "" : "s"}`;

/** A setting's value as one would write it. */
function written(value) {
  if (typeof value === "number") return short(value, 6);
  if (typeof value === "string") return value;
  return JSON.stringify(value);
}

/** JSON with sorted keys: equal data give equal text. */
function canonical(value) {
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  if (value && typeof value === "object") {
    const keys = Object.keys(value).sort();
    return `{${keys.map((k) => `${JSON.stringify(k)}:${canonical(value[k])}`).join(",")}}`;
  }
  return JSON.stringify(value) ?? "null";
}
