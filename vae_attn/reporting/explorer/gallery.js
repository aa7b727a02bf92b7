// The gallery: filters and cards.

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
  score.title = decided ? `score, ${record.flagged ? "over" : "under"} the threshold` : "score";
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
  byId("decision").textContent = data.decision.text;
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
  const missed = shown.filter((image) => image.abnormal && wrong(image)).length;
  const alarms = shown.filter((image) => !image.abnormal && wrong(image)).length;
  const elsewhere = shown.filter((image) => image.elsewhere).length;
  byId("count").textContent =
    `${order.length} of ${images.length} images` +
    (decided ? `: ${missed} missed, ${alarms} false alarms` : ": none decided") +
    (shown.some((image) => "elsewhere" in image) ? `, ${elsewhere} looking elsewhere.` : ".");
}
