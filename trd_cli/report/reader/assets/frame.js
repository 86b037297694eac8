// The parts around the reader: the theme, and the mark of the section in view.

const $ = (id) => document.getElementById(id);

// ---- the theme

function showTheme() {
  const chosen = document.documentElement.dataset.theme;
  const dark = chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  $("theme").textContent = dark ? "Light" : "Dark";
  $("theme").setAttribute("aria-label", dark ? "Use the light theme" : "Use the dark theme");
  return dark;
}

function remembered(value) {
  // A page opened from a file may have no storage.
  try {
    if (value !== undefined) localStorage.setItem("trd-theme", value);
    return localStorage.getItem("trd-theme");
  } catch { return null; }
}

$("theme").addEventListener("click", () => {
  document.documentElement.dataset.theme = remembered(showTheme() ? "light" : "dark") ?? (showTheme() ? "light" : "dark");
  showTheme();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showTheme);
if (["light", "dark"].includes(remembered())) document.documentElement.dataset.theme = remembered();
showTheme();

// ---- the section in view

const links = [...document.querySelectorAll("nav ul a")];
const sections = links.map((link) => $(link.hash.slice(1)));

function markSection() {
  const line = innerHeight / 3;
  let current = -1;
  sections.forEach((section, i) => { if (section.getBoundingClientRect().top < line) current = i; });
  if (links[current]?.getAttribute("aria-current") === "true") return;
  links.forEach((link, i) => link.setAttribute("aria-current", String(i === current)));
  // On a phone the list of sections is wider than the window and scrolls.
  const list = document.querySelector("nav ul"), link = links[current];
  if (link) list.scrollLeft = link.offsetLeft - list.offsetLeft - (list.clientWidth - link.clientWidth) / 2;
}
addEventListener("scroll", () => requestAnimationFrame(markSection), { passive: true });
markSection();
