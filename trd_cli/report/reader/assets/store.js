// The trajectories in the page: blocks of base64 of gzip of JSON, opened on demand.

const MOST_CHUNKS = 6;

function bytesOf(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
  const binary = atob(base64), bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

async function unpacked(id) {
  const bytes = bytesOf(document.getElementById(id).textContent);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

// The last few opened chunks by number. Each is a promise, so that none is opened twice at a time.
const chunks = new Map();

function chunk(number) {
  const found = chunks.get(number) ?? unpacked(`chunk-${number}`);
  chunks.delete(number);
  chunks.set(number, found);
  if (chunks.size > MOST_CHUNKS) chunks.delete(chunks.keys().next().value);
  return found;
}
