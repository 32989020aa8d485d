// A small Node service profiled by the real Pyroscope SDK.
//
// It burns CPU and allocates for SDK_SECONDS while the SDK uploads to
// PYROSCOPE_SERVER_ADDRESS, then stops the SDK, which sends the last profiles,
// and leaves with 0. The SDK logs to stderr through the `debug` package.
// Judging the uploads is the work of whoever listens at the address.

import { createHash } from 'node:crypto';
import { setImmediate as yieldToEvents } from 'node:timers/promises';

// The SDK sets no lower bound.
const FLUSH_INTERVAL_MS = 1000;

function refuse(why) {
  console.error(`[ERROR] ${why}`);
  process.exit(2);
}

function runSeconds() {
  const text = process.env.SDK_SECONDS ?? '25';
  if (!/^[1-9][0-9]*$/.test(text)) {
    refuse(`SDK_SECONDS=${JSON.stringify(text)} is not a whole number of seconds from 1`);
  }
  return Number(text);
}

// Keeps one thread busy and about a megabyte alive until `deadlineMs`. Timers
// and sockets of the SDK get their turn every few milliseconds.
async function work(deadlineMs) {
  const kept = new Array(64).fill(null);
  for (let round = 0; performance.now() < deadlineMs; round++) {
    for (let i = 0; i < 50; i++) {
      const block = Buffer.alloc(16 << 10, i);
      createHash('sha256').update(block).digest().copy(block);
      kept[(round + i) % kept.length] = Array.from(block.subarray(0, 512));
    }
    await yieldToEvents();
  }
}

// A round of a profiler that is due at the very moment of its stop takes place after it, finds the profiler stopped and
// rejects, and sets the next one: in the SDK the timer is cleared while the immediate behind it is pending. The busier the
// machine, the likelier. All that was to be sent has been sent by then. Anything else is an error.
let isStopping = false;
process.on('unhandledRejection', (reason) => {
  const isLateRound = /^(Heap profiler is not enabled\.|Wall profiler is not started)$/.test(reason?.message);
  if (!(isStopping && isLateRound)) {
    refuse(reason?.stack ?? reason);
  }
});

const serverAddress = process.env.PYROSCOPE_SERVER_ADDRESS;
if (!serverAddress) {
  refuse('PYROSCOPE_SERVER_ADDRESS is not set');
}
const seconds = runSeconds();

// `debug` reads its switch when it is loaded, so the SDK is imported after.
process.env.DEBUG = 'pyroscope*';
const { default: Pyroscope } = await import('@pyroscope/nodejs');

const toStderr = (level) => (...words) => console.error(`[${level}]`, ...words);
Pyroscope.setLogger({
  error: toStderr('ERROR'),
  fatal: toStderr('ERROR'),
  warn: toStderr('WARN'),
  info: toStderr('INFO'),
  debug: toStderr('DEBUG'),
  trace: toStderr('DEBUG'),
});
Pyroscope.init({
  appName: 'sdk.node',
  serverAddress,
  tags: { region: 'eu', lang: 'node' },
  flushIntervalMs: FLUSH_INTERVAL_MS,
});
Pyroscope.start();
await work(performance.now() + seconds * 1000);
isStopping = true;
await Pyroscope.stop();
process.exit(0); // a late round's timer would keep it alive
