// The connection of this page: requests as JSON, answers as JSON or with arrays behind it.

const TYPES = { uint8: Uint8Array, float32: Float32Array, int32: Int32Array };

/** A binary answer: its JSON, each entry of `arrays` replaced by a typed array with its shape. */
export function unpack(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const message = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const arrays = {};
  for (const [name, { at, bytes, type, shape }] of Object.entries(message.arrays)) {
    const size = TYPES[type].BYTES_PER_ELEMENT;
    arrays[name] = Object.assign(new TYPES[type](buffer, 4 + length + at, bytes / size), { shape });
  }
  return { ...message, arrays };
}

export class Connection {
  #socket;
  #number = 0;
  #heard;
  #lost;

  constructor(heard, lost) {
    this.#heard = heard;
    this.#lost = lost;
    this.open();
  }

  open() {
    const address = new URL("/visit", location.href);
    address.protocol = address.protocol.replace("http", "ws");
    this.#socket = new WebSocket(address);
    this.#socket.binaryType = "arraybuffer";
    this.#socket.onmessage = ({ data }) => this.#heard(typeof data === "string" ? JSON.parse(data) : unpack(data));
    this.#socket.onclose = ({ code, reason }) => this.#lost(code, reason);
  }

  get ready() {
    return this.#socket.readyState === WebSocket.OPEN;
  }

  /** Ask for something; the answers have the number that is returned. */
  ask(what, options = {}) {
    const id = ++this.#number;
    this.#socket.send(JSON.stringify({ do: what, id, ...options }));
    return id;
  }

  upload(bytes) {
    this.#socket.send(bytes);
  }
}
