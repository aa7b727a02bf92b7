// The viewer: one image at a time, and its keys.

const latentName = (latents, n) => `z${latents.order[n]} ${signed(latents.deviations[n], 1)} sd`;

const changeOf = (latents, n) => latents.z[n][0] - latents.z[n].at(-1);

// What a signed map adds up to.
function wordsOf(latents, n) {
  const sum = signed(latents.sums[n]);
  if (!n) {
    return `squared deviations from normal latents, ${short(latents.deviations[0])} in all; ` +
      `sum of this map ${sum}, the rise over the counterpart's`;
  }
  return `blue pulls z${latents.order[n]} down, red up; sum of this map ${sum}, ` +
    `change of z${latents.order[n]} from the counterpart ${signed(changeOf(latents, n))}`;
}

function fillLatents(image) {
  const { latents } = image;
  const list = byId("latents");
  list.replaceChildren();
  for (const n of image.tiles.keys()) {
    const canvas = element("canvas");
    paintSigned(canvas.getContext("2d"), image, n, 0.9);
    const picture = element("span", { className: "tile" }, element("img", { alt: "", src: image.image }), canvas);
    picture.style.aspectRatio = `${width} / ${height}`;
    const name = n ? latentName(latents, n) : "whole image";
    const button = element("button", { type: "button", className: "latent" }, picture,
      element("span", { textContent: name }),
      element("span", { className: "sum", textContent: `sum ${signed(latents.sums[n])}` }));
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => {
      state.latent = state.latent === n ? null : n;
      state.replaced = 0;
      redraw();
      if (state.latent !== null) byId("stage").scrollIntoView({ block: "nearest" });
    });
    list.append(element("li", {}, button));
  }
}

function fillTruth(image) {
  const canvas = byId("truth");
  canvas.hidden = image.mask === null;
  byId("truth-unknown").hidden = image.mask !== null;
  byId("binary-legend").hidden = image.mask === null;
  const path = image.mask ? outlineOf(image.mask) : "";
  for (const child of byId("outline").children) child.setAttribute("d", path);
  if (!image.mask) return;
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  const drawn = context.createImageData(width, height);
  for (let n = 0; n < pixels; n += 1) {
    drawn.data.set([255 * image.mask[n], 255 * image.mask[n], 255 * image.mask[n], 255], 4 * n);
  }
  context.putImageData(drawn, 0, 0);
  const share = image.mask.reduce((sum, value) => sum + value, 0) / pixels;
  canvas.setAttribute("aria-label", `True mask: ${(100 * share).toFixed(1)}% of the image`);
}

function fillHeading(record) {
  byId("viewer-name").textContent = record.name;
  byId("position").textContent = `${state.place + 1} / ${state.order.length}`;
  const facts = byId("viewer-facts");
  const compared = () => `, ${record.flagged ? "over" : "under"} ${short(data.decision.threshold)}`;
  const score = `score ${short(record.score)}${decided ? compared() : ""}`;
  facts.replaceChildren(
    element("span", { textContent: record.class }),
    element("span", { textContent: record.split }),
    element("span", { textContent: score }),
    element("b", { className: `tag ${wrong(record) ? (record.abnormal ? "missed" : "alarm") : "right"}`, textContent: verdict(record) }),
  );
  if (record.elsewhere) {
    facts.append(element("b", { className: "tag elsewhere", textContent: "looks elsewhere" }));
  }
}

async function show(place) {
  if (!state.order.length) return;
  state.place = (place + state.order.length) % state.order.length;
  const record = images[state.order[state.place]];
  fillHeading(record);
  viewer.setAttribute("aria-busy", "true");
  byId("trouble").hidden = true;
  try {
    const image = await load(record.id);
    if (images[state.order[state.place]] !== record) return; // another was opened meanwhile
    state.image = image;
    for (const id of ["stage-image", "original"]) byId(id).src = image.image;
    byId("reconstruction").src = image.reconstruction;
    state.latent = null;
    state.replaced = 0;
    fillTruth(image);
    fillLatents(image);
    draw();
    viewer.dataset.shown = record.id;
  } catch (error) {
    if (images[state.order[state.place]] !== record) return;
    byId("trouble").textContent = error.message;
    byId("trouble").hidden = false;
    state.image = null; // not the one before, under this one's name
  }
  viewer.classList.toggle("failed", state.image === null);
  viewer.setAttribute("aria-busy", "false");
  for (const step of [1, -1]) {
    load(images[state.order.at((state.place + step) % state.order.length)].id);
  }
}

function open(index) {
  viewer.showModal();
  document.documentElement.classList.add("viewing");
  viewer.scrollTop = 0;
  byId("viewer-name").focus();
  show(state.order.indexOf(index));
}

function toggleHelp() {
  const help = byId("help");
  help.hidden = !help.hidden;
  byId("help-button").setAttribute("aria-expanded", String(!help.hidden));
}

const step = () => maps[state.map].limit / 100;
const KEYS = {
  ArrowLeft: () => show(state.place - 1),
  ArrowRight: () => show(state.place + 1),
  "[": () => chooseThreshold(state.thresholds[state.map] - step()),
  "]": () => chooseThreshold(state.thresholds[state.map] + step()),
  "-": () => chooseStrength(state.strength - 0.1),
  "+": () => chooseStrength(state.strength + 0.1),
  "=": () => chooseStrength(state.strength + 0.1),
  l: () => {
    const of = mapsOf(maps[state.map].style);
    chooseMap(of[(of.indexOf(state.map) + 1) % of.length]);
  },
  m: () => toggle("show-outline"),
  o: () => toggle("show-original"),
  r: () => chooseThreshold(normalThreshold(maps[state.map])),
  "?": toggleHelp,
};

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  // Sliders and switches keep the arrows to themselves.
  if (event.key.startsWith("Arrow") && event.target.matches("input")) return;
  const act = /^[1-9]$/.test(event.key)
    ? () => chooseStyle(Number(event.key) - 1)
    : KEYS[event.key];
  if (!act) return;
  event.preventDefault();
  act();
}
