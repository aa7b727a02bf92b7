// The viewer's pictures: maps over images, pixels over a threshold, outlines.

// Hit, false alarm, missed: colours that colour-blind people tell apart (Okabe & Ito).
const HIT = [236, 236, 236];
const FALSE_ALARM = [230, 159, 0];
const MISSED = [86, 180, 233];

const viewer = byId("viewer");
const overlay = byId("overlay").getContext("2d");
const binary = byId("binary").getContext("2d");
const exchanged = byId("exchanged").getContext("2d");

function colour(share) {
  const n = 3 * Math.round(255 * Math.min(Math.max(share, 0), 1));
  return [palette[n], palette[n + 1], palette[n + 2]];
}

// A map over the image: as `figures.overlay` does it, which the report's figures use.
function paint(context, plane, planeWidth, planeHeight, step, scale, strength) {
  const canvas = context.canvas;
  if (canvas.width !== planeWidth || canvas.height !== planeHeight) {
    canvas.width = planeWidth;
    canvas.height = planeHeight;
  }
  const shades = new Uint8ClampedArray(4 * 256);
  for (let level = 0; level < 256; level += 1) {
    const share = level ? Math.min(((level + 0.5) * step) / scale, 1) : 0;
    shades.set([...colour(share), 255 * strength * share ** 0.7], 4 * level);
  }
  const table = new Uint32Array(shades.buffer);
  const drawn = context.createImageData(planeWidth, planeHeight);
  const target = new Uint32Array(drawn.data.buffer);
  for (let n = 0; n < target.length; n += 1) target[n] = table[plane[n]];
  context.putImageData(drawn, 0, 0);
}

// A signed map over the pale image: as `figures.signed_overlay` does it.
function paintSigned(context, image, n, strength) {
  const { latents } = image;
  const { canvas } = context;
  Object.assign(canvas, { width: latents.width, height: latents.height });
  const drawn = context.createImageData(latents.width, latents.height);
  for (const [place, level] of image.tiles[n].entries()) {
    const value = ((level - 128) * latents.steps[n]) / scaleOf(n);
    const share = Math.min(Math.max(value, -1), 1);
    const at = 3 * Math.round(127 * (1 + share));
    const opacity = 255 * strength * Math.abs(share) ** 0.6;
    drawn.data.set([...signedPalette.subarray(at, at + 3), opacity], 4 * place);
  }
  context.putImageData(drawn, 0, 0);
}

const scaleOf = (n) => data.latents.scales[n ? 1 : 0];

// The counterpart's pixels where the latent's map ranks highest, up to the share of the slider.
function paintExchanged() {
  const { image, latent, replaced } = state;
  const { canvas } = exchanged;
  Object.assign(canvas, { width, height });
  const levels = latent ? image.levels[latent] : null;
  if (!levels || !replaced) return false;
  const drawn = exchanged.createImageData(width, height);
  for (let n = 0; n < pixels; n += 1) drawn.data[4 * n + 3] = levels[n] <= replaced ? 255 : 0;
  exchanged.putImageData(drawn, 0, 0);
  exchanged.globalCompositeOperation = "source-in";
  exchanged.drawImage(image.normal, 0, 0, width, height);
  return true;
}

// The first level that reaches a threshold.
const levelOf = (threshold, step) => Math.ceil(threshold / step - 1e-6);

function paintBinary() {
  const { image } = state;
  const plane = image.maps[state.map];
  const level = levelOf(state.thresholds[state.map], image.steps[state.map]);
  const canvas = binary.canvas;
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const drawn = binary.createImageData(width, height);
  let [hits, alarms, missed] = [0, 0, 0];
  for (let n = 0; n < pixels; n += 1) {
    const over = plane[n] >= level;
    const anomalous = image.mask !== null && image.mask[n] === 1;
    let shade = null;
    if (over && (anomalous || image.mask === null)) {
      hits += 1;
      shade = HIT;
    } else if (over) {
      alarms += 1;
      shade = FALSE_ALARM;
    } else if (anomalous) {
      missed += 1;
      shade = MISSED;
    }
    const at = 4 * n;
    if (shade) [drawn.data[at], drawn.data[at + 1], drawn.data[at + 2]] = shade;
    drawn.data[at + 3] = 255;
  }
  binary.putImageData(drawn, 0, 0);
  return { hits, alarms, missed };
}

function reportIou({ hits, alarms, missed }) {
  const known = state.image.mask !== null;
  const anomalous = known && hits + missed > 0;
  const over = hits + alarms;
  const share = `${((100 * over) / pixels).toFixed(1)}% of the image is over it`;
  const iou = anomalous ? (hits / (hits + alarms + missed)).toFixed(3) : "–";
  const detail = anomalous ? share : known ? `nothing is anomalous; ${share}` : `place not known; ${share}`;
  byId("iou").textContent = iou;
  byId("iou-detail").textContent = detail;
  binary.canvas.setAttribute("aria-label", `Pixels over the threshold: ${share}`);
  announce(anomalous ? `IoU ${iou}, ${detail}` : detail);
}

function announce(text) {
  clearTimeout(state.announcing);
  state.announcing = setTimeout(() => {
    byId("announcer").textContent = text;
  }, 500);
}

// Along the pixels' edges, so that it is sharp at any size.
function outlineOf(mask) {
  const parts = [];
  const at = (x, y) => x >= 0 && x < width && y >= 0 && y < height && mask[y * width + x] === 1;
  for (let y = 0; y <= height; y += 1) {
    for (let x = 0; x < width; x += 1) {
      const start = x;
      while (x < width && at(x, y - 1) !== at(x, y)) x += 1;
      if (x > start) parts.push(`M${start} ${y}H${x}`);
    }
  }
  for (let x = 0; x <= width; x += 1) {
    for (let y = 0; y < height; y += 1) {
      const start = y;
      while (y < height && at(x - 1, y) !== at(x, y)) y += 1;
      if (y > start) parts.push(`M${x} ${start}V${y}`);
    }
  }
  return parts.join("");
}

function draw() {
  const { image } = state;
  if (!image) return;
  const map = maps[state.map];
  const latent = state.latent;
  const exchanging = paintExchanged();
  const alone = byId("show-original").checked;
  const strength = alone || exchanging ? 0 : state.strength;
  const stage = byId("stage");
  stage.classList.toggle("plain", strength === 0);
  stage.classList.toggle("signed", strength > 0 && latent !== null);
  exchanged.canvas.toggleAttribute("hidden", alone || !exchanging);
  let scale = map.scale;
  let title = `${map.style}, ${map.layer}`;
  if (latent === null) {
    paint(overlay, image.maps[state.map], width, height, image.steps[state.map], scale, strength);
  } else {
    scale = scaleOf(latent);
    title = latent ? `latent ${latentName(image.latents, latent)}` : "the image's deviation";
    paintSigned(overlay, image, latent, strength);
  }
  byId("stage-title").textContent = alone ? "original" : title;
  byId("outline").toggleAttribute("hidden", !byId("show-outline").checked);
  const [x, y] = image.peaks[state.map];
  for (const circle of byId("peak").children) {
    circle.setAttribute("cx", x + 0.5);
    circle.setAttribute("cy", y + 0.5);
  }
  byId("peak").toggleAttribute("hidden", !byId("show-peak").checked || alone || latent !== null);
  stage.setAttribute("aria-label", alone ? "The image alone" : `Map over the image: ${title}`);
  drawScale(scale);
  byId("scale-unit").textContent = latent === null ? map.unit : wordsOf(image.latents, latent);
  byId("truth-of-map").textContent = latent === null ? map.truth : latent ? data.latents.truth : "";
  const mark = byId("scale-threshold");
  mark.hidden = latent !== null || state.thresholds[state.map] > scale;
  mark.style.left = `${(100 * state.thresholds[state.map]) / scale}%`;
  reportIou(paintBinary());
  drawControls();
}

// From 0 up, or from below 0 to above it.
function drawScale(scale) {
  const signed = state.latent !== null;
  const ticks = signed ? [-scale, 0, scale] : [0, scale / 2, scale];
  const words = ticks.map(short);
  words[2] += " or more";
  if (signed) words[0] += " or less";
  for (const [n, id] of ["scale-start", "scale-middle", "scale-end"].entries()) {
    byId(id).textContent = words[n];
  }
  const bar = byId("scale-colours").getContext("2d");
  const drawn = bar.createImageData(256, 1);
  for (let n = 0; n < 256; n += 1) {
    const at = 3 * Math.round((254 * n) / 255);
    const shade = signed ? signedPalette.subarray(at, at + 3) : colour(n / 255);
    drawn.data.set([...shade, 255], 4 * n);
  }
  bar.putImageData(drawn, 0, 0);
}

// The latent's deletion curve, and where the slider stands on it.
function drawReplacing() {
  const { image, latent, replaced } = state;
  const path = latent ? image.latents.z[latent] : null;
  byId("replacing").hidden = !path;
  if (!path) return;
  const { shares } = data.latents;
  const [low, high] = [Math.min(...path), Math.max(...path)];
  const at = (n) => [
    (100 * n) / (shares.length - 1),
    4 + (32 * (high - path[n])) / (high - low || 1),
  ];
  byId("path-line").setAttribute("points", path.map((_, n) => at(n).join(",")).join(" "));
  const [x, y] = at(replaced);
  byId("path-place").setAttribute("d", `M${x} ${y}h0`);
  const share = `${short(100 * shares[replaced])}%`;
  byId("replaced").value = replaced;
  byId("replaced-value").textContent = share;
  const name = `z${image.latents.order[latent]}`;
  const words = `${name} = ${signed(path[replaced])}, from ${signed(path[0])} in the image to ` +
    `${signed(path.at(-1))} in its normal counterpart`;
  byId("replaced-words").textContent = words;
  byId("replaced").setAttribute("aria-valuetext", `${share} of the pixels: ${words}`);
}

function drawControls() {
  drawReplacing();
  const map = maps[state.map];
  const threshold = state.thresholds[state.map];
  const slider = byId("threshold");
  Object.assign(slider, { min: 0, max: map.limit, step: map.limit / 400 });
  slider.value = threshold;
  byId("threshold-value").textContent = short(threshold);
  slider.setAttribute("aria-valuetext", `${short(threshold)} ${map.unit}`);
  byId("threshold-promise").textContent = map.promise;
  byId("threshold-reset").disabled = threshold === normalThreshold(map);
  byId("strength").value = Math.round(100 * state.strength);
  byId("strength-value").textContent = `${Math.round(100 * state.strength)}%`;
  byId("strength").setAttribute("aria-valuetext", byId("strength-value").textContent);
  for (const input of byId("styles").querySelectorAll("input")) input.checked = input.value === map.style;
  fillLayers();
  for (const [n, item] of [...byId("latents").children].entries()) {
    item.firstChild.setAttribute("aria-pressed", String(n === state.latent));
  }
}

// As soon as possible, but once a frame.
function redraw() {
  if (state.drawing) return;
  state.drawing = requestAnimationFrame(() => {
    state.drawing = 0;
    draw();
  });
}
