// The real Bull beside ours, for the traps of wire format 11: `node traps.js REDIS_URL QUEUE COMMAND`, one JSON answer on stdout.
// NODE_PATH points to where scripts/test put the package.
'use strict';

const Queue = require('bull');

const [url, name, command] = process.argv.slice(2);
const settings = { stalledInterval: 300, lockDuration: 1000, guardInterval: 200 };
const queue = new Queue(name, url, { settings });

// Runs what there is until `enough` jobs are completed.
function run(enough) {
  return new Promise((resolve, reject) => {
    const done = [];
    queue.on('error', reject);
    queue.on('completed', (job) => {
      done.push(String(job.id));
      if (done.length === enough) resolve({ done, counts: null });
    });
    queue.process(async () => 'bull');
  });
}

const commands = {
  // The stalled check of a worker, then every job that is there.
  async runFive() {
    const answer = await run(5);
    return { done: answer.done.sort(), counts: await queue.getJobCounts() };
  },
  async runTwo() {
    const answer = await run(2);
    return { done: answer.done.sort(), counts: await queue.getJobCounts() };
  },
  // Pauses, waits for three jobs that ours adds meanwhile, resumes and runs all.
  async pausedThenRunFive() {
    await queue.pause();
    while ((await queue.getPausedCount()) < 5) await new Promise((again) => setTimeout(again, 20));
    await queue.resume();
    const answer = await run(5);
    return { done: answer.done.sort(), counts: await queue.getJobCounts() };
  },
  async empty() {
    await queue.empty();
    return { counts: await queue.getJobCounts(), repeatables: (await queue.getRepeatableJobs()).length };
  },
};

commands[command]()
  .then((answer) => process.stdout.write(JSON.stringify(answer)))
  .then(() => queue.close(true))
  .then(
    () => process.exit(0),
    (error) => {
      console.error(error);
      process.exit(1);
    },
  );
