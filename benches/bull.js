// npm's Bull, doing what benches/queue.rs does: `node bull.js REDIS_URL QUEUE MODE [NUMBER]...`.
// Prints one JSON line. NODE_PATH points to where scripts/lib/setup.sh put the package.
'use strict';

const Queue = require('bull');

const [url, name, mode, ...numbers] = process.argv.slice(2);
const [first, second] = numbers.map(Number);
const queue = new Queue(name, url);

const data = (n) => ({ userId: n, kind: 'welcome', at: 1795175398596 });
const now = () => Number(process.hrtime.bigint()) / 1e9;
const say = (answer) => process.stdout.write(`${JSON.stringify(answer)}\n`);

// Seconds and processor seconds of `work`.
async function timed(work) {
  const [begun, cpu] = [now(), process.cpuUsage()];
  await work();
  const used = process.cpuUsage(cpu);
  return { seconds: now() - begun, cpu: (used.user + used.system) / 1e6 };
}

const modes = {
  // COUNT jobs, each after the answer to the one before.
  async one_by_one() {
    say(await timed(async () => {
      for (let n = 0; n < first; n++) await queue.add(data(n));
    }));
  },
  // COUNT jobs, FLIGHT of them on their way at any time.
  async pipelined() {
    let next = 0;
    const lane = async () => {
      while (next < first) await queue.add(data(next++));
    };
    say(await timed(() => Promise.all(Array.from({ length: second }, lane))));
  },
  // COUNT jobs, in bulks of SIZE.
  async bulk() {
    say(await timed(async () => {
      for (let n = 0; n < first; n += second) {
        await queue.addBulk(Array.from({ length: Math.min(second, first - n) }, (_, i) => ({ data: data(n + i) })));
      }
    }));
  },
  // Runs COUNT jobs that wait already, at CONCURRENCY.
  async process() {
    say(await timed(() => new Promise((resolve) => {
      let done = 0;
      queue.process(second, async () => null);
      queue.on('completed', () => {
        if (++done === first) resolve();
      });
    })));
  },
  // Runs COUNT jobs as they come; tells how long after `at` (monotonic seconds) each began, in ms.
  async pickup() {
    const waits = [];
    await new Promise((resolve) => {
      queue.on('completed', () => {
        if (waits.length >= first) resolve();
      });
      queue.process(1, async (job) => {
        waits.push((now() - job.data.at) * 1e3);
      });
      queue.isReady().then(() => say({ ready: true }));
    });
    waits.sort((a, b) => a - b);
    say({ p50: waits[Math.floor(waits.length * 0.5)], p99: waits[Math.floor(waits.length * 0.99)] });
  },
  // A worker with nothing to do, for COUNT seconds.
  async idle() {
    queue.process(1, async () => null);
    await queue.isReady();
    await new Promise((resolve) => setTimeout(resolve, 2000));
    say({ ready: true });
    const used = await timed(() => new Promise((resolve) => setTimeout(resolve, first * 1000)));
    say({ ...used, megabytes: process.memoryUsage().rss / 2 ** 20 });
  },
};

queue
  .isReady()
  .then(() => modes[mode]())
  .then(() => process.exit(0))
  .catch((error) => {
    console.error(error);
    process.exit(1);
  });
