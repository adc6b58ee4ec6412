// A file of published records: read, checked line by line, nothing of it trusted.

const LARGEST = 2 ** 28; // characters, unpacked
const PUBLISHED = "a file that metabench leaderboard --records has written";

/** Why a whole file is refused. */
class Refused extends Error {}

/** The lines of a file, gzip or plain; calls `damaged` with the reason where it cannot go on. */
async function* linesOf(file, damaged) {
  const head = new Uint8Array(await file.slice(0, 2).arrayBuffer());
  let stream = file.stream();
  if (head[0] === 0x1f && head[1] === 0x8b) {
    if (typeof DecompressionStream === "undefined") {
      throw new Refused("this browser cannot unpack gzip: unpack the file first (gunzip)");
    }
    stream = stream.pipeThrough(new DecompressionStream("gzip"));
  }
  const reader = stream.getReader();
  const decoder = new TextDecoder("utf-8", { fatal: true });
  let rest = "";
  let taken = 0;
  for (;;) {
    let text;
    let done;
    try {
      const got = await reader.read();
      done = got.done;
      text = decoder.decode(got.value ?? new Uint8Array(), { stream: !done });
    } catch (error) {
      damaged(error instanceof TypeError && /gzip|compress/i.test(error.message)
        ? "the file is damaged or cut off from here on" : "is no text: the file is damaged");
      return;
    }
    taken += text.length;
    if (taken > LARGEST) {
      await reader.cancel();
      damaged(`the file unpacks to more than ${LARGEST / 2 ** 20} million characters`);
      return;
    }
    const lines = (rest + text).split("\n");
    rest = lines.pop();
    yield* lines;
    if (done) break;
  }
  if (rest) yield rest;
}

/** Records of a file and, for what is refused, reason to line numbers. Throws Refused. */
async function readRecords(file, contract, schema) {
  if (!file.size) throw new Refused("there is nothing in it");
  const records = [];
  const refused = new Map();
  let number = 0;
  const refuse = (reason) => {
    refused.set(reason, [...(refused.get(reason) ?? []), number]);
  };
  for await (const line of linesOf(file, (reason) => (number++, refuse(reason)))) {
    number++;
    if (!line.trim()) continue;
    let data;
    try {
      data = JSON.parse(line);
    } catch {
      if (!records.length && number === 1) {
        throw new Refused(`its first line is not JSON. Wanted is ${PUBLISHED}`);
      }
      refuse("is not JSON");
      continue;
    }
    if (isObject(data) && data.form === "arena scores") {
      throw new Refused("it has what an arena ships, the scores and no whole records. Wanted is " +
        PUBLISHED);
    }
    const wrong = fault(data, contract, schema) || ((await isSealed(line, data)) ? ""
      : "is not what was published: its sha256 differs");
    if (wrong) refuse(wrong);
    else records.push(data);
  }
  if (!records.length) {
    const [first] = refused.keys();
    const why = first ? `line ${refused.get(first)[0]} ${first}` : "there is nothing in it";
    throw new Refused(`no record of it can be read: ${why}. Wanted is ${PUBLISHED}`);
  }
  return { records, refused };
}

const isObject = (x) => x !== null && typeof x === "object" && !Array.isArray(x);
const isText = (x) => typeof x === "string";

/** Why something is no record that this page can read; "" where it is one. */
function fault(data, contract, schema) {
  const cell = isObject(data) ? data.cell : null;
  if (!isObject(cell) || !isText(data.key) || !isText(data.status)) return "is not a record";
  if (data.schema !== schema) {
    return `is a record of schema ${written(data.schema)}, and this page reads ${schema}`;
  }
  if (cell.contract !== contract) {
    return `is of contract ${written(cell.contract)}, and this page has contract ${contract}: ` +
      "results of two contracts are never compared";
  }
  const groups = ["task_settings", "method_settings", "solver_settings", "budget"];
  if (![cell.task, cell.method, cell.solver].every(isText) || !Number.isInteger(cell.seed) ||
    !groups.every((g) => isObject(cell[g]))) return "has a cell that is incomplete";
  if (!["done", "failed", "diverged", "timeout"].includes(data.status)) {
    return `has the status ${written(data.status)}`;
  }
  if (!["metrics", "cost", "lam", "notes", "environment"].every((g) => isObject(data[g]))) {
    return "is a record that is incomplete";
  }
  const finite = (x) => Number.isFinite(x);
  if (!Object.values(data.cost).every(finite) || !Number.isInteger(data.steps)) {
    return "has costs that are not numbers";
  }
  const estimates = Object.values(data.metrics).flatMap((m) => (isObject(m) ? Object.values(m) : [m]));
  if (!estimates.every((e) => isObject(e) && finite(e.mean))) {
    return "has metrics that are not numbers";
  }
  const curve = data.curve ?? {};
  const columns = isObject(curve) ? Object.values(curve) : [null];
  if (!columns.every((c) => Array.isArray(c) && c.every((v) => v === null || finite(v))) ||
    new Set(columns.map((c) => c.length)).size > 1) {
    return "has a curve that is not columns of numbers";
  }
  return "";
}

/** Whether a line is what its sha256 says: that of the line without it. Only on pages that browsers
 * call secure, as files are, can it be computed. */
async function isSealed(line, data) {
  const seal = data.sha256;
  if (!isText(seal) || !/^[0-9a-f]{64}$/.test(seal)) return false;
  if (!globalThis.crypto?.subtle) return true;
  const without = line.trim().replace(`"sha256":"${seal}",`, "");
  const bytes = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(without));
  const hex = [...new Uint8Array(bytes)].map((b) => b.toString(16).padStart(2, "0")).join("");
  return hex === seal;
}
