// A model's text on the page: split into words, formulas and lines of code, and drawn as text nodes and MathML elements.
// None of it ever becomes HTML.

const MATHML = "http://www.w3.org/1998/Math/MathML";
// Combining marks, variation selectors, skin tones and joined characters belong to the character before them.
const ALONG = "(?:[\\p{Grapheme_Extend}\\p{M}\\p{Emoji_Modifier}]|\\u200d\\p{Extended_Pictographic}?)";
const BLANK = `(?:\\s(?!${ALONG}))`;
const WORDS = new RegExp(
  `(?:[\\p{Script=Han}\\p{Script=Hiragana}\\p{Script=Katakana}]${ALONG}*|(?:[\\p{L}\\p{N}_]${ALONG}*)+(?:[.,'’](?:\\p{N}${ALONG}*)+)*` +
  `|\\p{Regional_Indicator}{2}${ALONG}*|(?:[^\\s\\p{L}\\p{N}_]|\\s(?=${ALONG}))${ALONG}*)${BLANK}*|${BLANK}+`, "gu");
const KEYWORDS = new Set(
  ("and as assert async await bool boolean break case catch char class const continue def default del do double elif else enum except " +
   "false False finally float fn for from function global if import in include int is lambda let long match mut namespace new None " +
   "nonlocal not null or pass private pub public raise return self static std string struct super switch template this throw true " +
   "True try type typedef unsigned use using var vector void while with yield").split(" "),
);
const HASH_COMMENTS = /^(?:|py|python|python3|sh|bash|r|ruby|yaml|toml)$/i;
const CODE = {
  hash: /(#[^\n]*)|("""[\s\S]*?(?:"""|$)|'''[\s\S]*?(?:'''|$)|"(?:[^"\\\n]|\\.)*"?|'(?:[^'\\\n]|\\.)*'?)|(\b\d[\w.]*)|([A-Za-z_]\w*)/g,
  slash: /(\/\/[^\n]*|\/\*[\s\S]*?(?:\*\/|$))|("(?:[^"\\\n]|\\.)*"?|'(?:[^'\\\n]|\\.)*'?)|(\b\d[\w.]*)|([A-Za-z_]\w*)/g,
};

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// One token is {kind: "word" | "formula" | "code" | "line" | "fence", source, key}; tokens with equal keys count as equal.
function tokensOf(text, pattern) {
  const tokens = [];
  const finder = new RegExp(pattern, "g");
  let last = 0;
  const words = (upTo) => {
    for (const [word] of text.slice(last, upTo).matchAll(WORDS)) {
      const blank = !word.trim();
      if (blank && tokens.length && tokens[tokens.length - 1].kind === "word") tokens[tokens.length - 1].source += word;
      else tokens.push({ kind: "word", source: word, key: word.trim() });
    }
  };
  for (const match of text.matchAll(finder)) {
    words(match.index);
    last = match.index + match[0].length;
    if (match[1] !== undefined) tokens.push(...fenced(match[1]));
    else if (match[2] !== undefined) tokens.push({ kind: "code", source: match[2], key: match[2] });
    else tokens.push({ kind: "formula", source: match[3], key: match[3].replace(/\s+/g, " ") });
  }
  words(text.length);
  return tokens;
}

// A fenced block: its opening, its lines, its end if it has one. Each line has the pieces it is drawn from.
function fenced(source) {
  const lines = source.split("\n"), opening = lines.shift();
  const closing = /^[ \t]*```/.test(lines[lines.length - 1] ?? "") ? lines.pop() : null;
  const language = opening.slice(3).trim().split(/\s/)[0];
  const pieces = highlighted(lines.join("\n"), language);
  const tokens = [{ kind: "fence", source: opening + "\n", key: opening.trimEnd() }];
  lines.forEach((line, i) => {
    const end = closing === null && i === lines.length - 1 ? "" : "\n";
    if (line + end) tokens.push({ kind: "line", source: line + end, key: line.trimEnd(), pieces: pieces[i] });
  });
  // A closing fence must never count as equal to an opening one.
  if (closing !== null) tokens.push({ kind: "fence", source: closing, key: `end ${closing.trimEnd()}`, closes: true });
  return tokens;
}

// The pieces [class, text] of each line of a program.
function highlighted(code, language) {
  const lines = [[]];
  const add = (kind, text) =>
    text.split("\n").forEach((part, i) => {
      if (i) lines.push([]);
      if (part) lines[lines.length - 1].push([kind, part]);
    });
  let last = 0;
  for (const match of code.matchAll(HASH_COMMENTS.test(language) ? CODE.hash : CODE.slash)) {
    add("", code.slice(last, match.index));
    last = match.index + match[0].length;
    const kind = match[1] ? "remark" : match[2] ? "string" : match[3] ? "digit" : KEYWORDS.has(match[4]) ? "word" : "";
    add(kind, match[0]);
  }
  add("", code.slice(last));
  return lines;
}

// A tree [tag, {attributes}?, child or text, …] as elements; formulas.py keeps only MathML's own.
function mathElement([tag, ...rest]) {
  const made = document.createElementNS(MATHML, tag);
  for (const part of rest) {
    if (Array.isArray(part)) made.append(mathElement(part));
    else if (typeof part === "string") made.append(part);
    else for (const [name, value] of Object.entries(part)) made.setAttribute(name, value);
  }
  return made;
}

function formula(source, math, raw) {
  if (raw || !Object.hasOwn(math, source)) return element("span", { class: "source" }, source);
  const drawn = mathElement(JSON.parse(math[source]));
  const block = drawn.getAttribute("display") === "block";
  return element("span", { class: block ? "formula block" : "formula", title: source }, drawn);
}

function codeLine(token, raw) {
  if (raw || !token.pieces) return [token.source];
  return [...token.pieces.map(([kind, text]) => (kind ? element("span", { class: kind }, text) : text)), token.source.endsWith("\n") ? "\n" : ""];
}

// The author of each token: the one of its first character.
function authorsOf(tokens, authors) {
  let at = 0, start = 0;
  return tokens.map((token) => {
    while (at + 1 < authors.length && start >= authors[at][1]) at++;
    start += token.source.length;
    return authors[at][0];
  });
}

// Tokens on the page. `flags` (or null) marks those that changed, as <del> or <ins> by `tag`; neighbours share one mark.
// With `raw`, the text drawn is the text of the tokens, character by character. `authors` (or null) marks who wrote them.
function drawn(tokens, flags, tag, math, raw, authors = null) {
  const root = element("div", { class: "text" });
  const by = authors && authorsOf(tokens, authors);
  // `holder` takes what is no line of code: the text itself, or the part of the last author.
  let holder = root, last = null;
  const look = (i, ...names) => {
    const begins = by !== null && by[i] !== last;
    if (by) last = by[i];
    const all = [...names, by && `by ${by[i]}`].filter(Boolean).join(" ");
    return { ...(all ? { class: all } : {}), ...(begins ? { "data-author": by[i] } : {}) };
  };
  // `ended` is a block right before the token. The line break after the block must not show twice.
  let block = null, mark = null, ended = null;
  tokens.forEach((token, i) => {
    const changed = flags !== null && flags[i] === 1 && Boolean(token.key || token.pieces), after = ended;
    ended = null;
    if (token.kind === "line" || token.kind === "fence") {
      block ??= root.appendChild(element("pre"));
      block.append(element(changed ? tag : "span", look(i, changed && "changed", token.kind === "fence" && "fence"), ...codeLine(token, raw)));
      mark = null;
      if (by) holder = null;
      if (token.closes) [ended, block] = [block.lastChild, null];
      return;
    }
    block = null;
    let source = token.source;
    if (after && source.startsWith("\n")) {
      if (after.parentNode.matches("pre")) after.append("\n");
      source = source.slice(1);
    }
    const node = token.kind === "formula" ? formula(source, math, raw)
      : token.kind === "code" && !raw ? element("code", {}, source.slice(1, -1)) : source;
    if (node.className === "formula block") ended = node;
    if (by && (!holder || by[i] !== last)) [holder, mark] = [root.appendChild(element("span", look(i))), null];
    if (!changed) { mark = null; holder.append(node); return; }
    mark ??= holder.appendChild(element(tag));
    mark.append(node);
  });
  return root;
}
