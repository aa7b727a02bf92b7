// Fills the page and listens to it.

function prepare() {
  const small = Math.max(height, width) <= 64;
  for (const box of [gallery, viewer]) {
    box.classList.toggle("small-images", small);
    box.style.setProperty("--ratio", `${width} / ${height}`);
    box.style.setProperty("--shape", width / height);
  }
  for (const id of ["outline", "peak"]) byId(id).setAttribute("viewBox", `0 0 ${width} ${height}`);
  for (const circle of byId("peak").children) circle.setAttribute("r", 0.025 * Math.max(height, width) + 0.4);
  byId("replaced").max = data.latents.shares.length - 1;
  fillStyles();
  fillFilters();
  refresh();
}

function listen() {
  filters.addEventListener("input", refresh);
  filters.addEventListener("submit", (event) => event.preventDefault());
  filters.addEventListener("reset", () => setTimeout(refresh));
  gallery.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) open(Number(button.dataset.index));
  });
  gallery.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const item = event.target.closest("li");
    const other = step && (step < 0 ? item.previousElementSibling : item.nextElementSibling);
    if (!other) return;
    event.preventDefault();
    other.firstChild.focus();
  });
  byId("previous").addEventListener("click", () => show(state.place - 1));
  byId("next").addEventListener("click", () => show(state.place + 1));
  byId("close").addEventListener("click", () => viewer.close());
  byId("help-button").addEventListener("click", toggleHelp);
  byId("threshold").addEventListener("input", (event) => chooseThreshold(Number(event.target.value)));
  byId("threshold-reset").addEventListener("click", KEYS.r);
  byId("replaced").addEventListener("input", (event) => chooseReplaced(Number(event.target.value)));
  byId("strength").addEventListener("input", (event) => chooseStrength(Number(event.target.value) / 100));
  for (const id of ["show-outline", "show-peak", "show-original"]) byId(id).addEventListener("change", redraw);
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  viewer.addEventListener("keydown", onKey);
  viewer.addEventListener("click", (event) => {
    if (event.target === viewer) viewer.close(); // beside it
  });
  viewer.addEventListener("close", () => {
    document.documentElement.classList.remove("viewing");
    delete viewer.dataset.shown;
    cards[state.order[state.place]]?.firstChild.focus();
  });
}

prepare();
listen();
