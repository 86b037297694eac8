// Episodes: turns below one another, those of y_o beside those of y_r that they belong to.

// An environment may draw with characters, so its text has neither formulas nor proportional letters.
function literal(text, flags = null, tag = "") {
  const made = drawn(tokensOf(text, index.pattern), flags, tag, {}, true);
  made.classList.add("literal");
  return made;
}

// One turn [role, action, remarks, observation]. `tag` (or null) marks its action, `flags` the words of its observation.
function turn(name, number, [role, action, remarks, observation], change, tag, flags) {
  const about = [name && `${name} · `, `turn ${number + 1}`, change && ` · ${change}`].filter(Boolean).join("");
  const said = `> ${action}`;
  const made = element("div", { class: "turn" },
    element("p", { class: "muted" }, about, ...remarks.flatMap((remark) => [" · ", element("span", { class: "flag" }, `⚑ ${remark}`)])),
    element("p", { class: `action by ${role}`, "data-author": role }, tag ? element(tag, {}, said) : said));
  if (observation === null) return made;
  const answer = literal(observation, ...(flags ? [flags, name === "y_o" ? "del" : "ins"] : []));
  answer.classList.add("by", "environment");
  made.append(answer);
  return made;
}

// Both turns of a step; an empty place where one of the episodes has no such turn.
function step(before, after, [i, j, change]) {
  const turns = [before.turns?.[i], after.turns?.[j]];
  let flags = [null, null];
  if (marks && change === "kept" && turns.every(([, , , observation]) => observation !== null)) {
    const found = difference(...turns.map(([, , , observation]) => tokensOf(observation, index.pattern)));
    flags = [found.before, found.after];
  }
  const tags = marks && change !== "kept" ? ["del", "ins"] : [null, null];
  return [["y_o", i], ["y_r", j]].map(([name, number], at) =>
    number === null ? element("div", { class: "turn none" }) : turn(name, number, turns[at], change, tags[at], flags[at]));
}

function heading(name, about) { return side(name, about, element("p", { class: "muted" }, Object.fromEntries(about.facts).episode)); }

function episode(name, about) {
  return [...wroteLegend(about), element("div", { class: "pair single" }, heading(name, about), ...about.turns.map((each, i) => turn("", i, each, "", null, null)))];
}

function episodes(before, after, steps) {
  return [
    element("p", { class: "legend" }, marks ? "Aligned by actions. Of a kept action, the words of the answers are compared." : "Differences are off."),
    ...wroteLegend(before, after),
    element("div", { class: "pair episodes" }, heading("y_o", before), heading("y_r", after), ...steps.flatMap((each) => step(before, after, each))),
  ];
}
