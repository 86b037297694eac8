// One trajectory: its problem, y_o beside y_r, and the folded parts. page.js holds the state it reads.

function plain(text, math, authors = null) { return drawn(tokensOf(text, index.pattern), null, "", math, raw, authors); }

function toggle(label, pressed, act) {
  const button = element("button", { type: "button", "aria-pressed": String(pressed) }, label);
  button.addEventListener("click", act);
  return button;
}

function facts(pairs) {
  return element("dl", { class: "facts" }, ...pairs.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
}

// A folded part is drawn when it is unfolded.
function folded(title, content, open = false) {
  const made = element("details", open ? { open: "" } : {}, element("summary", {}, title));
  const fill = () => { if (made.open && made.children.length === 1) made.append(...content()); };
  made.addEventListener("toggle", fill);
  fill();
  return made;
}

const hasResponse = (about) => about.text !== null || about.turns !== null;

function side(name, about, body) {
  const heading = element("h4", {}, name, element("span", { class: about.verdict }, `${SIGNS[about.verdict]} ${about.verdict}`),
    element("span", { class: "muted" }, `tokens: ${Object.fromEntries(about.facts).tokens}`));
  return element("div", { class: "side" }, heading, hasResponse(about) ? body : element("p", { class: "error" }, about.error ?? "no response"));
}

function legend(unit) {
  if (!marks) return "Differences are off.";
  const units = { word: "Marked by words, formulas and lines of code: ", line: "The texts differ in much and are marked by lines: ",
    all: "The texts differ in too much to be marked. " };
  const note = element("span", {}, units[unit]);
  if (unit !== "all") note.append(element("del", {}, "only in y_o"), " ", element("ins", {}, "only in y_r"));
  return note;
}

// The authors that are marked in the texts or turns, if any.
function wroteLegend(...sides) {
  const inTurns = sides.some((each) => each.turns);
  const named = (each) => each.turns ? [...each.turns.map(([role]) => role), "environment"] : (each.authors ?? []).map(([name]) => name);
  const names = new Set(sides.flatMap(named));
  if (!names.size) return [];
  const shown = [...names].flatMap((name) => [" ", element("span", { class: `by ${name}`, "data-author": name }, "wrote this")]);
  return [element("p", { class: "legend" }, inTurns ? "Authors:" : "Authors, marked to the word, formula or line of code:", ...shown)];
}

function pair(entry) {
  const { before, after, math } = entry;
  if (!before || !after) {
    const [name, only] = before ? ["y_o", before] : ["y_r", after];
    if (only.turns) return episode(name, only);
    return [...wroteLegend(only), element("div", { class: "pair single" }, side(name, only, plain(only.text ?? "", math, only.authors)))];
  }
  if (entry.steps) return episodes(before, after, entry.steps);
  const [one, other] = [before, after].map((each) => tokensOf(each.text ?? "", index.pattern));
  const found = difference(one, other);
  const hide = !marks || found.unit === "all";
  return [
    element("p", { class: "legend" }, legend(found.unit)),
    ...wroteLegend(before, after),
    element("div", { class: "pair" },
      side("y_o", before, drawn(one, hide ? null : found.before, "del", math, raw, before.authors)),
      side("y_r", after, drawn(other, hide ? null : found.after, "ins", math, raw, after.authors))),
  ];
}

// A problem, a reference or a prompt.
function given(entry, text) { return entry.task === "episode" ? literal(text) : plain(text, entry.math); }

function prompt(title, about, entry) {
  return folded(title, () => about.messages.flatMap(([role, text]) => [element("h4", { class: "muted" }, role), given(entry, text)]));
}

function view(entry, i) {
  const { before, after } = entry;
  const go = (label, step) => {
    const button = toggle(label, false, () => choose(place + step));
    button.removeAttribute("aria-pressed");
    button.disabled = shown[place + step] === undefined;
    return button;
  };
  const flags = index.flags.filter((_, bit) => index.flag_bits[i] & (1 << bit));
  const reference = [entry.answer && `Answer: ${entry.answer}`, entry.reference].filter(Boolean).join("\n\n");
  const parts = [
    element("div", { class: "bar" }, element("h3", {}, index.problems[index.problem[i]][0]),
      toggle("Differences", marks, () => { marks = !marks; redraw(); }),
      toggle("Source", raw, () => { raw = !raw; redraw(); }),
      element("span", {}, go("‹ Previous", -1), go("Next ›", 1))),
    element("ul", { class: "chips", "aria-label": "About" }, element("li", {}, changeName(...verdicts(i))),
      element("li", {}, setLabel(i)),
      ...(index.trained[i].length ? [element("li", {}, `trained on by ${index.trained[i].map((arm) => index.arms[arm]).join(", ")}`)] : []),
      ...flags.map((flag) => element("li", { class: "flag" }, `⚑ ${flag}`))),
    folded("Problem", () => [given(entry, entry.problem)], true),
    ...pair(entry),
  ];
  if (reference) parts.push(folded("Reference", () => [given(entry, reference)]));
  if (after) parts.push(prompt("Prompt of y_r, to the teacher", after, entry));
  if (before) parts.push(prompt("Prompt of y_o, to the student", before, entry));
  parts.push(folded("Lineage", () => [facts(entry.facts),
    ...[["y_o", before], ["y_r", after]].filter(([, about]) => about).flatMap(([name, about]) => [element("h4", {}, name), facts(about.facts)])]));
  return parts;
}
