// The differences between two sequences of tokens. Myers' greedy algorithm (An O(ND) Difference Algorithm, 1986) over numbered keys.

// The search takes (edits)² numbers and time. Texts with more edits are compared by lines.
const MOST_EDITS = 2500;
// A run of equal words this short between much longer changes is chance, and reads better as changed.
const CHANCE = 2;

// Pairs [from, to, length] of equal runs of two Int32Arrays, in order; null with more than MOST_EDITS edits.
function equalRuns(one, other) {
  const n = one.length, m = other.length, most = Math.min(n + m, MOST_EDITS), middle = most + 1;
  const furthest = new Int32Array(2 * most + 3), trace = [];
  for (let edits = 0; edits <= most; edits++) {
    trace.push(furthest.slice(middle - edits, middle + edits + 1));
    for (let k = -edits; k <= edits; k += 2) {
      const down = k === -edits || (k !== edits && furthest[middle + k - 1] < furthest[middle + k + 1]);
      let x = down ? furthest[middle + k + 1] : furthest[middle + k - 1] + 1;
      let y = x - k;
      while (x < n && y < m && one[x] === other[y]) { x++; y++; }
      furthest[middle + k] = x;
      if (x >= n && y >= m) return backwards(trace, n, m);
    }
  }
  return null;
}

function backwards(trace, n, m) {
  const runs = [];
  let x = n, y = m;
  for (let edits = trace.length - 1; edits >= 0; edits--) {
    const k = x - y, at = (diagonal) => trace[edits][diagonal + edits] ?? 0;
    const down = k === -edits || (k !== edits && at(k - 1) < at(k + 1));
    const before = edits === 0 ? 0 : down ? k + 1 : k - 1;
    const startX = edits === 0 ? 0 : at(before) + (down ? 0 : 1);
    if (x > startX) runs.push([startX, startX - k, x - startX]);
    if (edits > 0) { x = at(before); y = x - before; }
  }
  return runs.reverse();
}

// Leave out equal runs of CHANCE words or fewer between two changes that together are four times as long.
function withoutChance(runs, n, m) {
  const kept = [[0, 0, 0]];
  runs.forEach(([x, y, length], i) => {
    const [lastX, lastY, lastLength] = kept[kept.length - 1];
    const [nextX, nextY] = runs[i + 1] ?? [n, m];
    const before = Math.max(x - lastX - lastLength, y - lastY - lastLength);
    const after = Math.max(nextX - x - length, nextY - y - length);
    if (length > CHANCE || Math.min(before, after) < 1 || before + after < 4 * length) kept.push([x, y, length]);
  });
  return kept;
}

function numbered(...sequences) {
  const numbers = new Map();
  const number = (key) => {
    if (!numbers.has(key)) numbers.set(key, numbers.size);
    return numbers.get(key);
  };
  return sequences.map((keys) => Int32Array.from(keys, number));
}

// Flags (Uint8Array, 1: changed) for two lists of keys; null if they differ in too much.
function flagsOf(keysBefore, keysAfter) {
  const [one, other] = numbered(keysBefore, keysAfter);
  let start = 0, end = 0;
  const shorter = Math.min(one.length, other.length);
  while (start < shorter && one[start] === other[start]) start++;
  while (end < shorter - start && one[one.length - 1 - end] === other[other.length - 1 - end]) end++;
  const inner = [one.subarray(start, one.length - end), other.subarray(start, other.length - end)];
  const runs = equalRuns(...inner);
  if (!runs) return null;
  const flags = [one, other].map((all) => new Uint8Array(all.length).fill(1, start, all.length - end));
  for (const [x, y, length] of withoutChance(runs, inner[0].length, inner[1].length)) {
    flags[0].fill(0, start + x, start + x + length);
    flags[1].fill(0, start + y, start + y + length);
  }
  return flags;
}

// Group tokens to lines: [first token, one after the last, key].
function linesOf(tokens) {
  const lines = [];
  let first = 0;
  tokens.forEach((token, i) => {
    if (!token.source.includes("\n") && i < tokens.length - 1) return;
    lines.push([first, i + 1, tokens.slice(first, i + 1).map((each) => each.key).join(" ")]);
    first = i + 1;
  });
  return lines;
}

// {before, after: flags, unit}: unit is "word", "line", or "all" if only the whole could be marked.
function difference(before, after) {
  const words = flagsOf(before.map((t) => t.key), after.map((t) => t.key));
  if (words) return { before: words[0], after: words[1], unit: "word" };
  const lines = [linesOf(before), linesOf(after)];
  const found = flagsOf(...lines.map((all) => all.map((line) => line[2])));
  const flags = [before, after].map((tokens, side) => {
    const marks = new Uint8Array(tokens.length).fill(found ? 0 : 1);
    if (found) lines[side].forEach(([from, to], i) => marks.fill(found[side][i], from, to));
    return marks;
  });
  return { before: flags[0], after: flags[1], unit: found ? "line" : "all" };
}
