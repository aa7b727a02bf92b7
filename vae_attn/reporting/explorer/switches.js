// The viewer's switches: styles, layers, threshold, strength.

const styles = [...new Set(maps.map((map) => map.style))];
const mapsOf = (style) => [...maps.keys()].filter((n) => maps[n].style === style);

function choice(name, value, text, key, onChoose) {
  const input = element("input", { type: "radio", name, value });
  input.addEventListener("change", onChoose);
  const label = element("label", {}, input, element("span", { textContent: text }));
  if (key) label.append(element("kbd", { textContent: key }));
  return label;
}

function fillStyles() {
  for (const [n, style] of styles.entries()) {
    const text = style.replaceAll("_", " ");
    const label = choice("style", style, text, String(n + 1), () => chooseStyle(n));
    const known = mapsOf(style).find((m) => maps[m].truth);
    if (known !== undefined) {
      const where = mapsOf(style).length > 1 ? ` at ${maps[known].layer}` : "";
      label.append(element("small", { textContent: maps[known].truthInShort + where }));
    }
    byId("styles").append(label);
  }
}

function fillLayers() {
  const { style } = maps[state.map];
  const box = byId("layers");
  if (box.dataset.style !== style) {
    box.dataset.style = style;
    box.querySelectorAll("label").forEach((label) => label.remove());
    for (const n of mapsOf(style)) {
      const label = choice("layer", n, maps[n].layer, "", () => chooseMap(n));
      if (maps[n].truth) label.append(element("small", { textContent: maps[n].truthInShort }));
      box.append(label);
    }
  }
  for (const input of box.querySelectorAll("input")) input.checked = Number(input.value) === state.map;
}

function chooseMap(n) {
  state.map = n;
  state.latent = null;
  redraw();
}

// The same layer where the style has it.
function chooseStyle(n) {
  if (n >= styles.length) return;
  const { layer } = maps[state.map];
  const of = mapsOf(styles[n]);
  chooseMap(of.find((m) => maps[m].layer === layer) ?? of[0]);
}

function chooseThreshold(value) {
  state.thresholds[state.map] = Math.min(Math.max(value, 0), maps[state.map].limit);
  redraw();
}

function chooseReplaced(place) {
  state.replaced = place;
  redraw();
}

function chooseStrength(value) {
  state.strength = Math.min(Math.max(value, 0), 1);
  redraw();
}

function toggle(id) {
  byId(id).checked = !byId(id).checked;
  redraw();
}
