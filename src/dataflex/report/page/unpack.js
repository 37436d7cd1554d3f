// The two blocks of content: gzip of (length of JSON, JSON, planes of whole numbers); see pack.py.

function bytesOf(id) {
  const element = document.getElementById(id);
  const text = atob(element.textContent);
  element.remove(); // megabytes of base64 need not stay in the document
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

async function gunzip(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function unpack(bytes) {
  const data = await gunzip(bytes);
  const length = new DataView(data.buffer).getUint32(0, true);
  const content = JSON.parse(new TextDecoder().decode(data.subarray(4, 4 + length)));
  return restore(content, data.subarray(4 + length));
}

function restore(value, planes) {
  if (value === null || typeof value !== "object") return value;
  if (Array.isArray(value)) {
    if (typeof value[0] !== "string") for (let i = 0; i < value.length; i++) value[i] = restore(value[i], planes);
    return value;
  }
  if (value.packed_at !== undefined) return numbers(value, planes);
  for (const key of Object.keys(value)) value[key] = restore(value[key], planes);
  return value;
}

// Float64Array; a missing value is NaN.
function numbers(entry, planes) {
  const { packed_at: at, n, bytes, min, decimals, missing } = entry;
  const values = new Float64Array(n);
  for (let plane = 0, unit = 1; plane < bytes; plane++, unit *= 256) {
    for (let i = 0, from = at + plane * n; i < n; i++) values[i] += planes[from + i] * unit;
  }
  const none = missing ? 256 ** bytes - 1 : -1;
  const scale = 10 ** decimals;
  for (let i = 0; i < n; i++) values[i] = values[i] === none ? NaN : (values[i] + min) / scale;
  return values;
}
