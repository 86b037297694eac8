// The reader of trajectories: its filters, its list, its links and keys.

const isPhone = matchMedia("(max-width: 860px)");
const ROW = 56, SPARE = 8;
const SIGNS = { correct: "✓", incorrect: "✗", error: "!", timeout: "⏱", unverified: "?" };
const CHANGES = [
  ["repaired", "incorrect", "correct"], ["broken", "correct", "incorrect"],
  ["kept", "correct", "correct"], ["unrepaired", "incorrect", "incorrect"],
];
const number = new Intl.NumberFormat("en");
let index = null, repeated = new Set(), shown = [], place = -1, mark = -1, marks = true, raw = false, asked = 0;

const verdict = (column, i) => (index[column][i] < 0 ? null : index.verdicts[index[column][i]]);
const verdicts = (i) => [verdict("before", i), verdict("after", i)];

function changeName(before, after) {
  if (after === null) return `y_o ${before}, no y_r`;
  if (before === null) return `y_r ${after}, y_o missing`;
  const name = CHANGES.find(([, from, to]) => from === before && to === after)?.[0];
  return `${before} → ${after}${name ? ` (${name})` : ""}`;
}

const setLabel = (i) => index.sets[index.set[i]][1];
const changeKey = (i) => `${index.before[i]}/${index.after[i]}`;

function option(value, text) { return element("option", { value }, text); }

function fillFilters() {
  const all = [...Array(index.count).keys()];
  const tally = (keyOf) => all.reduce((counts, i) => counts.set(keyOf(i), (counts.get(keyOf(i)) ?? 0) + 1), new Map());
  const counted = (text, count) => `${text}: ${number.format(count)}`;
  const changes = [...tally(changeKey)].sort((a, b) => b[1] - a[1]);
  $("change").append(option("", "all"), ...changes.map(([key, count]) => {
    const [before, after] = key.split("/").map((at) => (at < 0 ? null : index.verdicts[at]));
    return option(key, counted(changeName(before, after), count));
  }));
  const arms = index.arms.map((_, arm) => all.filter((i) => index.trained[i].includes(arm)).length);
  $("arm").append(option("", "all"), ...index.arms.map((name, arm) => option(arm, counted(name, arms[arm]))));
  const sets = tally((i) => index.set[i]);
  $("set").append(option("", "all"), ...index.sets.map(([, label], i) => option(i, counted(label, sets.get(i) ?? 0))));
  $("flag").append(option("", "all"));
  index.flags.forEach((label, bit) => {
    const count = all.filter((i) => index.flag_bits[i] & (1 << bit)).length;
    if (count) $("flag").append(option(1 << bit, counted(label, count)));
  });
  hideFilters();
}

// Hide filters that leave no choice.
function hideFilters() {
  for (const [id, least] of [["arm", 2], ["set", 3], ["flag", 2]]) $(id).closest("label").hidden = $(id).options.length < least;
}

function matches(i, words) {
  const [name, text] = index.problems[index.problem[i]];
  return [index.id[i], index.parent[i]].some((id) => id?.startsWith(words)) || name.toLowerCase().includes(words) || text.toLowerCase().includes(words);
}

function applyFilters() {
  const current = shown[place];
  const [change, arm, set, flag, search] = ["change", "arm", "set", "flag", "search"].map((id) => $(id).value);
  const words = search.trim().toLowerCase();
  shown = [];
  for (let i = 0; i < index.count; i++) {
    if (change && changeKey(i) !== change) continue;
    if (arm && !index.trained[i].includes(Number(arm))) continue;
    if (set && index.set[i] !== Number(set)) continue;
    if (flag && !(index.flag_bits[i] & Number(flag))) continue;
    if (words && !matches(i, words)) continue;
    shown.push(i);
  }
  $("count").textContent = `${number.format(shown.length)} of ${number.format(index.count)}`;
  $("list").firstElementChild.style.height = `${shown.length * ROW}px`;
  place = shown.indexOf(current);
  drawList();
  if (place >= 0) reveal();
  else $("list").scrollTop = 0;
}

function clearFilters() {
  for (const id of ["change", "arm", "set", "flag", "search"]) $(id).value = "";
  applyFilters();
}

function row(at) {
  const i = shown[at], [before, after] = verdicts(i);
  const [problem, text] = index.problems[index.problem[i]];
  const signs = element("span", { "aria-hidden": "true" });
  [before, after].filter(Boolean).forEach((each, side) => signs.append(side ? " → " : "", element("span", { class: each }, SIGNS[each])));
  const tokens = [index.tokens_before[i], index.tokens_after[i]].filter((each) => each !== null).map((n) => number.format(n)).join(" → ");
  return element("div",
    { class: "row", role: "option", id: `row-${at}`, style: `top:${at * ROW}px`, "data-at": at,
      "aria-selected": String(at === place), "aria-setsize": shown.length, "aria-posinset": at + 1 },
    element("div", {}, element("span", {}, text.replace(/\s+/g, " ").slice(0, 90)), signs),
    element("div", {}, element("span", {}, index.sets.length > 1 ? `${setLabel(i)} · ${problem}` : problem), element("span", {}, tokens)),
    element("span", { class: "hidden" }, `, ${changeName(before, after)}`));
}

// Only the rows in view and a few around them are elements.
function drawList() {
  const list = $("list"), first = Math.max(0, Math.floor(list.scrollTop / ROW) - SPARE);
  const last = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + SPARE);
  const rows = [];
  for (let at = first; at < last; at++) rows.push(row(at));
  list.firstElementChild.replaceChildren(...rows);
  if (place >= first && place < last) list.setAttribute("aria-activedescendant", `row-${place}`);
  else list.removeAttribute("aria-activedescendant");
}

function reveal() {
  const list = $("list"), top = place * ROW;
  if (top < list.scrollTop) list.scrollTop = top;
  else if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
  drawList();
}

function choose(at, { inHash = true } = {}) {
  if (!shown.length) return;
  place = Math.min(Math.max(at, 0), shown.length - 1);
  mark = -1;
  reveal();
  if (inHash) history.replaceState(null, "", fragment(shown[place]));
  return open(shown[place]);
}

async function open(i) {
  const mine = ++asked, old = $("detail").dataset.id;
  let entry;
  try {
    const number = index.starts.findLastIndex((first) => first <= i);
    entry = (await chunk(number))[i - index.starts[number]];
  } catch (error) {
    $("detail").replaceChildren(element("p", { class: "error" }, `This trajectory could not be read: ${error.message}`));
    return;
  }
  if (mine !== asked) return;
  $("detail").replaceChildren(...view(entry, i));
  $("detail").dataset.id = entry.id;
  if (old !== entry.id && !isPhone.matches) $("detail").scrollTop = 0;
}

const redraw = () => place >= 0 && open(shown[place]);

// ---- links and keys

// The address of a row: its id, and its set if another row has the same id.
function fragment(i) {
  const id = index.id[i];
  return `#t=${id}${repeated.has(id) ? `&set=${encodeURIComponent(index.sets[index.set[i]][0])}` : ""}`;
}

// Find the first row whose id begins with `id`, or else whose y_o's does; in the set of `node` if one is given.
function find(id, node) {
  for (const names of [index.id, index.parent]) {
    const i = names.findIndex((name, at) => name?.startsWith(id) && (!node || index.sets[index.set[at]][0] === node));
    if (i >= 0) return i;
  }
  return -1;
}

function openFromHash() {
  const link = new URLSearchParams(location.hash.slice(1)), id = link.get("t")?.toLowerCase() ?? "";
  if (!/^[0-9a-z]{6,64}$/.test(id)) return false;
  const i = find(id, link.get("set"));
  if (i < 0) { notHere(id); return true; }
  if (!shown.includes(i)) clearFilters();
  choose(shown.indexOf(i), { inHash: false });
  $("trajectories").scrollIntoView({ behavior: "instant" });
  return true;
}

// A link to a row that the page lacks must not show another row.
function notHere(id) {
  asked++;
  place = -1;
  drawList();
  delete $("detail").dataset.id;
  $("detail").replaceChildren(element("p", { class: "error" }, `This page has no trajectory with the id ${id}.`));
}

function goToMark(step) {
  const all = [...$("detail").querySelectorAll(".pair del, .pair ins")].sort((a, b) => a.getBoundingClientRect().top - b.getBoundingClientRect().top);
  if (!all.length) return;
  mark = mark < 0 && step < 0 ? all.length - 1 : (mark + step + all.length) % all.length;
  all[mark].scrollIntoView({ block: "center" });
  all[mark].setAttribute("tabindex", "-1");
  all[mark].focus({ preventScroll: true });
}

function goTo(at) {
  choose(at);
  const { top, bottom } = $("trajectories").getBoundingClientRect();
  if (top > innerHeight / 2 || bottom < innerHeight / 2) $("trajectories").scrollIntoView();
}

const KEYS = {
  j: () => goTo(place + 1), k: () => goTo(place - 1), n: () => goToMark(1), p: () => goToMark(-1),
  "/": () => $("search").focus(), f: () => $("change").focus(), "?": () => $("keys").showModal(),
  d: () => { marks = !marks; redraw(); }, m: () => { raw = !raw; redraw(); },
};
const LIST_KEYS = {
  ArrowDown: () => goTo(place + 1), ArrowUp: () => goTo(place - 1), Home: () => goTo(0), End: () => goTo(shown.length - 1),
  PageDown: () => goTo(place + 10), PageUp: () => goTo(place - 10), Escape: clearFilters,
};

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || $("keys").open) return;
  const target = event.target instanceof Element ? event.target : document.body;
  const typing = target.matches("input, select, textarea");
  if (typing && event.key === "Escape") return target.blur();
  if (typing && !(target.id === "search" && event.key === "Enter")) return;
  const inList = target.closest("#list") || target === document.body && LIST_KEYS[event.key] && inView();
  const act = typing ? () => $("list").focus() : (inList && LIST_KEYS[event.key]) || KEYS[event.key];
  if (!act) return;
  event.preventDefault();
  act();
}

// Arrows belong to the page until the reader fills most of the window.
function inView() {
  const { top, bottom } = $("list").getBoundingClientRect();
  return top < innerHeight / 3 && bottom > innerHeight / 2;
}

function connect() {
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  for (const id of ["change", "arm", "set", "flag"]) $(id).addEventListener("change", () => filtered());
  $("search").addEventListener("input", () => filtered());
  $("list").addEventListener("scroll", () => requestAnimationFrame(drawList), { passive: true });
  $("list").addEventListener("click", (event) => {
    const chosen = event.target.closest(".row");
    if (!chosen) return;
    choose(Number(chosen.dataset.at));
    if (isPhone.matches) $("detail").scrollIntoView();
  });
  $("help").addEventListener("click", () => $("keys").showModal());
  addEventListener("keydown", onKey);
  addEventListener("hashchange", openFromHash);
  addEventListener("resize", drawList);
}

// Open the first row that passes if the open one does not.
function filtered() {
  applyFilters();
  if (place < 0 && shown.length) choose(0);
}

async function start() {
  if (!$("index") || !$("list")) return;
  index = await unpacked("index");
  const seen = new Set();
  repeated = new Set(index.id.filter((id) => seen.has(id) || !seen.add(id)));
  fillFilters();
  applyFilters();
  connect();
  if (!openFromHash()) choose(0, { inHash: false });
  document.documentElement.dataset.ready = "true";
}
start();
