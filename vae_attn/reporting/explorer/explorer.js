"use strict";

// The explorer of a report's page. Its only global: the files beside the page hand their data to
// explorer.receive.
const explorer = (() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("explorer-data").textContent);
  const { height, width, maps, images } = data;
  const pixels = height * width;
  const palette = bytesOf(data.colours);
  // Hit, false alarm, missed: colours that colour-blind people tell apart (Okabe & Ito).
  const HIT = [236, 236, 236];
  const FALSE_ALARM = [230, 159, 0];
  const MISSED = [86, 180, 233];
  const KEPT = 32; // images whose maps stay in memory

  const requested = new Map(); // id -> {promise, resolve}
  const state = {
    order: [],
    place: -1,
    map: 0,
    latent: null,
    thresholds: maps.map((map) => map.threshold),
    strength: 0.85,
    image: null, // decoded
    drawing: 0,
    announcing: 0,
  };

  // ---------------------------------------------------------------- data

  function bytesOf(text) {
    return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  }

  async function inflate(text) {
    const stream = new Blob([bytesOf(text)]).stream();
    const inflated = stream.pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(inflated).arrayBuffer());
  }

  // Planes hold differences to the pixel on the left.
  function integrate(bytes, rowLength) {
    for (let n = 0; n < bytes.length; n += 1) {
      if (n % rowLength) bytes[n] += bytes[n - 1];
    }
    return bytes;
  }

  async function decode(record) {
    const bytes = await inflate(record.planes);
    const large = maps.length + (record.mask ? 1 : 0);
    integrate(bytes.subarray(0, large * pixels), width);
    const tile = record.latents.height * record.latents.width;
    const small = integrate(bytes.subarray(large * pixels), record.latents.width);
    return {
      ...record,
      maps: maps.map((_, n) => bytes.subarray(n * pixels, (n + 1) * pixels)),
      mask: record.mask ? bytes.subarray(maps.length * pixels, large * pixels) : null,
      tiles: record.latents.order.map((_, n) => small.subarray(n * tile, (n + 1) * tile)),
    };
  }

  function receive(id, record) {
    requested.get(id)?.resolve(decode(record));
  }

  function load(id) {
    const known = requested.get(id);
    if (known) {
      requested.delete(id); // and to the end: the oldest go first
      requested.set(id, known);
      return known.promise;
    }
    const request = {};
    request.promise = new Promise((resolve, reject) => {
      request.resolve = resolve;
      const script = document.createElement("script");
      script.src = `${data.folder}/${id}.js`;
      script.onload = () => {
        script.remove();
        reject(new Error(`${script.src} holds no data.`)); // no-op where it was received
      };
      script.onerror = () => {
        script.remove();
        requested.delete(id);
        reject(
          new Error(`${data.folder}/${id}.js cannot be read: keep the folder beside this page.`),
        );
      };
      document.head.append(script);
    });
    request.promise.catch(() => {});
    requested.set(id, request);
    while (requested.size > KEPT) requested.delete(requested.keys().next().value);
    return request.promise;
  }

  // ---------------------------------------------------------------- numbers and words

  const short = (value) => String(Number(value.toPrecision(3)));

  function verdict(record) {
    if (record.abnormal) return record.flagged ? "found" : "missed";
    return record.flagged ? "false alarm" : "passed";
  }

  const wrong = (record) => record.abnormal !== record.flagged;
  const misses = (record) => wrong(record) || record.elsewhere === true;

  function tagsOf(record) {
    const tags = [];
    if (wrong(record)) tags.push([verdict(record), record.abnormal ? "missed" : "alarm"]);
    if (record.elsewhere) tags.push(["looks elsewhere", "elsewhere"]);
    return tags;
  }

  function element(name, options = {}, ...children) {
    const made = document.createElement(name);
    const { className, ...rest } = options;
    if (className) made.className = className;
    for (const [key, value] of Object.entries(rest)) made[key] = value;
    made.append(...children);
    return made;
  }

  // ---------------------------------------------------------------- gallery

  const filters = byId("filters");
  const field = (name) => filters.elements.namedItem(name);
  const gallery = byId("gallery");

  function card(record, index) {
    const picture = element("img", {
      alt: "",
      loading: "lazy",
      decoding: "async",
      width: 2 * width,
      height,
      src: `${data.folder}/${record.id}${data.suffix}`,
    });
    const score = element("span", { className: "score", textContent: short(record.score) });
    if (record.flagged) score.classList.add("flagged");
    const line = element("span", { className: "line" }, element("span", {
      className: "class", textContent: record.class }), score);
    const tags = element("span", { className: "tags" });
    for (const [text, kind] of tagsOf(record)) {
      tags.append(element("b", { className: `tag ${kind}`, textContent: text }));
    }
    const name = element("span", { className: "name", textContent: record.name });
    const button = element("button", { type: "button", className: "card" },
      element("span", { className: "picture" }, picture), line, name, tags);
    button.dataset.index = index;
    score.title = record.flagged ? "score, over the threshold" : "score, under the threshold";
    return element("li", {}, button);
  }

  const cards = images.map(card);
  const ranked = images.map((image) => image.score).sort((a, b) => a - b);

  function fillFilters() {
    for (const [name, key] of [["class", "class"], ["split", "split"]]) {
      const counts = new Map();
      for (const image of images) counts.set(image[key], (counts.get(image[key]) ?? 0) + 1);
      for (const [value, count] of counts) {
        field(name).append(element("option", { value, textContent: `${value} (${count})` }));
      }
    }
    // The sliders go by rank: a few wild scores must not squeeze all others into one step.
    for (const name of ["from", "to"]) {
      const input = field(name);
      Object.assign(input, { min: 0, max: ranked.length, step: 1 });
      input.defaultValue = name === "from" ? "0" : String(ranked.length);
      input.value = input.defaultValue;
    }
    byId("decision-threshold").textContent =
      `${short(data.decision.threshold)} (which ${Math.round(100 * data.decision.rate)}% of ` +
      "held-out normal images exceed)";
  }

  const SORTS = {
    high: (a, b) => b.score - a.score,
    low: (a, b) => a.score - b.score,
    iou: (a, b) => (a.iou ?? 2) - (b.iou ?? 2) || b.score - a.score,
    name: (a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0),
  };

  function refresh() {
    const [from, to] = [field("from"), field("to")];
    const low = Number(from.value) > 0 ? (ranked[from.value] ?? Infinity) : -Infinity;
    const high = Number(to.value) < ranked.length ? (ranked[to.value - 1] ?? -Infinity) : Infinity;
    for (const [input, value] of [[from, low], [to, high]]) {
      const open = value === (input === from ? -Infinity : Infinity);
      const text = open ? "any" : Number.isFinite(value) ? short(value) : "none";
      input.nextElementSibling.value = text;
      input.setAttribute("aria-valuetext", text);
    }
    const wanted = field("name").value.trim().toLowerCase();
    const kept = (image) =>
      (!field("class").value || image.class === field("class").value) &&
      (!field("split").value || image.split === field("split").value) &&
      image.score >= low && image.score <= high &&
      (!field("misses").checked || misses(image)) &&
      (!wanted || image.name.toLowerCase().includes(wanted));
    const order = [...images.keys()].filter((n) => kept(images[n]));
    order.sort((a, b) => SORTS[field("sort").value](images[a], images[b]) || a - b);
    state.order = order;
    gallery.replaceChildren(...order.map((n) => cards[n]));
    gallery.dataset.pictures = field("pictures").value;
    const shown = order.map((n) => images[n]);
    const missed = shown.filter((image) => image.abnormal && !image.flagged).length;
    const alarms = shown.filter((image) => !image.abnormal && image.flagged).length;
    const elsewhere = shown.filter((image) => image.elsewhere).length;
    byId("count").textContent =
      `${order.length} of ${images.length} images: ${missed} missed, ${alarms} false alarms` +
      (shown.some((image) => "elsewhere" in image) ? `, ${elsewhere} looking elsewhere.` : ".");
  }

  // ---------------------------------------------------------------- viewer: what is drawn

  const viewer = byId("viewer");
  const overlay = byId("overlay").getContext("2d");
  const binary = byId("binary").getContext("2d");

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

  function tellIou({ hits, alarms, missed }) {
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
    const alone = byId("show-original").checked;
    const strength = alone ? 0 : state.strength;
    const stage = byId("stage");
    stage.classList.toggle("plain", strength === 0);
    const latent = state.latent;
    let scale = map.scale;
    let title = `${map.style}, ${map.layer}`;
    if (latent === null) {
      paint(overlay, image.maps[state.map], width, height, image.steps[state.map], scale, strength);
    } else {
      const { latents } = image;
      scale = data.latents.scale;
      title = `latent ${latentName(latents, latent)}, ${data.latents.name}`;
      paint(overlay, image.tiles[latent], latents.width, latents.height, latents.step, scale, strength);
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
    byId("scale-middle").textContent = short(scale / 2);
    byId("scale-end").textContent = `${short(scale)} or more`;
    byId("scale-unit").textContent = latent === null ? map.unit : "gradient times activation";
    const mark = byId("scale-threshold");
    mark.hidden = latent !== null || state.thresholds[state.map] > scale;
    mark.style.left = `${(100 * state.thresholds[state.map]) / scale}%`;
    tellIou(paintBinary());
    drawControls();
  }

  function drawControls() {
    const map = maps[state.map];
    const threshold = state.thresholds[state.map];
    const slider = byId("threshold");
    Object.assign(slider, { min: 0, max: map.limit, step: map.limit / 400 });
    slider.value = threshold;
    byId("threshold-value").textContent = short(threshold);
    slider.setAttribute("aria-valuetext", `${short(threshold)} ${map.unit}`);
    byId("threshold-reset").disabled = threshold === map.threshold;
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

  // ---------------------------------------------------------------- viewer: switches

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
      byId("styles").append(choice("style", style, text, String(n + 1), () => chooseStyle(n)));
    }
  }

  function fillLayers() {
    const { style } = maps[state.map];
    const box = byId("layers");
    if (box.dataset.style !== style) {
      box.dataset.style = style;
      box.querySelectorAll("label").forEach((label) => label.remove());
      for (const n of mapsOf(style)) {
        box.append(choice("layer", n, maps[n].layer, "", () => chooseMap(n)));
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

  function chooseStrength(value) {
    state.strength = Math.min(Math.max(value, 0), 1);
    redraw();
  }

  function toggle(id) {
    byId(id).checked = !byId(id).checked;
    redraw();
  }

  // ---------------------------------------------------------------- viewer: an image

  const latentName = (latents, n) =>
    `z${latents.order[n]} ${latents.deviations[n] < 0 ? "−" : "+"}${Math.abs(latents.deviations[n]).toFixed(1)} sd`;

  function fillLatents(image) {
    const { latents } = image;
    const list = byId("latents");
    list.replaceChildren();
    for (const [n, tile] of image.tiles.entries()) {
      const canvas = element("canvas");
      paint(canvas.getContext("2d"), tile, latents.width, latents.height, latents.step, data.latents.scale, 0.85);
      const picture = element("span", { className: "tile" }, element("img", { alt: "", src: image.image }), canvas);
      picture.style.aspectRatio = `${width} / ${height}`;
      const button = element("button", { type: "button", className: "latent" }, picture,
        element("span", { textContent: latentName(latents, n) }));
      button.setAttribute("aria-pressed", "false");
      button.addEventListener("click", () => {
        state.latent = state.latent === n ? null : n;
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
    const score = `score ${short(record.score)}, ${record.flagged ? "over" : "under"} ${short(data.decision.threshold)}`;
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
      if (images[state.order[state.place]] !== record) return; // went on meanwhile
      state.image = image;
      for (const id of ["stage-image", "original"]) byId(id).src = image.image;
      byId("reconstruction").src = image.reconstruction;
      state.latent = null;
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
    r: () => chooseThreshold(maps[state.map].threshold),
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

  // ---------------------------------------------------------------- start

  function prepare() {
    const small = Math.max(height, width) <= 64;
    for (const box of [gallery, viewer]) {
      box.classList.toggle("small-images", small);
      box.style.setProperty("--ratio", `${width} / ${height}`);
      box.style.setProperty("--shape", width / height);
    }
    for (const id of ["outline", "peak"]) byId(id).setAttribute("viewBox", `0 0 ${width} ${height}`);
    for (const circle of byId("peak").children) circle.setAttribute("r", 0.025 * Math.max(height, width) + 0.4);
    const colours = byId("scale-colours").getContext("2d");
    const bar = colours.createImageData(256, 1);
    for (let n = 0; n < 256; n += 1) bar.data.set([...colour(n / 255), 255], 4 * n);
    colours.putImageData(bar, 0, 0);
    byId("latents-heading").textContent = `What single latents look at (${data.latents.name})`;
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
  return Object.freeze({ receive });
})();
