// Files that the visitor keeps.

export function download(name, content, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

/** A Float32Array with a shape as a file of NumPy, version 1.0. */
export function npy(values) {
  const head = `{'descr': '<f4', 'fortran_order': False, 'shape': (${values.shape.join(", ")},), }`;
  const length = Math.ceil((head.length + 11) / 64) * 64;
  const text = head.padEnd(length - 11, " ") + "\n";
  const file = new Uint8Array(length + values.byteLength);
  file.set([0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0, text.length & 255, text.length >> 8]);
  file.set(new TextEncoder().encode(text), 10);
  file.set(new Uint8Array(values.buffer, values.byteOffset, values.byteLength), 10 + text.length);
  return file;
}

export const safe = (text) => text.replace(/[^\p{L}\p{N}_+.-]+/gu, "-").slice(0, 60);
