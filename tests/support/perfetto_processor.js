// Perfetto's trace processor on standard input and output: frames, each its length (4 bytes, little
// endian) and a TraceProcessorRpcStream. Argument: the folder of engine_bundle.js, what Perfetto's
// web page runs in a worker of the browser; here it is told that it is in one.
'use strict';
const fs = require('fs');
const path = require('path');

const folder = process.argv[2];

class FileRequest {
  open(method, url) {
    this.file = path.join(folder, path.basename(url));
  }

  send() {
    const bytes = fs.readFileSync(this.file);
    this.status = 200;
    this.response = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length);
  }
}

const port = {
  postMessage(bytes) {
    const frame = Buffer.alloc(4 + bytes.length);
    frame.writeUInt32LE(bytes.length);
    frame.set(bytes, 4);
    for (let at = 0; at < frame.length; ) at += fs.writeSync(1, frame, at);
  },
};

const worker = { location: { href: `file://${folder}/` } };
const quiet = { ...console, log() {}, warn() {} };
// Without process, by which it would know Node.
const names = ['self', 'location', 'console', 'XMLHttpRequest', 'WorkerGlobalScope', 'process'];
const bundle = fs.readFileSync(path.join(folder, 'engine_bundle.js'), 'utf8');
new Function(...names, bundle)(worker, worker.location, quiet, FileRequest, class {}, undefined);
worker.onmessage({ data: port });

setImmediate(() => {
  let waiting = Buffer.alloc(0);
  process.stdin.on('data', (more) => {
    waiting = Buffer.concat([waiting, more]);
    while (waiting.length >= 4 && waiting.length >= 4 + waiting.readUInt32LE(0)) {
      const end = 4 + waiting.readUInt32LE(0);
      port.onmessage({ data: new Uint8Array(waiting.subarray(4, end)) });
      waiting = waiting.subarray(end);
    }
  });
});
