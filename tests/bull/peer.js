// The real Bull beside ours: `node peer.js REDIS_URL QUEUE COMMAND`, one JSON answer on stdout.
// NODE_PATH points to where scripts/test put the package.
'use strict';

const Queue = require('bull');

const [url, name, command] = process.argv.slice(2);
const queue = new Queue(name, url);

const commands = {
  // Adds a job and waits for the result that our worker gives it.
  async addAndAwait() {
    const job = await queue.add({}, { attempts: 2 });
    const result = await job.finished();
    const stored = await queue.getJob(job.id);
    return { id: String(job.id), result, logs: (await queue.getJobLogs(job.id)).logs, progress: stored.progress() };
  },
  // Adds a job and waits for its failure.
  async addAndAwaitFailure() {
    const job = await queue.add({}, { attempts: 1 });
    return job.finished().then(
      () => ({ failed: false }),
      (error) => ({ failed: true, message: error.message }),
    );
  },
  // Runs one job that ours added.
  processOne() {
    return new Promise((resolve, reject) => {
      queue.on('completed', (job, result) => resolve({ id: String(job.id), data: job.data, opts: job.opts, result }));
      queue.on('failed', (_, error) => reject(error));
      queue.process(async (job) => {
        await job.progress(42);
        return { by: 'bull' };
      });
    });
  },
  async look() {
    const failed = await queue.getFailed();
    return {
      counts: await queue.getJobCounts(),
      failed: failed.map((job) => ({ reason: job.failedReason, attemptsMade: job.attemptsMade, stacktrace: job.stacktrace })),
      repeatables: await queue.getRepeatableJobs(),
      delayed: (await queue.getDelayed()).map((job) => ({ id: job.id, delay: job.delay, opts: job.opts })),
    };
  },
};

commands[command]()
  .then((answer) => process.stdout.write(JSON.stringify(answer)))
  .then(() => queue.close())
  .then(
    () => process.exit(0),
    (error) => {
      console.error(error);
      process.exit(1);
    },
  );
