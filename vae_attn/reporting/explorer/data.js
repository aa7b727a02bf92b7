// What the page knows of a run, and the data of its images, which lie beside it as scripts.

const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("explorer-data").textContent);
const { height, width, maps, images } = data;
const pixels = height * width;
const palette = bytesOf(data.colours);
const signedPalette = bytesOf(data.signedColours);
const KEPT = 32; // images whose maps stay in memory

const requested = new Map(); // id -> {promise, resolve}
const state = {
  order: [],
  place: -1,
  map: 0,
  latent: null, // its place in the list; 0 is the whole image
  replaced: 0, // the place among data.latents.shares
  thresholds: maps.map(normalThreshold),
  strength: 0.85,
  image: null, // decoded
  drawing: 0,
  announcing: 0,
};

// That of normal images; where they can give none, the slider starts at the full colour.
function normalThreshold(map) {
  return map.threshold ?? map.scale;
}

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
  const first = maps.length + (record.mask ? 1 : 0); // before what belongs to latents
  const large = first + record.latents.order.length - 1;
  integrate(bytes.subarray(0, large * pixels), width);
  const tile = record.latents.height * record.latents.width;
  const small = integrate(bytes.subarray(large * pixels), record.latents.width);
  const plane = (n) => bytes.subarray(n * pixels, (n + 1) * pixels);
  const normal = new Image();
  normal.src = record.counterpart;
  await normal.decode();
  return {
    ...record,
    normal,
    maps: maps.map((_, n) => plane(n)),
    mask: record.mask ? plane(maps.length) : null,
    levels: record.latents.order.map((_, n) => (n ? plane(first + n - 1) : null)),
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
