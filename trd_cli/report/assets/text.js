// The text of models on the page: split into words, formulas and lines of code, and drawn as text nodes and MathML elements.
// Nothing in it ever becomes HTML.

const MATHML = "http://www.w3.org/1998/Math/MathML";
const WORDS = /(?:[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}]|[\p{L}\p{N}_]+(?:[.,'’]\p{N}+)*|[^\s\p{L}\p{N}_])\s*|\s+/gu;
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

// A fenced block: its opening, its lines, its end where there is one. All lines know the pieces they are drawn from.
function fenced(source) {
  const lines = source.split("\n"), opening = lines.shift();
  const closing = /^[ \t]*```/.test(lines[lines.length - 1] ?? "") ? lines.pop() : null;
  const language = opening.slice(3).trim().split(/\s/)[0];
  const pieces = highlighted(lines.join("\n"), language);
  const tokens = [{ kind: "fence", source: opening + "\n", key: "```" }];
  lines.forEach((line, i) => tokens.push({ kind: "line", source: line + "\n", key: line.trimEnd(), pieces: pieces[i] }));
  if (closing !== null) tokens.push({ kind: "fence", source: closing, key: "```", closes: true });
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

// A tree [tag, {attributes}?, child or text, …] as elements; formulas.py lets only MathML's own through.
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

function codeLine(token) {
  return token.pieces.length
    ? token.pieces.map(([kind, text]) => (kind ? element("span", { class: kind }, text) : text))
    : ["\u200b"];
}

// Tokens on the page. `flags` (or null) marks those that changed, as <del> or <ins> by `tag`; neighbours share one mark.
function drawn(tokens, flags, tag, math, raw) {
  const root = element("div", { class: "text" });
  let block = null, mark = null, afterBlock = false;
  tokens.forEach((token, i) => {
    const changed = flags !== null && flags[i] === 1;
    const ownLine = afterBlock;
    afterBlock = false;
    if (token.kind === "line") {
      block ??= root.appendChild(element("pre"));
      block.append(element(changed ? tag : "span", changed ? { class: "changed" } : {}, ...codeLine(token)));
      mark = null;
      return;
    }
    block = null;
    if (token.kind === "fence") { mark = null; afterBlock = true; return; }
    const node = token.kind === "formula" ? formula(token.source, math, raw)
      : token.kind === "code" && !raw ? element("code", {}, token.source.slice(1, -1))
      : ownLine ? token.source.replace(/^\n/, "") : token.source;
    afterBlock = node.className === "formula block";
    if (!changed || !token.key) { mark = null; root.append(node); return; }
    mark ??= root.appendChild(element(tag));
    mark.append(node);
  });
  return root;
}
